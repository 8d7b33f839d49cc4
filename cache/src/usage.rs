//! What occupies the disk, and whether it could go. Spec: `spec/engine.md` §3.8.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::store::Store;
use crate::survey;

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

/// One thing that occupies the disk. All records together are what `du -s` says of the store's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsageRecord {
    /// A layer's identity, a blob's digest, or the name of a directory or file of the store.
    pub id: String,
    /// What it is.
    pub kind: UsageKind,
    /// What it occupies on disk.
    pub size_bytes: u64,
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Seconds since the epoch.
    pub last_used_at: i64,
    /// How often it was used.
    pub usage_count: u64,
    /// For people.
    pub description: String,
    /// Whether a running build or an image needs it, so that it cannot go.
    pub in_use: bool,
    /// Whether an image needs it.
    pub shared: bool,
    /// Whether its content changes.
    pub mutable: bool,
    /// Identities of the layers it was built on, nearest last.
    pub parents: Vec<String>,
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

impl Store {
    /// Everything that occupies the disk, most recently used first.
    ///
    /// Trees and cache mounts that nobody has measured since they were written are measured now.
    pub fn usage(&self) -> Result<Vec<UsageRecord>> {
        let mut records: Vec<_> = survey::survey(&self.inner)?.units.into_iter().map(|unit| unit.record).collect();
        records.sort_by(|a, b| b.last_used_at.cmp(&a.last_used_at).then_with(|| a.id.cmp(&b.id)));
        Ok(records)
    }
}
