//! A command as the kernel takes it, and why it could not be started.

use std::ffi::CString;
use std::path::Path;

use rustix::io::Errno;

use super::error::SandboxError;
use super::spec::NotStarted;
use crate::sys::spawn::Program;

/// Used when the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program, arguments and environment.
pub(super) struct Command {
    name: String,
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    /// `home` becomes `HOME` where the environment has none.
    pub(super) fn new(args: &[String], env: &[(String, String)], home: &str) -> Result<Self, SandboxError> {
        let variable = |name: &str| env.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let needs_home = variable("HOME").unwrap_or_default().is_empty();
        let kept = env.iter().filter(|(key, _)| !(needs_home && key == "HOME"));
        let mut environment: Vec<CString> =
            kept.map(|(key, value)| c_string(&format!("{key}={value}"), "a variable")).collect::<Result<_, _>>()?;
        if needs_home {
            environment.push(c_string(&format!("HOME={home}"), "a variable")?);
        }
        let name = args.first().cloned().unwrap_or_default();
        let candidates = candidates(&name, variable("PATH").unwrap_or(DEFAULT_PATH));
        Ok(Self {
            candidates: candidates.iter().map(|path| c_string(path, "an argument")).collect::<Result<_, _>>()?,
            arguments: args.iter().map(|text| c_string(text, "an argument")).collect::<Result<_, _>>()?,
            environment,
            name,
        })
    }

    /// For the kernel.
    pub(super) fn program(&self) -> Program {
        Program::new(self.candidates.clone(), self.arguments.clone(), self.environment.clone())
    }

    /// Why `execve` failed, for programs and in the words that container runtimes use. `root` is where the calling thread
    /// sees the command's root.
    pub(super) fn explain(&self, errno: Errno, root: &Path) -> (NotStarted, String) {
        let name = &self.name;
        let found = || {
            let places = self.candidates.iter().filter_map(|path| path.to_str().ok());
            // Links that lead elsewhere from here make for another word, no more.
            places.map(|path| root.join(path.trim_start_matches('/'))).any(|path| path.symlink_metadata().is_ok())
        };
        match errno {
            Errno::NOENT | Errno::NOTDIR if found() => {
                // The file is there, so its interpreter or loader is not.
                (NotStarted::Missing, format!("exec {name}: no such file or directory\n"))
            }
            Errno::NOENT | Errno::NOTDIR if name.contains('/') => {
                (NotStarted::Missing, format!("exec: \"{name}\": stat {name}: no such file or directory\n"))
            }
            Errno::NOENT | Errno::NOTDIR => {
                (NotStarted::Missing, format!("exec: \"{name}\": executable file not found in $PATH\n"))
            }
            Errno::ACCESS => (NotStarted::Denied, format!("exec: \"{name}\": permission denied\n")),
            Errno::NOEXEC => (NotStarted::WrongFormat, format!("exec {name}: exec format error\n")),
            errno => (NotStarted::Other(errno.raw_os_error()), format!("exec {name}: {errno}\n")),
        }
    }
}

/// A program with a slash is a path; others are looked for in the directories of `path`.
fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let directory = |entry: &str| if entry.is_empty() { ".".to_owned() } else { entry.to_owned() };
    path.split(':').map(|entry| format!("{}/{name}", directory(entry))).collect()
}

/// A text for the kernel.
pub(super) fn c_string(text: &str, what: &'static str) -> Result<CString, SandboxError> {
    CString::new(text).map_err(|_| SandboxError::NulByte { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
        env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn environment(env: &[(&str, &str)]) -> Vec<String> {
        let command = Command::new(&["true".to_owned()], &pairs(env), "/root").unwrap();
        command.environment.iter().map(|text| text.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn home_comes_last_and_only_when_missing() {
        assert_eq!(environment(&[("B", "2"), ("A", "1")]), ["B=2", "A=1", "HOME=/root"]);
        assert_eq!(environment(&[("HOME", "/set"), ("A", "1")]), ["HOME=/set", "A=1"]);
        assert_eq!(environment(&[("HOME", "")]), ["HOME=/root"]);
    }

    #[test]
    fn programs_are_looked_for_in_path() {
        assert_eq!(candidates("sh", "/a:/b"), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("sh", ":/b"), ["./sh", "/b/sh"]);
        assert_eq!(candidates("./sh", "/a"), ["./sh"]);
        assert!(candidates("", "/a").is_empty());
    }

    #[test]
    fn failures_are_in_the_runtimes_words() {
        let explain =
            |name: &str, errno| Command::new(&[name.to_owned()], &[], "/").unwrap().explain(errno, Path::new("/"));
        assert_eq!(
            explain("no-such-program", Errno::NOENT),
            (NotStarted::Missing, "exec: \"no-such-program\": executable file not found in $PATH\n".to_owned())
        );
        assert_eq!(
            explain("/no/such", Errno::NOENT),
            (NotStarted::Missing, "exec: \"/no/such\": stat /no/such: no such file or directory\n".to_owned())
        );
        assert_eq!(explain("/etc/passwd", Errno::ACCESS).1, "exec: \"/etc/passwd\": permission denied\n");
        assert_eq!(explain("/x", Errno::NOEXEC), (NotStarted::WrongFormat, "exec /x: exec format error\n".to_owned()));
    }

    #[test]
    fn nul_bytes_are_refused() {
        assert!(matches!(Command::new(&["a\0b".to_owned()], &[], "/"), Err(SandboxError::NulByte { .. })));
    }
}
