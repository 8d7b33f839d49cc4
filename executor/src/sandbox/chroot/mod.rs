//! Commands where neither mounts nor namespaces are allowed: an ordinary container as root.
//!
//! The root is a copy of the layers in a directory, entered with `chroot(2)`; what would be mounted is put in its place
//! and taken away again; what the command has changed is found by comparing the directory with what it was before.
//!
//! **What this does not protect.** The command sees this machine's processes, network, abstract sockets and host name,
//! and as root it may signal processes. `/proc` and `/sys` are empty. A secret lies in a file of the root as long as the
//! command runs. What it is kept from: the classic way out of a directory (it has no `CAP_SYS_CHROOT`), and our own root,
//! which is never written to.
//!
//! Read [`perform`], then [`places`] and [`changes`].

mod changes;
mod leftovers;
mod places;
mod roots;

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::thread::CapabilitySet;
use solver::{NetworkMode, SecurityMode, Stream};
use tokio::sync::mpsc::Sender;

use super::control::{Control, Report};
use super::error::SandboxError;
use super::host::Host;
use super::spec::{Exit, NotStarted, Resources, SandboxSpec, Stdio};
use super::step::DEFAULT_CAPABILITIES;
use super::streams::Streams;
use super::supervise::supervise;
use super::{command, limits, login, seccomp};
use crate::sys::spawn::{Capabilities, Ended, Identity, Plan, SpawnError, Stage};
use changes::Snapshot;
use places::Places;

pub(super) use leftovers::Commands;
pub use leftovers::kill_lost;
pub(super) use roots::Roots;

/// Runs the command of `spec` to its end. Blocks; must have its thread to itself.
pub(super) fn perform(
    host: &Host,
    spec: &SandboxSpec,
    control: &Control,
    reports: &Sender<Report>,
) -> Result<Exit, SandboxError> {
    refuse_what_cannot_be(spec)?;
    let limits = limits::resolve(&spec.ulimits, limits::process_ceiling(host.may_raise_limits()))?;
    let mut warnings: Vec<String> = limits.warning.into_iter().chain(host.roots.warning()).collect();
    if spec.resources != Resources::default() {
        warnings.push("limits of memory and processors have no effect with --isolation=chroot".to_owned());
    }
    let root = host.roots.take(&spec.lower, host.root(), &|| control.is_cancelled())?;
    let before = Snapshot::of(root.path())?;
    let step = host.step_directory()?;
    host.commands.adopt_orphans();
    let mut places = Places::new(root.path(), step.path())?;
    let outcome = places.fill(spec).and_then(|()| {
        before.wait_for_the_clock(step.path())?;
        run(host, spec, control, reports, root.path(), limits.values)
    });
    // Whatever happened, nothing of the command is left running, and nothing of ours in its root.
    leftovers::kill_processes_in(root.path());
    host.commands.kill_orphans(host.root());
    places.empty()?;
    let (ended, not_started) = outcome?;
    let after = Snapshot::of(root.path())?;
    changes::write(&before, &after, root.path(), &spec.lower, &spec.upper)?;
    let (code, signal) = match ended {
        Ended::Exited(code) => (code, None),
        Ended::Killed(signal) => (128 + signal, Some(signal)),
    };
    if code == 0 {
        changes::separate_links(&after, root.path())?;
        host.roots.give_back(root, &spec.upper);
    }
    Ok(Exit { code, signal, out_of_memory: false, not_started, warnings })
}

/// What a step was promised and cannot get here is an error, not a surprise.
fn refuse_what_cannot_be(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let missing = |what| Err(SandboxError::NotInThisTier { what, tier: "chroot" });
    match (spec.network, spec.stdio) {
        (NetworkMode::None, _) => missing("a step without network"),
        (_, Stdio::Terminal) => missing("a terminal"),
        _ if !spec.given.hooks.is_empty() => missing("a program that a device needs run"),
        _ => Ok(()),
    }
}

fn run(
    host: &Host,
    spec: &SandboxSpec,
    control: &Control,
    reports: &Sender<Report>,
    root: &Path,
    limits: Vec<(u32, crate::sys::spawn::Limit)>,
) -> Result<(Ended, Option<NotStarted>), SandboxError> {
    let mut account = login::account_at(&spec.user, |path| places::resolve(root, path).ok())?;
    spec.given.join_groups(host, &mut account);
    for node in &spec.given.nodes {
        node.give_to(&places::resolve(root, &node.path)?, &account)?;
    }
    login::make_directory(&spec.cwd, &places::resolve(root, &spec.cwd)?, &account)?;
    let home = account.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
    let command = command::Command::new(&spec.args, &spec.env, home)?;
    let streams = Streams::open(spec.stdio, account.uid)?;
    // Without it, a directory is what root stays in.
    let kept = DEFAULT_CAPABILITIES & host.capabilities & !CapabilitySet::SYS_CHROOT.bits();
    let may_filter = host.capabilities & CapabilitySet::SYS_ADMIN.bits() != 0;
    // Where devices can be kept away at all; containers usually have that done around them.
    let own_guard = spec.given.guard(host);
    let guard = own_guard.as_ref().unwrap_or_else(|| host.guard());
    let plan = Plan {
        pid_namespace: false,
        birth_cgroup: guard.group(guard.policy(SecurityMode::Sandbox)),
        cgroups: Vec::new(),
        cgroup_namespace: false,
        stdio: streams.for_command(),
        session: streams.session,
        mounts: Vec::new(),
        limits,
        user_namespace: spec.handlers.as_ref().map(|handlers| handlers.user_namespace()),
        filter: if may_filter { seccomp::default_filter() } else { None },
        root: Some(command::c_string(&root.to_string_lossy(), "the root's path")?),
        listener: None,
        directory: command::c_string(&spec.cwd, "the working directory")?,
        identity: Identity {
            uid: account.uid,
            gid: account.gid,
            groups: Some(account.supplementary.clone()),
            capabilities: Capabilities::Bounded(kept),
        },
        parent: host.this_process.as_fd(),
        forbidden: host.program,
        program: command.program(),
    };
    if control.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    match host.commands.start(&plan) {
        Ok(child) => {
            drop(plan);
            let ended = supervise(&child, streams.into_ours(), control, reports);
            host.commands.end(&child);
            ended.map(|ended| (ended, None))
        }
        Err(SpawnError::Child { stage: Stage::Exec, errno }) => {
            let (reason, text) = command.explain(errno, root);
            drop(reports.blocking_send(Report::Log(Stream::Stderr, text.into_bytes())));
            Ok((Ended::Exited(1), Some(reason)))
        }
        Err(SpawnError::Child { stage: Stage::Directory, errno }) => {
            Err(SandboxError::Directory { path: spec.cwd.clone(), errno })
        }
        Err(SpawnError::Child { errno, .. } | SpawnError::Clone(errno)) => {
            Err(SandboxError::Setup { stage: "start a process", errno })
        }
    }
}
