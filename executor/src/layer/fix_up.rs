//! What an unpacked layer needs from the layers below it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci::layer::{CleanPath, clean_path};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, fchmod, fsetxattr, futimens, linkat, mknodat,
    openat, symlinkat, utimensat,
};

use super::dir;
use super::error::{Result, TreeError, as_path};
use super::lower::{LowerMeta, LowerView};
use super::unpack::{Attributes, Creator, Place, Unpacked};
use super::untouched::Untouched;
use super::walk::last_component;
use crate::owners;

/// Completes the tree of an unpacked layer with what only the layers below know.
///
/// - Directories that the tar took for granted get the metadata of the directories below.
/// - An opaque root hides everything below by name, because overlayfs does not look at the mark of a root.
/// - Hard links to files below copy those up and link to the copies.
///
/// The result depends on `lower`, so a tree that needed it belongs to that stack of layers (see
/// [`Unpacked::is_self_contained`]). Idempotent.
///
/// # Errors
/// [`TreeError::MissingLinkTarget`] when a link leads nowhere; [`TreeError::Io`].
pub fn fix_up(tree: &Path, lower: &dyn LowerView, unpacked: &Unpacked) -> Result<()> {
    let place = Place::open(tree)?;
    let creator = Creator::new(unpacked.options, place.fd())?;
    let opaque_dirs = unpacked.opaque_dirs.iter().map(|dir| dir.as_os_str().as_bytes().to_vec()).collect();
    let mut fixer = Fixer { place, creator, lower, opaque_dirs };
    for dir in &unpacked.implied_dirs {
        fixer.describe_implied(dir.as_os_str().as_bytes())?;
    }
    if unpacked.opaque_dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
        fixer.hide_root()?;
    }
    for link in &unpacked.deferred_links {
        let (path, target) = (clean(&link.path), clean(&link.target));
        if !fixer.link(&path, &target)? {
            return Err(TreeError::MissingLinkTarget { path: link.path.clone(), target: link.target.clone() });
        }
    }
    Ok(())
}

struct Fixer<'a> {
    place: Place,
    creator: Creator,
    lower: &'a dyn LowerView,
    opaque_dirs: HashSet<Vec<u8>>,
}

impl Fixer<'_> {
    /// What is below at `path` and shines through the tree: nothing inside an opaque directory does.
    fn below(&self, path: &[u8]) -> Result<Option<LowerMeta>> {
        let ancestors = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end]);
        let is_hidden = !path.is_empty()
            && (self.opaque_dirs.contains(&b""[..]) || ancestors.into_iter().any(|dir| self.opaque_dirs.contains(dir)));
        if is_hidden {
            return Ok(None);
        }
        self.lower.metadata(as_path(path)).map_err(|error| TreeError::io("look below", as_path(path), error))
    }

    fn describe_implied(&mut self, path: &[u8]) -> Result<()> {
        let Some(meta) = self.below(path)?.filter(|meta| meta.kind == FileType::Directory) else { return Ok(()) };
        self.go_to_parent_of(path)?;
        let name = if path.is_empty() { b"." } else { last_component(path) };
        let fd = dir::open_dir(self.place.fd(), name).map_err(TreeError::io_at("open", path))?;
        self.copy_xattrs(path, &fd)?;
        self.creator.describe_dir(&fd, path, &attributes(&meta))
    }

    /// Deletes every name of the lower root that the tree does not have, and hides what is in those that it has.
    fn hide_root(&mut self) -> Result<()> {
        self.place.leave_all();
        let names = self.lower.list(Path::new("")).map_err(|error| TreeError::io("list", Path::new(""), error))?;
        let untouched = Untouched::remember(self.place.fd(), b"")?;
        for name in names {
            let name = name.as_bytes();
            let at = |operation| TreeError::io_at(operation, name);
            match dir::stat(self.place.fd(), name) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    let fd = dir::open_dir(self.place.fd(), name).map_err(at("open"))?;
                    self.creator.mark_opaque(fd.as_fd()).map_err(at("mark"))?;
                }
                Ok(_) => {}
                Err(rustix::io::Errno::NOENT) => {
                    self.creator.make_whiteout(self.place.fd(), name).map_err(at("create"))?;
                }
                Err(error) => return Err(at("stat")(error)),
            }
        }
        untouched.restore()
    }

    /// Makes the link `path` to `target`; `false` when there is no such file.
    fn link(&mut self, path: &CleanPath, target: &CleanPath) -> Result<bool> {
        let (Some((parent, name)), Some((target_parent, target_name))) = (path.split_last(), target.split_last())
        else {
            return Ok(false);
        };
        if !self.is_in_tree(target)? && !self.copy_up(target)? {
            return Ok(false);
        }
        self.place.go_to(target_parent)?;
        let target_dir = self
            .place
            .fd()
            .try_clone_to_owned()
            .map_err(|error| TreeError::io("open", as_path(target_parent), error))?;
        self.place.go_to(parent)?;
        let untouched = Untouched::remember(self.place.fd(), parent)?;
        match linkat(&target_dir, target_name, self.place.fd(), name, AtFlags::empty()) {
            // Made by an earlier call.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(TreeError::io("link", as_path(path.as_bytes()), error)),
        }
        untouched.restore()?;
        Ok(true)
    }

    /// Whether the tree has a file of that path; a deletion is none.
    fn is_in_tree(&mut self, path: &CleanPath) -> Result<bool> {
        let Some((parent, name)) = path.split_last() else { return Ok(false) };
        for component in self.place.rewind(parent) {
            match self.place.enter(component) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                    return Ok(false);
                }
                Err(error) => return Err(TreeError::io("open", as_path(parent), error)),
            }
        }
        match dir::stat(self.place.fd(), name) {
            Ok(stat) => Ok(!dir::is_whiteout(&stat)),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(TreeError::io("stat", as_path(path.as_bytes()), error)),
        }
    }

    /// Copies a file from below to the same path of the tree, as overlayfs would; `false` when there is none.
    fn copy_up(&mut self, path: &CleanPath) -> Result<bool> {
        let Some((parent, name)) = path.split_last() else { return Ok(false) };
        let Some(meta) = self.below(path.as_bytes())?.filter(|meta| meta.kind != FileType::Directory) else {
            return Ok(false);
        };
        if !self.make_parents(parent)? || dir::stat(self.place.fd(), name).is_ok() {
            // Deleted, or replaced by something that is no directory.
            return Ok(false);
        }
        let untouched = Untouched::remember(self.place.fd(), parent)?;
        match meta.kind {
            FileType::RegularFile => self.copy_file(path.as_bytes(), name, &meta)?,
            _ => self.copy_special(path.as_bytes(), name, &meta)?,
        }
        untouched.restore()?;
        Ok(true)
    }

    /// Goes to the directory `path`, copying up directories that the tree does not have; `false` when something else is
    /// in the way.
    fn make_parents(&mut self, path: &[u8]) -> Result<bool> {
        for component in self.place.rewind(path) {
            match self.place.enter(component) {
                Ok(()) => continue,
                Err(rustix::io::Errno::NOENT) => {}
                Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(false),
                Err(error) => return Err(TreeError::io("open", as_path(path), error)),
            }
            let dir_path = self.place.join(component);
            let untouched = Untouched::remember(self.place.fd(), path)?;
            self.creator.make_dir(self.place.fd(), component).map_err(TreeError::io_at("create", &dir_path))?;
            untouched.restore()?;
            self.describe_implied(&dir_path)?;
            self.place.enter(component).map_err(TreeError::io_at("open", &dir_path))?;
        }
        Ok(true)
    }

    fn copy_file(&self, path: &[u8], name: &[u8], meta: &LowerMeta) -> Result<()> {
        let at = |operation| TreeError::io_at(operation, path);
        let copy_error = |error: io::Error| TreeError::io("copy up", as_path(path), error);
        let source = self.lower.open_file(as_path(path)).map_err(copy_error)?;
        let mut source = source.ok_or_else(|| copy_error(io::ErrorKind::NotFound.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.place.fd(), name, flags, Mode::from_raw_mode(0o600)).map_err(at("create"))?;
        let mut file = std::fs::File::from(fd);
        io::copy(&mut source, &mut file).map_err(copy_error)?;
        let fd = OwnedFd::from(file);
        owners::fchown(&fd, meta.uid, meta.gid).map_err(at("change the owner of"))?;
        fchmod(&fd, Mode::from_raw_mode(meta.mode)).map_err(at("change the mode of"))?;
        self.copy_xattrs(path, &fd)?;
        futimens(&fd, &times(meta)).map_err(at("set the time of"))
    }

    /// Copies a symlink, device or pipe.
    fn copy_special(&self, path: &[u8], name: &[u8], meta: &LowerMeta) -> Result<()> {
        let at = |operation| TreeError::io_at(operation, path);
        if meta.kind == FileType::Symlink {
            let target =
                self.lower.read_link(as_path(path)).map_err(|error| TreeError::io("copy up", as_path(path), error))?;
            symlinkat(target.unwrap_or_default().as_bytes(), self.place.fd(), name).map_err(at("create"))?;
        } else {
            mknodat(self.place.fd(), name, meta.kind, Mode::from_raw_mode(meta.mode), meta.rdev)
                .map_err(at("create"))?;
        }
        owners::chownat(self.place.fd(), as_path(name), meta.uid, meta.gid).map_err(at("change the owner of"))?;
        if meta.kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(meta.mode);
            rustix::fs::chmodat(self.place.fd(), name, mode, AtFlags::empty()).map_err(at("change the mode of"))?;
        }
        utimensat(self.place.fd(), name, &times(meta), AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of"))
    }

    fn copy_xattrs(&self, path: &[u8], fd: &OwnedFd) -> Result<()> {
        let xattrs =
            self.lower.xattrs(as_path(path)).map_err(|error| TreeError::io("look below", as_path(path), error))?;
        for (name, value) in xattrs {
            match fsetxattr(fd, name.as_bytes(), &value, XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(TreeError::io("set an xattr of", as_path(path), error)),
            }
        }
        Ok(())
    }

    fn go_to_parent_of(&mut self, path: &[u8]) -> Result<()> {
        let name = last_component(path);
        self.place.go_to(&path[..path.len() - name.len()])
    }
}

fn attributes(meta: &LowerMeta) -> Attributes {
    Attributes { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: (meta.mtime_secs, meta.mtime_nanos) }
}

fn times(meta: &LowerMeta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime_secs, tv_nsec: meta.mtime_nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn clean(path: &Path) -> CleanPath {
    clean_path(path.as_os_str().as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
