//! What is wrong with a Dockerfile, and where.
//!
//! Messages are BuildKit's word for word, because users and tools match on them; everything that makes an error more
//! helpful than that (the offending word, suggestions, further faults) stands beside the message.

use std::fmt;

/// Lines of one instruction.
///
/// Both ends are 1-based and inclusive; heredoc bodies and their terminators are included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineRange {
    /// First line.
    pub start: u32,
    /// Last line.
    pub end: u32,
}

impl LineRange {
    /// The range of a single line.
    pub fn line(number: u32) -> Self {
        Self { start: number, end: number }
    }
}

/// A word in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSpan {
    /// 1-based line.
    pub line: u32,
    /// 1-based column, counted in characters.
    pub column: u32,
    /// Length in characters; the word ends on the same line.
    pub length: u32,
}

/// A fault in the text of a Dockerfile.
///
/// Spec: §1.12.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// BuildKit's text. Faults of an instruction begin with `dockerfile parse error on line N: `; those of the line
    /// parser do not.
    pub message: String,
    /// The lines that BuildKit marks; empty when the fault belongs to no line.
    pub lines: Vec<LineRange>,
    /// The word that is at fault, when it is one word.
    pub span: Option<SourceSpan>,
    /// What to do about it, one suggestion each.
    pub help: Vec<String>,
    /// Further faults that do not follow from this one, in source order. Theirs are empty.
    pub others: Vec<ParseError>,
}

impl ParseError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), lines: Vec::new(), span: None, help: Vec::new(), others: Vec::new() }
    }

    pub(crate) fn at(mut self, lines: LineRange) -> Self {
        self.lines = vec![lines];
        self
    }

    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    pub(crate) fn spanning(mut self, span: Option<SourceSpan>) -> Self {
        self.span = span;
        self
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ParseError {}
