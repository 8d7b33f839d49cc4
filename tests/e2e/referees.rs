//! Images that rbuild writes, judged by the programs that will read them.

use std::path::Path;
use std::process::{Command, Stdio};

use e2e::engine::Engine;
use serde_json::Value;

use crate::harness::{Need, Ran, Space, succeed};
use crate::need;

/// Name of the image in every archive.
const NAME: &str = "docker.io/library/judged:1";

/// A space with the image in every form: `oci.tar`, `zstd.tar`, `plain.tar`, `docker.tar`, `layout/`, `root.tar`, `root/`.
fn judged() -> Space {
    let space = Space::with_busybox();
    space.write("app/file", "data\n");
    space.write("app/script.sh", "#!/bin/sh\n");
    let long = "d".repeat(60);
    let dockerfile = format!(
        "FROM busybox\nENV A=b EMPTY=\nLABEL org.example.label=\"a value\"\nEXPOSE 80 53/udp\nVOLUME /data\nWORKDIR /w\n\
         COPY app/ .\nCOPY --chown=12:34 --chmod=4711 app/file /owned\n\
         RUN ln file hard && ln -s file soft && mkdir -p empty {long}/{long}/{long} && : > {long}/{long}/{long}/f \
         && mkfifo pipe && rm /bin/wget && chown 5:6 file && touch -d '2001-02-03 04:05:06' old\n\
         STOPSIGNAL SIGINT\nUSER 12:34\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"echo $A $(id -u) $(pwd)\"]\n"
    );
    space.write("Dockerfile", dockerfile);
    let outputs = [
        "type=image",
        "type=oci,dest=oci.tar",
        "type=oci,dest=zstd.tar,compression=zstd,force-compression=true",
        "type=oci,dest=plain.tar,compression=uncompressed,force-compression=true",
        "type=docker,dest=docker.tar",
        "type=oci,tar=false,dest=layout",
        "type=tar,dest=root.tar",
        "type=local,dest=root",
    ];
    let outputs = outputs.iter().flat_map(|output| ["-o", output]);
    space.rbuild(["-q", "-t", NAME].into_iter().chain(outputs).chain(["."])).success();
    space
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An image config must say what `rbuild inspect` says.
#[track_caller]
fn check_config(config: &Value, inspected: &Value) {
    assert_eq!(config["config"], inspected["Config"]);
    assert_eq!(config["rootfs"]["diff_ids"], inspected["RootFS"]["Layers"]);
    assert_eq!(config["architecture"], inspected["Architecture"]);
    assert_eq!(config["os"], inspected["Os"]);
    assert_eq!(config["created"], inspected["Created"]);
    let history = config["history"].as_array().expect("history");
    let n_layers = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    assert_eq!(n_layers, config["rootfs"]["diff_ids"].as_array().expect("layers").len());
}

/// What `docker inspect` and `podman inspect` say about an image must be what `rbuild inspect` says, where both say
/// anything: they add fields of their own.
#[track_caller]
fn check_inspection(theirs: &Value, inspected: &Value) {
    let ours = inspected["Config"].as_object().expect("object");
    for (key, value) in ours.iter().filter(|(key, _)| *key != "ArgsEscaped") {
        assert_eq!(&theirs["Config"][key], value, "{key}");
    }
    assert_eq!(theirs["RootFS"]["Layers"], inspected["RootFS"]["Layers"]);
    assert_eq!(theirs["Architecture"], inspected["Architecture"]);
}

#[test]
fn skopeo_reads_every_form() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"));
    let space = judged();
    let inspected = space.inspect(NAME);
    for (form, media_type) in [
        ("oci-archive:oci.tar", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("oci-archive:zstd.tar", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("oci-archive:plain.tar", "application/vnd.oci.image.layer.v1.tar"),
        ("oci:layout:1", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("docker-archive:docker.tar", ""),
    ] {
        let skopeo = |args: &[&str]| {
            succeed(Command::new("skopeo").current_dir(space.path("")).arg("--insecure-policy").args(args))
        };
        check_config(&json(&skopeo(&["inspect", "--config", form])), &inspected);
        if !media_type.is_empty() {
            let manifest = json(&skopeo(&["inspect", "--raw", form]));
            let layers = manifest["layers"].as_array().expect("layers");
            assert!(layers.iter().all(|layer| layer["mediaType"] == media_type), "{form}: {manifest:#}");
            assert_eq!(manifest["config"]["digest"], inspected["Id"], "{form}");
        }
        // A copy reads every byte and compares every digest.
        let copy = format!("dir:copy-{}", form.replace([':', '/', '.'], "-"));
        skopeo(&["copy", "-q", form, &copy]);
    }
}

#[test]
fn umoci_unpacks_a_layout() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("umoci"));
    let space = judged();
    succeed(Command::new("umoci").current_dir(space.path("")).args(["unpack", "--image", "layout:1", "bundle"]));
    std::fs::create_dir(space.path("untarred")).expect("directory");
    untar(&space);
    check_same(&listing(&space.path("bundle/rootfs"), OWNERS), &listing(&space.path("untarred"), OWNERS));
    let runtime = json(&space.read("bundle/config.json"));
    assert_eq!(runtime["process"]["cwd"], "/w");
    assert_eq!(runtime["process"]["user"], serde_json::json!({ "uid": 12, "gid": 34 }));
}

#[test]
fn gnu_tar_reads_a_root() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("tar"));
    let space = judged();
    std::fs::create_dir(space.path("untarred")).expect("directory");
    untar(&space);
    // A directory is for people, and theirs.
    check_same(&listing(&space.path("untarred"), "theirs"), &listing(&space.path("root"), "theirs"));
    let names = succeed(Command::new("tar").current_dir(space.path("")).args(["-tf", "root.tar"]));
    let n_owned = names.lines().filter(|name| name.trim_start_matches("./") == "owned").count();
    assert_eq!(n_owned, 1, "{names}");
    assert!(!names.contains("bin/wget"), "a removed file is in the tar");
    assert!(!names.contains(".wh."), "a whiteout is in the tar");
    let layer = json(&succeed(Command::new("tar").current_dir(space.path("")).args(["-xOf", "oci.tar", "index.json"])));
    assert_eq!(layer["schemaVersion"], 2);
}

#[test]
fn podman_loads_and_runs() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("podman"));
    let space = judged();
    let inspected = space.inspect(NAME);
    let podman = |args: &[&str]| {
        let mut podman = Command::new("podman");
        podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]);
        podman.arg("--root").arg(space.path("podman/root")).arg("--runroot").arg(space.path("podman/run"));
        podman.current_dir(space.path("")).args(args).stdin(Stdio::null());
        Ran::of(podman.output().expect("podman starts"))
    };
    for archive in ["docker.tar", "oci.tar", "zstd.tar"] {
        podman(&["load", "-q", "-i", archive]).success();
        let theirs = json(&podman(&["image", "inspect", NAME]).success());
        check_inspection(&theirs[0], &inspected);
        assert_eq!(format!("sha256:{}", theirs[0]["Id"].as_str().expect("ID")), inspected["Id"], "{archive}");
    }
    // Where resources cannot be limited, no limits are raised either.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
    let run = [&["run", "--rm", "--network=host", "--cgroups=disabled"], &limits[..], &[NAME]].concat();
    let ran = podman(&run);
    if ran.code == 126 && ran.stderr.contains("OCI") {
        crate::harness::note(&format!("podman runs no containers on this machine: {}", ran.stderr.trim()));
    } else {
        assert_eq!(ran.success(), "b 12 /w\n");
    }
    podman(&["rmi", "-f", NAME]).success();
}

#[test]
fn docker_loads_and_runs() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("dockerd"), Need::Program("docker"));
    let space = judged();
    let inspected = space.inspect(NAME);
    let engine = match Engine::start(&space.path("docker")) {
        Ok(engine) => engine,
        Err(reason) => return crate::harness::note(&format!("skipped docker: {reason}")),
    };
    let docker = |args: &[&str]| {
        Ran::of(engine.client().args(args).current_dir(space.path("")).output().expect("docker starts"))
    };
    docker(&["load", "-q", "-i", "docker.tar"]).success();
    let theirs = json(&docker(&["image", "inspect", "judged:1"]).success());
    check_inspection(&theirs[0], &inspected);
    assert_eq!(theirs[0]["Id"], inspected["Id"]);
    let ran = docker(&["run", "--rm", "--network=host", "judged:1"]);
    if ran.code == 125 {
        crate::harness::note(&format!("docker runs no containers on this machine: {}", ran.stderr.trim()));
    } else {
        assert_eq!(ran.success(), "b 12 /w\n");
    }
    // What docker writes again is the same image.
    docker(&["save", "-o", "saved.tar", "judged:1"]).success();
    let manifest =
        json(&succeed(Command::new("tar").current_dir(space.path("")).args(["-xOf", "saved.tar", "manifest.json"])));
    let config = manifest[0]["Config"].as_str().expect("name").to_owned();
    let config = json(&succeed(Command::new("tar").current_dir(space.path("")).args(["-xOf", "saved.tar", &config])));
    check_config(&config, &inspected);
}

/// eStargz is for lazy readers; for all others it is gzip.
#[test]
fn everybody_reads_estargz() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"), Need::Program("podman"));
    let space = Space::with_busybox();
    space.write("many/a", "a\n".repeat(3_000_000));
    space.write("many/b", "b\n");
    space.write(
        "Dockerfile",
        "FROM busybox\nCOPY many /many\nRUN ln /many/b /hard && ln -s many/b /soft && rm /bin/wget\n",
    );
    let build = |dest: &str| {
        let output = format!("type=oci,dest={dest},tar=false,compression=estargz,force-compression=true");
        space.rbuild(["-q", "-t", NAME, "-o", &output, "."]).success()
    };
    let id = build("layout");
    assert_eq!(build("again"), id);
    // The index tells when it was written.
    let manifest_of =
        |layout: &str| json(&space.read(&format!("{layout}/index.json")))["manifests"][0]["digest"].clone();
    assert_eq!(manifest_of("again"), manifest_of("layout"));

    let manifest = json(&succeed(
        Command::new("skopeo").args(["inspect", "--raw"]).arg(format!("oci:{}", space.path("layout").display())),
    ));
    for layer in manifest["layers"].as_array().expect("layers") {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
        let toc = layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].as_str().expect("a digest");
        let hex = layer["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
        let script = "tail -c 51 \"$1\" | od -An -c | tr -d ' \\n' | grep -o '[0-9a-f]*STARGZ'";
        let place = succeed(
            Command::new("sh").args(["-c", script, "sh"]).arg(space.path(&format!("layout/blobs/sha256/{hex}"))),
        );
        let place = u64::from_str_radix(place.trim().trim_end_matches("STARGZ"), 16).expect("a place");
        let script = "tail -c +$(($2 + 1)) \"$1\" | head -c -51 | gzip -dc 2> /dev/null | tar xOf - stargz.index.json | sha256sum";
        let blob = space.path(&format!("layout/blobs/sha256/{hex}"));
        let sum = succeed(Command::new("sh").args(["-c", script, "sh"]).arg(blob).arg(place.to_string()));
        assert_eq!(format!("sha256:{}", &sum[..64]), toc);
    }

    // Converting reads all layers and compares their diff IDs.
    let convert = |from: String, to: String| {
        succeed(Command::new("skopeo").args(["copy", "-q", "--insecure-policy", &from, &to]))
    };
    let path = |name: &str| space.path(name).display().to_string();
    convert(format!("oci:{}", path("layout")), format!("docker-archive:{}:judged:1", path("converted.tar")));
    let listed = succeed(
        Command::new("sh").args(["-ec", "tar tf \"$1\" | grep -c layer", "sh"]).arg(space.path("converted.tar")),
    );
    assert!(listed.trim().parse::<u32>().is_ok_and(|n_layers| n_layers >= 3), "{listed}");

    // We read it as well.
    space.write("on/Dockerfile", "FROM base\nRUN cat /soft /hard && wc -c < /many/a && ls / && ! ls /bin/wget\n");
    let base = format!("base=oci-layout://{}", path("layout"));
    let ran = space.rbuild(["--progress=plain", "--build-context", &base, "on"]);
    let log = ran.stderr.clone();
    ran.success();
    assert!(log.contains("6000000") && !log.contains("stargz.index.json"), "{log}");
}

fn untar(space: &Space) {
    let mut tar = Command::new("tar");
    tar.current_dir(space.path("")).args(["-xpf", "root.tar", "-C", "untarred", "--numeric-owner"]);
    succeed(&mut tar);
}

/// The format of `find` for user and group.
const OWNERS: &str = "%U:%G";

/// Everything that a tree is made of, one line an entry, in order: type, mode, owner, links, size, time, target, content.
fn listing(root: &Path, owners: &str) -> String {
    let script = "cd \"$1\" && find . -mindepth 1 -type d -printf \"%p %y %m $2\\n\" -o -mindepth 1 \
                  -printf \"%p %y %m $2 %n %s %Ts %l\\n\" | sort && find . -type f -exec sha256sum {} + | sort -k 2";
    succeed(Command::new("sh").args(["-c", script, "sh"]).arg(root).arg(owners))
}

#[track_caller]
fn check_same(left: &str, right: &str) {
    let only_in = |one: &str, other: &str| {
        let known: std::collections::HashSet<&str> = other.lines().collect();
        one.lines().filter(|line| !known.contains(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(only_in(left, right), only_in(right, left));
}
