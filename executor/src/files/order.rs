//! What of a draft is in its layer, in the order of layers: parents first, names in byte order within a directory.
//!
//! Spec: `spec/engine.md` §1.10.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::draft::{DirId, Draft, DraftChild, DraftDir, InodeId};
use crate::context::source::CAPABILITY_XATTR;
use crate::view::Result;

/// One entry of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// A directory.
    Dir(DirId),
    /// The first name of an inode.
    First(InodeId),
    /// Another name of an inode whose first name is the entry with this index in the list.
    Again(InodeId, usize),
    /// A deletion.
    Whiteout,
}

/// The entries of a layer and their paths: relative, without slashes at either end.
#[derive(Default)]
pub(super) struct Listing {
    /// All paths, one after the other.
    paths: Vec<u8>,
    /// End of each path in `paths`.
    ends: Vec<usize>,
    entries: Vec<Listed>,
}

impl Listing {
    /// Lists what is in the layer of `draft`.
    ///
    /// A directory that the root has as well is in it only when its metadata changed or something below is in it. The
    /// root itself never is.
    pub(super) fn of(draft: &Draft) -> Result<Self> {
        let mut walk = Walk {
            draft,
            listing: Self::default(),
            first_names: vec![None; draft.n_inodes()],
            path: Vec::new(),
            counts: vec![false; draft.n_dirs()],
        };
        walk.count(Draft::ROOT)?;
        walk.list(Draft::ROOT, false)?;
        Ok(walk.listing)
    }

    /// Entries with their paths, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Listed)> + '_ {
        (0..self.entries.len()).map(|idx| (self.path(idx), self.entries[idx]))
    }

    /// The path of the entry with this index.
    pub(super) fn path(&self, idx: usize) -> &[u8] {
        let start = idx.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.paths[start..self.ends[idx]]
    }

    fn push(&mut self, path: &[u8], entry: Listed) -> usize {
        self.paths.extend_from_slice(path);
        self.ends.push(self.paths.len());
        self.entries.push(entry);
        self.entries.len() - 1
    }
}

struct Walk<'a> {
    draft: &'a Draft,
    listing: Listing,
    /// Index of the first entry of each inode.
    first_names: Vec<Option<usize>>,
    path: Vec<u8>,
    /// Which directories are in the layer.
    counts: Vec<bool>,
}

impl Walk<'_> {
    /// Decides whether a directory, and which below it, are in the layer.
    fn count(&mut self, id: DirId) -> Result<bool> {
        let dir = self.draft.dir(id);
        let mut counts = is_changed(dir)?;
        for child in dir.children.values() {
            counts |= match child {
                DraftChild::Dir(child) => self.count(*child)?,
                DraftChild::Leaf(_) => true,
            };
        }
        self.counts[id.index()] = counts;
        Ok(counts)
    }

    /// `hides` says that nothing of the root below this directory may be seen.
    fn list(&mut self, id: DirId, hides: bool) -> Result<()> {
        let dir = self.draft.dir(id);
        let hides = hides || dir.hides_lower;
        let path_len = self.path.len();
        let hidden = if hides { self.hidden_names(dir)? } else { Vec::new() };
        let mut hidden = hidden.into_iter().peekable();
        for (name, child) in &dir.children {
            while let Some(gone) = hidden.next_if(|gone| gone < name) {
                self.whiteout(&gone, path_len);
            }
            self.push_name(name);
            match child {
                DraftChild::Dir(child) if self.counts[child.index()] => {
                    self.listing.push(&self.path, Listed::Dir(*child));
                    self.list(*child, hides)?;
                }
                DraftChild::Dir(_) => {}
                DraftChild::Leaf(inode) => self.leaf(*inode),
            }
            self.path.truncate(path_len);
        }
        for gone in hidden {
            self.whiteout(&gone, path_len);
        }
        Ok(())
    }

    fn leaf(&mut self, inode: InodeId) {
        match self.first_names[inode.index()] {
            Some(first) => {
                self.listing.push(&self.path, Listed::Again(inode, first));
            }
            None => {
                let idx = self.listing.push(&self.path, Listed::First(inode));
                self.first_names[inode.index()] = Some(idx);
            }
        }
    }

    /// Names of the root's directory at this place that must not be seen any more.
    fn hidden_names(&self, dir: &DraftDir) -> Result<Vec<OsString>> {
        let at = Path::new(OsStr::from_bytes(&self.path));
        let names = self.draft.root_view().list(at)?.unwrap_or_default();
        Ok(names.into_iter().filter(|name| !dir.children.contains_key(name)).collect())
    }

    fn whiteout(&mut self, name: &OsStr, path_len: usize) {
        let mut marker = OsString::from(".wh.");
        marker.push(name);
        self.push_name(&marker);
        self.listing.push(&self.path, Listed::Whiteout);
        self.path.truncate(path_len);
    }

    fn push_name(&mut self, name: &OsStr) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
    }
}

/// Whether a directory differs from the root's in what layers hold; times do not count.
fn is_changed(dir: &DraftDir) -> Result<bool> {
    let Some(lower) = &dir.lower else { return Ok(true) };
    let Some(node) = lower.metadata()? else { return Ok(false) };
    let now = (dir.attributes.mode, dir.attributes.uid, dir.attributes.gid);
    if now != (node.meta.mode, node.meta.uid, node.meta.gid) {
        return Ok(true);
    }
    let capability = dir.xattrs.iter().find(|(name, _)| name == CAPABILITY_XATTR).map(|(_, value)| value);
    let before = lower.own_xattrs()?;
    Ok(capability != before.iter().find(|(name, _)| name == CAPABILITY_XATTR).map(|(_, value)| value))
}
