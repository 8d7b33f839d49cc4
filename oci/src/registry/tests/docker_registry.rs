//! The client against a real registry: Debian's `docker-registry`, where it is installed.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;

use super::{options, reference};
use crate::digest::Digest;
use crate::image::{Descriptor, Manifest, to_manifest_json};
use crate::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::registry::{BlobReader, Client, ClientOptions, Pushed, RegistryError};

/// A running `docker-registry`; ends with the value.
struct Real {
    host: String,
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// `None`, with the reason on stderr, if the program is not installed. `extra` is YAML at top level and below
    /// `http`; `DIR` in it is the directory of the registry.
    fn start(prepare: impl FnOnce(&Path) -> io::Result<()>, extra: &str, extra_http: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        if let Err(error) = prepare(dir.path()) {
            skip(&format!("cannot prepare: {error}"));
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let host = format!("localhost:{port}");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: DIR/data\n{extra}http:\n  addr: 127.0.0.1:{port}\n{extra_http}"
        );
        let config = dir.path().join("config.yml");
        std::fs::write(&config, text.replace("DIR", &dir.path().display().to_string())).expect("a file");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            skip("`docker-registry` is not installed");
            return None;
        };
        let real = Self { host, child, dir };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(real);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("docker-registry does not listen");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[expect(clippy::print_stderr, reason = "a test that skips says why")]
fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Pushes an image with one layer of 3 MB and pulls it again.
async fn round_trip(client: &Client, host: &str) -> Result<(), RegistryError> {
    let bytes: Bytes =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect::<Vec<_>>().into();
    let layer = Descriptor::new(OCI_LAYER, Digest::of(&bytes), bytes.len() as u64);
    let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
    let target = reference(host, "team/app:1");
    assert_eq!(client.push_blob(&target, &layer, &open, &[], |_| ()).await?, Pushed::Uploaded);
    let other = reference(host, "team/other:1");
    let mounted = client.push_blob(&other, &layer, &open, &["team/app".to_owned()], |_| ()).await?;
    assert_eq!(mounted, Pushed::Mounted { from: "team/app".to_owned() });
    let absent = client.push_blob(&other.name_only(), &layer, &open, &["team/none".to_owned()], |_| ()).await?;
    assert_eq!(absent, Pushed::Existed);
    let config = client.push_small_blob(&target, OCI_CONFIG, Bytes::from_static(b"{}")).await?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config,
        layers: vec![layer.clone()],
        subject: None,
        annotations: Default::default(),
    };
    let manifest = client.push_manifest(&target, OCI_MANIFEST, to_manifest_json(&manifest).into()).await?;

    let resolved = client.resolve(&target).await?;
    assert_eq!(resolved.descriptor, manifest);
    client.fetch_manifest(&target, &manifest).await?;
    assert_eq!(client.fetch_small_blob(&target, &layer, 4_000_000).await?, bytes);
    let missing = client.resolve(&reference(host, "team/app:2")).await.expect_err("no such tag");
    assert!(missing.is_not_found(), "{missing}");
    Ok(())
}

#[tokio::test]
async fn plain_http() {
    let Some(real) = Real::start(|_| Ok(()), "", "") else { return };
    round_trip(&Client::new(options()), &real.host).await.expect("a round trip");
}

/// While one writes a blob that the registry has, the others do not see it there for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_push_the_same_at_once_do_not_disturb_each_other() {
    let Some(real) = Real::start(|_| Ok(()), "", "") else { return };
    let push = async |client: Client, writer: usize| {
        for round in 0..40 {
            let target = reference(&real.host, &format!("team/app:{writer}-{round}"));
            let config = client.push_small_blob(&target, OCI_CONFIG, Bytes::from(format!("{{\"n\":{round}}}"))).await?;
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(OCI_MANIFEST.to_owned()),
                artifact_type: None,
                layers: vec![config.clone()],
                config,
                subject: None,
                annotations: [("writer".to_owned(), writer.to_string())].into(),
            };
            client.push_manifest(&target, OCI_MANIFEST, to_manifest_json(&manifest).into()).await?;
        }
        Ok::<(), RegistryError>(())
    };
    let writers = (0..6).map(|writer| push(Client::new(ClientOptions::default()), writer));
    for outcome in futures_util::future::join_all(writers).await {
        outcome.expect("everything is pushed");
    }
}

#[tokio::test]
async fn basic_authentication() {
    let prepare = |dir: &Path| {
        let output = Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output()?;
        std::fs::write(dir.join("htpasswd"), output.stdout)?;
        Ok(())
    };
    let extra = "auth:\n  htpasswd:\n    realm: test\n    path: DIR/htpasswd\n";
    let Some(real) = Real::start(prepare, extra, "") else { return };
    let error = round_trip(&Client::new(options()), &real.host).await.expect_err("a password is needed");
    assert!(error.is_unauthorized(), "{error}");
    // dXNlcjpzZWNyZXQ= is user:secret
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#, real.host);
    std::fs::write(real.path("config.json"), config).expect("a file");
    let options = ClientOptions { docker_config_dir: Some(real.dir.path().to_owned()), ..options() };
    round_trip(&Client::new(options), &real.host).await.expect("a round trip");
}

/// Makes a CA, a server certificate for localhost and a client certificate.
fn make_certificates(dir: &Path) -> io::Result<()> {
    let script = r#"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr -subj /CN=localhost
            printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' > ext
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 2 -extfile ext
        done
    "#;
    let status = Command::new("sh").args(["-c", script]).current_dir(dir).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("openssl failed")) }
}

#[tokio::test]
async fn tls_with_a_private_ca_and_client_certificates() {
    let extra_http = "  tls:\n    certificate: DIR/server.crt\n    key: DIR/server.key\n    clientcas: [DIR/ca.crt]\n";
    let Some(real) = Real::start(make_certificates, "", extra_http) else { return };
    let certs = real.path("certs.d").join(&real.host);
    std::fs::create_dir_all(&certs).expect("a directory");

    let trusting = ClientOptions { certs_dirs: vec![real.path("certs.d")], ..options() };
    let error = round_trip(&Client::new(trusting.clone()), &real.host).await.expect_err("an unknown CA");
    assert!(error.is_unreachable() || matches!(error, RegistryError::Status { status: 400, .. }), "{error}");

    std::fs::copy(real.path("ca.crt"), certs.join("ca.crt")).expect("a copy");
    std::fs::copy(real.path("client.crt"), certs.join("client.cert")).expect("a copy");
    std::fs::copy(real.path("client.key"), certs.join("client.key")).expect("a copy");
    round_trip(&Client::new(trusting.clone()), &real.host).await.expect("a round trip");

    std::fs::remove_file(certs.join("client.key")).expect("removed");
    let error = round_trip(&Client::new(trusting), &real.host).await.expect_err("a certificate without key");
    assert!(matches!(error, RegistryError::Configuration { .. }), "{error}");
}

#[tokio::test]
async fn insecure_registries_need_no_known_ca() {
    let extra_http = "  tls:\n    certificate: DIR/server.crt\n    key: DIR/server.key\n";
    let Some(real) = Real::start(make_certificates, "", extra_http) else { return };
    let insecure = ClientOptions { insecure: [real.host.clone()].into(), ..options() };
    round_trip(&Client::new(insecure.clone()), &real.host).await.expect("HTTPS without verification");

    let Some(plain) = Real::start(|_| Ok(()), "", "") else { return };
    let insecure = ClientOptions { insecure: [plain.host.clone()].into(), ..insecure };
    round_trip(&Client::new(insecure), &plain.host).await.expect("plain HTTP where there is no HTTPS");
}
