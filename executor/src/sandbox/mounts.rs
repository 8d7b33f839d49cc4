//! The mounts of one command: prepared as detached mounts while the host's paths can still be reached, and attached
//! once the thread is inside the new root.

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::error::SandboxError;
use super::guard::DevicePolicy;
use super::overlay::Overlay;
use super::points::{MadePoint, PointKind, make_point};
use super::spec::{MemoryFile, MountSource, SandboxMount, Writes};
use crate::owners;
use crate::sys::mount::{MountAttributes, Reach, mount_setattr};
use crate::sys::spawn::{LateMount, MountCall};

/// Directories that preparing needs, all private to the calling thread's mount namespace or to this command.
pub(super) struct Workshop<'a> {
    /// A directory to mount things on while they are prepared.
    pub(super) stage: &'a Path,
    /// An empty directory.
    pub(super) empty: &'a Path,
    /// A directory of this command on the store's file system.
    pub(super) scratch: &'a Path,
    /// Whether overlayfs must use `user.` attributes.
    pub(super) user_xattrs: bool,
    /// How the command is kept from devices.
    pub(super) devices: DevicePolicy,
}

/// Something ready to be mounted.
pub(super) struct Prepared {
    /// Where, inside the root.
    pub(super) target: String,
    /// What its mount point is.
    pub(super) kind: PointKind,
    what: What,
    description: &'static str,
}

enum What {
    Detached {
        mount: OwnedFd,
        /// Attributes that the kernel cannot set on a detached mount.
        pending: Option<MountAttributes>,
    },
    Tmpfs {
        size_bytes: Option<u64>,
        attributes: MountAttributes,
    },
}

/// The mounts that count, parents first: of the same target the last one wins.
pub(super) fn in_order(mounts: &[SandboxMount]) -> Vec<&SandboxMount> {
    let mut chosen: Vec<&SandboxMount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        chosen.retain(|earlier| earlier.target != mount.target);
        chosen.push(mount);
    }
    chosen.sort_by_key(|mount| Path::new(&mount.target).components().count());
    chosen
}

/// What the mount point of `mount` has to be, as far as that is known before its source was opened.
pub(super) fn likely_kind(mount: &SandboxMount) -> PointKind {
    let is_file = |path: PathBuf| std::fs::metadata(path).is_ok_and(|found| !found.is_dir());
    let file = match &mount.source {
        MountSource::Layers { lower, path, .. } => {
            lower.iter().any(|layer| is_file(layer.join(path.trim_start_matches('/'))))
        }
        MountSource::Directory { root, path, .. } => match path.trim_start_matches('/') {
            "" => is_file(root.clone()),
            path => is_file(root.join(path)),
        },
        MountSource::Host { path, .. } => is_file(path.clone()),
        MountSource::Tmpfs { .. } => false,
        MountSource::File(_) | MountSource::Socket { .. } => true,
    };
    if file { PointKind::File } else { PointKind::Directory }
}

impl Workshop<'_> {
    /// Prepares mount number `index` of this command.
    pub(super) fn prepare(&self, index: usize, mount: &SandboxMount) -> Result<Prepared, SandboxError> {
        let read_only = if mount.read_only { MountAttributes::READ_ONLY } else { MountAttributes::NONE };
        let attributes = self.devices.mount_attributes().with(read_only);
        let (source, attributes, description) = match &mount.source {
            MountSource::Tmpfs { size_bytes } => {
                return Ok(Prepared {
                    target: mount.target.clone(),
                    kind: PointKind::Directory,
                    what: What::Tmpfs { size_bytes: *size_bytes, attributes },
                    description: "a tmpfs",
                });
            }
            MountSource::Layers { lower, path } => {
                (self.layers(index, lower, path, !mount.read_only)?, attributes, "a bind of layers")
            }
            MountSource::Directory { root, path, writes } => {
                let discard = *writes == Writes::Vanish && !mount.read_only;
                (self.directory(index, root, path, discard)?, attributes, "a directory")
            }
            MountSource::Host { path, attributes: own } => {
                let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(SandboxError::call("open", path))?;
                (source, attributes.with(*own), "a path of this machine")
            }
            MountSource::File(file) => (self.memory_file(index, file)?, file_attributes(file.mode), "a file"),
            MountSource::Socket { path } => {
                let socket = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(SandboxError::call("open", path))?;
                (socket, MountAttributes::NONE, "a socket")
            }
        };
        let kind = kind_of(source.as_fd())?;
        detach(source.as_fd(), attributes, Reach::Tree)
            .map(|what| Prepared { target: mount.target.clone(), kind, what, description })
            .map_err(|errno| SandboxError::Mount { what: description.into(), target: mount.target.clone(), errno })
    }

    /// A path in a merged chain of layers, with a throw-away upper directory if it is to be written.
    fn layers(&self, index: usize, lower: &[PathBuf], path: &str, writable: bool) -> Result<OwnedFd, SandboxError> {
        // An overlay without an upper directory needs two lower ones; the empty one changes nothing.
        let mut all = vec![self.empty];
        all.extend(lower.iter().map(PathBuf::as_path));
        let (upper, work) = (self.scratch.join(format!("upper-{index}")), self.scratch.join(format!("work-{index}")));
        if writable {
            for directory in [&upper, &work] {
                std::fs::create_dir(directory).map_err(SandboxError::io("create", directory))?;
            }
            copy_root_metadata(lower, &upper)?;
        } else if all.len() == 1 {
            let empty = open_directory(self.empty).map_err(SandboxError::call("open", self.empty))?;
            return resolve(empty.as_fd(), path);
        }
        let upper = writable.then_some((upper.as_path(), work.as_path()));
        let overlay = Overlay { lower: all, upper, user_xattrs: self.user_xattrs, devices: true };
        let root = overlay.mount(self.stage)?;
        resolve(root.as_fd(), path)
    }

    /// A path in a directory of the host, or that directory (or file) itself.
    fn directory(&self, index: usize, root: &Path, path: &str, discard: bool) -> Result<OwnedFd, SandboxError> {
        let is_file = std::fs::metadata(root).is_ok_and(|found| !found.is_dir());
        match (root.parent(), root.file_name().and_then(|name| name.to_str())) {
            // Only directories can be layers of an overlay.
            (Some(parent), Some(name)) if is_file && discard => {
                self.layers(index, &[parent.to_owned()], &format!("/{name}"), true)
            }
            _ if is_file => rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(SandboxError::call("open", root)),
            _ if discard => self.layers(index, &[root.to_owned()], path, true),
            _ => {
                let root = open_directory(root).map_err(SandboxError::call("open", root))?;
                resolve(root.as_fd(), path)
            }
        }
    }

    /// A file on a tmpfs of its own, so that nothing of it ever reaches a disk of ours.
    fn memory_file(&self, index: usize, file: &MemoryFile) -> Result<OwnedFd, SandboxError> {
        let memory = memory_mount().map_err(SandboxError::setup("make a file system in memory"))?;
        rustix::mount::move_mount(memory.as_fd(), "", CWD, self.stage, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(SandboxError::setup("mount a file system in memory"))?;
        let name = format!("file-{index}");
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut handle = File::from(rustix::fs::openat(&memory, &name, flags, Mode::RUSR)?);
            handle.write_all(&file.content)?;
            owners::fchown(&handle, file.uid, file.gid)?;
            Ok(rustix::fs::fchmod(&handle, Mode::from_raw_mode(file.mode & 0o777))?)
        };
        write().map_err(SandboxError::io("write", format!("{name} in memory")))?;
        rustix::fs::openat(&memory, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(SandboxError::call("open", format!("{name} in memory")))
    }
}

impl Prepared {
    /// A mount of one file of the host.
    pub(super) fn host_file(path: &Path, target: &str, attributes: MountAttributes) -> Result<Self, SandboxError> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(SandboxError::call("open", path))?;
        let what = detach(fd.as_fd(), attributes, Reach::Mount).map_err(|errno| SandboxError::Mount {
            what: "a file".into(),
            target: target.to_owned(),
            errno,
        })?;
        Ok(Self { target: target.to_owned(), kind: PointKind::File, what, description: "a file" })
    }

    /// A mount of the device node that `node` names.
    pub(super) fn node(node: BorrowedFd<'_>, target: &str) -> Result<Self, SandboxError> {
        let quiet = MountAttributes::NO_SUID.with(MountAttributes::NO_EXEC);
        let description = "a device node";
        let what = detach(node, quiet, Reach::Mount).map_err(|errno| SandboxError::Mount {
            what: description.into(),
            target: target.to_owned(),
            errno,
        })?;
        Ok(Self { target: target.to_owned(), kind: PointKind::File, what, description })
    }

    /// Mounts it in the root of the calling thread; what had to be made for it is added to `made`.
    pub(super) fn attach(self, made: &mut Vec<MadePoint>) -> Result<(), SandboxError> {
        let result = match self.what.attach(&self.target) {
            Err(Errno::NOENT) => {
                let points = make_point(&self.target, self.kind)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
                points.and_then(|points| {
                    made.extend(points);
                    self.what.attach(&self.target)
                })
            }
            result => result,
        };
        result.map_err(|errno| SandboxError::Mount {
            what: self.description.to_owned(),
            target: self.target.clone(),
            errno,
        })
    }

    /// The same as [`Prepared::attach`] for the command's own process to do, once it has made `/proc` and `/sys`.
    pub(super) fn later(self) -> Result<LateMount, SandboxError> {
        let Ok(target) = CString::new(self.target.as_str()) else {
            return Err(SandboxError::NulByte { what: "a mount target" });
        };
        Ok(match self.what {
            What::Detached { mount, .. } => LateMount::Attach { mount, target },
            What::Tmpfs { size_bytes, attributes } => LateMount::Call(MountCall {
                source: Some(c"tmpfs".to_owned()),
                target,
                kind: Some(c"tmpfs".to_owned()),
                flags: libc::MS_NOSUID | attributes.classic_flags(),
                options: tmpfs_options(size_bytes),
                optional: false,
                has_substitute: false,
            }),
        })
    }
}

fn tmpfs_options(size_bytes: Option<u64>) -> Option<CString> {
    CString::new(format!("size={}", size_bytes?)).ok()
}

impl What {
    fn attach(&self, target: &str) -> Result<(), Errno> {
        match self {
            Self::Detached { mount, pending } => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
                rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags)?;
                if let Some(attributes) = pending {
                    let flags = MountFlags::from_bits_retain(attributes.classic_flags() as u32);
                    rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"")?;
                }
                Ok(())
            }
            Self::Tmpfs { size_bytes, attributes } => {
                let flags = MountFlags::from_bits_retain(attributes.classic_flags() as u32) | MountFlags::NOSUID;
                rustix::mount::mount("tmpfs", target, "tmpfs", flags, tmpfs_options(*size_bytes).as_deref())
            }
        }
    }
}

/// Gives the root of a throw-away or future layer the mode and owner that the root has in the layers below.
///
/// The root directory of an overlay is that of its topmost layer.
pub(super) fn copy_root_metadata(lower: &[PathBuf], upper: &Path) -> Result<(), SandboxError> {
    let Some(top) = lower.last() else { return Ok(()) };
    let want = owners::stat(top).map_err(SandboxError::call("read", top))?;
    let have = owners::stat(upper).map_err(SandboxError::call("read", upper))?;
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) {
        owners::chown(upper, want.st_uid, want.st_gid).map_err(SandboxError::call("change the owner of", upper))?;
    }
    if want.st_mode != have.st_mode {
        let mode = Mode::from_raw_mode(want.st_mode);
        rustix::fs::chmod(upper, mode).map_err(SandboxError::call("change the mode of", upper))?;
    }
    Ok(())
}

/// A detached copy of the mount that `source` lies on, from `source` downwards.
fn detach(source: BorrowedFd<'_>, attributes: MountAttributes, reach: Reach) -> Result<What, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if reach == Reach::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = rustix::mount::open_tree(source, "", flags)?;
    let pending = match mount_setattr(mount.as_fd(), attributes, reach) {
        _ if attributes == MountAttributes::NONE => None,
        Err(Errno::NOSYS) => Some(attributes),
        result => {
            result?;
            None
        }
    };
    Ok(What::Detached { mount, pending })
}

/// A recursive, protected copy of a whole mount tree of the host, for attaching later.
pub(super) fn detached_tree(path: &Path, attributes: MountAttributes) -> Result<OwnedFd, Errno> {
    let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match detach(source.as_fd(), attributes, Reach::Tree)? {
        What::Detached { mount, pending: None } => Ok(mount),
        // Without `mount_setattr` a tree cannot be protected: then it is not shown at all.
        What::Detached { pending: Some(_), .. } | What::Tmpfs { .. } => Err(Errno::NOSYS),
    }
}

/// A file system in memory that is never swapped out, for its owner alone; it lies nowhere yet.
pub(super) fn memory_mount() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    // Linux ≥ 6.4; before that the pages may be swapped out like all others.
    let _ = rustix::mount::fsconfig_set_flag(context.as_fd(), "noswap");
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Attributes of files from memory: nothing but reading, and executing where the mode says so.
pub(super) fn file_attributes(mode: u32) -> MountAttributes {
    let quiet = MountAttributes::READ_ONLY.with(MountAttributes::NO_DEVICES).with(MountAttributes::NO_SUID);
    if mode & 0o111 == 0 { quiet.with(MountAttributes::NO_EXEC) } else { quiet }
}

/// Opens `path` inside `root`; symlinks cannot lead out.
fn resolve(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, SandboxError> {
    let relative = match path.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => SandboxError::SourceMissing { source_path: path.to_owned() },
        errno => SandboxError::Io { operation: "open", path: path.into(), source: errno.into() },
    })
}

fn kind_of(fd: BorrowedFd<'_>) -> Result<PointKind, SandboxError> {
    let stat = rustix::fs::fstat(fd).map_err(SandboxError::setup("look at the source of a mount"))?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(if is_directory { PointKind::Directory } else { PointKind::File })
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Does something with the thread's root at `root`, and comes back. Mounts and everything else stay the thread's.
pub(super) fn inside<T>(root: &Path, work: impl FnOnce() -> Result<T, SandboxError>) -> Result<T, SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let outside = rustix::fs::open("/", flags, Mode::empty()).map_err(SandboxError::call("open", "/"))?;
    let enter = || -> Result<(), Errno> {
        rustix::process::chdir(root)?;
        rustix::process::chroot(".")
    };
    enter().map_err(SandboxError::setup("enter the new root"))?;
    let result = work();
    let leave = || -> Result<(), Errno> {
        rustix::process::fchdir(&outside)?;
        rustix::process::chroot(".")
    };
    leave().map_err(SandboxError::setup("leave the new root"))?;
    result
}

/// Mounts `mount` on `target`.
pub(super) fn attach(mount: &OwnedFd, target: &Path) -> Result<(), SandboxError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags).map_err(|errno| SandboxError::Mount {
        what: "a file system".to_owned(),
        target: target.display().to_string(),
        errno,
    })
}

/// Mounts a file system in memory on `target`, in the mount namespace of the calling thread.
pub(super) fn mount_memory(target: &Path) -> Result<(), SandboxError> {
    let memory = memory_mount().map_err(SandboxError::setup("make a file system in memory"))?;
    attach(&memory, target)
}

/// Makes the directory `root` the root of the calling thread, and forgets everything else.
pub(super) fn enter_root(root: &Path) -> Result<(), SandboxError> {
    let enter = || -> Result<(), Errno> {
        rustix::process::chdir(root)?;
        rustix::process::pivot_root(".", ".")?;
        // The old root now lies on top of the new one.
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    enter().map_err(SandboxError::setup("enter the new root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &str) -> SandboxMount {
        SandboxMount { target: target.to_owned(), source: MountSource::Tmpfs { size_bytes: None }, read_only: false }
    }

    #[test]
    fn parents_come_first_and_the_last_of_one_target_wins() {
        let mut mounts = vec![tmpfs("/m/in"), tmpfs("/t"), tmpfs("/m"), tmpfs("/t")];
        mounts[3].read_only = true;
        let order: Vec<_> = in_order(&mounts).iter().map(|mount| (mount.target.as_str(), mount.read_only)).collect();
        assert_eq!(order, [("/m", false), ("/t", true), ("/m/in", false)]);
    }

    #[test]
    fn files_without_x_bits_are_not_executable() {
        assert_ne!(file_attributes(0o400), file_attributes(0o500));
        assert_eq!(file_attributes(0o755).classic_flags() & libc::MS_NOEXEC, 0);
    }
}
