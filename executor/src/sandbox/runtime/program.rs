//! Whether a program can be started, found out by looking: names, modes and first bytes.
//!
//! A runtime that cannot start a program ends with the same code as one that could, and has its own words for it. So the
//! usual mistakes are found before it is asked.

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::view::passwd::RunUser;

/// So much of a file the kernel looks at.
const HEAD_BYTES: u64 = 256;

/// Scripts whose interpreters are scripts, at most, as in the kernel.
const MOST_SCRIPTS: usize = 5;

/// What `execve` would say of the first candidate that is there; `None` when nothing is to be said against it.
///
/// Looks at the root and the working directory of the calling thread. `handlers`: the kernel may run more than its own
/// formats (binfmt_misc), so strange ones are not judged.
pub(super) fn refusal(candidates: &[CString], account: &RunUser, handlers: bool) -> Option<Errno> {
    let mut answer = Errno::NOENT;
    for candidate in candidates {
        match rustix::fs::stat(candidate.as_c_str()) {
            Ok(found) if may_execute(&found, account) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(candidate.as_bytes()));
                return format(path, handlers, MOST_SCRIPTS);
            }
            Ok(_) | Err(Errno::ACCESS) => answer = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Some(answer)
}

/// Whether a file is one that this user may execute; root may when anybody may.
fn may_execute(found: &Stat, account: &RunUser) -> bool {
    let bits = match () {
        () if account.uid == 0 => 0o111,
        () if account.uid == found.st_uid => 0o100,
        () if account.gid == found.st_gid || account.supplementary.contains(&found.st_gid) => 0o010,
        () => 0o001,
    };
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_mode & bits != 0
}

/// What is wrong with the format of a file, if it can be read at all.
fn format(path: &Path, handlers: bool, scripts: usize) -> Option<Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut head = Vec::new();
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    (&file).take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    match kind(&head) {
        Kind::Native => match loader(&file, &head) {
            Some(loader) if std::fs::metadata(Path::new(std::ffi::OsStr::from_bytes(&loader))).is_err() => {
                Some(Errno::NOENT)
            }
            _ => None,
        },
        Kind::Script(interpreter) if scripts > 0 => {
            let interpreter = Path::new(std::ffi::OsStr::from_bytes(interpreter));
            match std::fs::metadata(interpreter) {
                Err(_) => Some(Errno::NOENT),
                Ok(_) => format(interpreter, handlers, scripts - 1),
            }
        }
        // Too deep, or strange: somebody else's to say.
        Kind::Script(_) => None,
        Kind::Strange if handlers => None,
        Kind::Strange => Some(Errno::NOEXEC),
    }
}

/// What a file is by its first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    /// For this machine.
    Native,
    /// `#!`, with the path of its interpreter.
    Script(&'a [u8]),
    /// For another machine, or no program.
    Strange,
}

fn kind(head: &[u8]) -> Kind<'_> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.split(|byte| *byte == b' ' || *byte == b'\t').filter(|word| !word.is_empty());
        return words.next().map_or(Kind::Strange, Kind::Script);
    }
    match head {
        [0x7f, b'E', b'L', b'F', _, data, ..] if head.len() >= 20 => {
            let machine = [head[18], head[19]];
            let machine = if *data == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
            if native_machines().is_none_or(|native| native.contains(&machine)) { Kind::Native } else { Kind::Strange }
        }
        _ => Kind::Strange,
    }
}

/// The loader that an ELF program of this machine asks for; `None` for a static one, and for what cannot be read.
fn loader(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    /// `PT_INTERP`.
    const INTERPRETER: u64 = 3;
    const LONGEST_PATH: u64 = 4096;
    let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
        let field = bytes.get(at..at + len)?;
        Some(field.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    };
    // All machines that we know are little endian.
    let is_wide = *head.get(4)? == 2;
    let (table, size, count) = match is_wide {
        true => (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?),
        false => (number(head, 28, 4)?, number(head, 42, 2)?, number(head, 44, 2)?),
    };
    let mut headers = vec![0; usize::try_from(size.checked_mul(count)?).ok()?];
    file.read_exact_at(&mut headers, table).ok()?;
    let headers = headers.chunks(usize::try_from(size).ok().filter(|size| *size > 0)?);
    let header = headers.into_iter().find(|header| number(header, 0, 4) == Some(INTERPRETER))?;
    let (offset, len) = match is_wide {
        true => (number(header, 8, 8)?, number(header, 32, 8)?),
        false => (number(header, 4, 4)?, number(header, 16, 4)?),
    };
    let mut path = vec![0; usize::try_from(len).ok().filter(|_| len <= LONGEST_PATH)?];
    file.read_exact_at(&mut path, offset).ok()?;
    path.split(|byte| *byte == 0).next().map(<[u8]>::to_vec)
}

/// ELF machines of programs that this one runs; `None` where we do not know.
fn native_machines() -> Option<&'static [u16]> {
    match std::env::consts::ARCH {
        "x86_64" => Some(&[62, 3]),
        "aarch64" => Some(&[183, 40]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, gid: u32) -> RunUser {
        RunUser { uid, gid, supplementary: Vec::new(), home: None }
    }

    fn paths(path: &Path) -> Vec<CString> {
        vec![CString::new(path.as_os_str().as_bytes()).unwrap()]
    }

    #[test]
    fn modes_tell_who_may_execute() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        let owner = rustix::fs::stat(&path).unwrap();
        let (group, other) = (user(owner.st_uid + 1, owner.st_gid), user(owner.st_uid + 1, owner.st_gid + 1));
        for (mode, of_group, of_others) in [(0o666, false, false), (0o710, true, false), (0o701, false, true)] {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).unwrap();
            let refused = |of: &RunUser| refusal(&paths(&path), of, true) == Some(Errno::ACCESS);
            assert_eq!((!refused(&group), !refused(&other)), (of_group, of_others), "{mode:o}");
        }
        assert_eq!(refusal(&paths(Path::new("/no/such/program")), &user(0, 0), false), Some(Errno::NOENT));
        assert_eq!(refusal(&paths(Path::new("/")), &user(0, 0), false), Some(Errno::ACCESS));
        assert_eq!(refusal(&paths(Path::new("/proc/self/exe")), &user(0, 0), false), None);
        assert_eq!(refusal(&[], &user(0, 0), false), Some(Errno::NOENT));
    }

    /// The least of a program for this machine with a loader.
    fn dynamic(loader: &[u8]) -> Vec<u8> {
        let mut elf = vec![0_u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = u8::try_from(native_machines().unwrap()[0]).unwrap();
        (elf[32], elf[54], elf[56]) = (64, 56, 1);
        (elf[64], elf[64 + 8], elf[64 + 32]) = (3, 120, u8::try_from(loader.len()).unwrap());
        elf.extend(loader);
        elf
    }

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        let directory = tempfile::tempdir().unwrap();
        let judge = |content: &[u8], handlers: bool| {
            let path = directory.path().join("file");
            std::fs::write(&path, content).unwrap();
            format(&path, handlers, MOST_SCRIPTS)
        };
        assert_eq!(judge(b"#!/no/such/shell -x\n", false), Some(Errno::NOENT));
        assert_eq!(judge(b"#! /proc/self/exe\n", false), None);
        assert_eq!(judge(b"echo no line for the kernel\n", false), Some(Errno::NOEXEC));
        assert_eq!(judge(b"echo no line for the kernel\n", true), None);
        assert_eq!(judge(b"", false), Some(Errno::NOEXEC));
        let mut elf = [0_u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 22;
        assert_eq!(judge(&elf, false), Some(Errno::NOEXEC), "s390x");
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            assert_eq!(judge(&dynamic(b"/no/such/loader\0"), false), Some(Errno::NOENT));
            assert_eq!(judge(&dynamic(b"/proc/self/exe\0"), false), None);
        }
        assert_eq!(kind(b"#!\t \n"), Kind::Strange);
        assert_eq!(kind(b"#! /bin/sh -e\nx"), Kind::Script(b"/bin/sh"));
    }
}
