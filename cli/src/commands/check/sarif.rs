//! Findings as SARIF 2.1.0, which code scanning services read.
//!
//! Warnings have level `warning` and the rule's name as their rule; a fault that keeps the Dockerfile from being built has
//! level `error` and the rule `BuildError`. Spec: OASIS SARIF 2.1.0, §3.13 (log), §3.14 (run), §3.27 (result).

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};
use solver::Location;

use super::Findings;

/// The rule that stands for "cannot be built".
const BUILD_ERROR: &str = "BuildError";

/// The log of one check. `path` is that of the Dockerfile, relative to the directory that the reader takes for the root.
pub(super) fn log(findings: &Findings, path: &Path) -> Value {
    let uri = uri(path);
    let mut rules = Rules::default();
    let mut results = Vec::new();
    for warning in &findings.warnings {
        let index = rules.index_of(warning.rule, warning.description, warning.url);
        let place = place(&uri, warning.location.as_ref());
        results.push(result((warning.rule, index), "warning", &warning.message, place));
    }
    if let Some(fault) = &findings.fault {
        let index = rules.index_of(BUILD_ERROR, "The Dockerfile cannot be built", "");
        results.push(result((BUILD_ERROR, index), "error", &fault.message, place(&uri, fault.locations.first())));
    }
    let driver = json!({"name": "rbuild", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules.list});
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": driver},
            "invocations": [{"executionSuccessful": findings.fault.is_none()}],
            "results": results,
        }],
    })
}

/// The rules that found something, in the order of their first finding.
#[derive(Default)]
struct Rules {
    list: Vec<Value>,
}

impl Rules {
    fn index_of(&mut self, id: &str, description: &str, url: &str) -> usize {
        let known = self.list.iter().position(|rule| rule["id"] == id);
        known.unwrap_or_else(|| {
            let mut rule = json!({"id": id, "shortDescription": {"text": description}});
            if !url.is_empty() {
                rule["helpUri"] = json!(url);
            }
            self.list.push(rule);
            self.list.len() - 1
        })
    }
}

fn result((rule, index): (&str, usize), level: &str, message: &str, place: Value) -> Value {
    let message = json!({"text": message});
    json!({"ruleId": rule, "ruleIndex": index, "level": level, "message": message, "locations": [place]})
}

/// Without lines, the whole file.
fn place(uri: &str, location: Option<&Location>) -> Value {
    let mut place = json!({"artifactLocation": {"uri": uri}});
    if let Some(location) = location {
        place["region"] = json!({"startLine": location.start_line, "endLine": location.end_line});
    }
    json!({"physicalLocation": place})
}

/// A path as a URI reference: bytes that mean something in a URI, or are not ASCII, are escaped.
fn uri(path: &Path) -> String {
    let mut text = String::from(if path.is_absolute() { "file://" } else { "" });
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use solver::plan::Warning;

    use super::*;

    #[test]
    fn a_rule_is_listed_once_and_findings_point_to_it() {
        let warning = |rule, line| Warning {
            rule,
            description: "what it is about",
            url: if rule == "A" { "https://a.test/" } else { "" },
            message: format!("{rule} at {line}"),
            location: (line > 0).then_some(Location { start_line: line, end_line: line + 1 }),
        };
        let findings = Findings { warnings: vec![warning("A", 1), warning("B", 0), warning("A", 5)], fault: None };
        let log = log(&findings, Path::new("ci/my Dockerfile"));
        let run = &log["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"].as_array().map(Vec::len), Some(2));
        assert_eq!(run["tool"]["driver"]["rules"][0]["helpUri"], "https://a.test/");
        assert_eq!(run["tool"]["driver"]["rules"][1].get("helpUri"), None);
        let indices: Vec<_> =
            run["results"].as_array().expect("results").iter().map(|r| r["ruleIndex"].clone()).collect();
        assert_eq!(indices, [0, 1, 0]);
        assert_eq!(
            run["results"][2]["locations"][0]["physicalLocation"],
            json!({"artifactLocation": {"uri": "ci/my%20Dockerfile"}, "region": {"startLine": 5, "endLine": 6}})
        );
        assert_eq!(run["results"][1]["locations"][0]["physicalLocation"].get("region"), None);
        assert_eq!(run["invocations"][0]["executionSuccessful"], true);
    }
}
