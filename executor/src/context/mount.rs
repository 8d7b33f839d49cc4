//! A context as a directory that can be bind-mounted, with the ignore rules applied.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, ioctl_ficlone, linkat, mknodat, openat};
use rustix::io::Errno;
use tempfile::TempDir;

use super::select::{Place, literal};
use super::source::{Source, SourceDir};
use super::walk::{WalkRules, walk};
use super::{ContextError, LocalContext, Result};
use crate::view::{Node, NodeKind, ViewError};

/// Something that a bind mount of a context can show.
#[derive(Debug)]
pub struct MountSource {
    path: PathBuf,
    _scratch: Option<TempDir>,
}

impl MountSource {
    /// The host path to mount: a directory, or a single file. Valid as long as this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives a host path that shows `subpath` of the context through its ignore rules.
///
/// When nothing is hidden below it this is the place itself; else a tree in a new directory inside `scratch`, made of
/// hard links where the file system allows it, else of reflinks or copies. Callers must mount it so that writes do not
/// reach it: hard links are the context's own files.
///
/// # Errors
/// [`ContextError::NotFound`] when there is nothing at `subpath`, and I/O errors.
pub fn materialize_for_mount(context: &LocalContext, subpath: &str, scratch: &Path) -> Result<MountSource> {
    let source = Source::Context(context.clone());
    let item = literal(&source, subpath)?;
    let (dir, path) = match &item.place {
        // A file that is visible is itself.
        Place::Leaf(SourceDir::Context(_, dir), name) => (None, context.host_path(&dir.path().join(name))),
        Place::Dir(SourceDir::Context(_, dir)) => (Some(dir.clone()), context.host_path(dir.path())),
        // A context's items are in a context.
        Place::Leaf(SourceDir::View(_), _) | Place::Dir(SourceDir::View(_)) => {
            return Err(super::error::not_found(&source, subpath));
        }
    };
    let Some(dir) = dir.filter(|_| !context.rules().patterns.is_empty()) else {
        return Ok(MountSource { path, _scratch: None });
    };
    if !hides_something(context, &dir)? {
        return Ok(MountSource { path, _scratch: None });
    }
    let copy = TempDir::new_in(scratch).map_err(|e| io_error("create a directory in", scratch, e))?;
    let root = copy.path().join("context");
    materialize(&SourceDir::Context(context.clone(), dir), &item.node, &root)?;
    Ok(MountSource { path: root, _scratch: Some(copy) })
}

/// Whether anything that exists below `dir` is not visible.
fn hides_something(context: &LocalContext, dir: &super::ContextDir) -> Result<bool> {
    let n_existing = fs::read_dir(context.host_path(dir.path()))
        .map_err(|e| io_error("list", &context.host_path(dir.path()), e))?
        .count();
    if n_existing != dir.entries().len() {
        return Ok(true);
    }
    for entry in dir.entries().iter().filter(|entry| entry.kind().is_dir()) {
        if let Some(child) = context.child_dir(dir, dir.name_of(entry))?
            && hides_something(context, &child)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn materialize(dir: &SourceDir, node: &Node, root: &Path) -> Result<()> {
    let mut dirs = vec![(root.to_owned(), *node)];
    fs::create_dir(root).map_err(|e| io_error("create", root, e))?;
    walk(dir, &WalkRules::default(), &mut |entry| {
        let to = root.join(entry.path);
        if entry.node.kind.is_dir() {
            dirs.push((to.clone(), *entry.node));
        }
        place(entry.dir, entry.name, entry.node, &to)
    })?;
    // Children first, so that writing them does not touch the times of a finished directory.
    for (path, node) in dirs.iter().rev() {
        let finish = fs::set_permissions(path, fs::Permissions::from_mode(node.meta.mode))
            .and_then(|()| set_times(path, node).map_err(io::Error::from));
        finish.map_err(|e| io_error("set the mode of", path, e))?;
    }
    Ok(())
}

/// Makes one entry at `to`.
fn place(dir: &SourceDir, name: &OsStr, node: &Node, to: &Path) -> Result<()> {
    let failed = |e: io::Error| ContextError::View(ViewError::io("create", to, e));
    match node.kind {
        NodeKind::Dir => fs::create_dir(to).map_err(failed),
        NodeKind::File => place_file(dir, name, node, to),
        NodeKind::Symlink => symlink(dir.read_link(name)?, to).map_err(failed),
        NodeKind::Fifo => make_node(to, FileType::Fifo, node).map_err(failed),
        NodeKind::CharDevice => make_node(to, FileType::CharacterDevice, node).map_err(failed),
        NodeKind::BlockDevice => make_node(to, FileType::BlockDevice, node).map_err(failed),
        // As a transferred context shows it.
        NodeKind::Socket => fs::write(to, b"").map_err(failed),
    }
}

fn make_node(to: &Path, file_type: FileType, node: &Node) -> io::Result<()> {
    mknodat(CWD, to, file_type, Mode::from_raw_mode(node.meta.mode), node.meta.rdev)?;
    Ok(())
}

fn place_file(dir: &SourceDir, name: &OsStr, node: &Node, to: &Path) -> Result<()> {
    let failed = |e: io::Error| ContextError::View(ViewError::io("create", to, e));
    if let SourceDir::Context(context, dir) = dir {
        let path = dir.path().join(name);
        let handle = context
            .open_beneath(&path, OFlags::PATH)
            .map_err(|e| ViewError::io("open", context.host_path(&path), e))?;
        let by_handle = crate::view::fd_path(&handle);
        match linkat(CWD, &by_handle, CWD, to, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::XDEV | Errno::PERM | Errno::ACCESS | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let mut from = dir.open_file(name)?.file;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = openat(CWD, to, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    let mut file = fs::File::from(fd);
    if ioctl_ficlone(&file, &from).is_err() {
        io::copy(&mut from, &mut file).map_err(failed)?;
    }
    file.set_permissions(fs::Permissions::from_mode(node.meta.mode)).map_err(failed)?;
    set_times(to, node).map_err(|e| failed(e.into()))
}

fn set_times(path: &Path, node: &Node) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: node.meta.mtime_s, tv_nsec: node.meta.mtime_ns.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> ContextError {
    ContextError::View(ViewError::io(operation, path, source))
}
