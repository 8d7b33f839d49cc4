//! What is wrong with a Dockerfile, and where.
//!
//! Messages are BuildKit's word for word, because users and tools match on them; everything that makes an error more
//! helpful than that (the offending word, suggestions, further faults) stands beside the message.

use std::fmt;
use std::ops::Range;

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

impl SourceSpan {
    /// Finds `word` in the given lines of a Dockerfile: where it stands alone, else where it is part of a longer word,
    /// which then is the span. `None` when it is nowhere, for instance because a variable stands for it.
    pub fn find(text: &str, lines: LineRange, word: &str) -> Option<Self> {
        let first = lines.start.max(1);
        let n_lines = (lines.end.max(first) - first) as usize + 1;
        let candidates = || (first..).zip(text.split('\n').skip(first as usize - 1).take(n_lines));
        let alone = candidates().find_map(|(line, text)| Some((line, text, find_alone(text, word)?)));
        let found =
            alone.or_else(|| candidates().find_map(|(line, text)| Some((line, text, find_within(text, word)?))));
        let (line, text, range) = found?;
        let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX - 1);
        Some(Self { line, column: count(&text[..range.start]) + 1, length: count(&text[range]) })
    }
}

/// The first place at which `word` is not a part of a longer word.
pub(crate) fn find_alone(text: &str, word: &str) -> Option<Range<usize>> {
    // Paths, numbers and names of flags are words as a whole.
    let is_inner = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let ranges = text.match_indices(word).map(|(start, word)| start..start + word.len());
    ranges.filter(|range| !range.is_empty()).find(|range| {
        let before = text[..range.start].chars().next_back();
        let behind = text[range.end..].chars().next();
        !before.is_some_and(is_inner) && !behind.is_some_and(is_inner)
    })
}

/// The first word between blanks that has `part` in it.
fn find_within(text: &str, part: &str) -> Option<Range<usize>> {
    let at = if part.is_empty() { None } else { text.find(part) }?;
    let start = text[..at].rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
    let behind = at + part.len();
    Some(start..text[behind..].find(char::is_whitespace).map_or(text.len(), |blank| behind + blank))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_where_they_stand_alone() {
        let text = "FROM scratch\nCOPY --from=a a \\\n  ../b/c äöü /a\n";
        let table = [
            ("a", Some((2, 13, 1))),
            ("b/c", Some((3, 3, 6))),
            ("/a", Some((3, 14, 2))),
            ("äöü", Some((3, 10, 3))),
            ("scratch", None),
            ("", None),
        ];
        for (word, want) in table {
            let found = SourceSpan::find(text, LineRange { start: 2, end: 3 }, word);
            assert_eq!(found.map(|span| (span.line, span.column, span.length)), want, "{word}");
        }
        assert_eq!(SourceSpan::find(text, LineRange { start: 9, end: 12 }, "a"), None);
        assert_eq!(SourceSpan::find(text, LineRange { start: 0, end: 0 }, "FROM").map(|span| span.line), Some(1));
    }
}
