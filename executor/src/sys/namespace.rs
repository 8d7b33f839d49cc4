//! Namespaces of the calling thread.

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// `unshare(2)`: gives the calling *thread* new namespaces of the kinds in `flags`.
///
/// Other threads of the process stay where they are. A new mount namespace brings the thread its own root and working
/// directory.
///
/// # Errors
/// `INVAL` when `flags` would also give the thread its own descriptor table: Rust code relies on one table a process.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the only flag that is unsafe in a Rust program (`CLONE_FILES`) was refused above.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
