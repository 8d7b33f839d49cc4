//! Stages and what they depend on: names, indices, cycles, reachability. Nothing is evaluated but FROM.
//!
//! Spec: `spec/dockerfile.md` §4.1, §4.2, §2.16.

use std::collections::HashMap;

use oci::{ImageRef, Platform};
use parser::instruction::{Instruction, InstructionKind};
use parser::lint::CheckConfig;
use parser::{LineRange, mount, suggest};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, EdgeRef};

use super::contexts::{self, Found};
use super::error::PlanError;
use super::from::{From, give_a_value};
use super::request::PlanRequest;

/// Position of a stage in its file, from 0.
pub(super) type StageIdx = usize;

/// The name of the empty image.
pub(super) const SCRATCH: &str = "scratch";

/// The stages of a file for one platform.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) list: Vec<Stage>,
    pub(super) target: StageIdx,
    /// Stages of each name, in order.
    by_name: HashMap<String, Vec<StageIdx>>,
}

/// One stage.
#[derive(Debug)]
pub(super) struct Stage {
    /// Lower-cased.
    pub(super) name: Option<String>,
    /// As messages and steps show it; `stage-N` without a name.
    pub(super) shown: String,
    pub(super) base: Base,
    /// Variables in the base that have no value.
    pub(super) unset: Vec<String>,
    /// Variables in FROM that have one.
    pub(super) used: Vec<String>,
    /// `--platform`.
    pub(super) platform: Option<Platform>,
    /// Lines of FROM.
    pub(super) lines: LineRange,
    /// What the comments of FROM say about rules.
    pub(super) checks: CheckConfig,
    /// The named context that stands in the place of the whole stage.
    pub(super) replaced_by: Option<Found>,
    /// Triggers first, once they are known.
    pub(super) steps: Vec<Step>,
    /// Whether triggers have been looked for.
    pub(super) triggers_known: bool,
}

/// What a stage begins with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Base {
    /// An earlier stage.
    Stage(StageIdx),
    /// Anything else, by the expanded text of FROM.
    Outside(String),
}

/// An instruction with what it takes files from.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) instruction: Instruction,
    /// COPY: one; RUN: one for each mount; else empty.
    pub(super) sources: Vec<Source>,
    /// Whether an ONBUILD of the base brought it here.
    pub(super) is_trigger: bool,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// The main context.
    Context,
    /// A stage, which may turn out to come too late.
    Stage(StageIdx),
    /// Anything else, by its name as written.
    Outside(String),
}

impl Stages {
    /// Connects the stages whose FROM has been evaluated.
    ///
    /// # Errors
    /// No such target, no such stage index, malformed image names, dependency cycles; all that were found.
    pub(super) fn connect(
        froms: Vec<From>,
        request: &PlanRequest,
        target_platform: &Platform,
    ) -> Result<Self, PlanError> {
        let mut stages = Self { list: Vec::with_capacity(froms.len()), target: 0, by_name: HashMap::new() };
        for (index, from) in froms.into_iter().enumerate() {
            let stage = stages.stage(index, from, request, target_platform);
            if let Some(name) = &stage.name {
                stages.by_name.entry(name.clone()).or_default().push(index);
            }
            stages.list.push(stage);
        }
        stages.target = stages.find_target(request.target.as_deref())?;
        stages.link_steps()?;
        stages.check_cycles()?;
        stages.check_names()?;
        stages.name_stages();
        Ok(stages)
    }

    fn stage(&self, index: StageIdx, from: From, request: &PlanRequest, target_platform: &Platform) -> Stage {
        let platform = from.platform.as_ref().unwrap_or(target_platform);
        let replaced_by = from.name.as_deref().and_then(|name| contexts::find(&request.named_contexts, name, platform));
        // The exact, lower-cased name: `FROM Base` is not the stage `base`.
        let base = self.named(&from.base).last().copied();
        let steps = from.instructions.into_iter();
        Stage {
            shown: from.name.clone().unwrap_or_else(|| format!("stage-{index}")),
            name: from.name,
            base: base.map_or(Base::Outside(from.base), Base::Stage),
            platform: from.platform,
            unset: from.unset,
            used: from.used,
            lines: from.lines,
            checks: from.checks,
            replaced_by,
            steps: steps.map(|instruction| Step { instruction, sources: Vec::new(), is_trigger: false }).collect(),
            triggers_known: false,
        }
    }

    fn find_target(&self, target: Option<&str>) -> Result<StageIdx, PlanError> {
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return Ok(self.list.len() - 1);
        };
        self.named(&target.to_lowercase()).last().copied().ok_or_else(|| {
            let message = format!("target stage \"{target}\" could not be found");
            let names: Vec<String> = self.names().map(|name| format!("`{name}`")).collect();
            let help = match names.is_empty() {
                true => format!("no stage has a name: write `FROM … AS {target}`"),
                false => format!("the stages are {}", names.join(", ")),
            };
            PlanError::input(suggest::with_suggestion(message, target, self.names())).help(help)
        })
    }

    /// Stages of exactly this name, in order.
    fn named(&self, name: &str) -> &[StageIdx] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Names of all stages that have one, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|stage| stage.name.as_deref())
    }

    fn link_steps(&mut self) -> Result<(), PlanError> {
        let mut faults = Vec::new();
        for index in 0..self.list.len() {
            for step in 0..self.list[index].steps.len() {
                match self.sources_of(&self.list[index].steps[step].instruction, index) {
                    Ok(sources) => self.list[index].steps[step].sources = sources,
                    Err(fault) => faults.push(fault),
                }
            }
        }
        PlanError::all(faults).map_or(Ok(()), Err)
    }

    /// What an instruction of the stage `index` takes files from.
    pub(super) fn sources_of(&self, instruction: &Instruction, index: StageIdx) -> Result<Vec<Source>, PlanError> {
        match &instruction.kind {
            InstructionKind::Copy(copy) => {
                let Some(from) = &copy.from else { return Ok(vec![Source::Context]) };
                self.copy_source(from, index).map(|source| vec![source]).map_err(|fault| fault.at(instruction.lines))
            }
            InstructionKind::Run(run) => {
                let sources = run.mounts.iter().map(|mount| match mount::from_of(mount) {
                    Some(from) => self.named_source(&from, index),
                    None => Source::Context,
                });
                Ok(sources.collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn copy_source(&self, from: &str, index: StageIdx) -> Result<Source, PlanError> {
        if from.contains('$') {
            let fault = PlanError::input(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
                 scope as a workaround",
            );
            let help = "name a stage by the variable, `FROM $IMAGE AS files`, and write `--from=files`";
            return Err(fault.about(from).help(help));
        }
        match from.parse::<i64>() {
            Ok(number) => match usize::try_from(number) {
                Ok(number) if number < self.list.len() => Ok(Source::Stage(number)),
                _ => Err(PlanError::input(format!("invalid stage index {from}")).about(from).help(format!(
                    "the stages are numbered from 0 to {}; names are easier to keep right",
                    self.list.len() - 1
                ))),
            },
            Err(_) => Ok(self.named_source(from, index)),
        }
    }

    /// The latest earlier stage of a name in any letter case; else this or a later one (a fault when it is used); else
    /// something outside the file.
    fn named_source(&self, name: &str, index: StageIdx) -> Source {
        let known = self.named(&name.to_lowercase());
        let n_earlier = known.partition_point(|&other| other < index);
        let found = known[..n_earlier].last().or_else(|| known.first());
        found.map_or_else(|| Source::Outside(name.to_owned()), |&stage| Source::Stage(stage))
    }

    /// Finds stages that take files from each other in a circle. Bases cannot take part: they are earlier by name.
    fn check_cycles(&self) -> Result<(), PlanError> {
        let mut graph: DiGraph<(), LineRange> = DiGraph::new();
        let nodes: Vec<NodeIndex> = self.list.iter().map(|_| graph.add_node(())).collect();
        for (index, stage) in self.list.iter().enumerate() {
            for step in &stage.steps {
                for source in &step.sources {
                    if let Source::Stage(other) = source {
                        graph.add_edge(nodes[index], nodes[*other], step.instruction.lines);
                    }
                }
            }
        }
        let mut seen = vec![false; nodes.len()];
        for (index, stage) in self.list.iter().enumerate() {
            if let Some(lines) = find_cycle(&graph, nodes[index], &mut seen) {
                let fault = PlanError::input(format!("circular dependency detected on stage: {}", stage.shown));
                let mut fault = match lines.as_slice() {
                    [_] => fault.about(&stage.shown).help(
                        "a stage cannot take files from itself: leave `from` out for files of the context, or name an \
                         earlier stage",
                    ),
                    _ => fault.help("let only one of the stages take files from the other"),
                };
                fault.locations = lines.into_iter().map(super::error::location).collect();
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Checks that every name that is no stage could be an image, in stages that are not built, too.
    fn check_names(&self) -> Result<(), PlanError> {
        let mut faults = Vec::new();
        for stage in &self.list {
            if let Base::Outside(name) = &stage.base {
                let fault = check_name(name, stage.lines).err();
                faults.extend(fault.map(|fault| give_a_value(fault, &stage.unset)));
            }
            for step in &stage.steps {
                for source in &step.sources {
                    if let Source::Outside(name) = source {
                        faults.extend(check_name(name, step.instruction.lines).err());
                    }
                }
            }
        }
        PlanError::all(faults).map_or(Ok(()), Err)
    }

    /// A lone stage is shown without a name. Every mount and every image that is copied from counts as a stage here.
    fn name_stages(&mut self) {
        let is_stage_like = |step: &Step| match step.instruction.kind {
            InstructionKind::Run(_) => !step.sources.is_empty(),
            _ => step.sources.iter().any(|source| matches!(source, Source::Outside(_))),
        };
        if let [stage] = self.list.as_mut_slice()
            && !stage.steps.iter().any(is_stage_like)
        {
            stage.shown.clear();
        }
    }

    /// Stages that a stage is based on or takes files from.
    pub(super) fn needed_by(&self, index: StageIdx) -> Vec<StageIdx> {
        self.list[index].needed_stages()
    }

    /// The stages that the target needs, in the order of the file. With `all`, every stage.
    pub(super) fn reachable(&self, all: bool) -> Vec<StageIdx> {
        if all {
            return (0..self.list.len()).collect();
        }
        let mut graph: DiGraph<(), ()> = DiGraph::new();
        let nodes: Vec<NodeIndex> = self.list.iter().map(|_| graph.add_node(())).collect();
        for (index, stage) in self.list.iter().enumerate() {
            for other in stage.needed_stages() {
                graph.add_edge(nodes[index], nodes[other], ());
            }
        }
        let mut walk = Dfs::new(&graph, nodes[self.target]);
        let mut reached: Vec<StageIdx> = std::iter::from_fn(|| walk.next(&graph)).map(NodeIndex::index).collect();
        reached.sort_unstable();
        reached
    }
}

impl Stage {
    /// Stages that this one is based on or takes files from.
    fn needed_stages(&self) -> Vec<StageIdx> {
        if self.replaced_by.is_some() {
            return Vec::new();
        }
        let base = match self.base {
            Base::Stage(index) => Some(index),
            Base::Outside(_) => None,
        };
        let sources = self.steps.iter().flat_map(|step| &step.sources).filter_map(|source| match source {
            Source::Stage(index) => Some(*index),
            _ => None,
        });
        base.into_iter().chain(sources).collect()
    }

    /// How many steps progress counts: a pulled base, and every instruction that makes a layer.
    pub(super) fn n_steps(&self) -> usize {
        let is_pulled = matches!(&self.base, Base::Outside(name) if name != SCRATCH);
        let makes_a_layer = |step: &&Step| {
            use InstructionKind::{Add, Copy, Run, Workdir};
            matches!(step.instruction.kind, Run(_) | Copy(_) | Add(_) | Workdir(_))
        };
        usize::from(is_pulled) + self.steps.iter().filter(makes_a_layer).count()
    }
}

/// Checks that a name that is no stage could be an image.
pub(super) fn check_name(name: &str, lines: LineRange) -> Result<(), PlanError> {
    if name == SCRATCH {
        return Ok(());
    }
    let parsed = ImageRef::parse_normalized(name);
    parsed.map(drop).map_err(|error| {
        let fault = PlanError::input(format!("failed to parse stage name \"{name}\": {error}")).about(name).at(lines);
        match name.chars().any(char::is_uppercase) {
            true => fault.help(format!("names of images are in lower case: `{}`", name.to_lowercase())),
            false => fault,
        }
    })
}

/// The instructions along a cycle that begins at `start` or is reached from there, the closing one first.
fn find_cycle(graph: &DiGraph<(), LineRange>, start: NodeIndex, seen: &mut [bool]) -> Option<Vec<LineRange>> {
    if std::mem::replace(&mut seen[start.index()], true) {
        return None;
    }
    // A path of nodes, each with the edges that have still to be tried; no recursion, because files can be long.
    let edges_of = |node: NodeIndex| {
        // petgraph lists the newest edge first.
        let mut edges: Vec<(NodeIndex, LineRange)> = graph.edges(node).map(|e| (e.target(), *e.weight())).collect();
        edges.reverse();
        edges.into_iter()
    };
    let mut on_path = vec![false; seen.len()];
    on_path[start.index()] = true;
    let mut path = vec![(start, edges_of(start))];
    let mut taken: Vec<LineRange> = Vec::new();
    while let Some((node, edges)) = path.last_mut() {
        let Some((next, lines)) = edges.next() else {
            on_path[node.index()] = false;
            path.pop();
            taken.pop();
            continue;
        };
        if on_path[next.index()] {
            taken.push(lines);
            taken.reverse();
            return Some(taken);
        }
        if !std::mem::replace(&mut seen[next.index()], true) {
            taken.push(lines);
            on_path[next.index()] = true;
            path.push((next, edges_of(next)));
        }
    }
    None
}
