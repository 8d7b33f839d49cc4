//! Owners of files in trees, also where files cannot be given away.
//!
//! A process with a single user id can only make files of its own. There, whoever should own a file is *noted* in an
//! xattr of it, [`OWNER`] (`UID:GID` in decimal), and read from there again; a file without a note is root's. Overlayfs
//! copies the note with the file. Links, devices and sockets take no such xattr: they are root's in such trees.
//!
//! Whether owners are noted is a property of the process, as its user namespace is: all its trees are of one style
//! ([`crate::sandbox::TreeStyle`]). Everybody who asks or says who owns a file of a tree does it through this module.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Stat, Uid, XattrFlags};
use rustix::io::{Errno, Result};

/// The name of the note.
pub(crate) const OWNER: &str = "user.rbuild.owner";
const OWNER_C: &CStr = c"user.rbuild.owner";

/// The beginning of the names of all xattrs that belong to trees and not to their files.
pub(crate) const OWN_PREFIX: &str = "user.rbuild.";

/// Two numbers and a colon.
const LONGEST_NOTE: usize = 21;

static ARE_NOTED: AtomicBool = AtomicBool::new(false);

/// From now on owners are noted in this process.
pub(crate) fn note_from_now_on() {
    ARE_NOTED.store(true, Ordering::Relaxed);
}

/// Whether owners are noted in this process.
pub(crate) fn are_noted() -> bool {
    ARE_NOTED.load(Ordering::Relaxed)
}

/// Who owns what this process makes, as everybody will see it.
pub(crate) fn of_new_files() -> (u32, u32) {
    match are_noted() {
        true => (0, 0),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    }
}

/// `fstat(2)`, with the owner that is meant.
pub(crate) fn fstat(fd: impl AsFd) -> Result<Stat> {
    let mut stat = rustix::fs::fstat(&fd)?;
    if are_noted() {
        correct(&mut stat, || noted_on_handle(fd.as_fd()));
    }
    Ok(stat)
}

/// `fstatat(2)` of the entry itself, with the owner that is meant.
pub(crate) fn statat(dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<Stat> {
    let name = name.as_ref();
    let mut stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if are_noted() {
        correct(&mut stat, || noted_in_dir(dir.as_fd(), name));
    }
    Ok(stat)
}

/// `stat(2)`, with the owner that is meant.
pub(crate) fn stat(path: &Path) -> Result<Stat> {
    let mut stat = rustix::fs::stat(path)?;
    if are_noted() {
        correct(&mut stat, || noted(&Place::Link(path.to_owned())));
    }
    Ok(stat)
}

/// `fchown(2)`, or a note.
pub(crate) fn fchown(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    match are_noted() {
        false => rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
        true => note(&Place::of_handle(fd), uid, gid),
    }
}

/// `fchownat(2)` of the entry itself, or a note.
pub(crate) fn chownat(dir: impl AsFd, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> Result<()> {
    let (uids, gids) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match are_noted() {
        false => rustix::fs::chownat(dir, name.as_ref(), uids, gids, AtFlags::SYMLINK_NOFOLLOW),
        true => note(&Place::in_dir(dir, name.as_ref()), uid, gid),
    }
}

/// `lchown(2)`, or a note.
pub(crate) fn chown(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let (uids, gids) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match are_noted() {
        false => rustix::fs::chownat(rustix::fs::CWD, path, uids, gids, AtFlags::SYMLINK_NOFOLLOW),
        true => note(&Place::Entry(path.to_owned()), uid, gid),
    }
}

/// Notes an owner on an open file; `None` keeps what is noted. What takes no notes stays as it is.
pub(crate) fn note_parts(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (old_uid, old_gid) = noted_on_handle(fd.as_fd()).unwrap_or((0, 0));
    note(&Place::of_handle(fd), uid.unwrap_or(old_uid), gid.unwrap_or(old_gid))
}

/// Notes an owner on an open file on which nobody is noted.
pub(crate) fn note_unless_noted(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    if noted_on_handle(fd.as_fd()).is_some() { Ok(()) } else { note(&Place::of_handle(fd), uid, gid) }
}

/// Where a note is, for calls that take paths: handles may be good for nothing else.
enum Place {
    /// What a path leads to: the kernel's link to an open handle, or a name that is followed.
    Link(PathBuf),
    /// The entry of that name itself.
    Entry(PathBuf),
}

impl Place {
    fn of_handle(fd: impl AsFd) -> Self {
        Self::Link(PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())))
    }

    fn in_dir(dir: impl AsFd, name: &OsStr) -> Self {
        Self::Entry(PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(name))
    }
}

fn note(place: &Place, uid: u32, gid: u32) -> Result<()> {
    let text = format!("{uid}:{gid}");
    let flags = XattrFlags::empty();
    let done = match (place, uid | gid) {
        (Place::Link(path), 0) => rustix::fs::removexattr(path, OWNER),
        (Place::Entry(path), 0) => rustix::fs::lremovexattr(path, OWNER),
        (Place::Link(path), _) => rustix::fs::setxattr(path, OWNER, text.as_bytes(), flags),
        (Place::Entry(path), _) => rustix::fs::lsetxattr(path, OWNER, text.as_bytes(), flags),
    };
    match done {
        // Links and devices; file systems without xattrs; nothing to remove.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NODATA | Errno::LOOP) => Ok(()),
        done => done,
    }
}

fn noted(place: &Place) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    let len = match place {
        Place::Link(path) => rustix::fs::getxattr(path, OWNER, &mut value[..]),
        Place::Entry(path) => rustix::fs::lgetxattr(path, OWNER, &mut value[..]),
    };
    parse(value.get(..len.ok()?)?)
}

/// As [`noted`], for most handles without looking for their path first.
fn noted_on_handle(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    match rustix::fs::fgetxattr(fd, OWNER, &mut value[..]) {
        Ok(len) => parse(value.get(..len)?),
        // It is good for paths only.
        Err(Errno::BADF) => noted(&Place::of_handle(fd)),
        Err(_) => None,
    }
}

/// As [`noted`], on newer kernels without a walk through `/proc`.
fn noted_in_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    let entry = CString::new(name.as_bytes()).ok()?;
    match crate::sys::xattr::get_at(dir, &entry, OWNER_C, &mut value) {
        Ok(len) => parse(value.get(..len)?),
        Err(Errno::NOSYS) => noted(&Place::in_dir(dir, name)),
        Err(_) => None,
    }
}

fn correct(stat: &mut Stat, note: impl FnOnce() -> Option<(u32, u32)>) {
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    let takes_notes = matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory);
    match if takes_notes { note() } else { None } {
        Some((uid, gid)) => (stat.st_uid, stat.st_gid) = (uid, gid),
        None if is_ours => (stat.st_uid, stat.st_gid) = (0, 0),
        None => {}
    }
}

fn parse(note: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = OsStr::from_bytes(note).to_str()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_two_numbers() {
        for (note, want) in [(b"0:0".as_slice(), (0, 0)), (b"33:4294967294", (33, 4_294_967_294))] {
            assert_eq!(parse(note), Some(want), "{note:?}");
        }
        for note in [b"33".as_slice(), b"-1:0", b"1:4294967296", b"\xff:1"] {
            assert_eq!(parse(note), None, "{note:?}");
        }
    }
}
