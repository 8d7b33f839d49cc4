//! Several platforms in one build. No step runs programs of another platform: what is foreign is only put together.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Need, Space, succeed};
use crate::need;

/// This machine's architecture, and another.
const ARCHITECTURES: [&str; 2] = if cfg!(target_arch = "x86_64") { ["amd64", "arm64"] } else { ["arm64", "amd64"] };

/// Both platforms, as a flag takes them.
fn both() -> String {
    ARCHITECTURES.map(|architecture| format!("linux/{architecture}")).join(",")
}

/// A stage that is the same for all platforms and counts how often it runs, and images that differ.
const DOCKERFILE: &str = "FROM --platform=$BUILDPLATFORM busybox AS native\n\
                          RUN --mount=type=cache,target=/c echo x >> /c/count; cp /c/count /count\n\
                          FROM scratch\n\
                          ARG TARGETARCH\n\
                          COPY src/ /src/\n\
                          COPY --from=native /count /count-$TARGETARCH\n\
                          LABEL arch=$TARGETARCH\n";

/// A space in which [`DOCKERFILE`] can be built.
fn space() -> Space {
    let space = Space::with_busybox();
    space.write("src/a", "a\n");
    space.write("Dockerfile", DOCKERFILE);
    space
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn skopeo(space: &Space, args: &[&str]) -> String {
    succeed(Command::new("skopeo").current_dir(space.path("")).arg("--insecure-policy").args(args))
}

#[test]
fn one_build_gives_an_index_and_what_is_equal_is_done_once() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"));
    let space = space();
    let layout = "type=oci,tar=false,dest=layout,annotation-index.org.example=x";
    let for_one = format!("manifest-descriptor[linux/{}]:one=1", ARCHITECTURES[1]);
    let outputs =
        ["-o", "type=oci,dest=app.tar", "-o", layout, "-o", "files", "-t", "app:1.0", "--annotation", &for_one];
    let ran = space.rbuild(["--progress=plain", "--platform", &both(), "."].iter().chain(&outputs));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let [own, other] = ARCHITECTURES;
    for architecture in ARCHITECTURES {
        assert_eq!(space.read(&format!("files/linux_{architecture}/count-{architecture}")), "x\n", "it ran once");
        let step = format!("[linux/{architecture} stage-1 2/2] COPY --from=native /count /count-{architecture}");
        assert_eq!(ran.stderr.matches(&step).count(), 1, "{}", ran.stderr);
    }
    let native = format!("[linux/{own} native 2/2] RUN ");
    assert_eq!(ran.stderr.matches(&native).count(), 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains(&format!("->{other}")), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("exporting manifest list ").count(), 2, "{}", ran.stderr);

    for form in ["oci-archive:app.tar", "oci:layout:1.0"] {
        let index = json(&skopeo(&space, &["inspect", "--raw", form]));
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json", "{form}");
        assert_eq!(index["annotations"]["org.example"] == "x", form.starts_with("oci:"), "{form}");
        let listed = index["manifests"].as_array().expect("manifests").iter();
        let listed: Vec<_> =
            listed.map(|entry| (&entry["platform"]["os"], &entry["platform"]["architecture"])).collect();
        assert_eq!(listed, [(&"linux".into(), &own.into()), (&"linux".into(), &other.into())], "{form}");
        let annotated = [0, 1].map(|number: usize| index["manifests"][number]["annotations"]["one"] == "1");
        assert_eq!(annotated, [false, true], "{form}");
        // A copy reads every byte and compares every digest.
        let name = form.replace([':', '.'], "-");
        skopeo(&space, &["copy", "-q", "--all", form, &format!("dir:all-{name}")]);
        for architecture in ARCHITECTURES {
            let copy = format!("dir:{name}-{architecture}");
            skopeo(&space, &["copy", "-q", "--override-arch", architecture, form, &copy]);
            let config = json(&skopeo(&space, &["inspect", "--config", &copy]));
            assert_eq!(
                (&config["architecture"], &config["config"]["Labels"]["arch"]),
                (&architecture.into(), &architecture.into())
            );
        }
    }
    // Everything is there.
    let again = space.rbuild(["--progress=plain", "--platform", &both(), "."]);
    assert_eq!((again.code, again.stderr.contains("MISS: ")), (0, false), "{}", again.stderr);
}

#[test]
fn an_index_of_the_store_is_an_image_like_others() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let [own, other] = ARCHITECTURES;
    // The base is for this machine alone: what is built on it for another says so, and runs here all the same.
    space.write("Dockerfile", "FROM busybox\nARG TARGETARCH\nCOPY <<END /arch\n$TARGETARCH\nEND\n");
    let ran = space.rbuild(["--progress=plain", "--platform", &both(), "-t", "app:1.0", "."]);
    assert!(ran.stderr.contains(" 1 warning found"), "{}", ran.stderr);
    let mismatch = format!("pulled with platform \"linux/{own}\", expected \"linux/{other}\" for current build");
    assert!(ran.stderr.contains(&mismatch), "{}", ran.stderr);
    ran.success();

    let id = space.inspect("app:1.0")["Id"].as_str().expect("ID").to_owned();
    let line = space.rbuild(["images", "--no-trunc", "--format=json", "app"]).success();
    let platforms: Vec<String> = both().split(',').map(str::to_owned).collect();
    assert_eq!((json(&line)["ID"].as_str(), &json(&line)["Platforms"]), (Some(id.as_str()), &platforms.into()));
    space.rbuild(["tag", &id, "same"]).success();
    assert_eq!(space.rbuild(["images", "-q", "--no-trunc", "same"]).success().trim(), id);

    assert_eq!(space.run_in("app:1.0", &["cat", "/arch"]), format!("{own}\n"));
    for architecture in ARCHITECTURES {
        let platform = format!("--platform={architecture}");
        let ran = space.rbuild(["run", "--rm", &platform, "app:1.0", "cat", "/arch"]);
        assert_eq!(ran.success(), format!("{architecture}\n"));
        let inspected = &json(&space.rbuild(["inspect", &platform, "app:1.0"]).success())[0];
        assert_eq!(inspected["Architecture"], architecture);
        assert_ne!(inspected["Id"], id.as_str());
        let history = space.rbuild(["history", &platform, "app:1.0"]).success();
        assert!(history.contains(&format!("ARG TARGETARCH={architecture}")), "{history}");
    }
    let ran = space.rbuild(["run", "--platform=s390x", "app:1.0"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("`app:1.0` has no image for linux/s390x: it has "), "{}", ran.stderr);

    space.rbuild(["prune", "--all", "--force"]).success();
    let layers = |image: &str| space.inspect(image)["RootFS"]["Layers"].as_array().map(Vec::len);
    let on_it = "FROM app:1.0\nARG TARGETARCH\nCOPY Dockerfile /for-$TARGETARCH\n";
    space.build(on_it, &["--platform", &both(), "-t", "on-it", "-o", "type=image", "-o", "out"]);
    for architecture in ARCHITECTURES {
        let root = format!("out/linux_{architecture}");
        assert_eq!(space.read(&format!("{root}/arch")), format!("{architecture}\n"));
        assert!(space.path(&format!("{root}/for-{architecture}")).is_file());
        space.build(on_it, &["--platform", architecture, "-t", "alone"]);
        assert_eq!((layers("alone"), &space.inspect("alone")["Architecture"]), (layers("on-it"), &architecture.into()));
    }
    let ran = space.build_fails(on_it, &["--platform", &format!("{},linux/s390x", both())]);
    let known = both().replace(',', " and ");
    for expected in [
        "no match for platform in manifest: not found\n",
        &format!("help: it is wanted for linux/s390x, and there is one for {known}\n"),
    ] {
        assert!(ran.stderr.contains(expected), "{expected}\n{}", ran.stderr);
    }

    assert!(!space.rbuild(["rmi", "app:1.0"]).success().contains("Deleted"), "it has another name");
    assert!(space.rbuild(["rmi", "same"]).success().contains(&format!("Deleted: {id}")));
    space.rbuild(["prune", "--all", "--force"]).success();
    assert_eq!(space.run_in("on-it", &["cat", "/arch"]), format!("{own}\n"), "it needs what it was built on");
}

#[test]
fn every_output_says_what_several_platforms_are() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    let build = |args: &[&str]| space.rbuild(["-q", "--platform", &both(), "."].iter().chain(args));
    let id = build(&["-t", "app", "--iidfile", "iid", "--metadata-file", "meta"]).success();
    assert_eq!(space.read("iid"), id.trim());
    let metadata = json(&space.read("meta"));
    assert_eq!(metadata["containerimage.digest"], id.trim());
    assert_eq!(metadata["containerimage.descriptor"]["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(metadata["containerimage.config.digest"], Value::Null);

    build(&["-o", "type=tar,dest=files.tar"]).success();
    let listed = succeed(Command::new("tar").arg("-tf").arg(space.path("files.tar")));
    let of = |architecture: &str| {
        ["", "count-NAME", "src/", "src/a"]
            .map(|path| format!("linux_NAME/{path}"))
            .map(|path| path.replace("NAME", architecture))
    };
    assert_eq!(listed.lines().collect::<Vec<_>>(), [of("amd64"), of("arm64")].concat());

    // The roots agree where they have the same paths.
    build(&["-o", "type=local,dest=merged,platform-split=false"]).success();
    assert_eq!(space.read("merged/src/a") + &space.read(&format!("merged/count-{}", ARCHITECTURES[1])), "a\nx\n");
    space.rbuild(["-q", "-o", "type=local,dest=split,platform-split=true", "."]).success();
    assert_eq!(space.read(&format!("split/linux_{}/src/a", ARCHITECTURES[0])), "a\n");

    // One platform makes an index when that is asked for.
    let one = ["-q", "--build-arg", "BUILDKIT_MULTI_PLATFORM=1", "-t", "indexed", "."];
    let id = space.rbuild(one).success();
    assert_eq!(space.inspect("indexed")["Descriptor"]["digest"], id.trim());

    // What cannot be written is refused before anything runs.
    space.write("Dockerfile", "FROM busybox\nRUN echo too late; false\n");
    let ran = space.rbuild(["--progress=plain", "--platform", &both(), "-o", "type=docker,dest=x.tar", "."]);
    assert_eq!((ran.code, ran.stderr.contains("too late")), (1, false), "{}", ran.stderr);
    assert!(ran.stderr.contains("docker exporter does not currently support exporting manifest lists\nhelp: "));
}

#[test]
fn with_clamped_times_the_index_is_the_same_anywhere() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("skopeo"));
    let output = "type=oci,dest=same.tar,rewrite-timestamp=true";
    let args = ["-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-o", output, "-o", "type=tar,dest=files.tar"];
    // Each has a store of its own, and other times.
    let [one, other] = [1_500_000_000, 1_600_000_000].map(|seconds| {
        let space = space();
        let file = std::fs::File::open(space.path("src/a")).expect("a");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).expect("touch");
        (space.rbuild(["--platform", &both(), "."].iter().chain(&args)).success(), space)
    });
    assert_eq!(one.0, other.0);
    let (_, space) = one;
    for architecture in ARCHITECTURES {
        let copy = format!("dir:{architecture}");
        skopeo(&space, &["copy", "-q", "--override-arch", architecture, "oci-archive:same.tar", &copy]);
        let manifest = json(&skopeo(&space, &["inspect", "--raw", &copy]));
        let layers = manifest["layers"].as_array().expect("layers");
        assert!(
            layers.iter().all(|layer| layer["annotations"]["buildkit/rewritten-timestamp"] == "1000000000"),
            "{manifest:#}"
        );
        let config = json(&skopeo(&space, &["inspect", "--config", &copy]));
        assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    }
    let listed = succeed(Command::new("tar").env("TZ", "UTC").arg("-tvf").arg(space.path("files.tar")));
    assert!(listed.lines().all(|line| line.contains(" 2001-09-09 01:46 ")), "{listed}");
}

#[test]
fn the_first_platform_that_fails_ends_the_build() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let [own, other] = ARCHITECTURES;
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM busybox AS build\nARG TARGETARCH\nmaintainer me\n\
         RUN [ $TARGETARCH = {own} ] && sleep 60 || {{ echo no; exit 3; }}\nFROM scratch\nCOPY --from=build / /\n"
    );
    let start = std::time::Instant::now();
    let ran = space.build_fails(&dockerfile, &["--platform", &both()]);
    assert!(start.elapsed().as_secs() < 30, "the other platform was waited for");
    let step = format!(" > [linux/{own}->{other} build 2/2] RUN ");
    assert!(ran.stderr.contains(&step) && ran.stderr.contains("exit code: 3"), "{}", ran.stderr);
}
