//! Notes about the steps of a build while it runs: what explains a miss at once, and becomes the build's record.
//!
//! The schedule tells what it starts and ends, its tasks why something is performed. Everything is kept in memory; nothing
//! is worked out before somebody asks ([`Notes::steps`]).

mod earlier;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache::{Key, Layer, LayerId, Store};
use oci::digest::hex;

use crate::explain::Cause;
use crate::graph::{Graph, ResultRef, Vertex, VertexId};
use crate::key::{self, Facts, Ingredient};
use crate::op::Op;
use crate::progress::Outcome;
use crate::record::{StepOutcome, StepRecord, described};

use earlier::Earlier;
pub(crate) use earlier::{Found, counterpart};

/// What happened to the steps of a build. Cheap to clone. The default one knows of no earlier builds.
#[derive(Clone, Default)]
pub struct Notes {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    earlier: Earlier,
    ignored_by: String,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// In the order of the plan: inputs before users.
    by_id: BTreeMap<VertexId, StepNote>,
    /// Who gave which layer.
    makers: HashMap<LayerId, VertexId>,
}

/// What is known of one step.
#[derive(Clone)]
pub(crate) struct StepNote {
    pub(crate) name: String,
    pub(crate) slot: String,
    pub(crate) lines: Option<(u32, u32)>,
    /// Of an image.
    pub(crate) base: Option<String>,
    pub(crate) op: Arc<Op>,
    pub(crate) facts: Option<Facts>,
    key: Option<Key>,
    pub(crate) cause: Option<Cause>,
    began: Option<Instant>,
    took: Duration,
    cost: Option<Duration>,
    outcome: Option<Outcome>,
    result: Option<Layer>,
}

impl Notes {
    /// Notes of a build of `subject`, which is explained by the earlier ones in `store`. `ignored_by` is the flag by which the
    /// user has steps performed whose results are known.
    pub fn new(store: &Store, subject: &str, ignored_by: &str) -> Self {
        let inner =
            Inner { earlier: Earlier::new(store, subject), ignored_by: ignored_by.to_owned(), steps: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The steps as they go into the build's record.
    ///
    /// `store` is asked for what the build did not need to know: what the keys of copies were made of whose results were
    /// found without a look at the files.
    pub fn steps(&self, store: &Store) -> Vec<StepRecord> {
        let notes: Vec<StepNote> = self.lock().by_id.values().cloned().collect();
        notes.into_iter().filter(StepNote::is_recorded).map(|note| note.record(store)).collect()
    }

    pub(crate) fn ignored_by(&self) -> &str {
        &self.inner.ignored_by
    }

    /// These vertices will be needed.
    pub(crate) fn plan(&self, graph: &Graph, ids: impl Iterator<Item = VertexId>) {
        let mut steps = self.lock();
        for id in ids {
            steps.by_id.insert(id, StepNote::new(graph.vertex(id)));
        }
    }

    pub(crate) fn began(&self, id: VertexId) {
        if let Some(note) = self.lock().by_id.get_mut(&id) {
            note.began = Some(Instant::now());
        }
    }

    /// A key was made; what it was made from, and what the result that it led to had cost.
    pub(crate) fn keyed(&self, id: VertexId, key: Key, facts: &Facts, cost: Option<Duration>) {
        if let Some(note) = self.lock().by_id.get_mut(&id) {
            (note.key, note.facts, note.cost) = (Some(key), Some(facts.clone()), cost);
        }
    }

    /// The step is about to be performed.
    pub(crate) fn missed(&self, id: VertexId, cause: &Cause) {
        if let Some(note) = self.lock().by_id.get_mut(&id) {
            note.cause = Some(cause.clone());
        }
    }

    /// It was performed.
    pub(crate) fn made(&self, id: VertexId, cost: Duration) {
        if let Some(note) = self.lock().by_id.get_mut(&id) {
            note.cost = Some(cost);
        }
    }

    pub(crate) fn ended(&self, id: VertexId, outcome: &Outcome, result: Option<&ResultRef>) {
        let mut steps = self.lock();
        let Some(note) = steps.by_id.get_mut(&id) else { return };
        note.outcome = Some(outcome.clone());
        note.took = note.began.map(|began| began.elapsed()).unwrap_or_default();
        let Some(ResultRef::Root(chain)) = result else { return };
        let is_image = matches!(*note.op, Op::Image(_));
        note.result = chain.layers().last().filter(|_| !is_image && note.is_recorded()).cloned();
        let own = match (is_image, &note.result) {
            (true, _) => chain.layers().to_vec(),
            (false, own) => own.iter().cloned().collect(),
        };
        for layer in own {
            steps.makers.entry(layer.id).or_insert(id);
        }
    }

    pub(crate) fn note(&self, id: VertexId) -> Option<StepNote> {
        self.lock().by_id.get(&id).cloned()
    }

    /// The step that gave a layer.
    pub(crate) fn maker(&self, layer: &Layer) -> Option<(VertexId, StepNote)> {
        let steps = self.lock();
        let id = *steps.makers.get(&layer.id)?;
        Some((id, steps.by_id.get(&id)?.clone()))
    }

    /// The state of a step in the last build that had it.
    pub(crate) fn earlier(&self, id: VertexId) -> Option<Found<'_>> {
        if self.inner.earlier.records().is_empty() {
            return None;
        }
        let planned: Vec<(String, String)> = {
            let steps = self.lock();
            steps.by_id.values().map(|note| (note.slot.clone(), note.name.clone())).collect()
        };
        let note = self.note(id)?;
        self.inner.earlier.find(&note.slot, &note.name, &planned)
    }

    /// Whether there are earlier builds to compare with.
    pub(crate) fn has_earlier(&self) -> bool {
        !self.inner.earlier.records().is_empty()
    }

    /// Whether this build has a step of that name, whatever its counter.
    pub(crate) fn has_instruction(&self, instruction: &str) -> bool {
        self.lock().by_id.values().any(|note| crate::record::instruction(&note.name) == instruction)
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.inner.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepNote {
    fn new(vertex: &Vertex) -> Self {
        let Vertex { op, meta, .. } = vertex;
        Self {
            name: meta.name.clone(),
            slot: meta.slot.clone(),
            lines: meta.location.as_ref().map(|at| (at.start_line, at.end_line)),
            base: meta.base.clone(),
            op: op.clone(),
            facts: None,
            key: None,
            cause: None,
            began: None,
            took: Duration::ZERO,
            cost: None,
            outcome: None,
            result: None,
        }
    }

    /// Directories of the client and merges have no results of their own.
    fn is_recorded(&self) -> bool {
        !matches!(*self.op, Op::Local(_) | Op::Merge)
    }

    /// `line 4 (COPY src/ .)`.
    pub(crate) fn described(&self) -> String {
        described(&self.name, self.lines.map(|(first, _)| first))
    }

    /// What its key was made of.
    pub(crate) fn ingredients(&self) -> Vec<Ingredient> {
        match (&self.base, &self.facts) {
            (Some(base), _) => vec![Ingredient { name: key::BASE.to_owned(), value: base.clone() }],
            (None, Some(facts)) => key::ingredients(&self.op, facts),
            (None, None) => Vec::new(),
        }
    }

    fn record(self, store: &Store) -> StepRecord {
        let mut record = StepRecord {
            ingredients: self.ingredients(),
            name: self.name,
            slot: self.slot,
            lines: self.lines,
            key: self.key.map(|key| hex(&key.0)),
            cause: self.cause,
            ms: millis(self.took),
            cost_ms: self.cost.map(millis),
            result: self.result.as_ref().map(|layer| hex(&layer.content.0)),
            ..StepRecord::default()
        };
        (record.outcome, record.error) = match self.outcome {
            None => (StepOutcome::NotReached, None),
            Some(Outcome::Done) => (StepOutcome::Done, None),
            Some(Outcome::Cached) => (StepOutcome::Cached, None),
            Some(Outcome::Canceled) => (StepOutcome::Canceled, None),
            Some(Outcome::Failed(message)) => (StepOutcome::Failed, Some(message)),
        };
        if let (Some(facts), Some(layer)) = (&self.facts, &self.result)
            && facts.answers.iter().any(|answer| matches!(answer, key::Answer::Layers(_)))
        {
            by_content(&mut record, layer, store);
        }
        record
    }
}

/// Gives the record of a step that was found by its definition key what its content key was made of, if that is known.
fn by_content(record: &mut StepRecord, layer: &Layer, store: &Store) {
    let Ok(Some(key)) = store.key_of_result(&record.slot, &layer.id) else { return };
    let Ok(Some(stored)) = store.find_record(&key) else { return };
    if let Some(ingredients) = key::stored_ingredients(store, &stored.key) {
        record.ingredients = ingredients;
        record.key = Some(hex(&stored.key.0));
        record.cost_ms = Some(millis(stored.cost));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
