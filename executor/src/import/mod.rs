//! Images that come as files: docker archives, OCI layouts as tar or directory.
//!
//! [`load`] reads one into the store; blobs first, in whatever order they come, each under the digest of its bytes, then
//! the documents, which must agree with what was read; names come last, all or none. So an archive that is torn, or lies
//! about its content, leaves nothing that a later build would trust. Knows nothing of registries.
//!
//! Spec: `spec/engine.md` §1.12, `spec/cli.md` §6 (`load`).

mod archive;
mod docker;
mod documents;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cache::Store;
use oci::layer::LayerError;
use oci::layout::{Layout, LayoutError};
use oci::media_type::ManifestKindError;
use oci::{Descriptor, Digest, ImageRef, Index, Platform};

use self::archive::Contents;

/// Images, and names, that one archive may have. Each name is a file that is on the disk before the next one is written.
const MAX_IMAGES: usize = 1024;

/// Where images come from.
pub enum Source<'a> {
    /// A tar, compressed or not.
    Tar(&'a mut (dyn Read + Send)),
    /// The directory of an OCI layout.
    Directory(&'a Path),
}

/// An image that is in the store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its names; empty when the archive gives none.
    pub names: Vec<ImageRef>,
    /// Its manifest or index.
    pub target: Descriptor,
    /// The image ID: digest of its config, or of the index.
    pub id: Digest,
}

/// Why an archive was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no tar, or a broken one.
    #[error("this is no archive of images: {0}")]
    Tar(#[from] LayerError),
    /// A directory that is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Neither `index.json` nor `manifest.json`.
    #[error("the archive has no images: it has neither `index.json` nor `manifest.json`")]
    NoImages,
    /// Docker's format from before 2015.
    #[error("the archive has docker's old format, without `manifest.json`")]
    TooOld,
    /// More than any sane archive has.
    #[error("the archive lists {got} {what}, at most {MAX_IMAGES} are read")]
    TooMany {
        /// Images or names.
        what: &'static str,
        /// How many.
        got: usize,
    },
    /// A document is none.
    #[error("`{name}` in the archive is malformed: {reason}")]
    Malformed {
        /// Path in the archive, or the digest of a blob.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes of a blob are others than its name says.
    #[error("`{path}` in the archive has other content than its name says: got {actual}")]
    DigestMismatch {
        /// Path in the archive.
        path: String,
        /// The digest of its bytes.
        actual: Digest,
    },
    /// A document names what is not there.
    #[error("the archive is incomplete: `{named_by}` names `{missing}`, which it does not have")]
    Incomplete {
        /// Path or digest of the document.
        named_by: String,
        /// Path or digest of what it names.
        missing: String,
    },
    /// A manifest or index is none.
    #[error("`{digest}` in the archive is no image: {source}")]
    Kind {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestKindError,
    },
    /// An index lists an index.
    #[error("`{outer}` in the archive is an index that lists another index, {inner}: such images cannot be loaded")]
    Nested {
        /// The outer one.
        outer: Digest,
        /// The inner one.
        inner: Digest,
    },
    /// The archive has the image for other platforms.
    #[error("the archive has no image for {wanted}: it has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    NoPlatform {
        /// As asked for.
        wanted: Box<Platform>,
        /// Those that are there.
        known: Vec<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] cache::StoreError),
}

impl From<ImportError> for solver::OpError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::Io { .. } => Self::environment(error.to_string()),
            ImportError::TooOld => Self::input(error.to_string()).help("save the image again with a docker of this decade"),
            ImportError::NoImages => Self::input(error.to_string())
                .help("`docker save`, `podman save`, `skopeo copy … oci-archive:FILE` and `rbuild save` write archives of images"),
            error => Self::input(error.to_string()),
        }
    }
}

/// Reads images into the store and names them. With `platform`, only the image for it is taken out of an index.
///
/// The caller holds a lease of the store. Blocks.
///
/// # Errors
/// [`ImportError`]; no name has been given then.
pub fn load(store: &Store, source: Source<'_>, platform: Option<&Platform>) -> Result<Vec<Loaded>, ImportError> {
    let loaded = read(store, source, platform)?;
    limit("names", loaded.iter().map(|image| image.names.len()).sum())?;
    for image in &loaded {
        for name in &image.names {
            store.tag(name, &image.target)?;
        }
        if image.names.is_empty() {
            store.keep_dangling(&image.target)?;
        }
    }
    Ok(loaded)
}

/// As [`load`], but no image is named or kept: the caller's lease is what holds them.
///
/// # Errors
/// [`ImportError`].
pub fn read(store: &Store, source: Source<'_>, platform: Option<&Platform>) -> Result<Vec<Loaded>, ImportError> {
    match source {
        Source::Tar(reader) => {
            let contents = archive::read(store, reader)?;
            match (&contents.index, &contents.docker) {
                // Current docker writes both: the layout has more in it.
                (Some(index), _) if !index.manifests.is_empty() => from_layout(store, index, &contents, platform),
                (_, Some(images)) => {
                    limit("images", images.len())?;
                    docker::images(store, images, &contents)
                }
                (Some(_), None) => Err(ImportError::NoImages),
                (None, None) if contents.has("repositories") => Err(ImportError::TooOld),
                (None, None) => Err(ImportError::NoImages),
            }
        }
        Source::Directory(dir) => {
            let layout = Layout::open(dir)?;
            let index = layout.index()?;
            documents::copy_layout(store, &layout, &index)?;
            from_layout(store, &index, &Contents::default(), platform)
        }
    }
}

fn limit(what: &'static str, got: usize) -> Result<(), ImportError> {
    if got > MAX_IMAGES { Err(ImportError::TooMany { what, got }) } else { Ok(()) }
}

/// The images that `index.json` lists. Entries for the same image are its names.
fn from_layout(
    store: &Store,
    index: &Index,
    contents: &Contents,
    platform: Option<&Platform>,
) -> Result<Vec<Loaded>, ImportError> {
    let mut loaded: Vec<Loaded> = Vec::new();
    let mut by_digest: BTreeMap<Digest, usize> = BTreeMap::new();
    for entry in &index.manifests {
        let name = documents::name_of(entry);
        if let Some(at) = by_digest.get(&entry.digest) {
            let names = &mut loaded[*at].names;
            names.extend(name.filter(|name| !names.contains(name)));
            continue;
        }
        let image = documents::check(store, entry, platform)?;
        by_digest.insert(entry.digest.clone(), loaded.len());
        loaded.push(Loaded { names: name.into_iter().collect(), ..image });
    }
    // Names may stand in docker's list alone.
    for image in loaded.iter_mut().filter(|image| image.names.is_empty()) {
        image.names = docker::names_of(contents, &image.id);
    }
    Ok(loaded)
}
