//! Files that a command has made as somebody else: for the kernel they are root's.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::super::error::SandboxError;
use crate::layer::LowerView as _;
use crate::owners;
use crate::view::Below;

/// Notes `uid` and `gid` on everything in `upper` that the layers `lower` do not have and nobody was noted on: a command
/// that begins as an ordinary user has made all of its files as that user.
pub(in crate::sandbox) fn adopt(upper: &Path, lower: &[PathBuf], uid: u32, gid: u32) -> Result<(), SandboxError> {
    let below = Below::new(lower.to_vec());
    let mut todo = vec![PathBuf::new()];
    while let Some(directory) = todo.pop() {
        let whole = upper.join(&directory);
        for entry in std::fs::read_dir(&whole).map_err(SandboxError::io("list", &whole))? {
            let entry = entry.map_err(SandboxError::io("list", &whole))?;
            let (path, place) = (directory.join(entry.file_name()), entry.path());
            let stat = rustix::fs::statat(CWD, &place, AtFlags::SYMLINK_NOFOLLOW);
            let kind = FileType::from_raw_mode(stat.map_err(SandboxError::call("read", &place))?.st_mode);
            match kind {
                FileType::Directory => todo.push(path.clone()),
                FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
                // Marks of overlayfs are devices.
                _ => continue,
            }
            let is_new = below.metadata(&path).map_err(SandboxError::io("look below", &path))?.is_none();
            if is_new {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    rustix::fs::open(&place, flags, Mode::empty()).map_err(SandboxError::call("open", &place))?;
                owners::note_unless_noted(&file, uid, gid).map_err(SandboxError::call("note the owner of", &place))?;
            }
        }
    }
    Ok(())
}
