//! Owners of files in trees, also where files cannot be given away.
//!
//! A process with a single user id can only make files of its own. There, whoever should own a file is *noted* in an
//! xattr of it, [`OWNER`] (`UID:GID` in decimal), and read from there again; a file without a note is root's. Overlayfs
//! copies the note with the file. Links and pipes take no xattr of users; theirs is [`SPECIAL`], which the kernel lets root
//! of a user namespace set on anything and looks at for programs alone. Where that cannot be had either, they are root's.
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

/// The name of the note on what takes no xattrs of users: `struct vfs_cap_data` with the ids in place of the lower sets of
/// capabilities and [`TAG`] in place of the upper ones.
const SPECIAL: &str = "security.capability";
const SPECIAL_C: &CStr = c"security.capability";

/// What tells a note from capabilities.
const TAG: [u32; 2] = [0x6275_696c, 0x6f77_6e72];

/// `VFS_CAP_REVISION_2`; the kernel adds the namespace's root and makes it revision 3 on the disk.
const REVISION_2: u32 = 0x0200_0000;

/// Two numbers and a colon are 21; capabilities with the namespace's root are 24.
const LONGEST_NOTE: usize = 24;

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

/// Whether an xattr is a note, and none of the file itself.
pub(crate) fn is_note(name: &OsStr, value: &[u8]) -> bool {
    name.as_bytes().starts_with(OWN_PREFIX.as_bytes()) || (name == SPECIAL && parse_special(value).is_some())
}

/// `fstat(2)`, with the owner that is meant.
pub(crate) fn fstat(fd: impl AsFd) -> Result<Stat> {
    let mut stat = rustix::fs::fstat(&fd)?;
    if are_noted() {
        correct(&mut stat, |form| noted_on_handle(fd.as_fd(), form));
    }
    Ok(stat)
}

/// `fstatat(2)` of the entry itself, with the owner that is meant.
pub(crate) fn statat(dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<Stat> {
    let name = name.as_ref();
    let mut stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if are_noted() {
        correct(&mut stat, |form| noted_in_dir(dir.as_fd(), name, form));
    }
    Ok(stat)
}

/// `stat(2)`, with the owner that is meant.
pub(crate) fn stat(path: &Path) -> Result<Stat> {
    let mut stat = rustix::fs::stat(path)?;
    if are_noted() {
        correct(&mut stat, |form| noted(&Place::Link(path.to_owned()), form));
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
    let form = Form::of(&rustix::fs::fstat(&fd)?);
    let (old_uid, old_gid) = noted_on_handle(fd.as_fd(), form).unwrap_or((0, 0));
    note(&Place::of_handle(fd), uid.unwrap_or(old_uid), gid.unwrap_or(old_gid))
}

/// Notes an owner on an open file on which nobody is noted.
pub(crate) fn note_unless_noted(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    let form = Form::of(&rustix::fs::fstat(&fd)?);
    if noted_on_handle(fd.as_fd(), form).is_some() { Ok(()) } else { note(&Place::of_handle(fd), uid, gid) }
}

/// How a note is written: that depends on what it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// [`OWNER`], on files and directories.
    Usual,
    /// [`SPECIAL`], on everything else.
    Special,
}

impl Form {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => Self::Usual,
            _ => Self::Special,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Usual => OWNER,
            Self::Special => SPECIAL,
        }
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Self::Usual => OWNER_C,
            Self::Special => SPECIAL_C,
        }
    }

    fn write(self, uid: u32, gid: u32) -> Vec<u8> {
        match self {
            Self::Usual => format!("{uid}:{gid}").into_bytes(),
            Self::Special => {
                [REVISION_2, uid, gid, TAG[0], TAG[1]].iter().flat_map(|word| word.to_le_bytes()).collect()
            }
        }
    }

    fn parse(self, note: &[u8]) -> Option<(u32, u32)> {
        match self {
            Self::Usual => parse(note),
            Self::Special => parse_special(note),
        }
    }
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

    /// Whether it is neither a file nor a directory.
    fn is_special(&self) -> bool {
        let stat = match self {
            // What an open handle leads to, be it a link.
            Self::Link(path) => rustix::fs::stat(path),
            Self::Entry(path) => rustix::fs::lstat(path),
        };
        stat.is_ok_and(|stat| Form::of(&stat) == Form::Special)
    }

    fn in_dir(dir: impl AsFd, name: &OsStr) -> Self {
        Self::Entry(PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(name))
    }
}

fn note(place: &Place, uid: u32, gid: u32) -> Result<()> {
    match write(place, Form::Usual, uid, gid) {
        // Links, pipes and devices.
        Err(Errno::PERM | Errno::LOOP) if place.is_special() => {
            // Overlayfs would copy what does not change.
            if noted(place, Form::Special).unwrap_or((0, 0)) == (uid, gid) {
                return Ok(());
            }
            match write(place, Form::Special, uid, gid) {
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
                done => done,
            }
        }
        // File systems without xattrs; nothing to remove.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NODATA | Errno::LOOP) => Ok(()),
        done => done,
    }
}

/// Writes a note, or removes it if it says root.
fn write(place: &Place, form: Form, uid: u32, gid: u32) -> Result<()> {
    let (name, text, flags) = (form.name(), form.write(uid, gid), XattrFlags::empty());
    match (place, uid | gid) {
        (Place::Link(path), 0) => rustix::fs::removexattr(path, name),
        (Place::Entry(path), 0) => rustix::fs::lremovexattr(path, name),
        (Place::Link(path), _) => rustix::fs::setxattr(path, name, &text, flags),
        (Place::Entry(path), _) => rustix::fs::lsetxattr(path, name, &text, flags),
    }
}

fn noted(place: &Place, form: Form) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    let len = match place {
        Place::Link(path) => rustix::fs::getxattr(path, form.name(), &mut value[..]),
        Place::Entry(path) => rustix::fs::lgetxattr(path, form.name(), &mut value[..]),
    };
    form.parse(value.get(..len.ok()?)?)
}

/// As [`noted`], for most handles without looking for their path first.
fn noted_on_handle(fd: BorrowedFd<'_>, form: Form) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    match rustix::fs::fgetxattr(fd, form.name(), &mut value[..]) {
        Ok(len) => form.parse(value.get(..len)?),
        // It is good for paths only.
        Err(Errno::BADF) => noted(&Place::of_handle(fd), form),
        Err(_) => None,
    }
}

/// As [`noted`], on newer kernels without a walk through `/proc`.
fn noted_in_dir(dir: BorrowedFd<'_>, name: &OsStr, form: Form) -> Option<(u32, u32)> {
    let mut value = [0_u8; LONGEST_NOTE];
    let entry = CString::new(name.as_bytes()).ok()?;
    match crate::sys::xattr::get_at(dir, &entry, form.c_name(), &mut value) {
        Ok(len) => form.parse(value.get(..len)?),
        Err(Errno::NOSYS) => noted(&Place::in_dir(dir, name), form),
        Err(_) => None,
    }
}

fn correct(stat: &mut Stat, note: impl FnOnce(Form) -> Option<(u32, u32)>) {
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    match note(Form::of(stat)) {
        Some((uid, gid)) => (stat.st_uid, stat.st_gid) = (uid, gid),
        None if is_ours => (stat.st_uid, stat.st_gid) = (0, 0),
        None => {}
    }
}

/// The ids in [`SPECIAL`]; `None` when they are capabilities.
fn parse_special(note: &[u8]) -> Option<(u32, u32)> {
    let (words, rest) = note.as_chunks::<4>();
    match *words.iter().copied().map(u32::from_le_bytes).collect::<Vec<_>>() {
        [_, uid, gid, first, second] | [_, uid, gid, first, second, _] if rest.is_empty() => {
            ([first, second] == TAG).then_some((uid, gid))
        }
        _ => None,
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

    #[test]
    fn notes_on_links_are_told_from_capabilities() {
        for (uid, gid) in [(33, 44), (0, 7), (u32::MAX - 1, 0)] {
            let mut note = Form::Special.write(uid, gid);
            assert_eq!(parse_special(&note), Some((uid, gid)));
            assert!(is_note(OsStr::new(SPECIAL), &note));
            // As the kernel gives it where the namespace's root is not ours.
            note.extend(1000_u32.to_le_bytes());
            assert_eq!(parse_special(&note), Some((uid, gid)));
        }
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_special(&capability), None);
        assert!(!is_note(OsStr::new(SPECIAL), &capability));
        assert!(!is_note(OsStr::new(SPECIAL), b""));
    }
}
