//! What can go wrong in a view.

use std::path::PathBuf;

/// Why a question about a root could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A kernel call failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `read link`.
        operation: &'static str,
        /// On which host path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A path leads through more than 255 links.
    #[error("too many links on the way to `{}`", path.display())]
    TooManyLinks {
        /// The path inside the root.
        path: PathBuf,
    },
}

impl ViewError {
    /// A failed kernel call.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

impl From<ViewError> for solver::OpError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Io { .. } => Self::environment(error.to_string()),
            ViewError::TooManyLinks { .. } => Self::input(error.to_string()),
        }
    }
}
