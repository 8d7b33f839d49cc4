//! What other tiers mount, put in its place in a root and taken away again.
//!
//! What was there before is moved aside meanwhile, and directories that had to be made go again if the command has left
//! them empty. Nothing of the command runs while this module works, and it keeps handles of the directories that it
//! works in, so that no link that the command has made can lead it elsewhere.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, makedev};
use rustix::io::Errno;

use super::super::error::SandboxError;
use super::super::mounts::in_order;
use super::super::network::{hosts, resolv};
use super::super::rootfs::{DEVICE_DIRECTORIES, DEVICE_LINKS, DEVICE_MODE, DEVICE_TYPE, DEVICES};
use super::super::spec::{MemoryFile, MountSource, SandboxMount, SandboxSpec, Writes};
use super::changes::times;
use crate::copy_out::copy_out;
use crate::view::RootView;

/// Everything that was put into one root. Dropping takes away what is still there.
pub(super) struct Places {
    root: PathBuf,
    /// What was covered, by number.
    aside: PathBuf,
    places: Vec<Place>,
}

/// One thing that was put somewhere.
struct Place {
    parent: Directory,
    name: OsString,
    /// The number under which lies what was there.
    covered: Option<usize>,
    /// Where it came from, if it goes back there.
    home: Option<PathBuf>,
    /// Whether it goes only if it is an empty directory: one that was made for the sake of another.
    is_support: bool,
}

/// A directory of the root, with its time before and after something was put there.
struct Directory {
    fd: OwnedFd,
    before: Stat,
    after: Stat,
}

impl Directory {
    /// An entry's path that no link can divert.
    fn entry(&self, name: &OsString) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(name)
    }
}

impl Places {
    /// Nothing yet. `scratch` is on the file system of `root`.
    pub(super) fn new(root: &Path, scratch: &Path) -> Result<Self, SandboxError> {
        let aside = scratch.join("aside");
        fs::create_dir(&aside).map_err(SandboxError::io("create", &aside))?;
        Ok(Self { root: root.to_owned(), aside, places: Vec::new() })
    }

    /// Puts everything of a command in its place.
    pub(super) fn fill(&mut self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        // These three stay in the layer of a step on a root that does not have them.
        for directory in ["dev", "proc", "sys"] {
            let path = self.root.join(directory);
            if fs::symlink_metadata(&path).is_err() {
                make_directory(&path)?;
            }
        }
        self.put("/dev", devices)?;
        let hosts = hosts(&spec.hostname, &spec.extra_hosts);
        self.put("/etc/hosts", |path| write_file(path, hosts.as_bytes(), 0o644))?;
        self.put("/etc/resolv.conf", |path| write_file(path, resolv::host().as_bytes(), 0o644))?;
        in_order(&spec.mounts).into_iter().try_for_each(|mount| self.mount(mount))?;
        spec.given.nodes.iter().try_for_each(|node| self.put(&node.path, |path| node.make(CWD, path)))
    }

    fn mount(&mut self, mount: &SandboxMount) -> Result<(), SandboxError> {
        let target = mount.target.as_str();
        match &mount.source {
            MountSource::Tmpfs { .. } => {
                self.put(target, |path| make_directory(path).and_then(|()| set_mode(path, 0o1777)))
            }
            MountSource::File(file) => self.put(target, |path| write_memory_file(path, file)),
            MountSource::Layers { lower, path: source } => {
                self.put(target, |path| copy(lower, Path::new(source), path))
            }
            MountSource::Directory { root, path: source, writes: Writes::Vanish } => match root.is_dir() {
                true => self.put(target, |path| copy(std::slice::from_ref(root), Path::new(source), path)),
                false => {
                    self.put(target, |path| fs::copy(root, path).map(drop).map_err(SandboxError::io("copy", root)))
                }
            },
            MountSource::Directory { root, path: source, writes: Writes::Stay } => {
                let home = resolve(root, source)?;
                self.put(target, |path| fs::rename(&home, path).map_err(SandboxError::io("move", &home)))?;
                if let Some(place) = self.places.last_mut() {
                    place.home = Some(home);
                }
                Ok(())
            }
            MountSource::Host { path, .. } if mount.read_only => match path.is_dir() {
                true => self.put(target, |place| copy(std::slice::from_ref(path), Path::new("/"), place)),
                false => {
                    self.put(target, |place| fs::copy(path, place).map(drop).map_err(SandboxError::io("copy", path)))
                }
            },
            MountSource::Host { .. } => Err(SandboxError::NotInThisTier {
                what: "a path of this machine that a step may write to",
                tier: "chroot",
            }),
            MountSource::Socket { path: socket } => {
                self.put(target, |path| fs::hard_link(socket, path).map_err(SandboxError::io("link", socket)))
            }
        }
    }

    /// Has `make` put something at `target` in the root, in which links are followed.
    fn put(&mut self, target: &str, make: impl FnOnce(&Path) -> Result<(), SandboxError>) -> Result<(), SandboxError> {
        let whole = resolve(&self.root, target)?;
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(SandboxError::Mount {
                what: "anything".to_owned(),
                target: target.to_owned(),
                errno: Errno::BUSY,
            });
        };
        self.make_parents(parent)?;
        let place = self.cover(parent, name.to_owned(), false)?;
        let path = place.parent.entry(&place.name);
        self.places.push(place);
        make(&path)?;
        self.settle()
    }

    fn make_parents(&mut self, parent: &Path) -> Result<(), SandboxError> {
        let missing: Vec<&Path> = parent.ancestors().take_while(|path| fs::symlink_metadata(path).is_err()).collect();
        for path in missing.into_iter().rev() {
            let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let place = self.cover(above, name.to_owned(), true)?;
            self.places.push(place);
            make_directory(path)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Makes room for `name`: what is there goes aside.
    fn cover(&self, parent: &Path, name: OsString, is_support: bool) -> Result<Place, SandboxError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(SandboxError::call("open", parent))?;
        let before = rustix::fs::fstat(&fd).map_err(SandboxError::call("read", parent))?;
        let number = self.places.len();
        let aside = self.aside.join(number.to_string());
        let covered = match rustix::fs::renameat(&fd, &name, CWD, &aside) {
            Ok(()) => Some(number),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(SandboxError::call("move", parent.join(&name))(errno)),
        };
        let parent = Directory { fd, before, after: before };
        Ok(Place { parent, name, covered, home: None, is_support })
    }

    /// Notes the time of the directory that something was just put into.
    fn settle(&mut self) -> Result<(), SandboxError> {
        let Some(place) = self.places.last_mut() else { return Ok(()) };
        let stat = rustix::fs::fstat(&place.parent.fd);
        place.parent.after = stat.map_err(SandboxError::setup("look at a directory of the root"))?;
        Ok(())
    }

    /// Takes everything away again, last things first.
    pub(super) fn empty(&mut self) -> Result<(), SandboxError> {
        while let Some(place) = self.places.pop() {
            self.take_away(&place).map_err(SandboxError::io("take away", &place.name))?;
        }
        Ok(())
    }

    fn take_away(&self, place: &Place) -> io::Result<()> {
        let path = place.parent.entry(&place.name);
        let now = rustix::fs::fstat(&place.parent.fd)?;
        match &place.home {
            // The command may have removed what nothing protects: then it is empty.
            Some(home) => match fs::rename(&path, home) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(home)?,
                moved => moved?,
            },
            None if place.is_support => match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // What the command has put there stays, and so does the directory.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                removed => removed?,
            },
            None => remove_all(&path)?,
        }
        if let Some(number) = place.covered {
            let aside = self.aside.join(number.to_string());
            rustix::fs::renameat(CWD, &aside, &place.parent.fd, &place.name)?;
        }
        // As if nothing had happened, unless the command has made something happen there.
        let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        let wanted = if time(&now) == time(&place.parent.after) { &place.parent.before } else { &now };
        Ok(rustix::fs::futimens(&place.parent.fd, &times(wanted))?)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Err(error) = self.empty() {
            tracing::warn!(%error, "the root of a step is not cleared");
        }
    }
}

/// Where `path` is in the directory `root`, whose links do not lead out; what is missing keeps its name.
pub(super) fn resolve(root: &Path, path: &str) -> Result<PathBuf, SandboxError> {
    let look = || RootView::open(&[root.to_owned()])?.resolve(Path::new(path));
    let found = look().map_err(|error| SandboxError::Copy(error.into()))?;
    Ok(root.join(found.path.strip_prefix("/").unwrap_or(&found.path)))
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn make_directory(path: &Path) -> Result<(), SandboxError> {
    DirBuilder::new().mode(0o755).create(path).map_err(SandboxError::io("create", path))?;
    set_mode(path, 0o755)
}

/// Whatever our umask is.
fn set_mode(path: &Path, mode: u32) -> Result<(), SandboxError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SandboxError::io("change the mode of", path))
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), SandboxError> {
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)
    };
    write().map_err(SandboxError::io("write", path))
}

fn write_memory_file(path: &Path, file: &MemoryFile) -> Result<(), SandboxError> {
    // Nobody but us looks before it is whole.
    write_file(path, &file.content, 0o600)?;
    crate::owners::chown(path, file.uid, file.gid).map_err(SandboxError::call("change the owner of", path))?;
    set_mode(path, file.mode & 0o777)
}

/// Copies a directory or file of a chain of layers.
fn copy(lower: &[PathBuf], source: &Path, dest: &Path) -> Result<(), SandboxError> {
    let look = || Ok(RootView::open(lower)?.resolve(source)?.node);
    let node = look().map_err(SandboxError::Copy)?;
    if node.is_none_or(|node| node.kind.is_dir()) {
        make_directory(dest)?;
    }
    Ok(copy_out(lower, source, dest, true, &|| false)?)
}

/// `/dev`: nodes where they can be made. An ordinary file stands for a `null` that cannot.
fn devices(path: &Path) -> Result<(), SandboxError> {
    make_directory(path)?;
    for &(name, major, minor) in DEVICES {
        let node = path.join(name);
        match rustix::fs::mknodat(CWD, &node, DEVICE_TYPE, DEVICE_MODE, makedev(major, minor)) {
            Err(Errno::PERM) if name == "null" => write_file(&node, b"", 0o666)?,
            Err(Errno::PERM) => continue,
            made => made.map_err(SandboxError::call("create", &node))?,
        }
        rustix::fs::chmodat(CWD, &node, DEVICE_MODE, AtFlags::empty())
            .map_err(SandboxError::call("change the mode of", &node))?;
    }
    for (name, target) in DEVICE_LINKS {
        let link = path.join(name);
        std::os::unix::fs::symlink(target, &link).map_err(SandboxError::io("create", &link))?;
    }
    for name in DEVICE_DIRECTORIES {
        let directory = path.join(name);
        make_directory(&directory)?;
        set_mode(&directory, if *name == "pts" { 0o755 } else { 0o1777 })?;
    }
    Ok(())
}
