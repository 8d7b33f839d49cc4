//! `rbuild --check` and `rbuild --call=…`: what is printed where, exit codes, and that nothing is built.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Need, Space};
use crate::need;

/// Warnings in two stages; the last one does not need the first.
const UNTIDY: &str = "# a remark\n# check=skip=StageNameCasing\nFROM scratch AS Tools\nENV a b\nFROM scratch\nCMD x\n";

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn findings_are_data_and_give_the_exit_code() {
    let space = Space::new();
    space.write("Dockerfile", UNTIDY);
    let ran = space.rbuild(["--check", "."]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Check complete, 2 warnings have been found!\n\nWARNING: LegacyKeyValueFormat - "));
    assert!(!ran.stdout.contains("StageNameCasing -"), "{}", ran.stdout);
    assert!(ran.stderr.contains("[internal] load build definition from Dockerfile"), "{}", ran.stderr);
    // With a target, only what it needs is looked at.
    let ran = space.rbuild(["--call=check,ignorestatus=true", "--target", "tools", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Check complete, 1 warning has been found!\n"), "{}", ran.stdout);
    space.write("Dockerfile", "FROM scratch\n");
    assert_eq!(space.rbuild(["--check", "-q", "."]).success(), "Check complete, no warnings found.\n");
}

#[test]
fn a_check_builds_nothing() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    // The order is that of their uses, which may fall into one second or into two.
    let records = || -> BTreeSet<String> {
        let text = space.rbuild(["du", "--format=json"]).success();
        text.lines().map(|line| json(line)["ID"].to_string()).collect()
    };
    let before = records();
    let dockerfile =
        "FROM busybox AS a\nRUN echo a > /a\nFROM busybox\nCOPY --from=a /a /\nRUN false\nCOPY missing /\n";
    space.write("Dockerfile", dockerfile);
    assert_eq!(space.rbuild(["--check", "-q", "."]).success(), "Check complete, no warnings found.\n");
    assert_eq!(records(), before);
}

#[test]
fn a_dockerfile_that_cannot_be_built_is_an_error_beside_the_warnings() {
    let space = Space::new();
    space.write("Dockerfile", "FROM scratch AS One\nLABEL a=${A?}\n");
    let ran = space.rbuild(["--call=check,ignorestatus=true", "-q", "."]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.starts_with("Check complete, 2 warnings have been found!\n"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with("ERROR: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("   2 | >>> LABEL a=${A?}\n"), "{}", ran.stderr);
    let ran = space.rbuild(["--call=check,format=json", "-q", "."]);
    assert_eq!(ran.code, 1);
    assert_eq!(json(&ran.stdout)["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
    // A text that cannot be parsed: the error alone.
    space.write("Dockerfile", "FROM scratch AS One\nLABLE a=b\n");
    let ran = space.rbuild(["--check", "-q", "."]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("unknown instruction: LABLE (did you mean LABEL?)"), "{}", ran.stderr);
    // A registry that cannot be asked is no fault of the Dockerfile.
    space.write("Dockerfile", "FROM nowhere.invalid/x\n");
    assert_eq!(space.rbuild(["--check", "-q", "."]).code, 3);
}

#[test]
fn sarif_names_the_file_as_it_was_given() {
    let space = Space::new();
    space.write("ci/Dockerfile", "FROM scratch\nCMD x\nCOPY --from=9 / /\n");
    let places = [(vec!["./ci"], "ci/Dockerfile"), (vec!["-f", "ci/Dockerfile", "."], "ci/Dockerfile")];
    for (args, uri) in places {
        let ran = space.rbuild(["--call=check,format=sarif", "-q"].into_iter().chain(args));
        let log = json(&ran.stdout);
        assert_eq!(log["version"], "2.1.0");
        let result = &log["runs"][0]["results"][0];
        assert_eq!((&result["ruleId"], &result["level"]), (&Value::from("BuildError"), &Value::from("error")));
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], uri);
        assert_eq!(place["region"]["startLine"], 3);
    }
    space.write("ci/Dockerfile", "FROM scratch\nCMD x\n");
    let log = json(&space.rbuild(["--call=check,format=sarif", "-q", "ci"]).stdout);
    let run = &log["runs"][0];
    assert_eq!(run["results"][0]["level"], "warning");
    assert_eq!(run["tool"]["driver"]["rules"][0]["id"], "JSONArgsRecommended");
}

#[test]
fn outline_and_targets_hold_the_source() {
    let space = Space::new();
    let dockerfile = "# app is it\nFROM scratch AS app\n# PORT to listen on\nARG PORT=80\n";
    space.write("Dockerfile", dockerfile);
    let text = space.rbuild(["--call", "outline", "-q", "."]).success();
    assert_eq!(
        text,
        "TARGET:      app\nDESCRIPTION: is it\n\nBUILD ARG   VALUE   DESCRIPTION\nPORT        80      to listen on\n\n"
    );
    for call in ["outline", "targets"] {
        let answer = json(&space.rbuild([&format!("--call={call},format=json"), "-q", "."]).success());
        assert!(answer["sources"][0].as_str().expect(call).starts_with("IyBhcHAgaXMg"), "{answer}");
    }
    assert_eq!(
        space.rbuild(["--call=targets", "-q", "."]).success(),
        "TARGET        DESCRIPTION\napp (default) is it\n"
    );
    let ran = space.rbuild(["--call=outline", "--target", "nope", "-q", "."]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("target stage \"nope\" could not be found"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_asked_is_a_fault_of_the_command_line() {
    let space = Space::new();
    space.write("Dockerfile", "FROM scratch\n");
    for (call, says) in
        [("chekc", "did you mean `check`?"), ("targets,format=sarif", "SARIF"), ("check,format=x", "format")]
    {
        let ran = space.rbuild(["--call", call, "."]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{call}");
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}
