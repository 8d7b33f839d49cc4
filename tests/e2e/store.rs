//! The store: what `du` says, what `prune` takes, limits while builds run, and `store check`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Need, Ran, Space};
use crate::need;

const MIB: u64 = 1 << 20;

/// What `du -s` says, in bytes. Files may go while it looks.
fn du(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().expect("du");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// The sum of what `rbuild du` lists.
fn listed(space: &Space) -> u64 {
    let sizes = space.rbuild(["du", "--format={{.SizeBytes}}"]).success();
    sizes.lines().map(|line| line.parse::<u64>().expect("a size")).sum()
}

impl Ran {
    /// How many steps were cached, besides the base.
    fn n_cached(&self) -> usize {
        self.count("CACHED") - 1
    }
}

/// Writes that many MiB which no file system makes smaller.
fn step(name: &str, mebibytes: u64) -> String {
    format!("RUN mkdir /{name} && head -c {} /dev/urandom > /{name}/big\n", mebibytes * MIB)
}

#[test]
fn du_agrees_with_du_of_the_directory() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("f", vec![7; 300_000]);
    let dockerfile = "FROM busybox\nCOPY f /f\nRUN --mount=type=cache,target=/c head -c 200000 /dev/urandom > /c/x\nRUN echo > /a; ln /a /b\n";
    space.build(dockerfile, &["-t", "app"]);
    space.build(dockerfile, &["-o", "type=oci,dest=app.tar"]);
    let (ours, real) = (listed(&space), du(space.store()));
    assert!(ours.abs_diff(real) * 200 <= real, "du: {real}, rbuild du: {ours}");
    let text = space.rbuild(["du"]).success();
    assert!(text.starts_with("ID") && text.contains("RECLAIMABLE") && text.contains("LAST ACCESSED"), "{text}");
    assert!(text.lines().last().expect("totals").starts_with("Total:"), "{text}");
    let text = space.rbuild(["du", "--verbose"]).success();
    // How long ago something was used is another second each second.
    let timeless = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("Last used:")).map(str::to_owned).collect()
    };
    assert_eq!(timeless(&text), timeless(&space.rbuild(["du", "--format=pretty"]).success()));
    for word in ["ID:", "Created at:", "Usage count:", "Type:           exec.cachemount"] {
        assert!(text.contains(word), "{text}");
    }
    let lines = space.rbuild(["du", "--format=json", "--filter=type=exec.cachemount"]).success();
    let record: Value = serde_json::from_str(&lines).expect("one object");
    for field in ["ID", "Parents", "CreatedAt", "Mutable", "Reclaimable", "Shared", "Size", "Description", "UsageCount"]
    {
        assert!(!record[field].is_null(), "{field}: {record}");
    }
    assert_eq!((&record["Mutable"], &record["Type"]), (&Value::Bool(true), &Value::from("exec.cachemount")));
    assert_eq!(space.rbuild(["du", "--filter=nonsense=1"]).code, 2);
}

#[test]
fn what_prune_takes() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    // What takes longer is worth more: the first one, whatever the machine is busy with.
    let dear = step("a", 3).replace("RUN ", "RUN sleep 1 && ");
    space.write("Dockerfile", format!("FROM busybox\n{dear}{}", step("b", 2)));
    let build = ["-o", "type=cacheonly", "--progress=plain", "."];
    space.rbuild(build).success();
    let total = |ran: Ran| ran.success().lines().last().map(str::to_owned).expect("a total");
    assert_eq!(total(space.rbuild(["prune", "-f", "--filter=until=24h"])), "Total:  0B");
    assert_eq!(total(space.rbuild(["prune", "-f", "--filter=type=exec.cachemount"])), "Total:  0B");
    let would = space.rbuild(["prune", "--dry-run", "--filter=description~=mkdir /b"]).success();
    assert!(would.contains("Total:  2.1"), "{would}");
    assert_eq!(space.rbuild(build).n_cached(), 2, "nothing went");
    let gone = space.rbuild(["prune", "-f", "--verbose", "--filter=description~=mkdir /b"]).success();
    assert!(gone.contains("Description:") && gone.contains("Total:  2.1"), "{gone}");
    assert_eq!(space.rbuild(build).n_cached(), 1, "the other one stayed");
    // Down to a size, and not below what is reserved.
    let before = listed(&space);
    space.rbuild(["prune", "-f", "--max-used-space", &before.to_string()]).success();
    assert_eq!(space.rbuild(build).n_cached(), 2);
    space.rbuild(["prune", "-f", "--max-used-space=1", "--reserved-space=1g"]).success();
    assert_eq!(space.rbuild(build).n_cached(), 2);
    space.rbuild(["prune", "-f", "--max-used-space", &(before - MIB).to_string()]).success();
    assert_eq!(space.rbuild(build).n_cached(), 1);
    space.rbuild(["prune", "-af"]).success();
    let ran = space.rbuild(build);
    assert_eq!(ran.n_cached(), 0, "{}", ran.stderr);
    // Nobody to ask.
    let ran = space.rbuild(["prune"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
}

/// Watches the size of a store while `work` runs; the most that was seen.
fn most(store: &Path, work: impl FnOnce()) -> u64 {
    let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                most.fetch_max(du(store), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        work();
        is_over.store(true, Ordering::SeqCst);
    });
    most.into_inner()
}

#[test]
fn a_limit_holds_while_builds_run() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let limit = 200 * MIB;
    let most = most(space.store(), || {
        for round in 0..4 {
            let text =
                format!("FROM busybox\nRUN echo {round} > /round\n{}{}{}", step("a", 30), step("b", 30), step("c", 30));
            space.write("Dockerfile", text);
            let ran = space.command(["-o", "type=cacheonly", "."]).env("RBUILD_MAX_SIZE", limit.to_string()).output();
            Ran::of(ran.expect("rbuild starts")).success();
        }
    });
    assert!(most <= limit + limit / 20, "{most}");
    assert!(most > limit / 2, "nothing was kept: {most}");
    space.rbuild(["store", "check"]).success();
}

#[test]
fn what_a_changed_build_does_not_use_makes_room_for_what_it_makes() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    for round in 0..2 {
        let text = format!("FROM busybox\nRUN echo {round} > /round\n{}{}", step("a", 60), step("b", 60));
        space.write("Dockerfile", text);
        space.rbuild(["-q", "-o", "type=cacheonly", "--max-size=150m", "."]).success();
    }
}

#[test]
fn a_build_that_needs_more_than_the_limit_is_stopped() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let text = format!("FROM busybox\n{}{}{}", step("a", 60), step("b", 60), step("c", 1200));
    let most = most(space.store(), || {
        let ran = space.build_fails(&text, &["--max-size=150m"]);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        let error = ran.stderr.lines().find(|line| line.starts_with("ERROR: ")).expect("a report");
        let begin = format!(
            "ERROR: failed to build: failed to solve: the store `{}` may take 157.3MB (--max-size)",
            space.store().display()
        );
        assert!(error.starts_with(&begin), "{error}");
        assert!(ran.stderr.contains("help: allow more with --max-size and --min-free"), "{}", ran.stderr);
    });
    // However fast the disk is and busy the machine: not much of what the last step would write.
    assert!(most <= 900 * MIB, "{most}");
    // What is there can still be used, and with more room the build goes on where it was.
    let ran = space.rbuild(["--progress=plain", "--max-size=0", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.n_cached() >= 1, "{}", ran.stderr);
    // Who finds everything in the cache adds nothing, and is let through.
    space.rbuild(["-q", "--max-size=150m", "."]).success();
}

/// The files of one bucket that are at least so long.
fn files(dir: &Path, at_least: u64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if metadata.is_dir() {
            found.extend(files(&entry.path(), at_least));
        } else if metadata.is_file() && metadata.len() >= at_least {
            found.push(entry.path());
        }
    }
    found
}

fn flip_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).expect("chmod");
    std::fs::write(path, bytes).expect("write");
}

#[test]
fn a_check_finds_what_is_broken_and_repairs_it() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let steps = "FROM busybox\nRUN yes one | head -c 30000 > /one && touch -d @0 /one\nRUN yes two | head -c 31000 > /two && touch -d @0 /two\n";
    space.build(steps, &["-t", "app"]);
    let text = space.rbuild(["store", "check"]).success();
    assert!(text.contains("is in order") && !text.contains("(0 compared"), "{text}");

    let trees = space.store().join("trees-v1");
    let one = files(&trees, 30_000).into_iter().find(|path| path.ends_with("one")).expect("the tree of a step");
    flip_a_byte(&one);
    let blobs = files(&space.store().join("blobs-v1"), 1000);
    let busybox = blobs.iter().max_by_key(|path| path.metadata().map_or(0, |metadata| metadata.len())).expect("a blob");
    std::fs::write(space.store().join("blobs-v1/sha256/stray"), "x").expect("write");
    flip_a_byte(busybox);

    let ran = space.rbuild(["store", "check"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    for word in ["is corrupt", "the tree of layer", "belongs to nothing", "(can be repaired: --repair)"] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
    let ran = space.rbuild(["store", "check", "--format=json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(report["sound"], false);
    let kinds: Vec<&str> =
        report["problems"].as_array().expect("a list").iter().filter_map(|problem| problem["kind"].as_str()).collect();
    assert_eq!(kinds, ["corrupt-blob", "corrupt-tree", "stray"], "{report:#}");

    // The image of that tree is named, because nobody here can make it again.
    let ran = space.rbuild(["store", "check", "--repair"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert!(ran.stdout.contains("image `docker.io/library/app:latest` is incomplete: layer"), "{}", ran.stdout);
    space.write("Dockerfile", steps);
    let ran = space.rbuild(["--progress=plain", "-t", "app", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(space.run_in("app", &["sh", "-c", "head -c 3 /one; head -c 3 /two"]), "onetwo");
    space.rbuild(["image", "prune", "-f"]).success();
    let text = space.rbuild(["store", "check", "--repair"]).success();
    assert!(text.contains("is in order"), "{text}");
}

#[test]
fn a_lost_index_is_made_again_and_the_images_stay() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.build("FROM busybox\nRUN echo kept > /kept\n", &["-t", "app"]);
    for file in files(&space.store().join("index-v1"), 0) {
        let len = file.metadata().expect("metadata").len();
        std::fs::write(&file, vec![0xa5; len as usize]).expect("write");
    }
    assert_eq!(space.run_in("app", &["cat", "/kept"]), "kept\n");
    let text = space.rbuild(["store", "check", "--repair"]).success();
    assert!(text.contains("is in order"), "{text}");
}
