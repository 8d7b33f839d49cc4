//! RUN: argv, environment, confinement. Mounts are in [`super::mounts`]. Spec: `spec/dockerfile.md` §2.2, §8.

use parser::instruction::{RunInstruction, RunNetwork, RunScript, RunSecurity};

use super::error::PlanError;
use super::history::PlannedHistory;
use super::mounts::Mounts;
use super::names;
use super::paths;
use super::request::Purpose;
use super::stage::StageBuilder;
use super::stages::Source;
use crate::graph::Input;
use crate::op::{InlineScript, MountKind, NetworkMode, Op, RunOp, SecurityMode};

/// Where heredoc scripts are mounted.
const SCRIPTS: &str = "/dev/pipes";
/// Hostname of steps unless something else is asked for.
const HOSTNAME: &str = "buildkitsandbox";
/// Variable by which programs find the ssh agent.
const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";
/// What stands in names for the value of a secret.
const MASK: &str = "****";

impl StageBuilder<'_> {
    pub(super) fn run(&mut self, run: &RunInstruction, sources: &[Source]) -> Result<(), PlanError> {
        let (args, scripts) = self.command(run.script())?;
        let mounts = self.mounts(run, sources)?;
        let network = self.network(run.network)?;
        let security = self.security(run.security)?;
        let devices = self.devices(run)?;
        let name = self.run_name(run, &mounts);
        let created_by = format!("RUN {}{} # buildkit", self.state.args_in_history(), args.join(" "));
        let request = self.target.request;
        let op = RunOp {
            args,
            env: self.run_env(&mounts),
            proxy_env: self.target.globals.proxies(),
            cwd: self.state.directory(),
            user: self.state.config.config.user.clone(),
            network,
            security,
            hostname: self.hostname(),
            extra_hosts: request.add_hosts.clone(),
            shm_size_bytes: request.shm_size_bytes,
            ulimits: request.ulimits.clone(),
            cgroup_parent: request.cgroup_parent.clone(),
            mounts: mounts.list,
            scripts,
            devices,
            platform: self.state.platform.clone(),
        };
        let inputs = mounts.inputs.behind(self.state.root);
        let vertex = self.add_vertex(Op::Run(Box::new(op)), inputs, name, "");
        self.state.root = Input::Vertex(vertex);
        self.state.history.push(PlannedHistory::layer(created_by, vertex));
        Ok(())
    }

    /// argv, and the file it may need.
    fn command(&self, script: RunScript) -> Result<(Vec<String>, Vec<InlineScript>), PlanError> {
        match script {
            RunScript::Exec(words) if words.is_empty() => {
                Err(PlanError::input("failed to marshal LLB definition: arguments are required")
                    .about("[")
                    .help("give a program and its arguments: `RUN [\"make\", \"all\"]`"))
            }
            RunScript::Exec(words) => Ok((words, Vec::new())),
            RunScript::Shell(text) => Ok((self.with_shell(text), Vec::new())),
            // Only Unix kernels look at the first line.
            RunScript::File { content, .. } if self.state.platform.os == "windows" => {
                Ok((self.with_shell(String::from_utf8_lossy(&content).into_owned()), Vec::new()))
            }
            RunScript::File { name, content } => {
                let path = paths::join(SCRIPTS, &name);
                Ok((self.with_shell(path), vec![InlineScript { name, content }]))
            }
        }
    }

    /// The environment of the stage and the agent's socket. Proxies and secrets are added when the step runs.
    fn run_env(&self, mounts: &Mounts) -> Vec<(String, String)> {
        let mut env = self.state.env.clone();
        if let Some(socket) = &mounts.ssh_socket
            && env.get(SSH_AUTH_SOCK).is_none()
        {
            env.set(SSH_AUTH_SOCK, socket);
        }
        env.pairs().to_vec()
    }

    fn hostname(&self) -> String {
        let argument = self.target.globals.setting("BUILDKIT_SANDBOX_HOSTNAME").filter(|name| !name.is_empty());
        let option = self.target.request.hostname.as_deref().filter(|name| !name.is_empty());
        argument.or(option).unwrap_or(HOSTNAME).to_owned()
    }

    fn network(&self, asked: RunNetwork) -> Result<NetworkMode, PlanError> {
        let mode = match asked {
            RunNetwork::Default => self.target.request.network,
            RunNetwork::None => NetworkMode::None,
            RunNetwork::Host => NetworkMode::Host,
        };
        if mode == NetworkMode::Host {
            self.check_entitled("network.host")?;
        }
        Ok(mode)
    }

    fn security(&self, asked: RunSecurity) -> Result<SecurityMode, PlanError> {
        match asked {
            RunSecurity::Sandbox => Ok(SecurityMode::Sandbox),
            RunSecurity::Insecure => self.check_entitled("security.insecure").map(|()| SecurityMode::Insecure),
        }
    }

    fn check_entitled(&self, entitlement: &str) -> Result<(), PlanError> {
        let request = self.target.request;
        // Only a build runs anything.
        if request.purpose != Purpose::Build || request.entitlements.iter().any(|given| given == entitlement) {
            return Ok(());
        }
        let fault = PlanError::input(format!("failed to load LLB: {entitlement} is not allowed"));
        Err(fault.help(format!("allow it with `--allow {entitlement}`")))
    }

    fn run_name(&mut self, run: &RunInstruction, mounts: &Mounts) -> String {
        let mut text = self.here.original.clone();
        if let Some(heredoc) = run.heredocs.first() {
            text.push_str(&format!(" ({})", names::summary(&heredoc.content)));
        }
        let mut env = self.state.env.clone();
        for mount in &mounts.list {
            if let MountKind::Secret { env: Some(variable), .. } = &mount.kind {
                env.set(variable, MASK);
            }
        }
        let text = self.shown_command(&text, &env);
        self.step_name(&text)
    }
}
