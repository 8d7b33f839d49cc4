//! The record of a build: what every step did and why. Written at its end, read by the next build of the same Dockerfile and
//! by people. Format: `docs/formats/build-record-v1.md`.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::explain::Cause;
use crate::key::Ingredient;

/// Version of the format. Records of another one are not read.
pub const VERSION: u32 = 1;

/// What one build did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Names the Dockerfile among builds.
    pub subject: String,
    /// What it is called: `Dockerfile`.
    pub dockerfile: String,
    /// Names that the image was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The stage that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The platforms that were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// When it was begun: milliseconds since the epoch.
    pub began_at_ms: u64,
    /// How long it took.
    pub ms: u64,
    /// How it ended.
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// ID of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// In the order of the Dockerfile, inputs before users.
    pub steps: Vec<StepRecord>,
}

/// A record as it is stored: steps have many ingredients in common.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: BuildRecord,
    /// All ingredients of all steps, each once: pairs of name and value.
    facts: Vec<(String, String)>,
    /// For each step the numbers of its ingredients, in order.
    step_facts: Vec<Vec<u32>>,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The product is there.
    #[default]
    Completed,
    /// It is not.
    Failed,
    /// Somebody stopped it.
    Canceled,
}

/// What became of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// As shown: `[builder 2/4] RUN make`.
    pub name: String,
    /// See [`VertexMeta::slot`](crate::VertexMeta::slot).
    pub slot: String,
    /// First and last line in the Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<(u32, u32)>,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its key in hex; steps that are not looked up have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Why it was performed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// How long it took in this build.
    pub ms: u64,
    /// What making the result took, in whichever build made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<u64>,
    /// What keys see of its result, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// What its key was made of.
    #[serde(skip)]
    pub ingredients: Vec<Ingredient>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    /// It was performed.
    Done,
    /// Its result was found.
    Cached,
    /// It failed.
    Failed,
    /// It was stopped.
    Canceled,
    /// The build ended before its turn.
    #[default]
    NotReached,
}

impl BuildRecord {
    /// The text that is stored.
    pub fn to_json(mut self) -> String {
        let mut numbers: HashMap<Ingredient, u32> = HashMap::new();
        let mut number = |ingredient| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *numbers.entry(ingredient).or_insert(next)
        };
        let mut of_step = |step: &mut StepRecord| step.ingredients.drain(..).map(&mut number).collect();
        let step_facts = self.steps.iter_mut().map(&mut of_step).collect();
        let mut facts: Vec<_> = numbers.into_iter().collect();
        facts.sort_unstable_by_key(|(_, number)| *number);
        let facts = facts.into_iter().map(|(Ingredient { name, value }, _)| (name, value)).collect();
        let stored = Stored { record: self, facts, step_facts };
        serde_json::to_string(&stored).expect("a record has string keys and no failing serialisers")
    }

    /// Slots and names of all steps.
    pub(crate) fn planned(&self) -> Vec<(String, String)> {
        self.steps.iter().map(|step| (step.slot.clone(), step.name.clone())).collect()
    }

    /// How many milliseconds ago it was begun.
    pub fn age_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_sub(self.began_at_ms)
    }

    /// Reads what was stored; `None` when it is of another version, or damaged.
    pub fn from_json(text: &str) -> Option<Self> {
        let Stored { mut record, facts, step_facts } = serde_json::from_str(text).ok()?;
        if record.version != VERSION {
            return None;
        }
        for (step, numbers) in record.steps.iter_mut().zip(step_facts) {
            for number in numbers {
                let (name, value) = facts.get(number as usize)?.clone();
                step.ingredients.push(Ingredient { name, value });
            }
        }
        Some(record)
    }
}

impl StepRecord {
    /// The instruction, without the counter in front of it.
    pub fn instruction(&self) -> &str {
        instruction(&self.name)
    }

    /// `line 4 (COPY src/ .)`, as other steps speak of it.
    pub fn described(&self) -> String {
        described(&self.name, self.lines.map(|(first, _)| first))
    }

    /// Whether it is known what its key was made of.
    pub fn has_ingredients(&self) -> bool {
        !self.ingredients.is_empty()
    }
}

/// The instruction in a step's name, without the counter in front of it.
pub(crate) fn instruction(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, instruction)) => instruction,
        None => name,
    }
}

/// Whether an instruction takes files of the client, as far as its text says.
pub(crate) fn is_of_client(name: &str) -> bool {
    !name.contains("from=")
}

/// A step as others speak of it.
pub(crate) fn described(name: &str, line: Option<u32>) -> String {
    const MOST_CHARS: usize = 40;
    let text = instruction(name);
    let text = match text.chars().count() > MOST_CHARS {
        true => text.chars().take(MOST_CHARS - 1).chain(['…']).collect(),
        false => text.to_owned(),
    };
    match line {
        Some(line) => format!("line {line} ({text})"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_and_repeat_nothing() {
        let ingredient = |name: &str| Ingredient { name: name.to_owned(), value: "x".repeat(100) };
        let step = |ingredients: &[&str]| StepRecord {
            name: "[1/2] RUN make".to_owned(),
            ingredients: ingredients.iter().map(|name| ingredient(name)).collect(),
            cause: Some(Cause::First),
            ..StepRecord::default()
        };
        let record = BuildRecord {
            version: VERSION,
            subject: "/src/Dockerfile".to_owned(),
            steps: vec![step(&["a", "b", "a"]), step(&["b"]), step(&[])],
            ..BuildRecord::default()
        };
        let text = record.clone().to_json();
        assert_eq!(text.matches("xxxx").count(), 2 * 25);
        assert_eq!(BuildRecord::from_json(&text), Some(record.clone()));
        let other = BuildRecord { version: 2, ..record };
        assert_eq!(BuildRecord::from_json(&other.to_json()), None);
        assert_eq!(BuildRecord::from_json(&text[..text.len() - 1]), None);
    }

    #[test]
    fn steps_are_called_by_line_and_instruction() {
        assert_eq!(described("[builder 2/4] RUN make", Some(3)), "line 3 (RUN make)");
        assert_eq!(described("[internal] x", None), "x");
        assert_eq!(described(&format!("RUN {}", "y".repeat(60)), None), format!("RUN {}…", "y".repeat(35)));
    }
}
