//! Tar → blobs: drives the codec against the store.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use cache::{BlobWriter, Codec, PieceLocation, Store, read_part};
use oci::layer::{BlobSink, DigestSink, LayerStream, PackedBlob, PieceCodec, PieceSource, StreamOptions};
use oci::{Descriptor, DiffId, Digest, media_type};

use super::error::Result;

/// What is wanted of a layer's tar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Store the tar itself, under its diff ID.
    pub keep_plain: bool,
    /// Store these compressed forms. [`Codec::Plain`] means the same as `keep_plain`; [`Codec::Estargz`] is none that comes of
    /// the bytes alone ([`super::estargz`]), and is not made here.
    pub codecs: Vec<Codec>,
    /// Nothing with this content was packed before: onlookers need not wait for a piece that is not known.
    pub is_new: bool,
}

/// Those who want to read blobs of layers while they are made.
pub trait Onlookers: Send + Sync {
    /// A blob in `codec` begins, in the file at `path`. `None` if nobody wants it.
    fn watch(&self, codec: Codec, path: &Path) -> Option<Box<dyn Onlooker>>;
}

/// One who reads a blob while it is made. It is dropped when the blob is given up.
pub trait Onlooker: Send {
    /// The file has this many of the blob's first bytes, and the blob is one that was not made before.
    fn see_grown(&mut self, n_bytes: u64);

    /// The file has all of the blob.
    fn see_complete(self: Box<Self>, digest: &Digest);
}

/// What came of a layer's tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// Length of the tar.
    pub tar_bytes: u64,
    /// The stored forms in the order of [`PackOptions::codecs`], with OCI media types.
    pub blobs: Vec<(Codec, Descriptor)>,
    /// Pieces that were compressed now, over all codecs.
    pub n_new_pieces: usize,
    /// Pieces that had been compressed before, over all codecs.
    pub n_known_pieces: usize,
}

/// Takes the raw tar of one layer and makes its diff ID and blobs.
///
/// Blobs are visible in the store when [`LayerSink::finish`] has returned, and not at all when it is dropped before. With
/// neither plain nor codecs wanted it only computes the diff ID. Usable on a worker of rayon's pool.
pub struct LayerSink {
    store: Store,
    codecs: Vec<Codec>,
    stream: LayerStream,
}

impl LayerSink {
    /// Starts a layer, of which `onlookers` may read the compressed forms.
    ///
    /// # Errors
    /// [`super::TreeError::Store`]; [`super::TreeError::Stream`] for a level that a codec does not have.
    pub fn new(store: &Store, options: &PackOptions, onlookers: Option<&dyn Onlookers>) -> Result<Self> {
        let keeps_plain = options.keep_plain || options.codecs.contains(&Codec::Plain);
        let plain: Box<dyn BlobSink> = match keeps_plain {
            true => Box::new(StoreSink::new(store, None)?),
            false => Box::new(DigestSink::discarding()),
        };
        let mut blobs: Vec<(PieceCodec, Box<dyn BlobSink>)> = Vec::new();
        for codec in options.codecs.iter().copied().filter_map(piece_codec) {
            if blobs.iter().all(|(other, _)| *other != codec) {
                let onlookers = onlookers.map(|onlookers| (onlookers, store_codec(codec)));
                blobs
                    .push((codec, Box::new(StoreSink { is_new: options.is_new, ..StoreSink::new(store, onlookers)? })));
            }
        }
        let pieces = Arc::new(StorePieces(store.clone()));
        let stream = LayerStream::new(StreamOptions { plain, blobs, pieces })?;
        let mut codecs = options.codecs.clone();
        codecs.retain(|codec| !matches!(codec, Codec::Estargz { .. }));
        Ok(Self { store: store.clone(), codecs, stream })
    }

    /// Takes the next bytes of the tar.
    ///
    /// # Errors
    /// [`super::TreeError::Stream`]; the sink is good for nothing but dropping then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.push(bytes)?)
    }

    /// Ends the layer: publishes its blobs and remembers them and their pieces.
    ///
    /// # Errors
    /// [`super::TreeError::Stream`], [`super::TreeError::Store`].
    pub fn finish(self) -> Result<Packed> {
        let stream = self.stream.finish()?;
        let (diff_id, tar_bytes) = (stream.diff_id, stream.tar_bytes);
        for blob in &stream.blobs {
            remember_pieces(&self.store, blob)?;
        }
        let mut blobs: Vec<(Codec, Descriptor)> = Vec::with_capacity(self.codecs.len());
        for codec in self.codecs {
            let packed = piece_codec(codec).and_then(|piece| stream.blobs.iter().find(|blob| blob.codec == piece));
            let descriptor = match packed {
                Some(blob) => Descriptor::new(media_type_of(codec), blob.digest.clone(), blob.size_bytes),
                None => Descriptor::new(media_type::OCI_LAYER, diff_id.digest().clone(), tar_bytes),
            };
            self.store.remember_blob(&diff_id, codec, &descriptor)?;
            blobs.push((codec, descriptor));
        }
        let pieces = || stream.blobs.iter().flat_map(|blob| &blob.pieces);
        let n_known_pieces = pieces().filter(|piece| piece.was_known).count();
        Ok(Packed { diff_id, tar_bytes, blobs, n_new_pieces: pieces().count() - n_known_pieces, n_known_pieces })
    }
}

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    /// Does nothing: see [`LayerSink::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The media type of a layer in `codec`. Spec: `spec/engine.md` §1.4.
pub fn media_type_of(codec: Codec) -> &'static str {
    match codec {
        Codec::Plain => media_type::OCI_LAYER,
        Codec::Gzip { .. } | Codec::Estargz { .. } => media_type::OCI_LAYER_GZIP,
        Codec::Zstd { .. } => media_type::OCI_LAYER_ZSTD,
    }
}

fn piece_codec(codec: Codec) -> Option<PieceCodec> {
    match codec {
        Codec::Plain | Codec::Estargz { .. } => None,
        Codec::Gzip { level } => Some(PieceCodec::Gzip { level }),
        Codec::Zstd { level } => Some(PieceCodec::Zstd { level }),
    }
}

fn store_codec(codec: PieceCodec) -> Codec {
    match codec {
        PieceCodec::Gzip { level } => Codec::Gzip { level },
        PieceCodec::Zstd { level } => Codec::Zstd { level },
    }
}

fn remember_pieces(store: &Store, blob: &PackedBlob) -> Result<()> {
    let locations: Vec<_> = blob
        .pieces
        .iter()
        .map(|piece| {
            let (offset_bytes, len_bytes) = (piece.offset_bytes, piece.len_bytes);
            (piece.raw, PieceLocation { blob: blob.digest.clone(), offset_bytes, len_bytes })
        })
        .collect();
    Ok(store.remember_pieces(store_codec(blob.codec), &locations)?)
}

/// A blob of the store; the writer hashes as it writes.
struct StoreSink {
    blob: BlobWriter,
    onlooker: Option<Box<dyn Onlooker>>,
    /// Whether it is a blob that was never made before, as far as can be known.
    is_new: bool,
}

impl StoreSink {
    fn new(store: &Store, onlookers: Option<(&dyn Onlookers, Codec)>) -> Result<Self> {
        let blob = store.blob_writer()?;
        let file = blob.growing_file();
        let onlooker = onlookers.zip(file).and_then(|((onlookers, codec), (path, _))| onlookers.watch(codec, path));
        Ok(Self { blob, onlooker, is_new: false })
    }
}

impl BlobSink for StoreSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.blob.write(bytes).map_err(io::Error::other)?;
        if let (Some(onlooker), true, Some((_, n_bytes))) = (&mut self.onlooker, self.is_new, self.blob.growing_file())
        {
            onlooker.see_grown(n_bytes);
        }
        Ok(())
    }

    fn note_new(&mut self) {
        self.is_new = true;
    }

    fn finish(self: Box<Self>) -> io::Result<Digest> {
        let Self { blob, onlooker, .. } = *self;
        let digest = blob.commit(None).map_err(io::Error::other)?;
        if let Some(onlooker) = onlooker {
            onlooker.see_complete(&digest);
        }
        Ok(digest)
    }
}

/// Pieces of the blobs in the store.
struct StorePieces(Store);

impl PieceSource for StorePieces {
    /// A store that cannot answer costs time, not the build.
    fn find(&self, codec: PieceCodec, raw: &[u8; 32]) -> Option<Vec<u8>> {
        let location = self.0.find_pieces(std::slice::from_ref(raw), store_codec(codec)).ok()?.pop()??;
        let blob = File::open(self.0.blob_path(&location.blob)?).ok()?;
        read_part(&blob, location.offset_bytes, usize::try_from(location.len_bytes).ok()?).ok()
    }
}

#[cfg(test)]
mod tests;
