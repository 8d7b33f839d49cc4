//! Becoming root without being it: a user namespace for the whole program.
//!
//! Everything the program does afterwards (unpacking layers with their owners, mounting, running steps) is done as root
//! of that namespace, so no other part needs a rootless variant of its own. A namespace can only be entered by a
//! program with one thread: call [`confine`] first thing.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::{CapabilitySet, UnshareFlags};

use super::isolation::{Confinement, Isolation, IsolationMode, missing_for_chroot, missing_privileges};
use crate::owners;
use crate::sys::namespace::unshare;

/// Why commands cannot be kept apart as asked for.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The kernel or a policy of the machine refuses.
    #[error("this user may not make user namespaces: {reason}")]
    Refused {
        /// What refuses, as far as that can be told.
        reason: String,
    },
    /// A helper that maps subordinate ids failed.
    #[error("`{helper}` could not map the subordinate ids of this user: {reason}")]
    Helper {
        /// Which.
        helper: &'static str,
        /// Why.
        reason: String,
    },
    /// Subordinate ids are wanted and there are none.
    #[error("this user has no subordinate ids: {reason}")]
    NoSubordinateIds {
        /// What is missing.
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
    /// This process has not what the tier needs.
    #[error("--isolation={tier} needs {}", missing.join(", "))]
    Missing {
        /// The tier, as named on the command line.
        tier: &'static str,
        /// Capabilities.
        missing: Vec<&'static str>,
    },
    /// There is no such OCI runtime.
    #[error("no OCI runtime `{0}` can be found")]
    NoRuntime(String),
}

/// Gives this process what `mode` asks for: nothing, or a user namespace of its own. Must be called while the process has
/// one thread. `search_path` is where an OCI runtime is looked for.
///
/// # Errors
/// [`EnterError`]; never for [`IsolationMode::Auto`].
pub fn confine(mode: &IsolationMode, search_path: &str) -> Result<Confinement, EnterError> {
    let confinement = choose(mode, search_path)?;
    if confinement.isolation.tree_style().has_notes() {
        owners::note_from_now_on();
    }
    Ok(confinement)
}

fn choose(mode: &IsolationMode, search_path: &str) -> Result<Confinement, EnterError> {
    let with = |isolation| Confinement { isolation, runtime: None, reasons: Vec::new() };
    match mode {
        IsolationMode::Auto => Ok(best()),
        IsolationMode::Tier(Isolation::Root) => {
            needs(Isolation::Root, missing_privileges())?;
            Ok(with(Isolation::Root))
        }
        IsolationMode::Tier(Isolation::UserNamespace) => enter(&Ids::Range(Mapping::find()?)).map(with),
        IsolationMode::Tier(Isolation::SingleId) => enter(&Ids::Single).map(with),
        IsolationMode::Tier(Isolation::Chroot) => {
            needs(Isolation::Chroot, missing_for_chroot())?;
            Ok(with(Isolation::Chroot))
        }
        IsolationMode::Tier(Isolation::Nothing) => Ok(with(Isolation::Nothing)),
        IsolationMode::Runtime(name) => {
            // An ordinary user's path lacks the directories of administrators, where runtimes like to be.
            let search_path = format!("{search_path}:/usr/local/sbin:/usr/sbin:/sbin");
            let runtime = find_program(name, &search_path).ok_or_else(|| EnterError::NoRuntime(name.clone()))?;
            let best = best();
            match best.isolation {
                Isolation::Chroot | Isolation::Nothing => {
                    Err(EnterError::Missing { tier: "oci", missing: missing_privileges() })
                }
                _ => Ok(Confinement { runtime: Some(runtime), ..best }),
            }
        }
    }
}

fn needs(tier: Isolation, missing: Vec<&'static str>) -> Result<(), EnterError> {
    if missing.is_empty() { Ok(()) } else { Err(EnterError::Missing { tier: tier.name(), missing }) }
}

/// The best tier that there is, tried from the top.
fn best() -> Confinement {
    let missing = missing_privileges();
    if missing.is_empty() {
        return Confinement { isolation: Isolation::of_this_process(), runtime: None, reasons: Vec::new() };
    }
    let mut reasons = vec![format!("not root: {}", missing.join(", "))];
    let ids = Mapping::find().map_or_else(
        |error| {
            reasons.push(error.to_string());
            Ids::Single
        },
        Ids::Range,
    );
    let entered = match enter(&ids) {
        Err(error @ EnterError::Helper { .. }) => {
            // The namespace is there and its ids are not: one of them can be had without help.
            reasons.push(error.to_string());
            map_single_id(uid(), gid()).map(|()| Isolation::of_this_process())
        }
        entered => entered,
    };
    let isolation = entered.unwrap_or_else(|error| {
        reasons.push(error.to_string());
        let missing = missing_for_chroot();
        if missing.is_empty() {
            return Isolation::Chroot;
        }
        reasons.push(format!("no chroot: {}", missing.join(", ")));
        Isolation::Nothing
    });
    Confinement { isolation, runtime: None, reasons }
}

/// The ids of a namespace to be.
enum Ids {
    Single,
    Range(Mapping),
}

/// Makes this process root of a user namespace with these ids.
fn enter(ids: &Ids) -> Result<Isolation, EnterError> {
    let (uid, gid) = (uid(), gid());
    if let Some(reason) = refusal() {
        return Err(EnterError::Refused { reason });
    }
    let helpers = match ids {
        Ids::Single => Vec::new(),
        Ids::Range(mapping) => mapping.start_helpers()?,
    };
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|errno| EnterError::Refused { reason: errno.to_string() })?;
    match ids {
        Ids::Single => map_single_id(uid, gid)?,
        Ids::Range(_) => helpers.into_iter().try_for_each(Helper::finish)?,
    }
    Ok(Isolation::of_this_process())
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// A setting of the machine by which a namespace would be refused, or would come without any privilege.
pub fn refusal() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let is_root = missing_privileges().is_empty();
    if read("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Some("user.max_user_namespaces is 0".to_owned());
    }
    if !is_root && read("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Some("kernel.unprivileged_userns_clone is 0".to_owned());
    }
    let restricted = read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    // A profile of its own may allow it.
    let unconfined = read("/proc/self/attr/current").is_none_or(|profile| profile == "unconfined");
    (!is_root && restricted && unconfined)
        .then(|| "kernel.apparmor_restrict_unprivileged_userns is 1, and no AppArmor profile allows rbuild".to_owned())
}

/// Whether this user can have a namespace with a range of ids.
///
/// # Errors
/// [`EnterError::NoSubordinateIds`] with what is missing.
pub(super) fn subordinate_ids() -> Result<(), EnterError> {
    Mapping::find().map(drop)
}

/// A program by path, or by name in the absolute directories of `search_path`: what lies where we happen to work, a context
/// perhaps, is not run.
pub fn find_program(name: &str, search_path: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(is_program);
    }
    search_path
        .split(':')
        .map(Path::new)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(is_program)
}

/// Which ids a namespace with a range of them gets.
enum Mapping {
    /// Our own and subordinate ones, mapped by `newuidmap` and `newgidmap`.
    Subordinate { uids: Vec<Range>, gids: Vec<Range>, programs: [PathBuf; 2] },
    /// All of those that we have, as they are: we may map them ourselves.
    Same,
}

/// Ids that a namespace gets whose maker may give it any.
const SAME_IDS: u32 = 65_536;

impl Mapping {
    fn find() -> Result<Self, EnterError> {
        let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        if uid() == 0 && held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Ok(Self::Same);
        }
        let missing = |reason: String| EnterError::NoSubordinateIds { reason };
        let name = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| user_name(&passwd, uid()));
        let ranges = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            Some(subordinate(&text, name.as_deref(), uid()))
                .filter(|ranges| !ranges.is_empty())
                .ok_or_else(|| missing(format!("{path} has no line for it")))
        };
        let (uids, gids) = (ranges("/etc/subuid")?, ranges("/etc/subgid")?);
        let program = |name: &'static str| {
            let path = "/usr/bin:/bin:/usr/local/bin:/usr/sbin";
            find_program(name, path).ok_or_else(|| missing(format!("`{name}` is not installed")))
        };
        Ok(Self::Subordinate { uids, gids, programs: [program("newuidmap")?, program("newgidmap")?] })
    }

    /// Processes that stay in our namespace, for they map ids into the new one.
    fn start_helpers(&self) -> Result<Vec<Helper>, EnterError> {
        let pid = std::process::id();
        match self {
            Self::Subordinate { uids, gids, programs: [newuidmap, newgidmap] } => Ok(vec![
                Helper::start("newuidmap", helper_command(newuidmap, pid, uid(), uids))?,
                Helper::start("newgidmap", helper_command(newgidmap, pid, gid(), gids))?,
            ]),
            Self::Same => {
                let write = |file: &str| {
                    let mut command = Command::new("/bin/sh");
                    let script = format!("read -r _ && echo 0 0 {SAME_IDS} > /proc/{pid}/{file}");
                    command.args(["-c", &script]);
                    command
                };
                Ok(vec![Helper::start("sh", write("uid_map"))?, Helper::start("sh", write("gid_map"))?])
            }
        }
    }
}

fn helper_command(program: &Path, pid: u32, own: u32, ranges: &[Range]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "read -r _ && exec \"$@\"", "sh"]).arg(program).arg(pid.to_string());
    command.args(["0".to_owned(), own.to_string(), "1".to_owned()]);
    let mut inside = 1_u64;
    for range in ranges {
        command.args([inside.to_string(), range.first.to_string(), range.count.to_string()]);
        inside += u64::from(range.count);
    }
    command
}

/// A program with the privilege to map ids. It was started before the namespace is made and waits for that, because
/// nothing may be started between.
struct Helper {
    name: &'static str,
    process: Child,
}

impl Helper {
    fn start(name: &'static str, mut command: Command) -> Result<Self, EnterError> {
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        process
            .map(|process| Self { name, process })
            .map_err(|error| EnterError::Helper { helper: name, reason: format!("it cannot be started: {error}") })
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
