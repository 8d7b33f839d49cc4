//! `rbuild doctor`: what it says of this machine, as root and as others, and its exit code.

use serde_json::Value;

use crate::harness::{Need, Ran, Space};
use crate::need;

/// The document, and the check of that name in it.
fn checks(ran: Ran) -> (i32, Value) {
    let document: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}\n{}", ran.stdout, ran.stderr));
    (ran.code, document)
}

fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let checks = document["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["what"] == name).unwrap_or_else(|| panic!("no {name} in {document:#}"))
}

#[test]
fn root_is_told_that_all_is_well() {
    need!(Need::Root);
    let space = Space::new();
    let ran = space.rbuild(["doctor"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let mut lines = ran.stdout.lines();
    assert!(lines.next().expect("a heading").starts_with("STATUS"), "{}", ran.stdout);
    assert!(lines.next().expect("a line").starts_with("OK "), "{}", ran.stdout);
    assert!(ran.stdout.lines().all(|line| !line.contains('\u{1b}')));
    let (code, document) = checks(space.rbuild(["doctor", "--format", "json"]));
    assert_eq!((code, &document["run_steps_work"]), (0, &Value::Bool(true)));
    assert_eq!(check(&document, "tier root")["found"], "chosen");
    assert_eq!(check(&document, "overlayfs")["status"], "OK");
    assert!(check(&document, "store")["found"].as_str().expect("text").contains("made by the first build"));
    assert!(!space.store().exists(), "looking makes no store");
}

#[test]
fn a_store_is_described() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let (_, document) = checks(space.rbuild(["doctor", "--format=json"]));
    let found = check(&document, "store")["found"].as_str().expect("text").to_owned();
    assert!(found.contains("style trusted") && !found.contains(": 0 layers"), "{found}");
}

#[test]
fn an_ordinary_user_without_ids_is_told_what_they_would_need() {
    need!(Need::Root, Need::Program("setpriv"));
    let space = Space::new();
    let store = space.open_dir("theirs");
    let (code, document) = checks(space.as_nobody(&["--store", &store, "doctor", "--format=json"]));
    let root = check(&document, "tier root");
    assert_eq!(root["status"], "MISSING");
    assert!(root["found"].as_str().expect("text").contains("CAP_SYS_ADMIN"), "{root}");
    assert!(check(&document, "tier userns")["found"].as_str().expect("text").contains("subordinate ids"));
    let isolation = check(&document, "isolation");
    let works = isolation["status"] != "MISSING";
    assert_eq!((code, &document["run_steps_work"]), (if works { 0 } else { 3 }, &Value::Bool(works)));
}

#[test]
fn who_can_run_nothing_gets_exit_code_3() {
    need!(Need::Root, Need::Program("setpriv"));
    let space = Space::new();
    let store = space.open_dir("theirs");
    // Asked for what this user cannot have.
    let ran = space.as_nobody(&["--isolation=root", "--store", &store, "doctor"]);
    assert_eq!(ran.code, 3, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.lines().any(|line| line.starts_with("MISSING") && line.contains("isolation")), "{}", ran.stdout);
    assert!(ran.stderr.contains("RUN steps do not work here"), "{}", ran.stderr);
}
