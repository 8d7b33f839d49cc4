//! Images of several platforms and with attestations: shown, copied, combined, and left as they are.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Need, Ran, Registry, Space, succeed};
use crate::need;

macro_rules! need_registry {
    () => {
        need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    };
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn raw(reference: &str) -> String {
    let mut skopeo = Command::new("skopeo");
    succeed(skopeo.args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{reference}")))
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Writes a blob into a layout; returns its descriptor.
fn put(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("blob");
    json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}

fn put_json(layout: &Path, media_type: &str, value: &Value) -> Value {
    put(layout, media_type, &serde_json::to_vec(value).expect("JSON"))
}

fn blob(layout: &Path, digest: &Value) -> Value {
    let hex = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    json_of(&std::fs::read_to_string(layout.join("blobs/sha256").join(hex)).expect("blob"))
}

/// A layout `attested` with an image of two platforms, each with provenance, as BuildKit writes it: in its older form for
/// the first, as an artifact for the second. Returns the digest of the index.
fn attested(space: &Space, platforms: &str) -> String {
    space.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\nENV ARCH=$TARGETARCH\n");
    let output = "type=oci,tar=false,dest=attested";
    space.rbuild(["-q", "--platform", platforms, "-t", "attested:1", "-o", output, "."]).success();
    let layout = space.path("attested");
    let outer = json_of(&space.read("attested/index.json"));
    let top = &outer["manifests"][0];
    let mut images = match top["mediaType"].as_str() {
        Some(OCI_INDEX) => blob(&layout, &top["digest"])["manifests"].as_array().expect("images").clone(),
        _ => vec![json!({"mediaType": OCI_MANIFEST, "digest": top["digest"], "size": top["size"],
            "platform": {"os": "linux", "architecture": "amd64"}})],
    };
    let mut about = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let predicate = json!({"buildDefinition": {"buildType": "test"}, "number": number});
        let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
            "subject": [], "predicate": predicate});
        let mut layer = put_json(&layout, "application/vnd.in-toto+json", &statement);
        layer["annotations"] = json!({"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"});
        let manifest = if number == 0 {
            let config = json!({"architecture": "unknown", "os": "unknown", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
            let config = put_json(&layout, "application/vnd.oci.image.config.v1+json", &config);
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]})
        } else {
            let config = put(&layout, "application/vnd.oci.empty.v1+json", b"{}");
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
                "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
                "subject": {"mediaType": OCI_MANIFEST, "digest": image["digest"], "size": image["size"]}})
        };
        let mut entry = put_json(&layout, OCI_MANIFEST, &manifest);
        entry["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image["digest"]});
        about.push(entry);
    }
    images.extend(about);
    let index = put_json(&layout, OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images}));
    let digest = index["digest"].as_str().expect("digest").to_owned();
    let mut entry = index;
    entry["annotations"] = json!({"io.containerd.image.name": "docker.io/library/attested:1"});
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
    space.write("attested/index.json", serde_json::to_vec(&outer).expect("JSON"));
    digest
}

#[track_caller]
fn digest_of(ran: Ran) -> String {
    let text = ran.success();
    text.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest").to_owned()
}

#[test]
fn attestations_travel_with_their_images() {
    need_registry!();
    let space = Space::with_busybox();
    let digest = attested(&space, "linux/amd64,linux/arm64");
    assert_eq!(space.rbuild(["load", "-i", "attested"]).success(), "Loaded image: attested:1\n");
    let inspected = space.inspect("attested:1");
    assert_eq!(inspected["Id"], digest.as_str());
    let kinds: Vec<&str> =
        inspected["Manifests"].as_array().expect("list").iter().filter_map(|it| it["Kind"].as_str()).collect();
    assert_eq!(kinds, ["image", "image", "attestation", "attestation"]);
    let platforms = space.rbuild(["images", "--format", "{{json .Platforms}}", "attested"]).success();
    assert_eq!(platforms, "[\"linux/amd64\",\"linux/arm64\"]\n");
    let unknown = space.rbuild(["inspect", "--platform=unknown/unknown", "attested:1"]);
    assert!(unknown.stderr.contains("it has linux/amd64, linux/arm64"), "{}", unknown.stderr);

    let registry = Registry::start(&space);
    let name = format!("{}/team/attested:1", registry.host());
    space.rbuild(["tag", "attested:1", &name]).success();
    assert_eq!(digest_of(space.rbuild(["push", &name])), digest);

    // All of it comes back, goes through an archive, and leaves again as it was.
    let other = Space::new();
    assert_eq!(digest_of(other.rbuild(["pull", "--all-platforms", &name])), digest);
    other.rbuild(["save", "-o", "attested.tar", &name]).success();
    let third = Space::new();
    third.rbuild(["load", "-i", other.path("attested.tar").to_str().expect("UTF-8")]).success();
    let second = Registry::start(&third);
    let copy = format!("{}/copy:1", second.host());
    third.rbuild(["tag", &name, &copy]).success();
    assert_eq!(digest_of(third.rbuild(["push", &copy])), digest);
    assert_eq!(raw(&copy), raw(&name));

    // One platform is one plain manifest, and what is built on it chooses an image.
    let one = Space::new();
    one.rbuild(["pull", "--platform=linux/arm64", &name]).success();
    assert_eq!(one.inspect(&name)["Architecture"], "arm64");
    one.build(
        &format!("FROM --platform=linux/arm64 {name}\nLABEL x=y\n"),
        &["-t", "derived", "--platform=linux/arm64"],
    );
    assert_eq!(one.inspect("derived")["Config"]["Env"], one.inspect(&name)["Config"]["Env"]);

    // From registry to registry, and to another repository of the same one.
    let far = format!("{}/far:1", second.host());
    let near = format!("{}/near:1", registry.host());
    let empty = Space::new();
    empty.rbuild(["imagetools", "create", "-t", &far, "-t", &near, &name]).success();
    assert_eq!((raw(&far), raw(&near)), (raw(&name), raw(&name)));
}

#[test]
fn a_lone_image_with_attestations_is_pulled_with_them() {
    need_registry!();
    let space = Space::with_busybox();
    let digest = attested(&space, "linux/amd64");
    space.rbuild(["load", "-i", "attested"]).success();
    let registry = Registry::start(&space);
    let name = format!("{}/lone:1", registry.host());
    space.rbuild(["tag", "attested:1", &name]).success();
    space.rbuild(["push", &name]).success();
    let other = Space::new();
    assert_eq!(digest_of(other.rbuild(["pull", &name])), digest);
    assert_eq!(other.inspect(&name)["Descriptor"]["digest"], digest.as_str());
    let copy = format!("{}/lone:2", registry.host());
    other.rbuild(["tag", &name, &copy]).success();
    assert_eq!(digest_of(other.rbuild(["push", &copy])), digest);
    // Whoever names the platform gets its manifest alone.
    other.rbuild(["pull", "--platform=linux/amd64", &name]).success();
    assert_eq!(other.inspect(&name)["Descriptor"]["mediaType"], OCI_MANIFEST);
}

#[test]
fn imagetools_show_what_is_in_a_registry() {
    need_registry!();
    let space = Space::with_busybox();
    let digest = attested(&space, "linux/amd64,linux/arm64");
    space.rbuild(["load", "-i", "attested"]).success();
    let registry = Registry::start(&space);
    let name = format!("{}/app:1", registry.host());
    space.rbuild(["tag", "attested:1", &name]).success();
    space.rbuild(["push", &name]).success();
    let show = |args: &[&str]| Space::new().rbuild(["imagetools", "inspect"].iter().chain(args)).success();

    let text = show(&[&name]);
    let head = format!(
        "Name:      {name}\nMediaType: {OCI_INDEX}\nDigest:    {digest}\n\nManifests:\n  Name:      {}@sha256:",
        name.trim_end_matches(":1")
    );
    assert!(text.starts_with(&head), "{text}");
    assert!(
        text.contains("  Platform:  linux/arm64\n")
            && text.contains("    vnd.docker.reference.type: attestation-manifest\n"),
        "{text}"
    );
    assert_eq!(show(&["--raw", &name]), raw(&name));
    assert_eq!(show(&["--format", "{{.Manifest.Digest}} {{.Name}}", &name]), format!("{digest} {name}\n"));
    assert_eq!(show(&["--format", "{{(index .Image \"linux/arm64\").architecture}}", &name]), "arm64\n");
    assert_eq!(show(&["--format", "{{json (index .Provenance \"linux/amd64\").SLSA.number}}", &name]), "0\n");
    assert_eq!(
        show(&["--format", "{{range .Manifest.Manifests}}{{.platform.architecture}} {{end}}", &name]),
        "amd64 arm64 unknown unknown \n"
    );

    // The same document here and there.
    let there = Space::new().rbuild(["manifest", "inspect", &name]).success();
    assert_eq!(there.trim_end(), raw(&name).trim_end());
    assert_eq!(space.rbuild(["manifest", "inspect", "attested:1"]).success(), there);
    let verbose = json_of(&Space::new().rbuild(["manifest", "inspect", "-v", &name]).success());
    assert_eq!(verbose.as_array().map(Vec::len), Some(4));
    assert_eq!(verbose[1]["Descriptor"]["platform"]["architecture"], "arm64");

    for (args, expected) in [
        (&["imagetools", "inspect", "Not A Name"][..], "invalid image name `Not A Name`"),
        (&["imagetools", "inspect", &format!("{}/none:1", registry.host())], "not found"),
        (&["imagetools", "create", &name], "the result has no name"),
        (&["imagetools", "create", "-t", &name], "no sources specified"),
        (&["imagetools", "create", "--dry-run", "sha256:0000"], "invalid source `sha256:0000`"),
        (
            &["imagetools", "create", "--dry-run", "-p", "linux/s390x", &name],
            "there is no image for linux/s390x: there are linux/amd64, linux/arm64",
        ),
        (&["imagetools", "create", "--dry-run", "--annotation", "manifest:a=b", &name], "would make other images"),
    ] {
        let ran = space.rbuild(args);
        assert!(ran.code != 0 && ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn indexes_are_created_of_images_and_digests() {
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let repository = format!("{}/ci/app", registry.host());
    let mut digests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        // As separate CI jobs do it: each pushes by digest, and leaves a metadata file.
        let job = Space::new();
        job.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n");
        let output = format!("type=image,name={repository},push=true,push-by-digest=true");
        let platform = format!("--platform=linux/{architecture}");
        job.rbuild(["-q", &platform, "-o", &output, "--metadata-file", "m.json", "."]).success();
        let metadata = job.read("m.json");
        space.write(&format!("{architecture}.json"), &metadata);
        digests.push(json_of(&metadata)["containerimage.digest"].as_str().expect("digest").to_owned());
    }
    let tag = format!("{repository}:1");
    let platforms = |reference: &str| {
        let index = json_of(&raw(reference));
        let list = index["manifests"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|it| it["platform"]["architecture"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let dry = space.rbuild(["imagetools", "create", "--dry-run", "-t", &tag, &digests[0], &digests[1]]).success();
    space
        .rbuild(["imagetools", "create", "-t", &tag, "--metadata-file", "out.json", &digests[0], &digests[1]])
        .success();
    assert_eq!(raw(&tag), dry);
    assert_eq!(platforms(&tag), ["amd64", "arm64"]);
    let metadata = json_of(&space.read("out.json"));
    assert_eq!(
        (&metadata["image.name"], &metadata["containerimage.descriptor"]["mediaType"]),
        (&tag.as_str().into(), &OCI_INDEX.into())
    );

    // By files, one after the other, with annotations, one platform of it, and a lone manifest.
    let two = format!("{repository}:2");
    space.rbuild(["imagetools", "create", "-t", &two, "-f", "amd64.json"]).success();
    assert_eq!(platforms(&two), ["amd64"]);
    let annotations = ["--annotation", "index:org.example.a=b", "--annotation", "manifest-descriptor[linux/arm64]:c=d"];
    space
        .rbuild(["imagetools", "create", "--append", "-t", &two, "-f", "arm64.json"].iter().chain(&annotations))
        .success();
    let index = json_of(&raw(&two));
    assert_eq!(platforms(&two), ["amd64", "arm64"]);
    assert_eq!(
        (&index["annotations"]["org.example.a"], &index["manifests"][1]["annotations"]["c"]),
        (&"b".into(), &"d".into())
    );
    let three = format!("{repository}:3");
    space.rbuild(["imagetools", "create", "-p", "linux/arm64", "-t", &three, &tag]).success();
    assert_eq!(platforms(&three), ["arm64"]);
    let plain = format!("{}/elsewhere:1", registry.host());
    let source = format!("{repository}@{}", digests[0]);
    space.rbuild(["imagetools", "create", "--prefer-index=false", "-t", &plain, &source]).success();
    assert_eq!(json_of(&raw(&plain))["mediaType"], OCI_MANIFEST);
    let descriptor = json!({"mediaType": OCI_MANIFEST, "digest": digests[1], "size": 1}).to_string();
    let by_json = space.rbuild(["imagetools", "create", "--dry-run", "-t", &tag, &descriptor]).success();
    assert_eq!(json_of(&by_json)["manifests"][0]["platform"]["architecture"], "arm64");

    // `merge` does the same in one word, and wants one image a platform.
    let merged = format!("{repository}:merged");
    let digest = space.rbuild(["merge", "--push", "-q", "-t", &merged, &digests[0], &digests[1]]).success();
    assert_eq!(raw(&merged), dry);
    assert!(digest.starts_with("sha256:"));
}

#[test]
fn merge_combines_what_is_here_and_elsewhere() {
    need_registry!();
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n";
    let build = |architecture: &str, args: &[&str]| {
        let platform = format!("--platform=linux/{architecture}");
        space.build(dockerfile, &[&[platform.as_str()], args].concat());
    };
    let remote = format!("{}/part:s390x", registry.host());
    build("amd64", &["-t", "part:amd64"]);
    build("arm64", &["-o", "type=oci,dest=arm64.tar"]);
    build("ppc64le", &["-o", "type=oci,tar=false,dest=ppc"]);
    build("s390x", &["--push", "-t", &remote]);
    space.rbuild(["merge", "-q", "-t", "all:1", "part:amd64", "arm64.tar", "ppc", &remote]).success();
    let platforms = space.rbuild(["images", "--format", "{{join .Platforms \" \"}}", "all"]).success();
    assert_eq!(platforms, "linux/amd64 linux/arm64 linux/ppc64le linux/s390x\n");
    assert_eq!(space.rbuild(["cp", "--platform=linux/s390x", "all:1:/s390x", "-"]).code, 0);

    let pushed = format!("{}/all:1", registry.host());
    space.rbuild(["merge", "--push", "-q", "-t", &pushed, "part:amd64", "arm64.tar", "ppc", &remote]).success();
    let list = json_of(&raw(&pushed));
    assert_eq!(list["manifests"].as_array().map(Vec::len), Some(4));
    for architecture in ["amd64", "arm64", "ppc64le", "s390x"] {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["inspect", "--tls-verify=false", "--override-arch", architecture, &format!("docker://{pushed}")]);
        assert_eq!(json_of(&succeed(&mut skopeo))["Architecture"], architecture);
    }
    let twice = space.rbuild(["merge", "-t", "twice", "all:1", "part:amd64", "arm64.tar"]);
    // The same image again is no second one.
    assert_eq!(twice.code, 0, "{}", twice.stderr);
    space.write("other/Dockerfile", "FROM scratch\nLABEL other=1\n");
    space.rbuild(["-q", "-t", "part:other", "other"]).success();
    let clash = space.rbuild(["merge", "-t", "clash", "part:amd64", "part:other"]);
    assert_eq!(clash.code, 1);
    assert!(
        clash.stderr.contains("there are two images for linux/amd64: of part:amd64 and of part:other"),
        "{}",
        clash.stderr
    );
}

#[test]
fn an_index_inside_of_an_index_is_refused_and_leaves_nothing() {
    need_registry!();
    let space = Space::with_busybox();
    attested(&space, "linux/amd64,linux/arm64");
    let layout = space.path("attested");
    let inner = json_of(&space.read("attested/index.json"))["manifests"][0].clone();
    let mut inner = json!({"mediaType": inner["mediaType"], "digest": inner["digest"], "size": inner["size"]});
    inner["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let outer =
        put_json(&layout, OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}));
    let registry = Registry::start(&space);
    let name = format!("{}/nested:1", registry.host());
    // The inner one has to be there before the outer one is.
    space.rbuild(["load", "-i", "attested"]).success();
    space.rbuild(["tag", "attested:1", &format!("{}/nested:inner", registry.host())]).success();
    space.rbuild(["push", &format!("{}/nested:inner", registry.host())]).success();
    let hex = outer["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("digest").to_owned();
    let url = format!("http://{}/v2/nested/manifests/1", registry.host());
    let body = format!("@{}", layout.join("blobs/sha256").join(hex).display());
    succeed(Command::new("curl").args([
        "-sSf",
        "-X",
        "PUT",
        "-H",
        &format!("Content-Type: {OCI_INDEX}"),
        "--data-binary",
        &body,
        &url,
    ]));

    let listing = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [outer]});
    space.write("attested/index.json", serde_json::to_vec(&listing).expect("JSON"));
    let path = space.path("attested").to_str().expect("UTF-8").to_owned();
    let fresh = Space::new();
    for args in [
        &["load", "-i", &path][..],
        &["pull", &name],
        &["pull", "--all-platforms", &name],
        &["imagetools", "create", "-p", "linux/amd64", "--dry-run", &name],
        &["imagetools", "create", "-t", &format!("{}/copy:1", registry.host()), &name],
        &["merge", "-t", "merged", &name],
        &["diff", &name, &name],
    ] {
        let ran = fresh.rbuild(args);
        assert_ne!(ran.code, 0, "{args:?}");
        assert!(ran.stderr.contains("index"), "{args:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    }
    assert_eq!(fresh.rbuild(["images", "-aq"]).success(), "");
    let copied = fresh.rbuild(["imagetools", "inspect", &format!("{}/copy:1", registry.host())]);
    assert!(copied.stderr.contains("not found"), "{}", copied.stderr);
}

#[test]
fn attestations_are_declined_and_not_made_yet() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\nLABEL a=b\n");
    let none = ["--provenance=false", "--sbom", "false", "--attest", "type=provenance,disabled=true", "."];
    space.rbuild(["-q", "-t", "app"].iter().chain(&none)).success();
    assert_eq!(space.inspect("app")["Descriptor"]["mediaType"], OCI_MANIFEST);
    for flags in [&["--provenance=true"][..], &["--sbom=true"], &["--attest=type=sbom"], &["--provenance", "mode=max"]]
    {
        let ran = space.rbuild(flags.iter().chain(&["."]));
        assert_eq!(ran.code, 2, "{flags:?}");
        assert!(ran.stderr.contains("attestations are not made yet"), "{}", ran.stderr);
    }
}
