//! What a plan is made from. Flags, environment variables and files have been dealt with by whoever fills this in.

use std::collections::BTreeMap;

use oci::Platform;

use super::contexts::NamedContext;
use crate::op::{ExtraHost, GitOp, NetworkMode, Ulimit};

/// Everything that decides what a Dockerfile means in one build.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// The Dockerfile.
    pub dockerfile: SourceText,
    /// `--target`, as written; `None` is the last stage.
    pub target: Option<String>,
    /// `--platform`, in order; empty means "the build platform, not asked for", which lets the base image decide.
    pub platforms: Vec<Platform>,
    /// The platform that steps run on.
    pub build_platform: Platform,
    /// `--build-arg`; bare ones have their value from the environment by now.
    pub build_args: BTreeMap<String, String>,
    /// `--label`, in order; the last of one key wins.
    pub labels: Vec<(String, String)>,
    /// `--build-context`, by the name as written (`name` or `name::os/arch`).
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// What COPY reads from.
    pub main_context: ContextKind,
    /// The ignore file of the main context, for warnings about what it hides.
    pub ignore: Option<IgnoreFile>,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--network`: what `RUN --network=default` gets.
    pub network: NetworkMode,
    /// `--add-host`.
    pub add_hosts: Vec<ExtraHost>,
    /// Hostname of steps; `None` is `buildkitsandbox`. `BUILDKIT_SANDBOX_HOSTNAME` beats it.
    pub hostname: Option<String>,
    /// `--shm-size`.
    pub shm_size_bytes: Option<u64>,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--allow`: `network.host`, `security.insecure`, `device`, `device=NAME`.
    pub entitlements: Vec<String>,
    /// Names this Dockerfile among builds (its path in the context, or a digest): first part of every
    /// [`VertexMeta::slot`](crate::VertexMeta::slot).
    pub dockerfile_identity: String,
    /// What the plan is for.
    pub purpose: Purpose,
}

impl PlanRequest {
    /// A request with nothing but a Dockerfile: every option at its default, an empty context.
    pub fn new(dockerfile: SourceText, build_platform: Platform) -> Self {
        Self {
            dockerfile_identity: dockerfile.name.clone(),
            dockerfile,
            target: None,
            platforms: Vec::new(),
            build_platform,
            build_args: BTreeMap::new(),
            labels: Vec::new(),
            named_contexts: BTreeMap::new(),
            main_context: ContextKind::None,
            ignore: None,
            no_cache: NoCache::Off,
            network: NetworkMode::Default,
            add_hosts: Vec::new(),
            hostname: None,
            shm_size_bytes: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            entitlements: Vec::new(),
            purpose: Purpose::Build,
        }
    }
}

/// A file's name and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceText {
    /// As shown in messages.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// An ignore file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreFile {
    /// As shown in messages, for instance `.dockerignore`.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// Where the main context comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// Nothing: an empty root.
    None,
    /// A directory, by the name that [`crate::op::LocalOp`] gets.
    Local(String),
    /// A git tree.
    Git(GitOp),
    /// A file behind a URL: unpacked when it is an archive, else a file named `context`.
    Http(String),
}

/// For which stages cached results are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// For none.
    #[default]
    Off,
    /// For all.
    All,
    /// For stages of these names, in any letter case.
    Stages(Vec<String>),
}

impl NoCache {
    /// Whether it concerns a stage.
    pub(super) fn covers(&self, stage: Option<&str>) -> bool {
        match self {
            Self::Off => false,
            Self::All => true,
            Self::Stages(names) => stage.is_some_and(|stage| names.iter().any(|name| name.eq_ignore_ascii_case(stage))),
        }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To be run: what the target needs is evaluated.
    #[default]
    Build,
    /// `--check`: without a target all stages are evaluated; platforms of images are not compared.
    Check,
    /// `--call=outline`: as for a build, but nothing is going to be run, so nothing has to be allowed.
    Outline,
}
