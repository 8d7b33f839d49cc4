//! `/dev` of a container: nodes are made where that is allowed, and otherwise bound from the host.

use rustix::fs::{CWD, Mode, makedev};
use rustix::io::Errno;

use super::error::SandboxError;
use super::guard::DevicePolicy;
use super::host::Host;
use super::mounts::Prepared;
use super::rootfs::{
    DEVICE_DIRECTORIES, DEVICE_LINKS, DEVICE_MODE, DEVICE_TYPE, DEVICES, HOST_DEVICES, device_mounts, device_tmpfs,
};
use crate::sys::mount::MountAttributes;
use crate::sys::spawn::MountCall;

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

/// Mounts `/dev` in the root of the calling thread and fills it. The umask must be empty.
pub(super) fn fill(host: &Host, policy: DevicePolicy, shm_size_bytes: Option<u64>) -> Result<(), SandboxError> {
    let mut tmpfs = device_tmpfs();
    tmpfs.flags |= policy.mount_attributes().classic_flags();
    mount(&tmpfs)?;
    if makes_nodes(host, policy) {
        for &(name, major, minor) in DEVICES {
            let path = format!("/dev/{name}");
            rustix::fs::mknodat(CWD, &path, DEVICE_TYPE, DEVICE_MODE, makedev(major, minor))
                .map_err(SandboxError::call("create", &path))?;
        }
    }
    for &(path, target) in DEVICE_LINKS {
        rustix::fs::symlink(target, path).map_err(SandboxError::call("create", path))?;
    }
    for &path in DEVICE_DIRECTORIES {
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(SandboxError::call("create", path))?;
    }
    device_mounts(shm_size_bytes, host.isolation.has_tty_group()).iter().try_for_each(mount)
}

/// Where nodes cannot be made, or made ones cannot be opened, the host's are bound.
fn makes_nodes(host: &Host, policy: DevicePolicy) -> bool {
    host.isolation.may_make_devices() && policy != DevicePolicy::NoneOnMounts
}

fn mount(call: &MountCall) -> Result<(), SandboxError> {
    let flags = rustix::mount::MountFlags::from_bits_retain(call.flags as u32);
    let (source, kind) = (call.source.as_deref().unwrap_or_default(), call.kind.as_deref().unwrap_or_default());
    rustix::mount::mount(source, call.target.as_c_str(), kind, flags, call.options.as_deref()).map_err(
        |errno: Errno| SandboxError::Mount {
            what: kind.to_string_lossy().into_owned(),
            target: call.target.to_string_lossy().into_owned(),
            errno,
        },
    )
}
