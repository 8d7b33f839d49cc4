//! One directory of a context in memory. Compact: a context of 100,000 files stays below 25 MiB.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use solver::plan::patterns::Verdict;

use super::content::{FileContent, Stamp};
use crate::view::{Metadata, Node, NodeKind};

/// A directory that has been read; hidden entries are not in it.
#[derive(Debug)]
pub struct ContextDir {
    path: Box<Path>,
    /// What the ignore rules say about it; decides about its entries together with their names.
    verdict: Verdict,
    own: Node,
    /// All names, one after the other; [`Entry`] says which part is its own.
    names: Box<[u8]>,
    /// Sorted by name in byte order.
    entries: Box<[Entry]>,
    /// One slot for each subdirectory, filled when it is read.
    children: Box<[OnceLock<Arc<ContextDir>>]>,
}

/// One entry of a [`ContextDir`].
#[derive(Debug)]
pub struct Entry {
    name_start: u32,
    name_len: u16,
    mode: u16,
    kind: NodeKind,
    /// Index into `children`, for directories.
    child_idx: u32,
    rdev: u64,
    n_links: u32,
    stamp: Stamp,
    learned: OnceLock<Box<Learned>>,
}

/// What was read of an entry; what was read first counts in the whole build.
#[derive(Debug)]
enum Learned {
    Content(FileContent),
    Target(OsString),
}

const _: () = assert!(size_of::<Entry>() <= 104, "contexts of 100,000 files must stay below 25 MiB");

/// An entry as it is read, before the directory is complete.
pub(super) struct NewEntry {
    pub(super) name: Box<OsStr>,
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    pub(super) rdev: u64,
    pub(super) n_links: u64,
    pub(super) stamp: Stamp,
}

impl ContextDir {
    pub(super) fn new(path: &Path, verdict: Verdict, own: Node, mut entries: Vec<NewEntry>) -> Self {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut names = Vec::with_capacity(entries.iter().map(|entry| entry.name.len()).sum());
        let mut n_children = 0_u32;
        let mut packed = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = entry.name.as_bytes();
            packed.push(Entry {
                name_start: u32::try_from(names.len()).expect("the names of one directory fit in 4 GiB"),
                name_len: u16::try_from(name.len()).expect("Linux limits names to 255 bytes"),
                mode: u16::try_from(entry.mode & 0o7777).expect("masked to 12 bits"),
                kind: entry.kind,
                child_idx: n_children,
                rdev: entry.rdev,
                n_links: u32::try_from(entry.n_links).unwrap_or(u32::MAX),
                stamp: entry.stamp,
                learned: OnceLock::new(),
            });
            names.extend_from_slice(name);
            n_children += u32::from(entry.kind.is_dir());
        }
        Self {
            path: path.into(),
            verdict,
            own,
            names: names.into(),
            entries: packed.into(),
            children: (0..n_children).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Its path relative to the context; empty for the top.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Its own metadata.
    pub fn own_node(&self) -> Node {
        self.own
    }

    /// Its entries, in byte order of their names.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The name of one of its entries.
    pub fn name_of(&self, entry: &Entry) -> &OsStr {
        let start = entry.name_start as usize;
        OsStr::from_bytes(&self.names[start..start + usize::from(entry.name_len)])
    }

    /// The entry called `name`.
    pub fn entry(&self, name: &OsStr) -> Option<&Entry> {
        let found = self.entries.binary_search_by(|entry| self.name_of(entry).cmp(name));
        found.ok().map(|idx| &self.entries[idx])
    }

    pub(super) fn child_slot(&self, entry: &Entry) -> Option<&OnceLock<Arc<ContextDir>>> {
        entry.kind.is_dir().then(|| &self.children[entry.child_idx as usize])
    }
}

impl Entry {
    /// What sort of thing it is.
    pub fn kind(&self) -> NodeKind {
        self.kind
    }

    /// Its metadata: owned by root, size and time of the content that was read last.
    pub fn node(&self) -> Node {
        let stamp = self.stamp();
        Node {
            layer_idx: 0,
            kind: self.kind,
            meta: Metadata {
                mode: self.mode.into(),
                uid: 0,
                gid: 0,
                size_bytes: stamp.size_bytes,
                mtime_s: stamp.mtime_s,
                mtime_ns: stamp.mtime_ns,
                rdev: self.rdev,
                inode: (stamp.device, stamp.inode),
                n_links: self.n_links.into(),
            },
        }
    }

    /// What identifies the state of the file that counts.
    pub fn stamp(&self) -> Stamp {
        self.content().and_then(|content| content.newer_stamp.as_deref().copied()).unwrap_or(self.stamp)
    }

    /// The content of a file, once it is known.
    pub fn content(&self) -> Option<&FileContent> {
        match &**self.learned.get()? {
            Learned::Content(content) => Some(content),
            Learned::Target(_) => None,
        }
    }

    /// The target of a link, once it has been read.
    pub(super) fn target(&self) -> Option<&OsStr> {
        match &**self.learned.get()? {
            Learned::Content(_) => None,
            Learned::Target(target) => Some(target),
        }
    }

    /// Keeps the content of a file, unless it is known.
    pub(super) fn set_content(&self, content: FileContent) {
        self.learned.get_or_init(|| Box::new(Learned::Content(content)));
    }

    /// Keeps the target of a link, unless it is known.
    pub(super) fn set_target(&self, target: OsString) {
        self.learned.get_or_init(|| Box::new(Learned::Target(target)));
    }
}
