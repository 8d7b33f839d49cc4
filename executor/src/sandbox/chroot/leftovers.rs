//! Processes that a command left behind: without a pid namespace nobody ends them but us.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Looks, at most.
const ROUNDS: usize = 100;

/// Time for a killed process to go.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills whatever has its root at `root` or below, until there is nothing. A process that we may not look at is not found:
/// one of another user, where we lack `CAP_SYS_PTRACE`.
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
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = rustix::process::getpid();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    let root = |pid: Pid| std::fs::read_link(format!("/proc/{}/root", pid.as_raw_nonzero()));
    pids.filter(|pid| *pid != own && root(*pid).is_ok_and(|root| wanted(&root))).collect()
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
}
