//! Attributes of mounts that the wrapper crate lacks.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// Attributes for [`mount_setattr`], the kernel's `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountAttributes(u64);

impl MountAttributes {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Set-user-ID bits and file capabilities do not count.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device nodes cannot be opened.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Programs cannot be executed.
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The same as flags of `mount(2)`, for kernels without [`mount_setattr`].
    pub fn classic_flags(self) -> libc::c_ulong {
        let table = [
            (Self::READ_ONLY, libc::MS_RDONLY),
            (Self::NO_SUID, libc::MS_NOSUID),
            (Self::NO_DEVICES, libc::MS_NODEV),
            (Self::NO_EXEC, libc::MS_NOEXEC),
        ];
        table.iter().filter(|(attribute, _)| self.0 & attribute.0 != 0).fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// Whether a call reaches the mounts below as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This mount alone.
    Mount,
    /// This mount and all below it.
    Tree,
}

/// `mount_setattr(2)` on the mount that `fd` is the root of: adds `attributes`. Linux ≥ 5.12.
///
/// # Errors
/// `NOSYS` on older kernels; `INVAL` when `fd` is not the root of a mount.
pub fn mount_setattr(fd: BorrowedFd<'_>, attributes: MountAttributes, reach: Reach) -> Result<(), Errno> {
    let request = libc::mount_attr { attr_set: attributes.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if reach == Reach::Tree {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty NUL-terminated string; `request` lives across the call and its exact size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_classic_twins() {
        let both = MountAttributes::READ_ONLY.with(MountAttributes::NO_EXEC);
        assert_eq!(both.classic_flags(), libc::MS_RDONLY | libc::MS_NOEXEC);
        assert_eq!(MountAttributes::NONE.classic_flags(), 0);
    }
}
