//! One entry of a tree: its kind and its metadata.

use rustix::fs::{FileType, Stat};

/// What sort of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device (never a whiteout: those are not shown).
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// The metadata of an entry, as layers and keys see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of bytes of a regular file; length of the target of a link.
    pub size_bytes: u64,
    /// Modification time, whole seconds since the epoch.
    pub mtime_s: i64,
    /// Nanoseconds of the modification time.
    pub mtime_ns: u32,
    /// Raw device number of a device.
    pub rdev: u64,
    /// Device and inode: equal for hard links of one file.
    pub inode: (u64, u64),
    /// Number of hard links.
    pub n_links: u64,
}

/// What is at a path of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Index of the layer it comes from, base layer 0. For a merged directory the topmost one.
    pub layer_idx: usize,
    /// What sort of thing it is.
    pub kind: NodeKind,
    /// Its metadata.
    pub meta: Metadata,
}

impl NodeKind {
    /// The kind that a `st_mode` names; unknown types count as regular files.
    pub fn of_mode(st_mode: u32) -> Self {
        match FileType::from_raw_mode(st_mode) {
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::RegularFile | FileType::Unknown => Self::File,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        self == Self::Dir
    }
}

impl Metadata {
    /// The part of a `stat` that counts.
    pub fn of_stat(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            rdev: stat.st_rdev,
            inode: (stat.st_dev, stat.st_ino),
            // Its width depends on the architecture.
            n_links: stat.st_nlink as _,
        }
    }
}
