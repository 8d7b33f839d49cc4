//! `rbuild explain`: why each step of a build was performed, or how two builds differ.

mod text;

use cache::{BuildName, Store};
use serde_json::{Value, json};
use solver::explain::{Change, StepPair, between, brief, sentence};
use solver::record::{BuildRecord, StepRecord};

use super::builds;
use crate::args::ExplainArgs;
use crate::failure::Failure;
use crate::ui;

/// What is explained.
pub(super) struct Subject {
    name: BuildName,
    record: BuildRecord,
}

/// Explains.
pub(crate) fn explain(store: &Store, args: &ExplainArgs, now: i64) -> Result<(), Failure> {
    let (name, record) = builds::find(store, store.builds(), args.build.as_deref().unwrap_or("^0"))?;
    let subject = Subject { name, record };
    let text = match &args.with {
        None => alone(&subject, args, now)?,
        Some(with) => {
            // An ID may be that of another Dockerfile's build; numbers count those of this one.
            let candidates = match with.starts_with('^') {
                true => store.builds_of(&subject.record.subject),
                false => store.builds(),
            };
            let (name, record) = builds::find(store, candidates, with)?;
            compared(store, &subject, &Subject { name, record }, args, now)?
        }
    };
    Ok(ui::stdout(&text)?)
}

/// One build, with the causes that it noted.
fn alone(subject: &Subject, args: &ExplainArgs, now: i64) -> Result<String, Failure> {
    let steps: Vec<(usize, &StepRecord)> = (1..).zip(&subject.record.steps).collect();
    let chosen = match &args.step {
        None => steps,
        Some(wanted) => choose(wanted, &steps)?,
    };
    if args.format == "json" {
        let steps: Vec<Value> = chosen.iter().map(|(number, step)| step_json(*number, step)).collect();
        let document = json!({"build": build_json(subject), "steps": steps});
        return Ok(format!("{document:#}\n"));
    }
    Ok(match &args.step {
        None => text::build(subject, &chosen, now),
        Some(_) => chosen.iter().map(|(number, step)| text::step(*number, step)).collect::<Vec<_>>().join("\n"),
    })
}

/// Two builds, step by step.
fn compared(store: &Store, after: &Subject, before: &Subject, args: &ExplainArgs, now: i64) -> Result<String, Failure> {
    let pairs = between(store, &before.record, &after.record);
    let shown = |pair: &StepPair<'_>| pair.after.or(pair.before).cloned().unwrap_or_default();
    let numbered: Vec<StepRecord> = pairs.iter().map(shown).collect();
    let steps: Vec<(usize, &StepRecord)> = (1..).zip(&numbered).collect();
    let chosen: Vec<usize> = match &args.step {
        None => (1..=pairs.len()).collect(),
        Some(wanted) => choose(wanted, &steps)?.into_iter().map(|(number, _)| number).collect(),
    };
    if args.format == "json" {
        let steps: Vec<Value> = chosen.iter().map(|&number| pair_json(number, &pairs[number - 1])).collect();
        let document = json!({"build": build_json(after), "with": build_json(before), "steps": steps});
        return Ok(format!("{document:#}\n"));
    }
    let chosen: Vec<_> = chosen.into_iter().map(|number| (number, &pairs[number - 1])).collect();
    Ok(text::pairs(after, before, &chosen, args.step.is_some(), now))
}

/// The steps that a user means: a number, `:LINE`, or a part of the name.
fn choose<'a>(wanted: &str, steps: &[(usize, &'a StepRecord)]) -> Result<Vec<(usize, &'a StepRecord)>, Failure> {
    let line: Option<u32> = wanted.strip_prefix(':').and_then(|line| line.parse().ok());
    let number: Option<usize> = wanted.parse().ok();
    let is_wanted = |(at, step): &&(usize, &StepRecord)| match (number, line) {
        (Some(number), _) => *at == number,
        (None, Some(line)) => step.lines.is_some_and(|(first, last)| (first..=last).contains(&line)),
        (None, None) => step.name.to_lowercase().contains(&wanted.to_lowercase()),
    };
    let chosen: Vec<_> = steps.iter().filter(is_wanted).copied().collect();
    if chosen.is_empty() {
        return Err(Failure::input(format!("the build has no step `{wanted}`")).help(
            "a step is a number, `:LINE` of the Dockerfile, or a part of its name; `rbuild explain` lists them",
        ));
    }
    Ok(chosen)
}

fn build_json(subject: &Subject) -> Value {
    let Subject { name, record } = subject;
    let (n_cached, n_steps) = builds::counts(record);
    json!({
        "id": name.id,
        "dockerfile": record.subject,
        "tags": record.tags,
        "target": record.target,
        "platforms": record.platforms,
        "began_at": oci::time::format_rfc3339((name.began_at_ms / 1000).cast_signed(), 0),
        "ms": record.ms,
        "status": record.status,
        "error": record.error,
        "image": record.image,
        "n_steps": n_steps,
        "n_cached": n_cached,
    })
}

fn step_json(number: usize, step: &StepRecord) -> Value {
    let mut value = json!({
        "number": number,
        "name": step.name,
        "lines": step.lines.map(|(first, last)| [first, last]),
        "outcome": step.outcome,
        "error": step.error,
        "key": step.key,
        "ms": step.ms,
        "cost_ms": step.cost_ms,
        "result": step.result,
        "ingredients": step.ingredients,
    });
    if let Some(cause) = &step.cause {
        value["cause"] = json!(cause);
        value["cause"]["text"] = json!(cause.brief());
        value["cause"]["root"] = json!(cause.root());
        value["cause"]["named"] = json!(cause.is_named());
    }
    value
}

fn pair_json(number: usize, pair: &StepPair<'_>) -> Value {
    let StepPair { before, after, changes } = pair;
    let step = after.or(*before);
    json!({
        "number": number,
        "name": step.map(|step| &step.name),
        "relation": relation(pair),
        "before": before.map(|step| &step.key),
        "after": after.map(|step| &step.key),
        "text": brief(changes),
        "changes": changes.iter().map(change_json).collect::<Vec<_>>(),
    })
}

fn change_json(change: &Change) -> Value {
    let mut value = json!(change);
    value["text"] = json!(sentence(change));
    value
}

/// What became of a step from one build to the other.
pub(super) fn relation(pair: &StepPair<'_>) -> &'static str {
    match (pair.before, pair.after) {
        (None, _) => "new",
        (_, None) => "gone",
        _ if pair.changes.is_empty() => "same",
        _ => "changed",
    }
}
