//! Reading, with everything that can go wrong on the way.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::fake::Fake;
use super::server::{Answer, Server};
use super::{client, observed, options, reference};
use crate::digest::Digest;
use crate::image::{Descriptor, Index};
use crate::media_type::{OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::platform::Platform;
use crate::registry::{ChannelSink, Client, RegistryError, select_platform};

/// 1 MB that is not all the same.
fn large_layer() -> Vec<u8> {
    (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn fetch(client: &Client, host: &str, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    let mut sink = |chunk: Bytes| {
        bytes.extend_from_slice(&chunk);
        Ok(())
    };
    let reference = reference(host, "a/b");
    client.fetch_blob(&reference, blob, &mut sink, |_| ()).await?;
    Ok(bytes)
}

#[tokio::test]
async fn a_whole_image_is_pulled() {
    let fake = Fake::start().await;
    let layer = large_layer();
    let (manifest, parsed) = fake.add_image("a/b", "1", &layer);
    let client = client();
    let image = reference(fake.host(), "a/b:1");

    let resolved = client.resolve(&image).await.expect("resolves");
    assert_eq!(resolved.descriptor, manifest);
    assert_eq!(resolved.bytes, None, "a tag costs a HEAD only");
    let bytes = client.fetch_manifest(&image, &manifest).await.expect("a manifest");
    assert_eq!(bytes, crate::image::to_manifest_json(&parsed));

    let mut steps = Vec::new();
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    let mut readers = tokio::task::JoinSet::new();
    readers.spawn(async move {
        let mut bytes = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    });
    let mut sink = ChannelSink(sender);
    client.fetch_blob(&image, &parsed.layers[0], &mut sink, |bytes| steps.push(bytes)).await.expect("a layer");
    drop(sink);
    assert_eq!(readers.join_all().await.concat(), layer);
    assert!(steps.is_sorted() && steps.last() == Some(&(layer.len() as u64)));

    let config = client.fetch_small_blob(&image, &parsed.config, 100).await.expect("a config");
    assert_eq!(config, &b"{}"[..]);
    let error = client.fetch_small_blob(&image, &parsed.layers[0], 100).await.expect_err("too large");
    assert!(matches!(error, RegistryError::TooLarge { limit_bytes: 100, .. }));

    let pinned = image.with_digest(manifest.digest.clone());
    let resolved = client.resolve(&pinned).await.expect("resolves");
    assert_eq!(resolved.bytes.as_deref(), Some(&bytes[..]), "a digest is read at once");
    assert_eq!(fake.server.count("HEAD"), 1);
}

#[tokio::test]
async fn servers_that_do_not_answer_head_well_are_read() {
    for fault in [405, 200] {
        let fake = Fake::start().await;
        let (manifest, _) = fake.add_image("a/b", "latest", b"x");
        fake.fault("HEAD", "/manifests/", 1, move |_, answer| match fault {
            405 => Answer::new(405),
            _ => Answer { headers: vec![("Content-Type".into(), OCI_MANIFEST.into())], ..answer },
        });
        let resolved = client().resolve(&reference(fake.host(), "a/b")).await.expect("resolves");
        assert_eq!(resolved.descriptor, manifest);
        assert!(resolved.bytes.is_some());
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fake = Fake::start().await;
    let client = client();
    let image = reference(fake.host(), "a/b:1");
    let error = client.resolve(&image).await.expect_err("nothing there");
    assert!(error.is_not_found(), "{error}");
    assert_eq!(error.to_string(), format!("{}/a/b:1: not found", fake.host()));
    let error =
        fetch(&client, fake.host(), &Descriptor::new(OCI_LAYER, Digest::of(b"x"), 1)).await.expect_err("nothing");
    assert!(error.is_not_found(), "{error}");
    assert_eq!(fake.server.seen().len(), 2, "absence is not asked for twice");
}

#[tokio::test]
async fn indexes_lead_to_the_platform() {
    let fake = Fake::start().await;
    let entries = ["linux/arm64", "linux/amd64"].map(|platform| {
        let (mut entry, _) = fake.add_image("a/b", platform, platform.as_bytes());
        entry.platform = Some(Platform::parse(platform, &Platform::host()).expect("a platform"));
        entry
    });
    let index = Index {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        manifests: entries.to_vec(),
        annotations: Default::default(),
    };
    fake.add_manifest("a/b", "1", OCI_INDEX, &crate::image::to_manifest_json(&index));
    let (client, image) = (client(), reference(fake.host(), "a/b:1"));
    let resolved = client.resolve(&image).await.expect("resolves");
    assert_eq!(resolved.descriptor.media_type, OCI_INDEX);
    let bytes = client.fetch_manifest(&image, &resolved.descriptor).await.expect("an index");
    let index: Index = serde_json::from_slice(&bytes).expect("an index");
    let wanted = Platform::new("linux", "amd64", None);
    let chosen = select_platform(&index, &wanted).expect("an entry");
    assert_eq!(chosen.digest, entries[1].digest);
    client.fetch_manifest(&image, chosen).await.expect("its manifest");
}

#[tokio::test]
async fn broken_transfers_go_on_where_they_stopped() {
    let fake = Fake::start().await;
    let layer = large_layer();
    let blob = fake.add_blob("a/b", OCI_LAYER, &layer);
    // More breaks than tries: each one gets further, so none is the last.
    fake.fault("GET", "/blobs/", 7, |_, answer| Answer { cut_at: Some(100_000), ..answer });
    let (client, notices) = observed(&client());
    assert!(fetch(&client, fake.host(), &blob).await.expect("a layer") == layer);
    let ranges: Vec<_> = fake.server.seen().iter().map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 8);
    assert_eq!((ranges[0].as_deref(), ranges[7].as_deref()), (None, Some("bytes=700000-")));
    assert_eq!(notices.lock().expect("no panic").len(), 7);
}

#[tokio::test]
async fn servers_without_ranges_start_anew_and_nothing_is_given_twice() {
    let fake = Fake::start().await;
    let layer = large_layer();
    let blob = fake.add_blob("a/b", OCI_LAYER, &layer);
    let whole = layer.clone();
    fake.fault("GET", "/blobs/", 1, |_, answer| Answer { cut_at: Some(300_001), ..answer });
    fake.fault("GET", "/blobs/", 1, move |_, _| Answer::new(200).body(whole.clone()));
    assert!(fetch(&client(), fake.host(), &blob).await.expect("a layer") == layer);
}

#[tokio::test]
async fn silence_in_the_middle_counts_as_a_broken_connection() {
    let fake = Fake::start().await;
    let blob = fake.add_blob("a/b", OCI_LAYER, &large_layer());
    fake.fault("GET", "/blobs/", 1, |_, answer| Answer { cut_at: Some(10), hang: true, ..answer });
    fetch(&client(), fake.host(), &blob).await.expect("a layer");
}

#[tokio::test]
async fn transfers_that_get_nowhere_end() {
    let fake = Fake::start().await;
    let blob = fake.add_blob("a/b", OCI_LAYER, &large_layer());
    fake.fault("GET", "/blobs/", 1, |_, answer| Answer { cut_at: Some(5), ..answer });
    fake.fault("GET", "/blobs/", 99, |_, answer| Answer { cut_at: Some(0), ..answer });
    let error = fetch(&client(), fake.host(), &blob).await.expect_err("no end");
    assert!(
        matches!(error, RegistryError::Interrupted { transferred_bytes: 5, total_bytes: 1_000_000, .. }),
        "{error:?}"
    );
    assert_eq!(fake.server.seen().len(), 1 + 7);
}

#[tokio::test]
async fn wrong_bytes_are_noticed() {
    let fake = Fake::start().await;
    let (manifest, _) = fake.add_image("a/b", "1", b"content");
    let blob = Descriptor::new(OCI_LAYER, Digest::of(b"content"), 7);
    let client = client();
    fake.fault("GET", "/blobs/", 1, |_, answer| answer.body("CONTENT"));
    let error = fetch(&client, fake.host(), &blob).await.expect_err("other bytes");
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    fake.fault("GET", "/blobs/", 1, |_, answer| answer.body("content and more"));
    let error = fetch(&client, fake.host(), &blob).await.expect_err("more bytes");
    assert!(matches!(error, RegistryError::SizeMismatch { expected_bytes: 7, .. }), "{error}");

    let image = reference(fake.host(), "a/b:1");
    fake.fault("GET", "/manifests/", 1, |_, answer| answer.body(r#"{"config":{},"layers":[]}"#));
    let error = client.fetch_manifest(&image, &manifest).await.expect_err("another manifest");
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error}");
    let resized = Descriptor { size_bytes: 3, ..manifest };
    let error = client.fetch_manifest(&image, &resized).await.expect_err("another size");
    assert!(matches!(error, RegistryError::SizeMismatch { expected_bytes: 3, .. }), "{error}");
}

#[tokio::test]
async fn unusable_manifests_are_refused() {
    let fake = Fake::start().await;
    type Check = fn(&RegistryError) -> bool;
    let cases: [(&str, &[u8], Check); 4] = [
        ("schema1", br#"{"schemaVersion":1,"fsLayers":[]}"#, |error| matches!(error, RegistryError::Schema1 { .. })),
        ("ambiguous", br#"{"manifests":[],"layers":[]}"#, |error| matches!(error, RegistryError::Protocol { .. })),
        ("html", b"<html>", |error| matches!(error, RegistryError::Protocol { .. })),
        ("huge", &[b' '; 5 << 20], |error| matches!(error, RegistryError::TooLarge { .. })),
    ];
    for (tag, bytes, is_expected) in cases {
        fake.add_manifest("a/b", tag, "text/plain", bytes);
        let error = client().resolve(&reference(fake.host(), &format!("a/b:{tag}"))).await.expect_err(tag);
        assert!(is_expected(&error), "{tag}: {error:?}");
    }
}

#[tokio::test]
async fn busy_servers_are_asked_again_when_they_say_so() {
    let fake = Fake::start().await;
    fake.add_image("a/b", "latest", b"x");
    fake.fault("HEAD", "", 1, |_, _| Answer::new(429).header("Retry-After", "1"));
    fake.fault("HEAD", "", 2, |_, _| Answer::new(503));
    let (client, notices) = observed(&client());
    let started = Instant::now();
    client.resolve(&reference(fake.host(), "a/b")).await.expect("resolves");
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After is obeyed");
    assert_eq!(fake.server.seen().len(), 4);
    let notices = notices.lock().expect("no panic").clone();
    assert!(notices[0].starts_with("retry in 1s: ") && notices[0].contains("answered 429"), "{notices:?}");
}

#[tokio::test]
async fn pauses_may_be_dates_by_the_servers_clock() {
    let fake = Fake::start().await;
    fake.add_image("a/b", "latest", b"x");
    fake.fault("HEAD", "", 1, |_, _| {
        let answer = Answer::new(503).header("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT");
        answer.header("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
    });
    let (client, notices) = observed(&client());
    client.resolve(&reference(fake.host(), "a/b")).await.expect("resolves");
    let notices = notices.lock().expect("no panic").clone();
    assert!(notices[0].starts_with("retry in 1s: "), "{notices:?}");
}

#[tokio::test]
async fn patience_ends() {
    let fake = Fake::start().await;
    fake.fault("HEAD", "", 99, |_, _| Answer::new(502).body("bad gateway"));
    let error = client().resolve(&reference(fake.host(), "a/b")).await.expect_err("502 forever");
    assert!(matches!(&error, RegistryError::Status { status: 502, .. }) && error.is_transient(), "{error}");
    assert_eq!(fake.server.seen().len(), 8);

    let fake = Fake::start().await;
    fake.fault("HEAD", "", 99, |_, _| Answer::new(429).header("Retry-After", "86400"));
    let error = client().resolve(&reference(fake.host(), "a/b")).await.expect_err("tomorrow");
    assert!(matches!(error, RegistryError::Status { status: 429, .. }), "{error}");
    assert_eq!(fake.server.seen().len(), 1, "a day is too long");
}

#[tokio::test]
async fn connections_closed_without_an_answer_are_tried_again() {
    let fake = Fake::start().await;
    fake.add_image("a/b", "latest", b"x");
    fake.fault("HEAD", "", 2, |_, answer| Answer { close: true, ..answer });
    client().resolve(&reference(fake.host(), "a/b")).await.expect("resolves");
}

#[tokio::test]
async fn nobody_at_home_is_unreachable() {
    let host = Fake::start().await.host().to_owned();
    let error = client().resolve(&reference(&host, "a/b")).await.expect_err("nobody");
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.to_string().contains(&format!("cannot reach {host}")), "{error}");
}

#[tokio::test]
async fn redirects_to_another_host_carry_no_credentials() {
    let layer = large_layer();
    let blob = Descriptor::new(OCI_LAYER, Digest::of(&layer), layer.len() as u64);
    let bytes = layer.clone();
    let cut = Mutex::new(true);
    let storage = Server::start_on("127.0.0.2", move |seen| {
        let start: usize = seen.header("range").map_or(0, |range| range[6..range.len() - 1].parse().expect("digits"));
        let answer = Answer::new(if start > 0 { 206 } else { 200 }).body(&bytes[start..]);
        let answer = answer.header("Content-Range", &format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()));
        let is_first = std::mem::replace(&mut *cut.lock().expect("no panic"), false);
        Answer { cut_at: is_first.then_some(1000), ..answer }
    })
    .await;
    let target = format!("http://{}/bucket/x?signature=s", storage.host);
    let fake = Fake::start().await;
    fake.state().door = super::fake::Door::Basic("u:p".to_owned());
    fake.fault("GET", "/blobs/", 99, move |_, answer| match answer.status {
        401 => answer,
        _ => Answer::new(307).header("Location", &target),
    });
    let dir = tempfile::tempdir().expect("a directory");
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.host());
    std::fs::write(dir.path().join("config.json"), config).expect("a file");
    let client =
        Client::new(crate::registry::ClientOptions { docker_config_dir: Some(dir.path().to_owned()), ..options() });

    assert!(fetch(&client, fake.host(), &blob).await.expect("a layer") == layer);
    let seen = storage.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none()), "the password stayed at home");
    assert_eq!(seen[1].header("range"), Some("bytes=1000-"), "ranges follow redirects");
}

#[tokio::test]
async fn redirects_in_circles_end() {
    let fake = Fake::start().await;
    fake.fault("HEAD", "", 99, |seen, _| Answer::new(302).header("Location", &seen.target));
    let error = client().resolve(&reference(fake.host(), "a/b")).await.expect_err("a circle");
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    assert_eq!(fake.server.seen().len(), 11);
}

#[tokio::test]
async fn mirrors_come_first_and_may_fail_in_any_way() {
    let upstream = Fake::start().await;
    let layer = large_layer();
    let (manifest, parsed) = upstream.add_image("a/b", "1", &layer);
    let empty = Fake::start().await;
    let broken = Server::start(|_| Answer::new(429).header("Retry-After", "86400")).await;
    let flaky = Fake::start().await;
    flaky.add_image("proxy/a/b", "1", &layer);
    flaky.fault("GET", "/blobs/", 1, |_, answer| Answer { cut_at: Some(500_000), ..answer });
    flaky.fault("GET", "/blobs/", 99, |_, _| Answer::new(500));

    let mut options = options();
    let mirrors = [empty.host().to_owned(), broken.host.clone(), format!("{}/proxy", flaky.host())];
    options.mirrors.insert(upstream.host().to_owned(), mirrors.to_vec());
    let (client, notices) = observed(&Client::new(options));
    let image = reference(upstream.host(), "a/b:1");
    assert_eq!(client.resolve(&image).await.expect("resolves").descriptor, manifest);
    assert_eq!(upstream.server.seen().len(), 0, "a mirror had it");
    assert_eq!(flaky.server.seen()[0].query("ns"), [upstream.host()]);

    let got = fetch(&client, upstream.host(), &parsed.layers[0]).await.expect("a layer");
    assert!(got == layer);
    let last = upstream.server.seen().pop().expect("the rest came from upstream");
    assert_eq!(last.header("range"), Some("bytes=500000-"), "what a mirror gave is not asked for again");
    assert!(notices.lock().expect("no panic").iter().any(|notice| notice.starts_with("next ")));
}

#[tokio::test]
async fn foreign_layers_are_looked_for_at_their_own_address_first() {
    let elsewhere = Server::start(|seen| match seen.path() {
        "/gone" => Answer::new(404),
        _ => Answer::new(200).body("layer"),
    })
    .await;
    let fake = Fake::start().await;
    let mut blob = fake.add_blob("a/b", OCI_LAYER, b"layer");
    blob.urls =
        vec!["ftp://x/y".to_owned(), format!("http://{}/gone", elsewhere.host), format!("http://{}/x", elsewhere.host)];
    assert_eq!(fetch(&client(), fake.host(), &blob).await.expect("a layer"), b"layer");
    assert_eq!(fake.server.seen().len(), 0);
    blob.urls.truncate(2);
    assert_eq!(fetch(&client(), fake.host(), &blob).await.expect("a layer"), b"layer");
    assert_eq!(fake.server.seen().len(), 1);
}

#[tokio::test]
async fn a_host_gets_four_requests_at_a_time_and_one_more_for_a_small_one() {
    let fake = Fake::start().await;
    let (manifest, parsed) = fake.add_image("a/b", "1", &vec![7; 5 << 20]);
    let blob = parsed.layers[0].clone();
    let client = client();
    let image = reference(fake.host(), "a/b:1");
    // Transfers that do not end until they are told to.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let mut transfers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, image, blob, gate) = (client.clone(), image.clone(), blob.clone(), gate.clone());
        transfers.spawn(async move { client.fetch_blob(&image, &blob, &mut Gated(gate), |_| ()).await });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.server.count("GET /v2/a/b/blobs/"), 4);
    client.fetch_manifest(&image, &manifest).await.expect("does not wait for layers");
    gate.add_permits(1_000_000);
    for outcome in transfers.join_all().await {
        outcome.expect("a layer");
    }
    assert_eq!(fake.server.count("GET /v2/a/b/blobs/"), 6);
}

/// A sink that takes nothing before the gate is open.
struct Gated(Arc<tokio::sync::Semaphore>);

impl crate::registry::BlobSink for Gated {
    async fn write(&mut self, _chunk: Bytes) -> io::Result<()> {
        drop(self.0.acquire().await);
        Ok(())
    }
}

#[tokio::test]
async fn a_sink_that_fails_ends_the_transfer() {
    let fake = Fake::start().await;
    let blob = fake.add_blob("a/b", OCI_LAYER, &large_layer());
    let mut sink = |_: Bytes| Err(io::Error::other("disk full"));
    let error = client().fetch_blob(&reference(fake.host(), "a/b"), &blob, &mut sink, |_| ()).await.expect_err("full");
    assert_eq!(error.to_string(), format!("{}/a/b@{}: cannot write local data: disk full", fake.host(), blob.digest));
    assert_eq!(fake.server.seen().len(), 1);
}

#[tokio::test]
async fn proxies_are_used_except_for_this_machine_and_named_hosts() {
    let proxy = Server::start(|_| Answer::new(404)).await;
    let mut options = options();
    options.proxies.http = Some(format!("http://{}", proxy.host));
    options.proxies.no_proxy = Some("direct.test".to_owned());
    options.plain_http = ["far.test".to_owned(), "direct.test".to_owned()].into();
    let client = Client::new(options);
    let error = client.resolve(&reference("far.test", "a/b")).await.expect_err("the proxy has nothing");
    assert!(error.is_not_found(), "{error:?}");
    assert_eq!(proxy.lines(), ["HEAD http://far.test/v2/a/b/manifests/latest"]);
    let error = client.resolve(&reference("direct.test", "a/b")).await.expect_err("no such host");
    assert!(error.is_unreachable(), "{error:?}");
    let local = Fake::start().await;
    assert!(client.resolve(&reference(local.host(), "a/b")).await.expect_err("empty").is_not_found());
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test]
async fn layers_in_order_do_not_wait_for_each_other_after_a_break() {
    let fake = Fake::start().await;
    let layers: Vec<_> = (0..8_u8).map(|n| fake.add_blob("a/b", OCI_LAYER, &vec![n; 1 << 20])).collect();
    // The first transfer breaks when all other places are taken by transfers that wait for the first.
    fake.fault("GET", &layers[0].digest.to_string(), 3, |_, answer| Answer { cut_at: Some(1000), ..answer });
    let client = client();
    let image = reference(fake.host(), "a/b");
    let turn = Arc::new(tokio::sync::Semaphore::new(0));
    let mut transfers = tokio::task::JoinSet::new();
    for (at, layer) in layers.into_iter().enumerate() {
        let (client, image, turn) = (client.clone(), image.clone(), turn.clone());
        transfers.spawn(async move {
            let gate = if at == 0 { Arc::new(tokio::sync::Semaphore::new(1 << 20)) } else { turn.clone() };
            let outcome = client.fetch_blob(&image, &layer, &mut Gated(gate), |_| ()).await;
            turn.add_permits(1 << 20);
            outcome
        });
        tokio::task::yield_now().await;
    }
    let all = tokio::time::timeout(Duration::from_secs(10), transfers.join_all()).await.expect("nobody waits forever");
    assert!(all.into_iter().all(|outcome| outcome.is_ok()));
}
