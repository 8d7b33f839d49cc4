//! The layer codec: tar in, tar out, and the compression between a tar and a blob.
//!
//! Works on streams and knows nothing of file systems, stores or whiteout devices. Read [`Entry`] first, then
//! [`TarWriter`] and [`LayerReader`]; [`LayerStream`] cuts a raw tar into pieces and compresses them in parallel.
//!
//! Invariants: the bytes that [`TarWriter`] and [`LayerStream`] produce depend on their input and options alone, never on
//! thread count, time or machine; [`LayerReader`] never panics, never loops without reading and holds a bounded amount of
//! memory, whatever it reads.

mod chunker;
mod codec;
mod decompress;
mod entry;
mod error;
mod estargz;
mod feed;
mod noise;
mod ordered;
mod path;
mod stream;
mod tar_reader;
mod tar_writer;

pub use chunker::{Chunker, MAX_PIECE_BYTES, MIN_PIECE_BYTES, NORMAL_PIECE_BYTES};
pub use codec::{CodecError, PieceCodec};
pub use decompress::{Compression, decompress, sniff_archive};
pub use entry::{Entry, EntryKind, Xattr};
pub use error::LayerError;
pub use estargz::{
    Estargz, EstargzWriter, FOOTER_BYTES, Listing, ListingError, Place, TOC_DIGEST_ANNOTATION, toc_offset,
};
pub use ordered::Ordered;
pub use path::{CleanPath, clean_path};
pub use stream::{
    BlobSink, DigestSink, LayerStream, NoPieces, PackedBlob, PackedStream, PieceRef, PieceSource, StreamError,
    StreamOptions,
};
pub use tar_reader::{Content, LayerReader, Member, ReadLimits};
pub use tar_writer::TarWriter;
