//! Running `git` so that nothing but its arguments and the remote decides what it does.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use solver::{OpError, Step, Stream};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::GitOptions;

/// Settings for every call: no hooks, no programs or files of a user's configuration, no surprises from protocols.
const CONFIG: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.symlinks", "true"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("protocol.ext.allow", "never"),
    ("protocol.file.allow", "user"),
    ("credential.helper", ""),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "master"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    // The repository belongs to whoever runs the build; in a user namespace git cannot tell.
    ("safe.directory", "*"),
];

/// The git program, ready to be called.
#[derive(Clone)]
pub(super) struct Git {
    options: Arc<GitOptions>,
    step: Step,
    cancel: CancellationToken,
    config: Vec<(String, String)>,
    work_tree: Option<(OsString, OsString)>,
    ssh_auth_sock: Option<PathBuf>,
}

/// How a call that did not succeed ended.
pub(super) struct GitFailure {
    /// What git has said, without line end.
    pub(super) stderr: String,
    /// For instance `exit status 128`.
    pub(super) status: String,
}

/// How git, curl and ssh say that a server could not be reached (in the C locale).
const UNREACHABLE: [&str; 10] = [
    "Could not resolve host",
    "Could not resolve proxy",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Failed to connect",
    "Connection refused",
    "Connection timed out",
    "Network is unreachable",
    "No route to host",
    "Operation timed out",
];

impl GitFailure {
    /// The line that says that the server could not be reached, if that is what was wrong.
    pub(super) fn unreachable(&self) -> Option<&str> {
        self.stderr.lines().find(|line| UNREACHABLE.iter().any(|words| line.contains(words)))
    }

    fn last_line(&self) -> Option<&str> {
        self.stderr.lines().rev().find(|line| !line.trim().is_empty())
    }
}

impl Git {
    pub(super) fn new(options: Arc<GitOptions>, step: Step, cancel: CancellationToken) -> Self {
        let config = CONFIG.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { options, step, cancel, config, work_tree: None, ssh_auth_sock: None }
    }

    /// The same with one more setting. It travels in the environment, where other users of the machine cannot see it.
    pub(super) fn with_config(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with an ssh agent that listens on `socket`.
    pub(super) fn with_agent(mut self, socket: PathBuf) -> Self {
        self.ssh_auth_sock = Some(socket);
        self
    }

    /// The same in a repository with these two directories.
    pub(super) fn in_work_tree(&self, git_dir: &Path, work_tree: &Path) -> Self {
        Self { work_tree: Some((git_dir.into(), work_tree.into())), ..self.clone() }
    }

    /// Calls git in `dir` and returns its output.
    ///
    /// # Errors
    /// Inside: git said no. Outside: it could not be run, or the build was cancelled (git and its helpers have been
    /// killed then).
    pub(super) async fn call<A: AsRef<OsStr>>(
        &self,
        dir: &Path,
        args: &[A],
    ) -> Result<Result<String, GitFailure>, OpError> {
        let child = self.command(dir, args).spawn().map_err(|error| {
            OpError::environment(format!("cannot run `{}`: {error}", self.options.program.display()))
                .help("install git, which fetches repositories")
        })?;
        // Dropped before the child has ended, it kills git with all helpers.
        let group = Group::of(&child);
        let output = match self.cancel.run_until_cancelled(child.wait_with_output()).await {
            None => return Err(OpError::cancelled()),
            Some(output) => output.map_err(|error| OpError::environment(format!("cannot wait for git: {error}")))?,
        };
        group.has_ended();
        if output.status.success() {
            return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        Ok(Err(GitFailure { stderr, status: output.status.to_string().replace("exit status: ", "exit status ") }))
    }

    /// As [`Git::call`], where a refusal of git is the end of the step. `what` says what was tried.
    pub(super) async fn run<A: AsRef<OsStr>>(&self, dir: &Path, what: &str, args: &[A]) -> Result<String, OpError> {
        self.call(dir, args).await?.map_err(|failure| self.report(what, &failure))
    }

    /// Git's words go to the step's log, its last line into the message.
    pub(super) fn report(&self, what: &str, failure: &GitFailure) -> OpError {
        let GitFailure { stderr, status } = failure;
        if !stderr.is_empty() {
            self.step.log(Stream::Stderr, format!("{stderr}\n").into_bytes());
        }
        let reason = failure.last_line().map(|line| format!("{line}: ")).unwrap_or_default();
        OpError::environment(format!("failed to {what}: {reason}{status}"))
    }

    fn command<A: AsRef<OsStr>>(&self, dir: &Path, args: &[A]) -> Command {
        let mut command = Command::new(&self.options.program);
        command.args(args).current_dir(dir).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        command.envs([
            ("PATH", self.options.search_path.as_str()),
            ("LC_ALL", "C"),
            ("HOME", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "true"),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
            ("GIT_CEILING_DIRECTORIES", "/"),
        ]);
        command.env("GIT_SSH_COMMAND", self.ssh_command());
        command.envs(self.options.proxy_env.iter().map(|(name, value)| (name, value)));
        if let Some(socket) = &self.ssh_auth_sock {
            command.env("SSH_AUTH_SOCK", socket);
        }
        command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (idx, (name, value)) in self.config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{idx}"), name).env(format!("GIT_CONFIG_VALUE_{idx}"), value);
        }
        if let Some((git_dir, work_tree)) = &self.work_tree {
            command.env("GIT_DIR", git_dir).env("GIT_WORK_TREE", work_tree);
        }
        command
    }

    /// ssh without the user's configuration and without questions.
    fn ssh_command(&self) -> String {
        let hosts = match &self.options.known_hosts {
            None => "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null".to_owned(),
            Some(path) => {
                let quoted = path.display().to_string().replace('\'', r"'\''");
                format!("-o StrictHostKeyChecking=yes -o 'UserKnownHostsFile={quoted}'")
            }
        };
        format!("ssh -F /dev/null -o BatchMode=yes -o GlobalKnownHostsFile=/dev/null {hosts}")
    }
}

/// The process group of a running git: itself and its helpers, which would otherwise outlive it.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// From here on the number may belong to somebody else.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended this very moment, which is what was wanted.
            let _ended = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
