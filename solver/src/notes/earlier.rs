//! Earlier builds of the same Dockerfile, and which of their steps is the one at hand.
//!
//! A Dockerfile that is edited in the middle gives the steps below other numbers: a step is known by its instruction first,
//! and by its place only where that instruction was not there before.

use std::sync::OnceLock;

use cache::Store;

use crate::record::{BuildRecord, StepRecord, instruction};

/// So many builds are looked at.
const MOST_BUILDS: usize = 5;

/// The last builds of one Dockerfile, read when they are first asked for.
#[derive(Default)]
pub(super) struct Earlier {
    source: Option<(Store, String)>,
    records: OnceLock<Vec<BuildRecord>>,
}

/// A step of an earlier build.
pub(crate) struct Found<'a> {
    pub(crate) step: &'a StepRecord,
    /// The build it is of.
    pub(crate) build: &'a BuildRecord,
}

impl Earlier {
    pub(super) fn new(store: &Store, subject: &str) -> Self {
        Self { source: Some((store.clone(), subject.to_owned())), records: OnceLock::new() }
    }

    /// Newest first.
    pub(super) fn records(&self) -> &[BuildRecord] {
        self.records.get_or_init(|| {
            let Some((store, subject)) = &self.source else { return Vec::new() };
            let names = store.builds_of(subject).into_iter().take(MOST_BUILDS);
            let records = names.filter_map(|name| BuildRecord::from_json(&store.read_build(&name)?));
            records.filter(|record| record.subject == *subject).collect()
        })
    }

    /// See [`counterpart`].
    pub(super) fn find(&self, slot: &str, name: &str, planned: &[(String, String)]) -> Option<Found<'_>> {
        counterpart(self.records(), slot, name, planned)
    }
}

/// The step of one of `builds` that `slot` and `name` mean, from the first build that has it; `planned` are slots and names of
/// all steps of the build at hand.
pub(crate) fn counterpart<'a>(
    builds: &'a [BuildRecord],
    slot: &str,
    name: &str,
    planned: &[(String, String)],
) -> Option<Found<'a>> {
    let matches: [&dyn Fn(&StepRecord) -> bool; 3] = [
        &|step| step.slot == slot && step.instruction() == instruction(name),
        &|step| stage(&step.slot) == stage(slot) && step.instruction() == instruction(name),
        &|step| {
            let is_elsewhere = |(_, name): &(String, String)| instruction(name) == step.instruction();
            step.slot == slot && !planned.iter().any(is_elsewhere)
        },
    ];
    let all = || builds.iter().flat_map(|build| build.steps.iter().map(move |step| Found { step, build }));
    matches.iter().find_map(|is_it| all().find(|found| found.step.has_ingredients() && is_it(found.step)))
}

/// A slot without the number of its instruction.
fn stage(slot: &str) -> (&str, &str) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match slot.rsplit_once(':') {
        Some((stage, number)) if is_number(number) => (stage, ""),
        Some((rest, part)) => (rest.rsplit_once(':').map_or(rest, |(stage, _)| stage), part),
        None => (slot, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Ingredient;

    #[test]
    fn steps_are_known_by_their_instruction_before_their_place() {
        let step = |slot: &str, name: &str, value: &str| StepRecord {
            slot: slot.to_owned(),
            name: name.to_owned(),
            ingredients: vec![Ingredient { name: "it".to_owned(), value: value.to_owned() }],
            ..StepRecord::default()
        };
        let build = |steps| BuildRecord { steps, ..BuildRecord::default() };
        let newest = build(vec![step("D:0:1", "[1/3] RUN a", "1"), step("D:0:2", "[2/3] RUN b", "2")]);
        let older = build(vec![step("D:0:3", "[3/3] RUN c", "3"), step("D:1:2", "[2/3] RUN z", "4")]);
        let earlier = Earlier { source: None, records: OnceLock::from(vec![newest, older]) };
        let planned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(slot, name)| ((*slot).to_owned(), (*name).to_owned())).collect()
        };
        let now =
            [("D:0:1", "[1/4] RUN new"), ("D:0:2", "[2/4] RUN a"), ("D:0:3", "[3/4] RUN b"), ("D:0:4", "[4/4] RUN c")];
        let find = |slot, name, planned: &[(String, String)]| {
            earlier.find(slot, name, planned).map(|found| found.step.ingredients[0].value.clone())
        };
        let shifted = planned(&now);
        assert_eq!(find("D:0:1", "[1/4] RUN new", &shifted), None, "what stood there is still there");
        for (slot, name, value) in
            [("D:0:2", "[2/4] RUN a", "1"), ("D:0:3", "[3/4] RUN b", "2"), ("D:0:4", "RUN c", "3")]
        {
            assert_eq!(find(slot, name, &shifted).as_deref(), Some(value), "{name}");
        }
        let edited = planned(&[("D:0:1", "[1/2] RUN a"), ("D:0:2", "[2/2] RUN edited")]);
        assert_eq!(find("D:0:2", "[2/2] RUN edited", &edited).as_deref(), Some("2"));
        assert_eq!(find("D:0:7", "[2/2] RUN z", &edited), None, "it is of another stage");
    }
}
