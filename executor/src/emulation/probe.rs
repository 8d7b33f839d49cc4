//! Finds out by trying whether programs of another machine run: with a program of ours of a dozen instructions.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cache::Store;
use rustix::fs::{Mode, OFlags};
use rustix::process::PidfdFlags;
use rustix::thread::UnshareFlags;

use super::machine::Machine;
use crate::sys::namespace::unshare;
use crate::sys::spawn::{Capabilities, Ended, Identity, Plan, Program, Session, spawn};

/// Whether a program of `machine` runs in a root that holds nothing but that program: there, a handler must have its
/// interpreter open already (the flag `F` of binfmt_misc).
///
/// # Errors
/// When nothing could be tried.
pub(super) fn runs_here(store: &Store, machine: &Machine) -> io::Result<bool> {
    let root = store.scratch_dir().map_err(|error| io::Error::other(error.to_string()))?;
    let path = root.path().join("try");
    fs::write(&path, machine.smallest_program())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    // A thread whose root is its own.
    let tried = std::thread::scope(|scope| scope.spawn(|| run_in(root.path())).join());
    tried.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn run_in(root: &Path) -> io::Result<bool> {
    let program = rustix::fs::stat("/proc/self/exe")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let parent = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    unshare(UnshareFlags::FS)?;
    rustix::process::chroot(root)?;
    rustix::process::chdir("/")?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let name = || CString::new("/try").map_err(io::Error::other);
    let plan = Plan {
        pid_namespace: false,
        birth_cgroup: None,
        cgroups: Vec::new(),
        cgroup_namespace: false,
        stdio: [null.as_fd(); 3],
        session: Session::Own,
        mounts: Vec::new(),
        limits: Vec::new(),
        directory: CString::new("/").map_err(io::Error::other)?,
        root: None,
        user_namespace: None,
        filter: None,
        listener: None,
        identity: Identity { uid, gid, groups: None, capabilities: Capabilities::Bounded(0) },
        parent: parent.as_fd(),
        forbidden: (program.st_dev, program.st_ino),
        program: Program::new(vec![name()?], vec![name()?], Vec::new()),
    };
    match spawn(&plan) {
        Ok(child) => Ok(child.wait()? == Ended::Exited(0)),
        // `ENOEXEC` where nobody takes it, `ENOENT` where the interpreter is not there.
        Err(_) => Ok(false),
    }
}

/// Whether it is the processor that runs programs of `machine`, which do run: the 32-bit programs of this architecture,
/// unless the kernel was told of an emulator for them.
pub(super) fn is_of_the_processor(machine: &Machine) -> bool {
    let own = Machine::of_this_process().map(|own| own.architecture);
    let is_relative = matches!((own, machine.architecture), (Some("amd64"), "386") | (Some("arm64"), "arm"));
    is_relative && !has_handler(machine, Path::new("/proc/sys/fs/binfmt_misc"))
}

/// Whether one of the handlers that lie in `directory` takes programs of `machine`.
fn has_handler(machine: &Machine, directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.filter(|text| text.starts_with("enabled\ninterpreter ")).any(|text| {
        let magic = text.lines().find_map(|line| line.strip_prefix("magic ")).and_then(from_hex);
        magic.is_some_and(|magic| Machine::of_header(&magic) == Some(machine))
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_recognised_by_what_they_take() {
        let directory = tempfile::tempdir().unwrap();
        let arm = Machine::of_architecture("arm").unwrap();
        fs::write(directory.path().join("status"), "enabled\n").unwrap();
        assert!(!has_handler(arm, directory.path()));
        let magic = "7f454c4601010100000000000000000002002800";
        let entry =
            |state: &str| format!("{state}\ninterpreter /usr/bin/qemu-arm\nflags: OCF\noffset 0\nmagic {magic}\n");
        fs::write(directory.path().join("qemu-arm"), entry("disabled")).unwrap();
        assert!(!has_handler(arm, directory.path()));
        fs::write(directory.path().join("qemu-arm"), entry("enabled")).unwrap();
        assert!(has_handler(arm, directory.path()));
        assert!(!has_handler(Machine::of_architecture("arm64").unwrap(), directory.path()));
    }
}
