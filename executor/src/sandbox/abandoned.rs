//! What killed processes leave outside of the store: control groups. Everything else goes with them.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup::{Hierarchy, below};

/// Removes the control groups of our kind whose makers are gone. Cheap when there are none.
pub fn remove_abandoned_groups() {
    let hierarchy = Hierarchy::of_this_process();
    let mut directories: Vec<PathBuf> = hierarchy.unified_directory().into_iter().collect();
    if let Hierarchy::Legacy { trees } = &hierarchy {
        directories.extend(trees.iter().map(|(_, mount, own)| below(mount, own)));
    }
    for directory in directories {
        remove_in(&directory, Path::new("/proc"));
    }
}

fn remove_in(directory: &Path, processes: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(maker);
        if maker.is_some_and(|pid| !processes.join(pid).exists()) {
            // Fails while something still lives in it, which is right.
            let removed = rustix::fs::rmdir(entry.path());
            tracing::debug!(path = %entry.path().display(), ?removed, "a control group that a killed process left");
        }
    }
}

/// The process id in a name that we give to control groups: `rbuild-12-3`, `rbuild-devices-12-3`.
fn maker(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("rbuild-")?;
    let pid = rest.strip_prefix("devices-").unwrap_or(rest).split('-').next()?;
    pid.parse::<u32>().ok().map(|_| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_the_dead_go() {
        let [groups, processes] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir(processes.path().join("12")).unwrap();
        for name in
            ["rbuild-12-0", "rbuild-devices-12-1", "rbuild-13-0", "rbuild-devices-13-1", "rbuild-x-1", "other-13"]
        {
            fs::create_dir(groups.path().join(name)).unwrap();
        }
        remove_in(groups.path(), processes.path());
        let mut left: Vec<_> = fs::read_dir(groups.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-13", "rbuild-12-0", "rbuild-devices-12-1", "rbuild-x-1"]);
    }
}
