//! What is known about the steps of a build: the state that all renderers share.
//!
//! Events come in, [`Steps`] remembers; a renderer asks. Knows nothing of terminals.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use solver::{Outcome, StepId};

/// Log lines kept for the replay after a failure. The whole output of a step is never lost: it was printed.
const KEPT_LINES: usize = 200;

/// One sub-task of a step.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) id: String,
    pub(crate) current_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) done: bool,
    pub(crate) started: Instant,
    pub(crate) last: Instant,
}

impl Status {
    /// `sha256:ab… 3.39MB / 3.62MB 0.5s done`.
    pub(crate) fn text(&self) -> String {
        let mut text = self.id.clone();
        if self.total_bytes > 0 {
            let (current, total) = (super::format::size(self.current_bytes), super::format::size(self.total_bytes));
            text.push_str(&format!(" {current} / {total}"));
        } else if self.current_bytes > 0 {
            text.push_str(&format!(" {}", super::format::size(self.current_bytes)));
        }
        let seconds = self.last.duration_since(self.started).as_secs_f64();
        if seconds > 0.01 {
            text.push_str(&format!(" {seconds:.1}s"));
        }
        if self.done {
            text.push_str(" done");
        }
        text
    }
}

/// One step, from its start on.
#[derive(Debug)]
pub(crate) struct StepState {
    pub(crate) name: String,
    pub(crate) started: Instant,
    pub(crate) finished: Option<(Outcome, Instant)>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) miss: Option<String>,
    /// Where else its result was found.
    pub(crate) imported: Option<String>,
    /// The architecture for which its command is emulated.
    pub(crate) emulated: Option<String>,
    /// Complete lines with the seconds at which they ended; the oldest are dropped.
    pub(crate) lines: VecDeque<(f64, String)>,
    partial: Vec<u8>,
}

impl StepState {
    /// Time from start to end, or to `now` while it runs.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        let end = self.finished.as_ref().map_or(now, |(_, at)| *at);
        end.duration_since(self.started)
    }

    /// Whether it failed by itself.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.finished, Some((Outcome::Failed(_), _)))
    }

    /// Adds output; returns the lines that it completed.
    pub(crate) fn add_output(&mut self, data: &[u8], at: Instant) -> Vec<(f64, String)> {
        let seconds = at.duration_since(self.started).as_secs_f64();
        self.partial.extend_from_slice(data);
        let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.partial.split_off(end + 1);
        let complete = std::mem::replace(&mut self.partial, rest);
        let lines = complete[..end].split(|&byte| byte == b'\n');
        let lines: Vec<_> = lines.map(|line| (seconds, printable(line))).collect();
        self.keep(&lines);
        lines
    }

    /// The last line, if the output did not end with a newline.
    pub(crate) fn end_output(&mut self, at: Instant) -> Option<(f64, String)> {
        if self.partial.is_empty() {
            return None;
        }
        let seconds = at.duration_since(self.started).as_secs_f64();
        let line = (seconds, printable(&std::mem::take(&mut self.partial)));
        self.keep(std::slice::from_ref(&line));
        Some(line)
    }

    fn keep(&mut self, lines: &[(f64, String)]) {
        self.lines.extend(lines.iter().cloned());
        let surplus = self.lines.len().saturating_sub(KEPT_LINES);
        self.lines.drain(..surplus);
    }

    fn set_status(&mut self, new: Status) {
        match self.statuses.iter_mut().find(|status| status.id == new.id) {
            Some(status) => *status = Status { started: status.started, ..new },
            None => self.statuses.push(new),
        }
    }
}

/// A carriage return at the end belongs to the line end; everything else stays as it came.
fn printable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

/// All steps, by the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub(crate) by_id: BTreeMap<StepId, StepState>,
}

impl Steps {
    /// A step begins.
    pub(crate) fn start(&mut self, step: StepId, name: String, at: Instant) {
        let state = StepState {
            name,
            started: at,
            finished: None,
            statuses: Vec::new(),
            miss: None,
            imported: None,
            emulated: None,
            lines: VecDeque::new(),
            partial: Vec::new(),
        };
        self.by_id.insert(step, state);
    }

    /// The step, which exists because every event follows a start.
    pub(crate) fn get_mut(&mut self, step: StepId) -> Option<&mut StepState> {
        self.by_id.get_mut(&step)
    }

    /// A sub-task moved; returns it as it is now.
    pub(crate) fn set_status(&mut self, step: StepId, status: Status) -> Option<Status> {
        let state = self.by_id.get_mut(&step)?;
        let id = status.id.clone();
        state.set_status(status);
        state.statuses.iter().find(|status| status.id == id).cloned()
    }

    /// The blocks of `spec/cli.md` §3.4 for every failed step; `most` lines each.
    pub(crate) fn failure_replay(&self, most: usize) -> String {
        let mut text = String::new();
        for state in self.by_id.values().filter(|state| state.failed()) {
            if state.lines.is_empty() {
                continue;
            }
            text.push_str(&format!("------\n > {}:\n", state.name));
            let skipped = state.lines.len().saturating_sub(most);
            for (seconds, line) in state.lines.iter().skip(skipped) {
                text.push_str(&format!("{} {line}\n", super::format::log_seconds(*seconds)));
            }
            text.push_str("------\n");
        }
        text
    }
}
