//! Processes that a command left behind: without a pid namespace nobody ends them but us.
//!
//! They are found in two ways. A process whose root we may look at tells by it. One of another user does not, unless we have
//! `CAP_SYS_PTRACE`; but whoever loses its parent becomes a child of its command, and when that has ended, of this process
//! ([`Commands::adopt_orphans`]): children that we have not started ourselves belong to commands that are over.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use crate::sys::spawn::{Child, Plan, SpawnError, spawn};

/// Looks, at most.
const ROUNDS: usize = 100;

/// Time for a killed process to go.
const PAUSE: Duration = Duration::from_millis(2);

/// The commands that run, to be told from what others have left.
#[derive(Debug, Default)]
pub(in super::super) struct Commands {
    running: Mutex<HashSet<i32>>,
}

impl Commands {
    /// Makes this process the one whose children the orphans of commands become.
    pub(super) fn adopt_orphans(&self) {
        // Linux ≥ 3.4.
        if let Err(errno) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::debug!(%errno, "orphans of steps are not ours");
        }
    }

    /// Starts a command, which is known from then on until [`Commands::end`].
    pub(super) fn start(&self, plan: &Plan<'_>) -> Result<Child, SpawnError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let child = spawn(plan)?;
        running.insert(child.pid());
        Ok(child)
    }

    /// Forgets a command that has ended.
    pub(super) fn end(&self, child: &Child) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.pid());
    }

    /// Kills and reaps what ended commands have left to us, until there is nothing; `scratch` is where all roots are.
    pub(super) fn kill_orphans(&self, scratch: &Path) {
        let mut killed: HashSet<i32> = HashSet::new();
        for round in 0..ROUNDS {
            // None is started meanwhile that would be taken for an orphan.
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let found = orphans(scratch, &running);
            for pid in &found {
                // It may have gone by itself.
                let _ = kill_process(*pid, Signal::KILL);
            }
            drop(running);
            killed.extend(found.iter().map(|pid| pid.as_raw_nonzero().get()));
            if round > 0 {
                std::thread::sleep(PAUSE);
            }
            // Only those that we have killed: somebody else waits for the others.
            killed.retain(|pid| {
                let reaped = Pid::from_raw(*pid).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::NOHANG));
                matches!(reaped, Some(Ok(None)))
            });
            // Their children are ours now.
            if found.is_empty() && killed.is_empty() {
                return;
            }
        }
        tracing::warn!("processes of a step do not end");
    }
}

/// Children of ours that live, that we have not started, and whose root is a command's or hidden from us.
fn orphans(scratch: &Path, running: &HashSet<i32>) -> Vec<Pid> {
    let own = std::process::id();
    let is_orphan = |pid: &Pid| {
        let number = pid.as_raw_nonzero().get();
        let status = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let is_ours = parent_of_living(&status) == Some(own) && !running.contains(&number);
        // Our helpers are in our own root, where we may look.
        is_ours && std::fs::read_link(format!("/proc/{number}/root")).map_or(true, |root| root.starts_with(scratch))
    };
    pids().filter(is_orphan).collect()
}

/// The parent in a line of `/proc/PID/stat`; `None` when the process is dead and only waits to be reaped.
fn parent_of_living(line: &str) -> Option<u32> {
    // The name may hold anything, parentheses included.
    let (_, rest) = line.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// Kills whatever has its root at `root` or below, until there is nothing. A process that we may not look at is not found.
pub(super) fn kill_processes_in(root: &Path) {
    for round in 0..ROUNDS {
        let found = processes_in(root);
        if found.is_empty() {
            return;
        }
        for pid in &found {
            // It may have gone by itself.
            let _ = kill_process(*pid, Signal::KILL);
        }
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
    }
    tracing::warn!("processes of a step do not end");
}

/// Kills the processes of steps whose program was killed: their roots lay below `scratch` and have been removed.
pub fn kill_lost(scratch: &Path) {
    const REMOVED: &[u8] = b" (deleted)";
    for pid in processes_with(|root| root.starts_with(scratch) && root.as_os_str().as_bytes().ends_with(REMOVED)) {
        tracing::debug!(pid = pid.as_raw_nonzero(), "kills what a killed build has left");
        // It may have gone by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn processes_in(root: &Path) -> Vec<Pid> {
    processes_with(|theirs| theirs.starts_with(root))
}

/// All processes but ours whose root satisfies `wanted`.
fn processes_with(wanted: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let own = rustix::process::getpid();
    let root = |pid: Pid| std::fs::read_link(format!("/proc/{}/root", pid.as_raw_nonzero()));
    pids().filter(|pid| *pid != own && root(*pid).is_ok_and(|root| wanted(&root))).collect()
}

/// All processes that can be seen.
fn pids() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_root_is_nobodys_step() {
        let directory = tempfile::tempdir().unwrap();
        assert!(processes_in(directory.path()).is_empty());
        kill_processes_in(directory.path());
    }

    #[test]
    fn parents_are_told_whatever_a_process_is_called() {
        let cases = [
            ("12 (sh) S 7 12 12 0", Some(7)),
            ("12 (a) S 9 (b) R 8 12", Some(8)),
            ("12 (gone) Z 7 12", None),
            ("12 (gone", None),
            ("", None),
        ];
        for (line, want) in cases {
            assert_eq!(parent_of_living(line), want, "{line}");
        }
    }

    #[test]
    fn children_of_our_own_are_no_orphans() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        Commands::default().kill_orphans(Path::new("/there/is/none"));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
