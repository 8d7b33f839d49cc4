//! The store: keeps bytes and finds them again.
//!
//! One directory, shared by any number of processes. Immutable files are the truth (temporary file, then rename; names
//! are digests or identities); one SQLite database holds records, references, last use and sizes, and may be lost with
//! nothing worse than a cold cache. Has never heard of how a step runs. Read [`Store`] first, then [`layout::Bucket`].
#![forbid(unsafe_code)]

mod types;

pub use types::*;
