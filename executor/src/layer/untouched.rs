//! Directories whose times do not tell that something was put into them or taken out.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Stat, Timespec, Timestamps, fstat, futimens};

use super::dir;
use super::error::{Result, TreeError};

/// The time of a directory that is going to be changed.
pub(super) struct Untouched {
    dir: OwnedFd,
    path: Vec<u8>,
    stat: Stat,
}

impl Untouched {
    /// Remembers the time of `dir`, which messages call `path`.
    pub(super) fn remember(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Self> {
        let fd = dir::open_dir(dir, b".").map_err(TreeError::io_at("open", path))?;
        let stat = fstat(&fd).map_err(TreeError::io_at("stat", path))?;
        Ok(Self { dir: fd, path: path.to_vec(), stat })
    }

    /// Sets it again.
    pub(super) fn restore(self) -> Result<()> {
        let time = |secs, nanos| Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps {
            last_access: time(self.stat.st_atime, self.stat.st_atime_nsec as _),
            last_modification: time(self.stat.st_mtime, self.stat.st_mtime_nsec as _),
        };
        futimens(&self.dir, &times).map_err(TreeError::io_at("set the time of", &self.path))
    }
}
