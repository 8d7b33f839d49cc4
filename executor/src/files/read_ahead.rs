//! Reads the files of a layer ahead of the writer: in parallel, in order, in bounded memory.
//!
//! Files are read in batches of about one MiB; a large file is several batches. Each piece is proven to be what went into
//! the key: by the file's stamp when it has been read, or, where that proves nothing, by hashing the whole file.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use oci::layer::Ordered;
use solver::OpError;

use super::draft::Body;
use crate::context::source::{Claim, SourceDir};
use crate::context::{ContextError, LastDir};
use crate::view::ViewError;

/// Content of one batch.
const BATCH_BYTES: usize = 1 << 20;
/// Files of one batch, so that empty ones do not pile up.
const BATCH_FILES: usize = 256;
/// Batches that are read or wait to be written: what bounds the memory, at 12 MiB.
const MAX_BATCHES: usize = 12;

/// Part of a file that is to be read.
struct Want {
    dir: SourceDir,
    name: OsString,
    range: Range<u64>,
    size_bytes: u64,
}

/// Part of a file that has been read.
struct Piece {
    /// Where its bytes are in the buffer of the batch.
    range: Range<usize>,
    /// What is known about the whole file.
    claim: Claim,
    /// The digest of the bytes, when they had to be hashed and are the whole file.
    hashed: Option<[u8; 32]>,
    opened_at: SystemTime,
    capability: Option<Vec<u8>>,
    is_last: bool,
    /// For messages.
    dir: SourceDir,
    name: OsString,
}

/// What a batch job gives back.
struct Batch {
    buffer: Vec<u8>,
    pieces: VecDeque<Piece>,
}

/// Buffers that have been written out and can be filled again.
type Pool = Arc<Mutex<Vec<Vec<u8>>>>;

/// Files in the order in which they are asked for.
pub(super) struct ReadAhead<I> {
    files: I,
    /// Rest of a file that did not fit the last batch.
    rest: Option<Want>,
    jobs: Ordered<Result<Batch, ContextError>>,
    current: Option<Batch>,
    pool: Pool,
}

impl<I: Iterator<Item = Body>> ReadAhead<I> {
    /// Starts to read `files`, which are all [`Body::Source`].
    pub(super) fn new(files: I) -> Self {
        Self { files, rest: None, jobs: Ordered::new(), current: None, pool: Pool::default() }
    }

    /// The next file.
    ///
    /// # Errors
    /// What reading its beginning yielded.
    pub(super) fn next_file(&mut self) -> Result<FileReader<'_, I>, OpError> {
        let piece = self.next_piece()?;
        let is_known = piece.hashed.or(piece.claim.proven_digest()).is_some();
        let hasher = (!is_known).then(blake3::Hasher::new);
        let (position, opened_at) = (piece.range.start, piece.opened_at);
        let mut reader = FileReader { ahead: self, position, piece, opened_at, hasher, error: None };
        reader.hash_piece();
        Ok(reader)
    }

    fn next_piece(&mut self) -> Result<Piece, OpError> {
        loop {
            if let Some(batch) = &mut self.current {
                if let Some(piece) = batch.pieces.pop_front() {
                    return Ok(piece);
                }
                let buffer = std::mem::take(&mut batch.buffer);
                self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
                self.current = None;
            }
            self.start_jobs();
            let batch = self.jobs.pop().ok_or_else(|| OpError::internal("more files were asked for than were read"))?;
            self.current = Some(batch?);
            self.start_jobs();
        }
    }

    fn start_jobs(&mut self) {
        while self.jobs.len() < MAX_BATCHES {
            let wants = self.next_batch();
            if wants.is_empty() {
                return;
            }
            let pool = self.pool.clone();
            self.jobs.push(move || read_batch(wants, &pool));
        }
    }

    /// Collects what fits into one batch.
    fn next_batch(&mut self) -> Vec<Want> {
        let mut wants = Vec::new();
        let mut room = BATCH_BYTES as u64;
        while room > 0 && wants.len() < BATCH_FILES {
            let Some(mut want) = self.rest.take().or_else(|| self.files.by_ref().find_map(want_all)) else { break };
            // A file that fits into a batch of its own is not cut, so that it can be written as one slice.
            if want.len() > room && !wants.is_empty() && want.size_bytes <= BATCH_BYTES as u64 {
                self.rest = Some(want);
                break;
            }
            if want.len() > room {
                let cut = want.range.start + room;
                self.rest = Some(Want {
                    dir: want.dir.clone(),
                    name: want.name.clone(),
                    range: cut..want.range.end,
                    size_bytes: want.size_bytes,
                });
                want.range.end = cut;
            }
            room -= want.len();
            wants.push(want);
        }
        wants
    }
}

fn want_all(body: Body) -> Option<Want> {
    match body {
        Body::Source { dir, name, size_bytes } => Some(Want { dir, name, range: 0..size_bytes, size_bytes }),
        Body::Bytes(_) | Body::Staged { .. } => None,
    }
}

impl Want {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

fn read_batch(wants: Vec<Want>, pool: &Pool) -> Result<Batch, ContextError> {
    let mut buffer = pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    buffer.resize(BATCH_BYTES, 0);
    let mut pieces = VecDeque::with_capacity(wants.len());
    let (mut start, mut last) = (0, LastDir::default());
    for want in wants {
        let len = usize::try_from(want.len()).unwrap_or(BATCH_BYTES);
        pieces.push_back(read_piece(want, &mut last, &mut buffer, start..start + len)?);
        start += len;
    }
    Ok(Batch { buffer, pieces })
}

/// Reads first and asks then: one question about the file's state covers all that was read.
fn read_piece(want: Want, last: &mut LastDir, buffer: &mut [u8], range: Range<usize>) -> Result<Piece, ContextError> {
    let Want { dir, name, range: wanted, size_bytes } = want;
    let path = || dir.display_path(&name);
    let opened_at = SystemTime::now();
    let file = dir.open_unchecked(&name, last)?;
    file.read_exact_at(&mut buffer[range.clone()], wanted.start).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => ContextError::Changed { path: path() },
        _ => ViewError::io("read", path(), e).into(),
    })?;
    let claim = dir.check(&name, &file)?;
    let is_first = wanted.start == 0;
    let is_last = wanted.end == size_bytes;
    let capability = if is_first { dir.capability(&name)? } else { None };
    let must_hash = is_first && is_last && claim.proven_digest().is_none();
    let hashed = must_hash.then(|| *blake3::hash(&buffer[range.clone()]).as_bytes());
    Ok(Piece { range, claim, hashed, opened_at, capability, is_last, dir, name })
}

/// The bytes of one file.
pub(super) struct FileReader<'a, I> {
    ahead: &'a mut ReadAhead<I>,
    piece: Piece,
    /// Next byte of the batch's buffer.
    position: usize,
    /// When the first piece was opened.
    opened_at: SystemTime,
    hasher: Option<blake3::Hasher>,
    error: Option<OpError>,
}

impl<I: Iterator<Item = Body>> FileReader<'_, I> {
    /// The capability xattr of the file.
    pub(super) fn take_capability(&mut self) -> Option<Vec<u8>> {
        self.piece.capability.take()
    }

    /// All bytes of the file, if they are at hand.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        self.piece.is_last.then(|| self.rest_of_piece())
    }

    /// Ends the reading and gives the digest of the file.
    ///
    /// # Errors
    /// What went wrong on the way; a file whose bytes are not those that went into the key.
    pub(super) fn finish(mut self) -> Result<[u8; 32], OpError> {
        while self.error.is_none() && !self.piece.is_last {
            self.next_piece();
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        let Piece { claim: Claim { digest: expected, is_proven, .. }, hashed, dir, name, .. } = &self.piece;
        let got = match (self.hasher, hashed) {
            (Some(hasher), _) => Some(*hasher.finalize().as_bytes()),
            (None, Some(hashed)) => Some(*hashed),
            // Proven at the beginning, but not any more.
            (None, None) if !is_proven => None,
            (None, None) => *expected,
        };
        match got {
            Some(got) if expected.is_none() => {
                dir.learn(name, got, self.opened_at);
                Ok(got)
            }
            Some(got) if *expected == Some(got) => Ok(got),
            _ => Err(ContextError::Changed { path: dir.display_path(name) }.into()),
        }
    }

    fn rest_of_piece(&self) -> &[u8] {
        let buffer = self.ahead.current.as_ref().map_or(&[][..], |batch| &batch.buffer);
        &buffer[self.position..self.piece.range.end]
    }

    fn next_piece(&mut self) {
        match self.ahead.next_piece() {
            Ok(piece) => {
                self.position = piece.range.start;
                self.piece = piece;
                self.hash_piece();
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// Each piece is hashed once, as a whole, when it becomes the current one.
    fn hash_piece(&mut self) {
        if let (Some(hasher), Some(batch)) = (&mut self.hasher, &self.ahead.current) {
            hasher.update(&batch.buffer[self.piece.range.clone()]);
        }
    }
}

impl<I: Iterator<Item = Body>> Read for FileReader<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest_of_piece().is_empty() && !self.piece.is_last {
            self.next_piece();
            if let Some(error) = &self.error {
                return Err(io::Error::other(error.message.clone()));
            }
        }
        let n = self.rest_of_piece().read(buffer)?;
        self.position += n;
        Ok(n)
    }
}
