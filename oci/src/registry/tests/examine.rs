//! What people are told who ask how a registry is reached.

use super::fake::{Door, Fake};
use super::{options, reference};
use crate::registry::{Client, ClientOptions, ConfigFiles};

#[tokio::test]
async fn what_supplied_what_is_told_without_secrets() {
    let fake = Fake::start().await;
    fake.state().door = Door::Basic("ann:hunter2".to_owned());
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    // YW5uOmh1bnRlcjI= is ann:hunter2
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"YW5uOmh1bnRlcjI="}}}}}}"#, fake.host());
    std::fs::write(path("config.json"), auths).expect("a file");
    let conf = format!(
        "[[registry]]\nprefix = \"r.example/team\"\nlocation = \"{0}/all\"\n[[registry.mirror]]\nlocation = \"m.example\"\n",
        fake.host()
    );
    std::fs::write(path("registries.conf"), conf).expect("a file");
    std::fs::create_dir_all(path("certs/m.example")).expect("a directory");
    std::fs::write(path("certs/m.example/ca.crt"), "").expect("a file");
    let files = ConfigFiles { registries_conf: vec![path("registries.conf")], ..ConfigFiles::default() };
    let client = Client::new(ClientOptions {
        files,
        docker_config_dir: Some(dir.path().to_owned()),
        certs_dirs: vec![path("certs")],
        ..options()
    });
    let explained = client.explain(&reference("r.example", "team/app:1")).await.expect("an explanation");
    assert_eq!(explained.source, format!("{}, [[registry]] \"r.example/team\"", path("registries.conf").display()));
    let shown: Vec<_> = explained
        .hosts
        .iter()
        .map(|host| (host.url.as_str(), host.repository.as_str(), host.pulls, host.pushes))
        .collect();
    let own = format!("http://{}/v2/", fake.host());
    let expected = [
        ("https://m.example/v2/", "app", true, false),
        (own.as_str(), "all/app", true, false),
        ("https://r.example/v2/", "team/app", false, true),
    ];
    assert_eq!(shown, expected);
    assert_eq!(explained.hosts[0].authorities, [path("certs/m.example/ca.crt")]);
    let credentials = explained.hosts[1].credentials.clone().expect("readable").expect("credentials");
    assert_eq!((credentials.username.as_deref(), credentials.kind), (Some("ann"), "password"));
    assert!(credentials.origin.ends_with("config.json"), "{}", credentials.origin);
    assert!(!format!("{explained:?}").contains("hunter2"));

    let ping = client.ping(&reference(fake.host(), "all/app:1")).await.expect("an answer");
    assert_eq!((ping.status, ping.authentication.as_deref()), (200, Some("Basic authentication")));
    assert_eq!(ping.url, own);
}

#[tokio::test]
async fn what_a_file_moves_is_pulled_from_there() {
    let fake = Fake::start().await;
    fake.add_image("all/app", "1", b"layer");
    let dir = tempfile::tempdir().expect("a directory");
    let conf = dir.path().join("registries.conf");
    let write = |text: String| std::fs::write(&conf, text).expect("a file");
    let files = ConfigFiles { registries_conf: vec![conf.clone()], ..ConfigFiles::default() };
    let options = ClientOptions { files, ..options() };
    write(format!("[[registry]]\nprefix = \"r.example/team\"\nlocation = \"{}/all\"\n", fake.host()));
    let target = reference("r.example", "team/app:1");
    Client::new(options.clone()).resolve(&target).await.expect("it is there");
    assert_eq!(fake.server.lines(), ["HEAD /v2/all/app/manifests/1"]);

    write("[[registry]]\nlocation = \"r.example\"\nblocked = true\n".to_owned());
    let error = Client::new(options).resolve(&target).await.expect_err("blocked").to_string();
    assert!(error.ends_with("it blocks r.example/team/app"), "{error}");
}

#[tokio::test]
async fn headers_of_a_file_go_to_their_host_alone() {
    let other = super::server::Server::start_on("127.0.0.2", |_| super::server::Answer::new(200).body("layer")).await;
    let fake = Fake::start().await;
    let blob = fake.add_blob("a/b", crate::media_type::OCI_LAYER, b"layer");
    let target = format!("http://{}/there", other.host);
    fake.fault("GET", "blobs", 1, move |_, _| super::server::Answer::new(307).header("Location", &target));
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("r.example")).expect("a directory");
    let text = format!("server = \"http://{}\"\n[header]\nx-team = [\"blue\", \"green\"]\n", fake.host());
    std::fs::write(dir.path().join("r.example/hosts.toml"), text).expect("a file");
    let files = ConfigFiles { hosts_dirs: vec![dir.path().to_owned()], ..ConfigFiles::default() };
    let client = Client::new(ClientOptions { files, ..options() });
    let bytes = client.fetch_small_blob(&reference("r.example", "a/b"), &blob, 100).await.expect("the layer");
    assert_eq!(&bytes[..], b"layer");
    assert!(fake.server.seen().iter().all(|seen| seen.headers.contains_key("x-team")));
    assert!(other.seen().iter().all(|seen| !seen.headers.contains_key("x-team")));
    assert_eq!(fake.server.seen()[0].query("ns"), ["r.example"]);
}
