//! The engine: performs operations for the solver by handing each to the module that knows how.
//!
//! Implements [`solver::Executor`] and [`solver::Resolver`]. Read [`Engine::new`] for what an engine is made of, then
//! [`Engine::perform_kind`](Engine) for where each operation goes.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use cache::{Codec, ContentDigest, ContextIndex, Layer, LayerInfo, Lease, Store};
use oci::layer::TarWriter;
use oci::{ImageRef, Platform};
use solver::plan::IgnoreFile;
use solver::plan::patterns::Patterns;
use solver::traits::Selection;
use solver::{
    Chain, CopySelection, Device, Executor, FileAction, FileOp, FoundDevice, Graph, ImageOp, Input, Notes, OciLayout,
    Op, OpError, Progress, ResolvedImage, Resolver, ResultRef, SolveContext, Step, TargetUse, Work, solve,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::caches::{CacheParts, Caches};
use crate::context::{self, IgnoreRules, LocalContext};
use crate::emulation::Emulation;
use crate::fetched::FetchedFiles;
use crate::files::{self, Form, Setting, Source};
use crate::layer::{self, LayerSink, PackOptions};
use crate::packer::{Packer, Wanted};
use crate::push::Pusher;
use crate::push::{Early, EarlyTarget};
use crate::run::{InputSource, InputTree, RunRequest, Runner};
use crate::source::image::Asked;
use crate::source::{GitSource, HttpSource, ImageSource};
use crate::view::{Below, RootView};

/// A directory that the client offers, with its ignore rules.
#[derive(Clone, Debug)]
pub struct OfferedDir {
    /// Where it is.
    pub path: PathBuf,
    /// Its ignore file, if it has one.
    pub ignore: Option<IgnoreFile>,
}

/// What an engine is made of.
pub struct EngineParts {
    /// Where results are kept.
    pub store: Store,
    /// Finds and pulls images.
    pub images: Arc<ImageSource>,
    /// Fetches files.
    pub http: HttpSource,
    /// Fetches git trees.
    pub git: GitSource,
    /// Runs commands.
    pub runner: Runner,
    /// Directories of the client, by the name of their context.
    pub contexts: BTreeMap<String, OfferedDir>,
    /// In which forms layers of the result will leave. Empty: they stay.
    pub wanted: Vec<Wanted>,
    /// Where work that belongs to no step is shown.
    pub progress: Progress,
    /// Stops everything.
    pub cancel: CancellationToken,
}

/// Performs operations. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    parts: EngineParts,
    packer: Packer,
    /// Sends what is packed while the build runs.
    early: OnceLock<Early>,
    contexts: BTreeMap<String, Opened>,
    scratch: TempDir,
    /// The steps of [`Engine::fetch`].
    shown: Mutex<HashSet<String>>,
    /// What is copied and has content that the store had not seen before.
    unseen: Mutex<HashSet<CopySelection>>,
    /// Nothing that this build touches is collected while the engine lives.
    _lease: Lease,
}

/// A context that is opened when something is first read from it.
struct Opened {
    offered: OfferedDir,
    context: OnceLock<Result<LocalContext, OpError>>,
}

impl Engine {
    /// Makes an engine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn new(parts: EngineParts) -> Result<Self, OpError> {
        let lease = parts.store.lease()?;
        let scratch = parts.store.scratch_dir()?;
        let packer =
            Packer::new(parts.store.clone(), parts.images.clone(), parts.progress.clone(), parts.cancel.clone());
        let open = |(name, offered): (&String, &OfferedDir)| {
            (name.clone(), Opened { offered: offered.clone(), context: OnceLock::new() })
        };
        let contexts = parts.contexts.iter().map(open).collect();
        let (early, shown, unseen) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { parts, packer, early, contexts, scratch, shown, unseen, _lease: lease }) })
    }

    /// Brings images to registries.
    pub fn pusher(&self) -> Pusher {
        let parts = &self.inner.parts;
        Pusher { store: parts.store.clone(), images: parts.images.clone(), cancel: parts.cancel.clone() }
    }

    /// From now on sends layers to registries as soon as they are final. Counts once.
    pub fn push_early(&self, targets: &[EarlyTarget]) {
        let progress = self.inner.parts.progress.clone();
        let early = || Early::new(self.pusher(), self.inner.packer.clone(), targets, progress);
        self.inner.early.get_or_init(early);
    }

    /// Waits until what [`Self::push_early`] has begun is over.
    pub async fn settle_early(&self) {
        if let Some(early) = self.inner.early.get() {
            early.settle().await;
        }
    }

    /// Tells registries what is not going to be pushed of that after all, unless that takes long.
    pub async fn end_early(&self) {
        if let Some(early) = self.inner.early.get() {
            early.end().await;
        }
    }

    /// Begins to use caches elsewhere. Must be called inside the runtime.
    pub fn caches(&self, caches: CacheParts) -> Caches {
        let Inner { parts, packer, .. } = &*self.inner;
        let EngineParts { store, images, progress, cancel, .. } = parts;
        let shown = (progress.clone(), cancel.clone());
        Caches::new(caches, store.clone(), images.clone(), packer.clone(), shown)
    }

    /// Forgets results that lie elsewhere and turned out not to be had, and says so. Whether there were any: the steps that
    /// make them can be performed, so that a build which has failed for want of them is worth another try.
    ///
    /// # Errors
    /// Those of the store.
    pub fn forget_lost(&self) -> Result<bool, OpError> {
        let EngineParts { store, images, progress, .. } = &self.inner.parts;
        let mut reasons = Vec::new();
        for (diff_id, reason) in images.take_lost() {
            if store.forget_remotes(&diff_id)? {
                reasons.push(reason);
            }
        }
        let Some(first) = reasons.first() else { return Ok(false) };
        match reasons.len() {
            1 => progress.warn(format!("a layer of a cache cannot be had, and its step is run again: {first}")),
            n => progress.warn(format!("{n} layers of caches cannot be had, and their steps are run again: {first}")),
        }
        self.inner.packer.forget_jobs();
        Ok(true)
    }

    /// Knows about commands for other machines.
    pub fn emulation(&self) -> Option<&Emulation> {
        self.inner.parts.runner.emulation()
    }

    /// Makes layers ready to leave.
    pub fn packer(&self) -> &Packer {
        &self.inner.packer
    }

    /// The merged root of a chain; its layers are fetched and unpacked where they are not.
    ///
    /// # Errors
    /// A layer cannot be had.
    pub async fn root_view(&self, chain: &Chain, step: &Step) -> Result<RootView, OpError> {
        let trees = self.trees(chain, step).await?;
        let open = move || RootView::open(&trees).map_err(OpError::from);
        blocking(open).await
    }

    /// The trees of a chain, base layer first; layers are fetched and unpacked where they are not.
    ///
    /// # Errors
    /// A layer cannot be had.
    pub async fn trees(&self, chain: &Chain, step: &Step) -> Result<Vec<PathBuf>, OpError> {
        self.inner.parts.images.ensure_trees(chain, step, &self.inner.parts.cancel).await
    }

    /// Makes roots, so that they can be looked into: vertices of `graph`, found in the store or performed as in any build.
    ///
    /// # Errors
    /// Those of the operations.
    pub async fn fetch<const N: usize>(
        &self,
        graph: &Graph,
        targets: [Input; N],
    ) -> Result<[FetchedFiles; N], OpError> {
        let context = SolveContext {
            store: self.inner.parts.store.clone(),
            executor: Arc::new(self.clone()),
            progress: self.inner.parts.progress.clone(),
            cancel: self.inner.parts.cancel.clone(),
            targets: TargetUse::Read,
            shown: self.shown(),
            notes: Notes::default(),
            ended: Arc::default(),
            // One operation after the other is what there is.
            parallelism: 1,
            // What is fetched is the client's own, or found by its bytes.
            remote: None,
        };
        let mut roots = Vec::with_capacity(N);
        for result in solve(graph, &targets, context).await.map_err(|error| error.error)? {
            let ResultRef::Root(chain) = result else { return Err(OpError::internal("what was fetched is no root")) };
            roots.push(FetchedFiles::new(self.root_view(&chain, &Progress::silent().start("")).await?));
        }
        let names = graph.ids().map(|id| graph.vertex(id).meta.name.clone());
        self.inner.shown.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        roots.try_into().map_err(|_| OpError::internal("a solve has another number of results than targets"))
    }

    /// Names of the steps that [`Engine::fetch`] has shown.
    pub fn shown(&self) -> HashSet<String> {
        self.inner.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an operation may look at in the root that it is performed on, without the contents of files, if some layer of it is better left
    /// where it is.
    async fn outline(&self, chain: &Chain, op: &FileOp, step: &Step) -> Result<Option<RootView>, OpError> {
        let asked = Asked::Paths(op.actions.iter().map(|action| action.dest().to_owned()).collect());
        match self.inner.parts.images.outlines(chain, asked, step, &self.inner.parts.cancel).await? {
            Some(trees) => blocking(move || RootView::open(&trees).map_err(OpError::from)).await.map(Some),
            None => Ok(None),
        }
    }

    /// What a copy or mount reads from.
    async fn source(&self, result: &ResultRef, step: &Step) -> Result<Source, OpError> {
        match result {
            ResultRef::Root(chain) if chain.layers().is_empty() => Ok(Source::Empty),
            ResultRef::Root(chain) => Ok(Source::View(self.root_view(chain, step).await?)),
            ResultRef::Context(name) => self.context(name).await.map(Source::Context),
        }
    }

    async fn context(&self, name: &str) -> Result<LocalContext, OpError> {
        let (engine, name) = (self.clone(), name.to_owned());
        blocking(move || {
            let opened = engine.inner.contexts.get(&name);
            let opened = opened.ok_or_else(|| OpError::internal(format!("no context is called `{name}`")))?;
            opened.context.get_or_init(|| engine.open_context(&name, &opened.offered)).clone()
        })
        .await
    }

    fn open_context(&self, name: &str, offered: &OfferedDir) -> Result<LocalContext, OpError> {
        let rules = match &offered.ignore {
            None => IgnoreRules::default(),
            Some(file) => {
                let patterns = Patterns::parse_ignore_file(&file.text)
                    .map_err(|error| OpError::input(format!("failed to read {}: {error}", file.name)))?;
                IgnoreRules { patterns, file: file.name.clone() }
            }
        };
        let index = ContextIndex::load(&self.inner.parts.store, &offered.path.to_string_lossy());
        Ok(LocalContext::open(name, &offered.path, rules, Some(index))?)
    }

    /// The digest of a selection; the list of its files is kept, so that a later build can name those that changed.
    fn digest_listed(&self, source: &Source, selection: &Selection<'_>) -> Result<ContentDigest, OpError> {
        let digested = context::digest::digested(source, selection)?;
        let store = &self.inner.parts.store;
        if !store.has_file_list(&digested.digest) {
            if let Selection::Copy(copy) = selection {
                self.inner.unseen.lock().unwrap_or_else(PoisonError::into_inner).insert((*copy).clone());
            }
            if let Err(error) = store.put_file_list(&digested.digest, &digested.file_list()) {
                // Explanations are poorer for it, and nothing else.
                tracing::debug!(%error, "the list of the files of a copy is not kept");
            }
        }
        Ok(digested.digest)
    }

    async fn perform_kind(&self, work: Work) -> Result<LayerInfo, OpError> {
        match &*work.op {
            Op::Run(run) => self.perform_run(run, &work).await,
            Op::File(file) => self.perform_file(file.clone(), work).await,
            Op::Http(http) => self.inner.parts.http.fetch(http, &work.step, &work.cancel).await,
            Op::Git(git) => self.inner.parts.git.fetch(git, &work.step, &work.cancel).await,
            Op::Image(_) | Op::Local(_) | Op::Merge => {
                Err(OpError::internal("the solver gives images, contexts and merges itself"))
            }
        }
    }

    async fn perform_run(&self, op: &solver::RunOp, work: &Work) -> Result<LayerInfo, OpError> {
        let Some(ResultRef::Root(root)) = work.inputs.first() else {
            return Err(OpError::internal("a command has no root"));
        };
        self.inner.parts.runner.expect(op);
        let root = mountable(self.trees(root, &work.step).await?);
        let mut inputs = Vec::with_capacity(work.inputs.len());
        // Input 0 is the root itself; its place is kept so that the indices of mounts stay true.
        inputs.push(InputTree { identity: String::new(), source: InputSource::Layers(Vec::new()) });
        for input in &work.inputs[1..] {
            inputs.push(self.input_tree(input, &work.step).await?);
        }
        let store = self.inner.parts.store.clone();
        let draft = store.new_tree()?;
        let began = SystemTime::now();
        let below = Below::new(root.clone());
        let request = RunRequest {
            op,
            root,
            inputs: &inputs,
            upper: draft.tree(),
            work: draft.work(),
            ignore_cache: work.ignore_cache,
            step: &work.step,
            cancel: &work.cancel,
        };
        let commit = move || {
            layer::drop_unchanged(&draft.tree(), &Below::new(vec![draft.tree()]), &below)?;
            let content = layer::content_digest(&draft.tree(), Some((began, SystemTime::now())))?;
            Ok(store.commit_tree(draft, content)?)
        };
        self.inner.parts.runner.run(request, commit).await
    }

    /// What a command mounts of a result.
    async fn input_tree(&self, input: &ResultRef, step: &Step) -> Result<InputTree, OpError> {
        match input {
            ResultRef::Root(chain) => {
                let identity = chain.layers().iter().map(|layer| format!("{:?}", layer.content)).collect();
                Ok(InputTree { identity, source: InputSource::Layers(mountable(self.trees(chain, step).await?)) })
            }
            ResultRef::Context(name) => {
                let identity = format!("context {name}");
                Ok(InputTree { identity, source: InputSource::Context(self.context(name).await?) })
            }
        }
    }

    /// Writes the layer of a file operation, as a tree when a later step looks into it, else as a tar at once.
    async fn perform_file(&self, op: FileOp, work: Work) -> Result<LayerInfo, OpError> {
        let mut sources = Vec::with_capacity(work.inputs.len());
        for (number, input) in work.inputs.iter().enumerate() {
            // What is written to is asked for its directories; what is copied from has to be here.
            let outline = match input {
                ResultRef::Root(chain) if number == 0 => self.outline(chain, &op, &work.step).await?,
                _ => None,
            };
            sources.push(match outline {
                Some(view) => Source::View(view),
                None => self.source(input, &work.step).await?,
            });
        }
        let root = match sources.first() {
            Some(Source::View(root)) => root.clone(),
            Some(Source::Empty) => RootView::open(&[])?,
            Some(Source::Context(_)) | None => return Err(OpError::internal("a file operation has no root")),
        };
        let engine = self.clone();
        blocking(move || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let setting = Setting {
                root: &root,
                inputs: &sources,
                scratch: engine.inner.scratch.path(),
                now: (now.as_secs() as i64, now.subsec_nanos()),
                cancel: &work.cancel,
            };
            if work.needs_tree { engine.file_tree(&op, &setting) } else { engine.file_tar(&op, &setting) }
        })
        .await
    }

    fn file_tree(&self, op: &FileOp, setting: &Setting<'_>) -> Result<LayerInfo, OpError> {
        let store = &self.inner.parts.store;
        let draft = store.new_tree()?;
        let outcome = files::perform_file_op(op, setting, Form::Tree(&draft.tree()))?;
        Ok(store.commit_tree(draft, outcome.content)?)
    }

    fn file_tar(&self, op: &FileOp, setting: &Setting<'_>) -> Result<LayerInfo, OpError> {
        let store = &self.inner.parts.store;
        let mut codecs: Vec<Codec> = self.inner.parts.wanted.iter().map(|wanted| wanted.codec).collect();
        // Some form must stay.
        codecs.retain(|codec| !matches!(codec, Codec::Estargz { .. }));
        let keep_plain = codecs.is_empty() || codecs.contains(&Codec::Plain);
        codecs.retain(|codec| *codec != Codec::Plain);
        let is_new = {
            let unseen = self.inner.unseen.lock().unwrap_or_else(PoisonError::into_inner);
            op.actions.iter().any(|action| matches!(action, FileAction::Copy(copy) if unseen.contains(&copy.selection)))
        };
        let sink = LayerSink::new(store, &PackOptions { keep_plain, codecs, is_new }, self.inner.packer.onlookers())?;
        let mut tar = TarWriter::new(sink);
        let outcome = files::perform_file_op(op, setting, Form::Tar(&mut tar))?;
        let sink = tar.finish().map_err(|error| OpError::environment(format!("cannot write a layer: {error}")))?;
        let packed = sink.finish()?;
        Ok(store.commit_tar(&packed.diff_id, packed.tar_bytes, outcome.content)?)
    }
}

#[async_trait]
impl Executor for Engine {
    async fn digest(
        &self,
        source: &ResultRef,
        selection: Selection<'_>,
        step: &Step,
    ) -> Result<ContentDigest, OpError> {
        let source = self.source(source, step).await?;
        let engine = self.clone();
        match selection {
            Selection::Copy(copy) => {
                let copy = copy.clone();
                blocking(move || engine.digest_listed(&source, &Selection::Copy(&copy))).await
            }
            Selection::Path(path) => {
                let path = path.to_owned();
                blocking(move || engine.digest_listed(&source, &Selection::Path(&path))).await
            }
        }
    }

    async fn image_chain(&self, image: &ImageOp, step: &Step) -> Result<Chain, OpError> {
        self.inner.parts.images.chain(image, step).await
    }

    async fn perform(&self, work: Work) -> Result<LayerInfo, OpError> {
        self.perform_kind(work).await
    }

    async fn probe_source(&self, op: &Op, step: &Step) -> Result<String, OpError> {
        match op {
            Op::Http(http) => self.inner.parts.http.probe(http, step).await,
            Op::Git(git) => self.inner.parts.git.probe(git, step).await,
            _ => Err(OpError::internal("only URLs and git trees are probed")),
        }
    }

    fn layer_is_final(&self, chain: &Chain) {
        for wanted in &self.inner.parts.wanted {
            self.inner.packer.start(chain, *wanted);
        }
        if let Some(early) = self.inner.early.get() {
            early.send(chain);
        }
    }
}

#[async_trait]
impl Resolver for Engine {
    async fn resolve_image(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, OpError> {
        self.inner.parts.images.resolve(reference, platform, step).await
    }

    async fn resolve_layout(
        &self,
        layout: &OciLayout,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, OpError> {
        self.inner.parts.images.resolve_layout(layout, platform, step).await
    }

    fn find_devices(&self, device: &Device) -> Result<Vec<FoundDevice>, OpError> {
        self.inner.parts.runner.devices().find(device)
    }

    async fn newest_time(&self, graph: &Graph, files: Input) -> Result<Option<i64>, OpError> {
        let [files] = self.fetch(graph, [files]).await?;
        files.newest_time().await
    }
}

/// The trees that a mount of `trees` (base first) needs: overlayfs refuses a directory that is given twice. Of a layer that
/// occurs twice only the upper one can be seen: it covers everything that the lower one has.
pub fn mountable(trees: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    let mut distinct: Vec<PathBuf> = trees.into_iter().rev().filter(|tree| seen.insert(tree.clone())).collect();
    distinct.reverse();
    distinct
}

/// What the store knows of a layer that a result names.
///
/// # Errors
/// It is gone: a bug, because the lease protects it.
pub(crate) fn known_layer(store: &Store, layer: &Layer) -> Result<LayerInfo, OpError> {
    store.layer(&layer.id)?.ok_or_else(|| OpError::internal(format!("the store has lost the layer {}", layer.id)))
}

/// Runs work on files or the processor off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OpError::cancelled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_layer_that_occurs_twice_the_upper_one_is_mounted() {
        let trees = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(mountable(trees(&["a", "b", "a", "c"])), trees(&["b", "a", "c"]));
        assert_eq!(mountable(Vec::new()), trees(&[]));
    }
}
