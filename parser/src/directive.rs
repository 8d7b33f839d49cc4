//! Parser directives: `# syntax=`, `# escape=`, `# check=` at the very top of a file. Spec: §1.2.
//!
//! `syntax` and `check` are found by a pass of their own over the raw bytes ([`detect`]), which tolerates a shebang
//! line and finds `syntax` even in files that are no Dockerfiles; `escape` is found by the lexer through
//! [`DirectiveMode`]. The two passes differ on purpose.

use nom::Parser;
use nom::bytes::complete::take_while;
use nom::character::complete::{alphanumeric0, char, satisfy};
use nom::combinator::{recognize, rest, verify};
use nom::sequence::pair;

use crate::error::LineRange;

/// What the directives of a file say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=`
    pub syntax: Option<SyntaxDirective>,
    /// `# escape=`; a backslash when there is none.
    pub escape: char,
    /// `# check=`, for [`crate::lint::CheckConfig::parse`].
    pub check: Option<CheckDirective>,
}

/// Which front end a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxDirective {
    /// The image reference of the front end.
    pub reference: String,
    /// The complete value: the reference and its options.
    pub command_line: String,
    /// Where it is; `None` in a JSON document.
    pub lines: Option<LineRange>,
}

impl SyntaxDirective {
    /// Whether this names the Dockerfile front end that we are.
    pub fn is_builtin(&self) -> bool {
        is_builtin_frontend(&self.reference)
    }
}

/// A `check` directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckDirective {
    /// The value up to its first space.
    pub value: String,
    /// Where it is.
    pub lines: LineRange,
}

/// Whether a value of `# syntax=` or `BUILDKIT_SYNTAX` names the Dockerfile front end that we are: any tag or digest of
/// `docker/dockerfile` and `docker/dockerfile-upstream`.
pub fn is_builtin_frontend(reference: &str) -> bool {
    let reference = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let end = reference.find([':', '@']).unwrap_or(reference.len());
    matches!(&reference[..end], "docker/dockerfile" | "docker/dockerfile-upstream")
}

/// Finds `syntax` and `check` in the raw bytes of a file, which need not be a Dockerfile. Never fails.
///
/// Whoever builds must look at `syntax` before parsing, because the file may be in another language.
pub fn detect(text: &[u8]) -> (Option<SyntaxDirective>, Option<CheckDirective>) {
    let text = text.strip_prefix(BOM).unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    let (first_line, body) = match text.strip_prefix("#!") {
        Some(_) => (2, text.split_once('\n').map_or("", |(_, body)| body)),
        None => (1, text.as_ref()),
    };
    let hash = scan(body, "#", first_line);
    let check = hash
        .iter()
        .find(|found| found.name == "check")
        .map(|found| CheckDirective { value: first_word(&found.value).to_owned(), lines: LineRange::line(found.line) });
    let syntax = syntax_of(hash).or_else(|| syntax_of(scan(body, "//", first_line))).or_else(|| syntax_of_json(body));
    (syntax, check)
}

/// The byte-order mark that some editors put at the start.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

/// `name = value` as it stands behind the comment sign. The value has no blanks at its ends and is not empty.
pub(crate) fn name_and_value(text: &str) -> Option<(&str, &str)> {
    let name = recognize(pair(satisfy(|c| c.is_ascii_alphabetic()), alphanumeric0::<&str, nom::error::Error<&str>>));
    let value = verify(rest.map(str::trim), |value: &str| !value.is_empty());
    (blanks, name, blanks, char('='), value).parse(text).ok().map(|(_, (_, name, _, _, value))| (name, value))
}

fn blanks(input: &str) -> nom::IResult<&str, &str> {
    take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\x0c' | '\r')).parse(input)
}

/// State of the lexer while directives may still come.
#[derive(Debug, Default)]
pub(crate) struct DirectiveMode {
    over: bool,
    seen: Vec<String>,
}

/// What a line means to [`DirectiveMode`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DirectiveLine {
    /// An ordinary line or comment.
    No,
    /// A directive: lower-cased name and value.
    Yes(String, String),
    /// The second directive of that name.
    Duplicate(String),
}

impl DirectiveMode {
    /// Looks at a line that begins with `marker`, or does not.
    pub(crate) fn look(&mut self, line: &str, marker: &str) -> DirectiveLine {
        if self.over {
            return DirectiveLine::No;
        }
        let found = line.strip_prefix(marker).and_then(name_and_value);
        let known = found.and_then(|(name, value)| {
            let name = name.to_ascii_lowercase();
            matches!(name.as_str(), "syntax" | "escape" | "check").then_some((name, value))
        });
        match known {
            None => {
                self.over = true;
                DirectiveLine::No
            }
            Some((name, _)) if self.seen.contains(&name) => DirectiveLine::Duplicate(name),
            Some((name, value)) => {
                self.seen.push(name.clone());
                DirectiveLine::Yes(name, value.to_owned())
            }
        }
    }
}

struct Found {
    name: String,
    value: String,
    line: u32,
}

/// All directives at the start of `body`; none when one of them comes twice, because the main pass reports that.
fn scan(body: &str, marker: &str, first_line: u32) -> Vec<Found> {
    let mut mode = DirectiveMode::default();
    let mut found = Vec::new();
    for (line, text) in (first_line..).zip(body.split('\n')) {
        match mode.look(text.trim_end_matches('\r'), marker) {
            DirectiveLine::Yes(name, value) => found.push(Found { name, value, line }),
            DirectiveLine::No => return found,
            DirectiveLine::Duplicate(_) => return Vec::new(),
        }
    }
    found
}

fn syntax_of(found: Vec<Found>) -> Option<SyntaxDirective> {
    found.into_iter().find(|found| found.name == "syntax").map(|found| SyntaxDirective {
        reference: first_word(&found.value).to_owned(),
        command_line: found.value,
        lines: Some(LineRange::line(found.line)),
    })
}

fn syntax_of_json(body: &str) -> Option<SyntaxDirective> {
    if !body.trim_start().starts_with('{') {
        return None;
    }
    let document: serde_json::Value = serde_json::from_str(body).ok()?;
    let value = document.get("syntax")?.as_str().filter(|value| !value.is_empty())?;
    Some(SyntaxDirective { reference: value.to_owned(), command_line: value.to_owned(), lines: None })
}

fn first_word(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax(text: &str) -> Option<(String, String, Option<u32>)> {
        let found = detect(text.as_bytes()).0?;
        Some((found.reference, found.command_line, found.lines.map(|lines| lines.start)))
    }

    fn some(
        reference: &str,
        command_line: &str,
        line: impl Into<Option<u32>>,
    ) -> Option<(String, String, Option<u32>)> {
        Some((reference.to_owned(), command_line.to_owned(), line.into()))
    }

    #[test]
    fn syntax_is_found() {
        let table = [
            ("# syntax=a/b\nFROM x", some("a/b", "a/b", 1)),
            ("#   SyNtAx =  a/b:1 --opt \nFROM x", some("a/b:1", "a/b:1 --opt", 1)),
            ("\u{feff}# syntax=a\r\n", some("a", "a", 1)),
            ("#!/usr/bin/env x\n# syntax=a\n# escape=`", some("a", "a", 2)),
            ("#!/usr/bin/env x\n//syntax=a\n", some("a", "a", 2)),
            ("# check=skip=all\n# syntax=a", some("a", "a", 2)),
            ("//syntax=a b\nwhatever", some("a", "a b", 1)),
            ("{\"syntax\": \"a/b\", \"x\": [1]}\n", some("a/b", "a/b", None)),
            ("{\"syntax\": \"a/b\"} x", None),
            ("{\"syntax\": 1}", None),
            ("{\"syntax\": \"\"}", None),
            ("# foo=bar\n# syntax=a", None),
            ("# hello\n# syntax=a", None),
            ("\n# syntax=a", None),
            (" # syntax=a", None),
            ("# syntax=", None),
            ("FROM x\n# syntax=a", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(syntax(text), want, "{text:?}");
        }
    }

    #[test]
    fn check_is_found_only_behind_a_hash() {
        let check = |text: &str| detect(text.as_bytes()).1.map(|found| (found.value, found.lines.start));
        assert_eq!(check("#!/bin/x\n# check=error=true and more\nFROM x"), Some(("error=true".to_owned(), 2)));
        assert_eq!(check("//check=skip=all\nFROM x"), None);
    }

    #[test]
    fn builtin_front_ends() {
        for name in
            ["docker/dockerfile", "docker/dockerfile:1.4@sha256:00", "docker.io/docker/dockerfile-upstream:master"]
        {
            assert!(is_builtin_frontend(name), "{name}");
        }
        for name in ["docker/dockerfile2", "dockerfile.v0", "example.com/docker/dockerfile", ""] {
            assert!(!is_builtin_frontend(name), "{name}");
        }
    }
}
