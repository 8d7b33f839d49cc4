//! Physical lines: bytes up to and with a newline.

use std::borrow::Cow;

use crate::directive::BOM;
use crate::error::{LineRange, ParseError, SourceSpan};

/// The longest line, newline not counted. BuildKit reads lines through a buffer of 64 KiB.
const MAX_LINE_BYTES: usize = 65_535;

/// One line with its newline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhysicalLine<'a> {
    /// 1-based.
    pub(crate) number: u32,
    /// As in the file, `\r` and `\n` included.
    pub(crate) raw: &'a [u8],
}

impl<'a> PhysicalLine<'a> {
    /// Without its line end. Bytes that are not UTF-8 become U+FFFD.
    pub(crate) fn text(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.content())
    }

    /// Without its line end.
    pub(crate) fn content(&self) -> &'a [u8] {
        let end = self.raw.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        &self.raw[..end]
    }
}

/// Hands out the lines of a file.
pub(crate) struct PhysicalLines<'a> {
    rest: &'a [u8],
    number: u32,
}

impl<'a> PhysicalLines<'a> {
    /// A byte-order mark at the start is dropped.
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { rest: text.strip_prefix(BOM).unwrap_or(text), number: 0 }
    }

    /// The number of the line handed out last.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The next line, or `None` at the end.
    ///
    /// # Errors
    ///
    /// The line is too long.
    pub(crate) fn next(&mut self) -> Result<Option<PhysicalLine<'a>>, ParseError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let newline = self.rest.iter().take(MAX_LINE_BYTES + 1).position(|&byte| byte == b'\n');
        let length = newline.map_or(self.rest.len(), |at| at + 1);
        if newline.is_none() && length > MAX_LINE_BYTES {
            // As in BuildKit the line is not counted any more: the snippet marks the one before.
            let number = self.number.saturating_add(1);
            return Err(ParseError::new(format!("dockerfile line greater than max allowed size of {MAX_LINE_BYTES}"))
                .at(LineRange::line(self.number.max(1)))
                .spanning(Some(SourceSpan { line: number, column: 1, length: 1 })));
        }
        let (raw, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.number = self.number.saturating_add(1);
        Ok(Some(PhysicalLine { number: self.number, raw }))
    }
}
