//! Images of the local store, as people name them.

use std::collections::BTreeMap;

use cache::{Store, StoredImage};
use oci::{Descriptor, Digest, ImageConfig, ImageRef, Index, Manifest, Platform, attestation, media_type};

use crate::failure::Failure;

/// The least hex digits that abbreviate an ID.
const MIN_ABBREVIATION: usize = 4;

/// One image with its documents: that of one platform, or an index of several.
pub(crate) struct Image {
    /// What the store says.
    pub(crate) stored: StoredImage,
    /// In the order of the index; never empty.
    platforms: Vec<PlatformImage>,
    /// What else the index lists, in its order.
    others: Vec<Other>,
}

/// An entry of an index that is no image which is here.
pub(crate) struct Other {
    /// As the index has it.
    pub(crate) descriptor: Descriptor,
    /// Whether its manifest is stored. An attestation is; so is an artifact. The image of another platform may not be.
    pub(crate) is_here: bool,
}

/// The image of one platform.
pub(crate) struct PlatformImage {
    /// Where it stands in the index.
    position: usize,
    /// Its manifest, as the index or the store names it.
    pub(crate) descriptor: Descriptor,
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// Its config.
    pub(crate) config: ImageConfig,
}

impl Image {
    /// Reads the documents of a stored image.
    pub(crate) fn load(store: &Store, stored: StoredImage) -> Result<Self, Failure> {
        let target = &stored.target;
        let is_index = media_type::is_index(&target.media_type);
        let listed = if is_index { document::<Index>(store, &target.digest)?.manifests } else { vec![target.clone()] };
        let (mut platforms, mut others) = (Vec::new(), Vec::new());
        for (position, descriptor) in listed.into_iter().enumerate() {
            let is_here = store.blob_path(&descriptor.digest).is_some();
            // An index that was pulled or loaded for some platforms names more than is here.
            if is_index && !(is_here && attestation::is_image(&descriptor)) {
                others.push(Other { descriptor, is_here });
            } else {
                platforms.push(PlatformImage::load(store, descriptor, position)?);
            }
        }
        if platforms.is_empty() {
            return Err(Failure::environment(format!("the index {} has no image that is here", target.digest)));
        }
        Ok(Self { stored, platforms, others })
    }

    /// Whether it is an index.
    pub(crate) fn is_index(&self) -> bool {
        media_type::is_index(&self.stored.target.media_type)
    }

    /// The image ID: digest of the config, or of the index.
    pub(crate) fn id(&self) -> &Digest {
        if self.is_index() { &self.stored.target.digest } else { self.platforms[0].id() }
    }

    /// The images, in the order of the index.
    pub(crate) fn platforms(&self) -> &[PlatformImage] {
        &self.platforms
    }

    /// Attestations, artifacts, and images that are not here, in the order of the index.
    pub(crate) fn others(&self) -> &[Other] {
        &self.others
    }

    /// Where `one` of the images stands in the index, among everything that it lists.
    pub(crate) fn position(&self, one: &PlatformImage) -> usize {
        one.position
    }

    /// What stands for the whole: the image that runs here, else the first.
    pub(crate) fn shown(&self) -> &PlatformImage {
        self.best_for(&Platform::host()).unwrap_or(&self.platforms[0])
    }

    /// The image for `wanted`; `text` is what the user calls the whole.
    ///
    /// # Errors
    /// It is for other platforms only.
    pub(crate) fn for_platform(&self, wanted: &Platform, text: &str) -> Result<&PlatformImage, Failure> {
        self.best_for(wanted).ok_or_else(|| {
            let known: Vec<String> = self.platforms.iter().map(|image| image.platform().to_string()).collect();
            let failure = Failure::input(format!("`{text}` has no image for {wanted}: it has {}", known.join(", ")));
            failure.help(format!("choose one of them: --platform {}", known[0]))
        })
    }

    fn best_for(&self, wanted: &Platform) -> Option<&PlatformImage> {
        let ranked = self.platforms.iter().filter_map(|image| Some((wanted.match_rank(&image.platform())?, image)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image)
    }
}

impl PlatformImage {
    fn load(store: &Store, descriptor: Descriptor, position: usize) -> Result<Self, Failure> {
        let manifest: Manifest = document(store, &descriptor.digest)?;
        let config = document(store, &manifest.config.digest)?;
        Ok(Self { position, descriptor, manifest, config })
    }

    /// Digest of its config.
    pub(crate) fn id(&self) -> &Digest {
        &self.manifest.config.digest
    }

    /// What it runs on.
    pub(crate) fn platform(&self) -> Platform {
        self.descriptor.platform.clone().unwrap_or_else(|| self.config.platform()).normalized()
    }
}

/// Bytes of the uncompressed layers of images, each once, as far as known; the blobs' sizes otherwise.
pub(crate) fn size_bytes(store: &Store, images: &[PlatformImage]) -> Result<u64, Failure> {
    let mut sizes = BTreeMap::new();
    for image in images {
        for (diff_id, blob) in image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers) {
            sizes.insert(diff_id, store.layer_for_diff_id(diff_id)?.tar_bytes.unwrap_or(blob.size_bytes));
        }
    }
    Ok(sizes.values().sum())
}

/// When the image was made; when it got its name, if it does not say.
pub(crate) fn created_at(image: &Image) -> i64 {
    let time = image.shown().config.created.as_deref().and_then(|time| oci::time::parse_rfc3339(time).ok());
    time.map_or(image.stored.updated_at, |(seconds, _)| seconds)
}

/// Repository and tag as docker shows them.
pub(crate) fn names(reference: Option<&ImageRef>) -> (String, String) {
    let none = || "<none>".to_owned();
    let Some(reference) = reference else { return (none(), none()) };
    let familiar = reference.familiar();
    let tag = reference.tag().map_or_else(none, str::to_owned);
    let repository = familiar.strip_suffix(&format!(":{tag}")).map(str::to_owned).unwrap_or(familiar);
    (repository, tag)
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
