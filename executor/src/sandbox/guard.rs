//! What keeps a command from the machine's devices, although it may make nodes of them.
//!
//! The proper guard is a filter on a control group: nodes can be made, and only the harmless ones opened. Where there is
//! no control group to be had, mounts without devices take its place: then no node that the root holds works, and those
//! in `/dev` are bound from the host one by one.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use solver::SecurityMode;

use crate::sys::bpf::{AllowedDevice, DeviceAccess, DeviceKind, attach_device_filter, load_device_filter};
use crate::sys::mount::MountAttributes;
use crate::sys::spawn::can_start_in_cgroup;

/// What every container may open: the nodes of `/dev`, terminals.
const ALLOWED: [AllowedDevice; 9] = [
    usual(1, Some(3)),
    usual(1, Some(5)),
    usual(1, Some(7)),
    usual(1, Some(8)),
    usual(1, Some(9)),
    usual(5, Some(0)),
    usual(5, Some(1)),
    usual(5, Some(2)),
    usual(136, None),
];

const fn usual(major: u32, minor: Option<u32>) -> AllowedDevice {
    AllowedDevice { kind: DeviceKind::Character, major, minor, access: DeviceAccess::ALL }
}

/// How devices are kept away on this machine.
#[derive(Debug)]
pub(super) enum DeviceGuard {
    /// By a filter on a control group of this process.
    Filter(GuardedGroup),
    /// By mounts.
    Mounts,
}

/// A control group whose processes open no other devices.
#[derive(Debug)]
pub(super) struct GuardedGroup {
    path: PathBuf,
    directory: OwnedFd,
    filter: OwnedFd,
}

/// How one command is kept from devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DevicePolicy {
    /// It may have all.
    All,
    /// Its control group has a filter.
    Filtered,
    /// Its mounts have none.
    NoneOnMounts,
}

impl DevicePolicy {
    /// For the root and everything mounted below it.
    pub(super) fn mount_attributes(self) -> MountAttributes {
        match self {
            Self::All | Self::Filtered => MountAttributes::NONE,
            Self::NoneOnMounts => MountAttributes::NO_DEVICES,
        }
    }
}

impl DeviceGuard {
    /// Makes a group below `own`, a directory of the unified hierarchy, whose processes may use the usual devices and those in
    /// `more`.
    pub(super) fn new(own: Option<&Path>, more: &[AllowedDevice]) -> Self {
        let group = own.filter(|_| can_start_in_cgroup()).and_then(|own| match GuardedGroup::new(own, more) {
            Ok(group) => Some(group),
            Err(errno) => {
                tracing::debug!(%errno, "no control group for commands: devices are kept away by mounts");
                None
            }
        });
        group.map_or(Self::Mounts, Self::Filter)
    }

    /// What holds for a command.
    pub(super) fn policy(&self, security: SecurityMode) -> DevicePolicy {
        match (security, self) {
            (SecurityMode::Insecure, _) => DevicePolicy::All,
            (SecurityMode::Sandbox, Self::Filter(_)) => DevicePolicy::Filtered,
            (SecurityMode::Sandbox, Self::Mounts) => DevicePolicy::NoneOnMounts,
        }
    }

    /// The group that a command with this policy is born into.
    pub(super) fn group(&self, policy: DevicePolicy) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Filter(group) if policy == DevicePolicy::Filtered => Some(group.directory.as_fd()),
            Self::Filter(_) | Self::Mounts => None,
        }
    }

    /// Puts another group of the unified hierarchy under the same filter.
    pub(super) fn protect(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Self::Filter(group) => attach_device_filter(directory, group.filter.as_fd()),
            Self::Mounts => Err(Errno::OPNOTSUPP),
        }
    }
}

const PREFIX: &str = "rbuild-devices-";

impl GuardedGroup {
    fn new(own: &Path, more: &[AllowedDevice]) -> Result<Self, Errno> {
        let filter = load_device_filter(&[&ALLOWED, more].concat())?;
        let path = own.join(format!("{PREFIX}{}-{}", std::process::id(), super::host::serial()));
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        let open = || -> Result<OwnedFd, Errno> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(&path, flags, Mode::empty())?;
            attach_device_filter(directory.as_fd(), filter.as_fd())?;
            Ok(directory)
        };
        match open() {
            Ok(directory) => Ok(Self { path, directory, filter }),
            Err(errno) => {
                let _ = rustix::fs::rmdir(&path);
                Err(errno)
            }
        }
    }
}

impl Drop for GuardedGroup {
    fn drop(&mut self) {
        // Empty by now: every command was waited for.
        let _ = rustix::fs::rmdir(&self.path);
    }
}
