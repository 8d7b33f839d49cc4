//! Exporters: write the product. Spec: `spec/engine.md` §1.

mod archive;
mod assemble;
mod attest;
mod built;
mod bundle;
mod local;
mod merge;
mod tar;

use std::path::PathBuf;

use oci::Platform;

use crate::view::{RootView, ViewError};

pub use archive::Archive;
pub use assemble::{AssembledLayer, Assembly, ImageAnnotations, ImageDocuments, MediaTypes, assemble};
pub use attest::{Attestation, AttestationForm, Statement};
pub use built::{BuiltImage, IndexAnnotations};
pub use bundle::{Bundled, write_bundle};
pub use local::{Exported, export_local};
pub use tar::{export_tar, export_tar_entry};

/// The root of one platform, and where its files go.
#[derive(Clone, Debug)]
pub struct PlacedRoot {
    /// Whose root it is.
    pub platform: Platform,
    /// Its files.
    pub root: RootView,
    /// They go to a directory of the platform's own, else to the top.
    pub is_apart: bool,
    /// The time of every entry, in seconds; `None` leaves times as they are.
    pub epoch: Option<i64>,
}

impl PlacedRoot {
    /// Name of the directory that the files go to: `linux_arm_v7`. `None` is the top.
    pub fn directory(&self) -> Option<String> {
        self.is_apart.then(|| self.platform.qualified().replace('/', "_"))
    }
}

/// Mode of a platform's own directory.
const DIRECTORY_MODE: u32 = 0o755;

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file operation failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The root could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A layer's blob is not where it was put.
    #[error("the store has lost the blob {digest}")]
    LostBlob {
        /// Which.
        digest: oci::Digest,
    },
    /// Two platforms want different things at one path. BuildKit's words.
    #[error("cannot overwrite {path} from {first} with {second} when split option is disabled")]
    Overwritten {
        /// Inside the root, without a slash in front.
        path: String,
        /// The platform that came first, as shown.
        first: String,
        /// The other.
        second: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] cache::StoreError),
}

impl ExportError {
    /// A file operation failed.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

impl From<ExportError> for solver::OpError {
    fn from(error: ExportError) -> Self {
        let message = error.to_string();
        match error {
            ExportError::Overwritten { .. } => {
                Self::input(message).help("leave out platform-split=false: every platform gets a directory of its own")
            }
            _ => Self::environment(message),
        }
    }
}
