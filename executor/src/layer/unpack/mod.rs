//! Tar → tree: unpacks a layer of a stranger into a directory in overlayfs' own format.
//!
//! ```text
//! blob ─► inflate (thread) ─┬─► SHA-256 (thread): the diff ID
//!                           └─► entries ─► files (caller)
//! ```
//! **Security boundary.** Entry paths are cleaned lexically; then every component is opened on its own, relative to the
//! handle of the directory before, never through a symlink of the kernel's choosing. A symlink that the layer itself put on
//! the way is resolved by us, as in a chroot on the tree. Nothing outside of the tree can be reached, read or replaced.
//!
//! Spec: `spec/engine.md` §1.11.

mod create;
mod extract;
mod input;
mod place;

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci::DiffId;
use oci::layer::ReadLimits;

use super::error::Result;
use extract::Extractor;

pub(super) use create::{Attributes, Creator};
pub(super) use place::Place;

/// Which xattrs mark the directories of a tree: it must be the ones that its mounts look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OverlayFlavour {
    /// `trusted.overlay.*`: mounted by root.
    #[default]
    Trusted,
    /// `user.overlay.*`: mounted with `userxattr` in a user namespace. Device nodes that may not be made are left out.
    User,
}

/// How a layer is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnpackOptions {
    /// Which xattrs mark directories.
    pub flavour: OverlayFlavour,
    /// What the archive may not exceed.
    pub limits: ReadLimits,
}

/// What is known of an unpacked layer. Paths are relative to the root; the empty path is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the uncompressed tar.
    pub tar_bytes: u64,
    /// Number of entries of the tar.
    pub n_entries: u64,
    /// Directories that the tar took for granted, parents first: made 0755 root:root with time 0, unless
    /// [`super::fix_up`] finds better below.
    pub implied_dirs: Vec<PathBuf>,
    /// Hard links whose target is not in the layer, in the order of the tar; [`super::fix_up`] makes them.
    pub deferred_links: Vec<DeferredLink>,
    /// Directories that hide what is below, in byte order.
    pub opaque_dirs: Vec<PathBuf>,
    /// How it was unpacked.
    pub options: UnpackOptions,
}

/// A hard link to be made when the layers below are at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeferredLink {
    /// Where the link belongs.
    pub path: PathBuf,
    /// The file that it names, as the archive says, cleaned.
    pub target: PathBuf,
}

impl Unpacked {
    /// Whether the tree is complete by itself, on top of whatever layers: then [`super::fix_up`] would change nothing but
    /// the metadata of the root.
    pub fn is_self_contained(&self) -> bool {
        self.deferred_links.is_empty()
            && self.implied_dirs.iter().all(|dir| dir.as_os_str().is_empty())
            && self.opaque_dirs.iter().all(|dir| !dir.as_os_str().is_empty())
    }
}

/// Unpacks `blob`, a layer tar compressed in any way that [`oci::layer::decompress`] knows, into the empty directory
/// `tree`.
///
/// Whiteouts become character devices 0/0, opaque markers become xattrs, later entries replace earlier ones, times keep
/// their fractions. The whole blob is read, also what follows the end of the archive. Memory is bounded whatever the blob
/// holds. On an error the tree is left half done, for the caller to throw away.
///
/// # Errors
/// [`super::TreeError::Tar`] for a malformed archive, [`super::TreeError::Refused`] for an entry that no tree may have,
/// [`super::TreeError::Io`].
pub fn unpack(blob: impl Read + Send, tree: &Path, options: &UnpackOptions) -> Result<Unpacked> {
    let mut extractor = Extractor::new(tree, *options)?;
    let (diff_id, tar_bytes) = input::with_tar(blob, |tar| extractor.run(tar))?;
    let extracted = extractor.finish()?;
    let paths = |paths: Vec<Vec<u8>>| paths.iter().map(|path| to_path(path)).collect();
    Ok(Unpacked {
        diff_id,
        tar_bytes,
        n_entries: extracted.n_entries,
        implied_dirs: paths(extracted.implied_dirs),
        deferred_links: extracted
            .deferred_links
            .iter()
            .map(|(path, target)| DeferredLink { path: to_path(path), target: to_path(target) })
            .collect(),
        opaque_dirs: paths(extracted.opaque_dirs),
        options: *options,
    })
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
