//! The work on one vertex, as futures without a will of their own: making and looking up keys, performing.
//!
//! Store calls are made where they are needed: they take some ten microseconds, less than handing them to another thread
//! and back. What a result's successors do not wait for is done behind their backs. Everything that waits ends at once
//! when the solve is cancelled, apart from an operation that is being performed, which is told and awaited, because it
//! has to clean up.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use cache::{Key, Layer, LayerId, NewRecord, Store, StoreLock};
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::OpError;
use crate::explain::Cause;
use crate::graph::{ResultRef, VertexId};
use crate::key::{self, Answer, Facts, Question};
use crate::notes::Notes;
use crate::op::Op;
use crate::progress::{Outcome, Progress, Step};
use crate::traits::{Executor, Origin, RemoteCaches, Work};

use super::{Event, ahead, cause, elsewhere};

/// First and longest pause between two attempts to take the lock of a key that another process works on.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// What all steps of a solve use.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) executor: Arc<dyn Executor>,
    /// One for each operation that may be performed at once.
    pub(super) permits: Arc<Semaphore>,
    pub(super) cancel: CancellationToken,
    /// For what is no step's any more.
    pub(super) progress: Progress,
    /// What is told of the steps.
    pub(super) notes: Notes,
    /// Results on their way into the store.
    pub(super) unstored: TaskTracker,
    /// Other places with results.
    pub(super) remote: Option<Arc<dyn RemoteCaches>>,
    /// Ends the expectation that everything is found: with the first step that is performed.
    pub(super) end_of_expectation: Once,
}

/// An operation with the results it works on.
pub(super) struct Subject {
    pub(super) id: VertexId,
    pub(super) op: Arc<Op>,
    /// In the order of the vertex's inputs.
    pub(super) inputs: Vec<ResultRef>,
    /// Without answers.
    pub(super) facts: Facts,
    pub(super) ignore_cache: bool,
}

/// A key that was looked up.
pub(super) struct Lookup {
    /// What it was made from.
    pub(super) facts: Facts,
    /// The key itself.
    pub(super) key: Key,
    /// The definition key that was looked up before this one, in vain.
    pub(super) definition: Option<Key>,
}

impl Lookup {
    /// The definition key, if there is one: nothing has to be read or asked for it.
    pub(super) fn by_definition(subject: &Subject) -> Option<Self> {
        if key::needs_probe(&subject.op) {
            return None;
        }
        let mut facts = subject.facts.clone();
        for Question { input, .. } in key::questions(&subject.op) {
            match subject.inputs.get(input)? {
                ResultRef::Root(chain) => facts.answers.push(Answer::Layers(chain.clone())),
                ResultRef::Context(_) => return None,
            }
        }
        let key = key::key(&subject.op, &facts)?;
        Some(Self { facts, key, definition: None })
    }

    /// Whether the key speaks of layers where another one could speak of the files in them.
    pub(super) fn is_by_definition(&self, op: &Op) -> bool {
        !key::questions(op).is_empty() && self.facts.answers.iter().any(|answer| matches!(answer, Answer::Layers(_)))
    }
}

/// A result that was found.
pub(super) struct Hit {
    pub(super) layer: Layer,
    /// What it had cost; `None` when that is not known of the key it was found by.
    pub(super) cost: Option<Duration>,
}

/// What becomes of the result of a step.
#[derive(Clone)]
pub(super) struct Destiny {
    /// Whether a later step looks into it.
    pub(super) needs_tree: bool,
    /// Whether it is a layer of a target.
    pub(super) is_exported: bool,
    /// Under which name it is remembered.
    pub(super) name: String,
    /// See [`VertexMeta::slot`](crate::VertexMeta::slot).
    pub(super) slot: String,
}

/// All that is needed to perform an operation and to remember the result.
pub(super) struct Performance {
    pub(super) subject: Subject,
    pub(super) lookup: Lookup,
    pub(super) destiny: Destiny,
    pub(super) step: Step,
}

/// The layers of an image.
pub(super) async fn root(shared: Arc<Shared>, op: Arc<Op>, step: Step) -> Event {
    let Op::Image(image) = &*op else { return Event::Failed(OpError::internal("not an image")) };
    match shared.unless_cancelled(shared.executor.image_chain(image, &step)).await {
        Ok(chain) => Event::Rooted(chain),
        Err(error) => Event::Failed(error),
    }
}

/// Looks the definition key up, here and elsewhere.
pub(super) async fn look_fast(
    shared: Arc<Shared>,
    subject: Subject,
    lookup: Lookup,
    destiny: Destiny,
    step: Step,
) -> Event {
    if subject.ignore_cache {
        return Event::Looked(lookup, None);
    }
    let found = find(&shared.store, lookup.key, &step);
    let found = elsewhere::find_unless_here(&shared, &subject, &lookup, &destiny, found, &step).await;
    Event::Looked(lookup, found)
}

/// Makes the content key and looks it up. `definition` is the definition key that led nowhere.
///
/// Where that look-up cannot succeed, the operation is performed at once: see [`ahead`].
pub(super) async fn look_slow(
    shared: Arc<Shared>,
    subject: Subject,
    definition: Option<Key>,
    destiny: Destiny,
    step: Step,
) -> Event {
    match ahead::perform(&shared, &subject, &destiny, &step).await {
        Ok(Some(layer)) => return Event::Performed(layer, Outcome::Done),
        Ok(None) => {}
        Err(error) => return Event::Failed(error),
    }
    let lookup = match shared.unless_cancelled(by_content(&shared, &subject, definition, &step)).await {
        Ok(lookup) => lookup,
        Err(error) => return Event::Failed(error),
    };
    if subject.ignore_cache {
        return Event::Looked(lookup, None);
    }
    let found = find(&shared.store, lookup.key, &step);
    if let (Some(hit), Some(definition)) = (&found, lookup.definition)
        && let Err(error) = shared.store.put_record(&alias_record(definition, &hit.layer))
    {
        step.warn(format!("the result is not remembered: {error}"));
    }
    let found = elsewhere::find_unless_here(&shared, &subject, &lookup, &destiny, found, &step).await;
    Event::Looked(lookup, found)
}

pub(super) async fn by_content(
    shared: &Shared,
    subject: &Subject,
    definition: Option<Key>,
    step: &Step,
) -> Result<Lookup, OpError> {
    let mut facts = subject.facts.clone();
    if key::needs_probe(&subject.op) {
        facts.probe = Some(shared.executor.probe_source(&subject.op, step).await?);
    }
    let questions = key::questions(&subject.op);
    let answers = questions.iter().map(async |question| {
        let source = subject.inputs.get(question.input);
        let source = source.ok_or_else(|| OpError::internal(format!("there is no input {}", question.input)))?;
        shared.executor.digest(source, question.selection.clone(), step).await.map(Answer::Content)
    });
    facts.answers = try_join_all(answers).await?;
    let key = key::key(&subject.op, &facts).ok_or_else(|| OpError::internal("an operation without a key"))?;
    Ok(Lookup { facts, key, definition })
}

/// Performs an operation for which there is no record, and makes one.
pub(super) async fn perform(shared: Arc<Shared>, performance: Performance) -> Event {
    match perform_locked(&shared, performance).await {
        Ok((layer, outcome)) => Event::Performed(layer, outcome),
        Err(error) => Event::Failed(error),
    }
}

async fn perform_locked(shared: &Shared, performance: Performance) -> Result<(Layer, Outcome), OpError> {
    let Performance { subject, lookup, destiny, step } = performance;
    let lock = if subject.ignore_cache {
        // Builds that ignore the cache all do their own work, so there is nothing to wait for.
        announce(shared, &subject, &Cause::Ignored { by: shared.notes.ignored_by().to_owned() }, &step);
        None
    } else {
        match claim_key(shared, lookup.key, &step).await? {
            Claimed::Found(layer) => {
                elsewhere::tell(shared, &subject, &lookup, &destiny, &layer, Origin::Found);
                return Ok((layer, Outcome::Cached));
            }
            Claimed::Ours(lock) => {
                let ingredients = key::ingredients(&subject.op, &lookup.facts);
                let cause = cause::of_miss(shared, &subject, &lookup.key, &ingredients, &destiny.slot);
                announce(shared, &subject, &cause, &step);
                Some(lock)
            }
        }
    };
    let (layer, cost) = execute(shared, &subject, destiny.needs_tree, &step).await?;
    shared.notes.made(subject.id, cost);
    elsewhere::tell_made(shared, &subject, &lookup, &destiny, &layer, cost);
    remember(shared, &subject, lookup, MadeLayer { layer: &layer, cost }, destiny, lock);
    Ok((layer, Outcome::Done))
}

/// Says why a step is performed, and lets the store make room for what it will give.
pub(super) fn announce(shared: &Shared, subject: &Subject, cause: &Cause, step: &Step) {
    shared.end_of_expectation.call_once(|| drop(shared.store.expect_no_more()));
    step.miss(cause.brief());
    shared.notes.missed(subject.id, cause);
}

/// Performs an operation as soon as there is room for one more; tells how long it took.
pub(super) async fn execute(
    shared: &Shared,
    subject: &Subject,
    needs_tree: bool,
    step: &Step,
) -> Result<(Layer, Duration), OpError> {
    let permit = shared.cancel.run_until_cancelled(shared.permits.clone().acquire_owned()).await;
    let _permit = permit.ok_or_else(OpError::cancelled)?;
    let began = Instant::now();
    let work = Work {
        op: subject.op.clone(),
        inputs: subject.inputs.clone(),
        needs_tree,
        ignore_cache: subject.ignore_cache,
        step: step.clone(),
        cancel: shared.cancel.clone(),
    };
    let layer = shared.executor.perform(work).await?.layer;
    Ok((layer, began.elapsed()))
}

/// A layer that was just made.
pub(super) struct MadeLayer<'a> {
    pub(super) layer: &'a Layer,
    /// How long that took.
    pub(super) cost: Duration,
}

/// Records a result under all its keys, behind the backs of its successors, and then lets go of its lock.
pub(super) fn remember(
    shared: &Shared,
    subject: &Subject,
    lookup: Lookup,
    made: MadeLayer<'_>,
    destiny: Destiny,
    lock: Option<StoreLock>,
) {
    let MadeLayer { layer, cost } = made;
    let explanation = Some(key::explanation(&subject.op, &lookup.facts));
    let Destiny { name, slot, .. } = destiny;
    let record = NewRecord { key: lookup.key, layer: layer.id.clone(), explanation, name, slot, cost };
    let others = lookup.definition.into_iter().chain(ahead::family(subject));
    let others = others.map(|key| alias_record(key, layer));
    let records: Vec<NewRecord> = [record].into_iter().chain(others).collect();
    let parent: Option<LayerId> = lookup.facts.parents.layers().last().map(|parent| parent.id.clone());
    let (store, progress) = (shared.store.clone(), shared.progress.clone());
    shared.unstored.spawn(async move {
        if let Err(error) = store.put_records(&records, parent.as_slice()) {
            progress.warn(format!("the result of `{}` is not remembered: {error}", records[0].name));
        }
        // Who waits for the lock finds the result.
        drop(lock);
    });
}

pub(super) enum Claimed {
    /// Somebody else has made the result meanwhile.
    Found(Layer),
    /// The step is ours to perform, as long as we hold the lock.
    Ours(StoreLock),
}

/// Takes the lock of a key, waiting for whoever works on it, and looks whether they have left a result.
pub(super) async fn claim_key(shared: &Shared, key: Key, step: &Step) -> Result<Claimed, OpError> {
    const WAITING: &str = "waiting for another build of this step";
    let mut pause = LOCK_PAUSE.0;
    let mut has_waited = false;
    loop {
        if let Some(claimed) = try_claim(&shared.store, &key)? {
            if has_waited {
                step.status(WAITING, 0, 0, true);
            }
            return Ok(claimed);
        }
        if !has_waited {
            step.status(WAITING, 0, 0, false);
            has_waited = true;
        }
        let nap = tokio::time::sleep(pause);
        shared.cancel.run_until_cancelled(nap).await.ok_or_else(OpError::cancelled)?;
        pause = (pause * 2).min(LOCK_PAUSE.1);
    }
}

/// `None` while somebody else has the lock.
fn try_claim(store: &Store, key: &Key) -> cache::Result<Option<Claimed>> {
    let Some(lock) = store.try_lock(&format!("key-{}", oci::digest::hex(&key.0)))? else { return Ok(None) };
    // A store that cannot answer makes a build slow, not impossible; the look-up before this one has said so.
    if let Ok(Some(record)) = store.find_record(key) {
        return Ok(Some(Claimed::Found(record.layer.layer)));
    }
    Ok(Some(Claimed::Ours(lock)))
}

/// The recorded layer. A store that cannot answer makes a build slow, not impossible.
pub(super) fn find(store: &Store, key: Key, step: &Step) -> Option<Hit> {
    match store.find_record(&key) {
        Ok(record) => record.map(|record| {
            // Further keys of a result belong to no slot, and do not say what it had cost.
            let cost = Some(record.cost).filter(|_| !record.slot.is_empty());
            Hit { layer: record.layer.layer, cost }
        }),
        Err(error) => {
            step.warn(format!("the cache cannot be read: {error}"));
            None
        }
    }
}

/// A further key for a result. It belongs to no slot, because explanations speak about content keys.
pub(super) fn alias_record(key: Key, layer: &Layer) -> NewRecord {
    NewRecord {
        key,
        layer: layer.id.clone(),
        explanation: None,
        name: String::new(),
        slot: String::new(),
        cost: Duration::ZERO,
    }
}

impl Shared {
    /// Waits for `future`, but no longer than until the solve is cancelled.
    pub(super) async fn unless_cancelled<T>(
        &self,
        future: impl Future<Output = Result<T, OpError>>,
    ) -> Result<T, OpError> {
        self.cancel.run_until_cancelled(future).await.unwrap_or_else(|| Err(OpError::cancelled()))
    }
}
