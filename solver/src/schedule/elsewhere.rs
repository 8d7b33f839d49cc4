//! Results in other places: asked for when the store has none, told of when there is one here.
//!
//! What is found there becomes a record like any other, so that the next build needs nobody.

use std::time::Duration;

use cache::{Key, Layer, NewRecord};

use crate::key;
use crate::progress::Step;
use crate::traits::{Imported, Origin, SettledResult};

use super::step::{Destiny, Hit, Lookup, Shared, Subject, alias_record};

/// Tells of what was found in the store; looks elsewhere for what was not.
pub(super) async fn find_unless_here(
    shared: &Shared,
    subject: &Subject,
    lookup: &Lookup,
    destiny: &Destiny,
    found: Option<Hit>,
    step: &Step,
) -> Option<Hit> {
    if let Some(hit) = &found {
        tell(shared, subject, lookup, destiny, &hit.layer, Origin::Found);
        return found;
    }
    find(shared, subject, lookup, destiny, step).await
}

/// Looks a key up elsewhere, and remembers what is found.
async fn find(shared: &Shared, subject: &Subject, lookup: &Lookup, destiny: &Destiny, step: &Step) -> Option<Hit> {
    let remote = shared.remote.as_ref().filter(|remote| remote.has_sources())?;
    let Imported { layer, cost, from } = shared.cancel.run_until_cancelled(remote.find(&lookup.key)).await??;
    step.imported(from);
    let parent = lookup.facts.parents.layers().last().map(|parent| parent.id.clone());
    if let Err(error) = shared.store.put_records(&records(subject, lookup, destiny, &layer, cost), parent.as_slice()) {
        step.warn(format!("the result is not remembered: {error}"));
    }
    settle(shared, subject, lookup, destiny, &layer, (cost, Origin::Imported));
    Some(Hit { layer, cost: Some(cost) })
}

/// A record for the content key, which can be explained later; for a definition key an alias.
fn records(subject: &Subject, lookup: &Lookup, destiny: &Destiny, layer: &Layer, cost: Duration) -> Vec<NewRecord> {
    if lookup.is_by_definition(&subject.op) {
        return vec![alias_record(lookup.key, layer)];
    }
    let explanation = Some(key::explanation(&subject.op, &lookup.facts));
    let (name, slot) = (destiny.name.clone(), destiny.slot.clone());
    let record = NewRecord { key: lookup.key, layer: layer.id.clone(), explanation, name, slot, cost };
    [record].into_iter().chain(lookup.definition.map(|key| alias_record(key, layer))).collect()
}

/// Tells of a result that was found in the store.
pub(super) fn tell(
    shared: &Shared,
    subject: &Subject,
    lookup: &Lookup,
    destiny: &Destiny,
    layer: &Layer,
    origin: Origin,
) {
    settle(shared, subject, lookup, destiny, layer, (Duration::ZERO, origin));
}

/// Tells of a result that has just been made.
pub(super) fn tell_made(
    shared: &Shared,
    subject: &Subject,
    lookup: &Lookup,
    destiny: &Destiny,
    layer: &Layer,
    cost: Duration,
) {
    settle(shared, subject, lookup, destiny, layer, (cost, Origin::Performed));
}

fn settle(
    shared: &Shared,
    subject: &Subject,
    lookup: &Lookup,
    destiny: &Destiny,
    layer: &Layer,
    (cost, origin): (Duration, Origin),
) {
    let Some(remote) = &shared.remote else { return };
    let mut keys: Vec<Key> = [lookup.key].into_iter().chain(lookup.definition).collect();
    if lookup.is_by_definition(&subject.op) {
        // Whoever has other sources with the same files finds it by what they contain.
        let known = shared.store.keys_of(&layer.id).unwrap_or_default();
        keys.extend(known.into_iter().filter(|key| *key != lookup.key).take(1));
    }
    remote.settled(SettledResult {
        keys,
        chain: lookup.facts.parents.with(layer.clone()),
        name: destiny.name.clone(),
        cost,
        is_exported: destiny.is_exported,
        origin,
    });
}
