//! The commands about local images, as people who know docker type them.

use serde_json::Value;

use crate::harness::{Need, Space};
use crate::need;

macro_rules! need_busybox {
    () => {
        need!(Need::Root, Need::Program("busybox"));
    };
}

/// Two images with labels and times that are known, and one that has lost its name.
fn space() -> Space {
    let space = Space::with_busybox();
    for (name, epoch) in [("team/app:1.0", "1000000000"), ("team/app:2.0", "1100000000")] {
        let file = format!("FROM scratch\nLABEL who=app version={epoch}\nENV A=b\nCOPY Dockerfile /f\n");
        space.build(&file, &["-t", name, "--build-arg", &format!("SOURCE_DATE_EPOCH={epoch}")]);
    }
    space.build("FROM scratch\nLABEL old=1\n", &["-t", "gone", "--build-arg", "SOURCE_DATE_EPOCH=900000000"]);
    space.build("FROM scratch\nLABEL old=2\n", &["-t", "gone", "--build-arg", "SOURCE_DATE_EPOCH=900000001"]);
    space.rbuild(["rmi", "gone"]).success();
    space
}

#[test]
fn lists_are_filtered_sorted_and_formatted() {
    need_busybox!();
    let space = space();
    let list = |args: &[&str]| {
        let names = ["images", "--format", "{{.Repository}}:{{.Tag}}"].iter().chain(args);
        space.rbuild(names).success().lines().collect::<Vec<_>>().join(" ")
    };
    // Newest first, by the time at which the image was made.
    assert_eq!(list(&[]), "busybox:latest team/app:2.0 team/app:1.0 <none>:<none>");
    assert_eq!(list(&["-f", "dangling=true"]), "<none>:<none>");
    assert_eq!(list(&["-f", "dangling=false", "-f", "label=who"]), "team/app:2.0 team/app:1.0");
    assert_eq!(list(&["-f", "label=version=1000000000"]), "team/app:1.0");
    assert_eq!(list(&["-f", "reference=team/*"]), "team/app:2.0 team/app:1.0");
    assert_eq!(list(&["-f", "reference=team/app:1.*", "-f", "reference=busy*"]), "busybox:latest team/app:1.0");
    assert_eq!(list(&["team/app:2.0"]), "team/app:2.0");
    assert_eq!(list(&["-f", "before=team/app:2.0", "-f", "dangling=false"]), "team/app:1.0");
    assert_eq!(list(&["-f", "since=team/app:1.0"]), "busybox:latest team/app:2.0");
    assert_eq!(list(&["-f", "until=2004-01-01", "-f", "label=who"]), "team/app:1.0");
    assert_eq!(list(&["-f", "until=24h"]), "team/app:2.0 team/app:1.0 <none>:<none>");

    let table = space.rbuild(["images", "--digests", "team/app"]).success();
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split("  ").filter(|it| !it.is_empty()).collect();
    assert_eq!(
        header.iter().map(|it| it.trim()).collect::<Vec<_>>(),
        ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"]
    );
    let own = space.rbuild(["images", "--format", "table {{.Tag}}\\t{{.CreatedAt}}", "team/app:1.0"]).success();
    assert_eq!(own, "TAG       CREATED AT\n1.0       2001-09-09 01:46:40 +0000 UTC\n");
    let json = space.rbuild(["image", "ls", "--format", "json", "team/app:1.0"]).success();
    let line: Value = serde_json::from_str(&json).expect("one object a line");
    assert_eq!(
        (&line["Repository"], &line["Tag"], &line["CreatedSince"]),
        (&"team/app".into(), &"1.0".into(), &"25 years ago".into())
    );
    let id = space.rbuild(["images", "-q", "--no-trunc", "team/app:1.0"]).success();
    assert_eq!(id.trim(), space.inspect("team/app:1.0")["Id"]);

    for (flags, expected) in [
        (&["-f", "colour=red"][..], "invalid filter `colour`"),
        (&["-f", "dangling"], "invalid filter `dangling`: expected `NAME=VALUE`"),
        (&["--format", "{{.Nope}}"], "--format: there is no field `Nope`: there are Containers, CreatedAt"),
        (&["--format", "{{range .ID}}"], "--format: {{range}} has no {{end}}"),
        (&["-f", "before=nothing"], "no such image: nothing"),
        (&["team/[a"], "invalid pattern `team/[a` for names"),
    ] {
        let ran = space.rbuild(["images"].iter().chain(flags));
        assert_ne!(ran.code, 0);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}

#[test]
fn inspect_takes_templates_and_several_names() {
    need_busybox!();
    let space = space();
    let show = |format: &str| space.rbuild(["inspect", "-f", format, "team/app:1.0"]).success();
    assert_eq!(
        show("{{.Config.Env}} {{index .RepoTags 0}} {{.Os}}/{{.Architecture}}{{.Variant}}"),
        format!(
            "[PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin A=b] team/app:1.0 linux/{}\n",
            if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
        )
    );
    assert_eq!(show("{{json .Config.Labels}}"), "{\"version\":\"1000000000\",\"who\":\"app\"}\n");
    assert_eq!(
        show("{{.Config.User}}|{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}"),
        "|version=1000000000 who=app \n"
    );
    let digest = show("{{index .RepoDigests 0}}");
    assert!(digest.starts_with("team/app@sha256:"), "{digest}");
    assert_eq!(show("{{len .RootFS.Layers}}"), "1\n");

    // Those that are there are shown, then what is not is said.
    let ran = space.rbuild(["image", "inspect", "--type=image", "team/app:1.0", "nothing", "busybox"]);
    assert_eq!(ran.code, 1);
    let shown: Vec<Value> = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(shown.len(), 2);
    assert!(ran.stderr.contains("no such image: nothing"), "{}", ran.stderr);
    let ran = space.rbuild(["inspect", "--type=container", "busybox"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("no objects of the type `container`"), "{}", ran.stderr);

    let history = space.rbuild(["history", "--no-trunc", "--format", "{{.CreatedBy}}", "team/app:1.0"]).success();
    assert_eq!(history.lines().next(), Some("COPY Dockerfile /f # buildkit"));
    let dates = space.rbuild(["history", "-H=false", "team/app:1.0"]).success();
    assert!(dates.contains("2001-09-09T01:46:40Z"), "{dates}");
}

#[test]
fn an_image_can_have_a_name_by_its_digest() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let build = |output: &str, dockerfile: &str| {
        space.write("Dockerfile", dockerfile);
        space.rbuild(["-q", "-o", output, "--metadata-file", "meta.json", "."]).success();
        let metadata: Value = serde_json::from_str(&space.read("meta.json")).expect("JSON");
        metadata["containerimage.digest"].as_str().expect("digest").to_owned()
    };
    let named = |reference: &str| space.rbuild(["inspect", reference]).code == 0;
    let digest = build("type=image,dangling-name-prefix=by-digest", "FROM busybox\nLABEL n=1\n");
    assert!(named(&format!("by-digest@{digest}")));
    let digest = build("type=image,name=app:1,dangling-name-prefix=by-digest", "FROM busybox\nLABEL n=2\n");
    assert!(named(&format!("by-digest@{digest}")) && named("app:1"));
    let nameless = "type=image,name=app:2,dangling-name-prefix=by-digest,danging-name-empty-only=";
    let digest = build(nameless, "FROM busybox\nLABEL n=3\n");
    assert!(!named(&format!("by-digest@{digest}")) && named("app:2"));
}

#[test]
fn images_are_pruned_by_name_and_by_filter() {
    need_busybox!();
    let space = space();
    let names = || space.rbuild(["images", "--format", "{{.Repository}}:{{.Tag}}"]).success().replace('\n', " ");
    let asked = space.rbuild(["image", "prune"]);
    assert_eq!(asked.code, 2);
    assert!(asked.stderr.contains("no terminal to confirm it on"), "{}", asked.stderr);
    let pruned = space.rbuild(["image", "prune", "-f"]).success();
    assert!(pruned.starts_with("Deleted Images:\nDeleted: sha256:"), "{pruned}");
    assert!(pruned.contains("\n\nTotal reclaimed space: "), "{pruned}");
    assert_eq!(names(), "busybox:latest team/app:2.0 team/app:1.0 ");
    assert_eq!(space.rbuild(["image", "prune", "-f"]).success(), "Total reclaimed space: 0B\n");
    space.rbuild(["image", "prune", "-af", "--filter", "until=2004-01-01"]).success();
    assert_eq!(names(), "busybox:latest team/app:2.0 ");
    space.rbuild(["image", "prune", "-af", "--filter", "label!=who"]).success();
    assert_eq!(names(), "team/app:2.0 ");
    assert!(space.rbuild(["image", "prune", "-f", "--filter", "reference=x"]).stderr.contains("invalid filter"));
    space.rbuild(["rmi", "-f", "nothing"]).success();
    assert_eq!(space.rbuild(["image", "rm", "nothing"]).code, 1);
}

#[test]
fn files_come_out_of_an_image_without_running_it() {
    need_busybox!();
    let space = Space::with_busybox();
    space.build(
        "FROM busybox\nRUN mkdir -p /d/sub && echo one > /d/f && ln /d/f /d/sub/g && ln -s /etc/shadow /d/link \
         && ln -s ../../../../../outside /d/up && chown -hR 12:34 /d && chmod 4755 /d/f\n",
        &["-t", "app:1"],
    );
    std::fs::create_dir(space.path("out")).expect("directory");
    space.rbuild(["cp", "app:1:/d", "out"]).success();
    assert_eq!(space.read("out/d/f"), "one\n");
    let meta = |path: &str| std::fs::symlink_metadata(space.path(path)).expect(path);
    use std::os::unix::fs::MetadataExt;
    assert_eq!((meta("out/d/f").uid(), meta("out/d/f").mode() & 0o7777, meta("out/d/f").nlink()), (0, 0o4755, 2));
    assert_eq!(std::fs::read_link(space.path("out/d/link")).expect("a link").to_str(), Some("/etc/shadow"));
    space.rbuild(["cp", "-a", "app:1:/d/.", "kept"]).success();
    assert_eq!((meta("kept/f").uid(), meta("kept/sub").gid(), meta("kept/link").uid()), (12, 34, 12));
    let tar = space.command(["cp", "app:1:/d", "-"]).output().expect("starts");
    std::fs::write(space.path("d.tar"), tar.stdout).expect("write");
    let listed = crate::harness::succeed(
        std::process::Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(space.path("d.tar")),
    );
    assert_eq!(listed.lines().count(), 6, "{listed}");
    assert!(listed.lines().all(|line| line.contains(" 12/34 ") && line.contains(" d/")), "{listed}");

    for (source, dest, expected) in [
        ("app:1:/nope", "out", "there is no `/nope` in the image"),
        ("app:1", "out", "`app:1` names no path in an image"),
        ("app:1:/d/f/", "out", "is no directory"),
        ("app:1:/d/f", "absent/x", "does not exist"),
        ("app:2:/d/f", "out", "no such image: app:2"),
    ] {
        let ran = space.rbuild(["cp", source, dest]);
        assert!(ran.code != 0 && ran.stderr.contains(expected), "{source}: {}", ran.stderr);
    }
}

#[test]
fn completion_and_manual_pages_know_every_command() {
    let space = Space::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = space.rbuild(["completion", shell]).success();
        assert!(script.contains("imagetools") && script.contains("prune"), "{shell}");
    }
    space.rbuild(["man", "pages"]).success();
    for page in ["rbuild", "rbuild-build", "rbuild-image-prune", "rbuild-imagetools-create"] {
        let text = space.read(&format!("pages/{page}.1"));
        assert!(text.contains(".TH") && text.contains("SYNOPSIS"), "{page}");
    }
    assert!(!space.store().exists(), "neither needs a store");
}
