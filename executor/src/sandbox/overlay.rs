//! Mounts chains of layers with overlayfs.
//!
//! The new mount API takes one call a layer (`lowerdir+`, Linux ≥ 6.5), so that no option string can overflow. Older
//! kernels get `mount(2)` with descriptors for paths (`/proc/self/fd/N`), which keeps 120 layers within the one page
//! that options may fill.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use super::error::SandboxError;

/// A chain of layers to be merged.
pub(super) struct Overlay<'a> {
    /// Base first; at least one, or two without `upper`.
    pub(super) lower: Vec<&'a Path>,
    /// Where writes go, and overlayfs' scratch directory; without them the merged tree is read-only.
    pub(super) upper: Option<(&'a Path, &'a Path)>,
    /// Extended attributes in the `user.` namespace, for user namespaces.
    pub(super) user_xattrs: bool,
    /// Whether device nodes in the tree can be opened.
    pub(super) devices: bool,
}

/// What keeps a merged tree simple enough to be a layer: redirects neither made nor followed, no data-less copies, no index, no inode numbers
/// made up, no identifier written into `upper` (`uuid`, Linux ≥ 6.6), and no syncing for what is not yet committed.
const OPTIONS: &[(&str, &str)] =
    &[("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off"), ("uuid", "null")];

/// Longest value that `fsconfig(2)` takes.
const LONGEST_VALUE: usize = 255;

impl Overlay<'_> {
    /// Mounts the merged tree on the directory `target` and returns a descriptor of its root.
    ///
    /// # Errors
    /// [`SandboxError::Mount`] with the kernel's reason.
    pub(super) fn mount(&self, target: &Path) -> Result<OwnedFd, SandboxError> {
        let result = match self.mount_new(target) {
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => self.mount_classic(target),
            result => result,
        };
        result.map_err(|errno| SandboxError::Mount {
            what: format!("{} layers", self.lower.len()),
            target: target.display().to_string(),
            errno,
        })
    }

    /// `fsopen`, `fsconfig`, `fsmount`, `move_mount`. `OPNOTSUPP` when layers cannot be given one by one.
    pub(super) fn mount_new(&self, target: &Path) -> Result<OwnedFd, Errno> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &Path| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
        let mut names = PathNames::default();
        for (index, lower) in self.lower.iter().rev().enumerate() {
            let name = names.plain(lower)?;
            set("lowerdir+", &name).map_err(|errno| match errno {
                Errno::INVAL if index == 0 => Errno::OPNOTSUPP,
                errno => errno,
            })?;
        }
        if let Some((upper, work)) = self.upper {
            set("upperdir", &names.plain(upper)?)?;
            set("workdir", &names.plain(work)?)?;
        }
        for &(key, value) in self.options() {
            ignore_unknown(rustix::mount::fsconfig_set_string(context.as_fd(), key, value))?;
        }
        for &flag in self.flags() {
            ignore_unknown(rustix::mount::fsconfig_set_flag(context.as_fd(), flag))?;
        }
        // Before Linux 6.5 overlayfs takes any option, and looks at them only now.
        rustix::mount::fsconfig_create(context.as_fd()).map_err(|errno| match errno {
            Errno::INVAL => Errno::OPNOTSUPP,
            errno => errno,
        })?;
        let attributes = if self.devices { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
        let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::mount::move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(mount)
    }

    /// `mount(2)`, with every path as a descriptor.
    fn mount_classic(&self, target: &Path) -> Result<OwnedFd, Errno> {
        let mut names = PathNames::default();
        let mut options = b"lowerdir=".to_vec();
        for (index, lower) in self.lower.iter().rev().enumerate() {
            if index > 0 {
                options.push(b':');
            }
            options.extend(names.descriptor(lower)?.as_os_str().as_bytes());
        }
        if let Some((upper, work)) = self.upper {
            options.extend(b",upperdir=");
            options.extend(names.descriptor(upper)?.as_os_str().as_bytes());
            options.extend(b",workdir=");
            options.extend(names.descriptor(work)?.as_os_str().as_bytes());
        }
        let basic = options.len();
        for (key, value) in self.options().iter().filter(|(key, _)| *key != "uuid") {
            options.extend(format!(",{key}={value}").into_bytes());
        }
        for flag in self.flags() {
            options.extend(format!(",{flag}").into_bytes());
        }
        let mount = |options: &[u8]| {
            let options = CString::new(options).map_err(|_| Errno::INVAL)?;
            let flags = if self.devices { MountFlags::empty() } else { MountFlags::NODEV };
            rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
        };
        match mount(&options) {
            // An old kernel may not know one of the refinements.
            Err(Errno::INVAL) => mount(&options[..basic])?,
            result => result?,
        }
        open_directory(target)
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn flags(&self) -> &'static [&'static str] {
        match (self.upper.is_some(), self.user_xattrs) {
            (true, true) => &["volatile", "userxattr"],
            (true, false) => &["volatile"],
            (false, true) => &["userxattr"],
            (false, false) => &[],
        }
    }
}

fn ignore_unknown(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Paths as overlayfs can take them; keeps the descriptors that stand for awkward ones.
#[derive(Default)]
struct PathNames {
    open: Vec<OwnedFd>,
}

impl PathNames {
    /// The path itself, unless it is too long or has characters that overlayfs gives a meaning.
    fn plain(&mut self, path: &Path) -> Result<PathBuf, Errno> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= LONGEST_VALUE && !bytes.iter().any(|byte| b"\\:,".contains(byte)) {
            return Ok(path.to_path_buf());
        }
        self.descriptor(path)
    }

    fn descriptor(&mut self, path: &Path) -> Result<PathBuf, Errno> {
        let fd = open_directory(path)?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.open.push(fd);
        Ok(name.into())
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::MountPropagationFlags;
    use rustix::thread::UnshareFlags;

    use super::*;

    #[test]
    fn paths_that_overlayfs_would_misread_become_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let mut names = PathNames::default();
        for name in ["a:b", "a\\b", "a,b"] {
            let path = root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            assert!(names.plain(&path).unwrap().starts_with("/proc/self/fd"), "{name}");
        }
        assert_eq!(names.plain(root.path()).unwrap(), root.path());
        assert_eq!(names.plain(&root.path().join("missing:")), Err(Errno::NOENT));
    }

    /// Both ways to mount, with more layers than a plain option string could name, on a thread with its own mounts.
    #[test]
    fn privileged_old_and_new_kernels_mount_120_layers() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let layers: Vec<PathBuf> = (0..120).map(|index| make(&format!("layer-with-a-long-name-{index}"))).collect();
        for (index, layer) in layers.iter().enumerate() {
            std::fs::write(layer.join(format!("f{index}")), "").unwrap();
            std::fs::write(layer.join("same"), index.to_string()).unwrap();
        }
        for way in ["new", "classic"] {
            let (upper, work, target) =
                (make(&format!("upper-{way}")), make(&format!("work-{way}")), make(&format!("target-{way}")));
            let lower = layers.clone();
            let names = std::thread::spawn(move || {
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                if crate::sys::namespace::unshare(UnshareFlags::NEWNS).is_err()
                    || rustix::mount::mount_change("/", private).is_err()
                {
                    return None;
                }
                let lower = lower.iter().map(PathBuf::as_path).collect();
                let overlay = Overlay { lower, upper: Some((&upper, &work)), user_xattrs: false, devices: true };
                let mounted = if way == "new" { overlay.mount_new(&target) } else { overlay.mount_classic(&target) };
                mounted.unwrap();
                std::fs::write(target.join("made"), "").unwrap();
                let entries = std::fs::read_dir(&target).unwrap().count();
                assert!(upper.join("made").exists());
                Some((entries, std::fs::read_to_string(target.join("same")).unwrap()))
            })
            .join()
            .unwrap();
            // Nothing to see where mounting is not allowed.
            assert!(names.is_none_or(|names| names == (122, "119".to_owned())), "{way}");
        }
    }
}
