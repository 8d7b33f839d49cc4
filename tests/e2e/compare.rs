//! Images compared, and builds that must come out the same.

use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::harness::{Need, Registry, Space, succeed};
use crate::need;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn differences_are_named_wherever_the_images_are() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    let space = Space::with_busybox();
    let one = "FROM busybox\nENV A=1\nLABEL x=1\nRUN echo same > /same && echo one > /content && : > /gone && ln -s a /link\n";
    let two = "FROM busybox\nENV A=2\nLABEL y=1\nRUN echo same > /same && echo two > /content && : > /new && ln -s b /link \
               && chmod 600 /content && chown 5:6 /content\n";
    space.build(one, &["-t", "app:1"]);
    space.build(two, &["-t", "app:2"]);

    let same = space.rbuild(["diff", "app:1", "app:1"]);
    assert!(same.code == 0 && same.stdout.ends_with("no differences\n"), "{}", same.stdout);
    let ran = space.rbuild(["diff", "app:1", "app:2"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    for line in [
        "  Env A: \"1\" -> \"2\"\n",
        "  Labels x: \"1\" -> nothing\n",
        "  1 = ",
        "  2 ! ",
        "  ! /content  content, mode 0644 -> 0600, owner 0:0 -> 5:6",
        "  - /gone  file 0B 0644 0:0\n",
        "  + /new  file 0B 0644 0:0\n",
        "  ! /link  target a -> b",
    ] {
        assert!(ran.stdout.contains(line), "{line}\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("/same  content"), "{}", ran.stdout);
    let ran = space.rbuild(["diff", "--format=json", "app:1", "app:2"]);
    let found = json_of(&ran.stdout);
    assert_eq!((&found["equal"], &found["layers"][0]["is_equal"]), (&false.into(), &true.into()));
    let content =
        found["files"].as_array().expect("files").iter().find(|file| file["path"] == "/content").expect("content");
    assert_eq!((&content["a"]["mode"], &content["b"]["uid"]), (&"0644".into(), &5.into()));

    // The same image in an archive, in a layout and in a registry, where its layers are compressed.
    let registry = Registry::start(&space);
    let pushed = format!("{}/app:1", registry.host());
    space.rbuild(["save", "-o", "app.tar", "app:1"]).success();
    space.rbuild(["save", "--compression=zstd", "-o", "zstd.tar", "app:1"]).success();
    succeed(Command::new("skopeo").current_dir(space.path("")).args([
        "--insecure-policy",
        "copy",
        "-q",
        "oci-archive:zstd.tar",
        "oci:layout:1",
    ]));
    space.rbuild(["tag", "app:1", &pushed]).success();
    space.rbuild(["push", &pushed]).success();
    let remote = format!("docker://{pushed}");
    for other in ["app.tar", "oci-archive:zstd.tar", "layout", "oci-layout://layout", &remote] {
        let ran = space.rbuild(["diff", "app:1", other]);
        assert_eq!(ran.code, 0, "{other}: {}{}", ran.stdout, ran.stderr);
    }
    let fresh = Space::new();
    let archive = space.path("app.tar").to_str().expect("UTF-8").to_owned();
    assert_eq!(fresh.rbuild(["diff", &archive, &pushed]).code, 0);
    assert_eq!(fresh.rbuild(["images", "-q"]).success(), "", "nothing is kept");
    for (other, expected) in [("nothing", "no such image: nothing"), ("app:9", "no such image: app:9")] {
        let ran = space.rbuild(["diff", "app:1", other]);
        assert!(ran.code == 1 && ran.stderr.contains(expected), "{}", ran.stderr);
    }
    let ran = space.rbuild(["diff", "--platform=linux/s390x", "app:1", "app:2"]);
    assert!(ran.stderr.contains("`app:1` has no image for linux/s390x"), "{}", ran.stderr);
}

#[test]
fn a_build_is_done_twice_and_compared() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("src/a", "a\n");
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-o", "type=image,rewrite-timestamp=true"];
    space.write("Dockerfile", "FROM busybox AS one\nRUN echo one > /one\nFROM busybox\nCOPY src /src\nCOPY --from=one /one /\nRUN echo x > /made\n");
    let ran = space.rbuild(["repro", "."].iter().chain(&epoch));
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.starts_with("reproducible: sha256:"), "{}", ran.stdout);
    // Each step ran in both, whatever was built before, and nothing is left.
    assert!(ran.stderr.matches("RUN echo x > /made").count() >= 2, "{}", ran.stderr);
    assert_eq!(space.rbuild(["images", "--format", "{{.Repository}}"]).success(), "busybox\n");

    space.write("Dockerfile", "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /etc/machine-id && mkdir -p /var/log && cat /proc/sys/kernel/random/uuid > /var/log/dpkg.log\n");
    let ran = space.rbuild(["repro", "."].iter().chain(&epoch));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    for expected in [
        "not reproducible: sha256:",
        "  ! /etc/machine-id  content\n",
        "help: logs have times",
        "help: ids that are made anew",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}\n{}", ran.stdout);
    }
    let json = space.rbuild(["repro", "--format=json", "."].iter().chain(&epoch));
    let json = json_of(&json.stdout);
    assert_eq!((&json["reproducible"], json["advice"].as_array().map(Vec::len)), (&false.into(), Some(2)));

    let stdin = space.rbuild(["repro", "-"]);
    assert!(stdin.code == 2 && stdin.stderr.contains("cannot be built twice"), "{}", stdin.stderr);
    space.write("Dockerfile", "FROM busybox\nRUN false\n");
    assert_eq!(space.rbuild(["repro", "."]).code, 1);
}

/// Item by item what must not matter: the store, how many steps run at once, how steps are kept apart, where the context
/// lies, and when its files were written.
#[test]
fn the_same_context_gives_the_same_digest_everywhere() {
    need!(Need::Root, Need::Program("busybox"));
    let first = Space::with_busybox();
    first.rbuild(["save", "-o", "base.tar", "busybox"]).success();
    let dockerfile = "FROM busybox AS one\nWORKDIR /w\nRUN mkdir -p sub && echo one > sub/one && chmod 640 sub/one\n\
                      FROM busybox\nCOPY src/ /src/\nCOPY --from=one /w /w\nRUN echo made > /made && ln -s made /link && rm /src/b\n\
                      RUN sed -i s/one/two/ /w/sub/one\nUSER 12\n";
    let mut digests = Vec::new();
    for (number, flags) in
        [&["-j1"][..], &["-j8"], &["--isolation=chroot"], &["--isolation=userns"]].into_iter().enumerate()
    {
        let space = Space::new();
        let base = first.path("base.tar").to_str().expect("UTF-8").to_owned();
        let tier: Vec<&str> = flags.iter().copied().filter(|flag| flag.starts_with("--isolation")).collect();
        let loaded = space.rbuild(tier.iter().copied().chain(["load", "-i", &base]));
        if loaded.code != 0 {
            crate::harness::note(&format!("not tested with {flags:?}: {}", loaded.stderr.trim()));
            continue;
        }
        let dir = "checkout/".repeat(number + 1);
        for (path, content) in
            [("Dockerfile", dockerfile), ("src/a", "a\n"), ("src/b", "b\n"), ("src/deep/er/c", "c\n")]
        {
            space.write(&format!("{dir}{path}"), content);
            let time = SystemTime::now() - Duration::from_secs(1000 * number as u64);
            let file = std::fs::File::options().write(true).open(space.path(&format!("{dir}{path}"))).expect("open");
            file.set_modified(time).expect("time");
        }
        let build = ["build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "--metadata-file", "m.json"];
        let output = ["-o", "type=oci,dest=out.tar,rewrite-timestamp=true", &dir];
        let ran = space.rbuild(build.iter().chain(flags).chain(&output));
        assert_eq!(ran.code, 0, "{flags:?}: {}", ran.stderr);
        digests.push((flags, json_of(&space.read("m.json"))["containerimage.digest"].clone()));
    }
    assert!(digests.len() > 1);
    assert!(digests.iter().all(|(_, digest)| *digest == digests[0].1), "{digests:#?}");
}
