//! `RUN --mount`: defaults that depend on the step, and where the files come from. Spec: `spec/dockerfile.md` §2.2.1–2.2.7.

use cache::Sharing;
use parser::instruction::RunInstruction;
use parser::mount::{self, CacheSharing, MountSpec, MountType};
use parser::pattern;

use super::copy::Inputs;
use super::error::PlanError;
use super::paths;
use super::stage::StageBuilder;
use super::stages::Source;
use crate::graph::Input;
use crate::op::{Mount, MountKind};

/// Directory of secrets that have no target.
const SECRETS: &str = "/run/secrets";
/// Where agents are mounted that have no target, but for their number.
const SSH_AGENT: &str = "/run/buildkit/ssh_agent";
/// Mode of a new cache directory.
const CACHE_MODE: u32 = 0o755;
/// Mode of a secret file.
const SECRET_MODE: u32 = 0o400;
/// Mode of an agent's socket.
const SSH_MODE: u32 = 0o600;

/// The mounts of one RUN.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// In the order of the Dockerfile.
    pub(super) list: Vec<Mount>,
    /// What they take files from.
    pub(super) inputs: Inputs,
    /// Target of the first agent.
    pub(super) ssh_socket: Option<String>,
    n_ssh: usize,
}

impl StageBuilder<'_> {
    pub(super) fn mounts(&mut self, run: &RunInstruction, sources: &[Source]) -> Result<Mounts, PlanError> {
        let specs = run.mounts.iter().map(|raw| self.mount_spec(raw)).collect::<Result<Vec<_>, _>>()?;
        let mut mounts = Mounts::default();
        for (spec, source) in specs.into_iter().zip(sources) {
            let mount = match spec.kind {
                MountType::Bind => self.bind_mount(&spec, source, &mut mounts)?,
                MountType::Cache => self.cache_mount(&spec, source, &mut mounts)?,
                MountType::Tmpfs => {
                    let kind = MountKind::Tmpfs { size_bytes: spec.size_bytes.filter(|&size| size > 0) };
                    Mount { target: self.mount_target(&spec)?, kind }
                }
                MountType::Secret => self.secret_mount(&spec),
                MountType::Ssh => self.ssh_mount(&spec, &mut mounts),
            };
            mounts.list.push(mount);
        }
        Ok(mounts)
    }

    fn mount_spec(&mut self, raw: &str) -> Result<MountSpec, PlanError> {
        let (expander, env) = (self.target.expander, &self.state.env);
        let mut unset = Vec::new();
        let spec = mount::parse_mount(raw, &mut |value| {
            let expanded = expander.process_word(value, env)?;
            unset.extend(expanded.unset);
            Ok(expanded.text)
        });
        self.check_unset(&unset);
        spec.map_err(PlanError::from)
    }

    fn bind_mount(&mut self, spec: &MountSpec, source: &Source, mounts: &mut Mounts) -> Result<Mount, PlanError> {
        let from = self.mounted_from(spec, source)?;
        let input = mounts.inputs.index_of(from);
        let source = paths::clean(spec.source.as_deref().unwrap_or_default());
        let kind = MountKind::Bind { input, source, read_only: spec.read_only };
        Ok(Mount { target: self.mount_target(spec)?, kind })
    }

    fn cache_mount(&mut self, spec: &MountSpec, source: &Source, mounts: &mut Mounts) -> Result<Mount, PlanError> {
        let from = match spec.from {
            Some(_) => self.mounted_from(spec, source)?,
            None => None,
        };
        let namespace = self.target.globals.setting("BUILDKIT_CACHE_MOUNT_NS").unwrap_or_default();
        // The target as written, so that it is the same cache whatever the working directory.
        let default_id = || pattern::clean(spec.target.as_deref().unwrap_or_default());
        let id = spec.id.clone().unwrap_or_else(default_id);
        self.state.facts.note_cache(&id, self.here.lines);
        let kind = MountKind::Cache {
            id: format!("{namespace}/{id}"),
            sharing: match spec.sharing {
                Some(CacheSharing::Shared) | None => Sharing::Shared,
                Some(CacheSharing::Private) => Sharing::Private,
                Some(CacheSharing::Locked) => Sharing::Locked,
            },
            input: mounts.inputs.index_of(from),
            source: paths::clean(spec.source.as_deref().unwrap_or_default()),
            uid: spec.uid.unwrap_or_default(),
            gid: spec.gid.unwrap_or_default(),
            mode: spec.mode.unwrap_or(CACHE_MODE),
            read_only: spec.read_only,
        };
        Ok(Mount { target: self.mount_target(spec)?, kind })
    }

    fn secret_mount(&mut self, spec: &MountSpec) -> Mount {
        let target = spec.target.as_deref();
        let named = spec.source.as_deref().or(spec.id.as_deref());
        let id = named.unwrap_or_else(|| paths::base_name(target.unwrap_or_default()));
        self.state.facts.note_secret(id, spec.required, self.here.lines);
        let env = spec.env.clone().filter(|name| !name.is_empty());
        let target = match (target, &env) {
            (Some(target), _) => self.absolute(target),
            (None, Some(_)) => String::new(),
            (None, None) => format!("{SECRETS}/{}", paths::base_name(id)),
        };
        let kind = MountKind::Secret {
            id: id.to_owned(),
            env,
            required: spec.required,
            uid: spec.uid.unwrap_or_default(),
            gid: spec.gid.unwrap_or_default(),
            mode: spec.mode.unwrap_or(SECRET_MODE),
        };
        Mount { target, kind }
    }

    fn ssh_mount(&mut self, spec: &MountSpec, mounts: &mut Mounts) -> Mount {
        let target = match &spec.target {
            Some(target) => self.absolute(target),
            None => format!("{SSH_AGENT}.{}", mounts.n_ssh),
        };
        mounts.n_ssh += 1;
        mounts.ssh_socket.get_or_insert_with(|| target.clone());
        let id = spec.id.clone().unwrap_or_default();
        self.state.facts.note_agent(&id, spec.required, self.here.lines);
        let kind = MountKind::Ssh {
            id,
            required: spec.required,
            uid: spec.uid.unwrap_or_default(),
            gid: spec.gid.unwrap_or_default(),
            mode: spec.mode.unwrap_or(SSH_MODE),
        };
        Mount { target, kind }
    }

    fn mount_target(&self, spec: &MountSpec) -> Result<String, PlanError> {
        let target = self.absolute(spec.target.as_deref().unwrap_or_default());
        if target == "/" {
            return Err(PlanError::input("invalid mount target \"/\"")
                .about(spec.target.as_deref().unwrap_or("--mount"))
                .help("say where in the root it is mounted, with `target=`: `target=/mnt`"));
        }
        Ok(target)
    }

    fn mounted_from(&mut self, spec: &MountSpec, source: &Source) -> Result<Option<Input>, PlanError> {
        match source {
            Source::Context => Ok(self.context_input()),
            Source::Outside(name) => self.outside_input(name),
            Source::Stage(index) => self.stage_input(*index).unwrap_or_else(|| {
                let from = spec.from.as_deref().unwrap_or_default();
                let target = spec.target.as_deref().unwrap_or_default();
                let fault = PlanError::input(format!(
                    "cannot mount from stage \"{from}\" to \"{target}\", stage needs to be defined before current command"
                ));
                Err(fault.about(from).help(format!("move the stage `{from}` before this one")))
            }),
        }
    }
}
