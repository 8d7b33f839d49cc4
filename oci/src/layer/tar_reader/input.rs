//! The reader's buffer: whole headers for the parser, slices of content for everybody else.

use std::io::{ErrorKind, Read};

use crate::layer::error::LayerError;
use crate::layer::tar_writer::BLOCK_BYTES;

/// Usual size of the buffer. Small files come out of it in one slice.
const BUFFER_BYTES: usize = 256 * 1024;
/// Room for what may surround an entry's metadata: headers, sparse maps.
const HEADER_SLACK_BYTES: usize = 1024 * 1024;

pub(super) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes before `start`.
    offset_bytes: u64,
    /// A header chain longer than this is an attack.
    max_header_bytes: usize,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R, max_metadata_bytes: u32) -> Self {
        let max_header_bytes = max_metadata_bytes as usize + HEADER_SLACK_BYTES;
        Self { reader, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, offset_bytes: 0, max_header_bytes }
    }

    /// Bytes of the archive that have been consumed.
    pub(super) fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        self.offset_bytes += n as u64;
    }

    /// Hands out and consumes the first `n` buffered bytes.
    pub(super) fn take(&mut self, n: usize) -> &[u8] {
        let start = self.start;
        self.consume(n);
        &self.buffer[start..start + n]
    }

    /// Reads until at least `min_bytes` are buffered and at least one byte is new; `false` when the stream ends before.
    pub(super) fn fill(&mut self, min_bytes: usize) -> Result<bool, LayerError> {
        // The parser may ask again for what it has: a sparse map without an end in sight.
        let wanted = min_bytes.max(self.end - self.start + 1);
        if wanted > self.max_header_bytes {
            let reason = format!("a header is longer than {} bytes", self.max_header_bytes);
            return Err(LayerError::Malformed { offset_bytes: self.offset_bytes, reason });
        }
        self.make_room(wanted);
        while self.end - self.start < wanted {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.end += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(true)
    }

    /// Passes over `n` bytes.
    pub(super) fn skip(&mut self, mut n: u64) -> Result<(), LayerError> {
        loop {
            let here = usize::try_from(n).unwrap_or(usize::MAX).min(self.end - self.start);
            self.consume(here);
            n -= here as u64;
            if n == 0 {
                return Ok(());
            }
            if !self.fill(1)? {
                return Err(self.cut_off());
            }
        }
    }

    /// Reads content: from the buffer first, large requests straight from the stream.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, LayerError> {
        if self.start == self.end && out.len() < self.buffer.len() && !self.fill(1)? {
            return Ok(0);
        }
        if self.start < self.end {
            let n = out.len().min(self.end - self.start);
            out[..n].copy_from_slice(self.take(n));
            return Ok(n);
        }
        loop {
            match self.reader.read(out) {
                Ok(n) => {
                    self.offset_bytes += n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
    }

    /// The stream has ended where a header should begin: fine between entries, also behind half an end marker.
    pub(super) fn check_end(&self) -> Result<(), LayerError> {
        let rest = self.buffered();
        let is_half_marker = rest.len() == BLOCK_BYTES && rest.iter().all(|&byte| byte == 0);
        if rest.is_empty() || is_half_marker { Ok(()) } else { Err(self.cut_off()) }
    }

    pub(super) fn cut_off(&self) -> LayerError {
        LayerError::CutOff { offset_bytes: self.offset_bytes + (self.end - self.start) as u64 }
    }

    fn make_room(&mut self, wanted: usize) {
        if self.buffer.len() - self.start >= wanted && self.end < self.buffer.len() {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < wanted {
            // Twice as much: the parser starts anew for every step.
            self.buffer.resize((2 * wanted).min(self.max_header_bytes), 0);
        }
    }
}

fn read_error(error: std::io::Error) -> LayerError {
    LayerError::io("read the layer tar", b"", error)
}
