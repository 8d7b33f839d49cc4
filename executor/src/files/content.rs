//! The content digest of a drafted layer: what keys of later steps see of it.
//!
//! The same for both forms, and the same as [`crate::layer::content_digest`] of the tree form computes without a clock
//! window: times do not count.

use cache::ContentDigest;
use oci::layer::{Entry, EntryKind};

use super::draft::{Draft, InodeId, InodeKind, InodeXattrs};
use super::order::{Listed, Listing};
use super::tar::{capability, entry, kind_of, of_value};
use crate::context::Result;
use crate::layer::{ContentFacts, ContentHasher};

/// BLAKE3 digests of the files of a draft.
pub(super) struct FileDigests(Vec<[u8; 32]>);

impl FileDigests {
    /// None is known yet.
    pub(super) fn new(draft: &Draft) -> Self {
        Self(vec![[0; 32]; draft.n_inodes()])
    }

    pub(super) fn set(&mut self, inode: InodeId, digest: [u8; 32]) {
        self.0[inode.index()] = digest;
    }
}

/// Computes the content digest of the layer.
pub(super) fn digest(draft: &Draft, listing: &Listing, files: &FileDigests) -> Result<ContentDigest> {
    let mut hasher = ContentHasher::new();
    for (path, listed) in listing.iter() {
        match listed {
            Listed::Dir(id) => {
                let dir = draft.dir(id);
                let xattrs = capability(&dir.xattrs);
                let facts = ContentFacts { is_opaque: dir.hides_lower, ..ContentFacts::default() };
                hasher.entry(&entry(path, EntryKind::Directory, &dir.attributes, &xattrs), &facts);
            }
            Listed::First(id) => {
                let inode = draft.inode(id);
                let xattrs = match (&inode.xattrs, &inode.kind) {
                    (InodeXattrs::Given(xattrs), _) => capability(xattrs),
                    (InodeXattrs::OfSource(dir, name), InodeKind::File(_)) => of_value(dir.capability(name)?),
                    (InodeXattrs::OfSource(..), _) => Vec::new(),
                };
                let facts = ContentFacts { file: files.0[id.index()], ..ContentFacts::default() };
                hasher.entry(&entry(path, kind_of(&inode.kind), &inode.attributes, &xattrs), &facts);
            }
            Listed::Again(_, first) => {
                let link = Entry::new(path, EntryKind::Hardlink { target: listing.path(first) });
                hasher.entry(&link, &ContentFacts::default());
            }
            // The directory that hides says so itself.
            Listed::Whiteout => {}
        }
    }
    Ok(hasher.finish())
}
