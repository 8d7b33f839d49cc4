//! `rbuild build`: results, cache, progress and files it writes.

use std::time::{Duration, Instant};

use crate::harness::{Need, Space};
use crate::need;

#[test]
fn a_second_build_runs_nothing_and_gives_the_same_image() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("src/a.txt", "a");
    let dockerfile =
        "FROM busybox\nWORKDIR /app\nCOPY src/ .\nRUN echo built > out && cat a.txt >> out\nCMD [\"cat\", \"out\"]\n";
    let first = space.build(dockerfile, &["-t", "app:1.0"]);
    assert!(first.starts_with("sha256:"), "{first}");
    let again = space.rbuild(["--progress=plain", "-t", "app:1.0", "."]);
    // The base image counts, too.
    assert_eq!(again.count("CACHED"), 4, "{}", again.stderr);
    again.success();
    assert_eq!(space.build(dockerfile, &["-t", "app:1.0"]), first);
    assert_eq!(space.run_in("app:1.0", &[]), "built\na");
}

#[test]
fn what_changed_is_named_and_nothing_else_runs_again() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("a", "1");
    space.write("b", "1");
    let dockerfile = "FROM busybox\nARG V=1\nCOPY a /a\nRUN echo $V > /v\nCOPY b /b\n";
    space.build(dockerfile, &[]);
    space.write("b", "2");
    let ran = space.rbuild(["--progress=plain", "."]);
    // The base image, the first COPY and the RUN.
    assert_eq!(ran.count("CACHED"), 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("MISS: "), "{}", ran.stderr);
    let ran = space.rbuild(["--progress=plain", "--build-arg", "V=2", "."]);
    assert!(ran.stderr.lines().any(|line| line.contains("MISS: ") && line.contains('V')), "{}", ran.stderr);
}

#[test]
fn a_touched_file_is_cached_and_a_chmod_is_not() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("a", "1");
    let dockerfile = "FROM busybox\nCOPY a /a\n";
    let first = space.build(dockerfile, &[]);
    let file = std::fs::File::open(space.path("a")).expect("a");
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(5000)).expect("touch");
    assert_eq!(space.build(dockerfile, &[]), first);
    std::fs::set_permissions(space.path("a"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    assert_ne!(space.build(dockerfile, &[]), first);
}

#[test]
fn directories_may_be_as_deep_as_paths_are_long() {
    need!(Need::Root);
    let space = Space::new();
    // 1,900 levels: what a path of 4,096 bytes has room for.
    let script = "i=0; while [ $i -lt 1900 ]; do mkdir a; cd -P a; i=$((i + 1)); done; echo x > f";
    let status = std::process::Command::new("sh").args(["-c", script]).current_dir(space.path(".")).status();
    assert!(status.expect("sh starts").success());
    let first = space.build("FROM scratch\nCOPY a /a\n", &[]);
    assert_eq!(space.build("FROM scratch\nCOPY a /a\n", &[]), first);
}

#[test]
fn with_clamped_times_the_same_sources_give_the_same_image_anywhere() {
    need!(Need::Root, Need::Program("busybox"));
    let dockerfile =
        "FROM busybox\nWORKDIR /w\nCOPY a .\nRUN echo b > b && touch -d @77 old\nCOPY --from=busybox /bin/sh /sh\n";
    let args = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000"];
    // Each has a store of its own, another directory and other times.
    let spaces = [1_500_000_000, 1_600_000_000].map(|seconds| {
        let space = Space::with_busybox();
        let base = "type=image,name=busybox,rewrite-timestamp=true,source-date-epoch=1000000000";
        space.rbuild(["-q", "-o", base, "busybox"]).success();
        space.write("a", "1");
        let file = std::fs::File::open(space.path("a")).expect("a");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).expect("touch");
        space
    });
    for output in ["type=image,name=same:1", "type=oci,dest=same.tar", "type=docker,dest=same-docker.tar"] {
        let of = |space: &Space, output: &str| space.build(dockerfile, &[&args[..], &["-o", output]].concat());
        let [one, other] = spaces.each_ref().map(|space| of(space, output));
        assert_ne!(one, other, "{output}: the times of the files differ");
        let [one, other] = spaces.each_ref().map(|space| of(space, &format!("{output},rewrite-timestamp=true")));
        assert_eq!(one, other, "{output}");
    }
    // The image in the store is whole: times are those of the epoch, or older.
    let times = spaces[0].run_in("same:1", &["stat", "-c", "%n %Y", "/w", "/w/a", "/w/b", "/w/old"]);
    assert_eq!(times, "/w 1000000000\n/w/a 1000000000\n/w/b 1000000000\n/w/old 77\n");
    let warned = spaces[0].rbuild(["--progress=plain", "-o", "type=image,rewrite-timestamp=true", "."]);
    assert!(warned.stderr.contains("no source-date-epoch was found"), "{}", warned.stderr);
}

#[test]
fn a_step_that_gives_the_same_again_stops_the_invalidation() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("in", "one");
    let dockerfile = "FROM busybox\nCOPY in /in\nRUN wc -c < /in > /length\nFROM busybox\nCOPY --from=0 /length /length\nRUN cat /length\n";
    space.build(dockerfile, &[]);
    space.write("in", "two");
    let ran = space.rbuild(["--progress=plain", "."]);
    // The first stage ran again; its result is the same, so the second did not. The base image counts, too.
    assert_eq!(ran.count("CACHED"), 3, "{}", ran.stderr);
    ran.success();
}

#[test]
fn independent_stages_run_at_once() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let stages: String = (1..=4).map(|n| format!("FROM busybox AS s{n}\nRUN sleep 2; echo {n} > /o{n}\n")).collect();
    let copies: String = (1..=4).map(|n| format!("COPY --from=s{n} /o{n} /\n")).collect();
    let start = Instant::now();
    space.build(&format!("{stages}FROM scratch\n{copies}"), &[]);
    // One after the other they would take eight.
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
}

#[test]
fn only_what_the_target_needs_is_built() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let dockerfile = "FROM busybox AS wanted\nRUN echo yes\nFROM nowhere.invalid/x AS unwanted\nRUN false\n";
    space.write("Dockerfile", dockerfile);
    space.rbuild(["-q", "--target", "WANTED", "."]).success();
}

#[test]
fn files_about_the_result() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let id =
        space.build("FROM busybox\nRUN echo x > /x\n", &["-t", "app", "--iidfile", "iid", "--metadata-file", "meta"]);
    assert_eq!(space.read("iid"), id);
    let metadata: serde_json::Value = serde_json::from_str(&space.read("meta")).expect("JSON");
    assert_eq!(metadata["containerimage.config.digest"], id);
    assert_eq!(metadata["image.name"], "docker.io/library/app:latest");
    assert!(metadata["containerimage.descriptor"]["size"].is_u64(), "{metadata}");
}

#[test]
fn plain_progress_has_buildkits_shape() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("a", "1");
    space.write("Dockerfile", "FROM busybox\nCOPY a /a\nRUN echo hello && echo world >&2\n");
    let ran = space.rbuild(["--progress=plain", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("#0 building with rbuild "), "{}", lines[0]);
    assert_eq!(lines[1], "");
    assert_eq!(lines[2], "#1 [internal] load build definition from Dockerfile");
    assert!(
        lines.iter().any(|line| line.ends_with("[1/3] FROM docker.io/library/busybox:latest")
            || line.contains("[1/3] FROM docker.io/library/busybox")),
        "{}",
        ran.stderr
    );
    assert!(lines.iter().any(|line| line.contains("[2/3] COPY a /a")), "{}", ran.stderr);
    assert!(lines.iter().any(|line| line.contains("[3/3] RUN echo hello && echo world >&2")), "{}", ran.stderr);
    assert!(lines.iter().any(|line| line.starts_with('#') && line.ends_with(" hello")), "{}", ran.stderr);
    assert!(lines.iter().any(|line| line.ends_with(" exporting to image")), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_failed_step_shows_its_place_its_output_and_its_code() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let ran = space.build_fails("FROM busybox\n\nRUN echo before; exit 3\n", &[]);
    assert_eq!(ran.code, 1);
    for expected in [
        " > [2/2] RUN echo before; exit 3:",
        "   3 | >>> RUN echo before; exit 3",
        "ERROR: failed to build: failed to solve: process \"/bin/sh -c echo before; exit 3\" did not complete successfully: exit code: 3",
    ] {
        assert!(ran.stderr.contains(expected), "{expected}\n{}", ran.stderr);
    }
}

#[test]
fn a_dockerfile_on_standard_input_has_an_empty_context() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mut build = space.command(["-q", "-"]);
    let mut child =
        build.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), b"FROM busybox\nRUN echo hi\n").expect("write");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"sha256:"));
}

#[test]
fn no_cache_runs_everything_again() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.build("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\n", &["-t", "one"]);
    let first = space.run_in("one", &["cat", "/id"]);
    space.build("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\n", &["-t", "one"]);
    assert_eq!(space.run_in("one", &["cat", "/id"]), first);
    space.build("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\n", &["-t", "one", "--no-cache"]);
    assert_ne!(space.run_in("one", &["cat", "/id"]), first);
}

#[test]
fn two_builds_at_once_run_a_shared_step_once() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=cache,target=/c echo x >> /c/count; sleep 1; cp /c/count /count\n",
    );
    let builds: Vec<_> =
        (0..4).map(|n| space.command(["-q", "-t", &format!("at-once:{n}"), "."]).spawn().expect("starts")).collect();
    for mut build in builds {
        assert!(build.wait().expect("ends").success());
    }
    assert_eq!(space.run_in("at-once:0", &["cat", "/count"]), "x\n");
}

#[test]
fn a_command_of_an_image_has_its_surroundings_and_its_code_is_passed_on() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let dockerfile = "FROM busybox\nENV GREETING=hi\nUSER nobody\nWORKDIR /tmp\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"echo $GREETING $(id -un) $PWD\"]\n";
    space.build(dockerfile, &["-t", "app"]);
    assert_eq!(space.run_in("app", &[]), "hi nobody /tmp\n");
    assert_eq!(space.rbuild(["run", "--rm", "app", "exit 7"]).code, 7);
    assert_eq!(space.rbuild(["run", "--rm", "-e", "GREETING=yo", "app", "echo $GREETING"]).success(), "yo\n");
}

/// A RUN step and a copy may give the same tar on different bases.
#[test]
fn layers_with_the_same_tar_show_the_same_wherever_they_lie() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let dockerfile = "FROM busybox AS base\nRUN mkdir /scratch\n\
        FROM base AS builder\nRUN echo x > /hello && touch -d @1000 /hello && touch /scratch/x && rm /scratch/x\n\
        FROM scratch\nCOPY --from=builder /hello /hello\n";
    space.build(dockerfile, &["-t", "built", "--target", "builder"]);
    space.build(dockerfile, &["-t", "copied"]);
    space.build("FROM copied\n", &["-o", "out"]);
    let names: Vec<_> =
        std::fs::read_dir(space.path("out")).expect("out").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names, ["hello"]);
}

#[test]
fn an_image_that_was_built_here_can_be_the_base_of_one_that_leaves() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("linked/bin/x", "x");
    let base = "FROM busybox\nRUN mkdir /d && echo 1 > /d/f\nRUN rm /d/f && chmod 700 /bin\nCOPY --link linked/ /\n";
    space.build(base, &["-t", "base"]);
    let kept = space.build("FROM base\nRUN echo 2 > /d/g\n", &["-t", "kept"]);
    assert!(kept.starts_with("sha256:"), "{kept}");
    space.build("FROM base\nRUN echo 2 > /d/g\n", &["-o", "type=oci,dest=left.tar"]);
    let diff_ids = |image: &str| space.inspect(image)["RootFS"]["Layers"].as_array().map(Vec::len);
    assert_eq!((diff_ids("base"), diff_ids("kept")), (Some(4), Some(5)));
}
