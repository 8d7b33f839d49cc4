//! How two builds of one Dockerfile differ, step by step.

use cache::{ContentDigest, FileList, Store};

use super::change::{Around, Change, What, changes, is_differing};
use super::words::brief;
use crate::notes::counterpart;
use crate::record::{BuildRecord, StepRecord, is_of_client};

/// A step of two builds, or of one of them.
#[derive(Debug)]
pub struct StepPair<'a> {
    /// Its state in the earlier build.
    pub before: Option<&'a StepRecord>,
    /// Its state in the later build.
    pub after: Option<&'a StepRecord>,
    /// How their keys differ; empty when they do not.
    pub changes: Vec<Change>,
}

/// The steps of `after` in order with what they were in `before`, then those that only `before` has. `store` has the lists of
/// files.
pub fn between<'a>(store: &Store, before: &'a BuildRecord, after: &'a BuildRecord) -> Vec<StepPair<'a>> {
    let around = Between { store, before, after, is_of_client: true };
    let mut pairs: Vec<StepPair<'a>> = after
        .steps
        .iter()
        .map(|step| {
            let earlier = around.earlier(step);
            let changes = earlier.map(|earlier| around.changes(earlier, step)).unwrap_or_default();
            StepPair { before: earlier, after: Some(step), changes }
        })
        .collect();
    let is_met = |step: &StepRecord| pairs.iter().any(|pair| pair.before.is_some_and(|met| std::ptr::eq(met, step)));
    let gone: Vec<_> = before.steps.iter().filter(|step| !is_met(step)).collect();
    pairs.extend(gone.into_iter().map(|step| StepPair { before: Some(step), after: None, changes: Vec::new() }));
    pairs
}

/// Reads the list of files that a digest in hex stands for.
pub(crate) fn file_list(store: &Store, selection: &str) -> Option<FileList> {
    let mut digest = [0; 32];
    if selection.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(selection.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    store.file_list(&ContentDigest(digest))
}

struct Between<'a, 's> {
    store: &'s Store,
    before: &'a BuildRecord,
    after: &'a BuildRecord,
    /// Whether the step that is looked at takes files of the client.
    is_of_client: bool,
}

impl<'a> Between<'a, '_> {
    fn earlier(&self, step: &StepRecord) -> Option<&'a StepRecord> {
        let planned = self.after.planned();
        counterpart(std::slice::from_ref(self.before), &step.slot, &step.name, &planned).map(|found| found.step)
    }

    fn changes(&self, before: &StepRecord, after: &StepRecord) -> Vec<Change> {
        match is_differing(&before.ingredients, &after.ingredients) || before.key.is_none() {
            true => {
                let around = Between { is_of_client: is_of_client(&after.name), ..*self };
                changes(&before.ingredients, &after.ingredients, &around)
            }
            false => Vec::new(),
        }
    }
}

impl Around for Between<'_, '_> {
    fn file_list(&self, selection: &str) -> Option<FileList> {
        file_list(self.store, selection)
    }

    fn is_of_client(&self, _label: &str) -> bool {
        self.is_of_client
    }

    fn maker(&self, _position: usize, before: Option<&str>, after: Option<&str>) -> Option<Change> {
        let made = |build: &'_ BuildRecord, content: Option<&str>| {
            build.steps.iter().position(|step| step.result.is_some() && step.result.as_deref() == content)
        };
        let [old, new] = [before, after].map(|value| value.map(str::to_owned));
        let gone = made(self.before, before).map(|idx| &self.before.steps[idx]);
        let Some(step) = made(self.after, after).map(|idx| &self.after.steps[idx]) else {
            return gone.map(|step| Change::new(What::Step, step.described(), old, None));
        };
        match (self.earlier(step), gone) {
            (Some(earlier), Some(gone)) if earlier.result == step.result => {
                Some(Change::new(What::Step, gone.described(), old, None))
            }
            (None, _) => Some(Change::new(What::Step, step.described(), None, new)),
            (Some(earlier), _) => {
                // A step below, whose root is the lower part of this one's.
                let told = self.changes(earlier, step);
                let because = told.first().and_then(|first| first.because.clone());
                let because = because.or_else(|| (!told.is_empty()).then(|| brief(&told)));
                Some(Change { because, ..Change::new(What::Step, step.described(), old, new) })
            }
        }
    }

    fn source_reason(&self, _label: &str) -> Option<String> {
        None
    }
}
