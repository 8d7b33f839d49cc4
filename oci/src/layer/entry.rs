//! One entry of a layer tar, as a value.

/// The metadata of one entry; its content travels beside it.
///
/// Borrowed, so that writing or reading an entry allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Writing: relative, cleaned, without a leading or trailing slash. Reading: exactly as the archive says, hostile
    /// until it has been through [`crate::layer::clean_path`].
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permission bits with setuid, setgid and sticky: 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since the epoch, rounded down.
    pub mtime_secs: i64,
    /// Modification time: nanoseconds of the second. Never written: layer tars hold whole seconds.
    pub mtime_nanos: u32,
    /// Extended attributes, names unique.
    pub xattrs: &'a [Xattr],
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file.
    Regular {
        /// Number of content bytes; of a sparse file, holes included.
        size_bytes: u64,
    },
    /// Another name of an entry.
    Hardlink {
        /// Path of that entry from the root.
        target: &'a [u8],
    },
    /// A symbolic link.
    Symlink {
        /// Its target, verbatim.
        target: &'a [u8],
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name, for instance `security.capability`.
    pub name: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}

impl<'a> Entry<'a> {
    /// An entry with mode, owner and time all zero and without xattrs.
    pub const fn new(path: &'a [u8], kind: EntryKind<'a>) -> Self {
        Self { path, kind, mode: 0, uid: 0, gid: 0, mtime_secs: 0, mtime_nanos: 0, xattrs: &[] }
    }

    /// The deletion marker of a layer: an empty regular file, everything zero. `path` is `DIR/.wh.NAME`.
    ///
    /// Spec: OCI image-spec 1.1, layer.md, "Whiteouts".
    pub const fn whiteout(path: &'a [u8]) -> Self {
        Self::new(path, EntryKind::Regular { size_bytes: 0 })
    }

    /// Number of content bytes that follow the entry; 0 for everything but regular files.
    pub const fn content_bytes(&self) -> u64 {
        match self.kind {
            EntryKind::Regular { size_bytes } => size_bytes,
            _ => 0,
        }
    }
}
