//! Files of two roots.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::CompareError;
use crate::view::{DirView, Node, NodeKind, RootView};

/// How much of two files is compared at once.
const READ_BYTES: usize = 128 << 10;

/// What sort of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// Anything else.
    Special,
}

/// What is known of an entry that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryFacts {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky, octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a file.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Target of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What can differ about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// What it is.
    Kind,
    /// The bytes of a file.
    Content,
    /// Its length.
    Size,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Target of a link.
    Target,
    /// Number of a device.
    Device,
    /// Extended attributes.
    Xattrs,
    /// When it was changed.
    Mtime,
}

/// An entry that differs: only in one image, or not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute; bytes that are no text are replaced.
    pub path: String,
    /// What differs, when it is in both images.
    pub differs: Vec<Aspect>,
    /// In the first image.
    pub a: Option<EntryFacts>,
    /// In the other.
    pub b: Option<EntryFacts>,
}

/// Entries that differ, by path. What is in a directory that only one image has is listed, too.
pub(super) fn compare(a: &RootView, b: &RootView) -> Result<Vec<FileChange>, CompareError> {
    let mut walk = Walk { changes: Vec::new() };
    walk.directories(Some(a.root()), Some(b.root()))?;
    Ok(walk.changes)
}

struct Walk {
    changes: Vec<FileChange>,
}

impl Walk {
    fn directories(&mut self, a: Option<&DirView>, b: Option<&DirView>) -> Result<(), CompareError> {
        let names = |dir: Option<&DirView>| dir.map(DirView::names).transpose().map(Option::unwrap_or_default);
        let all: BTreeSet<_> = names(a)?.into_iter().chain(names(b)?).collect();
        for name in all {
            self.entry(a, b, &name)?;
        }
        Ok(())
    }

    fn entry(&mut self, a: Option<&DirView>, b: Option<&DirView>, name: &OsStr) -> Result<(), CompareError> {
        let node = |dir: Option<&DirView>| dir.map(|dir| dir.lookup(name)).transpose().map(Option::flatten);
        let (of_a, of_b) = (node(a)?, node(b)?);
        let differs = match (a.zip(of_a.as_ref()), b.zip(of_b.as_ref())) {
            (Some(one), Some(other)) => aspects(one, other, name)?,
            _ => Vec::new(),
        };
        if of_a.is_none() || of_b.is_none() || !differs.is_empty() {
            let facts = |dir: Option<&DirView>, node: &Option<Node>| {
                dir.zip(node.as_ref()).map(|(dir, node)| facts(dir, node, name)).transpose()
            };
            let parent = a.or(b).map_or(Path::new("/"), DirView::path);
            let path = parent.join(name).to_string_lossy().into_owned();
            self.changes.push(FileChange { path, differs, a: facts(a, &of_a)?, b: facts(b, &of_b)? });
        }
        let child = |dir: Option<&DirView>, node: &Option<Node>| {
            let is_dir = node.as_ref().is_some_and(|node| node.kind.is_dir());
            dir.filter(|_| is_dir).map(|dir| dir.child_dir(name)).transpose().map(Option::flatten)
        };
        let (below_a, below_b) = (child(a, &of_a)?, child(b, &of_b)?);
        if below_a.is_some() || below_b.is_some() {
            self.directories(below_a.as_ref(), below_b.as_ref())?;
        }
        Ok(())
    }
}

fn aspects(one: (&DirView, &Node), other: (&DirView, &Node), name: &OsStr) -> Result<Vec<Aspect>, CompareError> {
    let ((dir_a, a), (dir_b, b)) = (one, other);
    // One file of one tree, which both images have.
    if a.meta.inode == b.meta.inode && !a.kind.is_dir() {
        return Ok(Vec::new());
    }
    let (meta_a, meta_b) = (&a.meta, &b.meta);
    let is_device = matches!(a.kind, NodeKind::CharDevice | NodeKind::BlockDevice);
    let mut differs = Vec::new();
    let mut note = |is_different: bool, aspect: Aspect| {
        if is_different {
            differs.push(aspect);
        }
    };
    note(a.kind != b.kind, Aspect::Kind);
    if a.kind == b.kind && a.kind == NodeKind::File {
        note(!same_content((dir_a, a), (dir_b, b), name)?, Aspect::Content);
        note(meta_a.size_bytes != meta_b.size_bytes, Aspect::Size);
    }
    // The mode of a link means nothing.
    note(meta_a.mode != meta_b.mode && a.kind != NodeKind::Symlink, Aspect::Mode);
    note((meta_a.uid, meta_a.gid) != (meta_b.uid, meta_b.gid), Aspect::Owner);
    if a.kind == b.kind && a.kind == NodeKind::Symlink {
        note(dir_a.read_link(name)? != dir_b.read_link(name)?, Aspect::Target);
    }
    note(is_device && meta_a.rdev != meta_b.rdev, Aspect::Device);
    note(dir_a.xattrs(name)? != dir_b.xattrs(name)?, Aspect::Xattrs);
    // Layers hold whole seconds.
    note(meta_a.mtime_s != meta_b.mtime_s, Aspect::Mtime);
    Ok(differs)
}

fn same_content(one: (&DirView, &Node), other: (&DirView, &Node), name: &OsStr) -> Result<bool, CompareError> {
    let ((dir_a, a), (dir_b, b)) = (one, other);
    if a.meta.size_bytes != b.meta.size_bytes {
        return Ok(false);
    }
    let (Some(mut a), Some(mut b)) = (dir_a.open_file(name)?, dir_b.open_file(name)?) else { return Ok(false) };
    let fault = |source| CompareError::Io { path: dir_a.path().join(name), source };
    let (mut bytes_a, mut bytes_b) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    loop {
        let n_read = fill(&mut a, &mut bytes_a).map_err(fault)?;
        if n_read != fill(&mut b, &mut bytes_b).map_err(fault)? || bytes_a[..n_read] != bytes_b[..n_read] {
            return Ok(false);
        }
        if n_read == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n_read = 0;
    while n_read < buffer.len() {
        match file.read(&mut buffer[n_read..])? {
            0 => break,
            n => n_read += n,
        }
    }
    Ok(n_read)
}

fn facts(dir: &DirView, node: &Node, name: &OsStr) -> Result<EntryFacts, CompareError> {
    let kind = match node.kind {
        NodeKind::File => Kind::File,
        NodeKind::Dir => Kind::Directory,
        NodeKind::Symlink => Kind::Link,
        _ => Kind::Special,
    };
    Ok(EntryFacts {
        kind,
        mode: format!("{:04o}", node.meta.mode),
        uid: node.meta.uid,
        gid: node.meta.gid,
        size: if kind == Kind::File { node.meta.size_bytes } else { 0 },
        mtime: node.meta.mtime_s,
        target: dir.read_link(name)?.map(|target| target.to_string_lossy().into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn write(root: &Path, path: &str, content: &str) {
        std::fs::create_dir_all(root.join(path).parent().expect("parent")).expect("directories");
        std::fs::write(root.join(path), content).expect("write");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        File::options().write(true).open(root.join(path)).and_then(|file| file.set_modified(time)).expect("time");
    }

    #[test]
    fn every_difference_is_found_and_named() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        for root in [&a, &b] {
            for path in ["same", "content", "size", "mode", "time", "dir/below"] {
                write(root, path, "text");
            }
        }
        write(&a, "gone/below", "");
        write(&b, "new", "");
        write(&b, "content", "next");
        write(&b, "size", "longer");
        std::fs::set_permissions(b.join("mode"), PermissionsExt::from_mode(0o600)).expect("mode");
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000);
        File::options().write(true).open(b.join("time")).and_then(|file| file.set_modified(later)).expect("time");
        symlink("one", a.join("link")).expect("link");
        symlink("two", b.join("link")).expect("link");
        symlink("same", a.join("kind")).expect("link");
        write(&b, "kind", "x");
        let view = |root: &Path| RootView::open(&[root.to_owned()]).expect("view");
        let changes = compare(&view(&a), &view(&b)).expect("compares");
        let shown: Vec<String> = changes
            .iter()
            .map(|change| {
                let sides = (change.a.is_some(), change.b.is_some());
                // Times of what the test has just made are its own.
                let aspects: Vec<_> =
                    change.differs.iter().filter(|it| **it != Aspect::Mtime || change.path == "/time").collect();
                format!("{} {sides:?} {aspects:?}", change.path)
            })
            .filter(|line| line != "/dir (true, true) []")
            .collect();
        assert_eq!(
            shown,
            [
                "/content (true, true) [Content]",
                "/gone (true, false) []",
                "/gone/below (true, false) []",
                "/kind (true, true) [Kind]",
                "/link (true, true) [Target]",
                "/mode (true, true) [Mode]",
                "/new (false, true) []",
                "/size (true, true) [Content, Size]",
                "/time (true, true) [Mtime]",
            ]
        );
        assert_eq!(compare(&view(&a), &view(&a)).expect("compares"), []);
    }
}
