use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use crate::source::testing::{Reply, Server, silent, step, store};

use super::*;

fn source(store: &Store, secrets: &'static [(&str, &str)]) -> HttpSource {
    oci::registry::install_crypto_provider();
    let secrets: SecretLookup =
        Arc::new(|id| secrets.iter().find(|(name, _)| *name == id).map(|(_, value)| value.as_bytes().to_vec()));
    HttpSource::new(|| Client::builder().no_proxy().build(), store.clone(), secrets)
}

fn op(url: String) -> HttpOp {
    HttpOp { url, filename: "f".to_owned(), checksum: None }
}

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

#[tokio::test]
async fn the_layer_has_one_file_with_the_time_of_the_server() {
    let (server, (_dir, store)) = (Server::start().await, store());
    for (headers, mtime) in [(vec![("last-modified", DATE)], 784_111_777), (vec![], 0)] {
        let reply = headers.iter().fold(Reply::ok("hello"), |reply, (name, value)| reply.header(name, *value));
        server.route("/f", [reply]);
        let source = source(&store, &[]);
        let op = op(server.url("/f"));
        source.probe(&op, &silent()).await.unwrap();
        let layer = source.fetch(&op, &silent(), &CancellationToken::new()).await.unwrap();
        let tree = layer.tree.unwrap();
        let names: Vec<_> = std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
        let metadata = tree.join("f").metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (0o600, mtime, 0));
        assert_eq!(std::fs::read(tree.join("f")).unwrap(), b"hello");
    }
}

#[tokio::test]
async fn a_strong_etag_saves_the_transfer() {
    let (server, (_dir, store)) = (Server::start().await, store());
    let mut probes = Vec::new();
    for (etag, body) in [("\"1\"", "one"), ("\"1\"", "one"), ("\"2\"", "two")] {
        server.route("/f", [Reply::ok(body).header("etag", etag)]);
        probes.push(source(&store, &[]).probe(&op(server.url("/f")), &silent()).await.unwrap());
    }
    assert_eq!(server.seen(), ["HEAD /f"; 3]);
    assert!(probes[0] == probes[1] && probes[1] != probes[2], "{probes:?}");
}

#[tokio::test]
async fn without_a_strong_etag_the_file_is_fetched_once_for_key_and_layer() {
    let (server, (_dir, store)) = (Server::start().await, store());
    let mut probes = Vec::new();
    for body in ["one", "one", "two"] {
        server.route("/f", [Reply::ok(body).header("etag", "W/\"1\"")]);
        let source = source(&store, &[]);
        let op = op(server.url("/f"));
        probes.push(source.probe(&op, &silent()).await.unwrap());
        source.fetch(&op, &silent(), &CancellationToken::new()).await.unwrap();
        assert_eq!(server.seen(), ["HEAD /f", "GET /f"]);
    }
    assert!(probes[0] == probes[1] && probes[1] != probes[2], "{probes:?}");
}

#[tokio::test]
async fn a_url_means_one_file_during_a_build() {
    let (server, (_dir, store)) = (Server::start().await, store());
    for tag in ["", "\"1\""] {
        let source = source(&store, &[]);
        let op = op(server.url("/f"));
        server.route("/f", [Reply::ok("one").header("etag", tag)]);
        let probe = source.probe(&op, &silent()).await.unwrap();
        server.seen();
        server.route("/f", [Reply::ok("two").header("etag", "\"2\"")]);
        assert_eq!(source.probe(&op, &silent()).await.unwrap(), probe);
        assert_eq!(server.seen(), [""; 0]);
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_taken_for_unchanged() {
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/etag", [Reply::ok("one").header("etag", "\"1\"")]);
    server.route("/digest", [Reply::ok("two")]);
    let ops = ["/etag", "/digest"].map(|path| op(server.url(path)));
    let mut probes = Vec::new();
    for op in &ops {
        probes.push(source(&store, &[]).probe(op, &silent()).await.unwrap());
    }
    // One that has gone is away no longer: that is an answer.
    server.route("/etag", [Reply::status(404)]);
    assert!(source(&store, &[]).probe(&ops[0], &silent()).await.is_err());
    drop(server);
    for (op, probe) in ops.iter().zip(&probes) {
        let (step, events) = step();
        assert_eq!(&source(&store, &[]).probe(op, &step).await.unwrap(), probe);
        let warned = events.try_iter().any(|event| format!("{event:?}").contains(" as seen last: cannot reach http"));
        assert!(warned, "{}", op.url);
    }
}

#[tokio::test]
async fn errors_have_the_words_people_know() {
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/f", [Reply::ok("hello")]);
    let source = source(&store, &[]);
    let missing = source.probe(&op(server.url("/missing")), &silent()).await.unwrap_err();
    assert_eq!(missing.message, "failed to load cache key: invalid response status 404");
    let (wanted, got) = (Digest::of(b"other"), Digest::of(b"hello"));
    let op = HttpOp { checksum: Some(wanted.clone()), ..op(server.url("/f")) };
    let mismatch = source.fetch(&op, &silent(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(mismatch.message, format!("digest mismatch {got}: {wanted}"));
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/f", [Reply::status(503), Reply::ok("hello")]);
    let op = HttpOp { checksum: Some(Digest::of(b"hello")), ..op(server.url("/f")) };
    source(&store, &[]).fetch(&op, &silent(), &CancellationToken::new()).await.unwrap();
    assert_eq!(server.seen(), ["GET /f", "GET /f"]);
}

#[tokio::test]
async fn a_body_compressed_for_the_transfer_is_decoded() {
    // `hello` in a gzip member.
    const GZIP: [u8; 25] =
        [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 7, 0, 0x86, 0xa6, 0x10, 0x36, 5, 0, 0, 0];
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/f", [Reply::ok(GZIP).header("content-encoding", "gzip")]);
    let op = HttpOp { checksum: Some(Digest::of(b"hello")), ..op(server.url("/f")) };
    let layer = source(&store, &[]).fetch(&op, &silent(), &CancellationToken::new()).await.unwrap();
    let tree = layer.tree.unwrap();
    assert_eq!(std::fs::read(tree.join("f")).unwrap(), b"hello");
    assert_eq!(tree.join("f").metadata().unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn secrets_go_to_their_host_only() {
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/f", [Reply::ok("x").header("etag", "\"1\"")]);
    let secrets = &[("HTTP_AUTH_TOKEN_127.0.0.1", "abc\n"), ("HTTP_AUTH_HEADER_example.com", "other")];
    source(&store, secrets).probe(&op(server.url("/f")), &silent()).await.unwrap();
    source(&store, &[("HTTP_AUTH_HEADER_example.com", "other")]).probe(&op(server.url("/f")), &silent()).await.unwrap();
    assert_eq!(server.seen(), ["HEAD /f Bearer abc", "HEAD /f"]);
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let (server, (_dir, store)) = (Server::start().await, store());
    server.route("/f", [Reply::ok("x")]);
    for filename in ["", "..", "a/b", "."] {
        let op = HttpOp { filename: filename.to_owned(), ..op(server.url("/f")) };
        assert!(source(&store, &[]).fetch(&op, &silent(), &CancellationToken::new()).await.is_err(), "{filename}");
    }
}
