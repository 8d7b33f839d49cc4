//! `type=local`: the files of roots, as a directory of the invoking user (`spec/engine.md` §1.13).
//!
//! Owners are not kept; modes, links, hard links and times are; devices and pipes are made if the user may. The
//! destination is merged with what is there. Links inside of it are never followed: an earlier export may have put
//! them there.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{DIRECTORY_MODE, ExportError, PlacedRoot, merge};
use crate::view::{DirView, Node, NodeKind};

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of regular files.
    pub bytes: u64,
    /// Entries of every kind.
    pub n_entries: u64,
}

/// Copies the roots into `dest`, which is created 0755 when missing: each into the directory of its platform, or all over
/// each other. What was written is said for each.
///
/// With an epoch, every entry of a root has exactly that time (`spec/dockerfile.md` §3.8).
///
/// # Errors
/// [`ExportError::Io`] names the operation and the path; [`ExportError::Overwritten`] before anything is written.
pub fn export_local(roots: &[PlacedRoot], dest: &Path) -> Result<Vec<Exported>, ExportError> {
    if roots.iter().any(|placed| !placed.is_apart) {
        merge::check(roots)?;
    }
    std::fs::create_dir_all(dest).map_err(|error| ExportError::io("create directory", dest, error))?;
    let fd = rustix::fs::openat(CWD, dest, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| ExportError::io("open directory", dest, error))?;
    roots.iter().map(|placed| export_root(placed, &fd, dest)).collect()
}

fn export_root(placed: &PlacedRoot, top: &OwnedFd, dest: &Path) -> Result<Exported, ExportError> {
    let mut copy = Copy { epoch: placed.epoch, links: HashMap::new(), total: Exported::default() };
    let Some(name) = placed.directory() else {
        copy.directory(placed.root.root(), top, dest)?;
        return Ok(copy.total);
    };
    let (name, path) = (OsStr::new(&name), dest.join(&name));
    let own = ensure_dir(top, name, &path)?;
    copy.directory(placed.root.root(), &own, &path)?;
    rustix::fs::fchmod(&own, Mode::from_raw_mode(DIRECTORY_MODE))
        .map_err(|error| ExportError::io("set the mode of", &path, error))?;
    if let Some(epoch) = placed.epoch {
        set_time(top, name, Timespec { tv_sec: epoch, tv_nsec: 0 }, &path)?;
    }
    Ok(copy.total)
}

struct Copy {
    epoch: Option<i64>,
    /// First copy of each file that has several names.
    links: HashMap<(u64, u64), PathBuf>,
    total: Exported,
}

impl Copy {
    fn directory(&mut self, from: &DirView, to: &OwnedFd, path: &Path) -> Result<(), ExportError> {
        for (name, node) in from.entries()? {
            self.total.n_entries += 1;
            let path = path.join(&name);
            self.entry(from, to, &name, &node, &path)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &DirView,
        to: &OwnedFd,
        name: &OsStr,
        node: &Node,
        path: &Path,
    ) -> Result<(), ExportError> {
        let mode = Mode::from_raw_mode(node.meta.mode);
        if node.kind == NodeKind::Dir {
            let child = ensure_dir(to, name, path)?;
            if let Some(source) = from.child_dir(name)? {
                self.directory(&source, &child, path)?;
            }
            rustix::fs::fchmod(&child, mode).map_err(|error| ExportError::io("set the mode of", path, error))?;
            return self.set_times(to, name, node, path);
        }
        make_room(to, name, path)?;
        if self.linked_before(node, path)? {
            return Ok(());
        }
        match node.kind {
            NodeKind::File | NodeKind::Socket => self.file(from, to, name, node, path)?,
            NodeKind::Symlink => {
                let target = from.read_link(name)?.unwrap_or_else(OsString::new);
                rustix::fs::symlinkat(target.as_os_str(), to, name)
                    .map_err(|error| ExportError::io("create link", path, error))?;
            }
            NodeKind::Fifo | NodeKind::CharDevice | NodeKind::BlockDevice => {
                let made = rustix::fs::mknodat(to, name, file_type(node.kind), mode, node.meta.rdev);
                match made {
                    // An ordinary user cannot make devices; the rest of the root is still worth having.
                    Err(Errno::PERM) => return Ok(()),
                    other => other.map_err(|error| ExportError::io("create device", path, error))?,
                }
            }
            NodeKind::Dir => {}
        }
        self.set_times(to, name, node, path)
    }

    /// Links to the first copy of a file with several names; `true` when that was done.
    fn linked_before(&mut self, node: &Node, path: &Path) -> Result<bool, ExportError> {
        if node.kind != NodeKind::File || node.meta.n_links < 2 {
            return Ok(false);
        }
        if let Some(first) = self.links.get(&node.meta.inode) {
            std::fs::hard_link(first, path).map_err(|error| ExportError::io("link", path, error))?;
            return Ok(true);
        }
        self.links.insert(node.meta.inode, path.to_owned());
        Ok(false)
    }

    fn file(
        &mut self,
        from: &DirView,
        to: &OwnedFd,
        name: &OsStr,
        node: &Node,
        path: &Path,
    ) -> Result<(), ExportError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| ExportError::io("create", path, error))?;
        let mut file = std::fs::File::from(fd);
        if let Some(mut source) = from.open_file(name)? {
            // On one file system the kernel shares or copies the extents itself.
            self.total.bytes +=
                std::io::copy(&mut source, &mut file).map_err(|error| ExportError::io("write", path, error))?;
        }
        let mode = Mode::from_raw_mode(node.meta.mode);
        rustix::fs::fchmod(&file, mode).map_err(|error| ExportError::io("set the mode of", path, error))
    }

    fn set_times(&self, to: &OwnedFd, name: &OsStr, node: &Node, path: &Path) -> Result<(), ExportError> {
        let modified = match self.epoch {
            Some(epoch) => Timespec { tv_sec: epoch, tv_nsec: 0 },
            None => Timespec { tv_sec: node.meta.mtime_s, tv_nsec: node.meta.mtime_ns.into() },
        };
        set_time(to, name, modified, path)
    }
}

fn set_time(to: &OwnedFd, name: &OsStr, modified: Timespec, path: &Path) -> Result<(), ExportError> {
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: modified };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| ExportError::io("set the time of", path, error))
}

/// A directory called `name` in `to`: an existing one is kept, anything else makes room.
fn ensure_dir(to: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, ExportError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(to, name, flags, Mode::empty()) {
        return Ok(fd);
    }
    make_room(to, name, path)?;
    rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))
        .map_err(|error| ExportError::io("create directory", path, error))?;
    rustix::fs::openat(to, name, flags, Mode::empty()).map_err(|error| ExportError::io("open directory", path, error))
}

/// Removes what stands at `name`, unless it is a directory, which is never replaced.
fn make_room(to: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), ExportError> {
    match rustix::fs::unlinkat(to.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(ExportError::io("replace", path, error)),
    }
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
    use super::*;
    use crate::view::RootView;
    use oci::Platform;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn placed(tree: PathBuf, platform: Platform, is_apart: bool) -> PlacedRoot {
        PlacedRoot { platform, root: RootView::open(&[tree]).expect("view"), is_apart, epoch: Some(1_000) }
    }

    #[test]
    fn a_root_is_copied_with_modes_links_and_times_and_no_link_of_the_destination_is_followed() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (tree, dest, outside) = (temp.path().join("tree"), temp.path().join("dest"), temp.path().join("outside"));
        std::fs::create_dir_all(tree.join("etc/sub")).expect("tree");
        std::fs::write(tree.join("etc/f"), "hello").expect("file");
        std::fs::set_permissions(tree.join("etc/f"), PermissionsExt::from_mode(0o4751)).expect("mode");
        std::fs::hard_link(tree.join("etc/f"), tree.join("etc/g")).expect("hard link");
        symlink("/etc/f", tree.join("abs")).expect("link");
        std::fs::create_dir_all(&dest).expect("dest");
        std::fs::create_dir_all(&outside).expect("outside");
        symlink(&outside, dest.join("etc")).expect("trap");

        let root = placed(tree, Platform::new("linux", "amd64", None), false);
        let exported = export_local(&[root], &dest).expect("export");

        assert_eq!(exported, [Exported { bytes: 5, n_entries: 5 }]);
        assert_eq!(std::fs::read_dir(&outside).expect("outside").count(), 0);
        let meta = std::fs::symlink_metadata(dest.join("etc/f")).expect("f");
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o4751, 1_000, 2));
        assert_eq!(std::fs::read_link(dest.join("abs")).expect("link"), Path::new("/etc/f"));
        assert!(dest.join("etc/sub").is_dir());
    }

    #[test]
    fn every_platform_has_a_directory_of_its_own_and_no_link_leads_out_of_it() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (dest, outside) = (temp.path().join("dest"), temp.path().join("outside"));
        std::fs::create_dir_all(&outside).expect("outside");
        std::fs::create_dir_all(dest.join("linux_amd64")).expect("an earlier export");
        symlink(&outside, dest.join("linux_arm_v7")).expect("trap");
        let platforms = [Platform::new("linux", "amd64", None), Platform::new("linux", "arm", Some("v7"))];
        let roots = platforms.map(|platform| {
            let tree = temp.path().join(&platform.architecture);
            std::fs::create_dir(&tree).expect("tree");
            std::fs::write(tree.join("f"), &platform.architecture).expect("file");
            placed(tree, platform, true)
        });
        export_local(&roots, &dest).expect("export");
        for (directory, content) in [("linux_amd64", "amd64"), ("linux_arm_v7", "arm")] {
            let meta = std::fs::symlink_metadata(dest.join(directory)).expect(directory);
            assert_eq!((meta.is_dir(), meta.mode() & 0o7777, meta.mtime()), (true, 0o755, 1_000), "{directory}");
            assert_eq!(std::fs::read_to_string(dest.join(directory).join("f")).expect("file"), content);
        }
        assert_eq!(std::fs::read_dir(&outside).expect("outside").count(), 0);
    }
}
