//! One command from the first namespace to the last clean-up, on a thread of its own.
//!
//! The thread gives *itself* new mount, ipc, uts and network namespaces, builds the root in them with ordinary code,
//! enters it, and starts the command as the first process of a new pid namespace ([`crate::sys::spawn`]). Then it waits
//! for the end and goes back to the host's mount namespace, at which moment all mounts are gone. It must not end before
//! the command: the kernel kills the command with it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use solver::{NetworkMode, SecurityMode, Stream};
use tokio::sync::mpsc::Sender;

use super::cgroup::StepGroup;
use super::command;
use super::control::{Control, Report};
use super::error::SandboxError;
use super::guard::DevicePolicy;
use super::host::Host;
use super::isolation::Isolation;
use super::mounts::{self, Prepared, Workshop, file_attributes};
use super::overlay::Overlay;
use super::points::{self, MadePoint, PointKind};
use super::spec::{Exit, SandboxSpec, Stdio};
use super::supervise::{Io, supervise};
use super::terminal::Terminal;
use super::{devices, limits, network, rootfs, seccomp};
use crate::sys::mount::MountAttributes;
use crate::sys::spawn::{Capabilities, Child, Ended, Identity, LateMount, Plan, Session, SpawnError, Stage, spawn};
use crate::view::passwd::{Accounts, AccountsError, RunUser};

/// Docker's default set, `00000000a80425fb`.
pub(super) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Files that every container gets.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs the command of `spec` to its end. Blocks; must have its thread to itself.
pub(super) fn perform(
    host: &Host,
    spec: &SandboxSpec,
    control: &Control,
    reports: &Sender<Report>,
) -> Result<Exit, SandboxError> {
    if control.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    let limits = limits::resolve(&spec.ulimits, limits::process_ceiling(host.may_raise_limits()))?;
    let mut warnings: Vec<String> = limits.warning.into_iter().collect();
    let group = StepGroup::new(&host.hierarchy, &spec.resources, &mut warnings);
    let scratch = if spec.mounts.is_empty() { None } else { Some(host.step_directory()?) };
    let scratch = scratch.as_ref().map_or(host.root(), |directory| directory.path());
    let (policy, birthplace) = keep_from_devices(host, spec.security, &group);
    let stubs = make_stubs(host, spec, scratch)?;
    mounts::copy_root_metadata(&spec.lower, &spec.upper)?;

    let mut made = Vec::new();
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
    let outcome = {
        let namespaces = Namespaces::enter(host, spec)?;
        let outcome = step.run(&namespaces, &mut made);
        drop(namespaces);
        outcome
    };
    let targets = spec.mounts.iter().map(|mount| mount.target.as_str()).chain([HOSTS, RESOLV_CONF]);
    points::remove_traces(&spec.upper, &spec.lower, targets, &made)?;
    let (ended, not_started) = outcome?;
    let (code, signal) = match ended {
        Ended::Exited(code) => (code, None),
        Ended::Killed(signal) => (128 + signal, Some(signal)),
    };
    let out_of_memory = code != 0 && group.ran_out_of_memory();
    Ok(Exit { code, signal, out_of_memory, not_started, warnings })
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
    host: &'a Host,
    security: SecurityMode,
    group: &'a StepGroup,
) -> (DevicePolicy, Option<BorrowedFd<'a>>) {
    let guard = host.guard();
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
struct Step<'a> {
    host: &'a Host,
    spec: &'a SandboxSpec,
    control: &'a Control,
    reports: &'a Sender<Report>,
    scratch: &'a Path,
    stubs: &'a Path,
    limits: Vec<(u32, crate::sys::spawn::Limit)>,
    group: &'a StepGroup,
    policy: DevicePolicy,
    birthplace: Option<BorrowedFd<'a>>,
}

/// What comes from the host's paths, opened before the root is entered.
struct Sources {
    /// Mounted by the thread.
    early: Vec<Prepared>,
    /// What has to be there before `/proc` and `/sys`, or instead of them.
    sys: KernelSources,
    /// Mounted by the command's process once `/proc` and `/sys` are there.
    late: Vec<LateMount>,
}

/// The host's `/proc` and `/sys`, which only user namespaces need.
struct KernelSources {
    mounts: Vec<LateMount>,
    /// Whether the host's `/sys` is the one that the command sees.
    is_final: bool,
}

type Outcome = (Ended, Option<super::spec::NotStarted>);

impl Step<'_> {
    /// Inside the namespaces: from the host's root to the end of the command.
    fn run(&self, namespaces: &Namespaces<'_>, made: &mut Vec<MadePoint>) -> Result<Outcome, SandboxError> {
        let Sources { early, sys, late } = self.mount_root_and_prepare(namespaces)?;
        mounts::enter_root(&self.host.root_point())?;
        // Modes are given exactly from here on. The thread's umask is its own since its mount namespace is.
        rustix::process::umask(Mode::empty());
        self.fill_root(early, made)?;
        let account = self.account()?;
        make_directory(&self.spec.cwd, &account)?;
        let mut mounts = self.kernel_mounts(sys);
        mounts.extend(late);
        self.start_and_wait(&account, mounts)
    }

    /// Mounts the root at the host's root point and opens whatever comes from the host's paths.
    fn mount_root_and_prepare(&self, namespaces: &Namespaces<'_>) -> Result<Sources, SandboxError> {
        let (host, spec) = (self.host, self.spec);
        let mut lower = vec![self.stubs];
        lower.extend(spec.lower.iter().map(PathBuf::as_path));
        let upper = Some((spec.upper.as_path(), spec.work.as_path()));
        let devices = self.policy != DevicePolicy::NoneOnMounts;
        let user_xattrs = host.isolation.needs_user_xattrs();
        Overlay { lower, upper, user_xattrs, devices }.mount(&host.root_point())?;

        let hosts = host.shared_file(&network::hosts(&spec.hostname, &spec.extra_hosts))?;
        let resolv = network::host_resolv_conf();
        let resolv = if namespaces.private_network { network::private_resolv_conf(&resolv) } else { resolv };
        let resolv = host.shared_file(&resolv)?;
        let quiet = file_attributes(0o644);
        let mut early =
            vec![Prepared::host_file(&hosts, HOSTS, quiet)?, Prepared::host_file(&resolv, RESOLV_CONF, quiet)?];
        early.extend(devices::of_host(host, self.policy)?);

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
        Ok(Sources { early, sys, late })
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

    /// A user namespace may mount a `proc` or `sysfs` only while it sees all of the host's: these lie below ours. And it
    /// may not mount a `sysfs` at all for a network namespace that is not its own: then the host's is shown, protected.
    fn kernel_sources(&self, namespaces: &Namespaces<'_>) -> Result<KernelSources, SandboxError> {
        if self.host.isolation == Isolation::Root {
            return Ok(KernelSources { mounts: Vec::new(), is_final: false });
        }
        let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
        let below = Self::host_tree(proc, MountAttributes::NONE)?;
        let is_final = !namespaces.private_network;
        let sys = if is_final { self.protected_tree(sys)? } else { Self::host_tree(sys, MountAttributes::NONE)? };
        Ok(KernelSources { mounts: vec![below, sys], is_final })
    }

    /// `/dev` and all mounts that need no process inside. The thread's root is the container's.
    fn fill_root(&self, early: Vec<Prepared>, made: &mut Vec<MadePoint>) -> Result<(), SandboxError> {
        // These three stay in the layer of a step on a root that does not have them.
        for directory in ["/dev", "/proc", "/sys"] {
            match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SandboxError::call("create", directory)(errno)),
            }
        }
        devices::fill(self.host, self.policy, self.spec.shm_size_bytes)?;
        early.into_iter().try_for_each(|mount| mount.attach(made))
    }

    /// `/proc`, `/sys`, and what is hidden of them.
    fn kernel_mounts(&self, sources: KernelSources) -> Vec<LateMount> {
        let security = self.spec.security;
        let mut mounts = sources.mounts;
        mounts.push(LateMount::Call(rootfs::proc_mount()));
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

    /// Who the command runs as, by the files of the root.
    fn account(&self) -> Result<RunUser, SandboxError> {
        let user = &self.spec.user;
        let read = || -> Result<Accounts, AccountsError> {
            Ok(Accounts::from_bytes(read_account_file("/etc/passwd")?, read_account_file("/etc/group")?))
        };
        let accounts = match read() {
            // Only the home directory is asked of the files: no reason to fail.
            Err(_) if is_numeric(user) => Accounts::default(),
            result => result?,
        };
        Ok(accounts.run_user(user)?)
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
        let plan = Plan {
            pid_namespace: true,
            birth_cgroup: self.birthplace,
            cgroups: self.group.entrances(),
            cgroup_namespace: self.host.hierarchy.is_unified(),
            stdio: streams.for_command(),
            session: streams.session,
            mounts,
            limits: self.limits.clone(),
            filter: if confined { seccomp::default_filter() } else { None },
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
                self.accompany(&child, streams)
            }
            Err(SpawnError::Child { stage: Stage::Exec, errno }) => {
                let (reason, text) = command.explain(errno);
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

    fn say(&self, text: &str) {
        drop(self.reports.blocking_send(Report::Log(Stream::Stderr, text.as_bytes().to_vec())));
    }

    fn spawn_error(&self, error: SpawnError, plan: &Plan<'_>) -> SandboxError {
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
                    Some(LateMount::Attach { target, .. }) => target.to_string_lossy().into_owned(),
                    None => String::new(),
                };
                return SandboxError::Mount { what: "a file system".to_owned(), target, errno };
            }
            Stage::Limit(_) => "set a resource limit",
            Stage::Filter => "install the system call filter",
            Stage::Directory => return SandboxError::Directory { path: self.spec.cwd.clone(), errno },
            Stage::Identity => "become the user",
            Stage::ParentDeath => "tie the command to this process",
            Stage::Exec => "execute the program",
        };
        SandboxError::Setup { stage, errno }
    }
}

/// The namespaces of a command's thread; dropping goes back, which takes all mounts down.
struct Namespaces<'a> {
    host: &'a Host,
    private_network: bool,
}

impl<'a> Namespaces<'a> {
    fn enter(host: &'a Host, spec: &SandboxSpec) -> Result<Self, SandboxError> {
        let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        let private_network = match spec.network {
            NetworkMode::Host => false,
            NetworkMode::None => {
                flags |= UnshareFlags::NEWNET;
                true
            }
            NetworkMode::Default => join_network(host)?,
        };
        crate::sys::namespace::unshare(flags).map_err(SandboxError::setup("make namespaces"))?;
        let namespaces = Self { host, private_network };
        if spec.network == NetworkMode::None {
            crate::sys::net::loopback_up().map_err(SandboxError::setup("bring the loopback interface up"))?;
        }
        rustix::system::sethostname(spec.hostname.as_bytes()).map_err(SandboxError::setup("set the host name"))?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(SandboxError::setup("make mounts private"))?;
        Ok(namespaces)
    }
}

impl Drop for Namespaces<'_> {
    fn drop(&mut self) {
        let back = rustix::thread::move_into_link_name_space(
            self.host.mount_namespace.as_fd(),
            Some(LinkNameSpaceType::Mount),
        );
        if let Err(errno) = back {
            // The mounts then go when the thread ends, a moment later.
            tracing::warn!(%errno, "cannot go back to the host's mount namespace");
        }
    }
}

fn join_network(host: &Host) -> Result<bool, SandboxError> {
    let namespace = host.network.namespace().map_err(SandboxError::io("get", "the default network"))?;
    let Some(namespace) = namespace else { return Ok(false) };
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(SandboxError::setup("join the default network"))?;
    Ok(true)
}

/// Standard input, output and error, from both ends.
struct Streams {
    /// The command's; empty when it has ours.
    theirs: Vec<OwnedFd>,
    ours: Io,
    session: Session,
}

impl Streams {
    fn open(stdio: Stdio, uid: u32) -> Result<Self, SandboxError> {
        match stdio {
            Stdio::Inherit => Ok(Self { theirs: Vec::new(), ours: Io::Inherited, session: Session::Shared }),
            Stdio::Terminal => {
                let pair = Terminal::open(uid)?;
                let ours = Io::Terminal(pair.terminal);
                Ok(Self { theirs: vec![pair.peer], ours, session: Session::OwnWithTerminal })
            }
            Stdio::Piped => {
                let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(SandboxError::call("open", "/dev/null"))?;
                let (out, out_writer) = pipe()?;
                let (error, error_writer) = pipe()?;
                let ours = Io::Pipes([(Stream::Stdout, Some(out)), (Stream::Stderr, Some(error))]);
                Ok(Self { theirs: vec![null, out_writer, error_writer], ours, session: Session::Own })
            }
        }
    }

    fn for_command(&self) -> [BorrowedFd<'_>; 3] {
        match &self.theirs[..] {
            [input, output, error] => [input.as_fd(), output.as_fd(), error.as_fd()],
            [terminal] => [terminal.as_fd(), terminal.as_fd(), terminal.as_fd()],
            _ => [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()],
        }
    }

    /// Our ends; the command's are closed here, so that we see the end of its output.
    fn into_ours(self) -> Io {
        self.ours
    }
}

/// A pipe whose reading end does not block.
fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let make = || -> Result<_, Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        Ok((reader, writer))
    };
    make().map_err(SandboxError::setup("make a pipe"))
}

/// More is not read of `/etc/passwd` and `/etc/group`.
const MOST_ACCOUNT_BYTES: u64 = 10 << 20;

/// A file of the root, which may be hostile: only a regular one of reasonable size. Empty when missing.
fn read_account_file(path: &'static str) -> Result<Vec<u8>, AccountsError> {
    let failed = |errno: Errno| AccountsError::Read { path, source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        result => File::from(result.map_err(failed)?),
    };
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(AccountsError::NotAFile { path });
    }
    let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if size_bytes > MOST_ACCOUNT_BYTES {
        return Err(AccountsError::TooLarge { path, size_bytes });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0) + 1);
    let read = file.take(MOST_ACCOUNT_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| AccountsError::Read { path, source })?;
    Ok(bytes)
}

/// Whether a `USER` names nobody that would have to be looked up.
fn is_numeric(user: &str) -> bool {
    user.split_once(':').is_some_and(|(user, group)| user.parse::<u32>().is_ok() && group.parse::<u32>().is_ok())
}

/// Makes the working directory with its parents, owned by the command's user, where they are missing.
fn make_directory(path: &str, account: &RunUser) -> Result<(), SandboxError> {
    if is_kernel_path(path) {
        return Ok(());
    }
    let failed = |error: &io::Error| SandboxError::Directory {
        path: path.to_owned(),
        errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
    };
    let mut missing = Vec::new();
    for ancestor in Path::new(path).ancestors() {
        match std::fs::metadata(ancestor) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(failed(&error)),
        }
    }
    for directory in missing.into_iter().rev() {
        DirBuilder::new().mode(0o755).create(directory).map_err(|error| failed(&error))?;
        chown(directory, Some(account.uid), Some(account.gid)).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Whether a path is hidden by what the command's own process mounts.
fn is_kernel_path(path: &str) -> bool {
    is_below(path, "/proc") || is_below(path, "/sys")
}

fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
