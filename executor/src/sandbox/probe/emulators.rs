//! Emulators that the kernel knows: entries of binfmt_misc.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::release::kernel_is_at_least;

/// Programs of one sort, and what runs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// Name of the entry, such as `qemu-aarch64`.
    pub name: String,
    /// The program that runs them.
    pub interpreter: PathBuf,
    /// Whether it is switched on.
    pub enabled: bool,
    /// Whether the kernel keeps the interpreter open (flag `F`), so that no root needs to have it.
    pub fixed: bool,
}

/// The entries for emulators, by name; none where binfmt_misc is not mounted.
pub fn emulators() -> Vec<Emulator> {
    let Ok(entries) = fs::read_dir(Path::new("/proc/sys/fs/binfmt_misc")) else { return Vec::new() };
    let mut emulators: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            parse(&name, &fs::read_to_string(entry.path()).ok()?)
        })
        .collect();
    emulators.sort_by(|a, b| a.name.cmp(&b.name));
    emulators
}

/// Whether a build can have handlers of its own, so that the machine needs none: Linux 6.7.
pub fn own_handlers_are_possible() -> bool {
    kernel_is_at_least((6, 7))
}

/// An entry as the kernel shows it; `None` for anything but an emulator.
fn parse(name: &str, text: &str) -> Option<Emulator> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let interpreter = PathBuf::from(value("interpreter ")?);
    let is_emulator = name.starts_with("qemu-") || interpreter.file_name()?.to_string_lossy().contains("qemu");
    is_emulator.then(|| Emulator {
        name: name.to_owned(),
        interpreter,
        enabled: text.starts_with("enabled"),
        fixed: value("flags:").unwrap_or_default().contains('F'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_kernel_shows_them() {
        let text = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic 7f454c46\n";
        let emulator = parse("qemu-aarch64", text).unwrap();
        assert_eq!(emulator.interpreter, Path::new("/usr/bin/qemu-aarch64-static"));
        assert!(emulator.enabled && emulator.fixed);
        let off = parse("arm", "disabled\ninterpreter /usr/bin/qemu-arm\nflags: \n").unwrap();
        assert!(!off.enabled && !off.fixed);
        assert_eq!(parse("python3.11", "enabled\ninterpreter /usr/bin/python3.11\nflags: \n"), None);
        assert_eq!(parse("status", "enabled\n"), None);
    }
}
