//! Copies one path out of a root, with the rules of `docker cp` about what it is called where it arrives.
//!
//! Links of the root are followed inside of the root only, and links that are found in the destination are never
//! followed: nothing is written outside of it, whatever is in the image. Nothing is run.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use solver::OpError;

use crate::export::{ExportError, export_tar_entry};
use crate::view::{DirView, Node, NodeKind, RootView, ViewError, normal_components};

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// In the root. With `/.` at the end the content of a directory is meant; with `/` it has to be a directory.
    pub path: &'a str,
    /// Whether a link at the end of the path is followed.
    pub follow: bool,
    /// Whether owners and extended attributes are kept; else everything is the caller's.
    pub keep_owners: bool,
}

/// Why nothing, or not everything, was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyPathError {
    /// The root has no such path.
    #[error("there is no `{0}` in the image")]
    Missing(String),
    /// A directory was asked for.
    #[error("`{0}` in the image is no directory")]
    NotADirectory(String),
    /// The directory that the destination is in, or is said to be, does not exist.
    #[error("the directory `{}` does not exist", .0.display())]
    NoDestination(PathBuf),
    /// A directory cannot become a file.
    #[error("cannot copy a directory to `{}`, which is a file", .0.display())]
    DirectoryToFile(PathBuf),
    /// A file operation failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The root cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The tar cannot be written.
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl CopyPathError {
    fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { operation, path, source: error.into() }
    }
}

impl From<CopyPathError> for OpError {
    fn from(error: CopyPathError) -> Self {
        match error {
            CopyPathError::Export(error) => error.into(),
            CopyPathError::View(error) => error.into(),
            CopyPathError::Io { .. } => Self::environment(error.to_string()),
            error => Self::input(error.to_string()),
        }
    }
}

/// What a path of the root is.
struct Found {
    /// The directory that it is in; `None` for the root itself.
    parent: Option<(DirView, OsString, Node)>,
    /// Of a directory.
    dir: Option<DirView>,
    /// Its own name.
    name: OsString,
    only_content: bool,
}

/// Copies to `dest` on this machine.
///
/// # Errors
/// [`CopyPathError`]; what was copied so far stays.
pub fn copy_path(root: &RootView, wanted: &Wanted<'_>, dest: &Path) -> Result<(), CopyPathError> {
    let found = find(root, wanted)?;
    let has_slash = dest.as_os_str().as_encoded_bytes().ends_with(b"/");
    // Where the user's own links lead is meant.
    let existing = dest.canonicalize().ok();
    let is_dir = existing.as_ref().is_some_and(|path| path.is_dir());
    let mut copy = Copy { keep_owners: wanted.keep_owners, links: HashMap::new() };
    if let Some(dir) = &found.dir {
        let target = match (&existing, is_dir) {
            (Some(path), true) if found.only_content => path.clone(),
            (Some(path), true) => path.join(&found.name),
            (Some(path), false) => return Err(CopyPathError::DirectoryToFile(path.clone())),
            (None, _) => beside(dest)?,
        };
        let node = found.parent.as_ref().map(|(_, _, node)| node);
        return copy.top_directory(dir, node, &target, found.only_content && is_dir);
    }
    let Some((parent, name, node)) = &found.parent else { return Err(CopyPathError::Missing(wanted.path.to_owned())) };
    let target = match existing {
        Some(path) if is_dir => path.join(&found.name),
        Some(path) if has_slash => return Err(CopyPathError::NoDestination(path)),
        Some(path) => path,
        None if has_slash => return Err(CopyPathError::NoDestination(dest.to_owned())),
        None => beside(dest)?,
    };
    let (directory, file_name) = (target.parent().unwrap_or(Path::new("/")), target.file_name().unwrap_or_default());
    let to = open_dir(directory)?;
    copy.entry(parent, name, node, &to, file_name, &target)
}

/// Writes a tar in which the path stands under its own name.
///
/// # Errors
/// [`CopyPathError`].
pub fn tar_path(root: &RootView, wanted: &Wanted<'_>, out: &mut dyn io::Write) -> Result<(), CopyPathError> {
    let found = find(root, wanted)?;
    let name = if found.name.is_empty() || found.only_content { OsString::from(".") } else { found.name };
    let entry = found.parent.as_ref().map(|(parent, name, node)| (parent, name.as_os_str(), node));
    export_tar_entry(entry, found.dir.as_ref(), &name, out)?;
    Ok(())
}

fn find(root: &RootView, wanted: &Wanted<'_>) -> Result<Found, CopyPathError> {
    let only_content = wanted.path.ends_with("/.") || wanted.path == ".";
    let needs_dir = only_content || wanted.path.ends_with('/');
    let asked = Path::new(wanted.path);
    // A slash at the end means what the link leads to, as everywhere.
    let resolved = if wanted.follow || needs_dir { root.resolve(asked)? } else { root.resolve_parent(asked)? };
    let names = normal_components(&resolved.path);
    let name = normal_components(asked).pop().unwrap_or_default();
    let dir = root.dir(&resolved.path)?;
    if needs_dir && dir.is_none() && root.lookup(&resolved.path)?.is_some() {
        return Err(CopyPathError::NotADirectory(wanted.path.to_owned()));
    }
    let missing = || CopyPathError::Missing(wanted.path.to_owned());
    let parent = match names.split_last() {
        None => None,
        Some((last, above)) => {
            let above = root.dir(&above.iter().collect::<PathBuf>())?.ok_or_else(missing)?;
            let node = above.lookup(last)?.ok_or_else(missing)?;
            Some((above, last.clone(), node))
        }
    };
    Ok(Found { parent, dir, name, only_content })
}

/// A new name in a directory that exists.
fn beside(dest: &Path) -> Result<PathBuf, CopyPathError> {
    let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = parent.canonicalize().map_err(|_| CopyPathError::NoDestination(parent.to_owned()))?;
    let name = dest.file_name().ok_or_else(|| CopyPathError::NoDestination(dest.to_owned()))?;
    Ok(real.join(name))
}

struct Copy {
    keep_owners: bool,
    /// First copy of each file that has several names.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// A directory that was asked for; `merges` leaves the metadata of the destination alone.
    fn top_directory(
        &mut self,
        from: &DirView,
        node: Option<&Node>,
        target: &Path,
        merges: bool,
    ) -> Result<(), CopyPathError> {
        let (parent, name) = (target.parent().unwrap_or(Path::new("/")), target.file_name().unwrap_or_default());
        if merges {
            return self.directory(from, &open_dir(target)?, target);
        }
        let above = open_dir(parent)?;
        let to = ensure_dir(&above, name, target)?;
        self.directory(from, &to, target)?;
        match node {
            Some(node) => self.finish_dir(from, node, &above, name, &to, target),
            None => rustix::fs::fchmod(&to, Mode::from_raw_mode(0o755))
                .map_err(CopyPathError::at("set the mode of", target)),
        }
    }

    fn directory(&mut self, from: &DirView, to: &OwnedFd, path: &Path) -> Result<(), CopyPathError> {
        for (name, node) in from.entries()? {
            self.entry(from, &name, &node, to, &name, &path.join(&name))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &DirView,
        name: &OsStr,
        node: &Node,
        to: &OwnedFd,
        as_name: &OsStr,
        path: &Path,
    ) -> Result<(), CopyPathError> {
        if node.kind == NodeKind::Dir {
            let child = ensure_dir(to, as_name, path)?;
            if let Some(source) = from.child_dir(name)? {
                self.directory(&source, &child, path)?;
                return self.finish_dir(&source, node, to, as_name, &child, path);
            }
            return Ok(());
        }
        make_room(to, as_name, path)?;
        if self.linked_before(node, path)? {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(node.meta.mode);
        match node.kind {
            NodeKind::File | NodeKind::Socket => return self.file(from, name, node, to, as_name, path),
            NodeKind::Symlink => {
                let target = from.read_link(name)?.unwrap_or_default();
                rustix::fs::symlinkat(target.as_os_str(), to, as_name)
                    .map_err(CopyPathError::at("create link", path))?;
            }
            NodeKind::Fifo | NodeKind::CharDevice | NodeKind::BlockDevice => {
                let made = rustix::fs::mknodat(to, as_name, file_type(node.kind), mode, node.meta.rdev);
                match made {
                    // An ordinary user cannot make devices; the rest is still worth having.
                    Err(Errno::PERM) => return Ok(()),
                    made => made.map_err(CopyPathError::at("create device", path))?,
                }
            }
            NodeKind::Dir => {}
        }
        if self.keep_owners {
            self.chown(node, to, as_name, path)?;
        }
        set_time(to, as_name, node, path)
    }

    fn file(
        &mut self,
        from: &DirView,
        name: &OsStr,
        node: &Node,
        to: &OwnedFd,
        as_name: &OsStr,
        path: &Path,
    ) -> Result<(), CopyPathError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(to, as_name, flags, Mode::from_raw_mode(0o600))
            .map_err(CopyPathError::at("create", path))?;
        let mut file = std::fs::File::from(fd);
        if let Some(mut source) = from.open_file(name)? {
            io::copy(&mut source, &mut file).map_err(CopyPathError::at("write", path))?;
        }
        if self.keep_owners {
            // Before the mode: a change of the owner takes setuid away.
            self.chown(node, to, as_name, path)?;
            self.set_xattrs(&from.xattrs(name)?.unwrap_or_default(), &file, path)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(node.meta.mode))
            .map_err(CopyPathError::at("set the mode of", path))?;
        set_time(to, as_name, node, path)
    }

    /// Owner, mode and time of a directory whose entries are there.
    fn finish_dir(
        &self,
        from: &DirView,
        node: &Node,
        above: &OwnedFd,
        name: &OsStr,
        dir: &OwnedFd,
        path: &Path,
    ) -> Result<(), CopyPathError> {
        if self.keep_owners {
            self.chown(node, above, name, path)?;
            self.set_xattrs(&from.own_xattrs()?, dir, path)?;
        }
        rustix::fs::fchmod(dir, Mode::from_raw_mode(node.meta.mode))
            .map_err(CopyPathError::at("set the mode of", path))?;
        set_time(above, name, node, path)
    }

    fn chown(&self, node: &Node, to: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), CopyPathError> {
        let (uid, gid) = (Uid::from_raw(node.meta.uid), Gid::from_raw(node.meta.gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(CopyPathError::at("set the owner of", path))
    }

    fn set_xattrs(&self, xattrs: &[(OsString, Vec<u8>)], to: impl AsFd, path: &Path) -> Result<(), CopyPathError> {
        for (name, value) in xattrs {
            match rustix::fs::fsetxattr(&to, name.as_os_str(), value, XattrFlags::empty()) {
                // The destination may not have any.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(CopyPathError::at("set an extended attribute of", path)(error)),
            }
        }
        Ok(())
    }

    /// Links to the first copy of a file with several names; `true` when that was done.
    fn linked_before(&mut self, node: &Node, path: &Path) -> Result<bool, CopyPathError> {
        if node.kind != NodeKind::File || node.meta.n_links < 2 {
            return Ok(false);
        }
        if let Some(first) = self.links.get(&node.meta.inode) {
            std::fs::hard_link(first, path).map_err(CopyPathError::at("link", path))?;
            return Ok(true);
        }
        self.links.insert(node.meta.inode, path.to_owned());
        Ok(false)
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, CopyPathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(CopyPathError::at("open directory", path))
}

/// A directory called `name` in `to`: an existing one is kept, anything else makes room.
fn ensure_dir(to: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, CopyPathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(to, name, flags, Mode::empty()) {
        return Ok(fd);
    }
    make_room(to, name, path)?;
    rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).map_err(CopyPathError::at("create directory", path))?;
    rustix::fs::openat(to, name, flags, Mode::empty()).map_err(CopyPathError::at("open directory", path))
}

/// Removes what stands at `name`, unless it is a directory, which is never replaced.
fn make_room(to: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), CopyPathError> {
    match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(CopyPathError::at("replace", path)(error)),
    }
}

fn set_time(to: &OwnedFd, name: &OsStr, node: &Node, path: &Path) -> Result<(), CopyPathError> {
    let modified = Timespec { tv_sec: node.meta.mtime_s, tv_nsec: node.meta.mtime_ns.into() };
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: modified };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(CopyPathError::at("set the time of", path))
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::File | NodeKind::Socket => FileType::RegularFile,
        NodeKind::Dir => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn wanted(path: &str) -> Wanted<'_> {
        Wanted { path, follow: false, keep_owners: false }
    }

    #[test]
    fn what_is_copied_is_called_as_docker_calls_it() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (tree, out) = (temp.path().join("tree"), temp.path().join("out"));
        std::fs::create_dir_all(tree.join("etc/sub")).expect("tree");
        std::fs::write(tree.join("etc/f"), "hello").expect("file");
        symlink("/etc/f", tree.join("link")).expect("link");
        std::fs::create_dir(&out).expect("out");
        let root = RootView::open(&[tree]).expect("view");
        let read = |path: &str| std::fs::read_to_string(out.join(path)).unwrap_or_default();

        copy_path(&root, &wanted("/etc/f"), &out.join("g")).expect("to a new name");
        copy_path(&root, &wanted("etc/f"), &out).expect("into a directory");
        assert_eq!((read("g"), read("f")), ("hello".into(), "hello".into()));
        copy_path(&root, &wanted("/etc"), &out.join("new")).expect("as a new directory");
        copy_path(&root, &wanted("/etc"), &out.join("new")).expect("into the directory");
        copy_path(&root, &wanted("/etc/."), &out.join("new/sub")).expect("its content into the directory");
        assert_eq!(
            (read("new/f"), read("new/etc/f"), read("new/sub/f")),
            ("hello".into(), "hello".into(), "hello".into())
        );
        copy_path(&root, &wanted("/link"), &out).expect("the link itself");
        assert_eq!(std::fs::read_link(out.join("link")).expect("a link"), Path::new("/etc/f"));
        copy_path(&root, &Wanted { follow: true, ..wanted("/link") }, &out.join("followed")).expect("what it leads to");
        assert_eq!(read("followed"), "hello");

        let fails = |path: &str, dest: PathBuf| copy_path(&root, &wanted(path), &dest).expect_err(path).to_string();
        assert_eq!(fails("/nope", out.clone()), "there is no `/nope` in the image");
        assert_eq!(fails("/etc/f/", out.clone()), "`/etc/f/` in the image is no directory");
        assert!(fails("/etc", out.join("g")).contains("which is a file"));
        assert!(fails("/etc/f", out.join("absent/")).contains("does not exist"));
        assert!(fails("/etc/f", out.join("absent/x")).contains("does not exist"));
    }

    #[test]
    fn links_in_the_destination_lead_nowhere() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (tree, out, outside) = (temp.path().join("tree"), temp.path().join("out"), temp.path().join("outside"));
        std::fs::create_dir_all(tree.join("etc/sub")).expect("tree");
        std::fs::write(tree.join("etc/sub/f"), "hello").expect("file");
        symlink("../../../../etc/passwd", tree.join("etc/up")).expect("link");
        for dir in [out.join("etc"), outside.clone()] {
            std::fs::create_dir_all(dir).expect("directory");
        }
        symlink(&outside, out.join("etc/sub")).expect("trap");
        let root = RootView::open(&[tree]).expect("view");
        copy_path(&root, &wanted("/etc"), &out).expect("copies");
        assert_eq!(std::fs::read_dir(&outside).expect("outside").count(), 0);
        assert_eq!(std::fs::read_to_string(out.join("etc/sub/f")).expect("a file"), "hello");
        let up = Wanted { follow: true, ..wanted("/etc/up") };
        assert!(copy_path(&root, &up, &out).is_err(), "the root has no such file");
    }
}
