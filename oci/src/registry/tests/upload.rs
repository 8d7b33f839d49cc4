//! Uploads in chunks, broken and taken up again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::fake::{Door, Fake};
use super::server::{Answer, Server};
use super::{options, reference};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::media_type::OCI_LAYER;
use crate::registry::{BlobReader, Client, ClientOptions, Pushed, RegistryError};

pub(super) const CHUNK: u64 = 200_000;

pub(super) fn in_chunks() -> Client {
    Client::new(ClientOptions { upload_chunk_bytes: CHUNK, ..options() })
}

pub(super) fn blob(len: u32) -> (Bytes, Descriptor) {
    let bytes: Bytes = (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into();
    let blob = Descriptor::new(OCI_LAYER, Digest::of(&bytes), bytes.len() as u64);
    (bytes, blob)
}

pub(super) async fn push(
    client: &Client,
    host: &str,
    bytes: &Bytes,
    blob: &Descriptor,
) -> Result<Pushed, RegistryError> {
    let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
    client.push_blob(&reference(host, "team/app"), blob, &open, &[], |_| ()).await
}

pub(super) fn arrived(fake: &Fake, blob: &Descriptor) -> bool {
    fake.state().blobs.contains_key(&("team/app".to_owned(), blob.digest.to_string()))
}

/// Bytes of all bodies of uploads.
pub(super) fn sent(fake: &Fake) -> usize {
    let is_upload = |method: &str| matches!(method, "PATCH" | "PUT");
    fake.server.seen().iter().filter(|seen| is_upload(&seen.method)).map(|seen| seen.body.len()).sum()
}

#[tokio::test]
async fn long_blobs_go_in_chunks() {
    let fake = Fake::start().await;
    let (bytes, blob) = blob(700_000);
    let mut steps = Vec::new();
    let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
    let target = reference(fake.host(), "team/app");
    in_chunks().push_blob(&target, &blob, &open, &[], |sent| steps.push(sent)).await.expect("pushed");
    assert_eq!((fake.server.count("PATCH"), fake.server.count("PUT"), sent(&fake)), (3, 1, 700_000));
    assert!(arrived(&fake, &blob));
    assert!(steps.is_sorted() && steps.last() == Some(&700_000), "{steps:?}");
    // An exact multiple, and what fits into one.
    for len in [400_000, 200_000, 1, 0] {
        let (bytes, blob) = self::blob(len);
        assert_eq!(push(&in_chunks(), fake.host(), &bytes, &blob).await.expect("pushed"), Pushed::Uploaded, "{len}");
        assert!(arrived(&fake, &blob), "{len}");
    }
}

#[tokio::test]
async fn broken_uploads_go_on_where_they_stopped() {
    let breaks: [fn(Answer) -> Answer; 3] = [
        |answer| Answer { close: true, ..answer },
        |_| Answer::new(503),
        |_| Answer::new(429).header("Retry-After", "0"),
    ];
    for change in breaks {
        let fake = Fake::start().await;
        let (bytes, blob) = blob(900_000);
        let opened = AtomicUsize::new(0);
        let open = || -> io::Result<BlobReader> {
            opened.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(io::Cursor::new(bytes.clone())))
        };
        // The chunk is there, the answer is not.
        fake.fault("PATCH", "", 2, move |_, answer| change(answer));
        let target = reference(fake.host(), "team/app");
        in_chunks().push_blob(&target, &blob, &open, &[], |_| ()).await.expect("pushed");
        assert!(arrived(&fake, &blob));
        assert_eq!((sent(&fake), fake.server.count("POST")), (900_000, 1), "nothing was sent twice");
        assert_eq!(opened.load(Ordering::Relaxed), 1, "a reader that stands where it should is used on");
    }
}

#[tokio::test]
async fn uploads_that_the_registry_has_lost_begin_again() {
    let fake = Arc::new(Fake::start().await);
    let (bytes, blob) = blob(700_000);
    fake.fault("PATCH", "", 1, |_, answer| answer);
    fake.fault("PATCH", "", 1, |_, _| Answer::new(404));
    fake.fault("GET", "uploads", 1, |_, _| Answer::new(404));
    assert_eq!(push(&in_chunks(), fake.host(), &bytes, &blob).await.expect("pushed"), Pushed::Uploaded);
    assert_eq!(fake.server.count("POST"), 2);
    assert!(arrived(&fake, &blob));

    // One that says it has what it cannot have.
    let fake = Fake::start().await;
    fake.fault("PATCH", "", 1, |_, _| Answer::new(503));
    fake.fault("GET", "uploads", 1, |_, answer| answer.header("Range", "0-999999999"));
    assert_eq!(push(&in_chunks(), fake.host(), &bytes, &blob).await.expect("pushed"), Pushed::Uploaded);
    assert!(arrived(&fake, &blob));
}

#[tokio::test]
async fn registries_without_chunks_get_the_whole_and_are_remembered() {
    let fake = Fake::start().await;
    fake.state().chunks = false;
    let client = in_chunks();
    for len in [700_000, 800_000] {
        let (bytes, blob) = blob(len);
        assert_eq!(push(&client, fake.host(), &bytes, &blob).await.expect("pushed"), Pushed::Uploaded);
        assert!(arrived(&fake, &blob));
    }
    assert_eq!((fake.server.count("PATCH"), fake.server.count("PUT")), (1, 2));
}

#[tokio::test]
async fn proxies_with_limits_get_smaller_requests() {
    const LIMIT: usize = 6 << 20;
    let fake = Fake::in_weather(|seen, state| {
        if seen.body.len() > LIMIT { Answer::new(413).body("<html>413</html>") } else { state.answer(seen) }
    })
    .await;
    let client = Client::new(options());
    let (bytes, blob) = blob(24 << 20);
    assert_eq!(push(&client, fake.host(), &bytes, &blob).await.expect("pushed"), Pushed::Uploaded);
    assert!(arrived(&fake, &blob));
    let refused = fake.server.seen().iter().filter(|seen| seen.body.len() > LIMIT).count();
    assert!(refused <= 2, "{refused}");

    // One that takes nothing ends.
    let fake =
        Fake::in_weather(
            |seen, state| {
                if seen.body.is_empty() { state.answer(seen) } else { Answer::new(413).body("not a byte") }
            },
        )
        .await;
    let error = push(&client, fake.host(), &bytes, &blob).await.expect_err("refused");
    assert!(matches!(error, RegistryError::Status { status: 413, .. }), "{error}");
}

#[tokio::test]
async fn a_token_that_dies_between_chunks_is_replaced_and_nothing_sent_twice() {
    let fake = Arc::new(Fake::start().await);
    let registry = fake.clone();
    let tokens = Server::start(move |seen| {
        let token = registry.state().issue(&seen.query("scope"));
        Answer::new(200).body(format!(r#"{{"token":"{token}"}}"#))
    })
    .await;
    fake.state().door = Door::Bearer { realm: format!("http://{}/", tokens.host) };
    let (bytes, blob) = blob(1_000_000);
    let at = AtomicUsize::new(0);
    let realm = tokens.host.clone();
    // Every other chunk finds its token refused; what was sent with it is not taken.
    let fake_weather = fake.clone();
    let weather = Server::start(move |seen| {
        let is_refused = seen.method == "PATCH" && at.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let mut state = fake_weather.state();
        if is_refused {
            state.tokens.clear();
            let challenge = format!("Bearer realm=\"http://{realm}/\",service=\"fake\"");
            return Answer::new(401).header("WWW-Authenticate", &challenge);
        }
        state.answer(seen)
    })
    .await;
    assert_eq!(push(&in_chunks(), &weather.host, &bytes, &blob).await.expect("pushed"), Pushed::Uploaded);
    assert!(arrived(&fake, &blob));
    assert_eq!(weather.count("POST"), 1, "the upload went on");
    assert!(tokens.seen().len() >= 3, "{:?}", tokens.lines());
}

#[tokio::test]
async fn a_blob_is_sent_once_however_many_ask_for_it() {
    let fake = Fake::start().await;
    let client = Client::new(options());
    let (bytes, blob) = blob(500_000);
    let mut pushes = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, host, bytes, blob) = (client.clone(), fake.host().to_owned(), bytes.clone(), blob.clone());
        pushes.spawn(async move { push(&client, &host, &bytes, &blob).await });
    }
    let all = pushes.join_all().await;
    let n_uploaded = all.iter().filter(|pushed| matches!(pushed, Ok(Pushed::Uploaded))).count();
    assert_eq!((n_uploaded, all.len()), (1, 6));
    assert_eq!((fake.server.count("HEAD"), fake.server.count("PUT")), (1, 1));

    // Whoever comes after a failure tries.
    let (bytes, other) = self::blob(600_000);
    fake.fault("POST", "", 1, |_, _| Answer::new(403));
    assert!(push(&client, fake.host(), &bytes, &other).await.is_err());
    assert_eq!(push(&client, fake.host(), &bytes, &other).await.expect("pushed"), Pushed::Uploaded);
}
