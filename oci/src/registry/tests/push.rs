//! Writing.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::fake::{Door, Fake};
use super::server::{Answer, Server};
use super::{client, options, reference};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::registry::{BlobReader, Client, Pushed, RegistryError};

fn layer() -> (Bytes, Descriptor) {
    let bytes: Bytes = (0..700_000_u32).map(|n| (n >> 3) as u8).collect::<Vec<_>>().into();
    let blob = Descriptor::new(OCI_LAYER, Digest::of(&bytes), bytes.len() as u64);
    (bytes, blob)
}

async fn push(
    client: &Client,
    host: &str,
    bytes: &Bytes,
    blob: &Descriptor,
    mounts: &[&str],
) -> Result<Pushed, RegistryError> {
    let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
    let mounts: Vec<String> = mounts.iter().map(|name| (*name).to_owned()).collect();
    client.push_blob(&reference(host, "team/app"), blob, &open, &mounts, |_| ()).await
}

fn has_blob(fake: &Fake, blob: &Descriptor) -> bool {
    fake.state().blobs.contains_key(&("team/app".to_owned(), blob.digest.to_string()))
}

#[tokio::test]
async fn an_image_is_pushed_and_pulled_again() {
    let fake = Fake::start().await;
    let client = client();
    let target = reference(fake.host(), "team/app:1");
    let (bytes, blob) = layer();
    assert!(!client.blob_exists(&target, &blob.digest).await.expect("an answer"));
    let mut steps = Vec::new();
    let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
    let pushed = client.push_blob(&target, &blob, &open, &[], |sent| steps.push(sent)).await.expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
    assert!(steps.is_sorted() && steps.last() == Some(&blob.size_bytes));
    assert!(client.blob_exists(&target, &blob.digest).await.expect("an answer"));
    assert_eq!(push(&client, fake.host(), &bytes, &blob, &[]).await.expect("there"), Pushed::Existed);
    client.push_small_blob(&target, OCI_CONFIG, Bytes::from_static(b"{}")).await.expect("pushed");
    client.push_small_blob(&target, OCI_CONFIG, Bytes::new()).await.expect("empty blobs are blobs");

    let manifest = Bytes::from_static(br#"{"schemaVersion":2,"config":{},"layers":[]}"#);
    let written = client.push_manifest(&target, OCI_MANIFEST, manifest.clone()).await.expect("pushed");
    let resolved = client.resolve(&target).await.expect("resolves");
    assert_eq!(resolved.descriptor, written);
    assert_eq!(client.fetch_manifest(&target, &written).await.expect("a manifest"), manifest);

    let puts = fake.server.count("PUT");
    client.push_manifest(&target, OCI_MANIFEST, manifest.clone()).await.expect("nothing to do");
    assert_eq!(fake.server.count("PUT"), puts, "an unchanged tag is not sent again");
    client.push_manifest(&target.name_only(), OCI_MANIFEST, Bytes::from_static(b"{ }")).await.expect("pushed");
    let by_digest = format!("PUT /v2/team/app/manifests/{}", Digest::of(b"{ }"));
    assert_eq!(fake.server.count(&by_digest), 1, "without a tag the digest is the name");
    let other = target.with_digest(Digest::of(b"other"));
    let error = client.push_manifest(&other, OCI_MANIFEST, manifest).await.expect_err("another digest");
    assert!(matches!(error, RegistryError::DigestMismatch { .. }));
}

#[tokio::test]
async fn blobs_are_mounted_from_the_most_similar_repository() {
    let fake = Fake::start().await;
    let (bytes, blob) = layer();
    fake.add_blob("team/base", OCI_LAYER, &bytes);
    let pushed = push(&client(), fake.host(), &bytes, &blob, &["x/y", "team/base"]).await.expect("mounted");
    assert_eq!(pushed, Pushed::Mounted { from: "team/base".to_owned() });
    assert_eq!(fake.server.count("PUT"), 0);
    assert!(has_blob(&fake, &blob));
}

#[tokio::test]
async fn a_mount_that_is_only_accepted_becomes_an_upload() {
    let fake = Fake::start().await;
    fake.state().mounts = false;
    let (bytes, blob) = layer();
    assert_eq!(push(&client(), fake.host(), &bytes, &blob, &["team/base"]).await.expect("pushed"), Pushed::Uploaded);
    assert_eq!(fake.server.count("POST"), 1, "the session of the mount is used");
    assert!(has_blob(&fake, &blob));
}

#[tokio::test]
async fn a_mount_that_is_forbidden_becomes_an_upload() {
    let fake = Arc::new(Fake::start().await);
    let registry = fake.clone();
    // The token server gives no rights on other repositories.
    let tokens = Server::start(move |seen| {
        let own: Vec<String> = seen.query("scope").into_iter().filter(|scope| scope.contains("team/app")).collect();
        let token = registry.state().issue(&own);
        Answer::new(200).body(format!(r#"{{"token":"{token}"}}"#))
    })
    .await;
    fake.state().door = Door::Bearer { realm: format!("http://{}/", tokens.host) };
    let (bytes, blob) = layer();
    assert_eq!(push(&client(), fake.host(), &bytes, &blob, &["secret/base"]).await.expect("pushed"), Pushed::Uploaded);
    let asked = tokens
        .seen()
        .iter()
        .any(|seen| seen.query("scope") == ["repository:secret/base:pull", "repository:team/app:pull,push"]);
    assert!(asked, "one token for both repositories was asked for");
}

#[tokio::test]
async fn failed_uploads_start_anew() {
    let cases: [fn(Answer) -> Answer; 5] = [
        |_| Answer::new(503),
        |_| Answer::new(404),
        |answer| Answer { close: true, ..answer },
        |_| Answer::new(429).header("Retry-After", "0"),
        |_| Answer::new(401).header("WWW-Authenticate", "Bearer realm=\"http://127.0.0.1:1/\""),
    ];
    for (at, change) in cases.into_iter().enumerate() {
        let fake = Fake::start().await;
        let (bytes, blob) = layer();
        // The registry has lost it again, whatever it did with it.
        fake.fault("PUT", "", 1, move |_, answer| change(answer));
        fake.fault("HEAD", "", 1, |_, answer| answer);
        fake.fault("HEAD", "", 1, |_, _| Answer::new(404));
        let outcome = push(&client(), fake.host(), &bytes, &blob, &[]).await;
        if at == 4 {
            assert!(outcome.expect_err("no token server").is_unreachable());
            continue;
        }
        assert_eq!(outcome.expect("pushed"), Pushed::Uploaded, "case {at}");
        assert_eq!((fake.server.count("POST"), fake.server.count("PUT")), (2, 2), "case {at}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_no_second_upload() {
    let fake = Fake::start().await;
    let (bytes, blob) = layer();
    fake.fault("PUT", "", 1, |_, answer| Answer { close: true, ..answer });
    assert_eq!(push(&client(), fake.host(), &bytes, &blob, &[]).await.expect("there"), Pushed::Existed);
    assert_eq!(fake.server.count("PUT"), 1);
}

#[tokio::test]
async fn a_token_that_dies_during_an_upload_is_replaced() {
    let fake = Arc::new(Fake::start().await);
    let registry = fake.clone();
    let tokens = Server::start(move |seen| {
        let token = registry.state().issue(&seen.query("scope"));
        Answer::new(200).body(format!(r#"{{"token":"{token}"}}"#))
    })
    .await;
    fake.state().door = Door::Bearer { realm: format!("http://{}/", tokens.host) };
    let realm = tokens.host.clone();
    fake.fault("PUT", "", 1, move |_, _| {
        Answer::new(401).header("WWW-Authenticate", &format!("Bearer realm=\"http://{realm}/\",service=\"fake\""))
    });
    fake.fault("HEAD", "", 1, |_, answer| answer);
    fake.fault("HEAD", "", 1, |_, answer| answer);
    fake.fault("HEAD", "", 1, |_, _| Answer::new(404));
    let (bytes, blob) = layer();
    assert_eq!(push(&client(), fake.host(), &bytes, &blob, &[]).await.expect("pushed"), Pushed::Uploaded);
    assert_eq!(tokens.seen().len(), 2, "the refused token was not used again");
}

#[tokio::test]
async fn a_blob_that_is_not_seen_yet_is_waited_for_a_while() {
    let unknown = || {
        let text = r#"{"errors":[{"code":"DIGEST_INVALID","message":"other"},{"code":"MANIFEST_BLOB_UNKNOWN","message":"unknown"}]}"#;
        Answer::new(400).body(text)
    };
    let manifest = Bytes::from_static(br#"{"schemaVersion":2,"config":{},"layers":[]}"#);
    let fake = Fake::start().await;
    let target = reference(fake.host(), "team/app:1");
    fake.fault("PUT", "/manifests/", 2, move |_, _| unknown());
    client().push_manifest(&target, OCI_MANIFEST, manifest.clone()).await.expect("taken in the end");
    assert_eq!(fake.server.count("PUT"), 3);

    let target = reference(fake.host(), "team/app:2");
    fake.fault("PUT", "/manifests/", 99, move |_, _| unknown());
    let error = client().push_manifest(&target, OCI_MANIFEST, manifest).await.expect_err("never seen");
    assert!(
        error.to_string().contains("answered 400: digest_invalid: other, manifest_blob_unknown: unknown"),
        "{error}"
    );
    assert_eq!(fake.server.count("PUT"), 3 + 5);
}

#[tokio::test]
async fn refusals_are_told_with_the_servers_words() {
    let fake = Fake::start().await;
    let (bytes, blob) = layer();
    fake.fault("PUT", "", 9, |_, _| Answer::new(413).body("too large for this plan"));
    let error = push(&client(), fake.host(), &bytes, &blob, &[]).await.expect_err("refused");
    assert!(
        matches!(&error, RegistryError::Status { status: 413, message: Some(message), .. } if message == "too large for this plan"),
        "{error:?}"
    );
    fake.state().blobs.clear();
    fake.fault("POST", "", 9, |_, _| Answer::new(403).body(r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#));
    let error = push(&client(), fake.host(), &bytes, &blob, &[]).await.expect_err("refused");
    assert!(error.is_unauthorized() && error.to_string().contains("push access denied"), "{error}");
    assert!(error.to_string().contains("denied: read only"), "{error}");
}

#[tokio::test]
async fn a_closed_door_is_told_as_a_push() {
    let fake = Fake::start().await;
    fake.state().door = Door::Basic("u:p".to_owned());
    let (bytes, blob) = layer();
    let error = push(&client(), fake.host(), &bytes, &blob, &[]).await.expect_err("closed");
    let expected = format!("push access denied, no credentials for {}", fake.host());
    assert!(error.is_unauthorized() && error.to_string().contains(&expected), "{error}");
}

#[tokio::test]
async fn uploads_may_go_to_another_host_without_credentials() {
    let storage = Server::start_on("127.0.0.2", |_| Answer::new(201)).await;
    let fake = Fake::start().await;
    fake.state().door = Door::Basic("u:p".to_owned());
    let target = format!("http://{}/put?sig=s", storage.host);
    fake.fault("POST", "", 9, move |_, answer| match answer.status {
        401 => answer,
        _ => Answer::new(202).header("Location", &target),
    });
    let dir = tempfile::tempdir().expect("a directory");
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.host());
    std::fs::write(dir.path().join("config.json"), config).expect("a file");
    let client =
        Client::new(crate::registry::ClientOptions { docker_config_dir: Some(dir.path().to_owned()), ..options() });
    let (bytes, blob) = layer();
    assert_eq!(push(&client, fake.host(), &bytes, &blob, &[]).await.expect("pushed"), Pushed::Uploaded);
    let seen = &storage.seen()[0];
    assert_eq!(seen.header("authorization"), None);
    assert_eq!((seen.query("sig"), seen.query("digest")), (vec!["s".to_owned()], vec![blob.digest.to_string()]));
    assert!(seen.body == bytes);
    assert_eq!(seen.header("content-length"), Some("700000"), "one request with a known length, no chunks");
}

#[tokio::test]
async fn readers_that_lie_are_local_errors() {
    let fake = Fake::start().await;
    let (bytes, blob) = layer();
    for lie in [bytes.slice(1..), Bytes::from([&bytes[..], b"x"].concat())] {
        let error = push(&client(), fake.host(), &lie, &blob, &[]).await.expect_err("another length");
        assert!(matches!(&error, RegistryError::Local { .. }), "{error:?}");
    }
    let open = || -> io::Result<BlobReader> { Err(io::Error::other("gone")) };
    let target = reference(fake.host(), "team/app");
    let error = client().push_blob(&target, &blob, &open, &[], |_| ()).await.expect_err("no bytes");
    assert!(error.to_string().ends_with("cannot read local data: gone"), "{error}");
}

#[tokio::test]
async fn uploads_that_stand_still_are_given_up() {
    // Accepts the session, then never reads the body.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("an address");
    let fake = Fake::start().await;
    let target = format!("http://{silent}/put");
    fake.fault("POST", "", 9, move |_, _| Answer::new(202).header("Location", &target));
    let bytes = Bytes::from(vec![1; 64 << 20]);
    let blob = Descriptor::new(OCI_LAYER, Digest::of(&bytes), bytes.len() as u64);
    let mut options = options();
    options.retry.attempts = 2;
    let error = push(&Client::new(options), fake.host(), &bytes, &blob, &[]).await.expect_err("nobody reads");
    assert!(
        matches!(&error, RegistryError::Interrupted { reason, .. } if reason == "the upload stands still"),
        "{error:?}"
    );
    assert_eq!(fake.server.count("POST"), 2);
}

#[tokio::test]
async fn pushes_fed_by_pulls_from_the_same_host_do_not_block_each_other() {
    let fake = Fake::start().await;
    fake.state().mounts = false;
    let client = client();
    let mut copies = tokio::task::JoinSet::new();
    for n in 0..8_u8 {
        let blob = fake.add_blob("from/here", OCI_LAYER, &vec![n; 1 << 20]);
        let (client, host) = (client.clone(), fake.host().to_owned());
        copies.spawn(async move {
            let feeds = std::sync::Mutex::new(tokio::task::JoinSet::new());
            let open = || -> io::Result<BlobReader> {
                let (client, source, blob) = (client.clone(), reference(&host, "from/here"), blob.clone());
                let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
                let mut sink = crate::registry::ChannelSink(sender);
                feeds
                    .lock()
                    .expect("no panic")
                    .spawn(async move { client.fetch_blob(&source, &blob, &mut sink, |_| ()).await });
                let chunks = futures_util::stream::unfold(receiver, |mut receiver| async {
                    receiver.recv().await.map(|chunk| (io::Result::Ok(chunk), receiver))
                });
                Ok(Box::new(Box::pin(tokio_util::io::StreamReader::new(chunks))))
            };
            client.push_blob(&reference(&host, "team/app"), &blob, &open, &[], |_| ()).await
        });
    }
    let all = tokio::time::timeout(std::time::Duration::from_secs(20), copies.join_all()).await.expect("an end");
    assert!(all.into_iter().all(|outcome| matches!(outcome, Ok(Pushed::Uploaded))));
}
