//! A context as a directory that can be bind-mounted, with the ignore rules applied.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, ioctl_ficlone, mknodat, openat};
use tempfile::TempDir;

use super::select::{Place, literal};
use super::source::{Source, SourceDir};
use super::walk::{WalkRules, walk};
use super::{ContextDir, ContextError, LocalContext, Result};
use crate::view::{Node, NodeKind, ViewError};
use crate::whiteout::make_whiteout;

/// Something that a bind mount of a context can show.
#[derive(Debug)]
pub struct MountSource {
    layers: Vec<PathBuf>,
    _scratch: Option<TempDir>,
}

/// File systems that overlayfs does not take for a layer, because their names are not just bytes: FAT, exFAT, NTFS.
const NO_LAYERS: [i64; 4] = [0x4d44, 0x2011_bab0, 0x5346_544e, 0x7366_746e];

impl MountSource {
    fn itself(path: PathBuf) -> Self {
        Self { layers: vec![path], _scratch: None }
    }

    /// The host paths that, merged as layers (the first is the base), show it: a directory, a single file, or a directory and
    /// the marks that hide something of it. Valid as long as this value lives.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }
}

/// Gives what shows `subpath` of the context through its ignore rules.
///
/// When nothing is hidden below it this is the place itself; else the place with a layer of deletion marks above it, in a
/// new directory inside `scratch`; where there can be no such layers, a copy. Nothing is ever linked: a link changes the
/// file that it leads to (its change time), which is another build's sign that somebody writes to it. Callers must mount
/// it so that writes do not reach it.
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
        return Ok(MountSource::itself(path));
    };
    let mut marks = Marks { context, below: dir.path(), scratch, made: None, dirs: Vec::new() };
    marks.hide(&dir)?;
    let Some((hidden, marks_root)) = marks.finish()? else { return Ok(MountSource::itself(path)) };
    let fs_type = rustix::fs::statfs(&path).map_err(|e| io_error("stat", &path, e.into()))?.f_type;
    if !NO_LAYERS.contains(&fs_type) {
        return Ok(MountSource { layers: vec![path, marks_root], _scratch: Some(hidden) });
    }
    let copy = hidden.path().join("copy");
    materialize(&SourceDir::Context(context.clone(), dir), &item.node, &copy)?;
    Ok(MountSource { layers: vec![copy], _scratch: Some(hidden) })
}

/// A layer of deletion marks, as it is made: without directories as long as nothing is hidden.
struct Marks<'a> {
    context: &'a LocalContext,
    /// The directory that is shown, relative to the context.
    below: &'a Path,
    scratch: &'a Path,
    made: Option<TempDir>,
    /// Those of the layer, with what they stand for, parents first.
    dirs: Vec<(PathBuf, PathBuf)>,
}

/// The layer's root in its scratch directory.
const MARKS: &str = "hidden";

impl Marks<'_> {
    /// Marks all that exists in `dir` or below and is not visible.
    fn hide(&mut self, dir: &ContextDir) -> Result<()> {
        let host = self.context.host_path(dir.path());
        let failed = |e| io_error("list", &host, e);
        for existing in fs::read_dir(&host).map_err(failed)? {
            let name = existing.map_err(failed)?.file_name();
            if dir.entry(&name).is_none() {
                let path = self.dir(dir.path())?.join(&name);
                make_whiteout(CWD, &path).map_err(|e| io_error("create", &path, e.into()))?;
            }
        }
        for entry in dir.entries().iter().filter(|entry| entry.kind().is_dir()) {
            if let Some(child) = self.context.child_dir(dir, dir.name_of(entry))? {
                self.hide(&child)?;
            }
        }
        Ok(())
    }

    /// The directory of the layer that stands for `path` of the context.
    fn dir(&mut self, path: &Path) -> Result<PathBuf> {
        let made = match &mut self.made {
            Some(made) => made,
            none => none
                .insert(TempDir::new_in(self.scratch).map_err(|e| io_error("create a directory in", self.scratch, e))?),
        };
        let mut whole = made.path().join(MARKS);
        let mut origin = self.context.host_path(self.below);
        let relative = path.strip_prefix(self.below).unwrap_or(path);
        for name in std::iter::once(OsStr::new("")).chain(relative) {
            if !name.is_empty() {
                whole.push(name);
                origin.push(name);
            }
            match fs::create_dir(&whole) {
                Ok(()) => self.dirs.push((whole.clone(), origin.clone())),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("create", &whole, error)),
            }
        }
        Ok(whole)
    }

    /// Gives the directories what those have that they are merged with, as the topmost one counts. `None` when nothing is
    /// hidden.
    fn finish(self) -> Result<Option<(TempDir, PathBuf)>> {
        // Children first, so that making them does not touch the times of a finished directory.
        for (path, origin) in self.dirs.iter().rev() {
            let finish = fs::symlink_metadata(origin).and_then(|metadata| {
                // An owner that cannot be given is one that could not be seen either.
                drop(chown(path, Some(metadata.uid()), Some(metadata.gid())));
                fs::set_permissions(path, metadata.permissions())?;
                let times = fs::FileTimes::new().set_modified(metadata.modified()?);
                fs::File::open(path)?.set_times(times)
            });
            finish.map_err(|e| io_error("set the metadata of", path, e))?;
        }
        Ok(self.made.map(|made| {
            let root = made.path().join(MARKS);
            (made, root)
        }))
    }
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
