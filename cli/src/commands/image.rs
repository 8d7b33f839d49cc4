//! Images of the local store, as people name them.

use cache::{Store, StoredImage};
use oci::{Digest, ImageConfig, ImageRef, Manifest};

use crate::failure::Failure;

/// The least hex digits that abbreviate an ID.
const MIN_ABBREVIATION: usize = 4;

/// One image with its documents.
pub(crate) struct Image {
    /// What the store says.
    pub(crate) stored: StoredImage,
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// Its config.
    pub(crate) config: ImageConfig,
}

impl Image {
    /// Reads the documents of a stored image.
    pub(crate) fn load(store: &Store, stored: StoredImage) -> Result<Self, Failure> {
        let manifest: Manifest = document(store, &stored.target.digest)?;
        let config = document(store, &manifest.config.digest)?;
        Ok(Self { stored, manifest, config })
    }

    /// The image ID.
    pub(crate) fn id(&self) -> &Digest {
        &self.manifest.config.digest
    }

    /// Bytes of all uncompressed layers, as far as known; the blobs' sizes otherwise.
    pub(crate) fn size_bytes(&self, store: &Store) -> Result<u64, Failure> {
        let mut total = 0;
        for (diff_id, blob) in self.config.rootfs.diff_ids.iter().zip(&self.manifest.layers) {
            total += store.layer_for_diff_id(diff_id)?.tar_bytes.unwrap_or(blob.size_bytes);
        }
        Ok(total)
    }
}

/// Every image, newest first. One whose documents are damaged is left out with a trace, so that the others can be used.
pub(crate) fn all(store: &Store) -> Result<Vec<Image>, Failure> {
    let load = |stored: StoredImage| {
        let name = stored.target.digest.clone();
        match Image::load(store, stored) {
            Ok(image) => Some(image),
            Err(failure) => {
                tracing::warn!(digest = %name, ?failure, "image cannot be read");
                None
            }
        }
    };
    Ok(store.images()?.into_iter().filter_map(load).collect())
}

/// The images that `text` names: one by name, or all names of one ID (or the beginning of an ID).
pub(crate) fn find(store: &Store, text: &str) -> Result<Vec<Image>, Failure> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let could_be_id = hex.len() >= MIN_ABBREVIATION && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Ok(reference) = ImageRef::parse_normalized(text)
        && let Some(stored) = store.image(&reference.with_default_tag())?
    {
        return Ok(vec![Image::load(store, stored)?]);
    }
    let mut found = Vec::new();
    if could_be_id {
        found = all(store)?;
        found.retain(|image| image.id().hex().starts_with(hex) || image.stored.target.digest.hex().starts_with(hex));
    }
    let mut ids: Vec<String> = found.iter().map(|image| image.id().hex()).collect();
    ids.dedup();
    match ids.len() {
        0 => Err(not_found(store, text)),
        1 => Ok(found),
        n => Err(Failure::input(format!("`{text}` begins the IDs of {n} images")).help("give more digits")),
    }
}

fn not_found(store: &Store, text: &str) -> Failure {
    let failure = Failure::input(format!("no such image: {text}"));
    let names = store.images().unwrap_or_default();
    let names = names.into_iter().filter_map(|image| image.reference).map(|name| name.familiar());
    let nearest = names.map(|name| (strsim::levenshtein(&name, text), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 3 => failure.help(format!("did you mean `{name}`?")),
        _ => failure.help("`rbuild images` lists what there is"),
    }
}

fn document<T: serde::de::DeserializeOwned>(store: &Store, digest: &Digest) -> Result<T, Failure> {
    let bytes = store.read_blob(digest)?;
    let bytes = bytes.ok_or_else(|| Failure::environment(format!("the store has lost the blob {digest}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::environment(format!("blob {digest} is no image document: {error}")))
}
