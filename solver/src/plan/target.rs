//! One evaluation of a Dockerfile: for one platform, from the global scope to the image.

use oci::{ImageConfig, Platform};
use parser::Dockerfile;
use parser::LineRange;
use parser::expand::Expander;

use super::epoch::{self, Epoch};
use super::error::PlanError;
use super::from;
use super::history::PlannedHistory;
use super::ignore::Ignored;
use super::lint::Findings;
use super::outline::{self, Outline};
use super::request::{PlanRequest, Purpose};
use super::resolve::{Finder, Origins, Wanted};
use super::scope::Globals;
use super::stage::StageBuilder;
use super::stages::{Base, Source, StageIdx, Stages};
use super::state::{BaseImage, State, set_platform};
use crate::graph::{Graph, Input};
use crate::traits::Resolver;

/// What all platforms of a plan have in common.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) request: &'a PlanRequest,
    /// Knows the machine's devices.
    pub(super) resolver: &'a dyn Resolver,
    pub(super) file: &'a Dockerfile,
    pub(super) ignored: Option<&'a Ignored>,
    /// The result is laid out for several platforms: steps are named with theirs.
    pub(super) is_multi: bool,
    /// The platform was asked for, so the image says so whatever its base says.
    pub(super) is_explicit: bool,
    pub(super) is_labs: bool,
}

/// Everything that is known before a stage is evaluated.
pub(super) struct Target<'a> {
    pub(super) request: &'a PlanRequest,
    /// Knows the machine's devices.
    pub(super) resolver: &'a dyn Resolver,
    pub(super) ignored: Option<&'a Ignored>,
    pub(super) is_multi: bool,
    pub(super) is_explicit: bool,
    pub(super) is_labs: bool,
    pub(super) platform: Platform,
    pub(super) expander: Expander,
    pub(super) globals: Globals,
    pub(super) epoch: Epoch,
    pub(super) stages: Stages,
    pub(super) origins: Origins,
    /// What has to be evaluated, in the order of the file.
    reachable: Vec<StageIdx>,
}

/// What is known of a stage.
#[derive(Debug)]
pub(super) enum Done {
    /// It comes later, or is not needed.
    NotYet,
    /// It, or something that it needs, has a fault.
    Failed,
    /// It is finished.
    Built(Box<State>),
}

/// One image of a plan.
#[derive(Clone, Debug)]
pub struct PlannedImage {
    /// The platform of the image.
    pub platform: Platform,
    /// Its root.
    pub root: Input,
    /// Its config, without `rootfs`, `created` and `history`.
    pub config: ImageConfig,
    /// Its history, oldest first, without times but for entries of the base image.
    pub history: Vec<PlannedHistory>,
    /// The image that its stage chain begins with.
    pub base: Option<BaseImage>,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub epoch: Option<i64>,
}

impl<'a> Target<'a> {
    /// Evaluates the global scope and all FROMs, and finds the images of the stages that are needed.
    ///
    /// # Errors
    /// Faults of any of these, all that do not follow from each other.
    pub(super) async fn prepare(
        shared: Shared<'a>,
        platform: Platform,
        finder: &Finder<'_>,
        findings: &mut Findings,
    ) -> Result<Self, PlanError> {
        let Shared { request, file, .. } = shared;
        let mut globals = Globals::evaluate(file, request, &platform, &request.build_args)?;
        let defaults = Globals::evaluate(file, request, &platform, &Default::default()).ok();
        let froms = from::evaluate(file, request, &globals, defaults.as_ref(), findings)?;
        let expander = Expander::new(file.directives.escape);
        let epoch = epoch::resolve(request, &froms, &globals, &expander, finder).await?;
        globals.set_epoch(epoch.seconds);
        let stages = Stages::connect(froms, request, &platform)?;
        let mut target = Self {
            request,
            resolver: shared.resolver,
            ignored: shared.ignored,
            is_multi: shared.is_multi,
            is_explicit: shared.is_explicit,
            is_labs: shared.is_labs,
            platform,
            expander,
            globals,
            epoch,
            stages,
            origins: Origins::new(),
            reachable: Vec::new(),
        };
        target.find_origins(finder).await?;
        Ok(target)
    }

    /// Finds images until no trigger asks for more. Ends, because each stage gets its triggers once.
    async fn find_origins(&mut self, finder: &Finder<'_>) -> Result<(), PlanError> {
        let all = self.request.purpose == Purpose::Check && self.request.target.is_none();
        loop {
            self.reachable = self.stages.reachable(all);
            let names: Vec<&str> = self.stages.names().collect();
            finder.find_all(self.wanted(), &mut self.origins, &names).await?;
            let mut is_complete = true;
            for &index in &self.reachable {
                is_complete &= !self.stages.add_triggers(index, &self.origins, &self.platform)?;
            }
            if is_complete {
                return Ok(());
            }
        }
    }

    /// Everything outside of the file that the needed stages name.
    fn wanted(&self) -> Vec<(Wanted, LineRange)> {
        let mut list = Vec::new();
        for &index in &self.reachable {
            let stage = &self.stages.list[index];
            let own = stage.platform.as_ref().unwrap_or(&self.platform);
            let wanted = |name: &str, platform: &Platform| Wanted { name: name.to_owned(), platform: platform.clone() };
            match (&stage.replaced_by, &stage.name, &stage.base) {
                (Some(_), Some(name), _) => {
                    list.push((wanted(name, own), stage.lines));
                    continue;
                }
                (_, _, Base::Outside(name)) => list.push((wanted(name, own), stage.lines)),
                (_, _, Base::Stage(_)) => {}
            }
            for step in &stage.steps {
                for source in &step.sources {
                    if let Source::Outside(name) = source {
                        list.push((wanted(name, &self.platform), step.instruction.lines));
                    }
                }
            }
        }
        list
    }

    /// Evaluates the stages into `graph`.
    ///
    /// # Errors
    /// The first fault of every stage that has one of its own.
    pub(super) fn evaluate(&self, graph: &mut Graph, findings: &mut Findings) -> Result<PlannedImage, PlanError> {
        let mut done = self.evaluate_stages(graph, findings)?;
        let history = history_of(&mut done, self.stages.target);
        match done.swap_remove(self.stages.target) {
            Done::Built(state) => Ok(self.image(*state, history)),
            Done::NotYet | Done::Failed => Err(PlanError::internal("the target stage was not evaluated")),
        }
    }

    /// Evaluates the stages for what they say about themselves. `file` is the one that the target was prepared from.
    ///
    /// # Errors
    /// As for [`evaluate`](Self::evaluate).
    pub(super) fn outline(&self, file: &Dockerfile, findings: &mut Findings) -> Result<Outline, PlanError> {
        let done = self.evaluate_stages(&mut Graph::default(), findings)?;
        Ok(outline::of(self, file, &done))
    }

    fn evaluate_stages(&self, graph: &mut Graph, findings: &mut Findings) -> Result<Vec<Done>, PlanError> {
        let mut done: Vec<Done> = self.stages.list.iter().map(|_| Done::NotYet).collect();
        let mut faults = Vec::new();
        for &index in &self.reachable {
            if self.stages.needed_by(index).iter().any(|&needed| matches!(done[needed], Done::Failed)) {
                done[index] = Done::Failed;
                continue;
            }
            done[index] = match StageBuilder::new(self, index, graph, findings, &done).build() {
                Ok(state) => Done::Built(Box::new(state)),
                Err(fault) => {
                    findings.close();
                    faults.push(fault);
                    Done::Failed
                }
            };
        }
        PlanError::all(faults).map_or(Ok(done), Err)
    }

    fn image(&self, state: State, mut history: Vec<PlannedHistory>) -> PlannedImage {
        let State { root, mut config, base, undescribed, .. } = state;
        let entry = |(vertex, description)| PlannedHistory::exporter(description, vertex);
        history.extend(undescribed.into_iter().map(entry));
        config.config.labels.extend(self.request.labels.iter().cloned());
        if self.is_explicit {
            set_platform(&mut config, &self.platform);
        }
        let own = config.platform();
        let is_known = !own.os.is_empty() && !own.architecture.is_empty();
        let platform = if is_known { own.normalized() } else { self.platform.clone() };
        if is_known {
            set_platform(&mut config, &platform);
        }
        PlannedImage { platform, root, config, history, base, epoch: self.epoch.seconds }
    }
}

/// Takes the history of a stage and of its chain of parents, oldest first.
fn history_of(done: &mut [Done], target: StageIdx) -> Vec<PlannedHistory> {
    let mut parts = Vec::new();
    let mut next = Some(target);
    while let Some(index) = next {
        let Done::Built(state) = &mut done[index] else { break };
        parts.push(std::mem::take(&mut state.history));
        next = state.parent;
    }
    parts.into_iter().rev().flatten().collect()
}
