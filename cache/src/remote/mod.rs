//! Caches elsewhere: results that other builds left in a registry, in a directory, or in an image.
//!
//! [`RemoteCache`] is what a place has to do: find an entry by its key, keep an entry, fetch and keep a blob. An [`Entry`]
//! is one result; the formats are in `docs/formats/remote-cache-v1.md`. Each key has an entry of its own, so that builds
//! that write at the same time add to each other's work and never replace it. A [`Hint`] lists entries that are likely to be
//! wanted together; it spares questions and is never needed.
//!
//! Nothing in such a place is believed without a check: entries carry a digest of themselves, blobs are verified by their
//! digests, and whoever uses a layer compares its diff ID.

mod directory;
mod entry;
mod hint;
mod image;
mod registry;

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use oci::Descriptor;
use oci::registry::{BlobReader, Pushed};
use tokio::sync::mpsc;

use crate::id::Key;

pub use directory::{DIRECTORY_PLACE, DirectoryCache};
pub use entry::{Domain, Entry, EntryFault};
pub use hint::{Hint, HintedEntry};
pub use image::{ImageLayerEntry, ImageMetadata};
pub use registry::RegistryCache;

/// A place that keeps results of builds.
///
/// Any number of processes may use one at the same time. Calls may take as long as the place takes: deadlines are the
/// caller's. Dropping a future gives the call up.
#[async_trait]
pub trait RemoteCache: Send + Sync {
    /// As people know it: `registry example.com/team/cache`.
    fn name(&self) -> &str;

    /// Where its blobs are to be had, as [`crate::Store::remember_remote`] notes it.
    fn place(&self) -> &str;

    /// The entry of `key`; `None` when there is none.
    ///
    /// # Errors
    /// [`RemoteError::Unusable`] when there is one that is not what it should be.
    async fn find(&self, key: &Key) -> Result<Option<Entry>, RemoteError>;

    /// Keeps `entry` under `key`, in place of what is there. Its blob must have been kept before.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn put(&self, key: &Key, entry: &Entry) -> Result<(), RemoteError>;

    /// Sends the bytes of a blob through `to`, verified against digest and size when this returns.
    ///
    /// # Errors
    /// [`RemoteError`]; what has gone through the channel must then not be used.
    async fn fetch(&self, blob: &Descriptor, to: mpsc::Sender<Bytes>) -> Result<(), RemoteError>;

    /// Keeps a blob. `open` gives its bytes from the start and is called once a try; `others` are places, as in
    /// [`RemoteCache::place`], that have it too.
    ///
    /// # Errors
    /// [`RemoteError`]; [`RemoteError::Bytes`] when `open` has failed.
    async fn keep(
        &self,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
        others: &[String],
    ) -> Result<Pushed, RemoteError>;

    /// The list of what was used here before; `None` when there is none or it cannot be understood.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn hint(&self) -> Result<Option<Hint>, RemoteError>;

    /// Keeps such a list, in place of the one that is there.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn put_hint(&self, hint: &Hint) -> Result<(), RemoteError>;
}

/// Why a place did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The place as a whole cannot be used: it cannot be reached, does not let us, or is full.
    #[error("{0}")]
    Down(String),
    /// What was asked for is there and is not what it should be, or is gone although something names it.
    #[error("{0}")]
    Unusable(String),
    /// The bytes that were to be kept cannot be read here.
    #[error("{0}")]
    Bytes(String),
}
