//! Starts a program as the first process of a new pid namespace, from a program with many threads.
//!
//! The child is made as `posix_spawn` makes it: it shares our memory, runs on a stack of its own, and the calling
//! thread sleeps until it has called `execve` or has failed (`CLONE_VM | CLONE_VFORK`). So no page table is copied, and
//! it does not matter how large we are.
//!
//! **Invariant:** between `clone` and `execve` the child allocates nothing, takes no lock, unwinds nothing and runs no
//! handler of ours (all signals are blocked, then reset). Everything it needs lies ready in a [`Plan`]; what went wrong
//! it leaves in memory that the sleeping thread reads afterwards. The file table, the root and the working directory
//! are the child's own copies.

mod child;
mod clone;
mod script;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

pub use clone::can_start_in_cgroup;

use child::run_child;
use clone::clone_into;

/// One instruction of a system call filter.
pub type FilterInstruction = libc::sock_filter;

/// A limit as the kernel takes it.
pub type Limit = libc::rlimit64;

/// Everything the child does, in the order of the fields.
pub struct Plan<'a> {
    /// Whether it is the first process of a new pid namespace.
    pub pid_namespace: bool,
    /// The directory of the unified control group that it is born into; cheap, where joining one afterwards waits for
    /// all processors. Needs [`can_start_in_cgroup`].
    pub birth_cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files of further control groups, which it joins.
    pub cgroups: Vec<BorrowedFd<'a>>,
    /// Whether its control group becomes the root of a new control group namespace.
    pub cgroup_namespace: bool,
    /// Standard input, output and error; descriptors up to 2 must be in their own place.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Which session it is in.
    pub session: Session,
    /// Mounts that have to be made inside the new pid namespace, in order.
    pub mounts: Vec<LateMount>,
    /// Resource limits: number and value.
    pub limits: Vec<(u32, Limit)>,
    /// Its root, if that is not the calling thread's.
    pub root: Option<CString>,
    /// A user namespace that it enters once everything is mounted.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// System call filter, installed before privileges are dropped.
    pub filter: Option<&'a [FilterInstruction]>,
    /// Calls that are answered by somebody else; its ids then stay as they are, whatever [`Plan::identity`] says.
    pub listener: Option<Listener<'a>>,
    /// Working directory, entered before privileges are dropped.
    pub directory: CString,
    /// Who it is.
    pub identity: Identity,
    /// The descriptor of our own process: the child ends if we are gone before it could ask for a signal then.
    pub parent: BorrowedFd<'a>,
    /// Device and inode of our own program file: the child refuses to execute it (see [`leads_to`]).
    pub forbidden: (u64, u64),
    /// What it runs.
    pub program: Program,
}

/// A second filter, whose verdict on calls can be to ask.
#[derive(Clone, Copy)]
pub struct Listener<'a> {
    /// The filter.
    pub filter: &'a [FilterInstruction],
    /// Where the descriptor of those who answer is sent.
    pub socket: BorrowedFd<'a>,
}

/// The session of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Its own, without a terminal.
    Own,
    /// Its own; standard input is the controlling terminal.
    OwnWithTerminal,
    /// Ours.
    Shared,
}

/// A mount that the child makes, or what it does with one.
pub enum LateMount {
    /// `mount(2)`.
    Call(MountCall),
    /// `move_mount(2)` of a detached mount onto a path.
    Attach {
        /// The mount.
        mount: OwnedFd,
        /// Where.
        target: CString,
    },
    /// `write(2)` to a file that a mount before this one has brought. No matter if it fails. Not done when a mount was
    /// forbidden and has a substitute ([`MountCall::has_substitute`]).
    Write {
        /// Which file.
        target: CString,
        /// What is written.
        content: &'static CStr,
    },
}

/// The arguments of `mount(2)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountCall {
    /// The device, or what is bound.
    pub source: Option<CString>,
    /// Where.
    pub target: CString,
    /// The type of file system.
    pub kind: Option<CString>,
    /// `MS_*`.
    pub flags: libc::c_ulong,
    /// Options.
    pub options: Option<CString>,
    /// Whether a missing target is nothing to worry about.
    pub optional: bool,
    /// Whether it is nothing to worry about that the kernel forbids it: something else lies at the target.
    pub has_substitute: bool,
}

/// Ids, groups and capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None` leaves them (a user namespace may refuse `setgroups`).
    pub groups: Option<Vec<u32>>,
    /// Capabilities.
    pub capabilities: Capabilities,
}

/// Capabilities of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// This set bounds what it can ever have; root also has it, other users have none.
    Bounded(u64),
    /// This set, in every one of its five sets, for any user.
    Given(u64),
}

/// A program with its arguments and environment.
pub struct Program {
    candidates: Vec<CString>,
    arguments: CStrings,
    environment: CStrings,
}

impl Program {
    /// `candidates` are tried in order, as `execvp` does with the directories of `PATH`.
    pub fn new(candidates: Vec<CString>, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        Self { candidates, arguments: CStrings::new(arguments), environment: CStrings::new(environment) }
    }
}

/// C strings with the null-terminated pointer list that `execve` takes.
struct CStrings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStrings {
    fn new(strings: Vec<CString>) -> Self {
        // The characters live on the heap: moving the vector does not move them.
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// What the child was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Joining its control group, or making a namespace of it.
    Cgroup,
    /// Putting standard input, output and error in place.
    Stdio,
    /// Making a session.
    Session,
    /// The mount of that index in [`Plan::mounts`].
    Mount(usize),
    /// The limit of that index in [`Plan::limits`].
    Limit(usize),
    /// Changing the root.
    Root,
    /// Entering the working directory.
    Directory,
    /// Entering the user namespace.
    UserNamespace,
    /// Installing the system call filter.
    Filter,
    /// Becoming the user.
    Identity,
    /// Arranging to be killed when we are.
    ParentDeath,
    /// `execve`.
    Exec,
}

/// Why nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnError {
    /// `clone(2)` failed.
    Clone(Errno),
    /// The child failed.
    Child {
        /// At what.
        stage: Stage,
        /// Why.
        errno: Errno,
    },
}

/// A started process. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    pid: i32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Killed(i32),
}

impl Child {
    /// Its number; another process may have it once this one was waited for.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Reaps the process, waiting for its end.
    ///
    /// # Errors
    /// `CHILD` when something else has reaped it.
    pub fn wait(&self) -> Result<Ended, Errno> {
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED))
            .map(|status| status.map_or(Ended::Exited(0), |status| ended(&status)))
    }
}

fn ended(status: &WaitIdStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, signal) => Ended::Killed(signal.unwrap_or(libc::SIGKILL)),
    }
}

/// `clone(2)`, then everything in `plan`, then `execve(2)`. Linux ≥ 5.4 (`waitid` on descriptors).
///
/// The child is killed when the *calling thread* ends: call from a thread that outlives it.
///
/// # Errors
/// [`SpawnError`]; then no process is left.
pub fn spawn(plan: &Plan<'_>) -> Result<Child, SpawnError> {
    /// Enough for a handful of small frames, also unoptimised.
    const STACK_WORDS: usize = 128 * 1024 / size_of::<u128>();
    let mut stack = vec![0_u128; STACK_WORDS];
    let mut start = Start { plan, failure: None };
    let mut pidfd: c_int = -1;
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    if plan.pid_namespace {
        flags |= libc::CLONE_NEWPID;
    }
    let was_dumpable = rustix::process::dumpable_behavior();
    let blocked = BlockedSignals::block_all();
    let argument = ptr::from_mut(&mut start).cast::<c_void>();
    let pid = match plan.birth_cgroup {
        Some(group) => clone_into(group, &mut stack, flags, argument, &mut pidfd),
        // SAFETY: the stack grows down from its end, is aligned to 16 and outlives the child's use of our memory, which
        // ends before `clone` returns here (`CLONE_VFORK`); so do `start` and everything it borrows. `run_child` keeps to
        // the module's invariant. The fifth argument is where `CLONE_PIDFD` stores the descriptor.
        None => unsafe {
            let top = stack.as_mut_ptr_range().end.cast::<c_void>();
            libc::clone(run_child, top, flags, argument, ptr::from_mut(&mut pidfd)).into()
        },
    };
    let clone_errno = last_errno();
    drop(blocked);
    // A child that changes its user while it shares our memory makes that memory undumpable.
    if let Ok(behavior) = was_dumpable {
        let _ = rustix::process::set_dumpable_behavior(behavior);
    }
    if pid < 0 {
        return Err(SpawnError::Clone(clone_errno));
    }
    // SAFETY: `clone` succeeded with `CLONE_PIDFD`: the kernel has given us this new descriptor, and nobody else has it.
    let child = Child { pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) }, pid: i32::try_from(pid).unwrap_or(0) };
    // SAFETY: `start` is on this stack and initialised. The child has written to it behind the compiler's back (its
    // address went to `clone` as a mutable pointer, so a fresh read is due).
    let failure = unsafe { ptr::read_volatile(&raw const start.failure) };
    match failure {
        None => Ok(child),
        Some((stage, errno)) => {
            // It exits right after its report; nothing useful can be done if it was reaped by someone else.
            let _ = child.wait();
            Err(SpawnError::Child { stage, errno: Errno::from_raw_os_error(errno) })
        }
    }
}

/// What the child gets: the plan, and a place for its report.
struct Start<'a> {
    plan: &'a Plan<'a>,
    failure: Option<(Stage, c_int)>,
}

/// All signals of this thread blocked; the old mask comes back on drop.
pub(super) struct BlockedSignals {
    old: libc::sigset_t,
}

impl BlockedSignals {
    pub(super) fn block_all() -> Self {
        // SAFETY: `sigset_t` is plain data, for which all zeroes is a value; both calls get live, exclusive pointers.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            Self { old }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `old` is a mask that `pthread_sigmask` has filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.old, ptr::null_mut()) };
    }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_raw_os_error(raw_errno())
}

pub(super) fn raw_errno() -> c_int {
    // SAFETY: the C library gives every thread its own `errno`; the child uses that of the thread that sleeps for it.
    unsafe { *libc::__errno_location() }
}
