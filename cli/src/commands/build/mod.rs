//! `rbuild build`: one build, from checked flags to a written product.

mod caches;
mod context;
pub(crate) mod dest;
mod foreign;
mod product;
mod record;
mod remote;
mod result_files;
mod secrets;
pub(crate) mod wire;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use executor::caches::Caches;
use executor::emulation::{Emulation, EmulationCost};
use executor::engine::{Engine, OfferedDir};
use executor::packer::Wanted;
use solver::plan::{
    ContextKind, Culprit, IgnoreFile, NamedContext, NoCache, Plan, PlanError, PlanRequest, SourceText, plan,
};
use solver::{
    Chain, Input, Notes, OpError, Outcome, Progress, RemoteCaches, ResultRef, SolveContext, SolveError, TargetUse,
    solve,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::context::ignore_file;
use self::context::{Dockerfile, LoadedContext};
use self::product::{Finished, Product, Solved};
use self::record::Recorder;
use super::room::{self, Keeper};
use crate::args::Global;
use crate::env;
use crate::failure::{Failure, Report, Source};
use crate::report::{self, CheckWarning};
use crate::request::{BuildRequest, ContextArg, DockerfileArg};
use crate::ui::{self, Ui};

/// Name of the main context.
const MAIN_CONTEXT: &str = "context";

/// How long results are sent to caches after a build has failed.
const CACHES_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// What `--build-context` says, by name.
type NamedContexts = BTreeMap<String, NamedContext>;

/// Directories of this machine, by the name of their context.
type OfferedDirs = BTreeMap<String, OfferedDir>;

/// Builds, writes the product, and prints the image ID when it is all that is wanted.
pub(crate) fn build(request: &BuildRequest, global: &Global) -> Result<(), Failure> {
    let store = super::open_store(global)?;
    let _leftovers = super::remove_leftovers(&store, global.confinement.isolation);
    result_files::remove_old(request)?;
    let work = async |build: &Build<'_>, source: &mut Option<Source>| build.run(source).await;
    let (Built { finished, warnings, cost }, source) = session(request, &store, global, work)?;
    if let Some(source) = &source
        && !request.quiet
    {
        report::warnings(&warnings, source, global.debug, env::colours());
        foreign::report(&cost);
    }
    result_files::write(request, &finished)?;
    if request.quiet
        && let Some(id) = finished.image_id()
    {
        ui::stdout(&format!("{id}\n"))?;
    }
    Ok(())
}

/// Builds into `store` and returns what its names stand for. Warnings and files about the result are left out.
pub(super) fn build_into(
    request: &BuildRequest,
    store: &cache::Store,
    global: &Global,
) -> Result<oci::Descriptor, Failure> {
    let work = async |build: &Build<'_>, source: &mut Option<Source>| build.run(source).await;
    let (Built { finished, .. }, _) = session(request, store, global, work)?;
    finished.descriptor.ok_or_else(|| OpError::internal("a build without an image").into())
}

/// Does `work` with progress on the screen and an eye on interrupts. `work` leaves the Dockerfile for excerpts.
pub(super) fn session<T>(
    request: &BuildRequest,
    store: &cache::Store,
    global: &Global,
    work: impl AsyncFnOnce(&Build<'_>, &mut Option<Source>) -> Result<T, Failure>,
) -> Result<(T, Option<Source>), Failure> {
    let ui = Ui::start(request.progress, super::clock(), env::colours());
    let cancel = CancellationToken::new();
    let runtime = wire::runtime()?;
    let mut source = None;
    let build = Build { request, store, global, progress: ui.progress().clone(), cancel: cancel.clone() };
    // To the keeper's last look: while what a failed step has written is being removed, what the others gave is no garbage.
    let lease = store.lease()?;
    let keeper = Keeper::start(store, &request.space, &cancel);
    let outcome = runtime.block_on(wire::until_interrupted(cancel, work(&build, &mut source)));
    // Work that was cancelled ends before the last picture is drawn.
    drop(runtime);
    ui.close();
    let exceeded = keeper.end();
    drop(lease);
    let is_exceeded = exceeded.is_some();
    match room::judge(outcome, exceeded.as_ref(), store.root()) {
        Ok(result) => Ok((result, source)),
        Err(failure) if is_exceeded => Err(of_build(failure)),
        Err(failure) => Err(attach(failure, source.as_ref())),
    }
}

/// Everything that the parts of one build share.
pub(super) struct Build<'a> {
    request: &'a BuildRequest,
    store: &'a cache::Store,
    global: &'a Global,
    pub(super) progress: Progress,
    cancel: CancellationToken,
}

/// What a build that succeeded leaves.
struct Built {
    finished: Finished,
    warnings: Vec<CheckWarning>,
    cost: EmulationCost,
}

/// A build that can be planned.
pub(super) struct Prepared {
    pub(super) plan_request: PlanRequest,
    pub(super) engine: Engine,
    /// Has to be kept as long as the engine reads: an archive from standard input was unpacked for it.
    pub(super) context: LoadedContext,
}

impl Build<'_> {
    async fn run(&self, source: &mut Option<Source>) -> Result<Built, Failure> {
        let began = Instant::now();
        let isolation = self.global.confinement.isolation;
        let products = product::products(self.request, isolation, &self.progress).await.map_err(of_build)?;
        let mut wanted = product::wanted(&products);
        wanted.extend(self.request.caches.to.iter().map(|export| caches::wanted(export, &products)));
        let Prepared { plan_request, engine, context: _context } = self.prepare(unique(wanted), source).await?;
        let recorder = Recorder::new(self.store, self.request, &plan_request, began);
        let mut steps = None;
        let result = self.run_recorded(&products, &plan_request, &engine, &recorder, &mut steps).await;
        let steps = steps.unwrap_or_else(|| recorder.gather());
        recorder.finish(steps, &result).await;
        result
    }

    /// Plans, solves and exports. The steps of the build's record are left in `steps` as soon as they are known.
    async fn run_recorded(
        &self,
        products: &[Product],
        plan_request: &PlanRequest,
        engine: &Engine,
        recorder: &Recorder,
        steps: &mut Option<record::Steps>,
    ) -> Result<Built, Failure> {
        // What caches have is asked while the build is planned.
        let caches = caches::parts(self.request, products);
        let caches = caches.map(|parts| Arc::new(engine.caches(parts)));
        // A registry that will not take the image says so before anything is made.
        let names: Vec<oci::ImageRef> = products.iter().flat_map(Product::pushed_names).cloned().collect();
        let pusher = engine.pusher();
        let planned = plan(plan_request, engine, &self.progress);
        let (planned, allowed) = tokio::join!(planned, pusher.check(&names));
        let plan = planned.map_err(plan_failure)?;
        allowed.map_err(|error| of_build(error.into()))?;
        let warnings = plan.warnings.iter().map(check_warning).collect();
        products.iter().try_for_each(|product| product.check(&plan)).map_err(|error| of_build(error.into()))?;
        if let Some(emulation) = engine.emulation() {
            // What is asked for the first time is tried out, which waits for processes.
            tokio::task::block_in_place(|| foreign::warn(&plan, emulation, &self.progress));
        }
        let early = product::early_targets(products);
        if !early.is_empty() {
            engine.push_early(&early);
        }
        let finished = self.make(products, &plan, engine, caches.as_ref(), recorder, steps).await;
        engine.end_early().await;
        let finished = match (finished, &caches) {
            (Ok(finished), Some(caches)) => {
                caches.finish().await.map_err(|error| of_build(error.into()))?;
                finished
            }
            (Err(failure), Some(caches)) => {
                // What has been made is worth keeping; whatever else goes wrong is not what the user has to hear of.
                drop(tokio::time::timeout(CACHES_AFTER_FAILURE, caches.finish()).await);
                return Err(failure);
            }
            (finished, None) => finished?,
        };
        let cost = engine.emulation().map(Emulation::cost).unwrap_or_default();
        Ok(Built { finished, warnings, cost })
    }

    /// Performs the plan and writes the products; again, when a layer of a cache that was counted on is not to be had.
    async fn make(
        &self,
        products: &[Product],
        plan: &Plan,
        engine: &Engine,
        caches: Option<&Arc<Caches>>,
        recorder: &Recorder,
        steps: &mut Option<record::Steps>,
    ) -> Result<Finished, Failure> {
        let ended = Arc::default();
        loop {
            let attempt = async {
                let chains = self.solve(plan, engine, caches, &ended, recorder.notes()).await?;
                *steps = Some(recorder.gather());
                let solved = Solved { plan, engine, store: self.store, chains, caches };
                let settled = async {
                    engine.settle_early().await;
                    Ok(())
                };
                let (finished, ()) = futures_util::try_join!(self.export(products, &solved), settled)?;
                Ok(finished)
            };
            match attempt.await {
                Err(_)
                    if !self.cancel.is_cancelled()
                        && engine.forget_lost().map_err(|error| of_build(error.into()))? => {}
                outcome => return outcome,
            }
        }
    }

    /// Says what is to be said before a build, loads its definition, and makes what answers and performs its plan. The
    /// Dockerfile also goes to `source`.
    pub(super) async fn prepare(&self, wanted: Vec<Wanted>, source: &mut Option<Source>) -> Result<Prepared, Failure> {
        for warning in &self.request.warnings {
            self.progress.warn(warning);
        }
        let context = self.load_context()?;
        let (named_contexts, offered) = self.contexts(&context)?;
        let engine = wire::engine(self, offered, wanted)?;
        let dockerfile = self.dockerfile(&context, &engine).await?;
        let text = String::from_utf8_lossy(&dockerfile.text).into_owned();
        *source = Some(Source { name: dockerfile.name.clone(), text });
        let plan_request = self.plan_request(&context, dockerfile, named_contexts);
        Ok(Prepared { plan_request, engine, context })
    }

    /// Reads Dockerfile and ignore file, as far as they are on this machine, as steps that people know from elsewhere.
    fn load_context(&self) -> Result<LoadedContext, Failure> {
        let scratch = || Ok(self.store.scratch_dir()?);
        let load = || context::load(&self.request.context, &self.request.dockerfile, scratch);
        // One that lies elsewhere is fetched as steps of their own.
        let step = context::is_here(&self.request.context, &self.request.dockerfile)
            .then(|| self.progress.start("[internal] load build definition from Dockerfile"));
        let context = load().map_err(|failure| {
            if let Some(step) = &step {
                step.finish(Outcome::Failed("the build definition cannot be loaded".to_owned()));
            }
            of_build(failure)
        })?;
        if let Some(step) = step {
            let n_bytes = context.dockerfile.as_ref().map_or(0, |dockerfile| dockerfile.text.len());
            step.status("transferring dockerfile:", n_bytes as u64, 0, true);
            step.finish(Outcome::Done);
        }
        // Ignore files count for directories only.
        if !matches!(self.request.context, ContextArg::Remote { .. }) {
            let step = self.progress.start("[internal] load .dockerignore");
            let n_bytes = context.ignore.as_ref().map_or(2, |(_, text)| text.len());
            step.status("transferring context:", n_bytes as u64, 0, true);
            step.finish(Outcome::Done);
        }
        Ok(context)
    }

    /// The Dockerfile, wherever it lies.
    async fn dockerfile(&self, context: &LoadedContext, engine: &Engine) -> Result<Dockerfile, Failure> {
        let fetched = match (&context.dockerfile, &self.request.dockerfile, &self.request.context) {
            (Some(dockerfile), ..) => return Ok(dockerfile.clone()),
            (None, DockerfileArg::Url(url), _) => remote::dockerfile_at(engine, url).await,
            (None, named, ContextArg::Remote { url, kind }) => remote::dockerfile(engine, url, kind, named).await,
            (None, ..) => return Err(OpError::internal("there is no Dockerfile").into()),
        };
        fetched.map_err(of_build)
    }

    /// What the names of contexts mean, and the directories that some of them are.
    fn contexts(&self, context: &LoadedContext) -> Result<(NamedContexts, OfferedDirs), Failure> {
        let mut offered = BTreeMap::new();
        if let Some(dir) = &context.dir {
            let offer = OfferedDir { path: dir.clone(), ignore: context.ignore_file() };
            offered.insert(MAIN_CONTEXT.to_owned(), offer);
        }
        let mut named = BTreeMap::new();
        for (name, value) in &self.request.build_contexts {
            named.insert(name.clone(), self.named_context(name, value, &mut offered)?);
        }
        Ok((named, offered))
    }

    fn plan_request(
        &self,
        context: &LoadedContext,
        dockerfile: Dockerfile,
        named_contexts: NamedContexts,
    ) -> PlanRequest {
        let request = self.request;
        let no_cache = match (request.no_cache, request.no_cache_filter.is_empty()) {
            (true, _) => NoCache::All,
            (false, true) => NoCache::Off,
            (false, false) => NoCache::Stages(request.no_cache_filter.clone()),
        };
        let Dockerfile { name, text, identity } = dockerfile;
        PlanRequest {
            target: request.target.clone(),
            platforms: request.platforms.clone(),
            build_args: request.build_args.clone(),
            labels: request.labels.clone(),
            named_contexts,
            main_context: context.files.clone(),
            ignore: context.ignore_file(),
            no_cache,
            network: request.network,
            add_hosts: request.add_hosts.clone(),
            shm_size_bytes: request.shm_size_bytes,
            ulimits: request.ulimits.clone(),
            cgroup_parent: request.cgroup_parent.clone(),
            entitlements: request.allow.clone(),
            dockerfile_identity: identity,
            ..PlanRequest::new(SourceText { name, text }, oci::Platform::host())
        }
    }

    /// A path is a directory of this machine; everything else says what it is by its form.
    fn named_context(&self, name: &str, value: &str, offered: &mut OfferedDirs) -> Result<NamedContext, Failure> {
        let path = std::path::Path::new(value);
        if !path.is_dir() {
            if !value.contains(':') && ContextKind::parse_remote(value, false).is_none() {
                return Err(Failure::input(format!("failed to get build context {name}: path \"{value}\" not found"))
                    .help(
                        "a named context is a directory, docker-image://REF, oci-layout://DIR, or a git or http(s) URL",
                    ));
            }
            return Ok(NamedContext::parse(name, value));
        }
        let path = path.canonicalize().map_err(|error| {
            Failure::environment(format!("failed to get build context {name}: cannot resolve \"{value}\": {error}"))
        })?;
        let step = self.progress.start(format!("[context {name}] load .dockerignore"));
        let ignore = std::fs::read(path.join(".dockerignore")).ok();
        step.finish(Outcome::Done);
        let ignore = ignore.map(|text| IgnoreFile { name: ".dockerignore".to_owned(), text });
        offered.insert(name.to_owned(), OfferedDir { path, ignore });
        Ok(NamedContext::Local(name.to_owned()))
    }

    /// Performs what the images need: their layers, in the order of the images.
    async fn solve(
        &self,
        plan: &Plan,
        engine: &Engine,
        caches: Option<&Arc<Caches>>,
        ended: &Arc<Mutex<HashSet<String>>>,
        notes: Notes,
    ) -> Result<Vec<Chain>, Failure> {
        let roots: Vec<Input> = plan.images.iter().map(|image| image.root).collect();
        let context = SolveContext {
            store: self.store.clone(),
            executor: Arc::new(engine.clone()),
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
            targets: TargetUse::Export,
            shown: engine.shown(),
            notes,
            ended: ended.clone(),
            parallelism: self.request.jobs.unwrap_or_else(wire::default_parallelism).max(1),
            remote: caches.cloned().map(|caches| caches as Arc<dyn RemoteCaches>),
        };
        let results = solve(&plan.graph, &roots, context).await.map_err(solve_failure)?;
        let chain = |result| match result {
            ResultRef::Root(chain) => Ok(chain),
            ResultRef::Context(_) => Err(OpError::internal("the target is not a root").into()),
        };
        results.into_iter().map(chain).collect()
    }

    async fn export(&self, products: &[Product], solved: &Solved<'_>) -> Result<Finished, Failure> {
        let mut finished = Finished::default();
        for product in products {
            let step = self.progress.start(product.step_name());
            match product.write(solved, &step, &mut finished).await {
                Ok(()) => step.finish(Outcome::Done),
                Err(error) => {
                    // What is missing is made, and then this goes on.
                    let is_over = !error.is_remade;
                    step.finish(if is_over { Outcome::Failed(error.message.clone()) } else { Outcome::Canceled });
                    return Err(of_build(error.into()));
                }
            }
        }
        Ok(finished)
    }
}

/// Each once, in order.
fn unique(list: Vec<Wanted>) -> Vec<Wanted> {
    let mut seen = Vec::with_capacity(list.len());
    for wanted in list {
        if !seen.contains(&wanted) {
            seen.push(wanted);
        }
    }
    seen
}

fn check_warning(warning: &solver::plan::Warning) -> CheckWarning {
    CheckWarning {
        rule: warning.rule.to_owned(),
        message: warning.message.clone(),
        url: warning.url.to_owned(),
        location: warning.location.clone(),
    }
}

/// Introduces a failure as that of a build.
fn of_build(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(report) => Failure::Failed(Box::new(Report { of_build: true, ..*report })),
        other => other,
    }
}

pub(super) fn plan_failure(error: PlanError) -> Failure {
    let mut help = error.help;
    help.extend(error.others.iter().map(|other| {
        let line = other.locations.first().map(|at| format!("line {}: ", at.start_line)).unwrap_or_default();
        // The parser has the line in its message.
        let has_line = line.is_empty() || other.message.contains(&format!("on {line}"));
        format!("also: {}{}", if has_line { "" } else { &line }, other.message)
    }));
    Failure::Failed(Box::new(Report {
        tier: error.tier,
        message: error.message,
        help,
        locations: error.locations,
        culprit: error.culprit.map(|culprit| *culprit),
        source: None,
        of_build: true,
    }))
}

fn solve_failure(error: SolveError) -> Failure {
    Failure::Failed(Box::new(Report {
        tier: error.error.tier,
        message: error.error.message,
        help: error.error.help,
        locations: error.location.into_iter().collect(),
        culprit: error.error.word.map(Culprit::Word),
        source: None,
        of_build: true,
    }))
}

/// Gives a failure of a build the Dockerfile for its excerpt.
fn attach(failure: Failure, source: Option<&Source>) -> Failure {
    match failure {
        Failure::Failed(report) if report.source.is_none() => {
            Failure::Failed(Box::new(Report { source: source.cloned(), ..*report }))
        }
        other => other,
    }
}
