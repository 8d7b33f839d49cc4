//! Images on their way to a registry and back: push, pull, login and logout.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Need, REGISTRY_USER, Ran, Registry, Space, succeed};
use crate::need;

macro_rules! need_registry {
    () => {
        need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    };
}

const DOCKERFILE: &str = "FROM busybox\nCOPY content /content\nRUN echo made > /made\n";

fn image(space: &Space, names: &[&str]) {
    space.write("content", "of the context\n");
    let args: Vec<&str> = names.iter().flat_map(|name| ["-t", *name]).collect();
    space.build(DOCKERFILE, &args);
}

/// The digest in the line that a push ends with: `1.0: digest: sha256:… size: 857`.
#[track_caller]
fn digest(ran: &Ran) -> String {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout.split_whitespace().nth(2).expect("a digest").to_owned()
}

/// What skopeo says of an image in a registry.
fn skopeo(reference: &str) -> Value {
    inspect(&[], reference)
}

/// The media type of a layer.
fn layer_type(reference: &str, number: usize) -> String {
    inspect(&["--raw"], reference)["layers"][number]["mediaType"].as_str().expect("a media type").to_owned()
}

fn inspect(flags: &[&str], reference: &str) -> Value {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--tls-verify=false"]).args(flags).arg(format!("docker://{reference}"));
    serde_json::from_str(&succeed(&mut skopeo)).expect("JSON")
}

#[test]
fn what_is_pushed_is_read_by_others_and_sent_once() {
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let [one, two, other] =
        ["team/app:1", "team/app:2", "other/app:1"].map(|name| format!("{}/{name}", registry.host()));
    image(&space, &[&one, &two]);
    let first = space.rbuild(["push", &one]);
    let pushed = digest(&first);
    assert_eq!(skopeo(&one)["Digest"], pushed.as_str());
    assert_eq!(layer_type(&one, 0), "application/vnd.oci.image.layer.v1.tar+gzip");

    // All tags; nothing is sent again.
    let again = space.rbuild(["push", "--all-tags", one.rsplit_once(':').expect("a tag").0]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(again.stdout.matches(&pushed).count(), 2, "{}", again.stdout);
    assert_eq!(again.stderr.matches(" exists done").count(), 8, "{}", again.stderr);
    assert_eq!(skopeo(&two)["Digest"], pushed.as_str());

    // Another repository of the registry takes the layers over.
    space.rbuild(["tag", &one, &other]).success();
    let mounted = space.rbuild(["push", &other]);
    assert_eq!(digest(&mounted), pushed);
    assert_eq!(mounted.stderr.matches("mounted from team/app").count(), 3, "{}", mounted.stderr);

    // Another compression is another manifest of the same image.
    let zstd = digest(&space.rbuild(["push", "--compression=zstd", &other]));
    assert_ne!(zstd, pushed);
    assert_eq!(layer_type(&other, 2), "application/vnd.oci.image.layer.v1.tar+zstd");
    let archive = space.path("back");
    let to = format!("oci:{}:x", archive.display());
    succeed(Command::new("skopeo").args([
        "--insecure-policy",
        "copy",
        "-q",
        "--src-tls-verify=false",
        &format!("docker://{other}"),
        &to,
    ]));
    assert_eq!(space.rbuild(["push", "-q", &one]).success(), format!("{one}\n"));
}

#[test]
fn what_is_pulled_runs_and_is_pushed_on_as_it_is() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    let name = format!("{}/app:1", registry.host());
    image(&maker, &[&name]);
    let pushed = digest(&maker.rbuild(["push", &name]));

    let space = Space::new();
    let pulled = space.rbuild(["pull", &name]);
    assert_eq!(digest(&pulled), pushed);
    assert_eq!(space.run_in(&name, &["cat", "/content", "/made"]), "of the context\nmade\n");
    assert_eq!(space.inspect(&name)["Id"], maker.inspect(&name)["Id"]);
    // To another registry: the layers are not here, but can be had where they came from.
    let elsewhere = Space::new();
    let second = Registry::start(&elsewhere);
    let copy = format!("{}/copy:1", second.host());
    space.rbuild(["tag", &name, &copy]).success();
    assert_eq!(digest(&space.rbuild(["push", &copy])), pushed);
    assert_eq!(skopeo(&copy)["Digest"], pushed.as_str());

    // What is built on it goes on top, and its layers stay as they are.
    space.build(&format!("FROM {copy}\nRUN echo more > /more\n"), &["-t", &copy]);
    digest(&space.rbuild(["push", &copy]));
    let (below, above) = (skopeo(&name)["Layers"].clone(), skopeo(&copy)["Layers"].clone());
    let (below, above) = (below.as_array().expect("layers"), above.as_array().expect("layers"));
    assert_eq!(above[..below.len()], below[..]);
    assert_eq!(above.len(), below.len() + 1);

    let missing = space.rbuild(["pull", &format!("{}/none:1", registry.host())]);
    assert_eq!(missing.code, 1, "{}", missing.stderr);
    let missing = space.rbuild(["push", "none:1"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("no such image: none:1"), "{}", missing.stderr);
}

#[test]
fn builds_are_pushed_straight_to_registries() {
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let name = format!("{}/team/app:1", registry.host());
    space.write("content", "of the context\n");
    let ran = space.rbuild(["--push", "-t", &name, "--metadata-file=facts", "--iidfile=id", "."]);
    assert_eq!(ran.code, 1, "there is no Dockerfile: {}", ran.stderr);
    space.write("Dockerfile", DOCKERFILE);
    let ran = space.rbuild(["--push", "-t", &name, "--metadata-file=facts", "--iidfile=id", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let facts: Value = serde_json::from_str(&space.read("facts")).expect("JSON");
    assert_eq!(facts["containerimage.digest"], skopeo(&name)["Digest"]);
    assert!(ran.stderr.contains(&format!("pushing manifest for {name}@sha256:")), "{}", ran.stderr);
    assert_eq!(space.rbuild(["images", "-q", &name]).success(), "", "it is not in the local store");
    let again = space.rbuild(["--push", "-t", &name, "."]);
    assert_eq!(again.stderr.matches(" exists done").count(), 4, "nothing is sent twice: {}", again.stderr);

    // Into the local store and to the registry, with one digest.
    let both = format!("{}/team/both:1", registry.host());
    space.rbuild(["-o", &format!("type=image,name={both},push=true,compression=zstd"), "."]).success();
    let local = space.rbuild(["images", "--digests", "--format=json", &both]).success();
    let local: Value = serde_json::from_str(&local).expect("JSON");
    assert_eq!(local["Digest"], skopeo(&both)["Digest"]);
    assert_eq!(layer_type(&both, 1), "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(space.run_in(&both, &["cat", "/made"]), "made\n");

    // By digest: nothing is tagged.
    let repository = format!("{}/team/untagged", registry.host());
    let output = format!("type=image,name={repository},push=true,push-by-digest=true,name-canonical=true");
    space.rbuild(["-o", &output, "--metadata-file=facts", "."]).success();
    let facts: Value = serde_json::from_str(&space.read("facts")).expect("JSON");
    let digest = facts["containerimage.digest"].as_str().expect("digest");
    assert_eq!(inspect(&["--raw"], &format!("{repository}@{digest}"))["schemaVersion"], 2);
    let tags =
        Command::new("skopeo").args(["list-tags", "--tls-verify=false", &format!("docker://{repository}")]).output();
    assert!(!tags.expect("skopeo starts").status.success(), "nothing is tagged");

    // As well when the flag says that it is pushed.
    let output = format!("type=image,name={repository},push-by-digest=true");
    space.rbuild(["--push", "-o", &output, "."]).success();
    let tags =
        Command::new("skopeo").args(["list-tags", "--tls-verify=false", &format!("docker://{repository}")]).output();
    assert!(!tags.expect("skopeo starts").status.success(), "nothing is tagged");

    for (args, message) in [
        (vec!["-o", "type=image,name=a,push-by-digest=true", "."], "push-by-digest means nothing without push=true"),
        (vec!["--push", "."], "tag is needed when pushing to registry"),
        (vec!["-o", "type=image,name=a:1,push=true,push-by-digest=true", "."], "can't push tagged ref a:1 by digest"),
        (vec!["-o", "type=registry,name=a:b:c", "."], "invalid tag \"a:b:c\""),
    ] {
        let ran = space.rbuild(&args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn several_platforms_are_pushed_in_one_go() {
    need_registry!();
    let space = Space::new();
    let registry = Registry::start(&space);
    let name = format!("{}/multi:1", registry.host());
    space.write("content", "shared\n");
    space.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY content /content\nCOPY <<E /arch\n$TARGETARCH\nE\n");
    let ran = space.rbuild(["--platform=linux/amd64,linux/arm64", "--push", "-t", &name, "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let index = inspect(&["--raw"], &name);
    let listed: Vec<_> = index["manifests"].as_array().expect("manifests").iter().collect();
    assert_eq!(listed.len(), 2, "{index}");
    for (entry, architecture) in listed.iter().zip(["amd64", "arm64"]) {
        assert_eq!(entry["platform"]["architecture"], architecture);
        let pulled = inspect(&["--override-arch", architecture], &name);
        assert_eq!(pulled["Architecture"], architecture);
    }
    // Stored first, pushed later: the same images.
    let later = format!("{}/later:1", registry.host());
    space.rbuild(["--platform=linux/amd64,linux/arm64", "-t", &later, "."]).success();
    let pushed = digest(&space.rbuild(["push", &later]));
    assert_eq!(inspect(&["--raw"], &later), index);
    assert_eq!(skopeo(&later)["Digest"], pushed.as_str());
}

#[test]
fn logging_in_and_out() {
    need!(Need::Program("htpasswd"));
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::with_password(&space);
    let name = format!("{}/private:1", registry.host());
    image(&space, &[&name]);
    let run = |args: &[&str], input: &str| {
        space.write("input", input);
        let mut command = space.command(args);
        command.env("DOCKER_CONFIG", space.path("config")).env("HOME", space.path("")).env_remove("XDG_RUNTIME_DIR");
        let input = std::fs::File::open(space.path("input")).expect("input");
        Ran::of(command.stdin(Stdio::from(input)).output().expect("rbuild starts"))
    };
    let refused = run(&["push", &name], "");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("help: log in: rbuild login {}", registry.host())), "{}", refused.stderr);

    // Before anything is made.
    let refused = run(&["--push", "-t", &name, "--no-cache", "."], "");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("help: log in: rbuild login") && !refused.stderr.contains("RUN"),
        "{}",
        refused.stderr
    );

    let (user, password) = REGISTRY_USER;
    let host = registry.host();
    let login = |password: &str| run(&["login", "-u", user, "--password-stdin", &host], password);
    let wrong = login("swordfish");
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("nothing was stored"), "{}", wrong.stderr);
    assert!(!space.path("config").exists());
    assert!(!wrong.stderr.contains("swordfish"));
    assert_eq!(login(&format!("{password}\n")).success(), "Login Succeeded\n");
    digest(&run(&["push", &name], ""));
    assert_eq!(run(&["logout", &host], "").success(), format!("Removing login credentials for {host}\n"));
    assert_eq!(run(&["push", &name], "").code, 3);
    assert_eq!(run(&["logout", &host], "").success(), format!("Not logged in to {host}\n"));
}
