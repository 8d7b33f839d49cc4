//! What lies below a layer: the merged view of the layers under it, as far as the codec needs it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FileType;

/// Metadata of an entry of the merged lower layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerMeta {
    /// What it is; never a whiteout.
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky: 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Raw device number of a device, 0 for everything else.
    pub rdev: u64,
    /// Modification time: seconds since the epoch.
    pub mtime_secs: i64,
    /// Modification time: nanoseconds of the second.
    pub mtime_nanos: u32,
}

/// The merged layers below the one that is written or unpacked.
///
/// Paths are relative to the root, without `.` and `..`; the empty path is the root itself. No method ever follows a
/// symlink, neither at the end of a path nor on the way: a path through one does not exist. What a whiteout or an opaque
/// directory hides does not exist either. Methods may be called from several threads at once and may block on disk I/O.
pub trait LowerView: Sync {
    /// Whether there is a root at all: not below a base layer.
    fn has_root(&self) -> bool;

    /// The metadata of `path`; `None` when it does not exist.
    fn metadata(&self, path: &Path) -> io::Result<Option<LowerMeta>>;

    /// The names in the directory `dir`, in any order; empty when it does not exist or is no directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// The extended attributes of `path`, without overlayfs' own; empty when it does not exist.
    fn xattrs(&self, path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>>;

    /// Opens the regular file `path` for reading; `None` when there is no regular file.
    fn open_file(&self, path: &Path) -> io::Result<Option<File>>;

    /// The target of the symlink `path`; `None` when there is no symlink.
    fn read_link(&self, path: &Path) -> io::Result<Option<OsString>>;
}

/// Nothing lies below: the view of a base layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingBelow;

impl LowerView for NothingBelow {
    fn has_root(&self) -> bool {
        false
    }

    fn metadata(&self, _path: &Path) -> io::Result<Option<LowerMeta>> {
        Ok(None)
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<OsString>> {
        Ok(Vec::new())
    }

    fn xattrs(&self, _path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn open_file(&self, _path: &Path) -> io::Result<Option<File>> {
        Ok(None)
    }

    fn read_link(&self, _path: &Path) -> io::Result<Option<OsString>> {
        Ok(None)
    }
}
