//! The rules that syntax alone decides. Spec: §7.1.

use super::{CheckConfig, Warning};
use crate::ast::{Dockerfile, Stage};
use crate::error::LineRange;
use crate::expand::{Expander, Lookup};
use crate::instruction::{ArgInstruction, Instruction, InstructionKind};
use crate::lexer::LogicalLine;
use crate::node::{Args, Node};

/// Whether a key of ARG or ENV looks like it holds a secret: it has one of the words of secrets, bounded by `_` or an
/// end, and none of the words that make it harmless.
pub fn looks_like_secret(key: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let has = |words: &[&str]| key.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)));
    has(&SECRET) && !has(&HARMLESS)
}

/// What a FROM line says about its name, its keywords and its comments.
pub(crate) fn check_from(line: &LogicalLine, stage: &Stage, warnings: &mut Vec<Warning>) {
    let (lines, local) = (line.lines, &stage.checks);
    if let Some(name) = stage.name_as_written.as_deref().filter(|name| name.chars().any(char::is_uppercase)) {
        warnings.push(Warning::stage_name_casing(name, lines, local));
    }
    if let Some((from, as_)) = keywords_of(&line.node).filter(|(from, as_)| !agree(from, as_)) {
        warnings.push(Warning::from_as_casing(from, as_, lines, local));
    }
    if let Some(name) = &stage.name {
        check_description("FROM", &[name], &stage.comments, lines, local, warnings);
    }
}

/// `FROM` and `AS` as written.
fn keywords_of(node: &Node) -> Option<(&str, &str)> {
    match &node.args {
        Args::Words { words, .. } => Some((&node.keyword, words.get(1)?)),
        _ => None,
    }
}

/// A keyword of mixed case asks nothing of the other.
fn agree(from: &str, as_: &str) -> bool {
    case_of(from).is_none_or(|case| case_of(as_) == Some(case))
}

/// What the comments above an ARG say.
pub(crate) fn check_arg_comments(
    arg: &ArgInstruction,
    comments: &[String],
    lines: LineRange,
    local: &CheckConfig,
    warnings: &mut Vec<Warning>,
) {
    let names: Vec<&str> = arg.args.iter().map(|definition| definition.name.as_str()).collect();
    check_description("ARG", &names, comments, lines, local, warnings);
}

fn check_description(
    keyword: &str,
    names: &[&str],
    comments: &[String],
    lines: LineRange,
    local: &CheckConfig,
    warnings: &mut Vec<Warning>,
) {
    let Some(first_word) = comments.last().and_then(|comment| comment.split(' ').next()) else { return };
    if names.contains(&first_word) {
        return;
    }
    let example = if let [name] = names { name } else { "<arg_key>" };
    warnings.push(Warning::invalid_definition_description(keyword, example, lines, local));
}

/// Rules of one instruction that only count if its stage is built.
pub(crate) fn check_instruction(line: &LogicalLine, instruction: &mut Instruction) {
    if let Args::Pairs { legacy: true, .. } = line.node.args {
        let keyword = instruction.kind.keyword();
        let warning = Warning::legacy_key_value_format(keyword, instruction.lines, &instruction.checks);
        instruction.warnings.push(warning);
    }
}

/// Rules that need the whole file. What they find is reported behind the findings of single lines.
pub(crate) fn apply_to_file(file: &mut Dockerfile) {
    let mut warnings = std::mem::take(&mut file.warnings);
    check_stage_names(&file.stages, &mut warnings);
    check_keyword_casing(&file.stages, &mut warnings);
    for stage in &file.stages {
        check_platform(stage, file.directives.escape, &mut warnings);
    }
    file.warnings = warnings;
    for stage in &mut file.stages {
        check_repetition(stage);
    }
}

fn check_stage_names(stages: &[Stage], warnings: &mut Vec<Warning>) {
    let mut seen = std::collections::HashSet::new();
    for stage in stages {
        let Some(name) = stage.name.as_deref() else { continue };
        if matches!(name, "scratch" | "context") {
            warnings.push(Warning::reserved_stage_name(name, stage.location, &stage.checks));
        }
        if !seen.insert(name) {
            warnings.push(Warning::duplicate_stage_name(name, stage.location, &stage.checks));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Upper,
    Lower,
}

/// `None` for mixed case. Keywords that are known have ASCII letters only.
fn case_of(keyword: &str) -> Option<Case> {
    let has = |test: fn(&u8) -> bool| keyword.as_bytes().iter().any(test);
    match (has(u8::is_ascii_uppercase), has(u8::is_ascii_lowercase)) {
        (true, true) => None,
        (false, true) => Some(Case::Lower),
        (_, false) => Some(Case::Upper),
    }
}

/// The majority of the keywords decides, upper case in a tie; mixed case is always odd and has no vote.
fn check_keyword_casing(stages: &[Stage], warnings: &mut Vec<Warning>) {
    let keywords =
        || {
            stages.iter().flat_map(|stage| {
                let from = (stage.keyword_as_written.as_str(), stage.location, &stage.checks);
                let others = stage.instructions.iter();
                std::iter::once(from).chain(others.map(|instruction| {
                    (instruction.keyword_as_written.as_str(), instruction.lines, &instruction.checks)
                }))
            })
        };
    let votes = |case| keywords().filter(|(keyword, ..)| case_of(keyword) == Some(case)).count();
    let (majority, name) =
        if votes(Case::Lower) > votes(Case::Upper) { (Case::Lower, "lowercase") } else { (Case::Upper, "uppercase") };
    for (keyword, lines, local) in keywords().filter(|(keyword, ..)| case_of(keyword) != Some(majority)) {
        warnings.push(Warning::consistent_instruction_casing(keyword, name, lines, local));
    }
}

/// A value that no platform has, to see whether a text is nothing but the variable.
const MARKER: &str = "\u{0}";

struct OnlyTargetPlatform;

impl Lookup for OnlyTargetPlatform {
    fn get(&self, name: &str) -> Option<&str> {
        (name == "TARGETPLATFORM").then_some(MARKER)
    }
}

fn check_platform(stage: &Stage, escape: char, warnings: &mut Vec<Warning>) {
    let Some(platform) = &stage.platform else { return };
    // What cannot be expanded is an error of evaluation.
    let Ok(expanded) = Expander::new(escape).process_word(platform, &OnlyTargetPlatform) else { return };
    if expanded.used.is_empty() && expanded.unset.is_empty() {
        if !stage.name.as_deref().is_some_and(|name| names_platform(name, &expanded.text)) {
            warnings.push(Warning::from_platform_const(platform, stage.location, &stage.checks));
        }
    } else if expanded.text == MARKER {
        warnings.push(Warning::redundant_target_platform(platform, stage.location, &stage.checks));
    }
}

/// Whether a stage is named after the platform, which makes a constant deliberate.
fn names_platform(name: &str, platform: &str) -> bool {
    let lowered = platform.to_lowercase();
    let mut parts = lowered.split('/').take(2).map(|part| match part {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        "i386" => "386",
        part => part,
    });
    parts.any(|part| !part.is_empty() && name.contains(part))
}

/// A second CMD, ENTRYPOINT or HEALTHCHECK makes the one before it useless. The finding is found with the later one.
fn check_repetition(stage: &mut Stage) {
    let mut earlier: [Option<LineRange>; 3] = [None; 3];
    for instruction in &mut stage.instructions {
        let slot = match instruction.kind {
            InstructionKind::Cmd(_) => 0,
            InstructionKind::Entrypoint(_) => 1,
            InstructionKind::Healthcheck(_) => 2,
            _ => continue,
        };
        if let Some(lines) = earlier[slot].replace(instruction.lines) {
            let warning = Warning::multiple_instructions(instruction.kind.keyword(), lines, &instruction.checks);
            instruction.warnings.push(warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        for key in
            ["PASSWORD", "API_KEY", "my_secret", "aws_SECRET_access_key", "Credentials", "AUTH", "PWORD", "APIKEY"]
        {
            assert!(looks_like_secret(key), "{key}");
        }
        for key in ["TOKENIZER", "KEYBOARD", "PUBLIC_KEY", "KEY_FILE", "TOKEN_VERSION", "xPASSWDx", ""] {
            assert!(!looks_like_secret(key), "{key}");
        }
    }

    #[test]
    fn platforms_in_stage_names() {
        let table = [
            ("for-amd64", "linux/amd64", true),
            ("linux_build", "linux/amd64", true),
            ("for-amd64", "linux/x86_64", true),
            ("one", "linux/amd64", false),
            ("one", "", false),
        ];
        for (name, platform, want) in table {
            assert_eq!(names_platform(name, platform), want, "{name} {platform}");
        }
    }
}
