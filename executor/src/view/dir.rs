//! One merged directory: the directories of several layers laid over each other.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags, Stat, fgetxattr, openat, readlinkat};
use rustix::io::Errno;

use super::handles::Handles;
use super::{Metadata, Node, NodeKind, Result, ViewError, Xattrs};
use crate::owners;
use crate::whiteout::{self, is_whiteout, may_be_whiteout};

/// Names of the xattr by which overlayfs marks a directory that hides what lies below it.
const OPAQUE_XATTRS: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// Prefixes of xattrs that belong to the format and not to the content: overlayfs' own, and notes of owners.
const OVERLAY_PREFIXES: [&str; 3] = ["trusted.overlay.", "user.overlay.", owners::OWN_PREFIX];

/// A directory as the merged root shows it. Cheap to clone and to keep: it holds no open files.
#[derive(Clone, Debug)]
pub struct DirView {
    handles: Arc<Handles>,
    id: u64,
    path: Arc<Path>,
    /// The layers that have a part in it, topmost first.
    layers: Arc<[usize]>,
}

/// One layer's directory, open.
struct Part {
    layer_idx: usize,
    fd: Arc<OwnedFd>,
}

impl DirView {
    pub(super) fn new(handles: Arc<Handles>, path: PathBuf, layers: Vec<usize>) -> Self {
        let id = handles.new_dir();
        Self { handles, id, path: path.into(), layers: layers.into() }
    }

    /// The layers' directories, topmost first.
    fn parts(&self) -> impl Iterator<Item = Result<Part>> + '_ {
        self.layers.iter().map(|&layer_idx| {
            let fd = self.handles.get(self.id, layer_idx, &self.path)?;
            Ok(Part { layer_idx, fd })
        })
    }

    /// Its path inside the root, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its own metadata: the topmost layer's. `None` only for the root of an empty stack.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn metadata(&self) -> Result<Option<Node>> {
        let Some(part) = self.parts().next().transpose()? else { return Ok(None) };
        let stat = owners::fstat(&part.fd).map_err(|e| self.error("stat", &part, OsStr::new(""), e))?;
        Ok(Some(node(part.layer_idx, &stat)))
    }

    /// What is called `name` in it; links are not followed.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        Ok(self.find(name)?.map(|(_, node)| node))
    }

    /// The merged directory called `name`; `None` when there is none or it is something else.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn child_dir(&self, name: &OsStr) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let id = self.handles.new_dir();
        let mut layers = Vec::new();
        for part in self.parts() {
            let part = part?;
            match openat(&part.fd, name, flags, Mode::empty()) {
                Ok(fd) => {
                    let opaque = part.layer_idx > 0 && is_opaque(&fd, &self.host_path(&part, name))?;
                    self.handles.keep(id, part.layer_idx, Arc::new(fd));
                    layers.push(part.layer_idx);
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A whiteout or any other non-directory hides what lies below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(e) => return Err(self.error("open directory", &part, name, e)),
            }
        }
        if layers.is_empty() {
            return Ok(None);
        }
        let path = self.path.join(name).into();
        Ok(Some(Self { handles: self.handles.clone(), id, path, layers: layers.into() }))
    }

    /// Names of its entries, in byte order.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn names(&self) -> Result<Vec<OsString>> {
        let mut visible: BTreeMap<OsString, bool> = BTreeMap::new();
        for part in self.parts() {
            self.read_part(&part?, |name, is_hidden| {
                visible.entry(name.to_owned()).or_insert(!is_hidden);
            })?;
        }
        Ok(visible.into_iter().filter_map(|(name, is_visible)| is_visible.then_some(name)).collect())
    }

    /// Names and nodes of its entries, in byte order of the names.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn entries(&self) -> Result<Vec<(OsString, Node)>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            if let Some(node) = self.lookup(&name)? {
                entries.push((name, node));
            }
        }
        Ok(entries)
    }

    /// Opens the regular file called `name`; `None` when it is none.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn open_file(&self, name: &OsStr) -> Result<Option<File>> {
        let Some((part, node)) = self.find(name)? else { return Ok(None) };
        if node.kind != NodeKind::File {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&part.fd, name, flags, Mode::empty()).map_err(|e| self.error("open", &part, name, e))?;
        Ok(Some(fd.into()))
    }

    /// The stored target of the link called `name`; `None` when it is no link.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn read_link(&self, name: &OsStr) -> Result<Option<OsString>> {
        let Some((part, node)) = self.find(name)? else { return Ok(None) };
        if node.kind != NodeKind::Symlink {
            return Ok(None);
        }
        let target = readlinkat(&part.fd, name, Vec::new()).map_err(|e| self.error("read the link", &part, name, e))?;
        Ok(Some(OsString::from_vec(target.into_bytes())))
    }

    /// The xattrs of `name`, sorted by name, without overlayfs' own; `None` when nothing has that name.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn xattrs(&self, name: &OsStr) -> Result<Option<Xattrs>> {
        let Some((part, _)) = self.find(name)? else { return Ok(None) };
        read_xattrs(&part.fd, name).map(Some).map_err(|e| self.error("read the xattrs of", &part, name, e))
    }

    /// One xattr of `name`; `None` when it has none of that name, or does not exist.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn xattr(&self, name: &OsStr, xattr: &str) -> Result<Option<Vec<u8>>> {
        let Some((part, _)) = self.find(name)? else { return Ok(None) };
        read_xattr(&part.fd, name, xattr).map_err(|e| self.error("read the xattrs of", &part, name, e))
    }

    /// Its own xattrs, sorted by name, without overlayfs' own.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn own_xattrs(&self) -> Result<Xattrs> {
        let Some(part) = self.parts().next().transpose()? else { return Ok(Vec::new()) };
        let dot = OsStr::new(".");
        read_xattrs(&part.fd, dot).map_err(|e| self.error("read the xattrs of", &part, dot, e))
    }

    /// The topmost part that says something about `name`; whiteouts say that there is nothing.
    fn find(&self, name: &OsStr) -> Result<Option<(Part, Node)>> {
        for part in self.parts() {
            let part = part?;
            match owners::statat(&part.fd, name) {
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => {
                    let node = node(part.layer_idx, &stat);
                    return Ok(Some((part, node)));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(self.error("stat", &part, name, e)),
            }
        }
        Ok(None)
    }

    /// Calls `each` with every name of one layer's directory and whether it is a whiteout.
    fn read_part(&self, part: &Part, mut each: impl FnMut(&OsStr, bool)) -> Result<()> {
        let none = OsStr::new("");
        let entries = Dir::read_from(&part.fd).map_err(|e| self.error("list", part, none, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.error("list", part, none, e))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let is_hidden = match entry.file_type() {
                kind if may_be_whiteout(kind) => whiteout::status(&part.fd, name)
                    .map(|stat| is_whiteout(&stat))
                    .map_err(|e| self.error("stat", part, name, e))?,
                _ => false,
            };
            each(name, is_hidden);
        }
        Ok(())
    }

    fn host_path(&self, part: &Part, name: &OsStr) -> PathBuf {
        let inside = self.path.strip_prefix("/").unwrap_or(&self.path);
        self.handles.trees()[part.layer_idx].join(inside).join(name)
    }

    fn error(&self, operation: &'static str, part: &Part, name: &OsStr, source: Errno) -> ViewError {
        ViewError::io(operation, self.host_path(part, name), source)
    }
}

fn node(layer_idx: usize, stat: &Stat) -> Node {
    Node { layer_idx, kind: NodeKind::of_mode(stat.st_mode), meta: Metadata::of_stat(stat) }
}

/// Whether overlayfs would hide what lies below this directory.
pub(super) fn is_opaque(dir: &OwnedFd, path: &Path) -> Result<bool> {
    for name in OPAQUE_XATTRS {
        let mut value = [0_u8; 4];
        match fgetxattr(dir, name, &mut value) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => {}
            Err(e) => return Err(ViewError::io("read the xattrs of", path, e)),
        }
    }
    Ok(false)
}

/// A path by which xattr calls, which have no `at` form, reach one name in an open directory: `/proc/self/fd/N/name`.
/// The prefix is a kernel link to the handle itself and `name` is one component, so it cannot lead elsewhere.
pub(crate) fn handle_path(dir: impl AsFd, name: &OsStr) -> PathBuf {
    fd_path(dir).join(name)
}

/// One xattr of `name` in `dir`, links not followed; `None` when it is not there or the file system has no xattrs.
pub(crate) fn read_xattr(dir: impl AsFd, name: &OsStr, xattr: &str) -> Result<Option<Vec<u8>>, Errno> {
    let xattr = OsStr::new(xattr);
    let value = xattr_at(&handle_path(dir, name), xattr)?;
    Ok(value.filter(|value| !owners::is_note(xattr, value)))
}

/// All xattrs of `name` in `dir`, links not followed, sorted by name, overlayfs' own left out.
pub(crate) fn read_xattrs(dir: impl AsFd, name: &OsStr) -> Result<Xattrs, Errno> {
    let path = handle_path(dir, name);
    let mut list = Vec::new();
    loop {
        let len = match rustix::fs::llistxattr_query(&path) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        list.resize(len, 0);
        match rustix::fs::llistxattr(&path, &mut list[..]) {
            Ok(len) => {
                list.truncate(len);
                break;
            }
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
    let mut xattrs = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OVERLAY_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes())) {
            continue;
        }
        let name = OsStr::from_bytes(name);
        if let Some(value) = xattr_at(&path, name)?.filter(|value| !owners::is_note(name, value)) {
            xattrs.push((name.to_owned(), value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

fn xattr_at(path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>, Errno> {
    // Capabilities are 20 or 24 bytes; larger values take a second call.
    let mut value = vec![0; 64];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) => {
                let len = rustix::fs::lgetxattr_query(path, name)?;
                value.resize(len, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

/// The path by which the kernel reaches an open handle.
pub(crate) fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
