//! What a stage is at some line: its root, image config, history and variables.

use oci::image::{Empty, RootFs};
use oci::{DiffId, ImageConfig, ImageRef, Platform};

use super::history::PlannedHistory;
use super::outline::Facts;
use super::scope::Env;
use super::stages::StageIdx;
use crate::graph::{Input, VertexId};
use crate::traits::ResolvedImage;

/// `PATH` of an image that has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image that a planned image is built on.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseImage {
    /// As the Dockerfile names it, normalised, with the digest that the name stood for.
    pub reference: ImageRef,
    /// Base layer first.
    pub diff_ids: Vec<DiffId>,
}

/// A stage at some line; of a finished stage, what others inherit and copy from.
#[derive(Debug)]
pub(super) struct State {
    pub(super) root: Input,
    pub(super) platform: Platform,
    /// Without history and layers.
    pub(super) config: ImageConfig,
    /// Of this stage alone, or of its base image; what a parent stage did is with the parent.
    pub(super) history: Vec<PlannedHistory>,
    /// The stage that this one is based on.
    pub(super) parent: Option<StageIdx>,
    /// Base image's Env, ENV and ARG values.
    pub(super) env: Env,
    /// Declared ARGs in order, with their value at the declaration.
    pub(super) args: Vec<(String, Option<String>)>,
    /// Whether a WORKDIR of this file has set the directory.
    pub(super) workdir_is_set: bool,
    pub(super) base: Option<BaseImage>,
    /// Layers that no instruction made, with their description: they get their history at the end.
    pub(super) undescribed: Vec<(VertexId, String)>,
    /// The root is a directory of the client, by the name of its context, and no layer yet.
    pub(super) root_is_context: Option<String>,
    /// What the stage says about itself; its base's is with the base.
    pub(super) facts: Facts,
}

impl State {
    /// `FROM scratch`: nothing, for the target platform.
    pub(super) fn scratch(target: &Platform) -> Self {
        let mut config = ImageConfig::default();
        set_platform(&mut config, target);
        config.config.working_dir = "/".to_owned();
        Self::new(Input::Scratch, target.clone(), config, None)
    }

    /// The state behind a pulled image. Its triggers are left in the config, for whoever looks for them.
    pub(super) fn image(root: Input, platform: Platform, image: &ResolvedImage) -> Self {
        let mut config = image.config.clone();
        config.created = None;
        let diff_ids = std::mem::take(&mut config.rootfs).diff_ids;
        let history = std::mem::take(&mut config.history);
        let reference = pinned(image);
        let mut state = Self::new(root, platform, config, Some(BaseImage { reference, diff_ids }));
        state.history = history.into_iter().map(PlannedHistory::inherited).collect();
        state
    }

    fn new(root: Input, platform: Platform, mut config: ImageConfig, base: Option<BaseImage>) -> Self {
        config.rootfs = RootFs::default();
        let mut env = Env::from_config(&config.config.env);
        if env.get("PATH").is_none() && platform.os != "windows" {
            config.config.env.push(format!("PATH={DEFAULT_PATH}"));
            env.set("PATH", DEFAULT_PATH);
        }
        Self {
            root,
            platform,
            config,
            history: Vec::new(),
            parent: None,
            env,
            args: Vec::new(),
            workdir_is_set: false,
            base,
            undescribed: Vec::new(),
            root_is_context: None,
            facts: Facts::default(),
        }
    }

    /// The state in which a child of the stage `index`, whose state this is, begins.
    pub(super) fn child(&self, index: StageIdx) -> Self {
        Self {
            root: self.root,
            platform: self.platform.clone(),
            config: self.config.clone(),
            // Copying it would make a long chain of stages quadratic.
            history: Vec::new(),
            parent: Some(index),
            env: self.env.clone(),
            args: self.args.clone(),
            workdir_is_set: self.workdir_is_set,
            base: self.base.clone(),
            undescribed: self.undescribed.clone(),
            root_is_context: self.root_is_context.clone(),
            facts: Facts::default(),
        }
    }

    /// The directory that relative paths start from, absolute and clean.
    pub(super) fn directory(&self) -> String {
        super::paths::clean(&self.config.config.working_dir)
    }

    /// `ENV`: in the build and in the image.
    pub(super) fn set_env(&mut self, key: &str, value: &str) {
        self.env.set(key, value);
        let list = &mut self.config.config.env;
        let prefix = format!("{key}=");
        let text = format!("{prefix}{value}");
        match list.iter_mut().find(|known| known.starts_with(&prefix) || *known == key) {
            Some(known) => *known = text,
            None => list.push(text),
        }
    }

    /// Variables of the environment that are build arguments and nothing else.
    pub(super) fn build_args(&self) -> Vec<String> {
        let is_set = |name: &str| self.config.config.env.iter().any(|known| known.split('=').next() == Some(name));
        self.args.iter().map(|(name, _)| name).filter(|name| !is_set(name)).cloned().collect()
    }

    /// The arguments as RUN's history shows them: `|2 A=1 B=2 `, each with the value that it has here.
    pub(super) fn args_in_history(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &self.args {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return String::new();
        }
        let declared = |name: &str| self.args.iter().rev().find(|(known, _)| known == name)?.1.as_deref();
        let pairs = names.iter().map(|name| {
            let value = self.env.get(name).or_else(|| declared(name)).unwrap_or_default();
            format!("{name}={value} ")
        });
        format!("|{} {}", names.len(), pairs.collect::<String>())
    }

    pub(super) fn add_volume(&mut self, path: &str) {
        self.config.config.volumes.insert(path.to_owned(), Empty {});
    }

    pub(super) fn expose(&mut self, port: &str) {
        self.config.config.exposed_ports.insert(port.to_owned(), Empty {});
    }
}

/// The image with the digest that its name stood for.
pub(super) fn pinned(image: &ResolvedImage) -> ImageRef {
    image.reference.clone().with_default_tag().with_digest(image.top_digest.clone())
}

/// Writes a platform into a config.
pub(super) fn set_platform(config: &mut ImageConfig, platform: &Platform) {
    config.os.clone_from(&platform.os);
    config.architecture.clone_from(&platform.architecture);
    config.variant.clone_from(&platform.variant);
    config.os_version.clone_from(&platform.os_version);
}
