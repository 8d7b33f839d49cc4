//! One command from the first namespace to the last clean-up, on a thread of its own.
//!
//! The thread gives *itself* new mount, ipc, uts and network namespaces, builds the root in them with ordinary code,
//! enters it, and starts the command as the first process of a new pid namespace ([`crate::sys::spawn`]). Then it waits
//! for the end and goes back to the host's mount namespace; the mounts are taken down while the solver already deals with
//! the result. It must not end before the command: the kernel kills the command with it.

use std::fs::DirBuilder;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use solver::{NetworkMode, SecurityMode, Stream};
use tokio::sync::mpsc::Sender;

use super::cgroup::StepGroup;
use super::control::{Control, Report};
use super::devices::Devices;
use super::error::SandboxError;
use super::guard::{DeviceGuard, DevicePolicy};
use super::host::Host;
use super::isolation::Isolation;
use super::mounts::{self, Prepared, Workshop, file_attributes};
use super::namespaces::{Namespaces, Remains};
use super::nodes::{self, MadeNode};
use super::overlay::Overlay;
use super::points::{self, MadePoint, PointKind};
use super::pretend::{Pretender, adopt};
use super::room::Room;
use super::spec::{Exit, SandboxSpec};
use super::streams::Streams;
use super::supervise::supervise;
use super::{chroot, command, devices, hooks, limits, login, network, rootfs, seccomp};
use crate::sys::mount::MountAttributes;
use crate::sys::spawn::{Capabilities, Child, Ended, Identity, LateMount, Plan, SpawnError, Stage, spawn};
use crate::view::passwd::RunUser;

/// Docker's default set, `00000000a80425fb`.
pub(super) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Files that every container gets.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs the command of `spec` to its end, in `room` if one was made ahead. Blocks; must have its thread to itself.
///
/// After a success the command's mounts are left to be taken down when nobody waits; after a failure nothing is.
pub(super) fn perform<'a>(
    host: &'a Host,
    spec: &SandboxSpec,
    control: &Control,
    reports: &Sender<Report>,
    room: Option<Room<'a>>,
) -> Result<(Exit, Option<Remains>), SandboxError> {
    if control.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    match host.isolation {
        Isolation::Chroot => return Ok((chroot::perform(host, spec, control, reports)?, None)),
        Isolation::Nothing => return Err(SandboxError::NoCommands),
        Isolation::Root | Isolation::UserNamespace | Isolation::SingleId => {}
    }
    if host.runtime.is_none() {
        hooks::check(&spec.given.hooks)?;
    }
    let limits = limits::resolve(&spec.ulimits, limits::process_ceiling(host.may_raise_limits()))?;
    let mut warnings: Vec<String> = limits.warning.into_iter().collect();
    let group = StepGroup::new(&host.hierarchy, &host.build_groups, &spec.resources, &mut warnings);
    let scratch = if spec.mounts.is_empty() { None } else { Some(host.step_directory()?) };
    let scratch = scratch.as_ref().map_or(host.root(), |directory| directory.path());
    warnings.extend(spec.given.warnings(host));
    let own_guard = spec.given.guard(host);
    let guard = own_guard.as_ref().unwrap_or_else(|| host.guard());
    let (policy, birthplace) = keep_from_devices(guard, spec.security, &group);
    let stubs = make_stubs(host, spec, scratch)?;
    mounts::copy_root_metadata(&spec.lower, &spec.upper)?;

    let (mut made, mut user) = (Vec::new(), None);
    let step = Step {
        host,
        spec,
        control,
        reports,
        scratch,
        stubs: &stubs,
        limits: limits.values,
        group: &group,
        policy,
        birthplace,
    };
    let (outcome, remains) = {
        let (mut namespaces, devices) = match room {
            Some(room) => (room.namespaces, Some(room.devices)),
            None => (Namespaces::enter(host, spec.network)?, None),
        };
        namespaces.give_to(spec)?;
        warnings.extend(namespaces.warning.take());
        if spec.network == NetworkMode::Default && namespaces.private_network {
            warnings.extend(network::loopback_proxy(&spec.env));
        }
        let devices = match devices.filter(|devices| devices.fit(policy, spec.shm_size_bytes)) {
            Some(devices) => devices,
            None => Devices::prepare(host, policy, spec.shm_size_bytes)?,
        };
        let outcome = step.run(&namespaces, &devices, &mut made, &mut user);
        let remains = namespaces.leave();
        let is_success = matches!(outcome, Ok((Ended::Exited(0), None)));
        (outcome, is_success.then_some(remains))
    };
    let targets = spec.mounts.iter().map(|mount| mount.target.as_str()).chain([HOSTS, RESOLV_CONF]);
    points::remove_traces(&spec.upper, &spec.lower, targets, &made)?;
    let (ended, not_started) = outcome?;
    if let Some(user) = user.filter(|user| host.isolation == Isolation::SingleId && (user.uid, user.gid) != (0, 0)) {
        adopt(&spec.upper, &spec.lower, user.uid, user.gid)?;
    }
    let (code, signal) = match ended {
        Ended::Exited(code) => (code, None),
        Ended::Killed(signal) => (128 + signal, Some(signal)),
    };
    let out_of_memory = code != 0 && group.ran_out_of_memory();
    Ok((Exit { code, signal, out_of_memory, not_started, warnings }, remains))
}

/// The bottom-most layer: mount points for what is always mounted, and for this command's mounts.
fn make_stubs(host: &Host, spec: &SandboxSpec, scratch: &Path) -> Result<PathBuf, SandboxError> {
    if spec.mounts.is_empty() {
        return Ok(host.default_stubs());
    }
    let root = scratch.join("stubs");
    DirBuilder::new().mode(0o755).create(&root).map_err(SandboxError::io("create", &root))?;
    let own = spec.mounts.iter().map(|mount| (mount.target.as_str(), mounts::likely_kind(mount)));
    let own = own.filter(|(target, _)| !is_kernel_path(target) && !is_below(target, "/dev"));
    let always = [(HOSTS, PointKind::File), (RESOLV_CONF, PointKind::File)];
    points::make_stubs(&root, own.chain(always))?;
    Ok(root)
}

/// How the command is kept from devices, and the control group that it is born into.
fn keep_from_devices<'a>(
    guard: &'a DeviceGuard,
    security: SecurityMode,
    group: &'a StepGroup,
) -> (DevicePolicy, Option<BorrowedFd<'a>>) {
    let policy = guard.policy(security);
    match group.birthplace() {
        Some(own) if policy == DevicePolicy::Filtered && guard.protect(own).is_err() => {
            (DevicePolicy::NoneOnMounts, Some(own))
        }
        Some(own) => (policy, Some(own)),
        None => (policy, guard.group(policy)),
    }
}

/// Everything that one run needs.
pub(super) struct Step<'a> {
    pub(super) host: &'a Host,
    pub(super) spec: &'a SandboxSpec,
    pub(super) control: &'a Control,
    pub(super) reports: &'a Sender<Report>,
    scratch: &'a Path,
    stubs: &'a Path,
    pub(super) limits: Vec<(u32, crate::sys::spawn::Limit)>,
    pub(super) group: &'a StepGroup,
    policy: DevicePolicy,
    pub(super) birthplace: Option<BorrowedFd<'a>>,
}

/// What comes from the host's paths, opened before the root is entered.
pub(super) struct Sources {
    /// Mounted by the thread.
    pub(super) early: Vec<Prepared>,
    /// Device nodes among them that were made for this command.
    pub(super) nodes: Vec<MadeNode>,
    /// What has to be there before `/proc` and `/sys`, or instead of them.
    pub(super) sys: KernelSources,
    /// Mounted by the command's process once `/proc` and `/sys` are there.
    pub(super) late: Vec<LateMount>,
}

/// The host's `/proc` and `/sys`, which only user namespaces need.
pub(super) struct KernelSources {
    pub(super) mounts: Vec<LateMount>,
    /// Whether the host's `/sys` is the one that the command sees.
    pub(super) is_final: bool,
}

pub(super) type Outcome = (Ended, Option<super::spec::NotStarted>);

impl Step<'_> {
    /// Inside the namespaces: from the host's root to the end of the command.
    fn run(
        &self,
        namespaces: &Namespaces<'_>,
        devices: &Devices,
        made: &mut Vec<MadePoint>,
        user: &mut Option<RunUser>,
    ) -> Result<Outcome, SandboxError> {
        let sources = self.mount_root_and_prepare(namespaces)?;
        if let Some(runtime) = &self.host.runtime {
            return self.hand_over(runtime, devices, sources, made);
        }
        let Sources { early, nodes, sys, late } = sources;
        // Modes are given exactly from here on. The thread's umask is its own since its mount namespace is.
        rustix::process::umask(Mode::empty());
        let root = self.host.root_point();
        if self.spec.given.hooks.is_empty() {
            mounts::enter_root(&root)?;
            self.fill_root(devices, early, made)?;
        } else {
            mounts::inside(&root, || self.fill_root(devices, early, made))?;
            self.run_hooks(&root)?;
            mounts::enter_root(&root)?;
        }
        let account = self.account(&nodes)?;
        if !is_kernel_path(&self.spec.cwd) {
            login::make_directory(&self.spec.cwd, self.spec.cwd.as_ref(), &account)?;
        }
        let mut mounts = self.kernel_mounts(sys);
        mounts.extend(late);
        let outcome = self.start_and_wait(&account, mounts)?;
        *user = Some(account);
        Ok(outcome)
    }

    /// Whom the command runs as, in the root of the calling thread; `nodes` become that user's.
    pub(super) fn account(&self, nodes: &[MadeNode]) -> Result<RunUser, SandboxError> {
        let mut account = login::account(&self.spec.user)?;
        self.spec.given.join_groups(self.host, &mut account);
        nodes::give_to(nodes, &account)?;
        Ok(account)
    }

    /// Runs what devices need run. The thread's root is the host's.
    fn run_hooks(&self, root: &Path) -> Result<(), SandboxError> {
        let bundle = self.host.bundle_point();
        mounts::mount_memory(&bundle)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let done = hooks::run(&self.spec.given.hooks, root, &bundle, self.control);
        rustix::process::umask(Mode::empty());
        done
    }

    /// Mounts the root at the host's root point and opens whatever comes from the host's paths.
    fn mount_root_and_prepare(&self, namespaces: &Namespaces<'_>) -> Result<Sources, SandboxError> {
        let (host, spec) = (self.host, self.spec);
        let mut lower = vec![self.stubs];
        lower.extend(host.with_entries(&spec.lower));
        let upper = Some((spec.upper.as_path(), spec.work.as_path()));
        let devices = self.policy != DevicePolicy::NoneOnMounts;
        let user_xattrs = host.isolation.needs_user_xattrs();
        host.remains.wait_for_none();
        Overlay { lower, upper, user_xattrs, devices }.mount(&host.root_point())?;

        let hosts = host.shared_file(&network::hosts(&spec.hostname, &spec.extra_hosts))?;
        let resolv = match namespaces.private_network {
            true => network::resolv::private(namespaces.resolver),
            false => network::resolv::host(),
        };
        let resolv = host.shared_file(&resolv)?;
        let quiet = file_attributes(0o644);
        let mut early =
            vec![Prepared::host_file(&hosts, HOSTS, quiet)?, Prepared::host_file(&resolv, RESOLV_CONF, quiet)?];
        let nodes = devices::of_host(host, self.policy)?;
        // A runtime binds the usual nodes itself where none can be made, and stumbles over ours.
        let theirs =
            |target: &str| host.runtime.is_some() && !host.isolation.may_make_devices() && devices::is_usual(target);
        early.extend(nodes.into_iter().filter(|node| !theirs(&node.target)));

        let mut late = Vec::new();
        let sys = self.kernel_sources(namespaces)?;
        if let Some(tree) = host.hierarchy.legacy_mount() {
            // Not shown where it cannot be protected.
            late.extend(self.protected_tree(tree).ok().filter(|_| !sys.is_final));
        }
        let workshop = Workshop {
            stage: &host.stage_point(),
            empty: &host.empty(),
            scratch: self.scratch,
            user_xattrs: host.isolation.needs_user_xattrs(),
            devices: self.policy,
        };
        for (index, mount) in mounts::in_order(&spec.mounts).into_iter().enumerate() {
            let prepared = workshop.prepare(index, mount)?;
            if is_kernel_path(&mount.target) {
                late.push(prepared.later()?);
            } else {
                // A mount of the user's over one of ours wins.
                early.retain(|ours| ours.target != mount.target);
                early.push(prepared);
            }
        }
        let (given, nodes) = spec.given.prepare(host)?;
        for node in given {
            early.retain(|other| other.target != node.target);
            early.push(node);
        }
        Ok(Sources { early, nodes, sys, late })
    }

    /// A mount tree of the host as it is (control groups of the old kind, `/sys`), protected, in its own place.
    fn protected_tree(&self, tree: &'static Path) -> Result<LateMount, SandboxError> {
        let quiet = MountAttributes::NO_SUID.with(MountAttributes::NO_DEVICES).with(MountAttributes::NO_EXEC);
        let attributes = match self.spec.security {
            SecurityMode::Sandbox => quiet.with(MountAttributes::READ_ONLY),
            SecurityMode::Insecure => quiet,
        };
        Self::host_tree(tree, attributes)
    }

    fn host_tree(tree: &'static Path, attributes: MountAttributes) -> Result<LateMount, SandboxError> {
        let target = command::c_string(&tree.to_string_lossy(), "a mount target")?;
        let mount = mounts::detached_tree(tree, attributes).map_err(SandboxError::call("share", tree))?;
        Ok(LateMount::Attach { mount, target })
    }

    /// A user namespace may mount a `proc` or `sysfs` only while it sees all of the host's: these lie below ours. In a
    /// container, where parts of them are masked, ours cannot be mounted, and the container's own is what a command sees:
    /// names of its processes, and nothing that could be done to them from another user namespace. And it
    /// may not mount a `sysfs` at all for a network namespace that is not its own: then the host's is shown, protected.
    fn kernel_sources(&self, namespaces: &Namespaces<'_>) -> Result<KernelSources, SandboxError> {
        let is_final = !namespaces.private_network;
        // A runtime mounts both while it still sees the host's elsewhere.
        let runtime_can = self.host.runtime.is_some() && !is_final;
        if self.host.isolation == Isolation::Root || runtime_can {
            return Ok(KernelSources { mounts: Vec::new(), is_final: false });
        }
        let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
        if self.host.runtime.is_some() {
            return Ok(KernelSources { mounts: vec![self.protected_tree(sys)?], is_final });
        }
        let below = Self::host_tree(proc, MountAttributes::NONE)?;
        let sys = if is_final { self.protected_tree(sys)? } else { Self::host_tree(sys, MountAttributes::NONE)? };
        Ok(KernelSources { mounts: vec![below, sys], is_final })
    }

    /// `/dev` and all mounts that need no process inside. The thread's root is the container's.
    pub(super) fn fill_root(
        &self,
        devices: &Devices,
        early: Vec<Prepared>,
        made: &mut Vec<MadePoint>,
    ) -> Result<(), SandboxError> {
        // These three stay in the layer of a step on a root that does not have them.
        for directory in ["/dev", "/proc", "/sys"] {
            match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SandboxError::call("create", directory)(errno)),
            }
        }
        devices.attach()?;
        early.into_iter().try_for_each(|mount| mount.attach(made))
    }

    /// `/proc`, `/sys`, and what is hidden of them.
    fn kernel_mounts(&self, sources: KernelSources) -> Vec<LateMount> {
        let security = self.spec.security;
        let has_substitute = !sources.mounts.is_empty();
        let mut mounts = sources.mounts;
        mounts.push(LateMount::Call(rootfs::proc_mount(has_substitute)));
        if security == SecurityMode::Sandbox && self.host.counts_processes {
            mounts.push(rootfs::most_processes());
        }
        if !sources.is_final {
            mounts.push(LateMount::Call(rootfs::sys_mount(security)));
            if self.host.hierarchy.is_unified() {
                mounts.push(LateMount::Call(rootfs::cgroup2_mount(security)));
            }
        }
        if security == SecurityMode::Sandbox {
            mounts.extend(rootfs::restrictions(&self.host.sensitive).into_iter().map(LateMount::Call));
        }
        mounts
    }

    fn start_and_wait(&self, account: &RunUser, mounts: Vec<LateMount>) -> Result<Outcome, SandboxError> {
        let home = account.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
        let command = command::Command::new(&self.spec.args, &self.spec.env, home)?;
        let directory = command::c_string(&self.spec.cwd, "the working directory")?;
        let streams = Streams::open(self.spec.stdio, account.uid)?;
        let confined = self.spec.security == SecurityMode::Sandbox;
        let capabilities = match confined {
            true => Capabilities::Bounded(DEFAULT_CAPABILITIES),
            false => Capabilities::Given(self.host.capabilities),
        };
        let groups = self.host.isolation.may_set_groups().then(|| account.supplementary.clone());
        let mut pretender = match self.host.isolation {
            Isolation::SingleId => {
                let mounts = self.host.mount_namespace.as_fd();
                Pretender::start(mounts, account.uid, account.gid, &account.supplementary)?
            }
            _ => None,
        };
        let plan = Plan {
            pid_namespace: true,
            birth_cgroup: self.birthplace,
            cgroups: self.group.entrances(),
            cgroup_namespace: self.host.hierarchy.is_unified(),
            stdio: streams.for_command(),
            session: streams.session,
            mounts,
            limits: self.limits.clone(),
            user_namespace: self.spec.handlers.as_ref().map(|handlers| handlers.user_namespace()),
            root: None,
            filter: if confined { seccomp::default_filter() } else { None },
            listener: pretender.as_ref().and_then(Pretender::listener),
            directory,
            identity: Identity { uid: account.uid, gid: account.gid, groups, capabilities },
            parent: self.host.this_process.as_fd(),
            forbidden: self.host.program,
            program: command.program(),
        };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if self.control.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        match spawn(&plan) {
            Ok(child) => {
                drop(plan);
                pretender.iter_mut().for_each(Pretender::started);
                self.accompany(&child, streams)
            }
            Err(SpawnError::Child { stage: Stage::Exec, errno }) => {
                let (reason, text) = command.explain(errno, Path::new("/"));
                self.say(&text);
                Ok((Ended::Exited(1), Some(reason)))
            }
            Err(error) => Err(self.spawn_error(error, &plan)),
        }
    }

    fn accompany(&self, child: &Child, streams: Streams) -> Result<Outcome, SandboxError> {
        let io = streams.into_ours();
        supervise(child, io, self.control, self.reports).map(|ended| (ended, None))
    }

    pub(super) fn say(&self, text: &str) {
        drop(self.reports.blocking_send(Report::Log(Stream::Stderr, text.as_bytes().to_vec())));
    }

    pub(super) fn spawn_error(&self, error: SpawnError, plan: &Plan<'_>) -> SandboxError {
        let (stage, errno) = match error {
            SpawnError::Clone(errno) => return SandboxError::Setup { stage: "start a process", errno },
            SpawnError::Child { stage, errno } => (stage, errno),
        };
        let stage = match stage {
            Stage::Cgroup => "join the control group",
            Stage::Stdio => "connect input and output",
            Stage::Session => "make a session",
            Stage::Mount(index) => {
                let target = match plan.mounts.get(index) {
                    Some(LateMount::Call(call)) => call.target.to_string_lossy().into_owned(),
                    Some(LateMount::Attach { target, .. } | LateMount::Write { target, .. }) => {
                        target.to_string_lossy().into_owned()
                    }
                    None => String::new(),
                };
                return SandboxError::Mount { what: "a file system".to_owned(), target, errno };
            }
            Stage::Limit(_) => "set a resource limit",
            Stage::UserNamespace => "enter the user namespace of an emulator",
            Stage::Root => "change the root",
            Stage::Filter => "install the system call filter",
            Stage::Directory => return SandboxError::Directory { path: self.spec.cwd.clone(), errno },
            Stage::Identity => "become the user",
            Stage::ParentDeath => "tie the command to this process",
            Stage::Exec => "execute the program",
        };
        SandboxError::Setup { stage, errno }
    }
}

/// Whether a path is hidden by what the command's own process mounts.
pub(super) fn is_kernel_path(path: &str) -> bool {
    is_below(path, "/proc") || is_below(path, "/sys")
}

fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
