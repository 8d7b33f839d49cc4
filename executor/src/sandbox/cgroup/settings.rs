//! Limits as the files of control groups that hold them, in both versions of the interface.

use std::fs;
use std::path::Path;

use super::super::spec::Resources;

/// One file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Its name; the controller's comes first.
    pub(super) file: &'static str,
    /// What is written.
    pub(super) value: String,
    /// The flag that asks for it; `None` when only something else implies it.
    pub(super) flag: Option<&'static str>,
}

/// The quota has two flags.
const QUOTA: &str = "--cpus/--cpu-quota";

fn asked(file: &'static str, value: impl ToString, flag: &'static str) -> Setting {
    Setting { file, value: value.to_string(), flag: Some(flag) }
}

fn implied(file: &'static str, value: impl ToString) -> Setting {
    Setting { file, value: value.to_string(), flag: None }
}

impl Setting {
    /// The controller that has the file.
    pub(super) fn controller(&self) -> &'static str {
        self.file.split('.').next().unwrap_or(self.file)
    }
}

/// For the unified hierarchy.
pub(super) fn unified(resources: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory_bytes {
        settings.push(asked("memory.max", memory, "--memory"));
    }
    match (resources.memory_swap_bytes, resources.memory_bytes) {
        (Some(both), memory) => {
            let swap = u64::try_from(both).map(|both| both.saturating_sub(memory.unwrap_or(0)));
            settings.push(asked("memory.swap.max", swap.map_or("max".to_owned(), |n| n.to_string()), "--memory-swap"));
        }
        // As much swap as memory, as docker has it.
        (None, Some(memory)) => settings.push(implied("memory.swap.max", memory)),
        (None, None) => {}
    }
    if let Some(shares) = resources.cpu_shares {
        settings.push(asked("cpu.weight", weight(shares), "--cpu-shares"));
    }
    if resources.cpu_quota_us.is_some() || resources.cpu_period_us.is_some() {
        let quota = resources.cpu_quota_us.filter(|&quota| quota > 0);
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        let period = resources.cpu_period_us.unwrap_or(100_000);
        settings.push(asked("cpu.max", format!("{quota} {period}"), QUOTA));
    }
    settings.extend(resources.cpuset_cpus.iter().map(|cpus| asked("cpuset.cpus", cpus, "--cpuset-cpus")));
    settings.extend(resources.cpuset_mems.iter().map(|mems| asked("cpuset.mems", mems, "--cpuset-mems")));
    settings
}

/// Shares from 2 to 262144 become a weight from 1 to 10000, as every runtime converts them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// For one tree of the old kind. `parent` is the group that the new one lies in.
pub(super) fn legacy(resources: &Resources, controller: &str, parent: &Path) -> Vec<Setting> {
    let mut settings = Vec::new();
    match controller {
        "memory" => {
            settings.extend(resources.memory_bytes.map(|bytes| asked("memory.limit_in_bytes", bytes, "--memory")));
            let file = "memory.memsw.limit_in_bytes";
            settings.extend(match (resources.memory_swap_bytes, resources.memory_bytes) {
                (Some(both), _) => Some(asked(file, both, "--memory-swap")),
                (None, memory) => memory.map(|memory| implied(file, memory.saturating_mul(2))),
            });
        }
        "cpu" => {
            settings.extend(resources.cpu_shares.map(|shares| asked("cpu.shares", shares, "--cpu-shares")));
            settings.extend(resources.cpu_period_us.map(|us| asked("cpu.cfs_period_us", us, "--cpu-period")));
            settings.extend(resources.cpu_quota_us.map(|us| asked("cpu.cfs_quota_us", us, QUOTA)));
        }
        "cpuset" => {
            // A group takes no process before both are set.
            let inherit = |file: &str| fs::read_to_string(parent.join(file)).unwrap_or_default().trim().to_owned();
            settings.push(match &resources.cpuset_cpus {
                Some(cpus) => asked("cpuset.cpus", cpus, "--cpuset-cpus"),
                None => implied("cpuset.cpus", inherit("cpuset.cpus")),
            });
            settings.push(match &resources.cpuset_mems {
                Some(mems) => asked("cpuset.mems", mems, "--cpuset-mems"),
                None => implied("cpuset.mems", inherit("cpuset.mems")),
            });
        }
        _ => {}
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(settings: Vec<Setting>) -> Vec<(&'static str, String)> {
        settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    #[test]
    fn limits_become_settings() {
        let resources = Resources {
            memory_bytes: Some(100),
            memory_swap_bytes: Some(150),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            ..Resources::default()
        };
        let want =
            [("memory.max", "100"), ("memory.swap.max", "50"), ("cpu.weight", "39"), ("cpu.max", "50000 100000")];
        assert_eq!(pairs(unified(&resources)), want.map(|(file, value)| (file, value.to_owned())));
        let cpu = legacy(&resources, "cpu", Path::new("/"));
        let want = [("cpu.shares", "1024"), ("cpu.cfs_quota_us", "50000")];
        assert_eq!(pairs(cpu), want.map(|(file, value)| (file, value.to_owned())));
        assert!(legacy(&resources, "pids", Path::new("/")).is_empty());
        assert_eq!(unified(&resources)[2].controller(), "cpu");
    }

    #[test]
    fn memory_alone_allows_as_much_swap() {
        let resources = Resources { memory_bytes: Some(100), ..Resources::default() };
        let swap = |settings: Vec<Setting>| settings.last().map(|last| (last.value.clone(), last.flag));
        assert_eq!(swap(unified(&resources)), Some(("100".to_owned(), None)));
        assert_eq!(swap(legacy(&resources, "memory", Path::new("/"))), Some(("200".to_owned(), None)));
        let resources = Resources { memory_swap_bytes: Some(-1), ..resources };
        assert_eq!(swap(unified(&resources)), Some(("max".to_owned(), Some("--memory-swap"))));
    }

    #[test]
    fn an_old_cpuset_has_both_lists() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("cpuset.mems"), "0-1\n").unwrap();
        let resources = Resources { cpuset_cpus: Some("1".to_owned()), ..Resources::default() };
        let want = [("cpuset.cpus", "1".to_owned()), ("cpuset.mems", "0-1".to_owned())];
        assert_eq!(pairs(legacy(&resources, "cpuset", parent.path())), want);
    }
}
