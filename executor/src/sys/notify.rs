//! System calls that another process answers: the kernel's side of a filter with a listener. Linux ≥ 5.5.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// `struct seccomp_data`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Data {
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    data: Data,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `_IOWR('!', 0, struct seccomp_notif)` and its neighbours, as on every machine that we know.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const IS_VALID: libc::c_ulong = 0x4008_2102;

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct PendingCall {
    id: u64,
    /// The thread that made it, as this process numbers it.
    pub thread: u32,
    /// Its number.
    pub number: i32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// The next call; blocks. `NOENT` when its thread has gone meanwhile.
///
/// # Errors
/// The kernel's.
pub fn receive(listener: BorrowedFd<'_>) -> Result<PendingCall, Errno> {
    let mut call = Notification::default();
    // SAFETY: the structure has the kernel's layout, is zeroed as the kernel demands, and lives across the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) };
    check(result)?;
    let Notification { id, pid, data, .. } = call;
    Ok(PendingCall { id, thread: pid, number: data.number, arguments: data.arguments })
}

/// Whether the thread of a call still waits: what was found out by its number since is about no other thread.
pub fn is_pending(listener: BorrowedFd<'_>, call: &PendingCall) -> bool {
    // SAFETY: the kernel reads one number, which lives across the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID, &raw const call.id) == 0 }
}

/// Answers a call as if the kernel had. `NOENT` when nobody waits any more.
///
/// # Errors
/// The kernel's.
pub fn answer(listener: BorrowedFd<'_>, call: &PendingCall, result: Result<i64, Errno>) -> Result<(), Errno> {
    let (value, error) = match result {
        Ok(value) => (value, 0),
        Err(errno) => (0, -errno.raw_os_error()),
    };
    let response = Response { id: call.id, value, error, flags: 0 };
    // SAFETY: the structure has the kernel's layout and lives across the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const response) })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 { Err(super::spawn::last_errno()) } else { Ok(()) }
}

/// A descriptor that came through a socket; `None` at the socket's end.
///
/// # Errors
/// The kernel's.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut pieces = [std::io::IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let found = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(found)
}
