//! What happens in the child, under the invariant of the parent module: no allocation, no lock, no panic.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::ptr;

use super::script::leads_to;
use super::{
    Capabilities, FilterInstruction, Identity, LateMount, Listener, MountCall, Plan, Program, Session, Stage, Start,
    raw_errno,
};

type Step<T = ()> = Result<T, (Stage, c_int)>;

/// The child's first and last function.
pub(super) extern "C" fn run_child(argument: *mut c_void) -> c_int {
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
    if !plan.pid_namespace {
        // What the first process of a namespace is anyway: whoever loses its parent becomes its child, and ours in the end.
        // SAFETY: only numbers. It stays over `execve`; a kernel that lacks it has no more to offer.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    }
    let mut is_ours = true;
    for (index, mount) in plan.mounts.iter().enumerate() {
        match (mount, perform_mount(mount, is_ours)) {
            (LateMount::Call(call), Err(libc::EPERM)) if call.has_substitute => is_ours = false,
            (_, result) => result.map_err(|errno| (Stage::Mount(index), errno))?,
        }
    }
    for (index, (resource, limit)) in plan.limits.iter().enumerate() {
        // SAFETY: pid 0 is this process; `limit` is live and only read; no old value is asked for.
        let result = unsafe {
            libc::syscall(libc::SYS_prlimit64, 0, *resource, ptr::from_ref(limit), ptr::null_mut::<libc::rlimit64>())
        };
        check(result, Stage::Limit(index))?;
    }
    if let Some(root) = &plan.root {
        // SAFETY: both paths are NUL-terminated. The mask of modes is the child's own, as its root is.
        unsafe {
            check(libc::chroot(root.as_ptr()).into(), Stage::Root)?;
            check(libc::chdir(c"/".as_ptr()).into(), Stage::Root)?;
            libc::umask(0o022);
        }
    }
    // SAFETY: the directory is NUL-terminated.
    check(unsafe { libc::chdir(plan.directory.as_ptr()) }.into(), Stage::Directory)?;
    if let Some(namespace) = plan.user_namespace {
        // SAFETY: only numbers. Possible while memory is shared, because our thread group and file system state are not.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) }.into(), Stage::UserNamespace)?;
    }
    if let Some(filter) = plan.filter {
        install_filter(filter)?;
    }
    if let Some(listener) = &plan.listener {
        install_listener(listener)?;
    }
    become_user(&plan.identity, plan.listener.is_some())?;
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

/// With a substitute in the place of a mount of ours, nothing is written: it is somebody else's.
fn perform_mount(mount: &LateMount, is_ours: bool) -> Result<(), c_int> {
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
        LateMount::Write { target, content } => {
            if is_ours {
                write_file(target, content);
            }
            Ok(())
        }
    }
}

fn write_file(path: &CStr, content: &CStr) {
    // SAFETY: the path is NUL-terminated, the length is that of the live content, the descriptor is ours.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, content.as_ptr().cast(), content.count_bytes());
            libc::close(file);
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

/// Installs a filter and sends its listener away.
fn install_listener(listener: &Listener<'_>) -> Step {
    /// Room for one descriptor.
    #[repr(C)]
    union Room {
        header: libc::cmsghdr,
        bytes: [u8; 64],
    }
    let Ok(len) = libc::c_ushort::try_from(listener.filter.len()) else { return Err((Stage::Filter, libc::EINVAL)) };
    let program = libc::sock_fprog { len, filter: listener.filter.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: `program` describes exactly the live slice; the kernel copies and only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, ptr::from_ref(&program)) };
    check(fd, Stage::Filter)?;
    let mut room = Room { bytes: [0; 64] };
    let mut byte = 0_u8;
    let mut piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all-zero is a value of `msghdr`; the header of the control message lies in `room`, which is aligned for it
    // and has room for it and one descriptor; everything that the message points to lives across the call.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<c_int>(), fd as c_int);
        libc::sendmsg(listener.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    check(sent as libc::c_long, Stage::Filter)
}

/// With `ids_are_pretended`, who it is is somebody else's business: the first one, all the same, for the kernel.
fn become_user(identity: &Identity, ids_are_pretended: bool) -> Step {
    // The raw calls are used on purpose: the C library's would change all threads of the process whose memory we share.
    if let Capabilities::Bounded(keep) = identity.capabilities {
        bound_capabilities(keep);
    }
    // SAFETY: the pointer and length are those of a live list of 32-bit ids; the other calls take numbers.
    unsafe {
        if let Some(groups) = &identity.groups {
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), Stage::Identity)?;
        }
        if !ids_are_pretended {
            check(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid), Stage::Identity)?;
        }
        if matches!(identity.capabilities, Capabilities::Given(_)) {
            check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into(), Stage::Identity)?;
        }
        if !ids_are_pretended {
            check(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid), Stage::Identity)?;
        }
    }
    match identity.capabilities {
        Capabilities::Bounded(keep) if identity.uid == 0 || ids_are_pretended => set_capabilities(keep, 0),
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
