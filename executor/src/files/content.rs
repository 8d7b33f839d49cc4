//! The content digest of a drafted layer: what keys of later steps see of it.
//!
//! The same for both forms, and the same as [`crate::layer::content_digest`] of the tree form computes without a clock
//! window: times do not count.

use cache::ContentDigest;
use oci::layer::{Entry, EntryKind};

use super::draft::{Draft, InodeId};
use super::order::{Listed, Listing};
use super::tar::{capability, entry, kind_of, of_value};
use crate::layer::{ContentFacts, ContentHasher};

/// What writing the files of a draft has shown of them.
pub(super) struct Written(Vec<FileFacts>);

/// What is only known of a file once it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// BLAKE3 of its bytes.
    pub(super) digest: [u8; 32],
    /// `security.capability`.
    pub(super) capability: Option<Vec<u8>>,
}

impl Written {
    /// Nothing is known yet.
    pub(super) fn new(draft: &Draft) -> Self {
        Self(vec![FileFacts::default(); draft.n_inodes()])
    }

    pub(super) fn set(&mut self, inode: InodeId, facts: FileFacts) {
        self.0[inode.index()] = facts;
    }

    /// The capability of a file that has been written.
    pub(super) fn capability(&self, inode: InodeId) -> Option<&[u8]> {
        self.0[inode.index()].capability.as_deref()
    }
}

/// Computes the content digest of the layer.
pub(super) fn digest(draft: &Draft, listing: &Listing, files: &Written) -> ContentDigest {
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
                let xattrs = of_value(files.capability(id));
                let facts = ContentFacts { file: files.0[id.index()].digest, ..ContentFacts::default() };
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
    hasher.finish()
}
