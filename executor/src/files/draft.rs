//! The layer that is being made, in memory: what was written so far, over the root that it is written to.
//!
//! Actions change the draft only; nothing reaches the disk before all of them have succeeded. Both forms of the layer are
//! then written from the same draft, which is why they hold the same entries.
//!
//! Invariant: a drafted directory either exists in the root below (then it begins with that one's metadata and its other
//! entries stay visible) or is new; every leaf in it replaces whatever the root has at its place.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::context::source::SourceDir;
use crate::view::resolve::{self, Child, Last, Resolved, Tree};
use crate::view::{DirView, Node, NodeKind, Result, RootView, Xattrs};

/// A drafted directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DirId(u32);

/// A drafted inode: everything but directories. Several names with one inode are hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId(u32);

/// Seconds since the epoch, and nanoseconds.
pub(super) type Time = (i64, u32);

impl DirId {
    /// Dense: below [`Draft::n_dirs`].
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

impl InodeId {
    /// Dense: below [`Draft::n_inodes`].
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Metadata of a drafted directory or inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
}

/// How directories are made that are missing on the way.
#[derive(Clone, Debug)]
pub(super) struct NewDirs {
    pub(super) mode: u32,
    /// User and group; `None` for root and the group that the parent hands down, if it does.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mtime: Time,
}

/// The bit with which a directory hands its group down to what is made in it.
const SETGID: u32 = 0o2000;

/// A drafted directory.
pub(super) struct DraftDir {
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
    pub(super) children: BTreeMap<OsString, DraftChild>,
    /// The directory of the root that this one is merged with.
    pub(super) lower: Option<DirView>,
    /// The root has a directory here that must not be seen any more.
    pub(super) hides_lower: bool,
}

/// What a name in a drafted directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DraftChild {
    Dir(DirId),
    Leaf(InodeId),
}

/// A drafted file, link or device.
pub(super) struct Inode {
    pub(super) attributes: Attributes,
    pub(super) kind: InodeKind,
    pub(super) xattrs: InodeXattrs,
}

/// What an inode is.
pub(super) enum InodeKind {
    File(Body),
    Symlink(OsString),
    Fifo,
    CharDevice(u64),
    BlockDevice(u64),
}

/// Where the bytes of a file come from.
#[derive(Clone)]
pub(super) enum Body {
    /// A file of a source, and its size.
    Source { dir: SourceDir, name: OsString, size_bytes: u64 },
    /// These.
    Bytes(Arc<[u8]>),
    /// A file of ours outside of the tree, which may be moved into place.
    Staged { path: PathBuf, size_bytes: u64, digest: [u8; 32] },
}

/// Where the xattrs of an inode come from.
pub(super) enum InodeXattrs {
    /// From the same place as in its source; read when they are needed.
    OfSource(SourceDir, OsString),
    /// These.
    Given(Xattrs),
}

/// The draft of a layer.
pub(super) struct Draft {
    root_view: RootView,
    dirs: Vec<DraftDir>,
    inodes: Vec<Inode>,
    /// Where [`Body::Staged`] files are; removed with the draft.
    scratch: Vec<Arc<TempDir>>,
}

/// Something on the way to a directory is none.
#[derive(Debug)]
pub(super) struct NotADirectory {
    /// The path of what is in the way.
    pub(super) path: PathBuf,
}

impl Draft {
    /// An empty layer over `root_view`.
    pub(super) fn new(root_view: RootView) -> Result<Self> {
        let lower = root_view.root().clone();
        let attributes = lower.metadata()?.map_or_else(Attributes::of_empty_root, |node| Attributes::of(&node));
        let xattrs = lower.own_xattrs()?;
        let root = DraftDir { attributes, xattrs, children: BTreeMap::new(), lower: Some(lower), hides_lower: false };
        Ok(Self { root_view, dirs: vec![root], inodes: Vec::new(), scratch: Vec::new() })
    }

    /// The root directory.
    pub(super) const ROOT: DirId = DirId(0);

    /// The root that is written to, as it was before.
    pub(super) fn root_view(&self) -> &RootView {
        &self.root_view
    }

    pub(super) fn dir(&self, id: DirId) -> &DraftDir {
        &self.dirs[id.0 as usize]
    }

    pub(super) fn dir_mut(&mut self, id: DirId) -> &mut DraftDir {
        &mut self.dirs[id.0 as usize]
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    pub(super) fn n_inodes(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn n_dirs(&self) -> usize {
        self.dirs.len()
    }

    /// Keeps a directory with staged files until the layer has been written.
    pub(super) fn keep(&mut self, scratch: Arc<TempDir>) {
        self.scratch.push(scratch);
    }

    /// Where `path` leads now.
    pub(super) fn resolve(&self, path: &Path, last: Last) -> Result<Resolved<NodeKind>> {
        resolve::resolve(self, path, last)
    }

    /// What `name` in `dir` is now.
    pub(super) fn lookup(&self, dir: DirId, name: &OsStr) -> Result<Option<NodeKind>> {
        let dir = self.dir(dir);
        // Copies come in order, so that what is asked for is usually behind everything.
        let is_behind = dir.children.last_key_value().is_none_or(|(last, _)| **last < *name);
        match if is_behind { None } else { dir.children.get(name) } {
            Some(DraftChild::Dir(_)) => Ok(Some(NodeKind::Dir)),
            Some(DraftChild::Leaf(inode)) => Ok(Some(self.inode(*inode).kind.node_kind())),
            None => match &dir.lower {
                Some(lower) => Ok(lower.lookup(name)?.map(|node| node.kind)),
                None => Ok(None),
            },
        }
    }

    /// Drafts the directory `name` of `dir` if it exists there.
    pub(super) fn existing_dir(&mut self, dir: DirId, name: &OsStr) -> Result<Option<DirId>> {
        match self.dir(dir).children.get(name) {
            Some(DraftChild::Dir(id)) => return Ok(Some(*id)),
            Some(DraftChild::Leaf(_)) => return Ok(None),
            None => {}
        }
        let Some(parent) = &self.dir(dir).lower else { return Ok(None) };
        let Some(lower) = parent.child_dir(name)? else { return Ok(None) };
        let Some(node) = lower.metadata()? else { return Ok(None) };
        let xattrs = lower.own_xattrs()?;
        let drafted = DraftDir {
            attributes: Attributes::of(&node),
            xattrs,
            children: BTreeMap::new(),
            lower: Some(lower),
            hides_lower: false,
        };
        Ok(Some(self.insert_dir(dir, name, drafted)))
    }

    /// Makes a new directory; whatever had the name is gone.
    pub(super) fn new_dir(
        &mut self,
        dir: DirId,
        name: &OsStr,
        attributes: Attributes,
        xattrs: Xattrs,
    ) -> Result<DirId> {
        let hides_lower = match &self.dir(dir).lower {
            Some(lower) => lower.lookup(name)?.is_some_and(|node| node.kind.is_dir()),
            None => false,
        };
        let drafted = DraftDir { attributes, xattrs, children: BTreeMap::new(), lower: None, hides_lower };
        Ok(self.insert_dir(dir, name, drafted))
    }

    /// The directory at `path` (no links on it), made with `created` where it is missing.
    ///
    /// `Ok(Err(_))` when something on the way is no directory.
    pub(super) fn ensure_dir(&mut self, path: &Path, created: &NewDirs) -> Result<Result<DirId, NotADirectory>> {
        self.ensure_dir_below(Self::ROOT, path, created)
    }

    /// As [`Draft::ensure_dir`], with `path` as seen from the directory `top`.
    pub(super) fn ensure_dir_below(
        &mut self,
        top: DirId,
        path: &Path,
        created: &NewDirs,
    ) -> Result<Result<DirId, NotADirectory>> {
        let mut dir = top;
        let mut at = PathBuf::from("/");
        for name in crate::view::normal_components(path) {
            at.push(&name);
            dir = match self.existing_dir(dir, &name)? {
                Some(existing) => existing,
                None if self.lookup(dir, &name)?.is_some() => return Ok(Err(NotADirectory { path: at })),
                None => {
                    let attributes = created.attributes_in(&self.dir(dir).attributes);
                    self.new_dir(dir, &name, attributes, Vec::new())?
                }
            };
        }
        Ok(Ok(dir))
    }

    /// Adds an inode that has no name yet.
    pub(super) fn new_inode(&mut self, inode: Inode) -> InodeId {
        let id = InodeId(u32::try_from(self.inodes.len()).expect("a layer has fewer than 2^32 entries"));
        self.inodes.push(inode);
        id
    }

    /// Gives an inode a name; whatever had the name is gone.
    pub(super) fn link(&mut self, dir: DirId, name: &OsStr, inode: InodeId) {
        self.dir_mut(dir).children.insert(name.to_owned(), DraftChild::Leaf(inode));
    }

    /// Drafts the leaf `name` of `dir`, as it is, and gives its inode; `None` when there is no leaf.
    pub(super) fn raise(&mut self, dir: DirId, name: &OsStr) -> Result<Option<InodeId>> {
        match self.dir(dir).children.get(name) {
            Some(DraftChild::Leaf(inode)) => return Ok(Some(*inode)),
            Some(DraftChild::Dir(_)) => return Ok(None),
            None => {}
        }
        let Some(lower) = self.dir(dir).lower.clone() else { return Ok(None) };
        let Some(node) = lower.lookup(name)? else { return Ok(None) };
        let source = SourceDir::View(lower.clone());
        let kind = match node.kind {
            NodeKind::Dir => return Ok(None),
            NodeKind::File => InodeKind::File(Body::Source {
                dir: source.clone(),
                name: name.to_owned(),
                size_bytes: node.meta.size_bytes,
            }),
            NodeKind::Symlink => InodeKind::Symlink(lower.read_link(name)?.unwrap_or_default()),
            NodeKind::Socket => InodeKind::File(Body::Bytes([].into())),
            NodeKind::Fifo => InodeKind::Fifo,
            NodeKind::CharDevice => InodeKind::CharDevice(node.meta.rdev),
            NodeKind::BlockDevice => InodeKind::BlockDevice(node.meta.rdev),
        };
        let xattrs = InodeXattrs::OfSource(source, name.to_owned());
        let inode = self.new_inode(Inode { attributes: Attributes::of(&node), kind, xattrs });
        self.link(dir, name, inode);
        Ok(Some(inode))
    }

    fn insert_dir(&mut self, parent: DirId, name: &OsStr, drafted: DraftDir) -> DirId {
        let id = DirId(u32::try_from(self.dirs.len()).expect("a layer has fewer than 2^32 entries"));
        self.dirs.push(drafted);
        self.dir_mut(parent).children.insert(name.to_owned(), DraftChild::Dir(id));
        id
    }
}

impl NewDirs {
    /// What unpacking makes for entries whose parents are not in the archive: root's, in every directory.
    pub(super) fn of_archive(mtime: Time) -> Self {
        Self { mode: 0o755, owner: Some((0, 0)), mtime }
    }

    /// What a directory gets that is made in `parent`: as mkdir(2) does it, which BuildKit makes them with.
    fn attributes_in(&self, parent: &Attributes) -> Attributes {
        let handed_down = parent.mode & SETGID;
        let group = if handed_down == 0 { 0 } else { parent.gid };
        let (uid, gid) = self.owner.unwrap_or((0, group));
        Attributes { mode: self.mode | handed_down, uid, gid, mtime: self.mtime }
    }
}

impl Attributes {
    /// What an existing entry has.
    pub(super) fn of(node: &Node) -> Self {
        let meta = &node.meta;
        Self { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: (meta.mtime_s, meta.mtime_ns) }
    }

    fn of_empty_root() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) }
    }
}

impl InodeKind {
    pub(super) fn node_kind(&self) -> NodeKind {
        match self {
            Self::File(_) => NodeKind::File,
            Self::Symlink(_) => NodeKind::Symlink,
            Self::Fifo => NodeKind::Fifo,
            Self::CharDevice(_) => NodeKind::CharDevice,
            Self::BlockDevice(_) => NodeKind::BlockDevice,
        }
    }
}

impl Body {
    /// Number of bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Source { size_bytes, .. } | Self::Staged { size_bytes, .. } => *size_bytes,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// A directory of the draft as links see it.
#[derive(Clone)]
pub(super) enum DraftPlace {
    Drafted(DirId),
    Lower(DirView),
}

impl Tree for Draft {
    type Dir = DraftPlace;
    type Node = NodeKind;

    fn root_dir(&self) -> Result<(DraftPlace, Option<NodeKind>)> {
        Ok((DraftPlace::Drafted(Self::ROOT), Some(NodeKind::Dir)))
    }

    fn child(&self, dir: &DraftPlace, name: &OsStr) -> Result<Child<DraftPlace, NodeKind>> {
        let lower = match dir {
            DraftPlace::Lower(lower) => Some(lower),
            DraftPlace::Drafted(id) => match self.dir(*id).children.get(name) {
                Some(DraftChild::Dir(id)) => return Ok(Child::Dir(DraftPlace::Drafted(*id), NodeKind::Dir)),
                Some(DraftChild::Leaf(inode)) => {
                    return Ok(match &self.inode(*inode).kind {
                        InodeKind::Symlink(target) => Child::Link(target.clone(), NodeKind::Symlink),
                        kind => Child::Leaf(kind.node_kind()),
                    });
                }
                None => self.dir(*id).lower.as_ref(),
            },
        };
        let Some(lower) = lower else { return Ok(Child::Missing) };
        Ok(match self.root_view.child(lower, name)? {
            Child::Missing => Child::Missing,
            Child::Dir(dir, node) => Child::Dir(DraftPlace::Lower(dir), node.kind),
            Child::Link(target, node) => Child::Link(target, node.kind),
            Child::Leaf(node) => Child::Leaf(node.kind),
        })
    }
}

/// The draft below one directory, which links see as `/`: how archives are unpacked.
pub(super) struct SubRoot<'a> {
    pub(super) draft: &'a Draft,
    pub(super) top: DirId,
}

impl Tree for SubRoot<'_> {
    type Dir = DraftPlace;
    type Node = NodeKind;

    fn root_dir(&self) -> Result<(DraftPlace, Option<NodeKind>)> {
        Ok((DraftPlace::Drafted(self.top), Some(NodeKind::Dir)))
    }

    fn child(&self, dir: &DraftPlace, name: &OsStr) -> Result<Child<DraftPlace, NodeKind>> {
        self.draft.child(dir, name)
    }
}
