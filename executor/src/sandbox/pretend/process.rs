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

/// A process while one of its threads waits for us. Another one that gets its number later is never taken for it.
pub(super) struct Process {
    /// Its directory in `/proc`.
    directory: OwnedFd,
}

impl Process {
    /// The process that a thread belongs to.
    pub(super) fn of_thread(thread: u32) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(format!("/proc/{thread}"), flags, Mode::empty()) {
            Ok(directory) => Ok(Self { directory }),
            Err(Errno::NOENT) => Err(Errno::SRCH),
            Err(errno) => Err(errno),
        }
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
        rustix::fs::openat(&self.directory, "mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(File::from)
    }

    /// One of its descriptors.
    pub(super) fn open_descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        self.open(&format!("fd/{number}")).map_err(|errno| match errno {
            Errno::NOENT => Errno::BADF,
            errno => errno,
        })
    }

    /// A directory that paths are relative to: a descriptor, or its working directory.
    pub(super) fn open_base(&self, directory: Option<i32>) -> Result<OwnedFd, Errno> {
        match directory {
            Some(number) => self.open_descriptor(number),
            None => self.open("cwd"),
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
        let root = self.open("root")?;
        let nofollow = if followed == Followed::No { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = OFlags::PATH | OFlags::CLOEXEC | nofollow;
        rustix::fs::openat2(root, &whole, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// The kernel's name, in the process's root, of a directory that paths are relative to.
    fn base_path(&self, directory: Option<i32>) -> Result<PathBuf, Errno> {
        let link = match directory {
            Some(number) => format!("fd/{number}"),
            None => "cwd".to_owned(),
        };
        let text = rustix::fs::readlinkat(&self.directory, link, Vec::new()).map_err(|errno| match errno {
            Errno::NOENT => Errno::BADF,
            errno => errno,
        })?;
        Ok(PathBuf::from(OsStr::from_bytes(text.as_bytes())))
    }

    /// What one of the links in its directory leads to.
    fn open(&self, link: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.directory, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }
}

/// What tells processes apart, and whose children they are.
pub(super) struct Identity {
    pid: u32,
    parent: u32,
    /// When it began, in ticks: tells processes of one number apart.
    since: u64,
}

impl Identity {
    /// That of the process that a thread belongs to.
    pub(super) fn of_thread(thread: u32) -> Result<Self, Errno> {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).map_err(|_| Errno::SRCH)?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok()).ok_or(Errno::SRCH)
        };
        let (pid, parent) = (field("Tgid:")?, field("PPid:")?);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| Errno::SRCH)?;
        // The name in brackets may hold anything; field 22 is the 20th behind it.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let since = fields.split_whitespace().nth(19).and_then(|text| text.parse().ok()).ok_or(Errno::SRCH)?;
        Ok(Self { pid, parent, since })
    }

    /// Its children, of all of its threads; none where the kernel does not list them.
    fn children(&self) -> Vec<Self> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let pids: Vec<u32> = lists.flat_map(|list| numbers(&list)).collect();
        pids.into_iter().filter_map(|pid| Self::of_thread(pid).ok()).collect()
    }
}

fn numbers(list: &str) -> Vec<u32> {
    list.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The credentials of all processes of one command. Most commands never change them.
pub(super) struct Processes {
    first: Credentials,
    /// Of those that have changed theirs, and of those whose parents have since they were made.
    known: HashMap<u32, (u64, Credentials)>,
}

impl Processes {
    /// The command begins with `first`.
    pub(super) fn new(first: Credentials) -> Self {
        Self { first, known: HashMap::new() }
    }

    /// Those of every process, as long as none has changed its own.
    pub(super) fn of_all(&self) -> Option<&Credentials> {
        self.known.is_empty().then_some(&self.first)
    }

    /// Those of a process; one that was not heard of has its parent's.
    pub(super) fn credentials(&self, process: &Identity) -> &Credentials {
        self.find(process).unwrap_or_else(|| self.inherited(process.parent))
    }

    /// Gives a process other ones. Its children keep what they have.
    pub(super) fn change(&mut self, process: &Identity, changed: Credentials) {
        let before = self.credentials(process).clone();
        if before == changed {
            return;
        }
        for child in process.children() {
            if self.find(&child).is_none() {
                self.known.insert(child.pid, (child.since, before.clone()));
            }
        }
        self.known.insert(process.pid, (process.since, changed));
    }

    fn find(&self, process: &Identity) -> Option<&Credentials> {
        let (since, credentials) = self.known.get(&process.pid)?;
        (*since == process.since).then_some(credentials)
    }

    fn inherited(&self, mut pid: u32) -> &Credentials {
        for _ in 0..MOST_ANCESTORS {
            let Some(process) = Identity::of_thread(pid).ok().filter(|_| pid != 0) else { break };
            if let Some(found) = self.find(&process) {
                return found;
            }
            pid = process.parent;
        }
        &self.first
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
        let process = Process::of_thread(std::process::id()).unwrap();
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
    fn a_process_that_has_gone_is_nobody_else() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let process = Process::of_thread(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.open_base(None).unwrap_err(), Errno::SRCH);
        assert!(Process::of_thread(child.id()).is_err());
    }

    #[test]
    fn children_begin_with_what_their_parents_are_and_keep_it() {
        let credentials = |id| Credentials::of_user(id, id, &[]);
        let mut processes = Processes::new(credentials(5));
        let own = Identity::of_thread(std::process::id()).unwrap();
        assert_eq!(processes.credentials(&own).user.real, 5);
        let elder = Child::new();
        processes.change(&own, credentials(5));
        assert!(processes.of_all().is_some(), "the same is no change");
        processes.change(&own, credentials(9));
        let younger = Child::new();
        let real = |child: &Child| processes.credentials(&Identity::of_thread(child.0.id()).unwrap()).user.real;
        assert_eq!((real(&elder), real(&younger)), (5, 9));
    }

    struct Child(std::process::Child);

    impl Child {
        fn new() -> Self {
            Self(std::process::Command::new("sleep").arg("5").spawn().unwrap())
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}
