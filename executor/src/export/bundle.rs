//! Several images of the store in one tar: a docker archive that is an OCI layout, too, as current docker writes it.
//!
//! The same images give the same bytes: entries are sorted, owners and times are zero. Spec: `spec/engine.md` §1.12.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};

use cache::{BulkReader, Store};
use oci::layer::{Entry, EntryKind, LayerError, TarWriter};
use oci::layout::{
    BLOBS_DIR, DOCKER_MANIFEST_FILE, DockerArchiveImage, INDEX_FILE, LAYOUT_FILE, LAYOUT_JSON, blob_path,
    docker_manifest_json, image_index, index_json,
};
use oci::{Digest, ImageRef, Index, Manifest, media_type};

use super::ExportError;
use crate::push::Parcel;

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// An image on its way into an archive.
#[derive(Clone, Debug)]
pub struct Bundled {
    /// All that it consists of; the blobs are in the store.
    pub parcel: Parcel,
    /// The manifest that stands for it in docker's list, which knows no platforms. `None` for what is no image.
    pub docker_manifest: Option<Digest>,
    /// Its names.
    pub names: Vec<ImageRef>,
}

/// Writes `images` as one tar. Blobs that several have are written once.
///
/// # Errors
/// [`ExportError`]; a blob that the store has lost.
pub fn write_bundle(store: &Store, images: &[Bundled], out: impl Write) -> Result<(), ExportError> {
    let mut tar = TarWriter::new(BufWriter::with_capacity(BUFFER_BYTES, out));
    for directory in ["blobs", BLOBS_DIR] {
        let entry = Entry { mode: 0o755, ..Entry::new(directory.as_bytes(), EntryKind::Directory) };
        tar.append_bytes(&entry, &[]).map_err(fault)?;
    }
    let mut blobs = BTreeMap::new();
    for parcel in images.iter().map(|image| &image.parcel) {
        let stored = parcel.blobs.iter().map(|blob| (&blob.descriptor, None));
        let documents = parcel.documents.iter().map(|document| (&document.descriptor, Some(&document.bytes)));
        blobs.extend(stored.chain(documents).map(|(blob, bytes)| (&blob.digest, (blob.size_bytes, bytes))));
    }
    for (digest, (size_bytes, bytes)) in blobs {
        let path = blob_path(digest);
        let entry = Entry { mode: 0o444, ..Entry::new(path.as_bytes(), EntryKind::Regular { size_bytes }) };
        match bytes {
            Some(bytes) => tar.append_bytes(&entry, bytes).map_err(fault)?,
            None => tar.append(&entry, &mut BulkReader::new(open(store, digest)?)).map_err(fault)?,
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: images
            .iter()
            .flat_map(|image| image_index(image.parcel.top(), &image.names, None).manifests)
            .collect(),
        annotations: BTreeMap::new(),
    };
    let documents = [
        (INDEX_FILE, 0o644, index_json(&index)),
        (DOCKER_MANIFEST_FILE, 0o644, docker_manifest_json(&docker_images(images))),
        (LAYOUT_FILE, 0o444, LAYOUT_JSON.to_vec()),
    ];
    for (name, mode, bytes) in documents {
        let kind = EntryKind::Regular { size_bytes: bytes.len() as u64 };
        tar.append_bytes(&Entry { mode, ..Entry::new(name.as_bytes(), kind) }, &bytes).map_err(fault)?;
    }
    let mut out = tar.finish().map_err(fault)?;
    out.flush().map_err(|error| ExportError::io("write", "the archive", error))
}

/// Docker's list: one entry an image, whatever else an index has.
fn docker_images(images: &[Bundled]) -> Vec<DockerArchiveImage> {
    let entry = |image: &Bundled| {
        let wanted = image.docker_manifest.as_ref()?;
        let document = image.parcel.documents.iter().find(|document| document.descriptor.digest == *wanted)?;
        let manifest: Manifest = serde_json::from_slice(&document.bytes).ok()?;
        let is_image =
            matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
        let layers: Vec<Digest> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
        is_image.then(|| DockerArchiveImage::in_layout(&manifest.config.digest, &layers, &image.names))
    };
    images.iter().filter_map(entry).collect()
}

fn open(store: &Store, digest: &Digest) -> Result<File, ExportError> {
    let path = store.blob_path(digest).ok_or_else(|| ExportError::LostBlob { digest: digest.clone() })?;
    File::open(&path).map_err(|error| ExportError::io("read", path, error))
}

fn fault(error: LayerError) -> ExportError {
    ExportError::io("write", "the archive", std::io::Error::other(error))
}
