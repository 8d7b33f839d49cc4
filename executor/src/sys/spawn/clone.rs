//! `clone3(2)`, for which the C library has no wrapper.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use super::child::run_child;
use super::raw_errno;
use crate::sys::release::kernel_is_at_least;

/// Whether [`Plan::birth_cgroup`] works: `clone3(2)` is there (filters around us may hide it). Linux ≥ 5.7.
pub fn can_start_in_cgroup() -> bool {
    // SAFETY: a size of zero is refused before anything is read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<libc::clone_args>(), 0) };
    let known = result < 0 && raw_errno() == libc::EINVAL;
    known && cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) && kernel_is_at_least((5, 7))
}

/// Wider than the type of the other flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3(2)` with `CLONE_INTO_CGROUP`; the child runs [`run_child`] on `stack`. The process id, or -1 and `errno`.
pub(super) fn clone_into(
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
