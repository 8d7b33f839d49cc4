//! The groups of one build and of its steps.
//!
//! Limits lie on a group for the whole build, so that steps that run at once share them; every step has a group in it, which
//! tells whose processes were killed. What cannot be limited is a warning, never an error.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::super::host::serial;
use super::super::spec::Resources;
use super::settings::{self, Setting};
use super::{Hierarchy, below, join, kills};
use crate::sys::spawn::can_start_in_cgroup;

/// Names of builds' groups begin with it. A group is its maker's as long as that has it locked.
const PREFIX: &str = "rbuild-limits-";

/// The groups of this process' builds, by their limits; usually one.
#[derive(Default)]
pub(in super::super) struct BuildGroups {
    made: Mutex<Vec<(Resources, Arc<BuildGroup>)>>,
    cleaned: OnceLock<()>,
}

impl BuildGroups {
    /// The group with these limits.
    fn get(&self, hierarchy: &Hierarchy, resources: &Resources) -> Arc<BuildGroup> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, group)) = made.iter().find(|(limits, _)| limits == resources) {
            return Arc::clone(group);
        }
        let group = Arc::new(BuildGroup::make(hierarchy, resources));
        made.push((resources.clone(), Arc::clone(&group)));
        group
    }

    /// Removes what killed processes have left; once.
    fn clean(&self, hierarchy: &Hierarchy) {
        self.cleaned.get_or_init(|| match hierarchy {
            Hierarchy::None => {}
            Hierarchy::Unified { mount, own } => candidates(mount, own).iter().for_each(|parent| clean(parent)),
            Hierarchy::Legacy { trees } => trees.iter().for_each(|(_, mount, own)| clean(&below(mount, own))),
        });
    }
}

/// Groups with limits: one of the unified hierarchy, or one in each tree of the old kind. Removed when dropped.
#[derive(Debug, Default)]
struct BuildGroup {
    directories: Vec<LockedGroup>,
    is_unified: bool,
    /// The one that accounts memory.
    memory: Option<PathBuf>,
    /// What is not enforced, in one sentence.
    warning: Option<String>,
}

#[derive(Debug)]
struct LockedGroup {
    path: PathBuf,
    /// What the groups of steps need as well.
    inherited: Vec<Setting>,
    _lock: OwnedFd,
}

impl Drop for LockedGroup {
    fn drop(&mut self) {
        // The steps' groups are gone.
        drop(fs::remove_dir(&self.path));
    }
}

/// Why a limit does not hold.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("there are no control groups here")]
    NoGroups,
    #[error("the control group has no `{0}` controller")]
    NoController(&'static str),
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl Fault {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// What does not hold, and why.
#[derive(Debug, Default)]
struct Faults(Vec<(&'static str, String)>);

impl Faults {
    fn add(&mut self, flag: Option<&'static str>, fault: &Fault) {
        match flag {
            Some(flag) => self.0.push((flag, fault.to_string())),
            None => tracing::debug!(%fault, "a limit that nobody asked for is not set"),
        }
    }

    fn sentence(&self) -> Option<String> {
        let (_, first) = self.0.first()?;
        let flags = |reason: &str| {
            let flags = self.0.iter().filter(|(_, other)| other == reason).map(|(flag, _)| *flag);
            flags.collect::<Vec<_>>().join(", ")
        };
        let mut text = format!("limits that this machine does not enforce: {} ({first})", flags(first));
        let mut told = vec![first];
        for (_, reason) in &self.0 {
            if !told.contains(&reason) {
                text.push_str(&format!(", {} ({reason})", flags(reason)));
                told.push(reason);
            }
        }
        Some(text)
    }
}

impl BuildGroup {
    fn make(hierarchy: &Hierarchy, resources: &Resources) -> Self {
        let mut group = Self::default();
        let mut faults = Faults::default();
        match hierarchy {
            Hierarchy::None => faults.all(&settings::unified(resources), resources, &Fault::NoGroups),
            Hierarchy::Unified { mount, own } => {
                let wanted = settings::unified(resources);
                if let Err(fault) = group.make_unified(mount, own, resources, &wanted, &mut faults) {
                    faults.all(&wanted, resources, &fault);
                }
            }
            Hierarchy::Legacy { trees } => group.make_legacy(trees, resources, &mut faults),
        }
        group.warning = faults.sentence();
        group
    }

    fn make_unified(
        &mut self,
        mount: &Path,
        own: &Path,
        resources: &Resources,
        wanted: &[Setting],
        faults: &mut Faults,
    ) -> Result<(), Fault> {
        let given = resources.cgroup_parent.as_deref().map(|parent| join(mount, &parent_path(parent)));
        let parents = match given {
            Some(parent) => vec![parent],
            None => candidates(mount, own),
        };
        let mut needed: Vec<&str> = wanted.iter().map(Setting::controller).collect();
        needed.push("memory");
        needed.sort_unstable();
        needed.dedup();
        let locked = make_below(&parents, &needed)?;
        for setting in wanted {
            let path = locked.path.join(setting.file);
            let result = match path.exists() {
                true => fs::write(&path, &setting.value).map_err(Fault::io("write", &path)),
                false => Err(Fault::NoController(setting.controller())),
            };
            if let Err(fault) = result {
                faults.add(setting.flag, &fault);
            }
        }
        // Each step's kills are counted apart where that is possible.
        drop(fs::write(locked.path.join("cgroup.subtree_control"), "+memory"));
        self.is_unified = true;
        self.memory = Some(locked.path.clone()).filter(|path| path.join("memory.events").exists());
        self.directories.push(locked);
        Ok(())
    }

    fn make_legacy(&mut self, trees: &[(Vec<String>, PathBuf, PathBuf)], resources: &Resources, faults: &mut Faults) {
        let mut missing = settings::unified(resources);
        for (controllers, mount, own) in trees {
            missing.retain(|setting| !controllers.iter().any(|name| name == setting.controller()));
            let given = resources.cgroup_parent.as_deref().map(|parent| join(mount, &parent_path(parent)));
            let is_given = given.as_ref().is_some_and(|parent| parent.is_dir());
            let parent = given.clone().unwrap_or_else(|| below(mount, own));
            let of = |controller: &String| settings::legacy(resources, controller, &parent);
            let wanted: Vec<Setting> = controllers.iter().flat_map(of).collect();
            let has_memory = controllers.iter().any(|name| name == "memory");
            let is_asked = wanted.iter().any(|setting| setting.flag.is_some());
            if !(is_asked || is_given || (has_memory && given.is_some())) {
                continue;
            }
            let mut locked = match make_in(&parent) {
                Ok(locked) => locked,
                Err(fault) => {
                    faults.all(&wanted, resources, &fault);
                    continue;
                }
            };
            for setting in &wanted {
                let path = locked.path.join(setting.file);
                if let Err(error) = fs::write(&path, &setting.value) {
                    faults.add(setting.flag, &Fault::io("write", &path)(error));
                }
            }
            if has_memory {
                self.memory = Some(locked.path.clone());
            }
            locked.inherited = wanted.into_iter().filter(|setting| setting.controller() == "cpuset").collect();
            self.directories.push(locked);
        }
        for setting in missing {
            faults.add(setting.flag, &Fault::NoController(setting.controller()));
        }
    }
}

impl Faults {
    /// None of these holds.
    fn all(&mut self, settings: &[Setting], resources: &Resources, fault: &Fault) {
        settings.iter().for_each(|setting| self.add(setting.flag, fault));
        self.add(resources.cgroup_parent.as_ref().map(|_| "--cgroup-parent"), fault);
    }
}

/// A parent as a path from the root of the hierarchy. A slice of systemd's lies in those that its name begins with.
fn parent_path(parent: &str) -> PathBuf {
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/') && !name.is_empty()) else {
        return parent.into();
    };
    let ends = name.match_indices('-').map(|(index, _)| index).chain([name.len()]);
    ends.filter(|&end| end > 0).map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Our group and those above it, to the mount.
fn candidates(mount: &Path, own: &Path) -> Vec<PathBuf> {
    let own = below(mount, own);
    own.ancestors().take_while(|path| path.starts_with(mount)).map(Path::to_owned).collect()
}

/// A new group in that of `parents` (nearest first) which hands the most of the controllers down. A group with processes
/// of its own hands none down, so it is often not the first.
fn make_below(parents: &[PathBuf], needed: &[&str]) -> Result<LockedGroup, Fault> {
    let mut first_fault = None;
    let mut ranked: Vec<(usize, &PathBuf)> = Vec::new();
    for (index, parent) in parents.iter().enumerate() {
        if index == 0 {
            if let Err(fault) = make_directories(parent) {
                first_fault.get_or_insert(fault);
                continue;
            }
            for controller in needed {
                // Refused where the parent has processes, or is somebody else's.
                drop(fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")));
            }
        }
        let handed = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
        let n_missing = needed.iter().filter(|name| !handed.split_whitespace().any(|word| word == **name)).count();
        ranked.push((n_missing, parent));
    }
    // Of equals the nearest.
    ranked.sort_by_key(|(n_missing, _)| *n_missing);
    for (_, parent) in ranked {
        match make_in(parent) {
            Ok(locked) => return Ok(locked),
            Err(fault) => drop(first_fault.get_or_insert(fault)),
        }
    }
    Err(first_fault.unwrap_or(Fault::NoGroups))
}

/// A new group in `parent`, without those that killed processes have left there.
fn make_in(parent: &Path) -> Result<LockedGroup, Fault> {
    make_directories(parent)?;
    clean(parent);
    let mut made = make_locked(parent);
    // Before it is locked, another process may take it for an abandoned one.
    for _ in 0..2 {
        made = made.or_else(|_| make_locked(parent));
    }
    made
}

fn make_locked(parent: &Path) -> Result<LockedGroup, Fault> {
    let path = parent.join(format!("{PREFIX}{}-{}", std::process::id(), serial()));
    DirBuilder::new().create(&path).map_err(Fault::io("create", &path))?;
    let lock = open_directory(&path).and_then(|directory| {
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(directory)
    });
    match lock {
        Ok(lock) => Ok(LockedGroup { path, inherited: Vec::new(), _lock: lock }),
        Err(error) => {
            drop(fs::remove_dir(&path));
            Err(Fault::io("lock", &path)(error))
        }
    }
}

/// Removes groups that nobody has locked.
fn clean(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let names = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for path in names.map(|entry| entry.path()) {
        let Ok(directory) = open_directory(&path) else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let steps = fs::read_dir(&path).into_iter().flatten().flatten();
        for step in steps.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            drop(fs::remove_dir(step.path()));
        }
        // Fails while something still lives in it, which is right.
        drop(fs::remove_dir(&path));
    }
}

/// Groups of one step (one a tree); removed when dropped.
#[derive(Debug, Default)]
pub(in super::super) struct StepGroup {
    directories: Vec<PathBuf>,
    /// `cgroup.procs` of each: opened here, because a command's thread no longer sees the host's paths when it needs
    /// them.
    entrances: Vec<OwnedFd>,
    /// The directory of a unified group, for processes to be born into it.
    birthplace: Option<OwnedFd>,
    memory: Option<PathBuf>,
    kills_before: u64,
    /// Outlives what lies in it.
    _build: Option<Arc<BuildGroup>>,
}

impl StepGroup {
    /// Makes groups if `resources` asks for any; without, the step stays in ours. Warnings are sentences.
    pub(in super::super) fn new(
        hierarchy: &Hierarchy,
        builds: &BuildGroups,
        resources: &Resources,
        warnings: &mut Vec<String>,
    ) -> Self {
        builds.clean(hierarchy);
        let mut group = Self::default();
        if *resources != Resources::default() {
            let build = builds.get(hierarchy, resources);
            warnings.extend(build.warning.clone());
            if let Err(fault) = group.make(&build) {
                warnings.push(format!("resource limits are not applied in full: {fault}"));
            }
            group._build = Some(build);
        }
        if group.memory.is_none() {
            group.memory = hierarchy.memory_directory();
        }
        group.kills_before = group.memory.as_deref().map_or(0, kills);
        group
    }

    fn make(&mut self, build: &BuildGroup) -> Result<(), Fault> {
        let name = format!("step-{}", serial());
        for parent in &build.directories {
            let directory = parent.path.join(&name);
            DirBuilder::new().create(&directory).map_err(Fault::io("create", &directory))?;
            self.directories.push(directory.clone());
            for setting in &parent.inherited {
                let path = directory.join(setting.file);
                fs::write(&path, &setting.value).map_err(Fault::io("write", &path))?;
            }
            if build.memory.as_ref() == Some(&parent.path) {
                let counts_kills = ["memory.events", "memory.oom_control"].iter().any(|f| directory.join(f).exists());
                self.memory = Some(if counts_kills { directory.clone() } else { parent.path.clone() });
            }
            if build.is_unified && can_start_in_cgroup() {
                self.birthplace = Some(open_directory(&directory).map_err(Fault::io("open", &directory))?);
            } else {
                let path = directory.join("cgroup.procs");
                let entrance = fs::OpenOptions::new().write(true).open(&path).map_err(Fault::io("open", &path))?;
                self.entrances.push(entrance.into());
            }
        }
        Ok(())
    }

    /// The files that a process joins by writing to them.
    pub(in super::super) fn entrances(&self) -> Vec<BorrowedFd<'_>> {
        self.entrances.iter().map(|file| file.as_fd()).collect()
    }

    /// The unified group that a process is to be born into, if there is one.
    pub(in super::super) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace.as_ref().map(|directory| directory.as_fd())
    }

    /// Whether processes were killed for want of memory since the groups were made.
    pub(in super::super) fn ran_out_of_memory(&self) -> bool {
        self.memory.as_deref().is_some_and(|memory| kills(memory) > self.kills_before)
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

fn make_directories(path: &Path) -> Result<(), Fault> {
    fs::create_dir_all(path).map_err(Fault::io("create", path))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a group, to a degree.
    fn group(path: &Path, handed_down: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.subtree_control"), handed_down).unwrap();
    }

    #[test]
    fn slices_lie_in_each_other() {
        for (parent, path) in [
            ("/a/b", "/a/b"),
            ("a", "a"),
            ("user.slice", "user.slice"),
            ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
            ("/x/a-b.slice", "/x/a-b.slice"),
        ] {
            assert_eq!(parent_path(parent), Path::new(path));
        }
    }

    #[test]
    fn the_nearest_group_that_hands_controllers_down_is_taken() {
        let mount = tempfile::tempdir().unwrap();
        let own = mount.path().join("slice/scope");
        group(mount.path(), "cpu memory pids");
        group(&mount.path().join("slice"), "cpu memory");
        group(&own, "");
        let parents = candidates(mount.path(), Path::new("/slice/scope"));
        assert_eq!(parents, [own.clone(), mount.path().join("slice"), mount.path().to_owned()]);
        // A plain file takes what is written for what it hands down: only the last.
        let locked = make_below(&parents, &["cpu", "memory"]).unwrap();
        assert_eq!(locked.path.parent(), Some(&*mount.path().join("slice")));
        let path = locked.path.clone();
        drop(locked);
        assert!(!path.exists());
    }

    #[test]
    fn abandoned_groups_go_and_others_stay() {
        let parent = tempfile::tempdir().unwrap();
        let abandoned = parent.path().join(format!("{PREFIX}1-1"));
        fs::create_dir_all(abandoned.join("step-3")).unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        let (first, second) = (make_in(parent.path()).unwrap(), make_in(parent.path()).unwrap());
        assert!(!abandoned.exists() && parent.path().join("other").exists());
        assert!(first.path.exists() && second.path.exists());
    }

    #[test]
    fn limits_are_reported_with_what_keeps_them_from_working() {
        let resources = Resources {
            memory_bytes: Some(1 << 30),
            cpu_quota_us: Some(50_000),
            cgroup_parent: Some("x".to_owned()),
            ..Resources::default()
        };
        let group = BuildGroup::make(&Hierarchy::None, &resources);
        assert_eq!(
            group.warning.as_deref(),
            Some(
                "limits that this machine does not enforce: --memory, --cpus/--cpu-quota, --cgroup-parent (there are no control groups here)"
            )
        );
        let mut faults = Faults::default();
        faults.add(Some("--memory"), &Fault::NoGroups);
        faults.add(None, &Fault::NoGroups);
        faults.add(Some("--cpus"), &Fault::NoController("cpu"));
        let sentence = faults.sentence().unwrap();
        assert!(
            sentence
                .ends_with("(there are no control groups here), --cpus (the control group has no `cpu` controller)")
        );
    }
}
