//! Physical lines, comments, continuations and heredoc bodies: bytes to logical lines. Spec: §1.1–1.4, §1.7, §1.8.
//!
//! Hand-written, because lines are not a grammar: what a line means depends on the one before it. One pass, linear in
//! the size of the file; every iteration consumes a physical line. Knows keywords only as far as heredocs need it.

mod heredoc;
mod physical;

pub use heredoc::Heredoc;
pub(crate) use heredoc::{heredoc_word, strip_tabs};

use crate::directive::{DirectiveLine, DirectiveMode};
use crate::error::{LineRange, ParseError, SourceSpan, find_alone};
use crate::node::Node;
use physical::{PhysicalLine, PhysicalLines};

/// An instruction, split into its parts.
#[derive(Debug)]
pub(crate) struct LogicalLine {
    /// What it says.
    pub(crate) node: Node,
    /// Continuations joined; leading blanks are gone, trailing ones are not.
    pub(crate) text: String,
    /// Heredocs included.
    pub(crate) lines: LineRange,
    /// Attached comment lines.
    pub(crate) comments: Vec<String>,
    /// In order of appearance.
    pub(crate) heredocs: Vec<Heredoc>,
    /// The last line before the heredocs, if a blank line was met within the instruction.
    pub(crate) empty_continuation: Option<u32>,
    /// A fault of this line is among [`Lexed::faults`].
    pub(crate) is_faulty: bool,
    pieces: Vec<Piece>,
}

/// A piece of a logical line that lies on one physical line.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where it begins in the logical line.
    offset_bytes: usize,
    line: u32,
    /// Characters before it on its physical line.
    column: u32,
}

impl LogicalLine {
    /// Where the first occurrence of `word` is in the source.
    pub(crate) fn locate(&self, word: &str) -> Option<SourceSpan> {
        locate(&self.text, &self.pieces, word)
    }
}

/// What a file consists of.
#[derive(Debug)]
pub(crate) struct Lexed {
    pub(crate) escape: char,
    pub(crate) lines: Vec<LogicalLine>,
    /// Faults of single lines, in source order.
    pub(crate) faults: Vec<ParseError>,
    /// At least 1.
    pub(crate) n_physical_lines: u32,
}

/// Splits a file into logical lines. Faults of single instructions are collected, so that one run can report them all.
///
/// # Errors
///
/// A fault behind which nothing can be understood (a line that is too long, a bad directive, an open heredoc), with the
/// faults before it.
pub(crate) fn lex(text: &[u8]) -> Result<Lexed, Vec<ParseError>> {
    let mut lexer = Lexer {
        physical: PhysicalLines::new(text),
        directives: DirectiveMode::default(),
        comments: Vec::new(),
        lexed: Lexed { escape: '\\', lines: Vec::new(), faults: Vec::new(), n_physical_lines: 0 },
    };
    let result = lexer.run();
    let mut lexed = lexer.lexed;
    lexed.n_physical_lines = lexer.physical.number().max(1);
    match result {
        Ok(()) => Ok(lexed),
        Err(fatal) => {
            lexed.faults.push(fatal);
            Err(lexed.faults)
        }
    }
}

struct Lexer<'a> {
    physical: PhysicalLines<'a>,
    directives: DirectiveMode,
    comments: Vec<String>,
    lexed: Lexed,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), ParseError> {
        while let Some(line) = self.physical.next()? {
            let text = line.text();
            let trimmed = text.trim_start();
            if self.directive(trimmed, line.number)? || self.comment(trimmed) || trimmed.is_empty() {
                continue;
            }
            self.instruction(&text, line)?;
        }
        Ok(())
    }

    /// Whether the line is a parser directive.
    fn directive(&mut self, text: &str, number: u32) -> Result<bool, ParseError> {
        let at_column_one = || Some(SourceSpan { line: number, column: 1, length: 1 });
        match self.directives.look(text, "#") {
            DirectiveLine::No => Ok(false),
            DirectiveLine::Duplicate(name) => {
                // BuildKit counts the line only later, so that its snippet marks the one before.
                Err(ParseError::new(format!("only one {name} parser directive can be used"))
                    .at(LineRange::line(number.saturating_sub(1).max(1)))
                    .spanning(at_column_one()))
            }
            DirectiveLine::Yes(name, value) if name == "escape" => {
                self.lexed.escape = match value.as_str() {
                    "`" => '`',
                    "\\" => '\\',
                    _ => {
                        let message = format!("invalid escape token '{value}' does not match ` or \\");
                        return Err(ParseError::new(message).at(LineRange::line(number)).spanning(at_column_one()));
                    }
                };
                Ok(true)
            }
            DirectiveLine::Yes(..) => Ok(true),
        }
    }

    /// Whether the line is a comment. A bare `#` detaches the comments before it.
    fn comment(&mut self, text: &str) -> bool {
        let Some(comment) = text.strip_prefix('#') else { return false };
        match comment.trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
        true
    }

    /// An instruction that begins on `first`.
    fn instruction(&mut self, first_text: &str, first: PhysicalLine<'_>) -> Result<(), ParseError> {
        let trimmed = first_text.trim_start();
        let indent = first_text[..first_text.len() - trimmed.len()].chars().count();
        let (start, continues) = strip_continuation(trimmed, self.lexed.escape);
        let mut text = start.to_owned();
        let mut pieces = vec![Piece { offset_bytes: 0, line: first.number, column: saturate(indent) }];
        let mut last = first.number;
        let mut blank_inside = false;
        if continues {
            (last, blank_inside) = self.continuation(&mut text, &mut pieces, last)?;
        }
        let comments = std::mem::take(&mut self.comments);
        let lines = LineRange { start: first.number, end: last };
        let (node, fault) = Node::parse(&text, self.lexed.escape);
        let is_faulty = fault.is_some();
        if let Some(fault) = fault {
            let span = fault.word.as_deref().and_then(|word| locate(&text, &pieces, word));
            self.lexed.faults.push(fault.into_error(lines).spanning(span));
        }
        let mut logical = LogicalLine {
            node,
            lines,
            comments,
            heredocs: Vec::new(),
            empty_continuation: blank_inside.then_some(last),
            is_faulty,
            pieces,
            text,
        };
        if logical.node.takes_heredocs() && logical.text.contains("<<") {
            heredoc::read_all(&mut logical, &mut self.physical)?;
        }
        self.lexed.lines.push(logical);
        Ok(())
    }

    /// Appends the continuation lines. Returns the last line's number and whether a blank line was among them.
    fn continuation(
        &mut self,
        text: &mut String,
        pieces: &mut Vec<Piece>,
        mut last: u32,
    ) -> Result<(u32, bool), ParseError> {
        let mut blank_inside = false;
        while let Some(line) = self.physical.next()? {
            last = line.number;
            let line_text = line.text();
            let trimmed = line_text.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                blank_inside = true;
                continue;
            }
            let (piece, continues) = strip_continuation(&line_text, self.lexed.escape);
            pieces.push(Piece { offset_bytes: text.len(), line: line.number, column: 0 });
            text.push_str(piece);
            if !continues {
                break;
            }
        }
        Ok((last, blank_inside))
    }
}

/// Removes a continuation: the escape and blanks at the end, unless another escape stands before it.
fn strip_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

fn locate(text: &str, pieces: &[Piece], word: &str) -> Option<SourceSpan> {
    let alone = find_alone(text, word).map(|range| range.start);
    let start = if word.is_empty() { None } else { alone.or_else(|| text.find(word)) }?;
    let index = pieces.partition_point(|piece| piece.offset_bytes <= start).checked_sub(1)?;
    let piece = pieces[index];
    let end = pieces.get(index + 1).map_or(text.len(), |next| next.offset_bytes);
    let before = text.get(piece.offset_bytes..start)?.chars().count();
    let length = text.get(start..end.min(start + word.len())).unwrap_or(word).chars().count();
    Some(SourceSpan { line: piece.line, column: piece.column + saturate(before) + 1, length: saturate(length) })
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests;
