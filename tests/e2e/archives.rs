//! `save` and `load`, with docker, podman and skopeo on the other side.

use std::process::{Command, Stdio};

use e2e::engine::Engine;
use serde_json::Value;

use crate::harness::{Need, Ran, Space, succeed};
use crate::need;

const DOCKERFILE: &str = "FROM busybox\nLABEL a=b\nCOPY Dockerfile /made-of\nRUN echo made > /made\n";

fn space() -> Space {
    let space = Space::with_busybox();
    space.build(DOCKERFILE, &["-t", "team/app:1", "-t", "team/app:2"]);
    space
}

fn skopeo(space: &Space, args: &[&str]) -> String {
    succeed(Command::new("skopeo").current_dir(space.path("")).arg("--insecure-policy").args(args))
}

fn podman(space: &Space, args: &[&str]) -> Ran {
    let mut podman = Command::new("podman");
    podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]);
    podman.arg("--root").arg(space.path("podman/root")).arg("--runroot").arg(space.path("podman/run"));
    Ran::of(podman.current_dir(space.path("")).args(args).stdin(Stdio::null()).output().expect("podman starts"))
}

#[test]
fn what_is_saved_is_loaded_as_it_was() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"));
    let space = space();
    space.rbuild(["save", "-o", "all.tar", "team/app:1", "busybox", "team/app:2"]).success();
    space.rbuild(["save", "-o", "again.tar", "team/app:1", "busybox", "team/app:2"]).success();
    assert_eq!(std::fs::read(space.path("all.tar")).ok(), std::fs::read(space.path("again.tar")).ok());

    let other = Space::new();
    let archive = space.path("all.tar").to_str().expect("UTF-8").to_owned();
    let loaded = other.rbuild(["load", "-i", &archive]).success();
    assert_eq!(loaded, "Loaded image: team/app:1\nLoaded image: team/app:2\nLoaded image: busybox:latest\n");
    for name in ["team/app:1", "busybox"] {
        let (here, there) = (space.inspect(name), other.inspect(name));
        assert_eq!((&here["Id"], &here["Descriptor"]["digest"]), (&there["Id"], &there["Descriptor"]["digest"]));
    }
    assert_eq!(other.run_in("team/app:2", &["cat", "/made"]), "made\n");
    // By ID there are no names.
    let id = space.inspect("team/app:1")["Id"].as_str().expect("ID").to_owned();
    space.rbuild(["image", "save", "--compression=zstd", "-o", "id.tar", &id]).success();
    let loaded = Space::new().rbuild(["load", "-i", space.path("id.tar").to_str().expect("UTF-8")]).success();
    assert_eq!(loaded, format!("Loaded image ID: {id}\n"));
    assert!(
        std::fs::metadata(space.path("id.tar")).expect("file").len()
            < std::fs::metadata(space.path("all.tar")).expect("file").len()
    );

    // Compressed, on standard input.
    for (program, file) in
        [("gzip", "all.tar.gz"), ("xz", "all.tar.xz"), ("zstd", "all.tar.zst"), ("bzip2", "all.tar.bz2")]
    {
        let Some(program) = crate::harness::find_program(program) else { continue };
        let packed = Command::new(program).arg("-c").arg(space.path("all.tar")).output().expect("starts").stdout;
        std::fs::write(space.path(file), packed).expect("write");
        let fresh = Space::new();
        let input = std::fs::File::open(space.path(file)).expect("open");
        let ran = Ran::of(fresh.command(["load"]).stdin(input).output().expect("starts"));
        assert_eq!(ran.success().lines().count(), 3, "{file}");
    }

    // Others read it, as either of the things that it is.
    for source in ["docker-archive:all.tar:team/app:1", "oci-archive:all.tar:1"] {
        let config: Value = serde_json::from_str(&skopeo(&space, &["inspect", "--config", source])).expect("JSON");
        assert_eq!(config["config"]["Labels"]["a"], "b", "{source}");
    }
}

#[test]
fn archives_of_skopeo_and_podman_are_loaded() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"), Need::Program("podman"));
    let space = space();
    space.rbuild(["save", "-o", "all.tar", "team/app:1"]).success();
    let ours = space.inspect("team/app:1");
    podman(&space, &["load", "-q", "-i", "all.tar"]).success();
    podman(&space, &["save", "-q", "-o", "podman.tar", "team/app:1"]).success();
    podman(&space, &["save", "-q", "--format=oci-archive", "-o", "podman-oci.tar", "team/app:1"]).success();
    podman(&space, &["save", "-q", "-m", "-o", "podman-multi.tar", "team/app:1"]).success();
    podman(&space, &["rmi", "-f", "team/app:1"]);
    skopeo(&space, &["copy", "-q", "docker-archive:all.tar", "oci-archive:skopeo.tar:docker.io/team/app:1"]);
    skopeo(&space, &["copy", "-q", "docker-archive:all.tar", "docker-archive:skopeo-docker.tar:team/app:1"]);
    skopeo(&space, &["copy", "-q", "docker-archive:all.tar", "oci:layout:docker.io/team/app:1"]);
    for archive in ["podman.tar", "podman-oci.tar", "podman-multi.tar", "skopeo.tar", "skopeo-docker.tar", "layout"] {
        let other = Space::new();
        let path = space.path(archive);
        let loaded = other.rbuild(["load", "-i", path.to_str().expect("UTF-8")]).success();
        assert_eq!(loaded.trim(), "Loaded image: team/app:1", "{archive}");
        // Whoever turns one format into the other writes the config anew.
        let loaded = other.inspect("team/app:1");
        assert_eq!(loaded["RootFS"]["Layers"], ours["RootFS"]["Layers"], "{archive}");
        if archive.starts_with("podman") {
            assert_eq!(loaded["Id"], ours["Id"], "{archive}");
        }
        assert_eq!(other.run_in("team/app:1", &["cat", "/made"]), "made\n", "{archive}");
    }
}

#[test]
fn docker_and_rbuild_load_what_the_other_saves() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("dockerd"), Need::Program("docker"));
    let space = space();
    let engine = match Engine::start(&space.path("docker")) {
        Ok(engine) => engine,
        Err(reason) => return crate::harness::note(&format!("skipped docker: {reason}")),
    };
    let docker = |args: &[&str]| {
        Ran::of(engine.client().args(args).current_dir(space.path("")).output().expect("docker starts"))
    };
    space.rbuild(["save", "-o", "all.tar", "team/app:1", "team/app:2", "busybox"]).success();
    let said = docker(&["load", "-i", "all.tar"]).success();
    let ours = Space::new().rbuild(["load", "-i", space.path("all.tar").to_str().expect("UTF-8")]).success();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&said), sorted(&ours), "the same words");
    let formats = [
        "{{.Id}} {{.RepoTags}} {{json .Config.Labels}}",
        "{{.Config.User}}|{{index .Config.Env 0}}|{{.Os}}",
        "{{range .RootFS.Layers}}{{.}} {{end}}",
    ];
    for format in formats {
        let theirs = docker(&["image", "inspect", "-f", format, "team/app:1"]).success();
        assert_eq!(theirs, space.rbuild(["image", "inspect", "-f", format, "team/app:1"]).success(), "{format}");
    }
    let list = ["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "--filter", "reference=team/*"];
    assert_eq!(sorted(&docker(&list).success()), sorted(&space.rbuild(list).success()));

    docker(&["save", "-o", "docker.tar", "team/app:1", "busybox"]).success();
    let other = Space::new();
    let loaded = other.rbuild(["load", "-i", space.path("docker.tar").to_str().expect("UTF-8")]).success();
    assert_eq!(sorted(&loaded), ["Loaded image: busybox:latest", "Loaded image: team/app:1"]);
    assert_eq!(other.inspect("team/app:1")["Id"], space.inspect("team/app:1")["Id"]);
    assert_eq!(other.run_in("team/app:1", &["cat", "/made"]), "made\n");
}

#[test]
fn bad_archives_are_refused_and_leave_nothing() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    space.rbuild(["save", "-o", "good.tar", "team/app:1"]).success();
    let good = std::fs::read(space.path("good.tar")).expect("read");
    space.write("cut.tar", &good[..good.len() / 2]);
    // A byte of a layer.
    let mut bent = good.clone();
    let at = bent.len() / 2;
    bent[at] ^= 1;
    space.write("bent.tar", bent);
    space.write("text.tar", "nothing of the kind\n".repeat(100));
    space.write("empty.tar", "");
    let other = Space::new();
    for archive in ["cut.tar", "bent.tar", "text.tar", "empty.tar", "absent.tar"] {
        let ran = other.rbuild(["load", "-i", space.path(archive).to_str().expect("UTF-8")]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{archive}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("ERROR: ") || ran.stderr.starts_with("error"), "{archive}: {}", ran.stderr);
        assert_eq!(other.rbuild(["images", "-q"]).success(), "", "{archive}");
    }
    let ran = space.rbuild(["save", "-o", "x.tar", "nothing"]);
    assert!(ran.code == 1 && !space.path("x.tar").exists(), "{}", ran.stderr);
    let ran = space.rbuild(["save", "--platform=linux/s390x", "-o", "x.tar", "team/app:1"]);
    assert!(ran.stderr.contains("has no image for linux/s390x: it has"), "{}", ran.stderr);
}
