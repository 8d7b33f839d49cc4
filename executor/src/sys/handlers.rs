//! Handlers for the programs of other machines (binfmt_misc) that only the processes of one user namespace have.
//!
//! Since Linux 6.7 every user namespace can have an instance of binfmt_misc. It is mounted and filled by a child in the
//! new namespace, which shares our memory and descriptors, and which we sleep for, as in [`super::spawn`]; the invariant
//! of that module holds here as well. Only the id maps have to be written from outside, by another thread of ours.

use std::ffi::{CStr, CString, c_int, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use super::spawn::{BlockedSignals, raw_errno};

/// A user namespace with handlers of its own. They are gone when it is dropped and nobody is in the namespace.
#[derive(Debug)]
pub struct HandlerNamespace {
    user: OwnedFd,
    /// Keeps the handlers.
    _instance: OwnedFd,
}

impl HandlerNamespace {
    /// For `setns(2)`.
    pub fn user_namespace(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }
}

/// Why there are no such handlers.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// A kernel call.
    #[error("{call}: {errno}")]
    Call {
        /// Which.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The ids of this process could not be mapped.
    #[error("mapping the ids of a user namespace: {0}")]
    Map(io::Error),
}

impl HandlerError {
    fn call(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Call { call, errno }
    }
}

/// What the child was doing.
#[derive(Clone, Copy)]
enum Stage {
    Ids,
    Share,
    Open,
    Create,
    Mount,
    Register,
}

impl Stage {
    fn call(self) -> &'static str {
        match self {
            Self::Ids => "waiting for the id maps",
            Self::Share => "sharing the emulator read-only",
            Self::Open => "fsopen of binfmt_misc",
            Self::Create => "making an instance of binfmt_misc",
            Self::Mount => "mounting binfmt_misc",
            Self::Register => "registering with binfmt_misc",
        }
    }
}

/// Makes a user namespace in which all ids of this process's mean the same as here, with one handler: the program at
/// `interpreter`. `registration` says it as the kernel's binfmt-misc.rst wants it, given a path of the interpreter: that
/// of a read-only mount, because what runs in it can reach its file as `/proc/PID/exe`. Linux ≥ 6.7.
///
/// # Errors
/// [`HandlerError`]: on older kernels, and where user namespaces are not allowed.
pub fn handler_namespace(
    interpreter: &CStr,
    registration: impl FnOnce(&str) -> Option<CString>,
) -> Result<HandlerNamespace, HandlerError> {
    // A descriptor whose number is known before the mount is made, which then takes its place.
    let place = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(HandlerError::call("reserving a descriptor"))?;
    let registration = registration(&format!("/proc/self/fd/{}", place.as_raw_fd()))
        .ok_or(HandlerError::Call { call: "naming the interpreter", errno: Errno::INVAL })?;
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (hear, tell) = rustix::pipe::pipe_with(flags).map_err(HandlerError::call("pipe"))?;
    let (wait, release) = rustix::pipe::pipe_with(flags).map_err(HandlerError::call("pipe"))?;
    std::thread::scope(|scope| {
        let mapper = scope.spawn(move || map_ids(&hear, &release));
        let child = run_child(Start {
            tell: tell.as_raw_fd(),
            wait: wait.as_raw_fd(),
            interpreter,
            place: place.as_raw_fd(),
            registration: &registration,
            failure: None,
            instance: -1,
        });
        // The mapper waits no longer when no child has spoken.
        drop(tell);
        let mapped = mapper.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        match (child, mapped) {
            (Err(HandlerError::Call { call, .. }), Err(error)) if call == Stage::Ids.call() => {
                Err(HandlerError::Map(error))
            }
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(HandlerError::Map(error)),
            (Ok(instance), Ok(user)) => Ok(HandlerNamespace { user, _instance: instance }),
        }
    })
}

/// Waits for the child's process id, writes its maps, lets it go on, and returns its user namespace.
fn map_ids(hear: &OwnedFd, release: &OwnedFd) -> io::Result<OwnedFd> {
    let mut pid = [0_u8; size_of::<libc::pid_t>()];
    if rustix::io::retry_on_intr(|| rustix::io::read(hear, &mut pid))? != pid.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let directory = format!("/proc/{}", libc::pid_t::from_ne_bytes(pid));
    for file in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(format!("/proc/self/{file}"))?;
        fs::write(format!("{directory}/{file}"), same_ids(&own))?;
    }
    let namespace = rustix::fs::open(format!("{directory}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(release, b"x")?;
    Ok(namespace)
}

/// A map under which the ids of a namespace with the map `own` keep their numbers.
fn same_ids(own: &str) -> String {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (first, count) = (fields.next()?, fields.nth(1)?);
            Some(format!("{first} {first} {count}\n"))
        })
        .collect()
}

/// What the child gets, and leaves.
struct Start<'a> {
    tell: RawFd,
    wait: RawFd,
    interpreter: &'a CStr,
    place: RawFd,
    registration: &'a CStr,
    failure: Option<(Stage, c_int)>,
    instance: RawFd,
}

/// The mounted instance that a child in new namespaces has made and filled.
fn run_child(mut start: Start<'_>) -> Result<OwnedFd, HandlerError> {
    const STACK_WORDS: usize = 64 * 1024 / size_of::<u128>();
    let mut stack = vec![0_u128; STACK_WORDS];
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
    let flags = flags | libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
    let was_dumpable = rustix::process::dumpable_behavior();
    let blocked = BlockedSignals::block_all();
    // SAFETY: as in `super::spawn`: the stack is aligned and outlives the child, which ends before `clone` returns here
    // (`CLONE_VFORK`, and it executes nothing); so does `start`. The fifth argument takes the descriptor.
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let argument = ptr::from_mut(&mut start).cast::<c_void>();
        libc::clone(child, top, flags, argument, ptr::from_mut(&mut pidfd))
    };
    // Read before anything else can change it; it means something only after a failure.
    let errno = raw_errno();
    drop(blocked);
    if let Ok(behavior) = was_dumpable {
        let _ = rustix::process::set_dumpable_behavior(behavior);
    }
    if pid < 0 {
        let errno = Errno::from_raw_os_error(errno);
        return Err(HandlerError::Call { call: "making a user namespace", errno });
    }
    // SAFETY: the kernel has made this descriptor for us; nobody else has it.
    let process = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let _ =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED));
    // SAFETY: `start` is initialised; the child has written to it behind the compiler's back.
    let (failure, instance) =
        unsafe { (ptr::read_volatile(&raw const start.failure), ptr::read_volatile(&raw const start.instance)) };
    // SAFETY: a descriptor that the child has opened in the table it shared with us; nobody else has it.
    let instance = (instance >= 0).then(|| unsafe { OwnedFd::from_raw_fd(instance) });
    match (failure, instance) {
        (None, Some(instance)) => Ok(instance),
        (Some((stage, errno)), _) => {
            Err(HandlerError::Call { call: stage.call(), errno: Errno::from_raw_os_error(errno) })
        }
        (None, None) => Err(HandlerError::Call { call: "making handlers", errno: Errno::CHILD }),
    }
}

/// The child: no allocation, no lock, no panic.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run_child` passes its `Start`, which it does not touch until we are done.
    let start = unsafe { &mut *argument.cast::<Start<'_>>() };
    start.failure = fill(start).err();
    // SAFETY: ends the process without running destructors of memory that is not ours.
    unsafe { libc::_exit(0) }
}

fn fill(start: &mut Start<'_>) -> Result<(), (Stage, c_int)> {
    let check = |result: libc::c_long, stage: Stage| if result < 0 { Err((stage, raw_errno())) } else { Ok(result) };
    let mut answer = [0_u8; 1];
    // SAFETY: buffers are live and as long as said.
    let released = unsafe {
        let pid = libc::getpid().to_ne_bytes();
        libc::write(start.tell, pid.as_ptr().cast(), pid.len());
        // The mapper holds the other end of `wait` and closes it when it fails: then there is nothing to read.
        libc::read(start.wait, answer.as_mut_ptr().cast(), 1)
    };
    if released != 1 {
        return Err((Stage::Ids, libc::EPERM));
    }
    // SAFETY: NUL-terminated names, numbers, a live request of the size given, and descriptors that were just opened and
    // are closed once; the mounted instance stays open for our parent. `place` is our parent's, who sleeps.
    unsafe {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let mount = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, start.interpreter.as_ptr(), flags);
        let mount = check(mount, Stage::Share)?;
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        let request = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let result = libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        );
        let placed = check(result, Stage::Share)
            .and_then(|_| check(libc::dup3(mount as c_int, start.place, libc::O_CLOEXEC).into(), Stage::Share));
        libc::close(mount as c_int);
        placed?;
        let context =
            check(libc::syscall(libc::SYS_fsopen, c"binfmt_misc".as_ptr(), libc::FSOPEN_CLOEXEC), Stage::Open)?;
        let created = libc::syscall(
            libc::SYS_fsconfig,
            context,
            libc::FSCONFIG_CMD_CREATE,
            ptr::null::<c_void>(),
            ptr::null::<c_void>(),
            0,
        );
        let created = check(created, Stage::Create);
        let mounted = created
            .and_then(|_| check(libc::syscall(libc::SYS_fsmount, context, libc::FSMOUNT_CLOEXEC, 0), Stage::Mount));
        libc::close(context as c_int);
        start.instance = mounted? as c_int;
        let file = libc::openat(start.instance, c"register".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file.into(), Stage::Register)?;
        let bytes = start.registration.to_bytes();
        let written = libc::write(file, bytes.as_ptr().cast(), bytes.len());
        let result = check(written as libc::c_long, Stage::Register);
        libc::close(file);
        result.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_numbers() {
        assert_eq!(same_ids("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(same_ids("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(same_ids(""), "");
    }
}
