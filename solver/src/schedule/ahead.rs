//! Copies that are performed before their key is made.
//!
//! The key of a copy from the client's directories holds a digest of every file, so that a copy which is not in the cache
//! reads each file twice: once for its key, once for its layer. Where nothing was ever recorded for the same operation on
//! the same parents, whatever the files were, no look-up can succeed. Then the layer is made first, and the key from what
//! was read on the way.
//!
//! That something was recorded is known by the key of the step's family ([`key::family`]), which is recorded with every
//! result that may need it.

use cache::{Key, Layer};

use crate::error::OpError;
use crate::graph::ResultRef;
use crate::key::{self, Question};
use crate::op::Op;
use crate::progress::Step;

use super::step::{self, Claimed, Destiny, MadeLayer, Shared, Subject};
use super::{cause, elsewhere};

/// The key of the family, for operations that this is about: copies that read the client's directories only. Other files
/// are not remembered once they have been read.
pub(super) fn family(subject: &Subject) -> Option<Key> {
    let is_of_client =
        |question: &Question<'_>| matches!(subject.inputs.get(question.input), Some(ResultRef::Context(_)));
    let is_meant = matches!(&*subject.op, Op::File(_)) && key::questions(&subject.op).iter().all(is_of_client);
    if is_meant { key::family(&subject.op, &subject.facts) } else { None }
}

/// Performs the operation and records the result, if no look-up can succeed; `None` if one may.
pub(super) async fn perform(
    shared: &Shared,
    subject: &Subject,
    destiny: &Destiny,
    step: &Step,
) -> Result<Option<Layer>, OpError> {
    // A tree may share its bytes with the files it is made from, which costs less than having them read only once.
    // What was built here before has to be explained, and all but the changed files are known.
    // Elsewhere a look-up may succeed.
    let may_be_elsewhere = shared.remote.as_ref().is_some_and(|remote| remote.has_sources());
    if destiny.needs_tree || subject.ignore_cache || may_be_elsewhere || was_built_before(shared, subject, destiny) {
        return Ok(None);
    }
    let Some(family) = family(subject) else { return Ok(None) };
    let lock = match step::claim_key(shared, family, step).await? {
        Claimed::Found(_) => return Ok(None),
        Claimed::Ours(lock) => lock,
    };
    step::announce(shared, subject, &cause::of_unknown(shared, &destiny.slot), step);
    let (layer, cost) = step::execute(shared, subject, destiny.needs_tree, step).await?;
    let lookup = shared.unless_cancelled(step::by_content(shared, subject, None, step)).await?;
    shared.notes.keyed(subject.id, lookup.key, &lookup.facts, Some(cost));
    elsewhere::tell_made(shared, subject, &lookup, destiny, &layer, cost);
    let made = MadeLayer { layer: &layer, cost };
    step::remember(shared, subject, lookup, made, destiny.clone(), Some(lock));
    Ok(Some(layer))
}

/// Whether there is a result of an earlier state of this step. A store that cannot answer will be told of elsewhere.
fn was_built_before(shared: &Shared, subject: &Subject, destiny: &Destiny) -> bool {
    let has_record = !destiny.slot.is_empty() && !matches!(shared.store.latest_of_slot(&destiny.slot), Ok(None));
    has_record || shared.notes.earlier(subject.id).is_some()
}
