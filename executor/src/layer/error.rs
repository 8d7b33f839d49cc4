//! What can go wrong between the forms of a layer.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci::layer::{CodecError, StreamError};

/// A layer that cannot be brought into another form.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file operation failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `read`, `create`.
        operation: &'static str,
        /// On which path: inside the tree or the layers below, except for the tree itself.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The tar is malformed, too large, or cannot be written.
    #[error(transparent)]
    Tar(#[from] oci::layer::LayerError),
    /// Hashing or compressing failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] cache::StoreError),
    /// An entry of a tar that no tree may have.
    #[error("entry `{}` of the layer is refused: {reason}", path.display())]
    Refused {
        /// The entry.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A hard link whose target is neither in its layer nor in those below.
    #[error("hard link `{}` of the layer leads to `{}`, which does not exist", path.display(), target.display())]
    MissingLinkTarget {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A tree that only a mounted overlay can be read through.
    #[error("`{}` is only a reference of overlayfs into the layers below: expected a mount without redirect_dir and metacopy", path.display())]
    Redirected {
        /// The entry.
        path: PathBuf,
    },
}

/// The result type of this module.
pub type Result<T, E = TreeError> = std::result::Result<T, E>;

impl TreeError {
    pub(super) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// A closure that names what was tried on `path`, for `map_err`.
    pub(super) fn io_at(operation: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |source| Self::io(operation, as_path(path), source)
    }
}

impl From<TreeError> for solver::OpError {
    /// Nobody but the machine, the registry or the maker of an image can mend these, except for a level that no codec has.
    fn from(error: TreeError) -> Self {
        let message = error.to_string();
        match error {
            TreeError::Stream(StreamError::Codec(CodecError::Level { .. })) => Self::input(message),
            TreeError::Store(error) => error.into(),
            _ => Self::environment(message),
        }
    }
}

/// Bytes of a path as a path.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
