//! Credentials and tokens.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::fake::{Door, Fake};
use super::server::{Answer, Seen, Server};
use super::{client, observed, options, reference};
use crate::media_type::OCI_LAYER;
use crate::registry::{Client, ClientOptions, RegistryError};

/// A registry whose tokens come from the server beside it.
struct Guarded {
    fake: Arc<Fake>,
    tokens: Server,
}

impl Guarded {
    /// `answer` may replace what the token server says.
    async fn start(answer: impl Fn(&Seen, Answer) -> Answer + Send + Sync + 'static) -> Self {
        let fake = Arc::new(Fake::start().await);
        let registry = fake.clone();
        let tokens = Server::start(move |seen| {
            let scopes = [seen.query("scope"), seen.form("scope")].concat();
            let token = registry.state().issue(&scopes);
            answer(seen, Answer::new(200).body(format!(r#"{{"token":"{token}","expires_in":300}}"#)))
        })
        .await;
        fake.state().door = Door::Bearer { realm: format!("http://{}/token", tokens.host) };
        Self { fake, tokens }
    }

    fn host(&self) -> &str {
        self.fake.host()
    }
}

fn with_config(dir: &Path, config: &str) -> Client {
    std::fs::write(dir.join("config.json"), config).expect("a file");
    Client::new(ClientOptions { docker_config_dir: Some(dir.to_owned()), ..options() })
}

/// `auths` with one entry for a host.
fn auths(host: &str, entry: &str) -> String {
    format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once_and_shared() {
    let guarded = Guarded::start(|_, answer| answer).await;
    let (manifest, parsed) = guarded.fake.add_image("a/b", "1", b"layer");
    let (client, notices) = observed(&client());
    let image = reference(guarded.host(), "a/b:1");
    client.resolve(&image).await.expect("resolves");
    client.fetch_manifest(&image, &manifest).await.expect("a manifest");
    let mut fetches = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, image, layer) = (client.clone(), image.clone(), parsed.layers[0].clone());
        fetches.spawn(async move { client.fetch_small_blob(&image, &layer, 100).await });
    }
    assert!(fetches.join_all().await.into_iter().all(|outcome| outcome.is_ok()));
    let tokens = guarded.tokens.seen();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].query("scope"), ["repository:a/b:pull"]);
    assert_eq!(tokens[0].query("service"), ["fake"]);
    assert_eq!(tokens[0].header("authorization"), None);
    let refused = guarded.fake.server.seen().iter().filter(|seen| seen.header("authorization").is_none()).count();
    assert_eq!(refused, 1, "only the first request is sent without a token");
    assert_eq!(*notices.lock().expect("no panic"), [format!("token {} repository:a/b:pull", guarded.host())]);
}

#[tokio::test]
async fn parallel_first_requests_ask_for_one_token() {
    let guarded = Guarded::start(|_, answer| answer).await;
    guarded.fake.add_image("a/b", "1", b"layer");
    let client = client();
    let mut resolves = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (client, image) = (client.clone(), reference(guarded.host(), "a/b:1"));
        resolves.spawn(async move { client.resolve(&image).await });
    }
    assert!(resolves.join_all().await.into_iter().all(|outcome| outcome.is_ok()));
    assert_eq!(guarded.tokens.seen().len(), 1);
}

#[tokio::test]
async fn a_token_that_dies_in_the_middle_is_replaced() {
    let guarded = Guarded::start(|_, answer| answer).await;
    let layer = vec![5; 300_000];
    let blob = guarded.fake.add_blob("a/b", OCI_LAYER, &layer);
    let client = client();
    let image = reference(guarded.host(), "a/b");
    client.fetch_small_blob(&image, &blob, 1 << 20).await.expect("a blob");
    let fake = guarded.fake.clone();
    guarded.fake.fault("GET", "/blobs/", 1, move |_, answer| Answer { cut_at: Some(1000), ..answer });
    // The token is revoked while the blob is on its way.
    let revoked = Mutex::new(false);
    let mut bytes = Vec::new();
    let mut sink = |chunk: Bytes| {
        if !std::mem::replace(&mut *revoked.lock().expect("no panic"), true) {
            fake.state().tokens.clear();
        }
        bytes.extend_from_slice(&chunk);
        Ok(())
    };
    client.fetch_blob(&image, &blob, &mut sink, |_| ()).await.expect("a blob");
    assert!(bytes == layer);
    assert_eq!(guarded.tokens.seen().len(), 2);
}

#[tokio::test]
async fn tokens_are_refreshed_before_they_end() {
    let guarded = Guarded::start(|_, answer| {
        let text = String::from_utf8(answer.body.clone()).expect("text").replace("300", "1");
        answer.body(text)
    })
    .await;
    guarded.fake.add_image("a/b", "1", b"layer");
    let (client, image) = (client(), reference(guarded.host(), "a/b:1"));
    client.resolve(&image).await.expect("resolves");
    tokio::time::sleep(std::time::Duration::from_millis(950)).await;
    client.resolve(&image).await.expect("resolves");
    assert_eq!(guarded.tokens.seen().len(), 2);
    assert_eq!(guarded.fake.server.seen().len(), 3, "no request was sent with the old token");
}

#[tokio::test]
async fn a_refused_token_is_an_error_after_one_more_try() {
    let guarded = Guarded::start(|_, answer| answer.body(r#"{"access_token":"never-valid"}"#)).await;
    guarded.fake.add_image("a/b", "1", b"layer");
    let client = client();
    let image = reference(guarded.host(), "a/b:1");
    let error = client.resolve(&image).await.expect_err("refused");
    assert!(error.is_unauthorized(), "{error}");
    assert!(error.to_string().contains("pull access denied, repository does not exist"), "{error}");
    assert_eq!((guarded.fake.server.seen().len(), guarded.tokens.seen().len()), (2, 1));
}

#[tokio::test]
async fn passwords_go_to_the_token_server_by_get_and_else_by_post() {
    let dir = tempfile::tempdir().expect("a directory");
    for get_works in [true, false] {
        let guarded = Guarded::start(move |seen, answer| match seen.method.as_str() {
            "GET" if !get_works => Answer::new(405),
            _ => answer,
        })
        .await;
        guarded.fake.add_image("a/b", "1", b"layer");
        let client = with_config(dir.path(), &auths(guarded.host(), r#"{"auth":"dTpw"}"#));
        client.resolve(&reference(guarded.host(), "a/b:1")).await.expect("resolves");
        let seen = guarded.tokens.seen();
        assert_eq!(seen[0].header("authorization"), Some("Basic dTpw"));
        if get_works {
            assert_eq!(seen.len(), 1);
            continue;
        }
        let post = &seen[1];
        assert_eq!(post.method, "POST");
        let fields = ["grant_type", "username", "password", "service", "scope", "client_id"];
        let values: Vec<String> = fields.iter().flat_map(|field| post.form(field)).collect();
        assert_eq!(values, ["password", "u", "p", "fake", "repository:a/b:pull", "rbuild"]);
    }
}

#[tokio::test]
async fn identity_and_registry_tokens() {
    let dir = tempfile::tempdir().expect("a directory");
    let guarded = Guarded::start(|_, answer| answer).await;
    guarded.fake.add_image("a/b", "1", b"layer");
    let image = reference(guarded.host(), "a/b:1");
    let client = with_config(dir.path(), &auths(guarded.host(), r#"{"identitytoken":"secret"}"#));
    client.resolve(&image).await.expect("resolves");
    let post = &guarded.tokens.seen()[0];
    assert_eq!(
        (post.method.as_str(), post.form("grant_type"), post.form("refresh_token")),
        ("POST", vec!["refresh_token".to_owned()], vec!["secret".to_owned()])
    );

    let ready_made = guarded.fake.state().issue(&["repository:a/b:pull".to_owned()]);
    let client = with_config(dir.path(), &auths(guarded.host(), &format!(r#"{{"registrytoken":"{ready_made}"}}"#)));
    client.resolve(&image).await.expect("resolves");
    assert_eq!(guarded.tokens.seen().len(), 1, "it is sent as it is");
}

#[tokio::test]
async fn wrong_passwords_are_told_with_the_servers_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let guarded = Guarded::start(|_, _| Answer::new(401).body(r#"{"details":"incorrect username or password"}"#)).await;
    let client = with_config(dir.path(), &auths(guarded.host(), r#"{"auth":"dTpw"}"#));
    let error = client.resolve(&reference(guarded.host(), "a/b:1")).await.expect_err("refused");
    assert!(matches!(&error, RegistryError::Unauthorized { had_credentials: true, .. }), "{error:?}");
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
    assert_eq!(guarded.tokens.lines(), ["GET /token", "POST /token"]);
}

#[tokio::test]
async fn token_servers_get_a_second_chance() {
    let failed = Mutex::new(0);
    let guarded = Guarded::start(move |_, answer| {
        let mut failed = failed.lock().expect("no panic");
        *failed += 1;
        match *failed {
            1 => Answer::new(503),
            2 => Answer { close: true, ..answer },
            _ => answer,
        }
    })
    .await;
    guarded.fake.add_image("a/b", "1", b"layer");
    client().resolve(&reference(guarded.host(), "a/b:1")).await.expect("resolves");
    assert_eq!(guarded.tokens.seen().len(), 3);

    let broken = Guarded::start(|_, _| Answer::new(200).body("no json")).await;
    let error = client().resolve(&reference(broken.host(), "a/b:1")).await.expect_err("no token");
    assert!(matches!(&error, RegistryError::Token { .. }) && !error.is_unauthorized(), "{error}");
}

#[tokio::test]
async fn basic_authentication() {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::start().await;
    fake.state().door = Door::Basic("u:p".to_owned());
    let (_, parsed) = fake.add_image("a/b", "1", b"layer");
    let image = reference(fake.host(), "a/b:1");
    let good = with_config(dir.path(), &auths(fake.host(), r#"{"auth":"dTpw"}"#));
    good.resolve(&image).await.expect("resolves");
    good.fetch_small_blob(&image, &parsed.layers[0], 10).await.expect("a layer");
    assert_eq!(fake.server.seen().len(), 3, "once it is known what the host wants, it is sent at once");

    let dir = tempfile::tempdir().expect("a directory");
    let bad = with_config(dir.path(), &auths(fake.host(), r#"{"username":"u","password":"x"}"#));
    let error = bad.resolve(&image).await.expect_err("refused");
    assert!(matches!(error, RegistryError::Unauthorized { had_credentials: true, status: 401, .. }), "{error:?}");
    let error = client().resolve(&image).await.expect_err("refused");
    assert!(matches!(error, RegistryError::Unauthorized { had_credentials: false, .. }), "{error:?}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_do_not_stop_a_public_pull() {
    let dir = tempfile::tempdir().expect("a directory");
    let guarded = Guarded::start(|_, answer| answer).await;
    guarded.fake.add_image("a/b", "1", b"layer");
    let config = r#"{"credsStore":"rbuild-test-absent"}"#;
    let (client, notices) = observed(&with_config(dir.path(), config));
    client.resolve(&reference(guarded.host(), "a/b:1")).await.expect("resolves");
    assert!(notices.lock().expect("no panic")[0].contains("docker-credential-rbuild-test-absent"));

    let fake = Fake::start().await;
    fake.state().door = Door::Basic("u:p".to_owned());
    let error = client.resolve(&reference(fake.host(), "a/b:1")).await.expect_err("refused");
    assert!(error.to_string().contains("docker-credential-rbuild-test-absent"), "the reason is told again: {error}");
}

#[tokio::test]
async fn auth_files_come_before_the_docker_config() {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::start().await;
    fake.state().door = Door::Basic("u:p".to_owned());
    fake.add_image("a/b", "1", b"layer");
    let auth_file = dir.path().join("auth.json");
    std::fs::write(&auth_file, auths(&format!("{}/a", fake.host()), r#"{"auth":"dTpw"}"#)).expect("a file");
    std::fs::write(dir.path().join("config.json"), auths(fake.host(), r#"{"auth":"dTp4"}"#)).expect("a file");
    let mut options = options();
    options.docker_config_dir = Some(dir.path().to_owned());
    options.auth_files = vec![auth_file];
    Client::new(options).resolve(&reference(fake.host(), "a/b:1")).await.expect("resolves");
}
