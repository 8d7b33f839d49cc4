//! The store: keeps bytes and finds them again.
//!
//! One directory, shared by any number of processes. Immutable files are the truth (temporary file, then rename; names
//! are digests or identities); one SQLite database holds records, references, last use and sizes, and may be lost with
//! nothing worse than a cold cache. Has never heard of how a step runs. Read [`Store`] first, then [`Bucket`].
#![forbid(unsafe_code)]

mod blobs;
mod builds;
mod bulk;
mod cap;
mod check;
mod context_index;
mod durability;
mod error;
mod evictions;
mod explanations;
mod file_list;
mod filter;
mod gc;
mod id;
mod images;
mod imported;
mod index;
mod layers;
mod layout;
mod lease;
mod locks;
#[cfg(test)]
mod model;
mod mounts;
mod rebuild;
mod records;
pub mod remote;
mod removal;
mod reserve;
mod resolutions;
mod schema;
mod scratch;
mod session;
mod store;
mod style;
mod survey;
#[cfg(test)]
mod testing;
mod usage;
mod variants;

pub use blobs::BlobWriter;
pub use builds::BuildName;
pub use bulk::{BulkFile, BulkReader, read_part};
pub use cap::{Exceeded, SpaceLimits, SpaceWatch};
pub use check::{CheckMode, CheckOptions, CheckPart, CheckReport, Finding, Problem, TreeDigest};
pub use context_index::{ContextEntry, ContextIndex, StatKey};
pub use error::{Result, StoreError};
pub use explanations::Explanation;
pub use file_list::{FileList, FileListWriter, ListShape, ListedFile};
pub use filter::{FilterError, UsageFilter, parse_duration};
pub use gc::{DiskSpace, PruneFilter};
pub use id::{ContentDigest, Key, Layer, LayerId};
pub use images::StoredImage;
pub use layers::LayerInfo;
pub use layout::Bucket;
pub use lease::Lease;
pub use locks::StoreLock;
pub use mounts::{CacheMount, MountRequest, Sharing};
pub use records::{NewRecord, Record};
pub use scratch::TreeDraft;
pub use store::Store;
pub use usage::{UsageKind, UsageRecord};
pub use variants::{Codec, PieceLocation, UNCOMPRESSED_ANNOTATION};
