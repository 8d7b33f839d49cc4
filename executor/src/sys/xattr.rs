//! Extended attributes of names in a directory: `getxattrat(2)`, Linux ≥ 6.13.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// `__NR_getxattrat`, the same on every architecture.
const GETXATTRAT: libc::c_long = 464;

/// `struct xattr_args`.
#[repr(C, align(8))]
struct Arguments {
    value: u64,
    size: u32,
    flags: u32,
}

/// The xattr `xattr` of the entry `name` itself: its length, and its bytes in `value`.
///
/// # Errors
/// The kernel's; `NOSYS` where it does not have the call.
pub fn get_at(dir: BorrowedFd<'_>, name: &CStr, xattr: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    if IS_MISSING.load(Ordering::Relaxed) {
        return Err(Errno::NOSYS);
    }
    let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let arguments = Arguments { value: value.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: both names end with NUL, the structure has the kernel's layout, and `value` has `size` bytes; all live across
    // the call.
    let result = unsafe {
        libc::syscall(
            GETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            xattr.as_ptr(),
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    usize::try_from(result).map_err(|_| {
        let errno = super::spawn::last_errno();
        if errno == Errno::NOSYS {
            IS_MISSING.store(true, Ordering::Relaxed);
        }
        errno
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn it_answers_as_the_call_by_path() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, link) = (scratch.path().join("file"), scratch.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        if rustix::fs::setxattr(&file, "user.x", b"value", rustix::fs::XattrFlags::empty()).is_err() {
            return eprintln!("skipped: no xattrs here");
        }
        let dir = std::fs::File::open(scratch.path()).unwrap();
        let mut value = [0; 8];
        let mut get = |name: &CStr, xattr: &CStr| get_at(dir.as_fd(), name, xattr, &mut value);
        match get(c"file", c"user.x") {
            Err(Errno::NOSYS) => return eprintln!("skipped: this kernel does not have the call"),
            length => assert_eq!(length, Ok(5)),
        }
        assert_eq!(get(c"file", c"user.y"), Err(Errno::NODATA));
        assert_eq!(get(c"nothing", c"user.x"), Err(Errno::NOENT));
        assert!(get(c"link", c"user.x").is_err(), "links are not followed");
        assert_eq!(get_at(dir.as_fd(), c"file", c"user.x", &mut [0; 2]), Err(Errno::RANGE));
    }
}
