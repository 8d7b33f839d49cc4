//! Processes that a command left behind: without a pid namespace nobody ends them but us.

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

fn processes_in(root: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = rustix::process::getpid();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            let link = format!("/proc/{}/root", pid.as_raw_nonzero());
            std::fs::read_link(link).is_ok_and(|theirs| theirs.starts_with(root))
        })
        .collect()
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
