//! Runs a graph: only what the targets need, everything that is ready at once, nothing twice.
//!
//! One task owns the schedule. Work happens in tasks of its [`JoinSet`], and what they return are the only events;
//! [`Schedule::apply`] takes an event and starts what has become possible. It is synchronous, so nothing ever sees a
//! half-made decision. The states of a vertex are in [`state`], what the targets ask of it in [`demand`], the work in
//! [`step`].
//!
//! - Keys are made from *results* ([`crate::key`]), so a step that gives the same bytes again stops the invalidation.
//! - Identical work in flight is joined: inside one solve by key, between processes by a lock of the store.
//! - The first failure cancels the rest. When [`solve`] returns, none of its tasks is left.
//!
//! Spec: `spec/engine.md` §3.1, §3.3, §3.7.

mod ahead;
mod cause;
mod demand;
mod elsewhere;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use cache::{Key, Layer, Store};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{OpError, Tier};
use crate::graph::{Chain, Graph, Input, Location, ResultRef, Vertex, VertexId};
use crate::key;
use crate::notes::Notes;
use crate::op::Op;
use crate::progress::{Outcome, Progress, Step, StepId};
use crate::traits::{Executor, RemoteCaches};

use demand::{Demand, demands, inputs};
use state::{State, States};
use step::{Destiny, Hit, Lookup, Performance, Shared, Subject};

/// What a solve works with.
#[derive(Clone)]
pub struct SolveContext {
    /// Where records and layers are.
    pub store: Store,
    /// Performs what is not found.
    pub executor: Arc<dyn Executor>,
    /// Where steps are shown.
    pub progress: Progress,
    /// Stops everything.
    pub cancel: CancellationToken,
    /// What the targets are wanted for.
    pub targets: TargetUse,
    /// Names of steps that have been shown before, by a solve that this one goes on from: not shown again.
    pub shown: HashSet<String>,
    /// What is told of the steps, and what earlier builds told.
    pub notes: Notes,
    /// Names of steps that were shown to their end, by this solve and by tries before it: shown again only when they are
    /// performed.
    pub ended: Arc<Mutex<HashSet<String>>>,
    /// How many operations are performed at once; look-ups are not limited. At least 1 is assumed.
    pub parallelism: usize,
    /// Other places that may have results, and that are told of those here.
    pub remote: Option<Arc<dyn RemoteCaches>>,
}

/// What becomes of the targets of a solve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetUse {
    /// Their layers leave.
    #[default]
    Export,
    /// The caller looks into them: they get trees, and nothing is packed.
    Read,
}

/// Why a graph could not be solved: the first failure.
#[derive(Clone, Debug, PartialEq)]
pub struct SolveError {
    /// What happened.
    pub error: OpError,
    /// To which vertex; `None` when the build was stopped from outside.
    pub vertex: Option<VertexId>,
    /// Its name as shown.
    pub name: String,
    /// Where it stands in the Dockerfile.
    pub location: Option<Location>,
    /// Under which number it was shown; `None` for vertices that are not shown.
    pub step: Option<StepId>,
}

impl SolveError {
    fn of_build(error: OpError) -> Self {
        Self { error, vertex: None, name: String::new(), location: None, step: None }
    }
}

impl fmt::Display for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for SolveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Makes the results of `targets`, in their order; performs only what is needed and not found.
///
/// Every needed vertex with a name is shown as a step from the moment its inputs are known. Must be called inside a
/// multi-threaded tokio runtime.
///
/// # Errors
/// The first failure; steps under way are cancelled and have ended when this returns.
///
/// # Cancellation
/// Through `ctx.cancel`, or by dropping the future (which aborts its tasks without waiting for their clean-up).
pub async fn solve(graph: &Graph, targets: &[Input], ctx: SolveContext) -> Result<Vec<ResultRef>, SolveError> {
    let (graph, targets) = (graph.clone(), targets.to_vec());
    // On a thread of the runtime, among the work: to wake another thread for every result costs more than a look-up.
    let mut task = JoinSet::new();
    task.spawn(async move { Schedule::new(&graph, &targets, &ctx).run(&targets, &ctx.cancel).await });
    match task.join_next().await {
        Some(Ok(solved)) => solved,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Some(Err(_)) | None => Err(SolveError::of_build(OpError::cancelled())),
    }
}

/// Mostly a build finds what the last one left: that is protected in one go, and not once a step.
fn expect_results(graph: &Graph, demands: &[Demand], store: &Store) {
    let needed = graph.ids().filter(|id| demands[id.index()].needed).map(|id| graph.vertex(id));
    let slots: Vec<&str> = needed.map(|vertex| &*vertex.meta.slot).filter(|slot| !slot.is_empty()).collect();
    if !slots.is_empty() {
        // A store that cannot answer says so when it is asked for a result.
        drop(store.expect_results(&slots));
    }
}

/// What a task reports when it ends.
enum Event {
    /// The layers of an image.
    Rooted(Chain),
    /// A key was made and looked up.
    Looked(Lookup, Option<Hit>),
    /// The operation was performed (or another process was quicker).
    Performed(Layer, Outcome),
    /// Any of these failed.
    Failed(OpError),
}

/// What is kept about a vertex beside its state.
#[derive(Default)]
struct Node {
    /// Inputs without a result, counted as often as they occur.
    n_missing: usize,
    /// Needed vertices that have this one as an input, as often as they have.
    users: Vec<VertexId>,
    /// From `CacheFast` or `CacheSlow` until it has finished.
    step: Option<Step>,
    /// The flight that it performs for itself and others.
    flight: Option<FlightId>,
    /// In `Complete`.
    made: Option<Made>,
}

/// The result of a vertex.
#[derive(Clone)]
struct Made {
    result: ResultRef,
    /// How many layers at the bottom are those of a pulled image.
    n_base_layers: usize,
    /// Which image that is.
    base: Option<Arc<str>>,
    /// Whether it was found, not made.
    is_cached: bool,
}

/// Work on one key in this solve.
enum Flight {
    /// Some vertex performs it; these wait for the same result.
    Under(Vec<VertexId>),
    /// It is done.
    Landed(Layer),
}

/// Ignoring the cache is part of what is joined: a step that must not be taken from the cache is never satisfied by
/// one that may have been.
type FlightId = (Key, bool);

struct Schedule<'a> {
    graph: &'a Graph,
    shared: Arc<Shared>,
    progress: Progress,
    shown: HashSet<String>,
    ended: Arc<Mutex<HashSet<String>>>,
    /// What that held when this began.
    ended_before: HashSet<String>,
    demands: Vec<Demand>,
    states: States,
    nodes: Vec<Node>,
    flights: HashMap<FlightId, Flight>,
    tasks: JoinSet<(VertexId, Event)>,
    /// Final layers of which the executor has not been told.
    untold: Vec<Chain>,
    failure: Option<SolveError>,
}

impl<'a> Schedule<'a> {
    fn new(graph: &'a Graph, targets: &[Input], ctx: &SolveContext) -> Self {
        let demands = demands(graph, targets, ctx.targets);
        let mut nodes: Vec<Node> = demands.iter().map(|_| Node::default()).collect();
        for id in graph.ids().filter(|id| demands[id.index()].needed) {
            for input in inputs(graph, id) {
                nodes[id.index()].n_missing += 1;
                nodes[input.index()].users.push(id);
            }
        }
        ctx.notes.plan(graph, graph.ids().filter(|id| demands[id.index()].needed));
        expect_results(graph, &demands, &ctx.store);
        let shared = Shared {
            store: ctx.store.clone(),
            executor: ctx.executor.clone(),
            permits: Arc::new(Semaphore::new(ctx.parallelism.clamp(1, Semaphore::MAX_PERMITS))),
            cancel: ctx.cancel.child_token(),
            progress: ctx.progress.clone(),
            notes: ctx.notes.clone(),
            unstored: TaskTracker::new(),
            remote: ctx.remote.clone(),
            end_of_expectation: Once::new(),
        };
        Self {
            graph,
            shared: Arc::new(shared),
            progress: ctx.progress.clone(),
            shown: ctx.shown.clone(),
            ended_before: ctx.ended.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ended: ctx.ended.clone(),
            states: States::new(demands.len()),
            demands,
            nodes,
            flights: HashMap::new(),
            tasks: JoinSet::new(),
            untold: Vec::new(),
            failure: None,
        }
    }

    async fn run(mut self, targets: &[Input], stop: &CancellationToken) -> Result<Vec<ResultRef>, SolveError> {
        // Should this future be dropped, executors still learn that nobody waits for them.
        let _guard = self.shared.cancel.clone().drop_guard();
        let ready: Vec<VertexId> = self.graph.ids().filter(|&id| self.is_ready(id)).collect();
        ready.into_iter().for_each(|id| self.start(id));
        loop {
            let joined = tokio::select! {
                biased;
                () = stop.cancelled(), if self.failure.is_none() => {
                    self.fail(SolveError::of_build(OpError::cancelled()));
                    continue;
                }
                joined = self.tasks.join_next() => joined,
            };
            match joined {
                None => break,
                Some(Ok((id, event))) => self.apply(id, event),
                Some(Err(error)) => self.task_broke(&error),
            }
            #[cfg(test)]
            self.check_invariants();
        }
        self.tell_of_final_layers();
        self.cancel_open_steps();
        self.shared.unstored.close();
        self.shared.unstored.wait().await;
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => {
                let results = targets.iter().map(|&target| self.result_of(target)).collect::<Option<Vec<_>>>();
                results.ok_or_else(|| SolveError::of_build(OpError::internal("the build graph has a cycle")))
            }
        }
    }

    /// `None` for a vertex that never became ready.
    fn result_of(&self, target: Input) -> Option<ResultRef> {
        match target {
            Input::Scratch => Some(ResultRef::Root(Chain::empty())),
            Input::Vertex(id) => self.made(id).map(|made| made.result.clone()),
        }
    }

    fn is_ready(&self, id: VertexId) -> bool {
        self.demands[id.index()].needed && self.nodes[id.index()].n_missing == 0 && self.states.of(id) == State::Initial
    }

    /// Takes an event and starts what has become possible.
    fn apply(&mut self, id: VertexId, event: Event) {
        match event {
            Event::Failed(error) => self.fail_vertex(id, error),
            // What was performed is done and recorded, whatever else has happened.
            Event::Performed(layer, outcome) => self.land(id, &layer, outcome),
            Event::Rooted(_) | Event::Looked(..) if self.failure.is_some() => {}
            Event::Rooted(chain) => {
                let n_base_layers = chain.layers().len();
                self.complete(id, ResultRef::Root(chain), n_base_layers, Outcome::Cached);
            }
            Event::Looked(lookup, hit) => {
                let cost = hit.as_ref().and_then(|hit| hit.cost);
                self.shared.notes.keyed(id, lookup.key, &lookup.facts, cost);
                match hit {
                    Some(hit) => self.complete_with_layer(id, hit.layer, Outcome::Cached),
                    None => self.missed(id, lookup),
                }
            }
        }
    }

    /// Begins to look at a vertex whose inputs are all known.
    fn start(&mut self, id: VertexId) {
        let vertex = self.graph.vertex(id);
        // The work wants somewhere to report to, even when nobody is shown it.
        let name = &vertex.meta.name;
        let is_shown = !name.is_empty() && !self.shown.contains(name);
        let step = match is_shown {
            true if self.ended_before.contains(name) => self.progress.start_again(name.clone()),
            true => self.progress.start(name.clone()),
            false => Progress::silent().start(""),
        };
        self.nodes[id.index()].step = Some(step.clone());
        self.shared.notes.began(id);
        match &*vertex.op {
            Op::Local(local) => {
                self.states.advance(id, State::CacheFast);
                self.complete(id, ResultRef::Context(local.name.clone()), 0, Outcome::Done);
            }
            Op::Merge => {
                self.states.advance(id, State::CacheFast);
                self.merge(id);
            }
            Op::Image(_) => {
                self.tell_of_final_layers();
                self.states.advance(id, State::CacheFast);
                let work = step::root(self.shared.clone(), vertex.op.clone(), step);
                self.tasks.spawn(async move { (id, work.await) });
            }
            Op::Run(_) | Op::File(_) | Op::Http(_) | Op::Git(_) => self.look_up(id, step),
        }
    }

    /// Nothing is moved for a merge: its layers are those of its inputs.
    fn merge(&mut self, id: VertexId) {
        let subject = match self.subject(id) {
            Ok(subject) => subject,
            Err(error) => return self.fail_vertex(id, error),
        };
        let uppers = subject.inputs.iter().skip(1).filter_map(|input| match input {
            ResultRef::Root(upper) => Some(upper),
            ResultRef::Context(_) => None,
        });
        let chain = uppers.fold(subject.facts.parents, |below, upper| below.merged(upper));
        let is_cached = inputs(self.graph, id).all(|input| self.made(input).is_some_and(|made| made.is_cached));
        let outcome = if is_cached { Outcome::Cached } else { Outcome::Done };
        self.complete(id, ResultRef::Root(chain), subject.facts.n_base_layers, outcome);
    }

    /// Looks up the definition key, where there is one; else the content key.
    fn look_up(&mut self, id: VertexId, step: Step) {
        let subject = match self.subject(id) {
            Ok(subject) => subject,
            Err(error) => return self.fail_vertex(id, error),
        };
        let shared = self.shared.clone();
        if let Some(lookup) = Lookup::by_definition(&subject) {
            self.states.advance(id, State::CacheFast);
            let work = step::look_fast(shared, subject, lookup, self.destiny(id), step);
            self.tasks.spawn(async move { (id, work.await) });
        } else {
            self.tell_of_final_layers();
            self.states.advance(id, State::CacheSlow);
            let work = step::look_slow(shared, subject, None, self.destiny(id), step);
            self.tasks.spawn(async move { (id, work.await) });
        }
    }

    /// A key led to no record: tries the next one, joins equal work, or begins it.
    fn missed(&mut self, id: VertexId, lookup: Lookup) {
        let subject = match self.subject(id) {
            Ok(subject) => subject,
            Err(error) => return self.fail_vertex(id, error),
        };
        let step = self.nodes[id.index()].step.clone().expect("a vertex that is being looked at has its step");
        self.tell_of_final_layers();
        if self.states.of(id) == State::CacheFast && !key::questions(&subject.op).is_empty() {
            self.states.advance(id, State::CacheSlow);
            let work = step::look_slow(self.shared.clone(), subject, Some(lookup.key), self.destiny(id), step);
            self.tasks.spawn(async move { (id, work.await) });
            return;
        }
        self.states.advance(id, State::Performing);
        if self.join(id, &lookup.key, subject.ignore_cache) {
            return;
        }
        let flight_id = (lookup.key, subject.ignore_cache);
        self.flights.insert(flight_id, Flight::Under(Vec::new()));
        self.nodes[id.index()].flight = Some(flight_id);
        let performance = Performance { subject, lookup, destiny: self.destiny(id), step };
        let work = step::perform(self.shared.clone(), performance);
        self.tasks.spawn(async move { (id, work.await) });
    }

    fn destiny(&self, id: VertexId) -> Destiny {
        let meta = &self.graph.vertex(id).meta;
        let Demand { tree, exported, .. } = self.demands[id.index()];
        Destiny { needs_tree: tree, is_exported: exported, name: meta.name.clone(), slot: meta.slot.clone() }
    }

    /// Takes or awaits the result of equal work in this solve. `false` when there is none.
    fn join(&mut self, id: VertexId, key: &Key, ignore_cache: bool) -> bool {
        let flight_id = [(*key, true), (*key, ignore_cache)].into_iter().find(|id| self.flights.contains_key(id));
        match flight_id.and_then(|flight_id| self.flights.get_mut(&flight_id)) {
            None => false,
            Some(Flight::Under(waiters)) => {
                waiters.push(id);
                true
            }
            Some(Flight::Landed(layer)) => {
                let layer = layer.clone();
                self.complete_with_layer(id, layer, Outcome::Cached);
                true
            }
        }
    }

    /// The work of `id` has given `layer`; all who waited for it have it too.
    fn land(&mut self, id: VertexId, layer: &Layer, outcome: Outcome) {
        self.complete_with_layer(id, layer.clone(), outcome);
        let Some(flight_id) = self.nodes[id.index()].flight.take() else { return };
        let flight = self.flights.insert(flight_id, Flight::Landed(layer.clone()));
        if let Some(Flight::Under(waiters)) = flight {
            waiters.into_iter().for_each(|waiter| self.complete_with_layer(waiter, layer.clone(), Outcome::Cached));
        }
    }

    fn complete_with_layer(&mut self, id: VertexId, layer: Layer, outcome: Outcome) {
        match self.subject(id) {
            Ok(Subject { facts, .. }) => {
                self.complete(id, ResultRef::Root(facts.parents.with(layer)), facts.n_base_layers, outcome);
            }
            Err(error) => self.fail_vertex(id, error),
        }
    }

    fn complete(&mut self, id: VertexId, result: ResultRef, n_base_layers: usize, outcome: Outcome) {
        self.states.advance(id, State::Complete);
        let is_cached = outcome == Outcome::Cached;
        let base = self.base_of(id);
        self.shared.notes.ended(id, &outcome, Some(&result));
        let node = &mut self.nodes[id.index()];
        if let Some(step) = node.step.take() {
            step.finish(outcome);
            self.ended().insert(self.graph.vertex(id).meta.name.clone());
        }
        let node = &mut self.nodes[id.index()];
        node.made = Some(Made { result: result.clone(), n_base_layers, base, is_cached });
        let users = std::mem::take(&mut node.users);
        if self.failure.is_some() {
            return;
        }
        self.note_if_final(id, &result, is_cached);
        for user in users {
            self.nodes[user.index()].n_missing -= 1;
            if self.is_ready(user) {
                self.start(user);
            }
        }
    }

    /// Which image the base layers of a result are of.
    fn base_of(&self, id: VertexId) -> Option<Arc<str>> {
        let Vertex { op, inputs, meta } = self.graph.vertex(id);
        match (&**op, inputs.first()) {
            (Op::Image(_), _) => meta.base.as_deref().map(Arc::from),
            (Op::Run(_) | Op::File(_) | Op::Merge, Some(Input::Vertex(root))) => self.made(*root)?.base.clone(),
            _ => None,
        }
    }

    /// Layers that were made here and will be exported can be packed from now on.
    fn note_if_final(&mut self, id: VertexId, result: &ResultRef, is_cached: bool) {
        let makes_layer = matches!(*self.graph.vertex(id).op, Op::Run(_) | Op::File(_) | Op::Http(_) | Op::Git(_));
        if let (true, true, ResultRef::Root(chain)) = (makes_layer, self.demands[id.index()].exported, result) {
            self.untold.push(chain.clone());
            if !is_cached {
                self.tell_of_final_layers();
            }
        }
    }

    /// Tells the executor of the final layers, which wakes threads. What is found is told together, before something
    /// begins that may take its time, and in the end: most of it has been packed before.
    fn tell_of_final_layers(&mut self) {
        for chain in self.untold.drain(..) {
            if self.failure.is_none() {
                self.shared.executor.layer_is_final(&chain);
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, HashSet<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self, id: VertexId) -> Option<&Made> {
        self.nodes[id.index()].made.as_ref()
    }

    /// What a vertex works on, from the results of its inputs.
    fn subject(&self, id: VertexId) -> Result<Subject, OpError> {
        let Vertex { op, inputs, meta } = self.graph.vertex(id);
        let mut results = Vec::with_capacity(inputs.len());
        for &input in inputs {
            results.push(match input {
                Input::Scratch => ResultRef::Root(Chain::empty()),
                Input::Vertex(source) => {
                    let made = self.made(source).ok_or_else(|| OpError::internal("an input has no result yet"))?;
                    made.result.clone()
                }
            });
        }
        let has_root = matches!(**op, Op::Run(_) | Op::File(_) | Op::Merge);
        let root = inputs.first().zip(results.first()).filter(|_| has_root);
        let (parents, n_base_layers) = match root {
            None => (Chain::empty(), 0),
            Some((Input::Scratch, _)) => (Chain::empty(), 0),
            Some((Input::Vertex(source), ResultRef::Root(chain))) => {
                (chain.clone(), self.made(*source).map_or(0, |made| made.n_base_layers))
            }
            Some((_, ResultRef::Context(name))) => {
                return Err(OpError::internal(format!("the directory `{name}` is used as a root")));
            }
        };
        let build_args = meta.build_args.clone();
        let facts = key::Facts { parents, n_base_layers, base: self.base_of(id), build_args, ..key::Facts::default() };
        Ok(Subject { id, op: op.clone(), inputs: results, facts, ignore_cache: meta.ignore_cache })
    }

    fn fail_vertex(&mut self, id: VertexId, mut error: OpError) {
        if self.failure.is_some() {
            // The first failure has caused this one. Its step is shown as cancelled, together with the others.
            return;
        }
        self.shared.notes.ended(id, &Outcome::Failed(error.message.clone()), None);
        let meta = &self.graph.vertex(id).meta;
        if error.tier == Tier::Input {
            error.help.extend(meta.help.iter().cloned());
        }
        let step = self.nodes[id.index()].step.take();
        if let Some(step) = &step {
            let message = || error.message.clone();
            step.finish(if error.is_remade { Outcome::Canceled } else { Outcome::Failed(message()) });
        }
        self.fail(SolveError {
            error,
            vertex: Some(id),
            name: meta.name.clone(),
            location: meta.location.clone(),
            step: step.filter(|_| !meta.name.is_empty()).map(|step| step.id()),
        });
    }

    /// From here on nothing is started; what is under way ends as soon as it can.
    fn fail(&mut self, failure: SolveError) {
        self.failure = Some(failure);
        self.shared.cancel.cancel();
    }

    fn task_broke(&mut self, error: &JoinError) {
        if self.failure.is_none() {
            self.fail(SolveError::of_build(OpError::internal(format!("a step's task broke: {error}"))));
        }
    }

    fn cancel_open_steps(&mut self) {
        for id in self.graph.ids() {
            if let Some(step) = self.nodes[id.index()].step.take() {
                step.finish(Outcome::Canceled);
                self.shared.notes.ended(id, &Outcome::Canceled, None);
            }
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        self.states.check_invariants();
        for id in self.graph.ids() {
            let node = &self.nodes[id.index()];
            assert_eq!(node.made.is_some(), self.states.of(id) == State::Complete);
            assert!(node.step.is_none() || self.states.of(id) != State::Complete);
            assert!(self.demands[id.index()].needed || self.states.of(id) == State::Initial);
        }
        let under_way = self.flights.values().filter(|flight| matches!(flight, Flight::Under(_))).count();
        assert!(under_way <= self.states.count(State::Performing));
        let at_work = [State::CacheFast, State::CacheSlow, State::Performing].map(|state| self.states.count(state));
        assert!(self.tasks.len() <= at_work.iter().sum());
    }
}
