//! What every container sees besides its root: `/dev`, `/proc`, `/sys`, control groups, and what of these is hidden.
//!
//! Plans only: lists of mounts as data, so that their order can be checked without privileges. Spec:
//! `spec/dockerfile.md` §8.5–8.7, `spec/engine.md` §5.1.

use std::ffi::{CStr, CString};

use rustix::fs::{FileType, Mode};
use rustix::mount::MountAttrFlags;

use crate::sys::spawn::{LateMount, MountCall};
use solver::SecurityMode;

/// Hidden from a confined command, where they exist.
pub(super) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only for a confined command, where they exist.
pub(super) const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Device nodes of every container: name, major, minor.
pub(super) const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Device nodes of the host that an unconfined command gets in addition, where they exist.
pub(super) const HOST_DEVICES: &[&str] = &[
    "kmsg",
    "cuse",
    "fuse",
    "kvm",
    "net/tun",
    "loop-control",
    "loop0",
    "loop1",
    "loop2",
    "loop3",
    "loop4",
    "loop5",
    "loop6",
    "loop7",
];

/// Symlinks in `/dev`.
pub(super) const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Directories in `/dev`.
pub(super) const DEVICE_DIRECTORIES: &[&str] = &["pts", "shm", "mqueue"];

/// Mode of the device nodes.
pub(super) const DEVICE_MODE: Mode = Mode::from_raw_mode(0o666);

/// Type of the device nodes.
pub(super) const DEVICE_TYPE: FileType = FileType::CharacterDevice;

const NOTHING_SPECIAL: libc::c_ulong = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;

/// Default size of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

/// Group `tty` in every distribution.
const TTY_GROUP: u32 = 5;

/// What is there to hide on this host, found once a process.
#[derive(Clone, Debug, Default)]
pub(super) struct Sensitive {
    /// Directories of [`MASKED`].
    pub(super) masked_directories: Vec<&'static str>,
    /// Files of [`MASKED`].
    pub(super) masked_files: Vec<&'static str>,
    /// Those of [`READ_ONLY`].
    pub(super) read_only: Vec<&'static str>,
}

impl Sensitive {
    /// Looks at the host, whose kernel will show the same in a container.
    pub(super) fn of_host() -> Self {
        let is_directory = |path: &&str| std::fs::metadata(path).ok().map(|found| found.is_dir());
        let masked = |wanted| MASKED.iter().copied().filter(move |path| is_directory(path) == Some(wanted)).collect();
        Self {
            masked_directories: masked(true),
            masked_files: masked(false),
            read_only: READ_ONLY.iter().copied().filter(|path| is_directory(path).is_some()).collect(),
        }
    }
}

/// A file system that is made before there is a place for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewMount {
    /// Where it goes.
    pub(super) target: &'static str,
    /// Its kind.
    pub(super) kind: &'static str,
    /// What it calls itself.
    pub(super) source: &'static str,
    /// Options; those without a value are flags.
    pub(super) options: Vec<(&'static str, Option<String>)>,
    pub(super) attributes: MountAttrFlags,
}

/// `/dev` itself, to be filled with nodes, links and directories.
pub(super) fn device_tmpfs() -> NewMount {
    NewMount {
        target: "/dev",
        kind: "tmpfs",
        source: "tmpfs",
        options: vec![("mode", Some("755".to_owned())), ("size", Some("65536k".to_owned()))],
        attributes: MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    }
}

/// Mounts below `/dev`.
pub(super) fn device_mounts(shm_size_bytes: Option<u64>, tty_group_exists: bool) -> [NewMount; 3] {
    let no_programs = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
    let nothing_special = no_programs.union(MountAttrFlags::MOUNT_ATTR_NODEV);
    let value = |name, value: &str| (name, Some(value.to_owned()));
    let mut terminals = vec![("newinstance", None), value("ptmxmode", "0666"), value("mode", "0620")];
    terminals.extend(tty_group_exists.then(|| value("gid", &TTY_GROUP.to_string())));
    let size = shm_size_bytes.unwrap_or(SHM_BYTES).to_string();
    let shm = vec![value("mode", "1777"), value("size", &size)];
    let mount = |target, kind, source, options, attributes| NewMount { target, kind, source, options, attributes };
    [
        mount("/dev/pts", "devpts", "devpts", terminals, no_programs),
        mount("/dev/shm", "tmpfs", "shm", shm, nothing_special),
        mount("/dev/mqueue", "mqueue", "mqueue", Vec::new(), nothing_special),
    ]
}

/// `/proc`: made by the command's own process, because it shows the pid namespace of its maker. With `has_substitute` there
/// is another one where the kernel allows no new one.
pub(super) fn proc_mount(has_substitute: bool) -> MountCall {
    MountCall { has_substitute, ..mount("proc", "/proc", "proc", NOTHING_SPECIAL, "") }
}

/// The most processes and threads that a command can have at once, for it and all that it starts: one that starts others
/// without end fails itself, not the machine. Four times what containers usually get. Comes after [`proc_mount`].
const MOST_PROCESSES: &CStr = c"8192";

/// Sets [`MOST_PROCESSES`] for the pid namespace. Linux ≥ 6.14; before, this would be the machine's own number.
pub(super) fn most_processes() -> LateMount {
    LateMount::Write { target: c"/proc/sys/kernel/pid_max".to_owned(), content: MOST_PROCESSES }
}

/// `/sys`, as the network namespace sees it.
pub(super) fn sys_mount(security: SecurityMode) -> MountCall {
    let read_only = match security {
        SecurityMode::Sandbox => libc::MS_RDONLY,
        SecurityMode::Insecure => 0,
    };
    mount("sysfs", "/sys", "sysfs", NOTHING_SPECIAL | read_only, "")
}

/// The control group hierarchy, version 2.
pub(super) fn cgroup2_mount(security: SecurityMode) -> MountCall {
    let read_only = match security {
        SecurityMode::Sandbox => libc::MS_RDONLY,
        SecurityMode::Insecure => 0,
    };
    MountCall {
        optional: true,
        ..mount("cgroup", "/sys/fs/cgroup", "cgroup2", NOTHING_SPECIAL | read_only | libc::MS_RELATIME, "")
    }
}

/// Hides what a confined command must not see, and protects what it must not change. Comes after [`proc_mount`] and [`sys_mount`].
pub(super) fn restrictions(sensitive: &Sensitive) -> Vec<MountCall> {
    let mut calls = Vec::new();
    for path in &sensitive.read_only {
        calls.push(bind(path, path));
        let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | NOTHING_SPECIAL;
        calls.push(MountCall { target: text(path), flags, optional: true, ..MountCall::default() });
    }
    for path in &sensitive.masked_files {
        calls.push(bind("/dev/null", path));
    }
    // One empty file system serves all directories.
    if let Some((first, others)) = sensitive.masked_directories.split_first() {
        let empty = mount("tmpfs", first, "tmpfs", libc::MS_RDONLY | NOTHING_SPECIAL, "size=0k");
        calls.push(MountCall { optional: true, ..empty });
        calls.extend(others.iter().map(|path| bind(first, path)));
    }
    calls
}

fn bind(source: &str, target: &str) -> MountCall {
    MountCall {
        source: Some(text(source)),
        target: text(target),
        flags: libc::MS_BIND,
        optional: true,
        ..MountCall::default()
    }
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, options: &str) -> MountCall {
    MountCall {
        source: Some(text(source)),
        target: text(target),
        kind: Some(text(kind)),
        flags,
        options: Some(options).filter(|options| !options.is_empty()).map(text),
        optional: false,
        has_substitute: false,
    }
}

/// Texts of this module are our own constants and numbers.
fn text(text: &str) -> CString {
    CString::new(text).expect("paths and options of this module have no NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(calls: &[MountCall]) -> Vec<&str> {
        calls.iter().map(|call| call.target.to_str().unwrap()).collect()
    }

    #[test]
    fn devices_have_their_places() {
        assert_eq!(device_mounts(None, true).map(|mount| mount.target), ["/dev/pts", "/dev/shm", "/dev/mqueue"]);
    }

    #[test]
    fn options_are_those_of_the_specification() {
        let text = |(name, value): &(&str, Option<String>)| match value {
            Some(value) => format!("{name}={value}"),
            None => (*name).to_owned(),
        };
        let options = device_mounts(Some(128 << 20), true)
            .map(|mount| mount.options.iter().map(text).collect::<Vec<_>>().join(","));
        assert_eq!(options, ["newinstance,ptmxmode=0666,mode=0620,gid=5", "mode=1777,size=134217728", ""]);
        assert_eq!(proc_mount(false).flags & libc::MS_RDONLY, 0);
        assert_eq!(sys_mount(SecurityMode::Sandbox).flags & libc::MS_RDONLY, libc::MS_RDONLY);
        assert_eq!(sys_mount(SecurityMode::Insecure).flags & libc::MS_RDONLY, 0);
    }

    #[test]
    fn restrictions_share_one_empty_file_system() {
        let sensitive = Sensitive {
            masked_directories: vec!["/proc/acpi", "/proc/scsi", "/sys/firmware"],
            masked_files: vec!["/proc/kcore"],
            read_only: vec!["/proc/sys"],
        };
        let calls = restrictions(&sensitive);
        assert_eq!(
            targets(&calls),
            ["/proc/sys", "/proc/sys", "/proc/kcore", "/proc/acpi", "/proc/scsi", "/sys/firmware"]
        );
        assert_eq!(calls.iter().filter(|call| call.kind.is_some()).count(), 1);
        assert!(calls.iter().all(|call| call.optional));
    }
}
