//! The kernel, and the calls of it that not every kernel or filter around us has.

use std::fs;
use std::os::fd::AsFd as _;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sandbox::seccomp;
use crate::sys::mount::{MountAttributes, Reach, mount_setattr};
use crate::sys::spawn::can_start_in_cgroup;

/// The kernel of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// As `uname -r` has it.
    pub release: String,
    /// What is used of it, where it is not everywhere.
    pub features: Vec<Feature>,
}

/// Something that a kernel has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name: a call, a file system option.
    pub name: &'static str,
    /// The first release that has it.
    pub since: &'static str,
    /// What is different without it.
    pub otherwise: &'static str,
    /// Whether it is there.
    pub present: bool,
}

/// Tries the calls, each in a way that changes nothing.
pub fn kernel_facts() -> KernelFacts {
    let feature = |name, since, otherwise, present| Feature { name, since, otherwise, present };
    KernelFacts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        features: vec![
            feature("openat2", "5.6", "no step can be run", has_openat2()),
            feature(
                "mount_setattr",
                "5.12",
                "mounts are protected one by one, trees of mounts not shown",
                has_setattr(),
            ),
            feature(
                "clone3 into a control group",
                "5.7",
                "steps join their control group later",
                can_start_in_cgroup(),
            ),
            feature("seccomp filters", "3.5", "no step can be run", has_seccomp()),
            feature("user namespaces", "3.8", "only root can run steps", has_user_namespaces()),
        ],
    }
}

fn has_openat2() -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
}

/// Adds nothing to the attributes of a mount, which is refused for other reasons than that there is no such call.
fn has_setattr() -> bool {
    let Ok(root) = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { return false };
    mount_setattr(root.as_fd(), MountAttributes::NONE, Reach::Mount) != Err(Errno::NOSYS)
}

fn has_seccomp() -> bool {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    actions.split_whitespace().any(|action| action == "errno") && seccomp::default_filter().is_some()
}

fn has_user_namespaces() -> bool {
    fs::metadata("/proc/self/ns/user").is_ok()
}
