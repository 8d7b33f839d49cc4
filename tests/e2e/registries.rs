//! Registries in bad weather, behind TLS, tokens and the settings of others; pushes and pulls that break off.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{LoopDisk, Need, REGISTRY_USER, Ran, Registry, Space, succeed, wait_for};
use crate::need;
use crate::tokens::TokenServer;
use crate::weather::{Fate, Weather};

macro_rules! need_registry {
    ($($need:expr),*) => {
        need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry") $(, $need)*);
    };
}

/// Bytes that do not compress, the same for a number.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The program with configuration of its own: nothing of this machine's, what is in `config` of the space.
fn command(space: &Space, args: &[&str]) -> Command {
    let mut command = space.command(args);
    command.env("XDG_CONFIG_HOME", space.path("config")).env("HOME", space.path("home"));
    command.env("DOCKER_CONFIG", space.path("docker")).env_remove("XDG_RUNTIME_DIR");
    command
}

fn run(space: &Space, args: &[&str]) -> Ran {
    Ran::of(command(space, args).output().expect("rbuild starts"))
}

#[test]
fn three_requests_in_ten_fail_and_everything_ends_well() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    for number in 1..=3 {
        maker.write(&format!("content{number}"), noise(number, 300_000 * number as usize));
    }
    let dockerfile = "FROM busybox\nCOPY content1 /\nCOPY content2 /\nRUN cat /content1 > /made\nCOPY content3 /\n";
    maker.write("Dockerfile", dockerfile);
    for seed in 1..=3 {
        let weather = Weather::stormy(&registry.host(), seed);
        let patient = |space: &Space, args: &[&str]| {
            let mut command = command(space, args);
            command.env("RBUILD_REGISTRY_TIMEOUT", "1");
            Ran::of(command.output().expect("rbuild starts"))
        };
        let name = format!("{}/seed{seed}/app:1", weather.host);
        let pushed = patient(&maker, &["--push", "-t", &name, "."]);
        assert_eq!(pushed.code, 0, "seed {seed}: {}", pushed.stderr);
        // From the store, to another name.
        let other = format!("{}/seed{seed}/other:1", weather.host);
        maker.rbuild(["-q", "-t", &other, "."]).success();
        let again = patient(&maker, &["push", &other]);
        assert_eq!(again.code, 0, "seed {seed}: {}", again.stderr);
        let puller = Space::new();
        let pulled = patient(&puller, &["pull", &name]);
        assert_eq!(pulled.code, 0, "seed {seed}: {}", pulled.stderr);
        let sums = "sha256sum content1 content2 content3 made | cut -c1-64";
        let inside = puller.run_in(&name, &["sh", "-c", &format!("cd /; {sums}")]);
        succeed(Command::new("cp").arg("content1").arg("made").current_dir(maker.path("")));
        let outside = succeed(Command::new("sh").args(["-c", sums]).current_dir(maker.path("")));
        assert_eq!(inside, outside, "seed {seed}");
        let n_failed =
            [&pushed, &again, &pulled].iter().map(|ran| ran.stderr.matches("trying again in").count()).sum::<usize>();
        assert!(n_failed > 3, "seed {seed}: the weather was fair: {n_failed}");
    }
}

#[test]
fn layers_are_sent_while_the_build_runs_and_each_once() {
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let weather = Weather::start(&registry.host(), |_, _| Fate::Fair);
    space.write("content", noise(9, 100_000));
    space.write("Dockerfile", "FROM busybox\nCOPY content /content\nRUN sleep 6; echo made > /made\n");
    let name = format!("{}/early:1", weather.host);
    let build = command(&space, &["--push", "-t", &name, "-t", &format!("{}/early:2", weather.host), "."])
        .stderr(Stdio::piped())
        .spawn()
        .expect("rbuild starts");
    let started = Instant::now();
    wait_for(|| weather.uploads() > 0);
    assert!(started.elapsed() < Duration::from_secs(6), "nothing was sent while the build ran");
    let ran = Ran::of(build.wait_with_output().expect("an end"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("pushing layers while the build runs"), "{}", ran.stderr);
    // busybox, COPY, RUN and the config, whatever the number of names.
    assert_eq!(weather.uploads(), 4, "{:#?}", weather.seen());

    // Platforms that share layers, at the same time.
    space.write(
        "shared/Dockerfile",
        "FROM scratch\nARG TARGETARCH\nCOPY content /content\nCOPY <<E /arch\n$TARGETARCH\nE\n",
    );
    space.write("shared/content", noise(10, 100_000));
    let before = weather.uploads();
    let name = format!("{}/shared:1", weather.host);
    let ran = run(&space, &["--platform=linux/amd64,linux/arm64,linux/s390x", "--push", "-t", &name, "shared"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(weather.uploads() - before, 1 + 3 + 3, "one layer for all, one and a config for each");

    // A build that fails leaves no name, and nothing of it goes on.
    space.write("Dockerfile", "FROM busybox\nCOPY content /again\nRUN sleep 1; false\n");
    let failing = format!("{}/failing:1", weather.host);
    let ran = run(&space, &["--push", "-t", &failing, "."]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(run(&space, &["pull", &failing]).code, 1);
}

#[test]
fn a_long_layer_is_sent_while_it_is_made_and_once() {
    need_registry!(Need::Program("skopeo"));
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    // Slow enough for the layer to be complete before it is sent.
    let weather = Weather::start(&registry.host(), |_, seen| match seen.method.as_str() {
        "PATCH" => Fate::Slow(Duration::from_millis(300)),
        _ => Fate::Fair,
    });
    let sent = || -> usize { weather.seen().iter().map(|seen| seen.body_bytes).sum() };
    let unfinished = || {
        let dirs =
            std::fs::read_dir(space.path("registry/data/docker/registry/v2/repositories")).expect("repositories");
        let uploads = dirs.flatten().filter_map(|dir| std::fs::read_dir(dir.path().join("_uploads")).ok());
        uploads.flatten().flatten().filter(|upload| upload.path().join("data").exists()).count()
    };
    space.write("content", noise(11, 50 << 20));
    space.write("Dockerfile", "FROM scratch\nCOPY content /content\n");
    for codec in ["gzip", "zstd"] {
        let before = sent();
        let output = |name: &str| format!("type=registry,name={}/{name}:{codec},compression={codec}", weather.host);
        let ran = run(&space, &["-o", &output("long"), "."]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let once = sent() - before;
        assert!((50 << 20..51 << 20).contains(&once), "{codec}: {once} bytes for 50 MiB that do not compress");
        succeed(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
                .arg(format!("docker://{}/long:{codec}", registry.host()))
                .arg(format!("dir:{}", space.path(codec).display())),
        );

        // Made anew, where it is already: what was begun is given up.
        let ran = run(&Space::new(), &["-o", &output("long"), &space.path(".").display().to_string()]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains(" exists done"), "{}", ran.stderr);
        assert_eq!(unfinished(), 0);
        // Made anew of pieces that are all known: not even begun.
        let before = sent();
        let ran = run(&space, &["--no-cache", "-o", &output("long"), "."]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(sent() - before < 1 << 20, "{codec}");
    }

    // A build that is stopped leaves nothing that the registry has to keep.
    space.write("content", noise(12, 50 << 20));
    space.write("Dockerfile", "FROM busybox\nCOPY content /content\nRUN sleep 1; false\n");
    let ran = run(&space, &["-o", &format!("type=registry,name={}/stopped:1", weather.host), "."]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(unfinished(), 0);
}

#[test]
fn a_base_leaves_as_it_came_and_not_as_it_left_before() {
    need_registry!(Need::Program("skopeo"));
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    space.write("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n");
    let pushed = |attributes: &str| {
        let name = format!("{}/base:1", registry.host());
        let ran = run(&space, &["-q", "-o", &format!("type=registry,name={name}{attributes}"), "."]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let image = format!("docker://{name}");
        let raw = succeed(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &image]));
        let manifest: Value = serde_json::from_str(&raw).expect("a manifest");
        let layers = manifest["layers"].as_array().expect("layers").iter();
        let types = layers
            .map(|layer| layer["mediaType"].as_str().expect("a type").rsplit(['+', '.']).next().unwrap().to_owned());
        types.collect::<Vec<_>>()
    };
    assert_eq!(pushed(",compression=zstd,force-compression=true"), ["zstd", "zstd"]);
    assert_eq!(pushed(""), ["gzip", "gzip"], "it came as a plain tar");
}

#[test]
fn a_push_that_is_killed_goes_on_without_building_or_sending_again() {
    need_registry!();
    let space = Space::with_busybox();
    let mut registry = Registry::start(&space);
    let weather = Weather::start(&registry.host(), |number, seen| {
        let is_name = seen.method == "PUT" && seen.target.contains("/manifests/");
        if is_name && number < 40 { Fate::Slow(Duration::from_secs(2)) } else { Fate::Fair }
    });
    space.write("Dockerfile", "FROM busybox\nRUN date +%s%N > /made\n");
    let name = format!("{}/app:1", weather.host);
    let mut build =
        command(&space, &["--push", "-t", &name, "."]).stderr(Stdio::null()).spawn().expect("rbuild starts");
    wait_for(|| weather.seen().iter().any(|seen| seen.method == "PUT" && seen.target.contains("/manifests/")));
    build.kill().expect("killed");
    build.wait().expect("an end");
    let n_sent = weather.uploads();
    let resumed = run(&space, &["push", &name]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(resumed.stderr.matches(" exists done").count(), 3, "{}", resumed.stderr);
    assert_eq!(weather.uploads(), n_sent, "nothing was sent again");
    // It is there now, and not noted any more: there is no such image here.
    let puller = Space::new();
    assert_eq!(run(&puller, &["pull", &name]).code, 0);
    let gone = run(&space, &["push", &name]);
    assert!(gone.code == 1 && gone.stderr.contains("no such image"), "{}", gone.stderr);

    // A registry that goes away: the help says what to do.
    registry.stop();
    space.write("Dockerfile", "FROM busybox\nRUN echo other > /made\n");
    let failed = run(&space, &["--push", "-t", &name, "."]);
    assert_eq!(failed.code, 3, "{}", failed.stderr);
}

/// Makes a CA, and certificates of it for a server on loopback and a client.
fn make_certificates(space: &Space) {
    let script = r#"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr -subj /CN=localhost
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 2 -extfile ext
        done
    "#;
    std::fs::create_dir_all(space.path("tls")).expect("a directory");
    succeed(Command::new("sh").args(["-c", script]).current_dir(space.path("tls")));
}

/// What `rbuild doctor REF` found, by `what`.
fn doctor(space: &Space, reference: &str) -> (i32, Vec<(String, String)>) {
    let ran = run(space, &["doctor", "--format=json", reference]);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}{}", ran.stdout, ran.stderr));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = json["checks"].as_array().expect("checks").iter();
    (ran.code, checks.map(|check| (text(&check["what"]), text(&check["found"]))).collect())
}

#[track_caller]
fn found<'a>(checks: &'a [(String, String)], what: &str) -> &'a str {
    checks
        .iter()
        .find(|(name, _)| name == what)
        .map(|(_, found)| found.as_str())
        .unwrap_or_else(|| panic!("no {what}: {checks:#?}"))
}

#[test]
fn tls_with_a_private_ca_by_the_settings_of_every_engine() {
    need_registry!(Need::Program("openssl"));
    let space = Space::with_busybox();
    make_certificates(&space);
    let tls = |name: &str| space.path(&format!("tls/{name}")).display().to_string();
    let http = format!("tls: {{certificate: '{}', key: '{}'}}", tls("server.crt"), tls("server.key"));
    let registry = Registry::with_settings(&space, &http, "");
    let host = format!("localhost:{}", registry.port());
    let name = format!("{host}/app:1");
    space.write("Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    space.rbuild(["-q", "-t", &name, "."]).success();
    let settings = |file: &str, text: &str| {
        drop(std::fs::remove_dir_all(space.path("config")));
        if !file.is_empty() {
            space.write(&format!("config/{file}"), text);
        }
    };
    let ca = space.read("tls/ca.crt");

    // Loopback without any word of certificates is plain HTTP; the registry wants TLS.
    settings("", "");
    let (code, checks) = doctor(&space, &name);
    assert_eq!(code, 3, "{checks:#?}");

    // certs.d of docker, and of podman.
    for engine in ["docker", "containers"] {
        settings(&format!("{engine}/certs.d/{host}/ca.crt"), &ca);
        let pushed = run(&space, &["push", &name]);
        assert_eq!(pushed.code, 0, "{engine}: {}", pushed.stderr);
        let (code, checks) = doctor(&space, &name);
        assert_eq!(code, 0, "{checks:#?}");
        assert!(found(&checks, "CA").contains(&format!("{engine}/certs.d/{host}/ca.crt")), "{checks:#?}");
        assert!(found(&checks, "manifest").starts_with("sha256:"), "{checks:#?}");
    }

    // hosts.toml, also in the place of another name.
    let text = format!("server = \"https://{host}\"\nca = \"{}\"\n", tls("ca.crt"));
    settings(&format!("containerd/certs.d/{host}/hosts.toml"), &text);
    assert_eq!(run(&space, &["push", &name]).code, 0);
    let text =
        format!("[host.\"https://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"{}\"\n", tls("ca.crt"));
    settings("containerd/certs.d/elsewhere.example/hosts.toml", &text);
    let (code, checks) = doctor(&space, "elsewhere.example/app:1");
    assert_eq!(code, 0, "{checks:#?}");
    assert!(found(&checks, "settings").ends_with("elsewhere.example/hosts.toml"), "{checks:#?}");
    assert!(found(&checks, "mirror").starts_with(&format!("https://{host}/v2/ for pulls")), "{checks:#?}");
    let puller = Space::new();
    succeed(Command::new("cp").arg("-r").arg(space.path("config")).arg(puller.path("config")));
    let pulled = run(&puller, &["pull", "elsewhere.example/app:1"]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(puller.run_in("elsewhere.example/app:1", &["cat", "/made"]), "made\n");

    // registries.conf: insecure, another location, blocked.
    settings("containers/registries.conf", &format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n"));
    assert_eq!(run(&space, &["push", &name]).code, 0);
    let text = format!("[[registry]]\nprefix = \"moved.example/team\"\nlocation = \"{host}\"\ninsecure = true\n");
    settings("containers/registries.conf", &text);
    let puller = Space::new();
    succeed(Command::new("cp").arg("-r").arg(space.path("config")).arg(puller.path("config")));
    assert_eq!(run(&puller, &["pull", "moved.example/team/app:1"]).code, 0);
    settings("containers/registries.conf.d/1.conf", &format!("[[registry]]\nlocation = \"{host}\"\nblocked = true\n"));
    let blocked = run(&space, &["push", &name]);
    assert_eq!(blocked.code, 3, "{}", blocked.stderr);
    assert!(
        blocked.stderr.contains("registries.conf.d/1.conf") && blocked.stderr.contains("it blocks"),
        "{}",
        blocked.stderr
    );

    // BuildKit's and Docker's files.
    settings("buildkit/buildkitd.toml", &format!("[registry.\"{host}\"]\nca = [\"{}\"]\n", tls("ca.crt")));
    assert_eq!(run(&space, &["push", &name]).code, 0);
    settings("docker/daemon.json", &format!("{{\"insecure-registries\": [\"{host}\"]}}"));
    assert_eq!(run(&space, &["push", &name]).code, 0);

    // A broken file is named, with the place.
    settings("containers/registries.conf", "[[registry]\n");
    let broken = run(&space, &["push", &name]);
    assert_eq!(broken.code, 3, "{}", broken.stderr);
    assert!(broken.stderr.contains("registries.conf`: TOML parse error at line 1"), "{}", broken.stderr);
}

#[test]
fn client_certificates() {
    need_registry!(Need::Program("openssl"));
    let space = Space::with_busybox();
    make_certificates(&space);
    let tls = |name: &str| space.path(&format!("tls/{name}")).display().to_string();
    let http = format!(
        "tls: {{certificate: '{}', key: '{}', clientcas: ['{}']}}",
        tls("server.crt"),
        tls("server.key"),
        tls("ca.crt")
    );
    let registry = Registry::with_settings(&space, &http, "");
    let host = format!("localhost:{}", registry.port());
    let name = format!("{host}/app:1");
    space.write("Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    space.rbuild(["-q", "-t", &name, "."]).success();
    space.write(&format!("config/docker/certs.d/{host}/ca.crt"), space.read("tls/ca.crt"));
    assert_eq!(run(&space, &["push", &name]).code, 3);
    space.write(&format!("config/docker/certs.d/{host}/client.cert"), space.read("tls/client.crt"));
    space.write(&format!("config/docker/certs.d/{host}/client.key"), space.read("tls/client.key"));
    let pushed = run(&space, &["push", &name]);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let (code, checks) = doctor(&space, &name);
    assert!(code == 0 && found(&checks, "client certificate").contains("client.cert"), "{checks:#?}");
    drop(std::fs::remove_dir_all(space.path("config")));
    let text =
        format!("ca = \"{}\"\nclient = [[\"{}\", \"{}\"]]\n", tls("ca.crt"), tls("client.crt"), tls("client.key"));
    space.write(&format!("config/containerd/certs.d/{host}/hosts.toml"), text);
    assert_eq!(run(&space, &["push", &name]).code, 0);
}

#[test]
fn basic_authentication_from_every_place_and_no_secret_is_shown() {
    need_registry!(Need::Program("htpasswd"));
    let space = Space::with_busybox();
    let registry = Registry::with_password(&space);
    let (user, password) = REGISTRY_USER;
    let name = format!("{}/app:1", registry.host());
    space.write("Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    space.rbuild(["-q", "-t", &name, "."]).success();
    let (code, checks) = doctor(&space, &name);
    assert_eq!(code, 3, "{checks:#?}");
    assert!(found(&checks, "credentials").starts_with("none"), "{checks:#?}");
    // YnVpbGRlcjpodW50ZXIy is builder:hunter2
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"YnVpbGRlcjpodW50ZXIy"}}}}}}"#, registry.host());
    let helper = format!(
        "#!/bin/sh\ncat > /dev/null\necho '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'\n"
    );
    space.write("bin/docker-credential-test", helper);
    succeed(Command::new("chmod").arg("+x").arg(space.path("bin/docker-credential-test")));
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", space.path("bin").display());
    let places: [(&str, &str, Option<&str>, &str); 5] = [
        ("docker/config.json", &auths, None, "docker/config.json"),
        ("config/containers/auth.json", &auths, None, "containers/auth.json"),
        ("named.json", &auths, Some("REGISTRY_AUTH_FILE"), "named.json"),
        ("docker/config.json", r#"{"credsStore":"test"}"#, None, "docker-credential-test (credsStore in"),
        ("nowhere", "", Some("DOCKER_AUTH_CONFIG"), "$DOCKER_AUTH_CONFIG"),
    ];
    for (file, text, variable, origin) in places {
        for dir in ["docker", "config"] {
            drop(std::fs::remove_dir_all(space.path(dir)));
        }
        space.write(file, text);
        let with = |args: &[&str]| {
            let mut command = command(&space, args);
            command.env("PATH", &path);
            match variable {
                Some("DOCKER_AUTH_CONFIG") => command.env("DOCKER_AUTH_CONFIG", &auths),
                Some(variable) => command.env(variable, space.path(file)),
                None => &mut command,
            };
            Ran::of(command.output().expect("rbuild starts"))
        };
        let told = with(&["doctor", &name]);
        assert!(told.stdout.contains(origin) && told.stdout.contains("`builder`"), "{file}: {}", told.stdout);
        let pushed = with(&["push", &name]);
        assert_eq!(pushed.code, 0, "{file}: {}", pushed.stderr);
        assert_eq!(with(&["doctor", &name]).code, 0, "{file}");
        assert!(!format!("{}{}{}", told.stdout, told.stderr, pushed.stderr).contains(password), "{file}");
    }
    // A wrong password, as of a login that has expired.
    space.write("docker/config.json", auths.replace("YnVpbGRlcjpodW50ZXIy", "YnVpbGRlcjpvbGQ="));
    let refused = run(&space, &["push", &name]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("the credentials were refused; log in: rbuild login"), "{}", refused.stderr);
}

#[test]
fn tokens_of_a_server_with_short_lives() {
    need_registry!(Need::Program("openssl"));
    let space = Space::with_busybox();
    let tokens = TokenServer::start(&space);
    let registry = Registry::with_settings(&space, "", &tokens.registry_settings());
    let name = format!("{}/team/app:1", registry.host());
    let other = format!("{}/other/app:1", registry.host());
    space.write("content", noise(5, 300_000));
    space.write("Dockerfile", "FROM busybox\nCOPY content /content\n");
    let refused = run(&space, &["--push", "-t", &name, "."]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#, registry.host(), TokenServer::BASIC);
    space.write("docker/config.json", &auths);
    let pushed = run(&space, &["--push", "-t", &name, "."]);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    // A mount wants rights on both repositories in one token.
    let mounted = run(&space, &["--push", "-t", &other, "."]);
    assert_eq!(mounted.code, 0, "{}", mounted.stderr);
    assert!(mounted.stderr.contains("mounted from team/app"), "{}", mounted.stderr);
    assert!(tokens.asked().iter().any(|scopes| scopes.len() == 2), "{:?}", tokens.asked());
    let (code, checks) = doctor(&space, &name);
    assert_eq!(code, 0, "{checks:#?}");
    assert!(found(&checks, "ping").contains("wants tokens of"), "{checks:#?}");
    // An identity token instead of the password.
    let auths =
        format!(r#"{{"auths":{{"{}":{{"auth":"","identitytoken":"{}"}}}}}}"#, registry.host(), TokenServer::IDENTITY);
    space.write("docker/config.json", &auths);
    assert_eq!(run(&space, &["push", &name]).code, 1, "there is no such image here");
    space.rbuild(["-q", "-t", &name, "."]).success();
    let pushed = run(&space, &["push", &name]);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    // One that is not known any more.
    space.write("docker/config.json", auths.replace(TokenServer::IDENTITY, "expired"));
    let refused = run(&space, &["push", &name]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("credentials were refused"), "{}", refused.stderr);
}

/// Puts a document into a registry under a tag.
fn put_manifest(registry: &Registry, repository: &str, tag: &str, media_type: &str, document: &str) {
    let mut stream = TcpStream::connect(registry.host()).expect("a connection");
    let length = document.len();
    let head = format!(
        "PUT /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{document}").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[test]
fn an_index_inside_of_an_index_is_refused() {
    need_registry!();
    let space = Space::new();
    let registry = Registry::start(&space);
    space.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let name = format!("{}/nested:1", registry.host());
    let ran = run(&space, &["--platform=linux/amd64,linux/arm64", "--push", "-t", &name, "--metadata-file=facts", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let facts: Value = serde_json::from_str(&space.read("facts")).expect("JSON");
    let inner = &facts["containerimage.descriptor"];
    let index = "application/vnd.oci.image.index.v1+json";
    let entry = serde_json::json!({
        "mediaType": index, "digest": inner["digest"], "size": inner["size"],
        "platform": { "os": "linux", "architecture": "amd64" },
    });
    let outer = serde_json::json!({ "schemaVersion": 2, "mediaType": index, "manifests": [entry] });
    put_manifest(&registry, "nested", "outer", index, &outer.to_string());
    let outer = format!("{}/nested:outer", registry.host());
    let pulled = run(&space, &["pull", "--platform=linux/amd64", &outer]);
    assert_eq!(pulled.code, 1, "{}", pulled.stderr);
    assert!(pulled.stderr.contains("it is an index inside of an index"), "{}", pulled.stderr);
    let s390x = run(&space, &["pull", "--platform=linux/s390x", &name]);
    assert!(
        s390x.code == 1 && s390x.stderr.contains("there is one for linux/amd64 and linux/arm64"),
        "{}",
        s390x.stderr
    );
}

#[test]
fn a_full_disk_in_the_middle_of_a_pull_leaves_nothing_to_trust() {
    need_registry!(Need::LoopDevices, Need::Program("mkfs.ext4"));
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    maker.write("content", noise(7, 48 << 20));
    maker.write("Dockerfile", "FROM busybox\nCOPY content /content\n");
    let name = format!("{}/large:1", registry.host());
    maker.rbuild(["--push", "-t", &name, "."]).success();
    let space = Space::new();
    let disk = LoopDisk::new(&space, 64);
    let store = disk.path().join("store");
    let on_disk = |args: &[&str]| {
        let mut command = command(&space, args);
        command.env("RBUILD_STORE", &store);
        Ran::of(command.output().expect("rbuild starts"))
    };
    std::fs::write(disk.path().join("ballast"), vec![1; 30 << 20]).expect("ballast");
    let full = on_disk(&["pull", &name]);
    assert_eq!(full.code, 3, "{}", full.stderr);
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    assert!(!full.stderr.contains("internal"), "{}", full.stderr);
    assert_eq!(on_disk(&["images", "-q"]).success(), "", "it has no name");
    assert!(n_large_files(&store) == 0, "something half-written was left");
}

fn n_large_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| {
        let metadata = entry.metadata().expect("metadata");
        if metadata.is_dir() { n_large_files(&entry.path()) } else { usize::from(metadata.len() > 8 << 20) }
    };
    entries.map(count).sum()
}
