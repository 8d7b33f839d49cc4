//! Control groups: limits of builds, and whether a command ran out of memory.
//!
//! A build gets groups of its own only if something is to be limited; otherwise its commands stay in ours, and a count of
//! kills before and after tells whether memory ran out. Both versions of the interface are spoken; what is missing is
//! a warning, never an error.

mod groups;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

pub(super) use groups::{BuildGroups, StepGroup};

/// Where the hierarchies of a machine are usually mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// How control groups are organised on this machine, and where we are in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// There are none, or they cannot be seen.
    None,
    /// One tree for all controllers.
    Unified {
        /// Where the tree is mounted.
        mount: PathBuf,
        /// Our own group, absolute in the tree.
        own: PathBuf,
    },
    /// One tree a controller, perhaps with an empty unified one beside them.
    Legacy {
        /// Names of the controllers, directory of the tree, and our own group in it.
        trees: Vec<(Vec<String>, PathBuf, PathBuf)>,
    },
}

impl Hierarchy {
    /// Looks at this process.
    pub(super) fn of_this_process() -> Self {
        let Ok(text) = fs::read_to_string("/proc/self/cgroup") else { return Self::None };
        let unified = rustix::fs::statfs(MOUNT).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC);
        Self::parse(&text, Path::new(MOUNT), unified)
    }

    fn parse(text: &str, mount: &Path, unified: bool) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        });
        if unified {
            let own = lines.clone().find(|(id, ..)| *id == "0").map_or("/", |(_, _, path)| path);
            return Self::Unified { mount: mount.to_owned(), own: own.into() };
        }
        let trees: Vec<_> = lines
            .filter(|(id, controllers, _)| *id != "0" && !controllers.is_empty() && !controllers.contains('='))
            .map(|(_, controllers, own)| {
                let names = controllers.split(',').map(str::to_owned).collect();
                (names, mount.join(controllers), PathBuf::from(own))
            })
            .collect();
        if trees.is_empty() { Self::None } else { Self::Legacy { trees } }
    }

    /// Whether commands get a control group namespace and a view of the unified tree.
    pub(super) fn is_unified(&self) -> bool {
        matches!(self, Self::Unified { .. })
    }

    /// The mounts of the legacy trees, to be shown to a command.
    pub(super) fn legacy_mount(&self) -> Option<&'static Path> {
        matches!(self, Self::Legacy { .. }).then(|| Path::new(MOUNT))
    }

    /// Directory of our own group in the unified hierarchy, which may lie beside the legacy ones.
    pub(super) fn unified_directory(&self) -> Option<PathBuf> {
        match self {
            Self::Unified { mount, own } => Some(below(mount, own)),
            Self::Legacy { .. } | Self::None => {
                let mount = Path::new(MOUNT).join("unified");
                let is_unified =
                    |path: &PathBuf| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC);
                let text = fs::read_to_string("/proc/self/cgroup").ok()?;
                let own = text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)?;
                Some(mount).filter(is_unified).map(|mount| below(&mount, &own))
            }
        }
    }

    /// Directory of the group that accounts memory for `group`, if there is one.
    fn memory_directory(&self) -> Option<PathBuf> {
        match self {
            Self::None => None,
            Self::Unified { mount, own } => Some(below(mount, own)),
            Self::Legacy { trees } => {
                let (_, mount, own) = trees.iter().find(|(names, ..)| names.iter().any(|name| name == "memory"))?;
                Some(below(mount, own))
            }
        }
    }
}

/// A group as a directory. Inside a container the path may lead above what is mounted: then the mount is the group.
pub(super) fn below(mount: &Path, group: &Path) -> PathBuf {
    let path = mount.join(group.strip_prefix("/").unwrap_or(group));
    if path.is_dir() { path } else { mount.to_owned() }
}

fn join(mount: &Path, group: &Path) -> PathBuf {
    mount.join(group.strip_prefix("/").unwrap_or(group))
}

/// How many processes of a group (and those below) were killed for want of memory.
fn kills(group: &Path) -> u64 {
    let text = fs::read_to_string(group.join("memory.events"))
        .or_else(|_| fs::read_to_string(group.join("memory.oom_control")))
        .unwrap_or_default();
    parse_kills(&text)
}

fn parse_kills(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_understood() {
        let mount = Path::new("/cg");
        let unified = Hierarchy::parse("0::/user.slice/a\n", mount, true);
        assert_eq!(unified, Hierarchy::Unified { mount: mount.into(), own: "/user.slice/a".into() });
        let legacy = Hierarchy::parse("9:name=systemd:/\n4:memory:/x:y\n1:cpu,cpuacct:/\n0::/\n", mount, false);
        let Hierarchy::Legacy { trees } = legacy else { panic!() };
        assert_eq!(trees[0], (vec!["memory".into()], "/cg/memory".into(), "/x:y".into()));
        assert_eq!(trees[1].1, Path::new("/cg/cpu,cpuacct"));
        assert_eq!(Hierarchy::parse("0::/\n", mount, false), Hierarchy::None);
    }

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(parse_kills("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(parse_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), 7);
        assert_eq!(parse_kills(""), 0);
    }
}
