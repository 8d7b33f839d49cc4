//! `/dev` of a container: nodes are made where that is allowed, and otherwise bound from the host.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, makedev};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::error::SandboxError;
use super::guard::DevicePolicy;
use super::host::Host;
use super::mounts::Prepared;
use super::rootfs::{
    DEVICE_DIRECTORIES, DEVICE_LINKS, DEVICE_MODE, DEVICE_TYPE, DEVICES, HOST_DEVICES, NewMount, device_mounts,
    device_tmpfs,
};
use crate::sys::mount::MountAttributes;

/// Device nodes that have to come from the host.
pub(super) fn of_host(host: &Host, policy: DevicePolicy) -> Result<Vec<Prepared>, SandboxError> {
    let basic = DEVICES.iter().map(|(name, ..)| *name).filter(|_| !makes_nodes(host, policy));
    let extra = HOST_DEVICES.iter().copied().filter(|_| policy == DevicePolicy::All);
    let quiet = MountAttributes::NO_SUID.with(MountAttributes::NO_EXEC);
    basic
        .chain(extra)
        .map(|name| format!("/dev/{name}"))
        .filter(|path| std::fs::symlink_metadata(path).is_ok())
        .map(|path| Prepared::host_file(path.as_ref(), &path, quiet))
        .collect()
}

/// Whether `path` is a node that every container has.
pub(super) fn is_usual(path: &str) -> bool {
    path.strip_prefix("/dev/").is_some_and(|name| DEVICES.iter().any(|(usual, ..)| *usual == name))
}

/// `/dev` with everything below it, made but not yet in its place.
pub(super) struct Devices {
    /// In the order in which they are attached.
    mounts: Vec<(OwnedFd, &'static str)>,
    policy: DevicePolicy,
    shm_size_bytes: Option<u64>,
}

impl Devices {
    /// Makes all file systems and fills the first. The thread's file system state must be its own.
    pub(super) fn prepare(
        host: &Host,
        policy: DevicePolicy,
        shm_size_bytes: Option<u64>,
    ) -> Result<Self, SandboxError> {
        let tmpfs = device_tmpfs();
        let attributes = if policy == DevicePolicy::NoneOnMounts { MountAttrFlags::MOUNT_ATTR_NODEV } else { NONE };
        let dev = make(&NewMount { attributes: tmpfs.attributes | attributes, ..tmpfs })?;
        let before = rustix::process::umask(Mode::empty());
        let filled = fill(&dev, makes_nodes(host, policy));
        rustix::process::umask(before);
        filled?;
        let mut mounts = vec![(dev, "/dev")];
        for mount in device_mounts(shm_size_bytes, host.isolation.has_tty_group()) {
            mounts.push((make(&mount)?, mount.target));
        }
        Ok(Self { mounts, policy, shm_size_bytes })
    }

    /// Whether they are what a command is to have.
    pub(super) fn fit(&self, policy: DevicePolicy, shm_size_bytes: Option<u64>) -> bool {
        (self.policy, self.shm_size_bytes) == (policy, shm_size_bytes)
    }

    /// Puts them into the root of the calling thread.
    pub(super) fn attach(&self) -> Result<(), SandboxError> {
        self.mounts.iter().try_for_each(|(mount, target)| {
            rustix::mount::move_mount(mount, "", CWD, *target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(failed("devices", target))
        })
    }
}

const NONE: MountAttrFlags = MountAttrFlags::empty();

/// Nodes, links and directories of `/dev`. The umask must be empty.
fn fill(dev: &OwnedFd, makes_nodes: bool) -> Result<(), SandboxError> {
    let nodes = DEVICES.iter().filter(|_| makes_nodes);
    for &(name, major, minor) in nodes {
        rustix::fs::mknodat(dev, name, DEVICE_TYPE, DEVICE_MODE, makedev(major, minor))
            .map_err(SandboxError::call("create", name))?;
    }
    for &(name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, dev, name).map_err(SandboxError::call("create", name))?;
    }
    for &name in DEVICE_DIRECTORIES {
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).map_err(SandboxError::call("create", name))?;
    }
    Ok(())
}

/// Makes a file system; it lies nowhere yet.
fn make(mount: &NewMount) -> Result<OwnedFd, SandboxError> {
    let make = || -> Result<OwnedFd, Errno> {
        let context = rustix::mount::fsopen(mount.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "source", mount.source)?;
        for (name, value) in &mount.options {
            match value {
                Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), *name, value)?,
                None => rustix::mount::fsconfig_set_flag(context.as_fd(), *name)?,
            }
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, mount.attributes)
    };
    make().map_err(failed(mount.source, mount.target))
}

fn failed(what: &str, target: &str) -> impl FnOnce(Errno) -> SandboxError {
    let (what, target) = (what.to_owned(), target.to_owned());
    move |errno| SandboxError::Mount { what, target, errno }
}

/// Where nodes cannot be made, or made ones cannot be opened, the host's are bound.
fn makes_nodes(host: &Host, policy: DevicePolicy) -> bool {
    host.isolation.may_make_devices() && policy != DevicePolicy::NoneOnMounts
}
