//! Who a command runs as, and where: accounts and the working directory, in the root of the calling thread.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::SandboxError;
use crate::owners;
use crate::view::passwd::{Accounts, AccountsError, RunUser};

/// Looks `user` up in the account files of the root of the calling thread.
pub(super) fn account(user: &str) -> Result<RunUser, SandboxError> {
    account_at(user, |path| Some(PathBuf::from(path)))
}

/// Looks `user` up in account files; `place` says where they are, if there are any.
pub(super) fn account_at(user: &str, place: impl Fn(&'static str) -> Option<PathBuf>) -> Result<RunUser, SandboxError> {
    let read_file = |path| place(path).map_or(Ok(Vec::new()), |place| read_account_file(path, &place));
    let read = || -> Result<Accounts, AccountsError> {
        Ok(Accounts::from_bytes(read_file("/etc/passwd")?, read_file("/etc/group")?))
    };
    let accounts = match read() {
        // Only the home directory is asked of the files: no reason to fail.
        Err(_) if is_numeric(user) => Accounts::default(),
        result => result?,
    };
    Ok(accounts.run_user(user)?)
}

/// More is not read of `/etc/passwd` and `/etc/group`.
const MOST_ACCOUNT_BYTES: u64 = 10 << 20;

/// A file of the root, which may be hostile: only a regular one of reasonable size. Empty when missing.
fn read_account_file(path: &'static str, place: &Path) -> Result<Vec<u8>, AccountsError> {
    let failed = |errno: Errno| AccountsError::Read { path, source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(place, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        result => File::from(result.map_err(failed)?),
    };
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(AccountsError::NotAFile { path });
    }
    let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if size_bytes > MOST_ACCOUNT_BYTES {
        return Err(AccountsError::TooLarge { path, size_bytes });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0) + 1);
    let read = file.take(MOST_ACCOUNT_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| AccountsError::Read { path, source })?;
    Ok(bytes)
}

/// Whether a `USER` names nobody that would have to be looked up.
fn is_numeric(user: &str) -> bool {
    user.split_once(':').is_some_and(|(user, group)| user.parse::<u32>().is_ok() && group.parse::<u32>().is_ok())
}

/// Makes the working directory with its parents, owned by the command's user, where they are missing. `place` is where it
/// is for the calling thread.
pub(super) fn make_directory(path: &str, place: &Path, account: &RunUser) -> Result<(), SandboxError> {
    let failed = |error: &io::Error| SandboxError::Directory {
        path: path.to_owned(),
        errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
    };
    let mut missing = Vec::new();
    for ancestor in place.ancestors() {
        match std::fs::metadata(ancestor) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(failed(&error)),
        }
    }
    for directory in missing.into_iter().rev() {
        DirBuilder::new().mode(0o755).create(directory).map_err(|error| failed(&error))?;
        // Whatever our umask is.
        let mode = fs::metadata(directory).map_err(|error| failed(&error))?.permissions().mode();
        if mode & 0o777 != 0o755 {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o755)).map_err(|error| failed(&error))?;
        }
        owners::chown(directory, account.uid, account.gid).map_err(|error| failed(&error.into()))?;
    }
    Ok(())
}
