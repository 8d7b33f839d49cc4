//! Tar → eStargz: drives the writer against the store.

use std::io::{self, Read, Write};

use cache::{BlobWriter, Codec, Store, UNCOMPRESSED_ANNOTATION};
use oci::layer::{EstargzWriter, LayerReader, ReadLimits};
use oci::{Descriptor, DiffId, Digest};

use super::error::{Result, TreeError};
use super::pack::media_type_of;

/// Reads a tar to its end and stores it as eStargz. The descriptor has the annotations that readers of the format want, and
/// the diff ID of what was made.
pub(crate) fn make_estargz(store: &Store, mut tar: impl Read, level: u8) -> Result<Descriptor> {
    let mut writer = EstargzWriter::new(StoreWriter(store.blob_writer()?.without_hashing()), level)?;
    let mut entries = LayerReader::new(&mut tar, ReadLimits::default());
    while let Some(mut member) = entries.next_member()? {
        writer.append(&member.entry, &mut member.content)?;
    }
    drop(entries);
    // Whoever writes may go on behind the archive's end.
    io::copy(&mut tar, &mut io::sink()).map_err(|error| TreeError::Io {
        operation: "read",
        path: "the layer".into(),
        source: error,
    })?;
    let (StoreWriter(blob), made) = writer.finish()?;
    blob.commit_prehashed(&made.digest)?;
    let media_type = media_type_of(Codec::Estargz { level });
    let plain = Descriptor::new(media_type, made.digest.clone(), made.size_bytes);
    // Who pulls or builds upon the image finds the layer as one that came from elsewhere.
    store.remember_foreign_blob(&made.diff_id, &plain)?;
    let mut annotations = made.annotations();
    annotations.insert(UNCOMPRESSED_ANNOTATION.to_owned(), made.diff_id.to_string());
    Ok(Descriptor { annotations, ..plain })
}

/// Takes the diff ID out of a descriptor of [`make_estargz`]: it is not for others.
pub(crate) fn take_diff_id(mut descriptor: Descriptor) -> Option<(DiffId, Descriptor)> {
    let diff_id = descriptor.annotations.remove(UNCOMPRESSED_ANNOTATION)?.parse::<Digest>().ok()?;
    Some((DiffId::of_uncompressed(diff_id), descriptor))
}

/// A blob of the store as a stream.
struct StoreWriter(BlobWriter);

impl Write for StoreWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
