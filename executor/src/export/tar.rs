//! `type=tar`: the files of roots as one tar (`spec/engine.md` §1.14).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;

use oci::layer::{Entry, EntryKind, LayerError, TarWriter, Xattr};

use super::{DIRECTORY_MODE, ExportError, PlacedRoot};
use crate::view::{DirView, Node, NodeKind};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes every entry of the roots, in lexical order, with owners, hard links and all extended attributes. With an epoch,
/// every entry of a root has exactly that time. Roots that are not apart must be one.
///
/// # Errors
/// [`ExportError`].
pub fn export_tar(roots: &[PlacedRoot], out: impl Write) -> Result<(), ExportError> {
    let mut tar = TarWriter::new(BufWriter::with_capacity(BUFFER_BYTES, out));
    let mut roots: Vec<(Option<String>, &PlacedRoot)> =
        roots.iter().map(|placed| (placed.directory(), placed)).collect();
    roots.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (directory, placed) in roots {
        let mut export = Export { tar, epoch: placed.epoch, links: HashMap::new() };
        let prefix = directory.map(|name| name.into_bytes());
        if let Some(name) = &prefix {
            let mtime_secs = placed.epoch.unwrap_or_default();
            let entry = Entry { mode: DIRECTORY_MODE, mtime_secs, ..Entry::new(name, EntryKind::Directory) };
            export.tar.append_bytes(&entry, &[]).map_err(fault)?;
        }
        let prefix = prefix.map(|name| [&name, b"/".as_slice()].concat()).unwrap_or_default();
        export.directory(placed.root.root(), &prefix)?;
        tar = export.tar;
    }
    let mut out = tar.finish().map_err(fault)?;
    out.flush().map_err(|error| ExportError::io("write", "the tar", error))
}

/// Writes one entry of a root as `name`, with all that is in it: `entry` is where it stands, `dir` its content if it is a
/// directory. The root itself stands nowhere.
///
/// # Errors
/// [`ExportError`].
pub fn export_tar_entry(
    entry: Option<(&DirView, &OsStr, &Node)>,
    dir: Option<&DirView>,
    name: &OsStr,
    out: impl Write,
) -> Result<(), ExportError> {
    let tar = TarWriter::new(BufWriter::with_capacity(BUFFER_BYTES, out));
    let mut export = Export { tar, epoch: None, links: HashMap::new() };
    // A directory that is called `.` is the one that the tar is unpacked into.
    if let Some((parent, own_name, node)) = entry
        && name != "."
    {
        export.entry(parent, own_name, node, name.as_bytes())?;
    }
    if let Some(dir) = dir {
        let prefix = if name == "." { Vec::new() } else { [name.as_bytes(), b"/"].concat() };
        export.directory(dir, &prefix)?;
    }
    let mut out = export.tar.finish().map_err(fault)?;
    out.flush().map_err(|error| ExportError::io("write", "the tar", error))
}

struct Export<W: Write> {
    tar: TarWriter<W>,
    epoch: Option<i64>,
    /// First path of each file of this root that has several names.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Export<W> {
    fn directory(&mut self, dir: &DirView, prefix: &[u8]) -> Result<(), ExportError> {
        for (name, node) in dir.entries()? {
            let path = [prefix, name.as_bytes()].concat();
            self.entry(dir, &name, &node, &path)?;
            if node.kind == NodeKind::Dir
                && let Some(child) = dir.child_dir(&name)?
            {
                self.directory(&child, &[&path, b"/".as_slice()].concat())?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &DirView, name: &OsStr, node: &Node, path: &[u8]) -> Result<(), ExportError> {
        let first = match node.kind {
            NodeKind::File if node.meta.n_links > 1 => self.links.get(&node.meta.inode).cloned(),
            _ => None,
        };
        if first.is_none() && node.kind == NodeKind::File && node.meta.n_links > 1 {
            self.links.insert(node.meta.inode, path.to_owned());
        }
        let target = match node.kind {
            NodeKind::Symlink => dir.read_link(name)?.unwrap_or_default(),
            _ => std::ffi::OsString::new(),
        };
        let (major, minor) = (rustix::fs::major(node.meta.rdev), rustix::fs::minor(node.meta.rdev));
        let kind = match (&first, node.kind) {
            (Some(first), _) => EntryKind::Hardlink { target: first },
            (None, NodeKind::File) => EntryKind::Regular { size_bytes: node.meta.size_bytes },
            (None, NodeKind::Socket) => EntryKind::Regular { size_bytes: 0 },
            (None, NodeKind::Dir) => EntryKind::Directory,
            (None, NodeKind::Symlink) => EntryKind::Symlink { target: target.as_bytes() },
            (None, NodeKind::Fifo) => EntryKind::Fifo,
            (None, NodeKind::CharDevice) => EntryKind::Char { major, minor },
            (None, NodeKind::BlockDevice) => EntryKind::Block { major, minor },
        };
        let xattrs = dir.xattrs(name)?.unwrap_or_default().into_iter();
        let xattrs: Vec<Xattr> = xattrs.map(|(name, value)| Xattr { name: name.as_bytes().to_vec(), value }).collect();
        let entry = Entry {
            mode: node.meta.mode,
            uid: node.meta.uid,
            gid: node.meta.gid,
            mtime_secs: self.epoch.unwrap_or(node.meta.mtime_s),
            xattrs: &xattrs,
            ..Entry::new(path, kind)
        };
        match (kind, dir.open_file(name)) {
            (EntryKind::Regular { size_bytes }, Ok(Some(mut file))) if size_bytes > 0 => {
                self.tar.append(&entry, &mut file as &mut dyn Read).map_err(fault)
            }
            (EntryKind::Regular { size_bytes }, Err(error)) if size_bytes > 0 => Err(error.into()),
            _ => self.tar.append_bytes(&entry, &[]).map_err(fault),
        }
    }
}

fn fault(error: LayerError) -> ExportError {
    ExportError::io("write", "the tar", std::io::Error::other(error))
}
