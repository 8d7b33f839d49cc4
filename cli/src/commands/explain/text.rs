//! Explanations as text.

use std::fmt::Write as _;

use solver::explain::{StepPair, full};
use solver::record::{StepOutcome, StepRecord};

use super::{Subject, relation};
use crate::commands::builds;
use crate::ui::format::ago;

/// So many changes are shown of each step in a list of all.
const SHOWN_CHANGES: usize = 6;
/// Where the text of a list begins, behind number, result and time.
const INDENT: &str = "                        ";

/// All steps of one build.
pub(super) fn build(subject: &Subject, steps: &[(usize, &StepRecord)], now: i64) -> String {
    let (n_cached, n_steps) = builds::counts(&subject.record);
    let mut text = heading(subject, now);
    line(&mut text, &format!("{n_cached} of {n_steps} steps cached"));
    if let Some(error) = &subject.record.error {
        line(&mut text, &format!("failed: {error}"));
    }
    line(&mut text, "");
    for (number, step) in steps {
        let seconds = step.ms as f64 / 1000.0;
        line(&mut text, &format!("{number:>4}  {:<9} {seconds:>6.1}s  {}", outcome(step), step.name));
        let told = step.cause.as_ref().map(solver::explain::Cause::full).unwrap_or_default();
        list(&mut text, &told, *number);
    }
    text
}

/// One step in full.
pub(super) fn step(number: usize, step: &StepRecord) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| line(&mut text, &format!("{name:<13}{value}"));
    field("Step:", &format!("{number} {}", step.name));
    match step.lines {
        Some((first, last)) if first != last => field("Lines:", &format!("{first}-{last}")),
        Some((first, _)) => field("Line:", &first.to_string()),
        None => {}
    }
    field("Result:", outcome(step));
    if let Some(error) = &step.error {
        field("Error:", error);
    }
    field("Time:", &builds::duration(step.ms));
    if let Some(cost) = step.cost_ms {
        field("Cost:", &format!("{} when it was made", builds::duration(cost)));
    }
    for (idx, reason) in step.cause.iter().flat_map(solver::explain::Cause::full).enumerate() {
        field(if idx == 0 { "Why:" } else { "" }, &reason);
    }
    if let Some(key) = &step.key {
        field("Key:", key);
    }
    if let Some(result) = &step.result {
        field("Content:", result);
    }
    for (idx, ingredient) in step.ingredients.iter().enumerate() {
        let value = format!("{} = {}", ingredient.name, ingredient.value);
        field(if idx == 0 { "Ingredients:" } else { "" }, &value);
    }
    text
}

/// Two builds, step by step.
pub(super) fn pairs(
    after: &Subject,
    before: &Subject,
    pairs: &[(usize, &StepPair<'_>)],
    in_full: bool,
    now: i64,
) -> String {
    let mut text = heading(after, now);
    text.push_str("compared with ");
    text.push_str(&heading(before, now));
    line(&mut text, "");
    for (number, pair) in pairs {
        let Some(step) = pair.after.or(pair.before) else { continue };
        line(&mut text, &format!("{number:>4}  {:<9} {:>7}  {}", relation(pair).to_uppercase(), "", step.name));
        let told = full(&pair.changes);
        list(&mut text, &told, if in_full { 0 } else { *number });
        if in_full {
            for (name, step) in [("key before", pair.before), ("key now", pair.after)] {
                if let Some(key) = step.and_then(|step| step.key.as_ref()) {
                    line(&mut text, &format!("{INDENT}{name}: {key}"));
                }
            }
        }
    }
    text
}

fn heading(subject: &Subject, now: i64) -> String {
    let Subject { name, record } = subject;
    let seconds = (name.began_at_ms / 1000).cast_signed();
    format!(
        "build {} of {}, {}: {} in {}\n",
        name.id,
        builds::title(record),
        ago(now - seconds).to_lowercase(),
        builds::status(record).to_lowercase(),
        builds::duration(record.ms)
    )
}

/// Changes below their step; a number of a step says that only the first ones are shown.
fn list(text: &mut String, told: &[String], number: usize) {
    let n_shown = if number == 0 { told.len() } else { SHOWN_CHANGES };
    for change in told.iter().take(n_shown) {
        line(text, &format!("{INDENT}{change}"));
    }
    if told.len() > n_shown {
        line(text, &format!("{INDENT}… and {} more: rbuild explain {number}", told.len() - n_shown));
    }
}

fn outcome(step: &StepRecord) -> &'static str {
    match step.outcome {
        StepOutcome::Done if step.cause.is_some() => "MISS",
        StepOutcome::Done => "DONE",
        StepOutcome::Cached => "CACHED",
        StepOutcome::Failed => "ERROR",
        StepOutcome::Canceled => "CANCELED",
        StepOutcome::NotReached => "-",
    }
}

fn line(text: &mut String, content: &str) {
    writeln!(text, "{}", content.trim_end()).expect("a String takes all text");
}
