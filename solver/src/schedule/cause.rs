//! Why a step has no record: compares it with its state in the last build, and looks for what was removed.

use cache::{FileList, Key, Store};
use oci::digest::hex;

use crate::explain::{self, Around, Cause, Change, What};
use crate::graph::{Chain, ResultRef, VertexId};
use crate::key::{self, Ingredient};
use crate::notes::{Found, Notes, StepNote};
use crate::op::{FileAction, MountKind, Op};
use crate::record::{BuildRecord, StepOutcome, is_of_client};

use super::step::{Shared, Subject};

/// The cause of a miss of `key`, which was made of `ingredients`.
pub(super) fn of_miss(shared: &Shared, subject: &Subject, key: &Key, ingredients: &[Ingredient], slot: &str) -> Cause {
    match look_for(shared, subject, key, ingredients, slot) {
        Ok(cause) => cause,
        Err(error) => Cause::Unreadable { reason: error.to_string() },
    }
}

/// The cause of a miss before anything is known of the files: nothing was ever recorded of the step.
pub(super) fn of_unknown(shared: &Shared, slot: &str) -> Cause {
    if shared.notes.has_earlier() {
        // They did not have it.
        return Cause::First;
    }
    match shared.store.slot_evicted_since(slot) {
        Ok(Some(seconds_ago)) => Cause::Evicted { seconds_ago },
        Ok(None) => Cause::First,
        Err(error) => Cause::Unreadable { reason: error.to_string() },
    }
}

fn look_for(
    shared: &Shared,
    subject: &Subject,
    key: &Key,
    ingredients: &[Ingredient],
    slot: &str,
) -> cache::Result<Cause> {
    let Shared { store, notes, .. } = shared;
    if let Some(seconds_ago) = store.evicted_since(key)? {
        return Ok(Cause::Evicted { seconds_ago });
    }
    let here = Here { store, notes, subject, build: None };
    if let Some(Found { step, build }) = notes.earlier(subject.id) {
        if step.key.as_deref() == Some(&hex(&key.0)) {
            return without_change(store, step.outcome, build);
        }
        if explain::is_differing(&step.ingredients, ingredients) {
            let around = Here { build: Some(build), ..here };
            return Ok(Cause::Changed { changes: explain::changes(&step.ingredients, ingredients, &around) });
        }
        return Ok(Cause::OtherVersion);
    }
    // Builds that left no record of themselves, or whose record has gone, have left results.
    let recorded = if slot.is_empty() || notes.has_earlier() { None } else { store.latest_of_slot(slot)? };
    let Some(recorded) = recorded else { return Ok(of_unknown(shared, slot)) };
    if recorded.key == *key {
        return Ok(Cause::Gone);
    }
    match key::stored_ingredients(store, &recorded.key) {
        Some(before) if explain::is_differing(&before, ingredients) => {
            Ok(Cause::Changed { changes: explain::changes(&before, ingredients, &here) })
        }
        _ => Ok(Cause::OtherVersion),
    }
}

/// The step was the same in the last build, and there is no result of it.
fn without_change(store: &Store, outcome: StepOutcome, build: &BuildRecord) -> cache::Result<Cause> {
    Ok(match outcome {
        StepOutcome::Failed => Cause::Failed,
        StepOutcome::Canceled | StepOutcome::NotReached => Cause::Stopped,
        StepOutcome::Done | StepOutcome::Cached => match store.index_lost_since()? {
            // Seconds are whole ones: the last may have begun a moment ago.
            Some(seconds_ago) if seconds_ago.saturating_sub(1).saturating_mul(1000) <= build.age_ms() => {
                Cause::IndexLost { seconds_ago }
            }
            _ => Cause::Gone,
        },
    })
}

/// The surroundings of a step that is looked at.
#[derive(Clone, Copy)]
struct Here<'a> {
    store: &'a Store,
    notes: &'a Notes,
    subject: &'a Subject,
    /// The build that it is compared with.
    build: Option<&'a BuildRecord>,
}

impl Around for Here<'_> {
    fn file_list(&self, selection: &str) -> Option<FileList> {
        explain::file_list(self.store, selection)
    }

    fn maker(&self, position: usize, before: Option<&str>, after: Option<&str>) -> Option<Change> {
        let values = [before, after].map(|value| value.map(str::to_owned));
        let [old, new] = values.clone();
        // Who made the layer that was there.
        let made_before = self
            .build
            .zip(before)
            .and_then(|(build, content)| build.steps.iter().find(|step| step.result.as_deref() == Some(content)));
        let has_gone = made_before.filter(|step| !self.notes.has_instruction(step.instruction()));
        let Some((id, note)) = self.subject.facts.parents.layers().get(position).and_then(|it| self.notes.maker(it))
        else {
            return made_before.map(|step| Change::new(What::Step, step.described(), old, None));
        };
        let earlier = self.notes.earlier(id);
        match (&earlier, has_gone) {
            // It does what it did, one place further down.
            (Some(found), Some(gone)) if found.step.result.as_deref() == after => {
                Some(Change::new(What::Step, gone.described(), old, None))
            }
            (None, _) if self.notes.has_earlier() => Some(Change::new(What::Step, note.described(), None, new)),
            _ => {
                let because = reason_of(self.store, self.notes, &note, earlier);
                Some(Change { because, ..Change::new(What::Step, note.described(), old, new) })
            }
        }
    }

    fn is_of_client(&self, label: &str) -> bool {
        let input = input_of(&self.subject.op, label).and_then(|input| self.subject.inputs.get(input));
        matches!(input, Some(ResultRef::Context(_)))
    }

    fn source_reason(&self, label: &str) -> Option<String> {
        let input = input_of(&self.subject.op, label)?;
        match self.subject.inputs.get(input)? {
            ResultRef::Context(_) => None,
            ResultRef::Root(chain) => reason_in(self.store, self.notes, chain),
        }
    }
}

/// What is behind the change of a chain: the reason of the topmost step that was performed for it, else of one whose result
/// is another than in the last build.
fn reason_in(store: &Store, notes: &Notes, chain: &Chain) -> Option<String> {
    let makers: Vec<(VertexId, StepNote)> =
        chain.layers().iter().rev().filter_map(|layer| notes.maker(layer)).collect();
    let performed = makers.iter().find(|(_, note)| note.cause.is_some());
    performed
        .and_then(|(_, note)| reason_of(store, notes, note, None))
        .or_else(|| makers.iter().find_map(|(id, note)| reason_of(store, notes, note, notes.earlier(*id))))
}

/// Why a step gives what it gives: why it was performed, or how it differs from its state in the last build.
fn reason_of(store: &Store, notes: &Notes, note: &StepNote, earlier: Option<Found<'_>>) -> Option<String> {
    match &note.cause {
        Some(Cause::First) => return Some(format!("{} is new", note.described())),
        Some(cause) => return Some(cause.root()),
        None => {}
    }
    let step = earlier?.step;
    let changes = explain::changes(&step.ingredients, &note.ingredients(), &Alone { store, notes, note });
    // An image is nothing but its name here.
    let is_told = |change: &&Change| !matches!(change.what, What::Step | What::Unknown);
    let told: Vec<Change> = changes.iter().filter(is_told).cloned().collect();
    if told.is_empty() { None } else { Some(explain::brief(&told)) }
}

/// The surroundings of a step whose result was found: only its files are looked at.
struct Alone<'a> {
    store: &'a Store,
    notes: &'a Notes,
    note: &'a StepNote,
}

impl Around for Alone<'_> {
    fn file_list(&self, selection: &str) -> Option<FileList> {
        explain::file_list(self.store, selection)
    }

    fn maker(&self, position: usize, before: Option<&str>, after: Option<&str>) -> Option<Change> {
        let layer = self.note.facts.as_ref()?.parents.layers().get(position)?;
        let [old, new] = [before, after].map(|value| value.map(str::to_owned));
        self.notes.maker(layer).map(|(_, note)| Change::new(What::Step, note.described(), old, new))
    }

    fn is_of_client(&self, _label: &str) -> bool {
        is_of_client(&self.note.name)
    }

    fn source_reason(&self, _label: &str) -> Option<String> {
        None
    }
}

/// The input that files called `label` come from.
fn input_of(op: &Op, label: &str) -> Option<usize> {
    match op {
        Op::File(file) => file.actions.iter().find_map(|action| match action {
            FileAction::Copy(copy) if copy.selection.source == label => copy.input,
            _ => None,
        }),
        Op::Run(run) => run.mounts.iter().find_map(|mount| match &mount.kind {
            MountKind::Bind { input, source, .. } | MountKind::Cache { input, source, .. } if source == label => *input,
            _ => None,
        }),
        _ => None,
    }
}
