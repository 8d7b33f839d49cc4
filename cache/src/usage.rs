//! What occupies the disk, and whether it could go. Spec: `spec/engine.md` §3.8.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a usage record is about; BuildKit's record types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum UsageKind {
    /// A step's result, or a blob.
    #[serde(rename = "regular")]
    Regular,
    /// The index of a local context.
    #[serde(rename = "source.local")]
    SourceLocal,
    /// A shared repository or checkout.
    #[serde(rename = "source.git.checkout")]
    SourceGitCheckout,
    /// A cache mount.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
    /// An image pulled to act as a frontend.
    #[serde(rename = "frontend")]
    Frontend,
    /// The store's own housekeeping, and small documents of images.
    #[serde(rename = "internal")]
    Internal,
}

impl UsageKind {
    /// The name that users filter by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::SourceLocal => "source.local",
            Self::SourceGitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
            Self::Frontend => "frontend",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for UsageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
