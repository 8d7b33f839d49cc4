//! Becoming root without being it: a user namespace for the whole program.
//!
//! Everything the program does afterwards (unpacking layers with their owners, mounting, running steps) is done as root
//! of that namespace, so no other part needs a rootless variant of its own. A namespace can only be entered by a
//! program with one thread: call [`enter_user_namespace`] first thing.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::isolation::{Isolation, missing_privileges};
use crate::sys::namespace::unshare;

/// Why no user namespace could be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The kernel or a policy of the machine refuses.
    #[error("this user may not make user namespaces: {0}")]
    Refused(Errno),
    /// A helper that maps subordinate ids failed.
    #[error("`{helper}` could not map the subordinate ids of this user: {reason}")]
    Helper {
        /// Which.
        helper: &'static str,
        /// Why.
        reason: String,
    },
    /// A file under `/proc` could not be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Map {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes this process root of a user namespace, unless it can do everything already. Returns how well commands can be
/// kept apart now.
///
/// With subordinate ids (`/etc/subuid`, `/etc/subgid`, `newuidmap`, `newgidmap`) steps can have any user; otherwise
/// there is one id for all.
///
/// # Errors
/// [`EnterError`]; the process is then as it was, unless a helper failed half-way.
pub fn enter_user_namespace() -> Result<Isolation, EnterError> {
    if missing_privileges().is_empty() {
        return Ok(Isolation::of_this_process());
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| user_name(&passwd, uid));
    let ranges =
        |path: &str| fs::read_to_string(path).map(|text| subordinate(&text, name.as_deref(), uid)).unwrap_or_default();
    let (uids, gids) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
    let helpers = if uids.is_empty() || gids.is_empty() { None } else { helpers((uid, &uids), (gid, &gids)) };
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(EnterError::Refused)?;
    match helpers {
        Some(helpers) => helpers.into_iter().try_for_each(Helper::finish)?,
        None => map_single_id(uid, gid)?,
    }
    Ok(Isolation::of_this_process())
}

/// A program with the privilege to map ids. It was started before the namespace is made and waits for that, because
/// nothing may be started between.
struct Helper {
    name: &'static str,
    process: Child,
}

/// Both helpers, waiting; `None` when one of them cannot be started.
fn helpers(uids: (u32, &[Range]), gids: (u32, &[Range])) -> Option<Vec<Helper>> {
    [("newuidmap", uids), ("newgidmap", gids)]
        .into_iter()
        .map(|(name, (own, ranges))| Helper::start(name, own, ranges))
        .collect()
}

impl Helper {
    fn start(name: &'static str, own: u32, ranges: &[Range]) -> Option<Self> {
        let found = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]
            .iter()
            .map(|directory| PathBuf::from(directory).join(name));
        let program = found.into_iter().find(|path| path.exists())?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read -r _ && exec \"$@\"", "sh"]).arg(program).arg(std::process::id().to_string());
        command.args(["0".to_owned(), own.to_string(), "1".to_owned()]);
        let mut inside = 1_u64;
        for range in ranges {
            command.args([inside.to_string(), range.first.to_string(), range.count.to_string()]);
            inside += u64::from(range.count);
        }
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
        Some(Self { name, process })
    }

    fn finish(mut self) -> Result<(), EnterError> {
        let failed = |reason: String| EnterError::Helper { helper: self.name, reason };
        if let Some(mut input) = self.process.stdin.take() {
            input.write_all(b"\n").map_err(|error| failed(error.to_string()))?;
        }
        let output = self.process.wait_with_output().map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}

fn map_single_id(uid: u32, gid: u32) -> Result<(), EnterError> {
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|source| EnterError::Map { path: path.into(), source })
    };
    // Without privileges the group map is only accepted once `setgroups` is given up.
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// A range of subordinate ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// The ranges of a user, known by name or number, in `/etc/subuid` or `/etc/subgid`.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((Some(owner) == name || owner == uid) && count > 0).then_some(Range { first, count })
    });
    ranges.collect()
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "alice:100000:65536\n1000:300000:10\nbob:1:2\nalice:bad:1\nalice:7:0\n";
        let range = |first, count| Range { first, count };
        assert_eq!(subordinate(text, Some("alice"), 1000), [range(100_000, 65_536), range(300_000, 10)]);
        assert_eq!(subordinate(text, None, 1000), [range(300_000, 10)]);
        assert!(subordinate(text, Some("carol"), 5).is_empty());
        assert_eq!(user_name("root:x:0:0::/:\nbob:x:7:7::/:\n", 7).as_deref(), Some("bob"));
    }
}
