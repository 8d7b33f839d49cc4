//! The mark of a deleted name in a tree.
//!
//! Overlayfs' own is a character device 0/0, which everybody may make, but not on overlayfs itself: the disk of most
//! containers. There a socket without any permission bits stands for it. Sockets are no part of layers otherwise, and such
//! trees are never mounted.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, Stat, mknodat};
use rustix::io::{Errno, Result};

/// Whether a status is that of a deletion mark.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        FileType::Socket => stat.st_mode & 0o7777 == 0,
        _ => false,
    }
}

/// Whether something of that type, as a directory lists it, may be a deletion mark.
pub(crate) fn may_be_whiteout(kind: FileType) -> bool {
    matches!(kind, FileType::CharacterDevice | FileType::Socket | FileType::Unknown)
}

/// Marks `name` in `dir` as deleted; nothing has that name.
pub(crate) fn make_whiteout(dir: impl AsFd, name: impl rustix::path::Arg + Copy) -> Result<()> {
    match mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::PERM) => mknodat(&dir, name, FileType::Socket, Mode::empty(), 0),
        made => made,
    }
}

/// The status of `name` in `dir`, to be asked whether it is a mark.
pub(crate) fn status(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn both_marks_are_understood_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_whiteout(CWD, &path("mark")).unwrap();
        mknodat(CWD, path("substitute"), FileType::Socket, Mode::empty(), 0).unwrap();
        mknodat(CWD, path("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
        std::fs::write(path("file"), "").unwrap();
        let found = ["mark", "substitute", "socket", "file"].map(|name| is_whiteout(&status(CWD, path(name)).unwrap()));
        assert_eq!(found, [true, true, false, false]);
    }
}
