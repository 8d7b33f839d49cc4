//! The mounts of an operation as mounts of a sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cache::{CacheMount, Sharing};
use solver::{Mount, MountKind, OpError};

use super::cache_mount::{self, Base, Wanted};
use super::ssh::{Forwards, SocketOwner};
use super::{InputSource, InputTree, RunRequest, Runner};
use crate::context::{MountSource as ContextMount, materialize_for_mount};
use crate::sandbox::{Isolation, MemoryFile, MountSource, SandboxMount, Writes};

/// Mounts with what has to live as long as they are used.
#[derive(Default)]
pub(super) struct Mounts {
    /// For the sandbox, in the order of the Dockerfile.
    pub(super) mounts: Vec<SandboxMount>,
    /// Secrets that are variables.
    pub(super) variables: Vec<(String, String)>,
    /// Target of the first ssh mount, whether there is an agent or not.
    pub(super) agent_socket: Option<String>,
    /// Hold the promise of their sharing modes.
    caches: BTreeMap<String, CacheMount>,
    contexts: Vec<ContextMount>,
    forwards: Forwards,
}

/// Where heredoc scripts lie.
const SCRIPTS: &str = "/dev/pipes";

/// Prepares everything that `request` mounts. Waits for locked caches.
pub(super) async fn prepare(runner: &Runner, request: &RunRequest<'_>) -> Result<Mounts, OpError> {
    let mut mounts = Mounts::default();
    if request.op.mounts.is_empty() && request.op.scripts.is_empty() {
        return Ok(mounts);
    }
    mounts.caches = take_caches(runner, request).await?;
    for mount in &request.op.mounts {
        mounts.add(runner, request, mount).await?;
    }
    for script in &request.op.scripts {
        let file = MemoryFile { content: script.content.clone().into(), uid: 0, gid: 0, mode: 0o755 };
        mounts.push(&format!("{SCRIPTS}/{}", script.name), MountSource::File(file), true);
    }
    Ok(mounts)
}

impl Mounts {
    fn push(&mut self, target: &str, source: MountSource, read_only: bool) {
        self.mounts.push(SandboxMount { target: target.to_owned(), source, read_only });
    }

    async fn add(&mut self, runner: &Runner, request: &RunRequest<'_>, mount: &Mount) -> Result<(), OpError> {
        match &mount.kind {
            MountKind::Bind { input, source, read_only } => {
                let input = input.map(|index| input_tree(request, index)).transpose()?;
                let source = self.bind(runner, input, source).await?;
                self.push(&mount.target, source, *read_only);
            }
            MountKind::Cache { input, source, read_only, .. } => {
                let wanted = wanted(request, mount)?;
                let cache = wanted.and_then(|wanted| self.caches.get(&wanted.store_id()));
                let root = cache
                    .map(|cache| cache.path.clone())
                    .ok_or_else(|| OpError::internal(format!("the cache for `{}` was not prepared", mount.target)))?;
                // A base is copied from its source on; without one the source is a place in the cache itself.
                let path = if input.is_some() { "/" } else { source.as_str() };
                let source = MountSource::Directory { root, path: path.to_owned(), writes: Writes::Stay };
                self.push(&mount.target, source, *read_only);
            }
            MountKind::Tmpfs { size_bytes } => {
                self.push(&mount.target, MountSource::Tmpfs { size_bytes: *size_bytes }, false);
            }
            MountKind::Secret { .. } => self.secret(runner, mount).await?,
            MountKind::Ssh { id, required, uid, gid, mode } => {
                self.agent_socket.get_or_insert_with(|| mount.target.clone());
                if let Some(agent) = runner.options.agents.find(id, *required)? {
                    let owner = SocketOwner { uid: *uid, gid: *gid, mode: *mode };
                    let path = self.forwards.open(runner.sandbox.scratch(), agent, owner).map_err(|error| {
                        OpError::environment(format!("cannot forward the ssh agent {agent}: {error}"))
                    })?;
                    self.push(&mount.target, MountSource::Socket { path }, false);
                }
            }
        }
        Ok(())
    }

    async fn bind(&mut self, runner: &Runner, input: Option<&InputTree>, source: &str) -> Result<MountSource, OpError> {
        let layers = |lower: Vec<PathBuf>| MountSource::Layers { lower, path: source.to_owned() };
        match input.map(|input| &input.source) {
            None => Ok(layers(Vec::new())),
            Some(InputSource::Layers(lower)) => Ok(layers(lower.clone())),
            Some(InputSource::Context(context)) => {
                let (context, source) = (context.clone(), source.to_owned());
                // Not beside the upper directory, which goes its own way when the command has ended.
                let scratch = runner.sandbox.scratch().to_owned();
                let tree = blocking(move || Ok(materialize_for_mount(&context, &source, &scratch)?)).await?;
                let path = "/".to_owned();
                let mount = match tree.layers() {
                    [root] => MountSource::Directory { root: root.clone(), path, writes: Writes::Vanish },
                    lower => MountSource::Layers { lower: lower.to_vec(), path },
                };
                self.contexts.push(tree);
                Ok(mount)
            }
        }
    }

    async fn secret(&mut self, runner: &Runner, mount: &Mount) -> Result<(), OpError> {
        let MountKind::Secret { id, env, required, uid, gid, mode } = &mount.kind else { return Ok(()) };
        let (store, name, required) = (runner.options.secrets.clone(), id.clone(), *required);
        let secret = blocking(move || store.fetch(&name, required)).await?;
        if let Some(variable) = env {
            let bytes = secret.as_ref().map(super::Secret::reveal).unwrap_or_default();
            let text = String::from_utf8(bytes.to_vec());
            let text = text.map_err(|_| OpError::input(format!("secret {id} is not text and cannot be a variable")))?;
            self.variables.push((variable.clone(), text));
        }
        if let Some(secret) = secret.filter(|_| !mount.target.is_empty()) {
            let file = MemoryFile { content: secret.reveal(), uid: *uid, gid: *gid, mode: *mode };
            self.push(&mount.target, MountSource::File(file), true);
        }
        Ok(())
    }
}

async fn take_caches(runner: &Runner, request: &RunRequest<'_>) -> Result<BTreeMap<String, CacheMount>, OpError> {
    let mut wanted: Vec<Wanted> =
        request.op.mounts.iter().filter_map(|mount| wanted(request, mount).transpose()).collect::<Result<_, _>>()?;
    if runner.sandbox.isolation() == Isolation::Chroot {
        // There, a cache is moved into the root of its step.
        wanted.iter_mut().for_each(|wanted| wanted.sharing = Sharing::Locked);
    }
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (runner, cancel, ignore_cache) = (runner.clone(), request.cancel.clone(), request.ignore_cache);
    blocking(move || {
        let empty_first = ignore_cache.then_some(&*runner.resets);
        cache_mount::take(&runner.store, &wanted, empty_first, &cancel)
    })
    .await
}

/// The cache behind a mount; `None` when it is no cache mount.
fn wanted(request: &RunRequest<'_>, mount: &Mount) -> Result<Option<Wanted>, OpError> {
    let MountKind::Cache { id, sharing, input, source, uid, gid, mode, .. } = &mount.kind else { return Ok(None) };
    let base = match input.map(|index| input_tree(request, index)).transpose()? {
        None => Base::Empty { uid: *uid, gid: *gid, mode: *mode },
        Some(InputTree { identity, source: InputSource::Layers(layers) }) => {
            Base::Tree { identity: identity.clone(), layers: layers.clone(), path: source.clone() }
        }
        Some(InputTree { source: InputSource::Context(_), .. }) => {
            return Err(OpError::input(format!(
                "the cache mount `{}` cannot begin with a local context",
                mount.target
            )));
        }
    };
    let description = format!("cached mount {} from exec {}", mount.target, request.op.args.join(" "));
    Ok(Some(Wanted { id: id.clone(), sharing: *sharing, base, description }))
}

fn input_tree<'a>(request: &RunRequest<'a>, index: usize) -> Result<&'a InputTree, OpError> {
    let missing = || OpError::internal(format!("a mount refers to input {index}, which the step does not have"));
    request.inputs.get(index).ok_or_else(missing)
}

/// Runs blocking work off the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(OpError::internal(format!("a preparation of the step failed: {error}"))),
    }
}
