//! ADD of an archive: its entries go into the draft, their bytes into scratch files that can be moved into place.
//!
//! The destination is found like that of any copy. Below it the archive sees a file system whose root is the destination:
//! links that are there are followed, absolute ones and `..` from that root. Spec: `spec/dockerfile.md` §2.23.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use oci::layer::{Entry, EntryKind, LayerError, LayerReader, ReadLimits, clean_path, decompress, sniff_archive};
use solver::OpError;
use tempfile::TempDir;

use super::Setting;
use super::copy::{Style, mkdir_error};
use super::draft::{Attributes, Body, DirId, Draft, Inode, InodeId, InodeKind, InodeXattrs, NewDirs, SubRoot};
use crate::context::ContextError;
use crate::context::source::{OpenedFile, SourceDir};
use crate::view::resolve::{self, Last};
use crate::view::{NodeKind, Xattrs};

/// Unpacks the file `name` of `dir` into the directory `dest`, if it is an archive. `false`: it is none, nothing happened.
///
/// # Errors
/// An archive that breaks off or is damaged behind its first entry; entries that cannot be placed.
pub(super) fn unpack(
    draft: &mut Draft,
    setting: &Setting<'_>,
    style: &Style,
    dir: &SourceDir,
    name: &OsStr,
    dest: &str,
) -> Result<bool, OpError> {
    let opened = dir.open_file(name)?;
    if sniff_archive(&opened.file).is_none() {
        return Ok(false);
    }
    let rewound = (&opened.file).rewind();
    rewound.map_err(|e| OpError::environment(format!("cannot rewind `{}`: {e}", dir.display_path(name).display())))?;

    let dest = draft.resolve(Path::new(dest), Last::Followed)?.path;
    let created = NewDirs { mode: 0o755, ..style.created.clone() };
    let top = draft.ensure_dir(&dest, &created)?.map_err(|e| mkdir_error(&e))?;
    // Operations that run at the same time share the space for scratch files, but not their names.
    let scratch = TempDir::with_prefix_in("archive-", setting.scratch).map_err(|e| {
        OpError::environment(format!("cannot create a directory in `{}`: {e}", setting.scratch.display()))
    })?;
    let scratch = Arc::new(scratch);
    draft.keep(scratch.clone());
    let mut unpacker = Unpacker { draft, setting, style, scratch, top };
    match &opened.claim.stamp {
        // Nobody changes the files of a root.
        None => unpacker.read(&opened.file)?,
        Some(_) => unpacker.read_proven(&opened, dir, name)?,
    }
    Ok(true)
}

struct Unpacker<'a, 'b> {
    draft: &'a mut Draft,
    setting: &'a Setting<'b>,
    style: &'a Style,
    /// Where contents wait.
    scratch: Arc<TempDir>,
    /// The destination: the archive's `/`.
    top: DirId,
}

impl Unpacker<'_, '_> {
    /// Reads an archive of the client's: what is unpacked has to be what is in the key, or will be.
    fn read_proven(&mut self, opened: &OpenedFile, dir: &SourceDir, name: &OsStr) -> Result<(), OpError> {
        let path = || dir.display_path(name);
        let cannot_read = |e| OpError::environment(format!("cannot read `{}`: {e}", path().display()));
        let mut hashed = None;
        if opened.claim.proven_digest().is_some() {
            self.read(&opened.file)?;
        } else {
            let mut reader = Hashed { inner: &opened.file, hasher: blake3::Hasher::new() };
            self.read(&mut reader)?;
            // What follows the archive counts for the key as well.
            io::copy(&mut reader, &mut io::sink()).map_err(cannot_read)?;
            hashed = Some(*reader.hasher.finalize().as_bytes());
        }
        let is_other = opened.claim.digest.zip(hashed).is_some_and(|(expected, got)| expected != got);
        if is_other || opened.has_changed().map_err(cannot_read)? {
            return Err(ContextError::Changed { path: path() }.into());
        }
        if let (None, Some(got)) = (opened.claim.digest, hashed) {
            dir.learn(name, got, opened.opened_at);
        }
        Ok(())
    }

    fn read(&mut self, archive: impl Read + Send) -> Result<(), OpError> {
        let (_, raw) = decompress(archive).map_err(|e| OpError::input(format!("cannot read the archive: {e}")))?;
        let mut reader = LayerReader::new(raw, ReadLimits::default());
        while let Some(mut member) = reader.next_member().map_err(archive_error)? {
            self.setting.check_cancelled()?;
            self.entry(&member.entry, &mut member.content)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> Result<(), OpError> {
        let Some(path) = clean_path(entry.path) else {
            return Err(OpError::input("an entry of the archive has a NUL byte in its name"));
        };
        // An entry for the destination itself says nothing.
        let Some((parent, name)) = path.split_last() else { return Ok(()) };
        let name = OsStr::from_bytes(name);
        let shown = Path::new("/").join(OsStr::from_bytes(path.as_bytes()));
        let parent = self.parent(Path::new(OsStr::from_bytes(parent)), &shown)?;
        let inode = match entry.kind {
            EntryKind::Directory => return self.dir(parent, name, entry),
            EntryKind::Hardlink { target } => self.link_target(target, &shown)?,
            EntryKind::Regular { .. } => {
                let body = self.stage(content)?;
                self.new_inode(entry, InodeKind::File(body))
            }
            EntryKind::Symlink { target } => {
                self.new_inode(entry, InodeKind::Symlink(OsString::from_vec(target.to_vec())))
            }
            EntryKind::Char { major, minor } => {
                self.new_inode(entry, InodeKind::CharDevice(rustix::fs::makedev(major, minor)))
            }
            EntryKind::Block { major, minor } => {
                self.new_inode(entry, InodeKind::BlockDevice(rustix::fs::makedev(major, minor)))
            }
            EntryKind::Fifo => self.new_inode(entry, InodeKind::Fifo),
        };
        self.draft.link(parent, name, inode);
        Ok(())
    }

    /// The directory that an entry goes into. Missing parents are made; where a link leads nowhere, nothing is.
    fn parent(&mut self, parent: &Path, entry: &Path) -> Result<DirId, OpError> {
        let root = SubRoot { draft: self.draft, top: self.top };
        let exists = resolve::resolve(&root, parent, Last::Kept)?.node.is_some();
        let target = resolve::resolve(&root, parent, Last::Followed)?;
        match target.node {
            None if exists => {
                return Err(OpError::input(format!("open {}: no such file or directory", entry.display())));
            }
            Some(kind) if !kind.is_dir() => {
                return Err(OpError::input(format!("open {}: not a directory", entry.display())));
            }
            _ => {}
        }
        let implied = NewDirs::of_archive(self.setting.now);
        let made = self.draft.ensure_dir_below(self.top, &target.path, &implied)?;
        made.map_err(|e| mkdir_error(&e))
    }

    fn dir(&mut self, parent: DirId, name: &OsStr, entry: &Entry<'_>) -> Result<(), OpError> {
        let attributes = self.attributes(entry);
        let xattrs = xattrs(entry);
        match self.draft.existing_dir(parent, name)? {
            Some(existing) => {
                let dir = self.draft.dir_mut(existing);
                dir.attributes = attributes;
                dir.xattrs.retain(|(name, _)| xattrs.iter().all(|(given, _)| given != name));
                dir.xattrs.extend(xattrs);
            }
            None => {
                self.draft.new_dir(parent, name, attributes, xattrs)?;
            }
        }
        Ok(())
    }

    /// The inode that a hard link names: of this archive, of an earlier action, or of the root (then it moves up).
    fn link_target(&mut self, target: &[u8], link: &Path) -> Result<InodeId, OpError> {
        let shown = Path::new("/").join(OsStr::from_bytes(target));
        let missing = |reason: &str| OpError::input(format!("link {} {}: {reason}", shown.display(), link.display()));
        let root = SubRoot { draft: self.draft, top: self.top };
        let resolved = resolve::resolve(&root, &shown, Last::Kept)?;
        let (Some(parent), Some(name)) = (resolved.path.parent(), resolved.path.file_name()) else {
            return Err(missing("operation not permitted"));
        };
        match resolved.node {
            None => return Err(missing("no such file or directory")),
            Some(NodeKind::Dir) => return Err(missing("operation not permitted")),
            Some(_) => {}
        }
        let implied = NewDirs::of_archive(self.setting.now);
        let parent = self.draft.ensure_dir_below(self.top, parent, &implied)?.map_err(|e| mkdir_error(&e))?;
        self.draft.raise(parent, name)?.ok_or_else(|| missing("no such file or directory"))
    }

    fn new_inode(&mut self, entry: &Entry<'_>, kind: InodeKind) -> InodeId {
        let attributes = self.attributes(entry);
        self.draft.new_inode(Inode { attributes, kind, xattrs: InodeXattrs::Given(xattrs(entry)) })
    }

    fn attributes(&self, entry: &Entry<'_>) -> Attributes {
        let (uid, gid) = self.style.owner.unwrap_or((entry.uid, entry.gid));
        let mode = entry.mode & 0o7777;
        Attributes { mode, uid, gid, mtime: (entry.mtime_secs, entry.mtime_nanos) }
    }

    /// Writes the content of an entry to a scratch file.
    fn stage(&self, content: &mut dyn Read) -> Result<Body, OpError> {
        let path = self.scratch.path().join(self.draft.n_inodes().to_string());
        let failed = |e: io::Error| OpError::environment(format!("cannot write `{}`: {e}", path.display()));
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        let mut hasher = blake3::Hasher::new();
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(content_error(&e)),
            };
            file.write_all(&buffer[..n]).map_err(failed)?;
            hasher.update(&buffer[..n]);
        }
        Ok(Body::Staged { path, size_bytes: hasher.count(), digest: *hasher.finalize().as_bytes() })
    }
}

/// All xattrs of an entry but those that only the kernel's own users may set.
fn xattrs(entry: &Entry<'_>) -> Xattrs {
    let kept = entry.xattrs.iter().filter(|xattr| !xattr.name.starts_with(b"trusted."));
    kept.map(|xattr| (OsString::from_vec(xattr.name.clone()), xattr.value.clone())).collect()
}

/// A fault of an archive, in the words of BuildKit where it has some.
fn archive_error(error: LayerError) -> OpError {
    match error {
        LayerError::CutOff { .. } => OpError::input("unexpected EOF"),
        LayerError::Io { source, .. } => content_error(&source),
        error => OpError::input(error.to_string()),
    }
}

/// A fault while the content of an entry is read. The reader hands its own faults on inside of I/O errors.
fn content_error(error: &io::Error) -> OpError {
    let is_cut_off = error.get_ref().and_then(|inner| inner.downcast_ref::<LayerError>());
    match (is_cut_off, error.kind()) {
        (Some(LayerError::CutOff { .. }), _) | (None, io::ErrorKind::UnexpectedEof) => OpError::input("unexpected EOF"),
        _ => OpError::input(format!("cannot read the archive: {error}")),
    }
}

/// Hashes what is read.
struct Hashed<'a> {
    inner: &'a File,
    hasher: blake3::Hasher,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
