use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::layer::testing::{listing, privileged_dir, skip};
use crate::view::Below;

/// A lower tree made by one script and the upper directory that another leaves in a root over it; `None` without overlays.
fn upper_after(make: &str, step: &str) -> Option<TempDir> {
    let dir = privileged_dir()?;
    let script = format!(
        "set -eu\nmkdir lower upper work merged\n(cd lower; {make})\nmount -t overlay overlay -o \
         lowerdir=lower,upperdir=upper,workdir=work merged\ncd merged\n{step}"
    );
    match Command::new("unshare").args(["--mount", "sh", "-c", &script]).current_dir(dir.path()).output() {
        Ok(output) if output.status.success() => Some(dir),
        Ok(output) => {
            skip(&format!("no overlay mounts here: {}", String::from_utf8_lossy(&output.stderr)));
            None
        }
        Err(error) => {
            skip(&format!("no unshare program: {error}"));
            None
        }
    }
}

fn drop_in(dir: &TempDir) {
    let view = |tree: &str| Below::new(vec![dir.path().join(tree)]);
    drop_unchanged(&dir.path().join("upper"), &view("upper"), &view("lower")).expect("drops");
}

/// Paths of what is in the upper directory.
fn paths(dir: &TempDir) -> Vec<String> {
    let lines = listing(&dir.path().join("upper")).into_iter();
    lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn copies_that_nothing_changed_go() {
    let make = "mkdir d; echo a > d/a; echo b > d/b; ln -s a d/l; touch -d 2001-01-01 d/a d";
    let Some(dir) = upper_after(make, "chown -R 0:0 d; : >> d/a; chmod 644 d/b") else { return };
    assert_eq!(paths(&dir), ["d", "d/a", "d/b", "d/l"]);
    drop_in(&dir);
    assert!(paths(&dir).is_empty());
}

#[test]
fn directories_that_hold_something_do_not_tell_what_went() {
    let make = "mkdir d; echo a > d/a; echo b > d/b; touch -d 2001-01-01 d/a d";
    let Some(dir) = upper_after(make, "chown -R 0:0 d; chmod 600 d/b") else { return };
    let time = |dir: &TempDir| fs::metadata(dir.path().join("upper/d")).and_then(|meta| meta.modified()).expect("time");
    let before = time(&dir);
    drop_in(&dir);
    assert_eq!(paths(&dir), ["d", "d/b"]);
    assert_eq!(time(&dir), before);
}

#[test]
fn directories_that_only_their_time_tells_of_go() {
    let make = "mkdir -p tmp/deep/er kept/sub mode hidden/inner/most; echo x > hidden/x";
    let step = "touch tmp/deep/er/f; rm tmp/deep/er/f; touch kept/sub/f; chmod 700 mode; touch mode/f; rm mode/f; mkdir new; \
                rm -r hidden; mkdir -p hidden/inner/most";
    let Some(dir) = upper_after(make, step) else { return };
    drop_in(&dir);
    assert_eq!(
        paths(&dir),
        ["hidden", "hidden/inner", "hidden/inner/most", "kept", "kept/sub", "kept/sub/f", "mode", "new"]
    );
}

#[test]
fn what_was_changed_stays() {
    let make =
        "mkdir d; for f in mode owner time text name xattr same; do echo $f > d/$f; touch -d 2001-01-01 d/$f; done";
    let step = "chmod 600 d/mode; chown 1:2 d/owner; touch d/time; echo TEXT > d/text; touch -d 2001-01-01 d/text; \
                mv d/name d/renamed; setfattr -n user.x -v y d/xattr || chmod 600 d/xattr; chmod 644 d/same";
    let Some(dir) = upper_after(make, step) else { return };
    drop_in(&dir);
    assert_eq!(paths(&dir), ["d", "d/mode", "d/name", "d/owner", "d/renamed", "d/text", "d/time", "d/xattr"]);
}

#[test]
fn what_is_hidden_below_is_no_reason_to_go() {
    // The copy is moved into a directory that hides the lower one with the same file.
    let make = "mkdir d e; echo x > d/x; cp -p d/x e/x";
    let Some(dir) = upper_after(make, "chmod 644 e/x; rm -r d; mkdir d; mv e/x d/x") else { return };
    drop_in(&dir);
    assert_eq!(paths(&dir), ["d", "d/x", "e", "e/x"]);
}

#[test]
fn copies_with_a_second_name_stay() {
    let Some(dir) = upper_after("mkdir d; echo x > d/x", "ln d/x d/y") else { return };
    drop_in(&dir);
    assert_eq!(paths(&dir), ["d", "d/x", "d/y"]);
}
