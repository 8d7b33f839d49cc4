//! Where a stage begins and what its instructions take files from, as vertices.
//!
//! Spec: `spec/dockerfile.md` §4.3–4.7, §6.

use oci::Platform;
use parser::lint;

use super::contexts::{Found, NamedContext};
use super::epoch;
use super::error::PlanError;
use super::git_url;
use super::remote::{self, UrlNames};
use super::request::{ContextKind, Purpose};
use super::resolve::{FoundImage, Origin, Wanted};
use super::stage::StageBuilder;
use super::stages::{Base, StageIdx};
use super::state::{State, pinned};
use super::target::Done;
use crate::graph::{Input, VertexId};
use crate::op::{FileAction, FileOp, GitOp, ImageOp, LocalOp, Op};

impl StageBuilder<'_> {
    /// FROM: sets the state to that of the base.
    pub(super) fn begin(&mut self) -> Result<(), PlanError> {
        let platform = self.stage.platform.clone().unwrap_or_else(|| self.target.platform.clone());
        match (&self.stage.replaced_by, &self.stage.name, &self.stage.base) {
            (Some(_), Some(name), _) => self.begin_outside(name, platform),
            (_, _, Base::Outside(name)) => {
                self.begin_outside(name, platform)?;
                self.root_from_context();
                Ok(())
            }
            (_, _, Base::Stage(index)) => {
                // A stage keeps its own platform, whatever this FROM says.
                self.state = self.built(*index)?.child(*index);
                self.root_from_context();
                Ok(())
            }
        }
    }

    fn begin_outside(&mut self, name: &str, platform: Platform) -> Result<(), PlanError> {
        match self.origin(name, &platform)? {
            Origin::Scratch => self.state = State::scratch(&self.target.platform),
            Origin::Image(image) => self.begin_image(name, platform, &image),
            Origin::Context(found) => self.begin_context(&found)?,
        }
        Ok(())
    }

    fn begin_image(&mut self, name: &str, expected: Platform, image: &FoundImage) {
        let actual = image.resolved.config.platform().normalized();
        let is_known = !actual.os.is_empty() && !actual.architecture.is_empty();
        let differs = is_known && (actual.os != expected.os || actual.architecture != expected.architecture);
        let is_free = self.stage.platform.is_none() && !self.target.is_explicit;
        let platform = if differs && is_free { actual.clone() } else { expected.clone() };
        if differs && !is_free && self.target.request.purpose == Purpose::Build {
            let (got, wanted) = (actual.to_string(), expected.to_string());
            let (lines, checks) = (self.stage.lines, &self.stage.checks);
            self.findings.raise(lint::Warning::invalid_base_image_platform(name, &got, &wanted, lines, checks));
        }
        let config = &image.resolved.config;
        let has_layers = !config.rootfs.diff_ids.is_empty() || config.history.iter().any(|entry| !entry.empty_layer);
        self.state = State::image(Input::Scratch, platform, &image.resolved);
        if has_layers {
            let reference = pinned(&image.resolved);
            let name = match &image.context {
                Some(context) => format!("[context {context}] {reference}"),
                None => self.step_name(&format!("FROM {reference}")),
            };
            self.state.root = Input::Vertex(self.image_vertex(image, name));
        }
    }

    /// FROM a context that is no image. A directory of the client stays one until something needs a root.
    fn begin_context(&mut self, found: &Found) -> Result<(), PlanError> {
        self.state = State::scratch(&self.target.platform);
        let (vertex, description) = match &found.context {
            NamedContext::Local(name) => {
                self.state.root_is_context = Some(found.name.clone());
                let vertex = self.local_vertex(name, format!("[context {}] load from client", found.name));
                self.state.root = Input::Vertex(vertex);
                return Ok(());
            }
            NamedContext::Git(git) => {
                (self.context_git(found, git), format!("git snapshot for {}", git_url::shown(git)))
            }
            NamedContext::Http(url) => (self.context_url(found, url), format!("http url {}", git_url::redacted(url))),
            other => return Err(PlanError::internal(format!("no root can be made of {other:?}"))),
        };
        self.state.root = Input::Vertex(vertex);
        self.state.undescribed.push((vertex, description));
        Ok(())
    }

    /// If the root is a directory of the client, makes one layer of its files.
    pub(super) fn root_from_context(&mut self) {
        let Some(context) = self.state.root_is_context.take() else { return };
        let op = Op::File(FileOp { actions: vec![FileAction::Copy(remote::plain_copy("/"))] });
        let inputs = vec![Input::Scratch, self.state.root];
        let vertex = self.add_source(op, inputs, format!("[context {context}] copy files"), "root");
        self.state.root = Input::Vertex(vertex);
        self.state.undescribed.push((vertex, format!("local source for {context}")));
    }

    /// What a name outside of the file is, as files to take; `None` is an empty root.
    pub(super) fn outside_input(&mut self, name: &str) -> Result<Option<Input>, PlanError> {
        let platform = self.target.platform.clone();
        let vertex = match self.origin(name, &platform)? {
            Origin::Scratch => return Ok(None),
            Origin::Image(image) if image.resolved.config.rootfs.diff_ids.is_empty() => return Ok(None),
            Origin::Image(image) => {
                let reference = pinned(&image.resolved);
                let name = match &image.context {
                    Some(context) => format!("[context {context}] {reference}"),
                    None => format!("FROM {reference}"),
                };
                self.image_vertex(&image, name)
            }
            Origin::Context(found) => match &found.context {
                NamedContext::Local(name) => {
                    self.local_vertex(name, format!("[context {}] load from client", found.name))
                }
                NamedContext::Git(git) => self.context_git(&found, git),
                NamedContext::Http(url) => self.context_url(&found, url),
                other => return Err(PlanError::internal(format!("no files can be taken from {other:?}"))),
            },
        };
        Ok(Some(Input::Vertex(vertex)))
    }

    /// The root of a finished stage as files to take; `None` when it is empty.
    pub(super) fn stage_input(&self, index: StageIdx) -> Option<Result<Option<Input>, PlanError>> {
        match &self.done[index] {
            Done::Built(state) => Some(Ok(Some(state.root).filter(|root| *root != Input::Scratch))),
            Done::NotYet => None,
            Done::Failed => Some(Err(PlanError::internal("a stage was evaluated whose source had failed"))),
        }
    }

    /// The main context as files to take; `None` when there is none.
    pub(super) fn context_input(&mut self) -> Option<Input> {
        let request = self.target.request;
        let vertex = match &request.main_context {
            ContextKind::None => return None,
            ContextKind::Local(name) => self.local_vertex(name, "[internal] load build context".to_owned()),
            ContextKind::Git(git) => self.git_root(git, epoch::MAIN_CONTEXT, remote::git_name(git)),
            ContextKind::Http(url) => self.url_root(url, UrlNames::main_context()),
        };
        Some(Input::Vertex(vertex))
    }

    fn origin(&self, name: &str, platform: &Platform) -> Result<Origin, PlanError> {
        let wanted = Wanted { name: name.to_owned(), platform: platform.clone() };
        let origin = self.target.origins.get(&wanted).cloned();
        origin.ok_or_else(|| PlanError::internal(format!("{name} for {platform} was not looked up")))
    }

    fn built(&self, index: StageIdx) -> Result<&State, PlanError> {
        match &self.done[index] {
            Done::Built(state) => Ok(state),
            _ => Err(PlanError::internal(format!("stage {index} was not evaluated before its child"))),
        }
    }

    fn image_vertex(&mut self, image: &FoundImage, name: String) -> VertexId {
        let resolved = &image.resolved;
        let op = ImageOp {
            reference: resolved.reference.clone(),
            platform: resolved.platform.clone(),
            manifest: resolved.manifest.clone(),
            diff_ids: resolved.config.rootfs.diff_ids.clone(),
        };
        self.add_image(op, name, pinned(resolved).familiar())
    }

    fn local_vertex(&mut self, context: &str, name: String) -> VertexId {
        self.add_source(Op::Local(LocalOp { name: context.to_owned() }), Vec::new(), name, "context")
    }

    fn context_git(&mut self, found: &Found, git: &GitOp) -> VertexId {
        self.git_root(git, &found.name, remote::named_git_name(&found.name, git))
    }

    fn context_url(&mut self, found: &Found, url: &str) -> VertexId {
        self.url_root(url, UrlNames::named_context(&found.name, url))
    }

    /// A URL as a root: the archive unpacked, or one file.
    fn url_root(&mut self, url: &str, names: UrlNames) -> VertexId {
        let source = self.add_source(remote::url_op(url), Vec::new(), names.load, "context");
        self.add_source(remote::unpack_op(), vec![Input::Scratch, Input::Vertex(source)], names.unpack, "unpack")
    }

    /// A git tree, whose files have the time of the commit if the build takes its time from there.
    fn git_root(&mut self, git: &GitOp, context: &str, name: String) -> VertexId {
        let is_timed = self.target.epoch.context.as_deref() == Some(context);
        let git = if is_timed { epoch::timed(git) } else { git.clone() };
        self.add_source(Op::Git(git), Vec::new(), name, "context")
    }
}
