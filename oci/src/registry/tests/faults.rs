//! A registry in bad weather: three requests in ten fail in every way that requests fail, and everything ends well.
//! What fails is decided by a seed and the number of the request.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::fake::{Fake, State};
use super::server::{Answer, Seen};
use super::{options, reference};
use crate::digest::Digest;
use crate::image::{Descriptor, Manifest, to_manifest_json};
use crate::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::registry::{BlobReader, Client, ClientOptions, Pushed};

/// Requests in a hundred that fail.
const FAULTY: u64 = 30;

/// A number for a number (splitmix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What becomes of a request for which the dice show `dice`.
fn weather(dice: u64, seen: &Seen, state: &mut State) -> Answer {
    if dice % 100 >= FAULTY {
        return state.answer(seen);
    }
    let is_read = seen.method == "GET";
    match mix(dice) % 11 {
        // Before anything is done.
        0 => Answer::new(503),
        1 => Answer::new(429).header("Retry-After", "0"),
        2 => Answer::new(408),
        3 => Answer::new(500).body("<html>"),
        4 => Answer { close: true, ..Answer::new(200) },
        // It is done, and the answer lost: before, in and after its head.
        5 => Answer { close: true, ..state.answer(seen) },
        6 => Answer { cut_at: Some(0), ..state.answer(seen) },
        7 => {
            let answer = state.answer(seen);
            Answer { cut_at: Some(answer.body.len() * 2 / 3), ..answer }
        }
        8 if is_read => Answer { hang: true, cut_at: Some(10), ..state.answer(seen) },
        // Another range than was asked for.
        9 if seen.headers.contains_key("range") => {
            let answer = state.answer(seen);
            answer.header("Content-Range", "bytes 1-2/3")
        }
        // The upload is forgotten.
        _ if seen.path().contains("/uploads/") && !seen.path().ends_with("/uploads/") => {
            state.sessions.remove(seen.path());
            Answer::new(404)
        }
        _ => Answer::new(502),
    }
}

async fn stormy(seed: u64) -> Fake {
    let n_requests = AtomicU64::new(0);
    Fake::in_weather(move |seen, state| {
        let number = n_requests.fetch_add(1, Ordering::Relaxed);
        weather(mix(seed << 32 | number), seen, state)
    })
    .await
}

fn client() -> Client {
    let mut options = ClientOptions { upload_chunk_bytes: 300_000, ..options() };
    options.retry.stall_timeout = std::time::Duration::from_millis(100);
    Client::new(options)
}

fn layers() -> Vec<Bytes> {
    (1..=4_u32)
        .map(|number| (0..number * 250_000).map(|n| (n.wrapping_mul(number) >> 5) as u8).collect::<Vec<_>>().into())
        .collect()
}

async fn round_trip(seed: u64) {
    let fake = stormy(seed).await;
    let client = client();
    let target = reference(fake.host(), "team/app:1");
    let mut descriptors = Vec::new();
    for bytes in layers() {
        let blob = Descriptor::new(OCI_LAYER, Digest::of(&bytes), bytes.len() as u64);
        let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
        let pushed = client.push_blob(&target, &blob, &open, &[], |_| ()).await;
        assert!(matches!(pushed, Ok(Pushed::Uploaded | Pushed::Existed)), "seed {seed}: {pushed:?}");
        descriptors.push(blob);
    }
    let config = client.push_small_blob(&target, OCI_CONFIG, Bytes::from_static(b"{}")).await;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config.unwrap_or_else(|error| panic!("seed {seed}: {error}")),
        layers: descriptors.clone(),
        subject: None,
        annotations: Default::default(),
    };
    let document: Bytes = to_manifest_json(&manifest).into();
    let put = client.push_manifest(&target, OCI_MANIFEST, document.clone()).await;
    let put = put.unwrap_or_else(|error| panic!("seed {seed}: {error}"));

    let resolved = client.resolve(&target).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(resolved.descriptor, put, "seed {seed}");
    let back = client.fetch_manifest(&target, &put).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(back, document, "seed {seed}");
    for (blob, bytes) in descriptors.iter().zip(layers()) {
        let mut got = Vec::new();
        let mut sink = |chunk: Bytes| {
            got.extend_from_slice(&chunk);
            Ok(())
        };
        let fetched = client.fetch_blob(&target, blob, &mut sink, |_| ()).await;
        fetched.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(got == bytes, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_ends_well_in_bad_weather() {
    let mut trips = tokio::task::JoinSet::new();
    for seed in 0..24 {
        trips.spawn(round_trip(seed));
    }
    while let Some(trip) = trips.join_next().await {
        trip.expect("a round trip");
    }
}
