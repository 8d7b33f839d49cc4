//! The pages of `docs/rules`: every rule has one, its bad example breaks that rule, and its good example none.

use std::path::{Path, PathBuf};

use oci::Platform;
use parser::lint::{RULES, RuleInfo};

use super::fake::{self, Images};
use crate::plan::{ContextKind, IgnoreFile, PlanRequest, SourceText, Warning};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rules")
}

/// `JSONArgsRecommended` → `json-args-recommended`: a capital begins a word unless it goes on with a row of them.
fn kebab_case(id: &str) -> String {
    let letters: Vec<char> = id.chars().collect();
    let mut name = String::new();
    for (index, letter) in letters.iter().enumerate() {
        let follows_lower = index > 0 && letters[index - 1].is_lowercase();
        let before_lower = index > 0 && letters.get(index + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (follows_lower || before_lower) {
            name.push('-');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// The text of the block of a kind in the section of a heading.
fn block<'a>(page: &'a str, heading: &str, kind: &str) -> Option<&'a str> {
    let section = page.split_once(&format!("\n## {heading}\n"))?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    section.split_once(&format!("```{kind}\n"))?.1.split("```").next()
}

/// What a check says about an example.
fn warnings(page: &str, heading: &str, rule: &RuleInfo) -> Vec<Warning> {
    let example = block(page, heading, "dockerfile").unwrap_or_else(|| panic!("{}: no example `{heading}`", rule.id));
    let source = SourceText { name: "Dockerfile".to_owned(), text: example.as_bytes().to_vec() };
    let mut request = PlanRequest::new(source, fake::amd64());
    request.main_context = ContextKind::Local("context".to_owned());
    if let Some(command) = block(page, heading, "console") {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        // `$ rbuild FLAGS .`
        fake::apply(&mut request, &words[2..words.len() - 1]);
    }
    if let Some(text) = block(page, heading, "ignore") {
        request.ignore = Some(IgnoreFile { name: ".dockerignore".to_owned(), text: text.as_bytes().to_vec() });
    }
    if rule.experimental {
        let config = ("BUILDKIT_DOCKERFILE_CHECK".to_owned(), format!("experimental={}", rule.id));
        request.build_args.extend([config]);
    }
    let mut images = Images::new();
    for name in ["debian", "debian:bookworm", "debian:trixie"] {
        images.add(name, fake::busybox());
    }
    images.add("arm64v8/debian", fake::for_platform(fake::busybox(), &Platform::new("linux", "arm64", None)));
    let plan = fake::run(&request, &images).0;
    plan.unwrap_or_else(|fault| panic!("{}, {heading}: {fault}", rule.id)).warnings
}

#[test]
fn every_rule_has_a_page_whose_examples_are_true() {
    let index = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for rule in RULES {
        let name = kebab_case(rule.id);
        let page = std::fs::read_to_string(folder().join(format!("{name}.md"))).expect(rule.id);
        assert!(page.starts_with(&format!("# {}\n\n{}\n\n", rule.id, rule.description)), "{}: heading", rule.id);
        assert!(index.contains(&format!("[{}]({name}.md)", rule.id)), "{}: not in the index", rule.id);
        let own = rule.url.trim_end_matches('/').rsplit('/').next().filter(|own| !own.is_empty());
        assert!(own.is_none_or(|own| own == name), "{}: another name than the reference's page", rule.id);

        let bad = warnings(&page, "Bad", rule);
        let found = bad.iter().find(|warning| warning.rule == rule.id);
        let found = found.unwrap_or_else(|| panic!("{}: the bad example is not found: {bad:?}", rule.id));
        assert!(page.contains(&format!("\n> {}\n", found.message)), "{}: says {:?}", rule.id, found.message);
        assert_eq!(warnings(&page, "Good", rule), [], "{}: the good example", rule.id);
    }
    let pages = std::fs::read_dir(folder()).unwrap().count();
    assert_eq!(pages, RULES.len() + 1, "a page without a rule");
}
