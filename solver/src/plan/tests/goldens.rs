//! `testdata/plan/<case>/{Dockerfile,case.toml,graph.golden}`: what a Dockerfile becomes, as text.
//!
//! `RBUILD_BLESS=1` writes the goldens anew.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::fake::{self, Images, apply, request};
use crate::plan::{PlanError, render};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/plan");
    let mut list: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    list.sort();
    list
}

#[test]
fn plans_are_as_blessed() {
    let bless = fake::setting("RBUILD_BLESS").is_some();
    let mut wrong = Vec::new();
    for folder in folders() {
        let got = planned(&folder);
        let golden = folder.join("graph.golden");
        if bless {
            std::fs::write(&golden, got).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "these plans differ from their graph.golden:\n{}", wrong.join("\n"));
}

fn planned(folder: &Path) -> String {
    let spec: toml::Table = std::fs::read_to_string(folder.join("case.toml")).unwrap().parse().unwrap();
    assert!(spec.contains_key("about"), "{}: a case says what it is about", folder.display());
    let mut request = request(&std::fs::read_to_string(folder.join("Dockerfile")).unwrap());
    let args = spec.get("args").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let args: Vec<String> = args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    apply(&mut request, &args);
    match fake::run(&request, &Images::new()).0 {
        Ok(plan) => render(&plan),
        Err(fault) => rendered_fault(&fault),
    }
}

fn rendered_fault(fault: &PlanError) -> String {
    let mut out = String::new();
    for fault in std::iter::once(fault).chain(&fault.others) {
        let lines: Vec<_> = fault.locations.iter().map(|at| format!("{}-{}", at.start_line, at.end_line)).collect();
        writeln!(out, "error line {}: {}", lines.join(" "), fault.message).unwrap();
        for help in &fault.help {
            writeln!(out, "  help: {help}").unwrap();
        }
    }
    for warning in &fault.warnings {
        writeln!(out, "warning {}: {}", warning.rule, warning.message).unwrap();
    }
    out
}
