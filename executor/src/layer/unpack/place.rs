//! A position inside a tree: handles of the directories from the root down to one directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::layer::error::{Result, TreeError, as_path};

/// Deepest nesting that is accepted: every level holds a file descriptor.
const MAX_DEPTH: usize = 256;

/// A directory of a tree, reached one component at a time and never through a symlink.
pub(in crate::layer) struct Place {
    root: OwnedFd,
    /// Name and handle of every directory below the root, outermost first.
    levels: Vec<(Vec<u8>, OwnedFd)>,
}

impl Place {
    /// The root of a tree.
    pub(in crate::layer) fn open(tree: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(tree, flags, Mode::empty()).map_err(|error| TreeError::io("open", tree, error))?;
        Ok(Self { root, levels: Vec::new() })
    }

    /// Handle of the directory; good for `*at` calls only.
    pub(in crate::layer) fn fd(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// Path of the directory inside the tree; empty for the root.
    pub(in crate::layer) fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.levels.iter().map(|(name, _)| name.as_slice()).collect();
        names.join(&b'/')
    }

    /// Path of `name` in the directory.
    pub(in crate::layer) fn join(&self, name: &[u8]) -> Vec<u8> {
        crate::layer::walk::join(&self.path(), name)
    }

    /// Another position in the same tree, at its root.
    pub(in crate::layer) fn reopen(&self) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: openat(&self.root, ".", flags, Mode::empty())?, levels: Vec::new() })
    }

    /// Goes back to the root.
    pub(in crate::layer) fn leave_all(&mut self) {
        self.levels.clear();
    }

    /// Goes to the parent; stays at the root.
    pub(in crate::layer) fn leave(&mut self) {
        self.levels.pop();
    }

    /// Leaves directories until the rest are the first components of `path`, and returns the components that are left.
    pub(in crate::layer) fn rewind<'a>(&mut self, path: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let components = || path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let n_common = self.levels.iter().zip(components()).take_while(|((level, _), name)| level == name).count();
        self.levels.truncate(n_common);
        components().skip(n_common)
    }

    /// Enters the directory `name`.
    ///
    /// # Errors
    /// `ENOENT` when it does not exist, `ENOTDIR` or `ELOOP` when it is no directory (a symlink is none).
    pub(in crate::layer) fn enter(&mut self, name: &[u8]) -> rustix::io::Result<()> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.fd(), name, flags, Mode::empty())?;
        self.levels.push((name.to_vec(), fd));
        Ok(())
    }

    /// Goes to an existing directory by its path, which has no symlinks.
    pub(in crate::layer) fn go_to(&mut self, path: &[u8]) -> Result<()> {
        for name in self.rewind(path) {
            self.enter(name).map_err(|error| TreeError::io("open", as_path(path), error))?;
        }
        Ok(())
    }
}
