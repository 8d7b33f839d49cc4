//! Whether a program is, or leads by its interpreters to, a file that must not be executed. Runs in the child.

use std::ffi::CStr;

/// Interpreters of interpreters, as in the kernel.
const MOST_INTERPRETERS: usize = 5;

/// What the kernel reads of a script.
const SCRIPT_BYTES: usize = 256;

/// Whether `path` is the file `forbidden`, or a script whose interpreter is.
///
/// Until `execve` our own program is the child's `/proc/self/exe`. A root with `#!/proc/self/exe` in a script would run
/// the host's file, and could then open it for writing (CVE-2019-5736 in other runtimes).
pub(super) fn leads_to(path: &CStr, forbidden: (u64, u64)) -> bool {
    let mut name = [0_u8; SCRIPT_BYTES + 1];
    let mut current = path;
    for _ in 0..MOST_INTERPRETERS {
        // SAFETY: a NUL-terminated path.
        let fd = unsafe { libc::open(current.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC) };
        if fd < 0 {
            return false;
        }
        let mut text = [0_u8; SCRIPT_BYTES];
        // SAFETY: all-zero is a value of `stat`; the buffer has the length given. The descriptor is ours, and is closed
        // once.
        let (known, read) = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            let known = libc::fstat(fd, &raw mut stat) == 0;
            let read = libc::read(fd, text.as_mut_ptr().cast(), SCRIPT_BYTES);
            libc::close(fd);
            (known.then_some((stat.st_dev, stat.st_ino)), read)
        };
        if known == Some(forbidden) {
            return true;
        }
        let text = text.get(..usize::try_from(read).unwrap_or(0)).unwrap_or_default();
        let Some(interpreter) = interpreter(text) else { return false };
        name.fill(0);
        for (slot, byte) in name.iter_mut().zip(interpreter) {
            *slot = *byte;
        }
        let Ok(next) = CStr::from_bytes_until_nul(&name) else { return false };
        current = next;
    }
    false
}

/// The path behind `#!`.
fn interpreter(text: &[u8]) -> Option<&[u8]> {
    let line = text.strip_prefix(b"#!")?.trim_ascii_start();
    line.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next().filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn interpreters_are_found_as_the_kernel_finds_them() {
        let cases: &[(&[u8], Option<&[u8]>)] = &[
            (b"#!/bin/sh\necho", Some(b"/bin/sh")),
            (b"#! /bin/sh -e\n", Some(b"/bin/sh")),
            (b"#!/x", Some(b"/x")),
            (b"#!\n", None),
            (b"\x7fELF", None),
            (b"", None),
        ];
        for (text, want) in cases {
            assert_eq!(interpreter(text), *want);
        }
    }

    #[test]
    fn scripts_lead_to_their_interpreters() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("target"), "binary").unwrap();
        std::fs::write(path("script"), format!("#!{}\n", path("link").display())).unwrap();
        std::fs::write(path("outer"), format!("#!{} -x\n", path("script").display())).unwrap();
        std::fs::write(path("loop"), format!("#!{}\n", path("loop").display())).unwrap();
        std::os::unix::fs::symlink("target", path("link")).unwrap();
        let target = std::fs::metadata(path("target")).unwrap();
        let leads = |name: &str| {
            let name = CString::new(path(name).to_str().unwrap()).unwrap();
            leads_to(&name, (target.dev(), target.ino()))
        };
        for (name, want) in [("target", true), ("link", true), ("script", true), ("outer", true), ("loop", false)] {
            assert_eq!(leads(name), want, "{name}");
        }
        assert!(!leads("missing"));
    }
}
