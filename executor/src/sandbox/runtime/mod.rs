//! Commands started by an OCI runtime (`--isolation=oci:RUNTIME`) in place of our own first process.
//!
//! Everything about the root stays as it is in [`super::step`]: the same overlay, the same `/dev`, the same mounts and
//! mount points. A runtime binds its root together with all that is mounted below it, so it is given a root that is
//! ready, and a bundle (see [`config`]) that leaves to it what belongs to namespaces of its own: `/proc`, `/sys`, users,
//! capabilities, the system call filter.
//!
//! **Invariants:** bundle, state and log of a runtime lie in memory and in this command's mount namespace alone, so a
//! secret in the environment reaches no disk and nothing outlives the command. A runtime is the first process of a pid
//! namespace that dies with us: whatever it started dies with it, without its help. It makes no control groups: they
//! are read-only to it, and ours holds it.

mod config;
mod flags;
mod program;

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use serde::Deserialize;
use solver::SecurityMode;

use super::command::{self, Command};
use super::devices::Devices;
use super::error::SandboxError;
use super::host::serial;
use super::mounts;
use super::nodes::MadeNode;
use super::points::MadePoint;
use super::spec::{NotStarted, Stdio};
use super::step::{DEFAULT_CAPABILITIES, Outcome, Sources, Step, is_kernel_path};
use super::streams::Streams;
use super::supervise::supervise;
use super::terminal::window_size;
use super::{login, rootfs};
use crate::sys::mount::MountAttributes;
use crate::sys::spawn::{Capabilities, Ended, Identity, LateMount, Limit, Plan, Program, SpawnError, Stage, spawn};
use crate::view::passwd::RunUser;
use config::{Config, Facts, Mount, Sys};
use flags::Places;

/// Where the host's control groups are seen.
const CGROUPS: &str = "/sys/fs/cgroup";

impl Step<'_> {
    /// The rest of a command's life, once its root is mounted at the host's root point.
    pub(super) fn hand_over(
        &self,
        program: &Path,
        devices: &Devices,
        sources: Sources,
        made: &mut Vec<MadePoint>,
    ) -> Result<Outcome, SandboxError> {
        let root = self.host.root_point();
        let handlers = has_handlers();
        let (account, command) =
            match mounts::inside(&root, || self.furnish(devices, sources.early, &sources.nodes, made, handlers))? {
                Furnished::Ready(account, command) => (account, command),
                Furnished::NotStarted(reason, text) => {
                    self.say(&text);
                    return Ok((Ended::Exited(1), Some(reason)));
                }
            };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let bundle = Bundle::make(self.host.bundle_point())?;
        let mut late = sources.sys.mounts;
        late.extend(sources.late);
        let late = late.into_iter().enumerate().filter_map(|(index, mount)| bundle.stage(index, mount).transpose());
        let facts = Facts {
            spec: self.spec,
            root: &root,
            account: &account,
            groups: self.host.isolation.may_set_groups().then_some(&account.supplementary[..]),
            environment: command.environment(),
            limits: &self.limits,
            open_files: open_files(),
            window: (self.spec.stdio == Stdio::Terminal).then(window_size).flatten(),
            capabilities: match self.spec.security {
                SecurityMode::Sandbox => DEFAULT_CAPABILITIES,
                SecurityMode::Insecure => self.host.capabilities,
            },
            sys: if sources.sys.is_final { Sys::Late } else { Sys::New },
            unified_cgroups: self.host.hierarchy.is_unified(),
            late: late.collect::<Result<_, _>>()?,
        };
        bundle.write(&Config::new(facts))?;
        protect_control_groups()?;
        let ended = self.start_runtime(program, &bundle, &account)?;
        Self::judge(program, &bundle, ended)
    }

    /// In the root: what our own sandbox does before it starts the command, and a look at the program, whose absence
    /// the runtimes report in different words.
    fn furnish(
        &self,
        devices: &Devices,
        early: Vec<mounts::Prepared>,
        nodes: &[MadeNode],
        made: &mut Vec<MadePoint>,
        handlers: bool,
    ) -> Result<Furnished, SandboxError> {
        rustix::process::umask(Mode::empty());
        self.fill_root(devices, early, made)?;
        let account = self.account(nodes)?;
        let cwd = &self.spec.cwd;
        if !is_kernel_path(cwd) {
            login::make_directory(cwd, cwd.as_ref(), &account)?;
            let entered = rustix::process::chdir(cwd.as_str());
            entered.map_err(|errno| SandboxError::Directory { path: cwd.clone(), errno })?;
        }
        let home = account.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
        let command = Command::new(&self.spec.args, &self.spec.env, home)?;
        Ok(match program::refusal(command.candidates(), &account, handlers) {
            Some(errno) => {
                let (reason, text) = command.explain(errno, Path::new("/"));
                Furnished::NotStarted(reason, text)
            }
            None => Furnished::Ready(account, command),
        })
    }

    /// Starts the runtime and waits for it: it ends as the command does.
    fn start_runtime(&self, program: &Path, bundle: &Bundle, account: &RunUser) -> Result<Ended, SandboxError> {
        let streams = Streams::open_for_runtime(self.spec.stdio, account.uid)?;
        let id = format!("rbuild-{}-{}", std::process::id(), serial());
        let text = |text: &str| command::c_string(text, "the path of the runtime");
        let arguments = flags::arguments(program, &bundle.places(), &id);
        let arguments = arguments.iter().map(|argument| text(argument)).collect::<Result<Vec<_>, _>>()?;
        let environment = vec![text(&format!("PATH={}", command::DEFAULT_PATH))?];
        let mut mounts = vec![LateMount::Call(rootfs::proc_mount(false))];
        if self.spec.security == SecurityMode::Sandbox && self.host.counts_processes {
            // Counts for the namespace that the runtime makes below this one, too.
            mounts.push(rootfs::most_processes());
        }
        let plan = Plan {
            pid_namespace: true,
            birth_cgroup: self.birthplace,
            cgroups: self.group.entrances(),
            cgroup_namespace: false,
            stdio: streams.for_command(),
            session: streams.session,
            mounts,
            limits: Vec::new(),
            root: None,
            filter: None,
            listener: None,
            // A runtime needs what it may do outside of it: emulators are the machine's own there.
            user_namespace: None,
            directory: c"/".to_owned(),
            identity: Identity {
                uid: 0,
                gid: 0,
                groups: None,
                capabilities: Capabilities::Bounded(self.host.capabilities),
            },
            parent: self.host.this_process.as_fd(),
            forbidden: self.host.program,
            program: Program::new(arguments[..1].to_vec(), arguments, environment),
        };
        if self.control.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        let child = spawn(&plan).map_err(|error| match error {
            SpawnError::Child { stage: Stage::Exec, errno } => {
                SandboxError::Runtime { program: program.to_owned(), message: format!("it cannot be started: {errno}") }
            }
            error => self.spawn_error(error, &plan),
        })?;
        drop(plan);
        supervise(&child, streams.into_ours(), self.control, self.reports)
    }

    /// Whether it was the command that ended, or the runtime that could not start it.
    ///
    /// A runtime that was killed has taken the command with it: mostly because memory ran out, which they share.
    fn judge(program: &Path, bundle: &Bundle, ended: Ended) -> Result<Outcome, SandboxError> {
        let complaint = if matches!(ended, Ended::Exited(1..)) { bundle.complaint() } else { None };
        match complaint {
            None => Ok((ended, None)),
            Some(message) => Err(SandboxError::Runtime { program: program.to_owned(), message }),
        }
    }
}

/// What is known of a command before a runtime has to do with it.
enum Furnished {
    Ready(RunUser, Command),
    NotStarted(NotStarted, String),
}

/// Whether programs of strange formats may run here: the kernel has handlers for some.
fn has_handlers() -> bool {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name != "register" && name != "status")
}

/// Our own limit of open files.
fn open_files() -> Limit {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let value = |value: Option<u64>| value.unwrap_or(libc::RLIM64_INFINITY);
    Limit { rlim_cur: value(limit.current), rlim_max: value(limit.maximum) }
}

/// Makes control groups read-only for all that follows in this mount namespace: a runtime that cannot write them leaves
/// the command in the group that it was born into itself, and there is nothing of its own to clean up.
fn protect_control_groups() -> Result<(), SandboxError> {
    let protected = match mounts::detached_tree(Path::new(CGROUPS), MountAttributes::READ_ONLY) {
        // There are none, or this kernel cannot do it: then the runtime has its way.
        Err(Errno::NOENT | Errno::NOSYS | Errno::INVAL) => return Ok(()),
        protected => protected.map_err(SandboxError::call("share", CGROUPS))?,
    };
    mounts::attach(&protected, Path::new(CGROUPS))?;
    // Some runtimes refuse a machine that has both versions.
    let unified = Path::new(CGROUPS).join("unified");
    if unified.exists() {
        mounts::mount_memory(&unified)?;
    }
    Ok(())
}

/// What a runtime reads and writes, in memory.
struct Bundle {
    directory: PathBuf,
    state: PathBuf,
    log: PathBuf,
}

impl Bundle {
    /// Mounts it on `directory`.
    fn make(directory: PathBuf) -> Result<Self, SandboxError> {
        mounts::mount_memory(&directory)?;
        Ok(Self { state: directory.join("state"), log: directory.join("log"), directory })
    }

    fn places(&self) -> Places<'_> {
        Places { bundle: &self.directory, state: &self.state, log: &self.log }
    }

    /// Puts a mount where the runtime can bind it from.
    fn stage(&self, index: usize, mount: LateMount) -> Result<Option<Mount>, SandboxError> {
        let (mount, target) = match mount {
            LateMount::Call(call) => return Ok(Some(Mount::call(&call))),
            LateMount::Attach { mount, target } => (mount, target),
            // No mount.
            LateMount::Write { .. } => return Ok(None),
        };
        let point = self.directory.join(format!("mount-{index}"));
        let found = rustix::fs::fstat(&mount).map_err(SandboxError::setup("look at the source of a mount"))?;
        let made = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => fs::create_dir(&point),
            _ => fs::write(&point, ""),
        };
        made.map_err(SandboxError::io("create mount point", &point))?;
        mounts::attach(&mount, &point)?;
        let facts = rustix::fs::fstatvfs(&mount).map_err(SandboxError::setup("look at the source of a mount"))?;
        Ok(Some(Mount::tree(&point, &target.to_string_lossy(), facts.f_flag)))
    }

    fn write(&self, config: &Config) -> Result<(), SandboxError> {
        let path = self.directory.join("config.json");
        let text = serde_json::to_vec(config).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(SandboxError::io("write", path))
    }

    /// The last error in the runtime's log, which the command itself cannot write.
    fn complaint(&self) -> Option<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().find_map(complaint)
    }
}

/// The message of a line of a log, if it is an error.
fn complaint(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        msg: String,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    matches!(line.level.as_str(), "error" | "fatal" | "ERROR").then_some(line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_the_logs_of_runtimes_are_found() {
        let cases = [
            (r#"{"level":"error","msg":"runc run failed: no luck","time":"t"}"#, Some("runc run failed: no luck")),
            (r#"{"msg":"no luck","level":"error","time":"t"}"#, Some("no luck")),
            (r#"{"level":"warning","msg":"unable to get oom kill count"}"#, None),
            ("something else", None),
        ];
        for (line, want) in cases {
            assert_eq!(complaint(line).as_deref(), want, "{line}");
        }
    }
}
