//! Why steps run again: what progress says, `rbuild explain`, `rbuild builds`, and what a build sees of its context.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::{Need, Ran, Registry, Space};
use crate::need;

/// The reasons of the misses of a build, in the order of the steps.
fn misses(ran: &Ran) -> Vec<String> {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let reasons = ran.stderr.lines().filter(|line| line.starts_with('#'));
    reasons.filter_map(|line| Some(line.split_once(" MISS: ")?.1.to_owned())).collect()
}

fn built(space: &Space, args: &[&str]) -> Vec<String> {
    misses(&space.rbuild([&["--progress=plain", "."], args].concat()))
}

/// `rbuild explain --format json` with more flags.
fn explained(space: &Space, args: &[&str]) -> Value {
    let text = space.rbuild([&["explain", "--format", "json"], args].concat()).success();
    serde_json::from_str(&text).expect("JSON")
}

const DOCKERFILE: &str = "FROM busybox AS builder\nARG VERSION=1\nENV MODE=dev\nWORKDIR /w\nCOPY src/ src/\n\
    RUN cat src/* > out && echo $VERSION >> out\nFROM busybox\nCOPY --from=builder /w/out /out\n\
    RUN --mount=type=bind,source=src,target=/s cat /s/a.rs > /x\n";

fn two_stages() -> Space {
    let space = Space::with_busybox();
    space.write("src/a.rs", "a");
    space.write("src/b.rs", "b");
    space.write("Dockerfile", DOCKERFILE);
    space
}

#[test]
fn every_miss_says_what_changed() {
    need!(Need::Root, Need::Program("busybox"));
    let space = two_stages();
    assert_eq!(built(&space, &[]), ["first build of this step"; 5]);
    assert!(built(&space, &[]).is_empty());
    let copied = |what: &str| format!("line 5 (COPY src/ src/) gave another result: {what}");

    space.write("src/a.rs", "changed");
    let what = "src/a.rs changed";
    let expected = [what.to_owned(), copied(what), format!("/w/out changed: {what}"), what.to_owned()];
    assert_eq!(built(&space, &[]), expected);

    let what = "ARG VERSION 1 → 2";
    let below = format!("line 8 (COPY --from=builder /w/out /out) gave another result: {what}");
    assert_eq!(built(&space, &["--build-arg", "VERSION=2"]), [what, &format!("/w/out changed: {what}"), &below]);
    assert!(built(&space, &[]).is_empty(), "what was built once is there");

    // The result of the command is the same, which ends it there.
    std::fs::set_permissions(space.path("src/b.rs"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let what = "src/b.rs mode changed 0644 → 0755";
    assert_eq!(built(&space, &[]), [what, &copied(what), what]);

    std::fs::rename(space.path("src/b.rs"), space.path("src/c.rs")).expect("rename");
    let what = "src/b.rs renamed to src/c.rs";
    assert_eq!(built(&space, &[]), [what, &copied(what), what]);

    space.write("src/d.rs", "");
    let what = "src/d.rs added";
    assert_eq!(built(&space, &[]), [what, &copied(what), what]);

    std::fs::remove_file(space.path("src/d.rs")).expect("remove");
    assert!(built(&space, &[]).is_empty());
    std::fs::remove_file(space.path("src/c.rs")).expect("remove");
    assert_eq!(built(&space, &[])[0], "src/c.rs removed");
}

#[test]
fn edits_of_the_dockerfile_are_told_by_instruction() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("a", "1");
    let steps = ["RUN echo one > /one", "COPY a /a", "RUN cat /a > /b"];
    let build = |steps: &[&str]| {
        space.write("Dockerfile", format!("FROM busybox\nENV MODE=dev\n{}\n", steps.join("\n")));
        built(&space, &[])
    };
    build(&steps);
    let inserted = "line 4 (RUN echo two > /two) is new";
    let with_two = [steps[0], "RUN echo two > /two", steps[1], steps[2]];
    assert_eq!(build(&with_two), ["first build of this step", inserted, inserted]);
    // One more change, so that what is left has not been built before. It is compared with the build that had it there.
    space.write("a", "2");
    assert_eq!(build(&steps), ["a changed", "line 4 (COPY a /a) gave another result: a changed"]);
    assert_eq!(build(&[steps[0], steps[1], "RUN cat /a > /c"]), ["command cat /a > /b → cat /a > /c"]);
    space.write("Dockerfile", format!("FROM busybox\nENV MODE=prod\n{}\n", steps.join("\n")));
    assert_eq!(built(&space, &[])[0], "ENV MODE dev → prod");
    space.write("Dockerfile", "FROM busybox AS gone\nRUN echo x > /x\nRUN echo y > /y\nRUN cat /x\n");
    built(&space, &[]);
    space.write("Dockerfile", "FROM busybox AS gone\nRUN echo x > /x\nRUN cat /x\n");
    assert_eq!(built(&space, &[]), ["line 3 (RUN echo y > /y) has gone"]);
}

#[test]
fn what_is_ignored_failed_or_was_removed_is_told() {
    need!(Need::Root, Need::Program("busybox"));
    let space = two_stages();
    built(&space, &[]);
    let ignored = built(&space, &["--no-cache-filter", "builder"]);
    assert_eq!(ignored, ["the cache is ignored (--no-cache-filter)"; 3]);
    assert!(built(&space, &["--no-cache"]).iter().all(|reason| reason == "the cache is ignored (--no-cache)"));

    space.rbuild(["prune", "-af"]).success();
    let evicted = built(&space, &[]);
    assert!(!evicted.is_empty() && evicted.iter().all(|reason| reason.starts_with("evicted ")), "{evicted:?}");

    // Who has lost the index has lost the records.
    for entry in std::fs::read_dir(space.store().join("index-v1")).expect("index").flatten() {
        std::fs::write(entry.path(), [0xa5; 8192]).expect("overwrite");
    }
    let lost = built(&space, &[]);
    assert!(lost.iter().all(|reason| reason.starts_with("the index of the store was lost ")), "{lost:?}");

    space.write("flag", "");
    let failing =
        "FROM busybox\nCOPY flag /\nRUN --mount=type=tmpfs,target=/t test ! -e /proc/nothing && cat /flag | grep y\n";
    space.build_fails(failing, &[]);
    let again = space.build_fails(failing, &[]);
    assert!(again.stderr.contains(" MISS: it failed in the last build\n"), "{}", again.stderr);
    assert_eq!(explained(&space, &[])["build"]["status"], "failed");
}

#[test]
fn a_build_is_explained_afterwards_alone_and_beside_another() {
    need!(Need::Root, Need::Program("busybox"));
    let space = two_stages();
    space.rbuild(["-q", "-t", "app:1", "."]).success();
    space.write("src/a.rs", "changed");
    space.rbuild(["-q", "-t", "app:2", "--build-arg", "VERSION=7", "."]).success();

    let list = space.rbuild(["builds"]).success();
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].starts_with("BUILD ID   NAME"), "{list}");
    assert!(lines[1].contains("app:2") && lines[1].contains("Completed") && lines[1].contains("2/6"), "{list}");
    assert!(lines[2].contains("app:1"), "{list}");

    let text = space.rbuild(["explain"]).success();
    assert!(text.contains("2 of 6 steps cached"), "{text}");
    assert!(text.contains("MISS") && text.contains("src/a.rs changed"), "{text}");
    let step = space.rbuild(["explain", ":6"]).success();
    assert!(step.contains("Why:         ARG VERSION 1 → 7\n"), "{step}");
    assert!(step.contains("line 5 (COPY src/ src/) gave another result: src/a.rs changed"), "{step}");
    assert!(step.contains("ARG VERSION = 7\n") && step.contains("Key:         "), "{step}");
    let nothing = space.rbuild(["explain", "nothing like it"]);
    assert_eq!(nothing.code, 1, "{}", nothing.stderr);
    assert!(nothing.stderr.contains("help: "), "{}", nothing.stderr);

    let document = explained(&space, &[]);
    assert_eq!(document["build"]["n_cached"], 2);
    let steps = document["steps"].as_array().expect("steps");
    let copy = steps.iter().find(|step| step["lines"][0] == 5).expect("the copy");
    assert_eq!(copy["outcome"], "done");
    assert_eq!(copy["cause"]["kind"], "changed");
    assert_eq!(copy["cause"]["changes"][0]["what"], "file");
    assert_eq!(copy["cause"]["changes"][0]["name"], "src/a.rs");
    assert!(steps.iter().filter(|step| step["outcome"] == "done").all(|step| step["cause"]["named"] == true));

    // A third build finds everything, and differs from the first all the same.
    space.rbuild(["-q", "-t", "app:3", "--build-arg", "VERSION=7", "."]).success();
    assert_eq!(explained(&space, &[])["build"]["n_cached"], 6);
    let document = explained(&space, &["--with", "^2"]);
    let relations: Vec<_> =
        document["steps"].as_array().expect("steps").iter().map(|it| it["relation"].clone()).collect();
    assert_eq!(relations, ["same", "same", "changed", "changed", "changed", "changed"]);
    assert_eq!(document["steps"][2]["text"], "src/a.rs changed");
    assert_eq!(document["steps"][4]["text"], "/w/out changed");
    let text = space.rbuild(["explain", "--build", "^1", "--with", "^2", "COPY src"]).success();
    assert!(text.contains("compared with ") && text.contains("CHANGED"), "{text}");
}

#[test]
fn a_base_that_moved_is_named_and_one_that_cannot_be_asked_for_is_taken_as_last_seen() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    let maker = Space::with_busybox();
    let mut registry = Registry::start(&maker);
    let push = |content: &str| {
        maker.write("base/content", content);
        maker.write("base/Dockerfile", "FROM busybox\nCOPY content /content\n");
        maker.rbuild(["-q", "-o", "type=oci,dest=base.tar", "base"]).success();
        registry.push(&maker, "oci-archive:base.tar", "base:1")
    };
    let reference = push("one");
    let space = Space::new();
    space.write("Dockerfile", format!("FROM {reference}\nRUN cat /content > /copied\n"));
    built(&space, &[]);
    push("two");
    let moved = built(&space, &[]).swap_remove(0);
    let start = format!("base {reference} moved sha256:");
    assert!(moved.starts_with(&start) && moved.contains("… → "), "{moved}");

    registry.stop();
    let offline = space.rbuild(["--progress=plain", "."]);
    assert!(misses(&offline).is_empty(), "{}", offline.stderr);
    let said = offline.stderr.lines().filter(|line| line.contains(&format!("using {reference}@sha256:")));
    assert_eq!(said.count(), 1, "{}", offline.stderr);
    let refused = space.rbuild(["--progress=plain", "--pull", "."]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("help: without --pull, it is built on "), "{}", refused.stderr);
}

#[test]
fn what_a_build_sees_of_its_context_and_why() {
    let space = Space::new();
    for (path, text) in [("src/a.rs", "12345"), ("target/big.o", "1"), ("target/keep", ""), ("notes.txt", "1")] {
        space.write(path, text);
    }
    space.write(".dockerignore", "# products\ntarget\n!target/keep\n*.txt\n");
    let text = space.rbuild(["context", "ls"]).success();
    assert!(text.contains("        5B  src/a.rs\n") && !text.contains("big.o") && !text.contains("notes"), "{text}");
    assert!(text.contains(": 3 files, ") && text.contains("(less what .dockerignore hides)"), "{text}");
    let why = ["context", "ls", "--why", "target/big.o", "--why", "target/keep", "--why", "src/a.rs", "--why", "x.txt"];
    let expected = "target/big.o: not sent: `target` in .dockerignore:2 hides it\n\
        target/keep: sent: `!target/keep` in .dockerignore:3 shows it again\n\
        src/a.rs: sent: no rule matches\n\
        x.txt: not sent, if it were there: `*.txt` in .dockerignore:4 hides it\n";
    assert_eq!(space.rbuild(why).success(), expected);
    let ignored = space.rbuild(["context", "ls", "--ignored", "."]).success();
    assert!(ignored.contains("notes.txt  (`*.txt` in .dockerignore:4)\n"), "{ignored}");

    // The ignore file of the Dockerfile counts before that of the context.
    space.write("other.Dockerfile.dockerignore", "src\n");
    space.write("more/data", "123");
    let args = ["context", "ls", "-f", "other.Dockerfile", "--build-context", "more=more", "--format", "json", "."];
    let documents: Value = serde_json::from_str(&space.rbuild(args).success()).expect("JSON");
    assert_eq!(documents[0]["ignore_file"], "other.Dockerfile.dockerignore");
    let paths: Vec<_> =
        documents[0]["entries"].as_array().expect("entries").iter().map(|it| it["path"].clone()).collect();
    assert!(paths.contains(&"notes.txt".into()) && !paths.contains(&"src/a.rs".into()), "{paths:?}");
    assert_eq!((&documents[1]["context"], &documents[1]["size"]), (&"more".into(), &3.into()));
    assert_eq!(space.rbuild(["context", "ls", "nowhere"]).code, 1);
}
