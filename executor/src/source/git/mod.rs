//! ADD of a git tree, with the `git` program.
//!
//! A ref is resolved once per build (`ls-remote`), so that the key and the files speak of the same commit; without a
//! network it is what it was last. Objects are
//! fetched as shallowly as possible into a bare repository per remote, which stays for later builds; the tree is
//! checked out beside the future layer and moved into it. Everything that comes from a remote is hostile: names are
//! validated before git sees them, programs named by repositories or by the user's configuration never run, and links
//! are not followed.
//!
//! Spec: `spec/engine.md` §4.5, `spec/dockerfile.md` §2.24.

mod checkout;
mod program;
mod remote;
mod repository;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::{CacheMount, LayerInfo, MountRequest, Sharing, Store, UsageKind};
use solver::{GitOp, OpError, Step};
use tokio_util::sync::CancellationToken;

use super::{SecretLookup, blocking, commit, url};
use crate::run::{Agent, AgentSocket};
use program::Git;
use remote::Resolved;

/// What git is given from outside; it sees nothing else of our environment.
#[derive(Clone, Debug)]
pub struct GitOptions {
    /// The program, by path or by name in `search_path`.
    pub program: PathBuf,
    /// `PATH` for git and its helpers (ssh).
    pub search_path: String,
    /// Proxy variables, passed as they are.
    pub proxy_env: Vec<(String, String)>,
    /// The ssh agent that may be used (`--ssh default`).
    pub ssh_agent: Option<Agent>,
    /// Known hosts for ssh; without them every host key is accepted, as the reference does.
    pub known_hosts: Option<PathBuf>,
}

/// Fetches git trees.
pub struct GitSource {
    options: Arc<GitOptions>,
    store: Store,
    secrets: SecretLookup,
    /// The agent as git can use it, from the first call that might.
    agent: Mutex<Option<AgentSocket>>,
    /// What refs have been resolved to in this build, by remote and ref.
    resolved: Mutex<HashMap<(String, Option<String>), Resolved>>,
}

impl GitSource {
    /// A source that keeps its repositories in `store`.
    pub fn new(options: GitOptions, store: Store, secrets: SecretLookup) -> Self {
        Self { options: Arc::new(options), store, secrets, agent: Mutex::default(), resolved: Mutex::default() }
    }

    /// The commit that `op` stands for, in hex. An expected checksum has been compared when this returns.
    ///
    /// # Errors
    /// `failed to load cache key: …`: `repository does not contain ref X, output: ""`, `expected checksum to match X,
    /// got Y`, or git's own words.
    pub async fn probe(&self, op: &GitOp, step: &Step) -> Result<String, OpError> {
        Ok(self.resolve(op, step, &CancellationToken::new()).await?.commit)
    }

    /// The files of the tree as a layer: 0644 or 0755, owner root, without `.git` unless it is to be kept.
    ///
    /// # Errors
    /// As for [`GitSource::probe`]; `invalid subdir X: …`; git's own words.
    pub async fn fetch(&self, op: &GitOp, step: &Step, cancel: &CancellationToken) -> Result<LayerInfo, OpError> {
        let resolved = self.resolve(op, step, cancel).await?;
        let git = self.git(op, step, cancel)?;
        let mount = self.repository(op, cancel).await?;
        repository::ensure_commit(&git, &mount.path, op, &resolved).await?;

        let store = self.store.clone();
        let draft = blocking(move || store.new_tree()).await?;
        checkout::checkout(&git, &mount.path, op, &resolved, &draft).await?;
        drop(mount);
        commit(&self.store, draft).await
    }

    /// The directory of the bare repository. A private one: a second build that wants it at the same time gets its own.
    async fn repository(&self, op: &GitOp, cancel: &CancellationToken) -> Result<CacheMount, OpError> {
        let (store, stop) = (self.store.clone(), cancel.clone());
        let (id, description) =
            (repository::id(&op.remote), format!("shared git repo for {}", url::redacted(&op.remote)));
        let mount = blocking(move || {
            let kind = UsageKind::SourceGitCheckout;
            let request = MountRequest { id: &id, sharing: Sharing::Private, kind, description: &description };
            store.cache_mount_unless(&request, &|| stop.is_cancelled())
        });
        mount.await?.ok_or_else(OpError::cancelled)
    }

    async fn resolve(&self, op: &GitOp, step: &Step, cancel: &CancellationToken) -> Result<Resolved, OpError> {
        let place = (op.remote.clone(), op.reference.clone());
        let known = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        let resolved = match known {
            Some(resolved) => resolved,
            None => {
                remote::validate(op)?;
                let resolved = match remote::known(op) {
                    Some(resolved) => resolved,
                    None => self.ask(op, step, cancel).await?,
                };
                self.resolved.lock().unwrap_or_else(PoisonError::into_inner).insert(place, resolved.clone());
                resolved
            }
        };
        resolved.check(op)?;
        Ok(resolved)
    }

    /// What the remote says that a ref stands for; what it said last, with a warning, when it cannot be reached.
    async fn ask(&self, op: &GitOp, step: &Step, cancel: &CancellationToken) -> Result<Resolved, OpError> {
        let git = self.git(op, step, cancel)?;
        let question = format!("git {} {}", remote::reference(op), op.remote);
        let shown = url::redacted(&op.remote);
        let store = self.store.clone();
        let failure = match remote::ask(&git, op).await? {
            Ok(answer) => {
                let resolved = remote::read_answer(op, &answer)?;
                blocking(move || store.remember_answer(&question, &answer)).await?;
                return Ok(resolved);
            }
            Err(failure) => failure,
        };
        if let Some(reason) = failure.unreachable()
            && let Some(answer) = blocking(move || store.last_answer(&question)).await?
        {
            let resolved = remote::read_answer(op, &answer)?;
            let commit = &resolved.commit;
            step.warn(format!("using {shown} at {commit} as seen last: {reason}"));
            return Ok(resolved);
        }
        Err(git.report(&format!("load cache key: failed to fetch remote {shown}"), &failure))
    }

    /// The program with what it needs to talk to the remote of `op`.
    fn git(&self, op: &GitOp, step: &Step, cancel: &CancellationToken) -> Result<Git, OpError> {
        let mut git = Git::new(self.options.clone(), step.clone(), cancel.clone());
        if let Some(agent) = &self.options.ssh_agent {
            git = git.with_agent(self.agent_socket(agent)?);
        }
        if let (Some(origin), Some(header)) = (url::origin(&op.remote), self.authorization(&op.remote)?) {
            git = git.with_config(&format!("http.{origin}.extraheader"), &format!("Authorization: {header}"));
        }
        Ok(git)
    }

    fn agent_socket(&self, agent: &Agent) -> Result<PathBuf, OpError> {
        let mut socket = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match &mut *socket {
            Some(socket) => socket,
            none => none.insert(AgentSocket::open(agent, || Ok(self.store.scratch_dir()?))?),
        };
        Ok(socket.path().to_owned())
    }

    /// The value of the `Authorization` header for `remote`, if there is a secret for its host.
    fn authorization(&self, remote: &str) -> Result<Option<String>, OpError> {
        if !remote.starts_with("http://") && !remote.starts_with("https://") {
            return Ok(None);
        }
        let Some(host) = url::host(remote) else { return Ok(None) };
        let candidates = [
            (format!("GIT_AUTH_HEADER.{host}"), false),
            (format!("GIT_AUTH_TOKEN.{host}"), true),
            ("GIT_AUTH_HEADER".to_owned(), false),
            ("GIT_AUTH_TOKEN".to_owned(), true),
        ];
        let found = candidates.into_iter().find_map(|(id, is_token)| Some(((self.secrets)(&id)?, id, is_token)));
        let Some((value, id, is_token)) = found else { return Ok(None) };
        let value = std::str::from_utf8(value.trim_ascii()).ok().filter(|text| !text.contains(['\r', '\n', '\0']));
        let value = value.ok_or_else(|| OpError::input(format!("the secret `{id}` is not one line of text")))?;
        let header = match is_token {
            true => format!("basic {}", STANDARD.encode(format!("x-access-token:{value}"))),
            false => value.to_owned(),
        };
        Ok(Some(header))
    }
}
