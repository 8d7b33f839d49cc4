//! Images given to container engines: `--load` and `type=docker`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::Command;

use e2e::engine::Engine;

use crate::harness::{Need, Ran, Space, note};
use crate::need;

/// A build of three layers, of which the last is another for every `word`.
fn write_context(space: &Space, word: &str) {
    space.write(
        "Dockerfile",
        "FROM busybox\nRUN echo one > /one\nCOPY word /word\nCMD [\"cat\", \"/one\", \"/word\"]\n",
    );
    space.write("word", format!("{word}\n"));
}

fn load(space: &Space, address: &str, args: &[&str]) -> Ran {
    let mut command = space.command(["--progress=plain", "-t", "loaded:1"].iter().chain(args).chain(&["."]));
    Ran::of(command.env("DOCKER_HOST", address).output().expect("rbuild starts"))
}

#[test]
fn docker_gets_what_it_lacks() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("dockerd"), Need::Program("docker"));
    let space = Space::with_busybox();
    let engine = match Engine::start(&space.path("docker")) {
        Ok(engine) => engine,
        Err(reason) => return note(&format!("skipped docker: {reason}")),
    };
    let docker = |args: &[&str]| Ran::of(engine.client().args(args).output().expect("docker starts"));
    let id = || docker(&["image", "inspect", "--format", "{{.Id}}", "loaded:1"]).success().trim().to_owned();

    write_context(&space, "first");
    let first = load(&space, &engine.address(), &["--load", "--iidfile", "iid"]);
    assert!(!first.stderr.contains("there already"), "{}", first.stderr);
    first.success();
    assert_eq!(id(), space.read("iid").trim());

    // Only the last layer has changed; the engine has the others.
    write_context(&space, "second");
    let second = load(&space, &engine.address(), &["-o", "type=docker", "--iidfile", "iid"]);
    assert!(second.stderr.contains("2 of 3 layers are there already"), "{}", second.stderr);
    second.success();
    assert_eq!(id(), space.read("iid").trim());
    let ran = docker(&["run", "--rm", "--network=host", "loaded:1"]);
    if ran.code == 125 {
        note(&format!("docker runs no containers on this machine: {}", ran.stderr.trim()));
    } else {
        assert_eq!(ran.success(), "one\nsecond\n");
    }

    // The engine by a docker context, compressed layers, and the local store beside it.
    let socket = engine.address();
    let config = space.path("config");
    let mut create = engine.client();
    create.env("DOCKER_CONFIG", &config).args(["context", "create", "mine", "--docker", &format!("host={socket}")]);
    Ran::of(create.output().expect("docker starts")).success();
    write_context(&space, "third");
    let args = ["-q", "-t", "loaded:1", "-o", "type=docker,context=mine,compression=gzip", "-o", "type=image", "."];
    let mut command = space.command(args);
    let third = Ran::of(command.env("DOCKER_CONFIG", &config).output().expect("rbuild starts")).success();
    assert_eq!(id(), third.trim());
    assert_eq!(space.inspect("loaded:1")["Id"], third.trim());
}

#[test]
fn podman_gets_images_with_and_without_its_api() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("podman"));
    let space = Space::with_busybox();
    let storage = ["--root", "storage", "--runroot", "run", "--storage-driver=vfs"];
    let podman = |args: &[&str]| {
        let mut podman = Command::new("podman");
        Ran::of(podman.current_dir(space.path("")).args(storage).args(args).output().expect("podman starts"))
    };
    let id = || podman(&["image", "inspect", "--format", "{{.Id}}", "localhost/loaded:1"]).success().trim().to_owned();

    write_context(&space, "by api");
    let socket = space.path("podman.sock");
    let address = format!("unix://{}", socket.display());
    let mut service = Command::new("podman");
    service.current_dir(space.path("")).args(storage).args(["system", "service", "--time=60", &address]);
    let mut service = service.spawn().expect("podman starts");
    crate::harness::wait_for(|| socket.exists());
    let ran = load(&space, &address, &["--load", "--iidfile", "iid"]);
    service.kill().expect("it runs");
    service.wait().expect("it ends");
    ran.success();
    let own = space.read("iid").trim().trim_start_matches("sha256:").to_owned();
    let theirs = podman(&["images", "--no-trunc", "--format", "{{.ID}}"]).success();
    assert!(theirs.contains(&own), "{own}: {theirs}");

    // The program, found on the path: one that has our storage.
    write_context(&space, "by program");
    space.write("bin/podman", format!("#!/bin/sh\nexec /usr/bin/podman {} \"$@\"\n", storage.join(" ")));
    std::fs::set_permissions(space.path("bin/podman"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("it is ours");
    let mut command =
        space.command(["-t", "localhost/loaded:1", "-o", "type=docker,context=podman", "--iidfile", "iid", "."]);
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", space.path("bin").display());
    Ran::of(command.env("PATH", path).output().expect("rbuild starts")).success();
    assert_eq!(id(), space.read("iid").trim().trim_start_matches("sha256:"));
}

#[test]
fn engines_that_do_not_answer_are_told_before_anything_is_built() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    write_context(&space, "x");
    for (address, message) in [
        (
            "unix:///nowhere.sock",
            "cannot talk to the container engine at unix:///nowhere.sock: No such file or directory",
        ),
        ("tcp://127.0.0.1:1", "cannot talk to the container engine at tcp://127.0.0.1:1: Connection refused"),
    ] {
        let ran = load(&space, address, &["--load"]);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert!(ran.stderr.contains(message) && ran.stderr.contains("comes from DOCKER_HOST"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("RUN echo one"), "{}", ran.stderr);
    }
    let ran = load(&space, "npipe:////./pipe/docker_engine", &["--load"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let platforms = load(&space, "unix:///nowhere.sock", &["-o", "type=docker,context=no/such"]);
    assert_eq!(platforms.code, 2, "{}", platforms.stderr);
}

/// Something that answers as an engine and refuses every image.
#[test]
fn a_refusal_is_told_in_the_engines_words() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    write_context(&space, "x");
    let socket = space.path("engine.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = Vec::new();
            let mut buffer = [0; 65536];
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                let n_bytes = stream.read(&mut buffer).expect("a request");
                request.extend(&buffer[..n_bytes]);
            }
            let is_load = request.starts_with(b"POST");
            // The end of a body in chunks.
            while is_load && !request.ends_with(b"0\r\n\r\n") {
                let n_bytes = stream.read(&mut buffer).expect("a body");
                request.extend(&buffer[..n_bytes]);
            }
            let body = match &request[..] {
                [b'G', b'E', b'T', rest @ ..] if rest.starts_with(b" /_ping") => "OK",
                [b'P', ..] => "{\"stream\":\"x\"}\n{\"errorDetail\":{\"message\":\"no room\"},\"error\":\"no room\"}\n",
                _ => "{}",
            };
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let answered = stream.write_all(answer.as_bytes());
            // Who asks whether there is an engine may not stay for the answer.
            if is_load {
                return answered.expect("an answer");
            }
        }
    });
    let ran = load(&space, &format!("unix://{}", socket.display()), &["--load"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("refuses the image: no room"), "{}", ran.stderr);
    server.join().expect("it has served");
}
