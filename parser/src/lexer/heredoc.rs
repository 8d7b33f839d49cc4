//! Heredocs: which words begin one, and their bodies. Spec: §1.7, §1.8.

use super::LogicalLine;
use super::physical::PhysicalLines;
use crate::error::{LineRange, ParseError};
use crate::expand::{ExpandError, heredoc_candidates, heredoc_delimiter};

/// A heredoc of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without its quotes.
    pub name: String,
    /// The body as in the file: with newlines, carriage returns and leading tabs.
    pub content: Vec<u8>,
    /// Whether the delimiter is free of quotes.
    pub expand: bool,
    /// `<<-`
    pub strip_tabs: bool,
    /// The number before `<<`; 0 when there is none.
    pub fd: u32,
}

impl Heredoc {
    /// The body with its leading tabs removed, if the heredoc asks for that.
    pub fn body(&self) -> Vec<u8> {
        if self.strip_tabs { strip_tabs(&self.content) } else { self.content.clone() }
    }
}

/// Removes all tabs at the start of every line.
pub(crate) fn strip_tabs(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|&byte| byte == b'\n') {
        let start = line.iter().position(|&byte| byte != b'\t').unwrap_or(line.len());
        out.extend_from_slice(&line[start..]);
    }
    out
}

/// The heredoc that one word of a line begins, still without its body.
///
/// Optional decimal descriptor, `<<`, optional `-`, optional blanks, and one shell word without `<`.
///
/// # Errors
///
/// The delimiter has unbalanced quotes or the like.
pub(crate) fn heredoc_word(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let at = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (digits, rest) = word.split_at(at);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let delimiter = rest.trim_start();
    if delimiter.is_empty() || delimiter.contains('<') {
        return Ok(None);
    }
    let (words, raw_words) = heredoc_delimiter(delimiter)?;
    let ([name], [raw_name]) = (words.as_slice(), raw_words.as_slice()) else { return Ok(None) };
    Ok(Some(Heredoc {
        name: name.clone(),
        content: Vec::new(),
        expand: name == raw_name,
        strip_tabs,
        // A number that is none of a descriptor is none of a heredoc's either; the shell will complain.
        fd: digits.parse().unwrap_or(0),
    }))
}

/// Reads the bodies of all heredocs of `logical`, which stand behind it in the file.
pub(super) fn read_all(logical: &mut LogicalLine, physical: &mut PhysicalLines<'_>) -> Result<(), ParseError> {
    // A line that the splitter cannot make sense of is the shell's business, and has no heredocs.
    for word in heredoc_candidates(&logical.text).unwrap_or_default() {
        let found = heredoc_word(&word)
            .map_err(|error| ParseError::new(error.to_string()).at(logical.lines).spanning(logical.locate(&word)))?;
        let Some(mut heredoc) = found else { continue };
        let terminated = read_body(&mut heredoc, physical)?;
        logical.lines.end = physical.number();
        if !terminated {
            let mut error = ParseError::new("unterminated heredoc")
                .at(LineRange { start: logical.lines.start, end: physical.number() })
                .spanning(logical.locate(&word));
            error.help.push(format!("end the heredoc with a line that is just `{}`", heredoc.name));
            return Err(error);
        }
        logical.heredocs.push(heredoc);
    }
    Ok(())
}

/// Reads up to the delimiter. Returns whether it was found.
fn read_body(heredoc: &mut Heredoc, physical: &mut PhysicalLines<'_>) -> Result<bool, ParseError> {
    while let Some(line) = physical.next()? {
        let mut candidate = line.content();
        while let (true, Some((b'\t', rest))) = (heredoc.strip_tabs, candidate.split_first()) {
            candidate = rest;
        }
        if candidate == heredoc.name.as_bytes() {
            return Ok(true);
        }
        heredoc.content.extend_from_slice(line.raw);
    }
    Ok(false)
}
