//! Processes of a command, looked at from outside: memory, files and parents, through `/proc`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::credentials::Credentials;

/// Longest path, with its end.
const PATH_BYTES: usize = 4096;

/// Memory is readable page by page.
const PAGE_BYTES: u64 = 4096;

/// As many groups as the kernel allows.
const MOST_GROUPS: u64 = 65_536;

/// Generations that are looked through for somebody who is known.
const MOST_ANCESTORS: usize = 64;

/// What a call does with a link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    Yes,
    No,
}

/// A process while one of its threads waits for us.
pub(super) struct Process {
    pid: u32,
    parent: u32,
    /// When it began, in ticks: tells processes of one number apart.
    since: u64,
}

impl Process {
    /// The process that a thread belongs to.
    pub(super) fn of_thread(thread: u32) -> Result<Self, Errno> {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).map_err(|_| Errno::SRCH)?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok()).ok_or(Errno::SRCH)
        };
        Self::of_group(field("Tgid:")?, field("PPid:")?)
    }

    fn of_pid(pid: u32) -> Result<Self, Errno> {
        Self::of_thread(pid)
    }

    fn of_group(pid: u32, parent: u32) -> Result<Self, Errno> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| Errno::SRCH)?;
        // The name in brackets may hold anything; field 22 is the 20th behind it.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let since = fields.split_whitespace().nth(19).and_then(|text| text.parse().ok()).ok_or(Errno::SRCH)?;
        Ok(Self { pid, parent, since })
    }

    /// The text at an address, up to its NUL.
    pub(super) fn read_path(&self, address: u64) -> Result<Vec<u8>, Errno> {
        let memory = self.memory()?;
        let mut text = Vec::new();
        while text.len() < PATH_BYTES {
            let from = address + text.len() as u64;
            let mut piece = vec![0; (PAGE_BYTES - from % PAGE_BYTES) as usize];
            let n_bytes = memory.read_at(&mut piece, from).map_err(|_| Errno::FAULT)?;
            let piece = piece.get(..n_bytes).filter(|piece| !piece.is_empty()).ok_or(Errno::FAULT)?;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                text.extend(&piece[..end]);
                return Ok(text);
            }
            text.extend(piece);
        }
        Err(Errno::NAMETOOLONG)
    }

    /// A list of 32-bit numbers at an address.
    pub(super) fn read_ids(&self, address: u64, count: u64) -> Result<Vec<u32>, Errno> {
        if count > MOST_GROUPS {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; 4 * count as usize];
        self.memory()?.read_exact_at(&mut bytes, address).map_err(|_| Errno::FAULT)?;
        Ok(bytes.chunks_exact(4).map(|id| id.try_into().map_or(0, u32::from_ne_bytes)).collect())
    }

    /// Writes 32-bit numbers to an address.
    pub(super) fn write_ids(&self, address: u64, ids: &[u32]) -> Result<(), Errno> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        self.memory()?.write_all_at(&bytes, address).map_err(|_| Errno::FAULT)
    }

    fn memory(&self) -> Result<File, Errno> {
        let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", self.pid));
        memory.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::SRCH))
    }

    /// One of its descriptors.
    pub(super) fn open_descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/{}/fd/{number}", self.pid);
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Errno::BADF,
            errno => errno,
        })
    }

    /// A directory that paths are relative to: a descriptor, or its working directory.
    pub(super) fn open_base(&self, directory: Option<i32>) -> Result<OwnedFd, Errno> {
        match directory {
            Some(number) => self.open_descriptor(number),
            None => {
                let path = format!("/proc/{}/cwd", self.pid);
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            }
        }
    }

    /// What a path leads to for the process. Nothing outside of its root can be reached.
    pub(super) fn open_path(
        &self,
        directory: Option<i32>,
        path: Vec<u8>,
        followed: Followed,
    ) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let path = Path::new(OsStr::from_bytes(&path));
        let whole: PathBuf = if path.is_absolute() { path.to_owned() } else { self.base_path(directory)?.join(path) };
        let root = format!("/proc/{}/root", self.pid);
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let nofollow = if followed == Followed::No { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = OFlags::PATH | OFlags::CLOEXEC | nofollow;
        rustix::fs::openat2(root, &whole, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// The kernel's name, in the process's root, of a directory that paths are relative to.
    fn base_path(&self, directory: Option<i32>) -> Result<PathBuf, Errno> {
        let link = match directory {
            Some(number) => format!("/proc/{}/fd/{number}", self.pid),
            None => format!("/proc/{}/cwd", self.pid),
        };
        std::fs::read_link(link).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::BADF))
    }
}

/// The credentials of all processes of one command.
pub(super) struct Processes {
    first: Credentials,
    known: HashMap<u32, (u64, Credentials)>,
}

impl Processes {
    /// The command begins with `first`.
    pub(super) fn new(first: Credentials) -> Self {
        Self { first, known: HashMap::new() }
    }

    /// Those of a process; one that was not heard of has its parent's.
    pub(super) fn credentials(&mut self, process: &Process) -> &mut Credentials {
        let inherited = match self.find(process) {
            Some(own) => own,
            None => self.inherited(process.parent),
        };
        let entry = self.known.entry(process.pid).or_insert_with(|| (process.since, inherited.clone()));
        if entry.0 != process.since {
            *entry = (process.since, inherited);
        }
        &mut entry.1
    }

    fn find(&self, process: &Process) -> Option<Credentials> {
        let (since, credentials) = self.known.get(&process.pid)?;
        (*since == process.since).then(|| credentials.clone())
    }

    fn inherited(&self, mut pid: u32) -> Credentials {
        for _ in 0..MOST_ANCESTORS {
            let Some(process) = Process::of_pid(pid).ok().filter(|_| pid != 0) else { break };
            if let Some(found) = self.find(&process) {
                return found;
            }
            pid = process.parent;
        }
        self.first.clone()
    }
}

/// A change of owner takes the set-user-ID bit of a file, and its set-group-ID bit if the group may execute it.
pub(super) fn drop_special_bits(file: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let mode = stat.st_mode & 0o7777;
    let group_bit = if mode & 0o010 == 0 { 0 } else { 0o2000 };
    let kept = mode & !(0o4000 | group_bit);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || kept == mode {
        return Ok(());
    }
    // The handle is good for paths only.
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_through_proc() {
        let process = Process::of_pid(std::process::id()).unwrap();
        let text = c"/some/path";
        assert_eq!(process.read_path(text.as_ptr() as u64).unwrap(), b"/some/path");
        let ids = [1_u32, 2, 3];
        assert_eq!(process.read_ids(ids.as_ptr() as u64, 3).unwrap(), ids);
        assert_eq!(process.read_path(8).unwrap_err(), Errno::FAULT);
        let here = process.open_path(None, b".".to_vec(), Followed::Yes).unwrap();
        let stat = rustix::fs::fstat(here).unwrap();
        assert_eq!(stat.st_ino, rustix::fs::stat(".").unwrap().st_ino);
        assert_eq!(process.open_descriptor(99_999).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn children_begin_with_what_their_parents_are() {
        let mut processes = Processes::new(Credentials::of_user(5, 6, &[]));
        let own = Process::of_pid(std::process::id()).unwrap();
        assert_eq!(processes.credentials(&own).user.real, 5);
        processes.credentials(&own).user.real = 9;
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let seen = Process::of_pid(child.id()).unwrap();
        assert_eq!(processes.credentials(&seen).user.real, 9);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
