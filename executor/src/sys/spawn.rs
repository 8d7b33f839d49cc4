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

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

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
    /// System call filter, installed before privileges are dropped.
    pub filter: Option<&'a [FilterInstruction]>,
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

/// A mount that the child makes.
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
    /// Installing the system call filter.
    Filter,
    /// Entering the working directory.
    Directory,
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
    let child = Child { pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
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

/// Whether [`Plan::birth_cgroup`] works: `clone3(2)` is there (filters around us may hide it). Linux ≥ 5.7.
pub fn can_start_in_cgroup() -> bool {
    // SAFETY: a size of zero is refused before anything is read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<libc::clone_args>(), 0) };
    let known = result < 0 && raw_errno() == libc::EINVAL;
    known && cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) && kernel_at_least(5, 7)
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Wider than the type of the other flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3(2)` with `CLONE_INTO_CGROUP`; the child runs [`run_child`] on `stack`. The process id, or -1 and `errno`.
fn clone_into(
    group: BorrowedFd<'_>,
    stack: &mut [u128],
    flags: c_int,
    argument: *mut c_void,
    pidfd: &mut c_int,
) -> libc::c_long {
    // In `clone3` the signal has a field of its own.
    let flags = u64::from((flags & !libc::SIGCHLD).cast_unsigned());
    let request = libc::clone_args {
        flags: flags | CLONE_INTO_CGROUP,
        pidfd: ptr::from_mut(pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack) as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: group.as_raw_fd() as u64,
    };
    let result = clone3_and_call(&request, argument);
    if result < 0 {
        // SAFETY: the thread's own `errno`, as the C library's wrappers set it.
        unsafe { *libc::__errno_location() = c_int::try_from(-result).unwrap_or(libc::EIO) };
        return -1;
    }
    result
}

/// The call itself: the C library has no wrapper for it. The kernel's answer, negative numbers are errors.
#[cfg(target_arch = "x86_64")]
fn clone3_and_call(request: &libc::clone_args, argument: *mut c_void) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the same obligations as for `libc::clone` above. The child begins behind `syscall` with its own stack
    // (aligned to 16, so that a call finds it as the ABI wants) and all registers as here; it only calls `run_child`,
    // which does not return. The parent's stack is not touched by the child.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(request),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            in("r13") run_child as extern "C" fn(*mut c_void) -> c_int,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The call itself: the C library has no wrapper for it. The kernel's answer, negative numbers are errors.
#[cfg(target_arch = "aarch64")]
fn clone3_and_call(request: &libc::clone_args, argument: *mut c_void) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the same obligations as for `libc::clone` above. The child begins behind `svc` with its own stack and all
    // registers as here; it only calls `run_child`, which does not return. The parent's stack is not touched by it.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            inlateout("x0") ptr::from_ref(request) => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") argument,
            in("x21") run_child as extern "C" fn(*mut c_void) -> c_int,
        );
    }
    result
}

/// Not on this machine; see [`can_start_in_cgroup`].
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clone3_and_call(_request: &libc::clone_args, _argument: *mut c_void) -> libc::c_long {
    -libc::c_long::from(libc::ENOSYS)
}

/// What the child gets: the plan, and a place for its report.
struct Start<'a> {
    plan: &'a Plan<'a>,
    failure: Option<(Stage, c_int)>,
}

/// All signals of this thread blocked; the old mask comes back on drop.
struct BlockedSignals {
    old: libc::sigset_t,
}

impl BlockedSignals {
    fn block_all() -> Self {
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

fn last_errno() -> Errno {
    Errno::from_raw_os_error(raw_errno())
}

fn raw_errno() -> c_int {
    // SAFETY: the C library gives every thread its own `errno`; the child uses that of the thread that sleeps for it.
    unsafe { *libc::__errno_location() }
}

// ---- from here on everything runs in the child, under the module's invariant

type Step<T = ()> = Result<T, (Stage, c_int)>;

extern "C" fn run_child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Start`, which it does not touch until we are done.
    let start = unsafe { &mut *argument.cast::<Start<'_>>() };
    let Err(failure) = prepare_and_exec(start.plan);
    start.failure = Some(failure);
    // SAFETY: ends the process at once, without running destructors of memory that is not ours.
    unsafe { libc::_exit(127) }
}

fn prepare_and_exec(plan: &Plan<'_>) -> Result<Infallible, (Stage, c_int)> {
    reset_signals();
    join_cgroups(plan)?;
    place_stdio(&plan.stdio)?;
    make_session(plan.session)?;
    for (index, mount) in plan.mounts.iter().enumerate() {
        perform_mount(mount).map_err(|errno| (Stage::Mount(index), errno))?;
    }
    for (index, (resource, limit)) in plan.limits.iter().enumerate() {
        // SAFETY: pid 0 is this process; `limit` is live and only read; no old value is asked for.
        let result = unsafe {
            libc::syscall(libc::SYS_prlimit64, 0, *resource, ptr::from_ref(limit), ptr::null_mut::<libc::rlimit64>())
        };
        check(result, Stage::Limit(index))?;
    }
    // SAFETY: the directory is NUL-terminated.
    check(unsafe { libc::chdir(plan.directory.as_ptr()) }.into(), Stage::Directory)?;
    if let Some(filter) = plan.filter {
        install_filter(filter)?;
    }
    become_user(&plan.identity)?;
    die_with_parent(plan.parent.as_raw_fd())?;
    Err((Stage::Exec, exec(&plan.program, plan.forbidden)))
}

fn check(result: libc::c_long, stage: Stage) -> Step {
    if result < 0 { Err((stage, raw_errno())) } else { Ok(()) }
}

/// Every signal back to its default, none blocked: what a program may expect.
fn reset_signals() {
    // SAFETY: all-zero `sigaction` and `sigset_t` are values (default action, empty set). Numbers that cannot be changed
    // are refused by the kernel, which is fine. The table of handlers is a copy (no `CLONE_SIGHAND`).
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let none: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

fn join_cgroups(plan: &Plan<'_>) -> Step {
    for group in &plan.cgroups {
        // SAFETY: one byte of a static string; `0` stands for the writing process.
        let written = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        if written < 0 {
            return Err((Stage::Cgroup, raw_errno()));
        }
    }
    if plan.cgroup_namespace {
        // SAFETY: has no pointers.
        check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into(), Stage::Cgroup)?;
    }
    Ok(())
}

fn place_stdio(stdio: &[BorrowedFd<'_>; 3]) -> Step {
    for (place, fd) in (0..).zip(stdio) {
        let fd: RawFd = fd.as_raw_fd();
        // SAFETY: only numbers; the child's table is its own. `dup2` onto itself would keep close-on-exec, but standard
        // descriptors that are already in place do not have it.
        if fd != place && unsafe { libc::dup2(fd, place) } < 0 {
            return Err((Stage::Stdio, raw_errno()));
        }
    }
    // Whatever another thread may have opened without close-on-exec stays out of the container. Kernels before 5.11
    // lack the flag; all our own descriptors have close-on-exec anyway.
    // SAFETY: only numbers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

fn make_session(session: Session) -> Step {
    if session == Session::Shared {
        return Ok(());
    }
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() }.into(), Stage::Session)?;
    if session == Session::OwnWithTerminal {
        // SAFETY: only numbers.
        check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into(), Stage::Session)?;
    }
    Ok(())
}

fn perform_mount(mount: &LateMount) -> Result<(), c_int> {
    match mount {
        LateMount::Call(call) => perform_call(call),
        LateMount::Attach { mount, target } => {
            // SAFETY: both paths are NUL-terminated and live.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_move_mount,
                    mount.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_FDCWD,
                    target.as_ptr(),
                    libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
                )
            };
            if result < 0 { Err(raw_errno()) } else { Ok(()) }
        }
    }
}

fn perform_call(call: &MountCall) -> Result<(), c_int> {
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is null or a live NUL-terminated string; the kernel copies them.
    let result = unsafe {
        libc::mount(
            pointer(&call.source),
            call.target.as_ptr(),
            pointer(&call.kind),
            call.flags,
            pointer(&call.options).cast(),
        )
    };
    match if result < 0 { raw_errno() } else { 0 } {
        0 => Ok(()),
        libc::ENOENT if call.optional => Ok(()),
        errno => Err(errno),
    }
}

fn install_filter(filter: &[FilterInstruction]) -> Step {
    let Ok(len) = libc::c_ushort::try_from(filter.len()) else { return Err((Stage::Filter, libc::EINVAL)) };
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` describes exactly the live slice; the kernel copies and only reads it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program)) };
    check(result, Stage::Filter)
}

fn become_user(identity: &Identity) -> Step {
    // The raw calls are used on purpose: the C library's would change all threads of the process whose memory we share.
    if let Capabilities::Bounded(keep) = identity.capabilities {
        bound_capabilities(keep);
    }
    // SAFETY: the pointer and length are those of a live list of 32-bit ids; the other calls take numbers.
    unsafe {
        if let Some(groups) = &identity.groups {
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), Stage::Identity)?;
        }
        check(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid), Stage::Identity)?;
        if matches!(identity.capabilities, Capabilities::Given(_)) {
            check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into(), Stage::Identity)?;
        }
        check(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid), Stage::Identity)?;
    }
    match identity.capabilities {
        Capabilities::Bounded(keep) if identity.uid == 0 => set_capabilities(keep, 0),
        // The kernel has taken them away with the user.
        Capabilities::Bounded(_) => Ok(()),
        Capabilities::Given(set) => {
            set_capabilities(set, set)?;
            raise_ambient(set);
            Ok(())
        }
    }
}

fn bound_capabilities(keep: u64) {
    for capability in 0..64_u32 {
        if keep & (1_u64 << capability) == 0 {
            // SAFETY: only numbers. Fails for numbers that this kernel does not know.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        }
    }
}

fn raise_ambient(set: u64) {
    for capability in (0..64_u32).filter(|capability| set & (1_u64 << capability) != 0) {
        // SAFETY: only numbers. Fails for numbers that this kernel does not know.
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::c_ulong::from(libc::PR_CAP_AMBIENT_RAISE as libc::c_uint),
                libc::c_ulong::from(capability),
                0,
                0,
            )
        };
    }
}

fn set_capabilities(held: u64, inheritable: u64) -> Step {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
    const VERSION_3: u32 = 0x2008_0522;
    /// `struct __user_cap_header_struct`.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    /// `struct __user_cap_data_struct`.
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let word = |shift: u32| {
        let held = (held >> shift) as u32;
        Data { effective: held, permitted: held, inheritable: (inheritable >> shift) as u32 }
    };
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [word(0), word(32)];
    // SAFETY: header and data have the kernel's layout for this version and live across the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), data.as_ptr()) };
    check(result, Stage::Identity)
}

/// Asks for `SIGKILL` when the thread that made us ends. Comes last: a change of user clears the wish.
fn die_with_parent(parent: RawFd) -> Step {
    let mut poll = libc::pollfd { fd: parent, events: libc::POLLIN, revents: 0 };
    // SAFETY: numbers, and one live `pollfd`.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0).into(), Stage::ParentDeath)?;
        check(libc::poll(&raw mut poll, 1, 0).into(), Stage::ParentDeath)?;
    }
    if poll.revents == 0 { Ok(()) } else { Err((Stage::ParentDeath, libc::ESRCH)) }
}

/// Tries the candidates; returns only with the error number that says most.
fn exec(program: &Program, forbidden: (u64, u64)) -> c_int {
    let mut answer = libc::ENOENT;
    for candidate in &program.candidates {
        let candidate: &CStr = candidate;
        if leads_to(candidate, forbidden) {
            return libc::EACCES;
        }
        // SAFETY: a NUL-terminated path and two null-terminated lists of live strings.
        unsafe {
            libc::execve(
                candidate.as_ptr(),
                program.arguments.pointers.as_ptr(),
                program.environment.pointers.as_ptr(),
            );
        }
        match raw_errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => answer = libc::EACCES,
            errno => return errno,
        }
    }
    answer
}

/// Interpreters of interpreters, as in the kernel.
const MOST_INTERPRETERS: usize = 5;

/// What the kernel reads of a script.
const SCRIPT_BYTES: usize = 256;

/// Whether `path` is the file `forbidden`, or a script whose interpreter is.
///
/// Until `execve` our own program is the child's `/proc/self/exe`. A root with `#!/proc/self/exe` in a script would run
/// the host's file, and could then open it for writing (CVE-2019-5736 in other runtimes).
fn leads_to(path: &CStr, forbidden: (u64, u64)) -> bool {
    let mut name = [0_u8; SCRIPT_BYTES + 1];
    let mut current = path;
    for _ in 0..MOST_INTERPRETERS {
        // SAFETY: a NUL-terminated path.
        let fd = unsafe { libc::open(current.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC) };
        if fd < 0 {
            return false;
        }
        let mut text = [0_u8; SCRIPT_BYTES];
        // SAFETY: all-zero is a value of `stat`; the buffer has the length given. The descriptor is ours, and is closed
        // once.
        let (known, read) = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            let known = libc::fstat(fd, &raw mut stat) == 0;
            let read = libc::read(fd, text.as_mut_ptr().cast(), SCRIPT_BYTES);
            libc::close(fd);
            (known.then_some((stat.st_dev, stat.st_ino)), read)
        };
        if known == Some(forbidden) {
            return true;
        }
        let text = text.get(..usize::try_from(read).unwrap_or(0)).unwrap_or_default();
        let Some(interpreter) = interpreter(text) else { return false };
        name.fill(0);
        for (slot, byte) in name.iter_mut().zip(interpreter) {
            *slot = *byte;
        }
        let Ok(next) = CStr::from_bytes_until_nul(&name) else { return false };
        current = next;
    }
    false
}

/// The path behind `#!`.
fn interpreter(text: &[u8]) -> Option<&[u8]> {
    let line = text.strip_prefix(b"#!")?.trim_ascii_start();
    line.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next().filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_found_as_the_kernel_finds_them() {
        let cases: &[(&[u8], Option<&[u8]>)] = &[
            (b"#!/bin/sh\necho", Some(b"/bin/sh")),
            (b"#! /bin/sh -e\n", Some(b"/bin/sh")),
            (b"#!/x", Some(b"/x")),
            (b"#!\n", None),
            (b"\x7fELF", None),
            (b"", None),
        ];
        for (text, want) in cases {
            assert_eq!(interpreter(text), *want);
        }
    }

    #[test]
    fn scripts_lead_to_their_interpreters() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("target"), "binary").unwrap();
        std::fs::write(path("script"), format!("#!{}\n", path("link").display())).unwrap();
        std::fs::write(path("outer"), format!("#!{} -x\n", path("script").display())).unwrap();
        std::fs::write(path("loop"), format!("#!{}\n", path("loop").display())).unwrap();
        std::os::unix::fs::symlink("target", path("link")).unwrap();
        let target = std::fs::metadata(path("target")).unwrap();
        let leads = |name: &str| {
            let name = CString::new(path(name).to_str().unwrap()).unwrap();
            leads_to(&name, (target.dev(), target.ino()))
        };
        for (name, want) in [("target", true), ("link", true), ("script", true), ("outer", true), ("loop", false)] {
            assert_eq!(leads(name), want, "{name}");
        }
        assert!(!leads("missing"));
    }
}
