//! Append-only progress for logs and pipes (`spec/cli.md` §3.2).
//!
//! One step holds the screen at a time; the output of the others waits. A step that ends is flushed; a step that was
//! silent or has held the screen for long gives way.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use solver::{Event, Outcome, StepId};

use super::format::log_seconds;
use super::model::{Status, Steps};

/// A step keeps the screen at least this long, shared among those that wait.
const HOLD: Duration = Duration::from_secs(5);
/// An unfinished sub-task is printed again only after this share of its total …
const STATUS_SHARE: u64 = 20;
/// … or this time.
const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// The renderer. Writes to `out`, which is standard error outside of tests.
pub(crate) struct Plain<W> {
    out: W,
    steps: Steps,
    shown: BTreeMap<StepId, Shown>,
    next_number: u64,
    current: Option<(StepId, Instant)>,
    /// Steps that ended while another held the screen, in the order of their ends.
    ended: Vec<StepId>,
}

/// What was printed of a step and what waits.
#[derive(Default)]
struct Shown {
    number: Option<u64>,
    waiting: Vec<String>,
    statuses: BTreeMap<String, (u64, Instant)>,
}

impl<W: Write> Plain<W> {
    /// Prints line 0.
    pub(crate) fn new(mut out: W) -> Self {
        // A closed standard error must not stop a build.
        drop(writeln!(out, "#0 building with rbuild {}", env!("CARGO_PKG_VERSION")));
        let (steps, shown) = (Steps::default(), BTreeMap::new());
        Self { out, steps, shown, next_number: 1, current: None, ended: Vec::new() }
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Started { step, name, at } => {
                self.steps.start(step, name, at);
                self.shown.insert(step, Shown::default());
                // A header alone is shown at once only when nobody holds the screen.
                if self.current.is_none() {
                    self.show(step, at);
                }
            }
            Event::Log { step, data, at, .. } => {
                let lines = self.steps.get_mut(step).map(|state| state.add_output(&data, at)).unwrap_or_default();
                for (seconds, line) in lines {
                    self.put(step, format!("{} {line}", log_seconds(seconds)));
                }
            }
            Event::Status { step, id, current_bytes, total_bytes, done, at } => {
                let status = Status { id, current_bytes, total_bytes, done, started: at, last: at };
                if let Some(status) = self.steps.set_status(step, status) {
                    self.put_status(step, &status);
                }
            }
            Event::Miss { step, reason } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.miss = Some(reason.clone());
                }
                self.put(step, format!("MISS: {reason}"));
            }
            Event::Imported { step, from } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.imported = Some(from);
                }
            }
            Event::Emulated { step, architecture } => self.put(step, format!("EMULATED linux/{architecture}")),
            Event::Warning { step: Some(step), message } => self.put(step, format!("WARN: {message}")),
            Event::Warning { step: None, message } => self.line(&format!("WARN: {message}")),
            Event::Finished { step, outcome, at } => self.finish(step, outcome, at),
            Event::End => self.flush_all(),
        }
    }

    /// Lets waiting output have the screen when its holder has had it long enough.
    pub(crate) fn tick(&mut self, now: Instant) {
        let waiting: Vec<StepId> = self
            .shown
            .iter()
            .filter(|(id, shown)| Some(**id) != self.current.map(|(id, _)| id) && !shown.waiting.is_empty())
            .map(|(id, _)| *id)
            .collect();
        let (Some((_, since)), Some(&next)) = (self.current, waiting.first()) else { return };
        let share = HOLD / u32::try_from(waiting.len() + 1).unwrap_or(u32::MAX);
        if now.duration_since(since) >= share {
            self.show(next, now);
        }
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&mut self) {
        drop(self.out.flush());
    }

    /// The failure blocks, after the display has closed.
    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    fn put(&mut self, step: StepId, line: String) {
        let Some(shown) = self.shown.get_mut(&step) else { return };
        shown.waiting.push(line);
        match self.current {
            Some((current, _)) if current != step => {}
            _ => self.show(step, Instant::now()),
        }
    }

    fn put_status(&mut self, step: StepId, status: &Status) {
        let Some(shown) = self.shown.get_mut(&step) else { return };
        if let Some((bytes, at)) = shown.statuses.get(&status.id) {
            let moved = status.current_bytes.saturating_sub(*bytes);
            let enough = status.total_bytes > 0 && moved * STATUS_SHARE >= status.total_bytes;
            if !status.done && !enough && status.last.duration_since(*at) < STATUS_PERIOD {
                return;
            }
        }
        shown.statuses.insert(status.id.clone(), (status.current_bytes, status.last));
        self.put(step, status.text());
    }

    fn finish(&mut self, step: StepId, outcome: Outcome, at: Instant) {
        let Some(state) = self.steps.get_mut(step) else { return };
        let last = state.end_output(at);
        state.finished = Some((outcome.clone(), at));
        let imported = state.imported.clone();
        let seconds = state.elapsed(at).as_secs_f64();
        if let Some((seconds, line)) = last {
            self.put(step, format!("{} {line}", log_seconds(seconds)));
        }
        let terminator = match outcome {
            Outcome::Done => format!("DONE {seconds:.1}s"),
            Outcome::Cached => match imported {
                Some(from) => format!("CACHED from {from}"),
                None => "CACHED".to_owned(),
            },
            Outcome::Failed(message) => format!("ERROR: {message}"),
            Outcome::Canceled => "CANCELED".to_owned(),
        };
        self.put(step, terminator);
        if self.current.is_some_and(|(current, _)| current == step) {
            self.current = None;
            self.flush_ended(at);
        } else {
            self.ended.push(step);
        }
    }

    /// Steps that ended meanwhile come first, then whoever runs and has something to say.
    fn flush_ended(&mut self, now: Instant) {
        for step in std::mem::take(&mut self.ended) {
            self.show(step, now);
            self.current = None;
        }
        let waiting = self.shown.iter().find(|(_, shown)| !shown.waiting.is_empty()).map(|(id, _)| *id);
        if let Some(step) = waiting {
            self.show(step, now);
        }
    }

    fn flush_all(&mut self) {
        self.current = None;
        self.flush_ended(Instant::now());
        drop(self.out.flush());
    }

    /// Gives the screen to `step` and prints what waits.
    fn show(&mut self, step: StepId, now: Instant) {
        let Some(state) = self.steps.by_id.get(&step) else { return };
        let name = state.name.clone();
        if self.current.is_none_or(|(current, _)| current != step) {
            if let Some((left, _)) = self.current
                && let Some(number) = self.shown.get(&left).and_then(|shown| shown.number)
                && self.steps.by_id.get(&left).is_some_and(|state| state.finished.is_none())
            {
                self.line(&format!("#{number} ..."));
            }
            let number = self.number(step);
            self.line("");
            self.line(&format!("#{number} {name}"));
            self.current = Some((step, now));
        }
        let number = self.number(step);
        let waiting = self.shown.get_mut(&step).map(|shown| std::mem::take(&mut shown.waiting)).unwrap_or_default();
        for line in waiting {
            self.line(&format!("#{number} {line}"));
        }
    }

    fn number(&mut self, step: StepId) -> u64 {
        let shown = self.shown.entry(step).or_default();
        *shown.number.get_or_insert_with(|| {
            self.next_number += 1;
            self.next_number - 1
        })
    }

    fn line(&mut self, text: &str) {
        drop(writeln!(self.out, "{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use solver::Stream;

    fn render(events: Vec<Event>) -> String {
        let mut plain = Plain::new(Vec::new());
        for event in events {
            plain.handle(event);
        }
        plain.handle(Event::End);
        String::from_utf8(plain.out).expect("utf-8")
    }

    fn started(step: u64, name: &str, at: Instant) -> Event {
        Event::Started { step: StepId(step), name: name.to_owned(), at }
    }

    fn log(step: u64, text: &str, at: Instant) -> Event {
        Event::Log { step: StepId(step), stream: Stream::Stdout, data: text.into(), at }
    }

    fn finished(step: u64, outcome: Outcome, at: Instant) -> Event {
        Event::Finished { step: StepId(step), outcome, at }
    }

    #[test]
    fn steps_that_follow_each_other() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let text = render(vec![
            started(1, "[internal] load build definition from Dockerfile", at(0)),
            finished(1, Outcome::Done, at(10)),
            started(2, "[1/2] RUN make", at(20)),
            log(2, "gcc -c a.c\nhalf ", at(233)),
            log(2, "a line", at(300)),
            finished(2, Outcome::Failed("exit code: 1".into()), at(12_420)),
        ]);
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "#0 building with rbuild {version}\n\n#1 [internal] load build definition from Dockerfile\n#1 DONE 0.0s\n\n\
             #2 [1/2] RUN make\n#2 0.213 gcc -c a.c\n#2 12.40 half a line\n#2 ERROR: exit code: 1\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_step_that_ends_while_another_holds_the_screen_waits_for_its_turn() {
        let start = Instant::now();
        let text = render(vec![
            started(1, "a", start),
            log(1, "one\n", start),
            started(2, "b", start),
            log(2, "two\n", start),
            finished(2, Outcome::Done, start),
            log(1, "three\n", start),
            finished(1, Outcome::Done, start),
        ]);
        let body = text.split_once('\n').expect("line 0").1;
        let expected = "\n#1 a\n#1 0.000 one\n#1 0.000 three\n#1 DONE 0.0s\n\n#2 b\n#2 0.000 two\n#2 DONE 0.0s\n";
        assert_eq!(body, expected);
    }
}
