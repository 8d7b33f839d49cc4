//! Docker archives: configs and layers as files anywhere in the tar, listed by `manifest.json`. They have no manifests;
//! ours are made the same from the same archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use cache::Store;
use oci::image::to_manifest_json;
use oci::layer::{Compression, decompress};
use oci::layout::{DOCKER_MANIFEST_FILE, DockerArchiveImage};
use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageRef, Manifest, Sha256, media_type};

use super::archive::Contents;
use super::{ImportError, Loaded, documents};

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// Makes manifests for the images that `manifest.json` lists.
pub(super) fn images(
    store: &Store,
    images: &[DockerArchiveImage],
    contents: &Contents,
) -> Result<Vec<Loaded>, ImportError> {
    let mut held = Held::new();
    images.iter().map(|image| one(store, image, contents, &mut held)).collect()
}

/// The names that `manifest.json` has for the image with that config.
pub(super) fn names_of(contents: &Contents, config: &Digest) -> Vec<ImageRef> {
    let images = contents.docker.iter().flatten();
    let same = images.filter(|image| contents.file(&image.config) == Some(config));
    same.flat_map(|image| image.repo_tags.iter().filter_map(|text| parse_name(text).ok())).collect()
}

/// What blobs hold that are no plain layers: how they are compressed, and the digest of the tar. Each is looked into once,
/// however often it is listed.
type Held = BTreeMap<Digest, (Compression, Digest)>;

fn one(store: &Store, image: &DockerArchiveImage, contents: &Contents, held: &mut Held) -> Result<Loaded, ImportError> {
    let file = |path: &String| {
        contents
            .file(path)
            .cloned()
            .ok_or_else(|| ImportError::Incomplete { named_by: DOCKER_MANIFEST_FILE.to_owned(), missing: path.clone() })
    };
    let id = file(&image.config)?;
    let config: ImageConfig = documents::read(store, &id)?;
    let digests = image.layers.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    let diff_ids = &config.rootfs.diff_ids;
    let mut layers = Vec::with_capacity(digests.len());
    for (number, digest) in digests.into_iter().enumerate() {
        layers.push(layer(store, &image.layers[number], digest, diff_ids.get(number), held)?);
    }
    documents::note_layers(store, &image.config, &layers, &config)?;
    let size_bytes = store.blob_size(&id)?.unwrap_or_default();
    let bytes = to_manifest_json(&Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(media_type::OCI_CONFIG, id.clone(), size_bytes),
        layers,
        subject: None,
        annotations: Default::default(),
    });
    let target = Descriptor::new(media_type::OCI_MANIFEST, store.put_blob(&bytes)?, bytes.len() as u64);
    let names = image.repo_tags.iter().map(|text| parse_name(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(Loaded { names, target, id })
}

/// A layer as a manifest names it. One that is compressed must hold the tar that the config names.
fn layer(
    store: &Store,
    path: &str,
    digest: Digest,
    diff_id: Option<&DiffId>,
    held: &mut Held,
) -> Result<Descriptor, ImportError> {
    let size_bytes = store.blob_size(&digest)?.unwrap_or_default();
    // The plain tar needs no second look.
    if diff_id.is_some_and(|diff_id| *diff_id.digest() == digest) {
        return Ok(Descriptor::new(media_type::OCI_LAYER, digest, size_bytes));
    }
    let (compression, actual) = match held.get(&digest) {
        Some(known) => known.clone(),
        None => {
            let found = look_into(&store.blob_path(&digest).unwrap_or_default(), path)?;
            held.insert(digest.clone(), found.clone());
            found
        }
    };
    if let Some(expected) = diff_id.filter(|expected| *expected.digest() != actual) {
        let reason = format!("it holds the tar {actual}, and its config names {expected}");
        return Err(ImportError::Malformed { name: path.to_owned(), reason });
    }
    let kind = match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        Compression::Bzip2 | Compression::Xz => {
            let reason = "layers are compressed with gzip or zstd, or not at all".to_owned();
            return Err(ImportError::Malformed { name: path.to_owned(), reason });
        }
    };
    Ok(Descriptor::new(kind, digest, size_bytes))
}

fn look_into(blob: &Path, path: &str) -> Result<(Compression, Digest), ImportError> {
    let fault = |source| ImportError::Io { operation: "read", path: path.into(), source };
    let (compression, mut raw) = File::open(blob).and_then(decompress).map_err(fault)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n_read = raw
            .read(&mut buffer)
            .map_err(|error| ImportError::Malformed { name: path.to_owned(), reason: error.to_string() })?;
        if n_read == 0 {
            return Ok((compression, hash.finish()));
        }
        hash.update(&buffer[..n_read]);
    }
}

fn parse_name(text: &str) -> Result<ImageRef, ImportError> {
    let malformed = |reason: String| ImportError::Malformed { name: DOCKER_MANIFEST_FILE.to_owned(), reason };
    let name = ImageRef::parse_normalized(text).map_err(|error| malformed(format!("the name `{text}`: {error}")))?;
    if name.digest().is_some() {
        return Err(malformed(format!("the name `{text}` has a digest")));
    }
    Ok(name.with_default_tag())
}
