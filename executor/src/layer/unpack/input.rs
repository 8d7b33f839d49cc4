//! Inflates and hashes a blob beside the one who reads its tar.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci::layer::{LayerError, decompress};
use oci::{DiffId, Sha256};

use crate::layer::error::Result;

/// Inflated bytes travel in chunks of this size.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that may wait for a slow reader or hasher, each.
const QUEUE_CHUNKS: usize = 8;

/// An inflated chunk; both users share it.
type Chunk = Arc<Vec<u8>>;

/// Calls `read` with the tar inside `blob`; returns digest and length of the whole tar.
///
/// What `read` leaves unread is hashed all the same, unless it fails: then inflating stops at once.
pub(super) fn with_tar(
    blob: impl Read + Send,
    read: impl FnOnce(&mut TarInput) -> Result<()>,
) -> Result<(DiffId, u64)> {
    let is_cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (to_reader, for_reader) = sync_channel(QUEUE_CHUNKS);
        let (to_hasher, for_hasher) = sync_channel(QUEUE_CHUNKS);
        let inflater = scope.spawn(|| inflate(blob, to_reader, to_hasher, &is_cancelled));
        let hasher = scope.spawn(move || hash(&for_hasher));

        let mut input = TarInput { chunks: for_reader, current: Chunk::default(), position: 0 };
        let outcome = read(&mut input);
        // A reader that failed wants no more; one that has seen the end leaves the rest to the hasher.
        is_cancelled.store(outcome.is_err(), Ordering::Relaxed);
        drop(input);
        let inflated = inflater.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let hashed = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome?;
        inflated.map_err(|source| inflate_error(source, hashed.1))?;
        Ok(hashed)
    })
}

fn inflate_error(source: io::Error, tar_bytes: u64) -> LayerError {
    let operation = if tar_bytes == 0 { "read the layer" } else { "decompress the layer" };
    LayerError::Io { operation, path: String::new(), source }
}

fn inflate(
    blob: impl Read + Send,
    to_reader: SyncSender<io::Result<Chunk>>,
    to_hasher: SyncSender<Chunk>,
    is_cancelled: &AtomicBool,
) -> io::Result<()> {
    let mut to_reader = Some(to_reader);
    let outcome = inflate_chunks(blob, &mut to_reader, &to_hasher, is_cancelled);
    if let (Err(error), Some(to_reader)) = (&outcome, to_reader) {
        // The reader must not take a damaged blob for a short archive. It may be gone already.
        let _ = to_reader.send(Err(io::Error::new(error.kind(), error.to_string())));
    }
    outcome
}

fn inflate_chunks(
    blob: impl Read + Send,
    to_reader: &mut Option<SyncSender<io::Result<Chunk>>>,
    to_hasher: &SyncSender<Chunk>,
    is_cancelled: &AtomicBool,
) -> io::Result<()> {
    let (_, mut tar) = decompress(blob)?;
    while !is_cancelled.load(Ordering::Relaxed) {
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        tar.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        let chunk = Arc::new(bytes);
        if to_reader.as_ref().is_some_and(|reader| reader.send(Ok(Arc::clone(&chunk))).is_err()) {
            *to_reader = None;
        }
        if to_hasher.send(chunk).is_err() {
            break;
        }
    }
    Ok(())
}

fn hash(chunks: &Receiver<Chunk>) -> (DiffId, u64) {
    let mut hasher = Sha256::new();
    let mut tar_bytes = 0;
    for chunk in chunks {
        hasher.update(&chunk);
        tar_bytes += chunk.len() as u64;
    }
    (DiffId::of_uncompressed(hasher.finish()), tar_bytes)
}

/// The inflated tar, as it arrives.
pub(super) struct TarInput {
    chunks: Receiver<io::Result<Chunk>>,
    current: Chunk,
    position: usize,
}

impl Read for TarInput {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() {
            match self.chunks.recv() {
                Ok(chunk) => (self.current, self.position) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.current[self.position..];
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.position += n;
        Ok(n)
    }
}
