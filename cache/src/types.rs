//! The vocabulary of the store, and its operations.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::{Descriptor, DiffId, Digest, ImageRef};

/// Identity of one layer in this store.
///
/// `d-<hex>` for a layer known by its diff ID (pulled or loaded), `x-<unique>` for one that was built here. Never
/// leaves the machine and is never part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(String);

/// What a layer *contains*, as keys see it: a BLAKE3 digest over its sorted entries (see `executor::layer::digest`).
///
/// Equal for two layers that differ only in times taken from the clock. For pulled layers it is derived from the diff
/// ID. Not a digest of any bytes on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 32]);

/// Digest of a step's ingredients; what records are found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// A layer, by identity and content: what results are made of. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where the store keeps it.
    pub id: LayerId,
    /// What keys see of it.
    pub content: ContentDigest,
}

/// Everything the store knows about one layer.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// Identity and content.
    pub layer: Layer,
    /// Digest of the uncompressed tar, once it has been written or when it was pulled.
    pub diff_id: Option<DiffId>,
    /// The tree form, if it exists: a directory in overlayfs' own format, ready to be a lower directory.
    pub tree: Option<PathBuf>,
    /// Whether the blob named by `diff_id` (the plain tar) is stored.
    pub has_tar: bool,
    /// Length of the uncompressed tar, once known.
    pub tar_bytes: Option<u64>,
    /// Seconds since the epoch at which the layer was made.
    pub created_at: i64,
}

/// How a layer's tar is compressed; the level is part of the identity of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The tar itself.
    Plain,
    /// gzip members, one a piece.
    Gzip {
        /// 0 to 9 (libdeflate levels).
        level: u8,
    },
    /// zstd frames, one a piece.
    Zstd {
        /// 1 to 22.
        level: u8,
    },
}

/// Where a compressed piece of some layer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceLocation {
    /// The stored blob.
    pub blob: Digest,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub len_bytes: u64,
}

/// A stored result: this key once gave this layer.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is found by.
    pub key: Key,
    /// The result.
    pub layer: LayerInfo,
    /// The ingredients of the key as JSON, for explanations.
    pub ingredients: String,
    /// Display name of the step that made it.
    pub name: String,
    /// Which place in which Dockerfile asked for it: equal for the same step of successive builds.
    pub slot: String,
    /// What it cost to make.
    pub cost: Duration,
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Seconds since the epoch.
    pub last_used_at: i64,
}

/// A record to be stored.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// What it is found by.
    pub key: Key,
    /// The result; must be committed already.
    pub layer: LayerId,
    /// The ingredients of the key as JSON.
    pub ingredients: String,
    /// Display name of the step.
    pub name: String,
    /// See [`Record::slot`].
    pub slot: String,
    /// What it cost to make.
    pub cost: Duration,
}

/// A named or dangling image of the local store.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Its name; `None` for a dangling image.
    pub reference: Option<ImageRef>,
    /// The manifest or index; its bytes are a blob of the store.
    pub target: Descriptor,
    /// Seconds since the epoch at which the name was given.
    pub updated_at: i64,
}

/// A directory that will become the tree of a layer.
///
/// `tree` and `work` lie on the store's file system, so that `tree` can be an overlay's upper directory and be renamed
/// into place. Dropped without a commit, both are removed.
#[derive(Debug)]
pub struct TreeDraft {
    root: tempfile::TempDir,
}

impl TreeDraft {
    /// The future tree: empty, mode 0755.
    pub fn tree(&self) -> PathBuf {
        self.root.path().join("tree")
    }

    /// Scratch space beside it, for overlay's `workdir`.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }
}

/// A blob being written: bytes are hashed as they pass.
pub struct BlobWriter {
    _private: (),
}

/// Protects everything a build touches from garbage collection until it is dropped.
#[derive(Debug)]
pub struct Lease {
    _private: (),
}

/// Held by the one process that works on a key (or another named thing); others wait.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

/// The persistent cache directory behind `RUN --mount=type=cache`.
#[derive(Debug)]
pub struct CacheMount {
    /// The directory to bind.
    pub path: PathBuf,
    /// Whether it was made just now (so that its base content, owner and mode must be laid down first).
    pub is_new: bool,
    /// Keeps the sharing mode's promise while alive.
    pub lock: Option<StoreLock>,
}

/// How concurrent users of one cache mount share it. Spec: `spec/dockerfile.md` §2.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// All at once in one directory.
    Shared,
    /// Each concurrent user has its own.
    Private,
    /// One after the other.
    Locked,
}

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
        source: std::io::Error,
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
}

/// The result type of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One store. Cheap to clone; all clones and all processes on the same directory work together.
///
/// No method blocks on another process except [`Store::lock`] and [`Store::cache_mount`] with [`Sharing::Locked`].
#[derive(Clone)]
pub struct Store {
    _private: (),
}

#[expect(unused_variables, clippy::unimplemented, reason = "the contract; bodies follow in this crate's first commits")]
impl Store {
    /// Opens the store at `root`, creating it when missing.
    pub fn open(root: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        unimplemented!()
    }

    /// Protects what this process touches from now on.
    pub fn lease(&self) -> Result<Lease> {
        unimplemented!()
    }

    // ---- blobs

    /// Starts a blob of unknown digest.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        unimplemented!()
    }

    /// Stores a small document and returns its digest.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        unimplemented!()
    }

    /// Reads a whole small blob and verifies it; `None` when it is not stored.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }

    /// Path of a stored blob; `None` when it is not stored. Large blobs are verified when they are written, not here.
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        unimplemented!()
    }

    // ---- layers

    /// A new empty tree on the store's file system.
    pub fn new_tree(&self) -> Result<TreeDraft> {
        unimplemented!()
    }

    /// Makes a built tree a layer.
    pub fn commit_tree(&self, draft: TreeDraft, content: ContentDigest) -> Result<LayerInfo> {
        unimplemented!()
    }

    /// Makes a layer whose only form is its tar, already stored in blobs (plain, or compressed and remembered with
    /// [`Store::remember_blob`]).
    pub fn commit_tar(&self, diff_id: &DiffId, tar_bytes: u64, content: ContentDigest) -> Result<LayerInfo> {
        unimplemented!()
    }

    /// The layer of a pulled or loaded image, by diff ID; made when unknown. It may have no local form yet.
    pub fn layer_for_diff_id(&self, diff_id: &DiffId) -> Result<LayerInfo> {
        unimplemented!()
    }

    /// Adds the tree form to a layer that has none (unpacked from its blob). Another process may have been quicker;
    /// the result is the tree that counts.
    pub fn attach_tree(&self, layer: &LayerId, draft: TreeDraft) -> Result<PathBuf> {
        unimplemented!()
    }

    /// Everything known about a layer; `None` when it is gone.
    pub fn layer(&self, id: &LayerId) -> Result<Option<LayerInfo>> {
        unimplemented!()
    }

    /// Notes the diff ID of a layer once its tar has been written.
    pub fn set_diff_id(&self, layer: &LayerId, diff_id: &DiffId, tar_bytes: u64) -> Result<()> {
        unimplemented!()
    }

    /// Notes that `blob` is the tar `diff_id` compressed with `codec`. `descriptor` holds media type, digest, size.
    pub fn remember_blob(&self, diff_id: &DiffId, codec: Codec, descriptor: &Descriptor) -> Result<()> {
        unimplemented!()
    }

    /// The stored blob of `diff_id` in `codec`, if its file still exists.
    pub fn find_blob(&self, diff_id: &DiffId, codec: Codec) -> Result<Option<Descriptor>> {
        unimplemented!()
    }

    /// Notes that the tar `diff_id` is to be had, as `descriptor`, from `repository` (`registry/path`).
    pub fn remember_remote(&self, diff_id: &DiffId, descriptor: &Descriptor, repository: &str) -> Result<()> {
        unimplemented!()
    }

    /// Where `diff_id` is to be had, newest first.
    pub fn find_remotes(&self, diff_id: &DiffId) -> Result<Vec<(Descriptor, String)>> {
        unimplemented!()
    }

    /// Compressed pieces by the BLAKE3 digest of their raw bytes; the answer has the order of `pieces`.
    pub fn find_pieces(&self, pieces: &[[u8; 32]], codec: Codec) -> Result<Vec<Option<PieceLocation>>> {
        unimplemented!()
    }

    /// Remembers where the pieces of a blob lie.
    pub fn remember_pieces(&self, codec: Codec, pieces: &[([u8; 32], PieceLocation)]) -> Result<()> {
        unimplemented!()
    }

    // ---- records

    /// The record of `key` if its layer still has some form; notes the use.
    pub fn find_record(&self, key: &Key) -> Result<Option<Record>> {
        unimplemented!()
    }

    /// Stores a record; a record of the same key is replaced.
    pub fn put_record(&self, record: &NewRecord) -> Result<()> {
        unimplemented!()
    }

    /// The newest record of a slot, for "what changed since last time".
    pub fn latest_of_slot(&self, slot: &str) -> Result<Option<Record>> {
        unimplemented!()
    }

    // ---- images

    /// Names an image; a previous image of that name becomes dangling. Durable when it returns.
    pub fn tag(&self, reference: &ImageRef, target: &Descriptor) -> Result<()> {
        unimplemented!()
    }

    /// Keeps an unnamed image.
    pub fn keep_dangling(&self, target: &Descriptor) -> Result<()> {
        unimplemented!()
    }

    /// Removes a name. `false` when there was none.
    pub fn untag(&self, reference: &ImageRef) -> Result<bool> {
        unimplemented!()
    }

    /// Removes a dangling image. `false` when there was none.
    pub fn remove_dangling(&self, digest: &Digest) -> Result<bool> {
        unimplemented!()
    }

    /// The image of that name.
    pub fn image(&self, reference: &ImageRef) -> Result<Option<StoredImage>> {
        unimplemented!()
    }

    /// All images, newest first.
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        unimplemented!()
    }

    // ---- coordination

    /// Takes the lock `name`, waiting for other processes and threads. Blocks: call it off the runtime.
    pub fn lock(&self, name: &str) -> Result<StoreLock> {
        unimplemented!()
    }

    /// Takes the lock `name` if it is free.
    pub fn try_lock(&self, name: &str) -> Result<Option<StoreLock>> {
        unimplemented!()
    }

    /// The cache directory `id` (already with namespace and base), shared as `sharing` says.
    pub fn cache_mount(&self, id: &str, sharing: Sharing) -> Result<CacheMount> {
        unimplemented!()
    }

    /// Empties the cache directory `id` for later users (`--no-cache`).
    pub fn reset_cache_mount(&self, id: &str) -> Result<()> {
        unimplemented!()
    }

    /// A private directory for scratch files of this process; removed when dropped, or by a later process after a
    /// crash.
    pub fn scratch_dir(&self) -> Result<tempfile::TempDir> {
        unimplemented!()
    }

    /// Makes everything written so far survive a power cut (one `syncfs`), and marks it so.
    pub fn sync(&self) -> Result<()> {
        unimplemented!()
    }
}

#[expect(unused_variables, clippy::unimplemented, reason = "the contract; bodies follow in this crate's first commits")]
impl BlobWriter {
    /// Appends bytes, hashing them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Number of bytes so far.
    pub fn len_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Publishes the blob under its digest; with `expected`, only if that is the digest.
    pub fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        unimplemented!()
    }
}

impl LayerId {
    /// The text form, for messages and the database.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&oci::digest::hex(&self.0))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&oci::digest::hex(&self.0))
    }
}

impl ContentDigest {
    /// The content digest of a pulled layer.
    ///
    /// Marked by a domain string, so that it never equals the digest of a built layer by construction.
    pub fn of_diff_id(diff_id: &DiffId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rbuild content of a pulled layer, v1");
        hasher.update(diff_id.digest().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}
