//! Performs [`RunOp`]s: turns an operation with its inputs into a sandbox, and an exit into an error message.
//!
//! Knows the store's cache mounts, secrets and agents; knows neither how layers become trees (the engine passes paths)
//! nor how a sandbox works. Read [`Runner`] first. Spec: `spec/dockerfile.md` §2.2, §8, `spec/engine.md` §3.6, §5.2.

mod cache_mount;
mod device;
mod foreign;
mod host_ca;
mod mounts;
mod outcome;
mod secret;
mod ssh;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use solver::{NetworkMode, OpError, RunOp, Step, Stream};
use tokio_util::sync::CancellationToken;

pub use host_ca::HostCa;
pub use secret::{MOST_SECRET_BYTES, Secret, SecretStore};
pub use ssh::{Agent, AgentStore, DEFAULT_AGENT, KeyError, MOST_KEY_FILE_BYTES, PrivateKey};

pub(crate) use ssh::AgentSocket;

use crate::cdi::Catalog;
use crate::context::LocalContext;
use crate::emulation::Emulation;
use crate::sandbox::{DEFAULT_PATH, Exit, Resources, Sandbox, SandboxSpec, Stdio};
use cache_mount::Resets;
use host_ca::Trust;
use mounts::Mounts;

/// What may be wrong when a command fails on a full disk.
const DISK_IS_FULL: &str =
    "the disk with the store is full: free space with `rbuild prune`, or use --store DIR on another";

/// What a build gives to all its steps.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// What `RUN --network=default` means; `None` is the sandbox's default network.
    pub network: Option<NetworkMode>,
    /// Limits of the steps' control groups. Not part of any key.
    pub resources: Resources,
    /// Secrets by id.
    pub secrets: SecretStore,
    /// Agents by id.
    pub agents: AgentStore,
    /// Runs commands for other machines; `None` leaves them to the kernel.
    pub emulation: Option<Emulation>,
    /// Devices of this machine.
    pub devices: Catalog,
    /// Certificate authorities that commands trust in addition to the image's.
    pub host_ca: Option<HostCa>,
}

/// Runs commands for one build. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    sandbox: Sandbox,
    store: cache::Store,
    options: Arc<RunOptions>,
    resets: Arc<Resets>,
    warned: Arc<Warned>,
}

/// Where the files of an input lie.
#[derive(Clone)]
pub enum InputSource {
    /// Trees of layers, base first; none is an empty root.
    Layers(Vec<PathBuf>),
    /// A directory of the client, seen through its ignore rules.
    Context(LocalContext),
}

/// A result that an operation mounts.
#[derive(Clone)]
pub struct InputTree {
    /// What the files are, whatever their paths: tells caches with different base contents apart.
    pub identity: String,
    /// Where they are.
    pub source: InputSource,
}

/// One operation with everything that belongs to it.
pub struct RunRequest<'a> {
    /// What is run.
    pub op: &'a RunOp,
    /// Trees of the root, base first.
    pub root: Vec<PathBuf>,
    /// The vertex's inputs by index; the first is the root and is not looked at here.
    pub inputs: &'a [InputTree],
    /// Takes what the command writes: an empty directory, and overlayfs' scratch space beside it.
    pub upper: PathBuf,
    /// See `upper`.
    pub work: PathBuf,
    /// Empty the cache mounts first, unless this build has done so already.
    pub ignore_cache: bool,
    /// Gets the output and warnings.
    pub step: &'a Step,
    /// Stops everything.
    pub cancel: &'a CancellationToken,
}

impl Runner {
    /// Commands run in `sandbox`; persistent directories lie in `store`.
    pub fn new(sandbox: Sandbox, store: cache::Store, options: RunOptions) -> Self {
        Self { sandbox, store, options: Arc::new(options), resets: Arc::default(), warned: Arc::default() }
    }

    /// Begins what `op` will need and what takes a while, before its files are there. Never blocks.
    pub fn expect(&self, op: &RunOp) {
        if self.network(op) == NetworkMode::Default {
            self.sandbox.expect_network();
        }
    }

    fn network(&self, op: &RunOp) -> NetworkMode {
        match op.network {
            NetworkMode::Default => self.options.network.unwrap_or(NetworkMode::Default),
            mode => mode,
        }
    }

    /// Runs a step, and if it succeeds `then`, on the step's thread: what the step wrote is in `request.upper` by then, and
    /// nothing else is.
    ///
    /// # Errors
    /// Those of `then`; BuildKit's words for a command that failed (`process "…" did not complete successfully: exit code: 3`), for a
    /// missing secret, agent or source; [`solver::Tier::Environment`] for what the machine refuses.
    ///
    /// # Cancellation
    /// By the request's token or by dropping: kills the command and waits for its end.
    pub async fn run<T: Send + 'static>(
        &self,
        request: RunRequest<'_>,
        then: impl FnOnce() -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        let (mut spec, extras) = self.prepare(&request, Stdio::Piped).await?;
        let foreign = self.foreign(request.op, &mut spec, request.step).await?;
        let step = request.step.clone();
        let mut log = move |stream: Stream, bytes: &[u8]| step.log(stream, bytes.to_vec());
        let (sender, result) = std::sync::mpsc::sync_channel(1);
        let upper = request.upper.clone();
        let then = move |succeeded: bool| {
            let next = if succeeded {
                Next::Done(extras.remove_traces(&upper).and_then(|()| then()))
            } else {
                Next::Failed { disk_is_full: is_full(&upper) }
            };
            // There is room for the one value.
            drop(sender.send(next));
        };
        let exit = self.sandbox.run(spec, &mut log, Box::new(then), request.cancel).await;
        let lacking = foreign.finish(&self.options, exit.as_ref().ok());
        let outcome = outcome::judge(
            request.op,
            exit.map(|exit| self.warned.say(request.step, exit)),
            self.options.resources.memory_bytes,
            lacking.as_ref(),
        );
        match (outcome, result.try_recv()) {
            (Ok(()), Ok(Next::Done(done))) => done,
            // Programs have many words for a full disk, or none.
            (Err(error), Ok(Next::Failed { disk_is_full: true })) => Err(error.help(DISK_IS_FULL)),
            (Err(error), _) => Err(error),
            (Ok(()), _) => Err(OpError::internal("what follows a step was not done")),
        }
    }

    /// Runs a command for a person, with our terminal or streams, and says how it ended: `rbuild run`.
    ///
    /// # Errors
    /// As [`Runner::run`], but a command's failure is its exit code.
    pub async fn run_interactive(&self, request: RunRequest<'_>, stdio: Stdio) -> Result<Exit, OpError> {
        let (mut spec, _extras) = self.prepare(&request, stdio).await?;
        self.foreign(request.op, &mut spec, request.step).await?;
        let exit = self.sandbox.run_interactive(spec, request.cancel).await;
        exit.map(|exit| self.warned.say(request.step, exit)).map_err(|error| outcome::op_error(request.op, error))
    }

    /// The devices that steps can ask for.
    pub fn devices(&self) -> &Catalog {
        &self.options.devices
    }

    /// What knows about commands for other machines.
    pub fn emulation(&self) -> Option<&Emulation> {
        self.options.emulation.as_ref()
    }

    /// The sandbox for a request, and what has to be kept while it runs.
    async fn prepare(&self, request: &RunRequest<'_>, stdio: Stdio) -> Result<(SandboxSpec, Extras), OpError> {
        let op = request.op;
        let given = self.given(op, request.step).await?;
        let mounts = mounts::prepare(self, request).await?;
        let mut environment = Environment(op.env.clone());
        if let Some(socket) = mounts.agent_socket.clone().filter(|_| !environment.has("SSH_AUTH_SOCK")) {
            environment.set("SSH_AUTH_SOCK".to_owned(), socket);
        }
        for (name, value) in &op.proxy_env {
            environment.set(name.clone(), value.clone());
        }
        if !environment.has("PATH") {
            environment.set("PATH".to_owned(), DEFAULT_PATH.to_owned());
        }
        for (name, value) in &mounts.variables {
            environment.set(name.clone(), value.clone());
        }
        for (name, value) in given.variables {
            environment.set(name, value);
        }
        let mut lower = request.root.clone();
        let mut all_mounts = mounts.mounts.clone();
        all_mounts.extend(given.mounts);
        let trust = self.trust(&request.root).await?;
        if let Some(trust) = &trust {
            Trust::set_variables(&mut environment);
            lower.extend(trust.layer());
            all_mounts.insert(0, trust.mount());
        }
        let cgroup_parent = op.cgroup_parent.clone().or_else(|| self.options.resources.cgroup_parent.clone());
        let spec = SandboxSpec {
            lower,
            upper: request.upper.clone(),
            work: request.work.clone(),
            args: op.args.clone(),
            env: environment.0,
            cwd: op.cwd.clone(),
            user: op.user.clone(),
            hostname: op.hostname.clone(),
            extra_hosts: op.extra_hosts.iter().map(|host| (host.name.clone(), host.address.clone())).collect(),
            network: self.network(op),
            security: op.security,
            shm_size_bytes: op.shm_size_bytes,
            ulimits: op.ulimits.clone(),
            resources: Resources { cgroup_parent, ..self.options.resources.clone() },
            mounts: all_mounts,
            given: given.devices,
            stdio,
            handlers: None,
        };
        Ok((spec, Extras { _mounts: mounts, trust }))
    }

    /// What a step gets for its devices. One that is missing and need not be there is a warning.
    async fn given(&self, op: &RunOp, step: &Step) -> Result<device::Given, OpError> {
        if op.devices.is_empty() {
            return Ok(device::Given::default());
        }
        let (catalog, devices) = (self.options.devices.clone(), op.devices.clone());
        let given = mounts::blocking(move || device::given(&catalog, &devices)).await?;
        for name in &given.missing {
            step.warn(self.options.devices.absence(name));
        }
        Ok(given)
    }

    /// What `--host-ca` brings to a command on these layers.
    async fn trust(&self, root: &[PathBuf]) -> Result<Option<Trust>, OpError> {
        let Some(ca) = self.options.host_ca.clone() else { return Ok(None) };
        let (root, scratch) = (root.to_owned(), self.sandbox.scratch().to_owned());
        mounts::blocking(move || ca.prepare(&root, &scratch).map(Some)).await
    }
}

/// What has to be kept while a command runs.
struct Extras {
    _mounts: Mounts,
    trust: Option<Trust>,
}

impl Extras {
    /// Takes out of what a command has written what it does not know that it has written.
    fn remove_traces(&self, upper: &Path) -> Result<(), OpError> {
        self.trust.as_ref().map_or(Ok(()), |trust| trust.remove_traces(upper))
    }
}

/// What came after a command.
enum Next<T> {
    /// It succeeded, and this followed.
    Done(Result<T, OpError>),
    /// It failed, or was not run at all.
    Failed {
        /// Whether its disk was full then.
        disk_is_full: bool,
    },
}

/// Whether next to nothing more can be written there, or no more files can be made.
fn is_full(path: &Path) -> bool {
    const NEXT_TO_NOTHING: u64 = 1 << 20;
    const HARDLY_ANY_FILES: u64 = 16;
    rustix::fs::statvfs(path).is_ok_and(|disk| {
        // Some file systems have as many inodes as they have room for, and say that they have none.
        let has_inodes = disk.f_files > 0;
        disk.f_bavail * disk.f_frsize < NEXT_TO_NOTHING || (has_inodes && disk.f_favail < HARDLY_ANY_FILES)
    })
}

/// What this build has said already: what a machine does not allow holds for all steps.
#[derive(Default)]
struct Warned(Mutex<HashSet<String>>);

impl Warned {
    /// Says the warnings that are new.
    fn say(&self, step: &Step, mut exit: Exit) -> Exit {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exit.warnings.retain(|warning| said.insert(warning.clone()));
        for warning in &exit.warnings {
            step.warn(warning.clone());
        }
        exit
    }
}

/// Variables in order; a later one replaces an earlier one of its name.
struct Environment(Vec<(String, String)>);

impl Environment {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    fn set(&mut self, name: String, value: String) {
        self.0.retain(|(key, _)| *key != name);
        self.0.push((name, value));
    }
}

#[cfg(test)]
mod tests;
