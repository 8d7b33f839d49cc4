//! What differs between two images: config, layers, files.
//!
//! [`compare`] is the one to read first; it takes images whose layers are unpacked, and answers with values that can be
//! shown or written as JSON. It knows nothing of where images come from.

mod config;
mod files;

use std::path::PathBuf;

use oci::{DiffId, Digest, ImageConfig, Manifest};
use serde::Serialize;

use crate::view::{RootView, ViewError};

pub use config::FieldChange;
pub use files::{Aspect, EntryFacts, FileChange, Kind};

/// One of the two images.
pub struct Side {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: ImageConfig,
    /// Its files.
    pub root: RootView,
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Fields of the config, by name; what the layers say is not among them.
    pub config: Vec<FieldChange>,
    /// All layers, base layer first.
    pub layers: Vec<LayerPair>,
    /// History entries whose text, author or comment differ; times do not count where everything else is the same.
    pub history: Vec<HistoryChange>,
    /// Files, by path.
    pub files: Vec<FileChange>,
}

/// The layers at one place of both images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerPair {
    /// Digest of the first one's tar.
    pub a: Option<DiffId>,
    /// Digest of the other one's.
    pub b: Option<DiffId>,
    /// Whether the tars are the same.
    pub is_equal: bool,
    /// Whether the blobs are, too: the same tar can be compressed in several ways.
    pub is_same_blob: bool,
    /// What made it, as the history of the first image says, or of the other where the first has none.
    pub created_by: Option<String>,
}

/// History entries at one place of both images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryChange {
    /// From 0, oldest first.
    pub number: usize,
    /// What the first image says.
    pub a: Option<String>,
    /// What the other says.
    pub b: Option<String>,
}

impl Comparison {
    /// Whether nothing differs that an image has: how its layers are compressed does not count.
    pub fn is_equal(&self) -> bool {
        self.config.is_empty()
            && self.files.is_empty()
            && self.history.is_empty()
            && self.layers.iter().all(|layer| layer.is_equal)
    }
}

/// Compares two images.
///
/// # Errors
/// Files that cannot be read.
pub fn compare(a: &Side, b: &Side) -> Result<Comparison, CompareError> {
    let layers = layers(a, b);
    // The same tars give the same files, whatever is on this disk.
    let files = if layers.iter().all(|layer| layer.is_equal) { Vec::new() } else { files::compare(&a.root, &b.root)? };
    Ok(Comparison { config: config::compare(&a.config, &b.config), layers, history: history(a, b), files })
}

/// Why images cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The files of an image cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file of an image cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// Path in the image.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl From<CompareError> for solver::OpError {
    fn from(error: CompareError) -> Self {
        match error {
            CompareError::View(error) => error.into(),
            CompareError::Io { .. } => Self::environment(error.to_string()),
        }
    }
}

fn layers(a: &Side, b: &Side) -> Vec<LayerPair> {
    let (of_a, of_b) = (&a.config.rootfs.diff_ids, &b.config.rootfs.diff_ids);
    let made_by = |side: &Side, number: usize| {
        let with_layer = side.config.history.iter().filter(|entry| !entry.empty_layer);
        with_layer.map(|entry| entry.created_by.clone()).nth(number).filter(|text| !text.is_empty())
    };
    (0..of_a.len().max(of_b.len()))
        .map(|number| {
            let (one, other) = (of_a.get(number).cloned(), of_b.get(number).cloned());
            let blob = |side: &Side| side.manifest.layers.get(number).map(|layer| layer.digest.clone());
            LayerPair {
                is_equal: one == other,
                is_same_blob: blob(a) == blob(b),
                created_by: made_by(a, number).or_else(|| made_by(b, number)),
                a: one,
                b: other,
            }
        })
        .collect()
}

/// Entries that say something else. Times alone are a difference only when all else is equal: then they are the reason.
fn history(a: &Side, b: &Side) -> Vec<HistoryChange> {
    let (of_a, of_b) = (&a.config.history, &b.config.history);
    let text = |entry: &oci::HistoryEntry, with_time: bool| {
        let time = entry.created.as_deref().filter(|_| with_time).map(|time| format!("{time} ")).unwrap_or_default();
        let author = if entry.author.is_empty() { String::new() } else { format!(" (by {})", entry.author) };
        let comment = if entry.comment.is_empty() { String::new() } else { format!(" [{}]", entry.comment) };
        let kind = if entry.empty_layer { " (no layer)" } else { "" };
        format!("{time}{}{author}{comment}{kind}", entry.created_by)
    };
    let changes = |with_time: bool| -> Vec<HistoryChange> {
        let entries = (0..of_a.len().max(of_b.len())).map(|number| HistoryChange {
            number,
            a: of_a.get(number).map(|entry| text(entry, with_time)),
            b: of_b.get(number).map(|entry| text(entry, with_time)),
        });
        entries.filter(|change| change.a != change.b).collect()
    };
    let changed = changes(false);
    if changed.is_empty() { changes(true) } else { changed }
}
