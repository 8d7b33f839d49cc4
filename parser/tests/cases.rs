//! `testdata/parse/<case>/{Dockerfile,case.toml,parse.golden}`: what a Dockerfile says, as text.
//!
//! `RBUILD_BLESS=1` writes the goldens anew.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use parser::error::LineRange;
use parser::lint::Warning;
use parser::{Dockerfile, ParseError};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/parse");
    let mut list: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    list.sort();
    list
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests have no other way to be told something")]
fn trees_are_as_blessed() {
    let bless = std::env::var_os("RBUILD_BLESS").is_some();
    let mut wrong = Vec::new();
    for folder in folders() {
        let spec: toml::Table = std::fs::read_to_string(folder.join("case.toml")).unwrap().parse().unwrap();
        assert!(spec.contains_key("about"), "{}: a case says what it is about", folder.display());
        let got = match parser::parse(&std::fs::read(folder.join("Dockerfile")).unwrap()) {
            Ok(file) => tree(&file),
            Err(error) => faults(&error),
        };
        let golden = folder.join("parse.golden");
        if bless {
            std::fs::write(&golden, got).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "these trees differ from their parse.golden:\n{}", wrong.join("\n"));
}

fn tree(file: &Dockerfile) -> String {
    let mut out = String::new();
    let directives = &file.directives;
    if let Some(syntax) = &directives.syntax {
        writeln!(out, "syntax {syntax:?}").unwrap();
    }
    if directives.escape != '\\' {
        writeln!(out, "escape {:?}", directives.escape).unwrap();
    }
    if let Some(check) = &directives.check {
        writeln!(out, "check {check:?}").unwrap();
    }
    for arg in &file.global_args {
        let args = readable(&format!("{:?}", arg.value.args));
        writeln!(out, "{} ARG {args}{}", range(arg.lines), comments(&arg.comments)).unwrap();
    }
    for stage in &file.stages {
        let name = stage.name.as_ref().map(|name| format!(" as {name:?}")).unwrap_or_default();
        let platform = stage.platform.as_ref().map(|platform| format!(" platform {platform:?}")).unwrap_or_default();
        let comments_of_it = comments(&stage.comments);
        writeln!(out, "{} FROM {:?}{name}{platform}{comments_of_it}", range(stage.location), stage.base).unwrap();
        for it in &stage.instructions {
            let kind = readable(&format!("{:?}", it.kind));
            writeln!(out, "{}   {kind}{}", range(it.lines), comments(&it.comments)).unwrap();
            warnings(&mut out, "    warning ", &it.warnings);
        }
    }
    warnings(&mut out, "warning ", &file.warnings);
    out
}

/// Without the fields that say nothing, and with bytes as text.
fn readable(debug: &str) -> String {
    const SILENT: [&str; 14] = [
        ", heredocs: []",
        ", mounts: []",
        ", network: Default",
        ", security: Sandbox",
        ", devices: []",
        ", contents: []",
        ", excludes: []",
        ", link: false",
        ", parents: false",
        ", expand: true",
        ", strip_tabs: false",
        ", fd: 0",
        ": None",
        "_ns: 0",
    ];
    let mut text = debug.replace("network: None", "network: none");
    for field in ["content: [", "data: ["] {
        let mut rest = std::mem::take(&mut text);
        while let Some((before, list)) = rest.split_once(field) {
            let (numbers, after) = list.split_once(']').unwrap();
            let numbers = numbers.split(", ").filter(|number| !number.is_empty());
            let bytes: Vec<u8> = numbers.map(|number| number.parse().unwrap()).collect();
            write!(text, "{before}{}{:?}", field.trim_end_matches('['), String::from_utf8_lossy(&bytes)).unwrap();
            rest = after.to_owned();
        }
        text += &rest;
    }
    for field in SILENT {
        match field.strip_prefix(", ") {
            Some(_) => text = text.replace(field, ""),
            // Of many names.
            None => {
                while let Some(end) = text.find(field) {
                    let start = text[..end].rfind(", ").unwrap();
                    text.replace_range(start..end + field.len(), "");
                }
            }
        }
    }
    text
}

fn range(lines: LineRange) -> String {
    if lines.start == lines.end { lines.start.to_string() } else { format!("{}-{}", lines.start, lines.end) }
}

fn comments(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!(" comments {lines:?}") }
}

fn warnings(out: &mut String, before: &str, list: &[Warning]) {
    for warning in list {
        writeln!(out, "{before}{} {:?}: {}", range(warning.lines), warning.rule, warning.message).unwrap();
    }
}

fn faults(error: &ParseError) -> String {
    let mut out = String::new();
    for fault in std::iter::once(error).chain(&error.others) {
        let lines: Vec<_> = fault.lines.iter().copied().map(range).collect();
        writeln!(out, "error {}: {}", lines.join(" "), fault.message).unwrap();
        for help in &fault.help {
            writeln!(out, "  help: {help}").unwrap();
        }
    }
    out
}
