//! What can go wrong in the store, and the helpers that make every failure name its operation and its path.

use std::io;
use std::path::{Path, PathBuf};

use oci::Digest;

use crate::id::LayerId;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `create`, `read`, `rename`.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The database failed.
    #[error("the store's index failed to {operation}: {source}")]
    Index {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// Bytes do not have the digest that names them.
    #[error("blob `{expected}` is corrupt: its bytes have the digest `{got}`")]
    DigestMismatch {
        /// The name.
        expected: Digest,
        /// What the bytes are.
        got: Digest,
    },
    /// A layer that an operation needs is no longer (or was never) in the store.
    #[error("layer `{id}` is not in the store")]
    UnknownLayer {
        /// The layer.
        id: LayerId,
    },
    /// A blob that an operation needs is not in the store.
    #[error("blob `{digest}` is not in the store")]
    UnknownBlob {
        /// The blob.
        digest: Digest,
    },
    /// The trees are not written as the caller reads them.
    #[error("the store `{}` has trees in the style `{found}`, not `{wanted}`", path.display())]
    OtherStyle {
        /// The store.
        path: PathBuf,
        /// How they are.
        found: String,
        /// How they would have to be.
        wanted: String,
    },
    /// A blob was committed under a digest nobody computed.
    #[error("a blob written without hashing was committed without its digest")]
    NoDigest,
}

/// The result type of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Turns an I/O result into a [`Result`] that names operation and path.
pub(crate) trait IoContext<T> {
    /// `operation` is a verb; `path` is what it was tried on.
    fn during(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StoreError::Io { operation, path: path.to_owned(), source: error.into() })
    }
}

/// Failure inside a database transaction: the database's own, or one of the file operations that belong to it.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The database's own.
    Sql(rusqlite::Error),
    /// A file operation, or a broken precondition.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// Names what the transaction was for.
    pub(crate) fn during(self, operation: &'static str) -> StoreError {
        match self {
            Self::Sql(source) => StoreError::Index { operation, source },
            Self::Store(error) => error,
        }
    }
}
