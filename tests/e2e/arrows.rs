//! The crate arrows of ARCHITECTURE.md.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::harness::workspace;

#[test]
fn crates_import_only_what_their_arrows_allow() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("parser", &[] as &[&str]),
        ("oci", &[]),
        ("cache", &["oci"]),
        ("solver", &["parser", "cache", "oci"]),
        ("executor", &["solver", "cache", "oci"]),
        ("cli", &["executor", "solver", "cache", "oci", "parser"]),
        ("xtask", &["e2e"]),
        ("e2e", &[]),
    ]);
    let args = ["metadata", "--no-deps", "--offline", "--format-version=1"];
    let output = Command::new("cargo").current_dir(workspace()).args(args).output().expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), allowed.len(), "a new crate needs its arrows here and in ARCHITECTURE.md");
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let arrows = allowed.get(name).unwrap_or_else(|| panic!("crate `{name}` has no arrows"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let dependency = dependency["name"].as_str().expect("name");
            let is_ours = allowed.contains_key(dependency);
            assert!(!is_ours || arrows.contains(&dependency), "`{name}` must not import `{dependency}`");
        }
    }
}

#[test]
fn only_the_plan_imports_the_parser() {
    let sources = walk(&workspace().join("solver/src"));
    for path in sources {
        let text = std::fs::read_to_string(&path).expect("source");
        let imports = text.contains("parser::") && text.lines().any(|line| line.trim_start().starts_with("use parser"));
        let in_plan = path.components().any(|part| part.as_os_str() == "plan") || path.ends_with("plan.rs");
        assert!(!imports || in_plan, "{} imports the parser", path.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
