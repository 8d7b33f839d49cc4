//! Runs one command in a container of its own, without a runtime program. Spec: `spec/dockerfile.md` §8,
//! `spec/engine.md` §5.
//!
//! Knows paths, mounts and kernel calls; has never heard of Dockerfiles, stores or keys. Read [`SandboxSpec`] first,
//! then `step` (the life of one command), then [`crate::sys::spawn`].
//!
//! **Invariants:** nothing of ours stays in the upper directory; when [`Sandbox::run`] has returned, or its future was
//! dropped, no process of the command is left, and no mount of it that anybody could see: those of a command that
//! succeeded are being taken down, before the next one's are made and before the last [`Sandbox`] is gone; a killed
//! program takes its commands with it (a program that is itself set-user-ID as the *first* process is the one exception:
//! the kernel then forgets the wish).
//!
//! Kernel: Linux ≥ 5.12 for all of it; ≥ 6.5 for chains of layers without a limit in bytes.

mod abandoned;
mod cgroup;
mod chroot;
mod command;
mod control;
mod devices;
mod error;
mod guard;
mod hooks;
mod host;
mod isolation;
mod limits;
mod login;
mod mounts;
mod namespaces;
mod network;
mod nodes;
mod overlay;
mod points;
mod pretend;
pub mod probe;
mod room;
mod rootfs;
mod rootless;
mod runtime;
pub mod seccomp;
mod spec;
mod step;
mod streams;
mod supervise;
mod terminal;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;

use solver::Stream;
use tempfile::TempDir;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use abandoned::remove_abandoned_groups;
pub use chroot::kill_lost;
pub use command::DEFAULT_PATH;
pub use error::SandboxError;
pub use hooks::{Hook, HookMoment};
pub use isolation::{Confinement, Isolation, IsolationMode, TreeStyle, missing_for_chroot, missing_privileges};
pub use network::{HostNetwork, Network, NetworkProvider, PastaNetwork, host_address};
pub use nodes::{GivenDevices, GivenNode};
pub use rootless::{EnterError, confine, find_program, refusal};
pub use spec::{Exit, MemoryFile, MountSource, NotStarted, Resources, SandboxMount, SandboxSpec, Stdio, Writes};

use control::{Control, Report};
use host::Host;
use room::{Ended, Job, Room, Threads};

/// Runs commands. One a process; cheap to clone; any number of commands at once.
#[derive(Clone)]
pub struct Sandbox {
    host: Arc<Host>,
    threads: Arc<Threads>,
}

/// What is done when a command has ended, on its thread, so that it need not be handed over first; is told whether the
/// command has succeeded.
pub type Then = Box<dyn FnOnce(bool) + Send>;

/// What takes output as it comes: never split at lines, never delayed.
pub type Log<'a> = &'a mut (dyn FnMut(Stream, &[u8]) + Send);

/// Pieces of output on their way; a command that writes faster than we read waits, as it would for a terminal.
const REPORTS: usize = 64;

/// How long a dropped run is waited for; a killed process that takes longer is stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(2);

impl Sandbox {
    /// `scratch` is a private directory on the file system of the layers: throw-away upper directories lie in it.
    /// `network` is what steps with the default network get, `confinement` what this process has got for keeping them apart.
    ///
    /// # Errors
    /// When the machine's facts cannot be read.
    pub fn new(
        scratch: TempDir,
        network: Arc<dyn NetworkProvider>,
        confinement: &Confinement,
    ) -> Result<Self, SandboxError> {
        Host::new(scratch, network, confinement).map(|host| Self { host: Arc::new(host), threads: Arc::default() })
    }

    /// The scratch directory: a place for sockets and the like that commands are to see.
    pub fn scratch(&self) -> &Path {
        self.host.root()
    }

    /// Says that a command with the default network follows, which can be made ready meanwhile. Never blocks.
    pub fn expect_network(&self) {
        // Without namespaces there is one network.
        if self.host.isolation.has_namespaces() {
            self.host.network.expect();
        }
    }

    /// How well commands are kept apart here.
    pub fn isolation(&self) -> Isolation {
        self.host.isolation
    }

    /// Runs a command to its end, and `then`.
    ///
    /// # Errors
    /// [`SandboxError`]; a command that ends with a code other than zero, or cannot be started, is not an error.
    ///
    /// # Cancellation
    /// By `cancel` or by dropping: everything is killed. Dropping waits for that, usually a few milliseconds.
    pub async fn run(
        &self,
        spec: SandboxSpec,
        log: Log<'_>,
        then: Then,
        cancel: &CancellationToken,
    ) -> Result<Exit, SandboxError> {
        let mut run = Run::start(self, spec, then)?;
        loop {
            tokio::select! {
                report = run.reports.recv() => match report {
                    Some(Report::Log(stream, bytes)) => log(stream, &bytes),
                    Some(Report::Done(result)) => return result,
                    None => return Err(SandboxError::Lost),
                },
                () = cancel.cancelled(), if !run.cancelled => run.cancel(),
            }
        }
    }

    /// Runs a command for a person: our terminal or streams, signals and window size passed on. `spec.stdio` must not
    /// be [`Stdio::Piped`], whose output nobody would see.
    ///
    /// # Errors
    /// As [`Sandbox::run`].
    pub async fn run_interactive(&self, spec: SandboxSpec, cancel: &CancellationToken) -> Result<Exit, SandboxError> {
        let listen = |kind| tokio::signal::unix::signal(kind).map_err(SandboxError::io("listen for", "signals"));
        let (mut window, mut hangup, mut terminate) =
            (listen(SignalKind::window_change())?, listen(SignalKind::hangup())?, listen(SignalKind::terminate())?);
        // Keys that make signals go to the command: as bytes to its terminal, or from the kernel to its group. We only
        // have to survive them.
        let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
        let mut run = Run::start(self, spec, Box::new(|_| {}))?;
        loop {
            tokio::select! {
                report = run.reports.recv() => match report {
                    Some(Report::Log(..)) => {}
                    Some(Report::Done(result)) => return result,
                    None => return Err(SandboxError::Lost),
                },
                () = cancel.cancelled(), if !run.cancelled => run.cancel(),
                _ = window.recv() => run.control.resize(),
                _ = hangup.recv() => run.control.signal(libc::SIGHUP),
                _ = terminate.recv() => run.control.signal(libc::SIGTERM),
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
            }
        }
    }
}

/// A command on its thread. Dropping kills it and waits for its end.
struct Run {
    reports: mpsc::Receiver<Report>,
    control: Arc<Control>,
    cancelled: bool,
    /// Disconnected when the thread has finished its work.
    finished: blocking::Receiver<()>,
}

impl Run {
    fn start(sandbox: &Sandbox, spec: SandboxSpec, then: Then) -> Result<Self, SandboxError> {
        sandbox.host.make_points()?;
        let control = Arc::new(Control::new()?);
        let (sender, reports) = mpsc::channel(REPORTS);
        let (finishing, finished) = blocking::channel();
        let (orders, network) = (Arc::clone(&control), spec.network);
        let work = move |host: &Host, room: Option<Room<'_>>| -> Ended {
            let (result, remains) = match step::perform(host, &spec, &orders, &sender, room) {
                Ok((exit, remains)) => (Ok(exit), remains),
                Err(error) => (Err(error), None),
            };
            then(result.as_ref().is_ok_and(Exit::success));
            let tell = Box::new(move || {
                // Nobody is there to hear it when the run was dropped.
                drop(sender.blocking_send(Report::Done(result)));
                drop(finishing);
            });
            Ended { tell, remains }
        };
        sandbox.threads.begin(&sandbox.host, Job { network, work: Box::new(work) })?;
        Ok(Self { reports, control, cancelled: false, finished })
    }

    fn cancel(&mut self) {
        self.cancelled = true;
        self.control.cancel();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The thread may be waiting for room for its reports.
        self.reports.close();
        self.control.cancel();
        if matches!(self.finished.recv_timeout(PATIENCE), Err(blocking::RecvTimeoutError::Timeout)) {
            tracing::warn!("a killed command does not end");
        }
    }
}

#[cfg(test)]
mod tests;
