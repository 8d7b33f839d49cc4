//! Control groups: limits of a command, and whether it ran out of memory.
//!
//! A command gets a group of its own only if something is to be limited; otherwise it stays in ours, and a count of
//! kills before and after tells whether memory ran out. Both versions of the interface are spoken; what is missing is
//! a warning, never an error.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::host::serial;
use super::spec::Resources;
use crate::sys::spawn::can_start_in_cgroup;

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

/// Groups of one command (one a legacy tree); removed when dropped.
#[derive(Debug, Default)]
pub(super) struct StepGroup {
    directories: Vec<PathBuf>,
    /// `cgroup.procs` of each: opened here, because a command's thread no longer sees the host's paths when it needs
    /// them.
    entrances: Vec<OwnedFd>,
    /// The directory of a unified group, for processes to be born into it.
    birthplace: Option<OwnedFd>,
    memory: Option<PathBuf>,
    kills_before: u64,
}

impl StepGroup {
    /// Makes groups if `resources` asks for any. Warnings are sentences.
    pub(super) fn new(hierarchy: &Hierarchy, resources: &Resources, warnings: &mut Vec<String>) -> Self {
        let mut group = Self::default();
        if *resources != Resources::default() {
            match group.make(hierarchy, resources) {
                Ok(()) => {}
                Err((path, error)) => warnings.push(format!(
                    "resource limits are not applied in full: cannot set up control group `{}`: {error}",
                    path.display()
                )),
            }
        }
        if group.memory.is_none() {
            group.memory = hierarchy.memory_directory();
        }
        group.kills_before = group.memory.as_deref().map_or(0, kills);
        group
    }

    /// The files that a process joins by writing to them.
    pub(super) fn entrances(&self) -> Vec<BorrowedFd<'_>> {
        self.entrances.iter().map(|file| file.as_fd()).collect()
    }

    /// The unified group that a process is to be born into, if there is one.
    pub(super) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace.as_ref().map(|directory| directory.as_fd())
    }

    /// Whether processes were killed for want of memory since the groups were made.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.memory.as_deref().is_some_and(|memory| kills(memory) > self.kills_before)
    }

    fn add(&mut self, directory: &Path) -> Result<(), (PathBuf, io::Error)> {
        make_directories(directory)?;
        self.directories.push(directory.to_owned());
        let path = directory.join("cgroup.procs");
        let entrance = fs::OpenOptions::new().write(true).open(&path).map_err(|error| (path, error))?;
        self.entrances.push(entrance.into());
        Ok(())
    }

    fn make(&mut self, hierarchy: &Hierarchy, resources: &Resources) -> Result<(), (PathBuf, io::Error)> {
        let name = format!("rbuild-{}-{}", std::process::id(), serial());
        let parent = |own: &Path| resources.cgroup_parent.as_deref().map_or(own.to_owned(), PathBuf::from);
        match hierarchy {
            Hierarchy::None => Err((MOUNT.into(), io::ErrorKind::NotFound.into())),
            Hierarchy::Unified { mount, own } => {
                let parent = join(mount, &parent(own));
                make_directories(&parent)?;
                // Fails where the parent has processes of its own; the limits then say so.
                drop(fs::write(parent.join("cgroup.subtree_control"), "+memory +cpu +cpuset"));
                let directory = parent.join(name);
                self.add(&directory)?;
                if can_start_in_cgroup() {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let opened = rustix::fs::open(&directory, flags, Mode::empty());
                    self.birthplace = Some(opened.map_err(|errno| (directory.clone(), errno.into()))?);
                    self.entrances.clear();
                }
                self.memory = Some(directory.clone());
                write_all(&directory, &unified_settings(resources))
            }
            Hierarchy::Legacy { trees } => {
                for (controllers, mount, own) in trees {
                    let settings = legacy_settings(resources, controllers);
                    let has_memory = controllers.iter().any(|name| name == "memory");
                    if settings.is_empty() && !(has_memory && resources.cgroup_parent.is_some()) {
                        continue;
                    }
                    let directory = join(mount, &parent(own)).join(&name);
                    self.add(&directory)?;
                    if has_memory {
                        self.memory = Some(directory.clone());
                    }
                    write_all(&directory, &settings)?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for StepGroup {
    fn drop(&mut self) {
        // All its processes are gone: the first process of their pid namespace was waited for.
        for directory in &self.directories {
            drop(fs::remove_dir(directory));
        }
    }
}

fn join(mount: &Path, group: &Path) -> PathBuf {
    mount.join(group.strip_prefix("/").unwrap_or(group))
}

fn make_directories(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    fs::create_dir_all(path).map_err(|error| (path.to_owned(), error))
}

type Settings = Vec<(&'static str, String)>;

fn write_all(directory: &Path, settings: &Settings) -> Result<(), (PathBuf, io::Error)> {
    for (file, value) in settings {
        let path = directory.join(file);
        fs::write(&path, value).map_err(|error| (path, error))?;
    }
    Ok(())
}

fn unified_settings(resources: &Resources) -> Settings {
    let mut settings = Settings::new();
    if let Some(memory) = resources.memory_bytes {
        settings.push(("memory.max", memory.to_string()));
    }
    if let Some(both) = resources.memory_swap_bytes {
        let swap = u64::try_from(both).map(|both| both.saturating_sub(resources.memory_bytes.unwrap_or(0)));
        settings.push(("memory.swap.max", swap.map_or("max".to_owned(), |swap| swap.to_string())));
    }
    if let Some(shares) = resources.cpu_shares {
        settings.push(("cpu.weight", weight(shares).to_string()));
    }
    if resources.cpu_quota_us.is_some() || resources.cpu_period_us.is_some() {
        let quota = resources.cpu_quota_us.filter(|&quota| quota > 0);
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        settings.push(("cpu.max", format!("{quota} {}", resources.cpu_period_us.unwrap_or(100_000))));
    }
    settings.extend(resources.cpuset_cpus.clone().map(|cpus| ("cpuset.cpus", cpus)));
    settings.extend(resources.cpuset_mems.clone().map(|mems| ("cpuset.mems", mems)));
    settings
}

/// Shares from 2 to 262144 become a weight from 1 to 10000, as every runtime converts them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn legacy_settings(resources: &Resources, controllers: &[String]) -> Settings {
    let mut settings = Settings::new();
    for controller in controllers {
        match controller.as_str() {
            "memory" => {
                settings.extend(resources.memory_bytes.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())));
                let swap = resources.memory_swap_bytes.map(|bytes| ("memory.memsw.limit_in_bytes", bytes.to_string()));
                settings.extend(swap);
            }
            "cpu" => {
                settings.extend(resources.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())));
                settings.extend(resources.cpu_period_us.map(|period| ("cpu.cfs_period_us", period.to_string())));
                settings.extend(resources.cpu_quota_us.map(|quota| ("cpu.cfs_quota_us", quota.to_string())));
            }
            "cpuset" if resources.cpuset_cpus.is_some() || resources.cpuset_mems.is_some() => {
                // A legacy cpuset takes no process before both are set.
                let inherit = |file: &str| fs::read_to_string(Path::new(MOUNT).join("cpuset").join(file));
                let cpus = resources.cpuset_cpus.clone().or_else(|| inherit("cpuset.cpus").ok());
                let mems = resources.cpuset_mems.clone().or_else(|| inherit("cpuset.mems").ok());
                settings.extend(cpus.map(|cpus| ("cpuset.cpus", cpus.trim().to_owned())));
                settings.extend(mems.map(|mems| ("cpuset.mems", mems.trim().to_owned())));
            }
            _ => {}
        }
    }
    settings
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
    fn limits_become_settings() {
        let resources = Resources {
            memory_bytes: Some(100),
            memory_swap_bytes: Some(150),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            ..Resources::default()
        };
        let unified = unified_settings(&resources);
        let want =
            [("memory.max", "100"), ("memory.swap.max", "50"), ("cpu.weight", "39"), ("cpu.max", "50000 100000")];
        assert_eq!(unified, want.map(|(file, value)| (file, value.to_owned())));
        let legacy = legacy_settings(&resources, &["cpu".to_owned(), "cpuacct".to_owned()]);
        let want = [("cpu.shares", "1024"), ("cpu.cfs_quota_us", "50000")];
        assert_eq!(legacy, want.map(|(file, value)| (file, value.to_owned())));
    }

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(parse_kills("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(parse_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), 7);
        assert_eq!(parse_kills(""), 0);
    }
}
