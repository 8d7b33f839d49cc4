//! From a raw tar to its diff ID and its blobs, in one pass.
//!
//! ```text
//! caller ─ write ─► cut into pieces ─┬─► plain sink (own thread): SHA-256, perhaps the tar itself
//!                                    └─► rayon: BLAKE3, known piece? else compress ─► in order ─► blob sinks (own threads)
//! ```
//! A layer of one piece is done on the caller's thread; nothing is started for it. What is in flight is bounded by
//! [`IN_FLIGHT_BYTES_PER_THREAD`], so that a layer of any size passes through a few dozen MiB.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::chunker::{Chunker, MAX_PIECE_BYTES, NORMAL_PIECE_BYTES};
use super::codec::{CodecError, Compressors, PieceCodec};
use super::feed::{Feed, Item};
use super::ordered::Ordered;
use crate::digest::{DiffId, Digest, Sha256};

/// Raw bytes that may wait for compression or for their turn, for each worker of the pool.
///
/// Each of them may have a compressed twin of nearly its size, so two workers hold at most about 28 MiB.
const IN_FLIGHT_BYTES_PER_THREAD: usize = 6 * 1024 * 1024;
/// Without codecs nobody needs pieces: the plain sink gets steps of this size.
const PLAIN_STEP_BYTES: usize = 512 * 1024;
/// Room of a fresh piece; rare longer ones grow to the maximum at once.
const PIECE_CAPACITY_BYTES: usize = NORMAL_PIECE_BYTES + NORMAL_PIECE_BYTES / 2;

/// Takes the bytes of one blob, in order, and names them at the end.
pub trait BlobSink: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The next bytes were made now: no blob that was packed from the same pieces before is the same.
    fn note_new(&mut self) {}

    /// Ends the blob and returns the digest of all bytes. Dropping a sink instead abandons the blob.
    fn finish(self: Box<Self>) -> io::Result<Digest>;
}

/// A sink that hashes what passes on its way to `inner`.
pub struct DigestSink<W> {
    inner: W,
    hasher: Sha256,
}

/// Finds pieces that were compressed before. Asked from several threads at once.
pub trait PieceSource: Send + Sync {
    /// The compressed form of the piece whose raw bytes have the BLAKE3 digest `raw`; `None` when it is not known or
    /// cannot be read.
    fn find(&self, codec: PieceCodec, raw: &[u8; 32]) -> Option<Vec<u8>>;
}

/// Knows no pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPieces;

/// What is to be made of a raw tar.
pub struct StreamOptions {
    /// Gets the raw tar; its digest is the diff ID. [`DigestSink::discarding`] when only that is wanted.
    pub plain: Box<dyn BlobSink>,
    /// The blobs wanted, each with the sink that gets it.
    pub blobs: Vec<(PieceCodec, Box<dyn BlobSink>)>,
    /// Where known pieces are looked up.
    pub pieces: Arc<dyn PieceSource>,
}

/// What came of a raw tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedStream {
    /// Digest of the raw tar.
    pub diff_id: DiffId,
    /// Length of the raw tar.
    pub tar_bytes: u64,
    /// In the order of [`StreamOptions::blobs`].
    pub blobs: Vec<PackedBlob>,
}

/// A finished blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBlob {
    /// How it is compressed.
    pub codec: PieceCodec,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// Its pieces in order, without gaps.
    pub pieces: Vec<PieceRef>,
}

/// A piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceRef {
    /// BLAKE3 digest of the raw bytes.
    pub raw: [u8; 32],
    /// First byte in the blob.
    pub offset_bytes: u64,
    /// Compressed length.
    pub len_bytes: u64,
    /// Whether it was found, not compressed.
    pub was_known: bool,
}

/// Why a stream could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A sink refused bytes.
    #[error("cannot write the {blob} of the layer: {source}")]
    Sink {
        /// Which one: `tar` or `compressed blob`.
        blob: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Compression failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A raw tar on its way to its blobs.
///
/// Usable from any thread, also from a worker of rayon's pool. Dropped before [`LayerStream::finish`], it drops its sinks.
pub struct LayerStream {
    /// `None` when no blob is wanted.
    chunker: Option<Chunker>,
    piece: Vec<u8>,
    tar_bytes: u64,
    plain: Feed<Arc<RawPiece>>,
    blobs: Vec<BlobState>,
    shared: Arc<Shared>,
    in_flight: Ordered<Result<CompressedPiece, CodecError>>,
    in_flight_bytes: usize,
    in_flight_limit: usize,
}

struct BlobState {
    feed: Feed<Form>,
    size_bytes: u64,
    pieces: Vec<PieceRef>,
}

/// What the jobs need.
struct Shared {
    compressors: Vec<Compressors>,
    known: Arc<dyn PieceSource>,
    spares: Arc<Spares>,
}

/// Buffers of pieces that are done with: fresh pages for every piece would cost as much as its hash.
#[derive(Default)]
struct Spares(Mutex<Vec<Vec<u8>>>);

/// A raw piece; its buffer goes back to the spares when the last user drops it.
struct RawPiece {
    bytes: Vec<u8>,
    spares: Arc<Spares>,
}

struct CompressedPiece {
    /// Kept so that the raw bytes count as in flight until the compressed ones are written.
    raw: Arc<RawPiece>,
    digest: [u8; 32],
    /// In the order of the codecs.
    forms: Vec<Form>,
}

/// A piece in one codec.
struct Form {
    bytes: Vec<u8>,
    was_known: bool,
}

impl Item for Arc<RawPiece> {
    fn write_to(&self, sink: &mut dyn BlobSink) -> io::Result<()> {
        sink.write(&self.bytes)
    }
}

impl Item for Form {
    fn write_to(&self, sink: &mut dyn BlobSink) -> io::Result<()> {
        if !self.was_known {
            sink.note_new();
        }
        sink.write(&self.bytes)
    }
}

impl LayerStream {
    /// Starts a stream.
    ///
    /// # Errors
    /// [`CodecError::Level`] for a level that a codec does not have.
    pub fn new(options: StreamOptions) -> Result<Self, StreamError> {
        let mut compressors = Vec::with_capacity(options.blobs.len());
        let mut blobs = Vec::with_capacity(options.blobs.len());
        for (codec, sink) in options.blobs {
            compressors.push(Compressors::new(codec)?);
            blobs.push(BlobState { feed: Feed::new("compressed blob", sink), size_bytes: 0, pieces: Vec::new() });
        }
        Ok(Self {
            chunker: (!blobs.is_empty()).then(Chunker::new),
            piece: Vec::new(),
            tar_bytes: 0,
            plain: Feed::new("tar", options.plain),
            blobs,
            shared: Arc::new(Shared { compressors, known: options.pieces, spares: Arc::default() }),
            in_flight: Ordered::new(),
            in_flight_bytes: 0,
            in_flight_limit: IN_FLIGHT_BYTES_PER_THREAD * rayon::current_num_threads().max(2),
        })
    }

    /// Takes the next bytes of the raw tar.
    ///
    /// Blocks while too much is in flight. After an error the stream is good for nothing but dropping.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        self.tar_bytes += bytes.len() as u64;
        while let Some(n) = self.end_of_piece(bytes) {
            self.fill(&bytes[..n]);
            bytes = &bytes[n..];
            self.dispatch()?;
        }
        self.fill(bytes);
        Ok(())
    }

    /// Ends the stream: all sinks are finished when this returns.
    pub fn finish(mut self) -> Result<PackedStream, StreamError> {
        if self.plain.is_inline() {
            self.finish_inline()?;
        } else {
            if !self.piece.is_empty() {
                self.dispatch()?;
            }
            while let Some(done) = self.in_flight.pop() {
                self.write_out(done?)?;
            }
        }
        let diff_id = DiffId::of_uncompressed(self.plain.finish()?);
        let mut blobs = Vec::with_capacity(self.blobs.len());
        for (state, compressors) in self.blobs.into_iter().zip(&self.shared.compressors) {
            let BlobState { mut feed, size_bytes, pieces } = state;
            let digest = feed.finish()?;
            blobs.push(PackedBlob { codec: compressors.codec(), digest, size_bytes, pieces });
        }
        Ok(PackedStream { diff_id, tar_bytes: self.tar_bytes, blobs })
    }

    /// How many of `bytes` still belong to the current piece, if it ends within them.
    fn end_of_piece(&mut self, bytes: &[u8]) -> Option<usize> {
        match &mut self.chunker {
            Some(chunker) => chunker.cut(bytes),
            None => {
                let n = PLAIN_STEP_BYTES - self.piece.len();
                (bytes.len() >= n).then_some(n)
            }
        }
    }

    fn fill(&mut self, bytes: &[u8]) {
        if self.piece.capacity() == 0 && !bytes.is_empty() {
            self.piece = self.shared.spares.take();
        }
        if self.piece.len() + bytes.len() > self.piece.capacity() {
            self.piece.reserve_exact(MAX_PIECE_BYTES - self.piece.len());
        }
        self.piece.extend_from_slice(bytes);
    }

    /// Sends the current piece on its way.
    fn dispatch(&mut self) -> Result<(), StreamError> {
        let bytes = std::mem::take(&mut self.piece);
        let raw = Arc::new(RawPiece { bytes, spares: Arc::clone(&self.shared.spares) });
        self.plain.send(Arc::clone(&raw))?;
        if self.blobs.is_empty() {
            return Ok(());
        }
        while let Some(done) = self.in_flight.try_pop() {
            self.write_out(done?)?;
        }
        while self.in_flight_bytes + raw.bytes.len() > self.in_flight_limit {
            let Some(done) = self.in_flight.pop() else { break };
            self.write_out(done?)?;
        }
        self.in_flight_bytes += raw.bytes.len();
        let shared = Arc::clone(&self.shared);
        self.in_flight.push(move || shared.compress(raw));
        Ok(())
    }

    /// A layer of one piece: everything at once, without threads.
    fn finish_inline(&mut self) -> Result<(), StreamError> {
        let bytes = std::mem::take(&mut self.piece);
        let raw = Arc::new(RawPiece { bytes, spares: Arc::clone(&self.shared.spares) });
        self.plain.write_inline(&raw)?;
        if self.blobs.is_empty() {
            return Ok(());
        }
        let CompressedPiece { digest, forms, .. } = self.shared.compress(raw)?;
        for (blob, form) in self.blobs.iter_mut().zip(forms) {
            blob.note(digest, &form);
            blob.feed.write_inline(&form)?;
        }
        Ok(())
    }

    fn write_out(&mut self, piece: CompressedPiece) -> Result<(), StreamError> {
        self.in_flight_bytes -= piece.raw.bytes.len();
        for (blob, form) in self.blobs.iter_mut().zip(piece.forms) {
            blob.note(piece.digest, &form);
            blob.feed.send(form)?;
        }
        Ok(())
    }
}

impl BlobState {
    fn note(&mut self, raw: [u8; 32], form: &Form) {
        let len_bytes = form.bytes.len() as u64;
        self.pieces.push(PieceRef { raw, offset_bytes: self.size_bytes, len_bytes, was_known: form.was_known });
        self.size_bytes += len_bytes;
    }
}

impl Write for LayerStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map_err(|error| match error {
            StreamError::Sink { source, .. } => source,
            StreamError::Codec(error) => io::Error::other(error),
        })?;
        Ok(bytes.len())
    }

    /// Does nothing: what is in flight is written by [`LayerStream::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn compress(&self, raw: Arc<RawPiece>) -> Result<CompressedPiece, CodecError> {
        let digest = *blake3::hash(&raw.bytes).as_bytes();
        let mut forms = Vec::with_capacity(self.compressors.len());
        for compressors in &self.compressors {
            let codec = compressors.codec();
            let known = self.known.find(codec, &digest).filter(|bytes| codec.is_plausible(bytes, &raw.bytes));
            forms.push(match known {
                Some(bytes) => Form { bytes, was_known: true },
                None => Form { bytes: compressors.compress(&raw.bytes)?, was_known: false },
            });
        }
        Ok(CompressedPiece { raw, digest, forms })
    }
}

impl Spares {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(PIECE_CAPACITY_BYTES))
    }
}

impl Drop for RawPiece {
    fn drop(&mut self) {
        // A buffer that grew for a rare long piece is let go: kept, all of them would grow in time.
        if self.bytes.capacity() == PIECE_CAPACITY_BYTES {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            self.spares.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

impl<W: Write> DigestSink<W> {
    /// Hashes on the way to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new() }
    }
}

impl DigestSink<io::Sink> {
    /// Hashes and keeps nothing.
    pub fn discarding() -> Self {
        Self::new(io::sink())
    }
}

impl<W: Write + Send> BlobSink for DigestSink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }

    fn finish(mut self: Box<Self>) -> io::Result<Digest> {
        self.inner.flush()?;
        Ok(self.hasher.finish())
    }
}

impl PieceSource for NoPieces {
    fn find(&self, _codec: PieceCodec, _raw: &[u8; 32]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests;
