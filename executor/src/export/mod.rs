//! Exporters: write the product. Spec: `spec/engine.md` §1.

mod archive;
mod assemble;
mod local;
mod tar;

use std::path::PathBuf;

use crate::view::ViewError;

pub use archive::Archive;
pub use assemble::{AssembledLayer, Assembly, ImageDocuments, MediaTypes, assemble};
pub use local::{Exported, export_local};
pub use tar::export_tar;

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
        Self::environment(error.to_string())
    }
}
