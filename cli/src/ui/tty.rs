//! The live display (`spec/cli.md` §3.3): a picture redrawn in place, at most ten times a second.

use std::io::Write;
use std::time::{Duration, Instant};

use solver::{Event, Outcome};
use unicode_width::UnicodeWidthChar;

use super::model::{Status, StepState, Steps};

/// The shortest time between two pictures.
const MIN_PERIOD: Duration = Duration::from_millis(100);
/// The last lines of a running step's output that are shown.
const LOG_LINES: usize = 6;
/// A terminal that does not tell its size.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// Colours, as `spec/cli.md` §3.3 gives them to the states.
struct Palette {
    done: &'static str,
    warning: &'static str,
    error: &'static str,
    faint: &'static str,
    reset: &'static str,
}

const COLOURED: Palette =
    Palette { done: "\x1b[34m", warning: "\x1b[33m", error: "\x1b[31m", faint: "\x1b[2m", reset: "\x1b[0m" };
const PLAIN: Palette = Palette { done: "", warning: "", error: "", faint: "", reset: "" };

/// The renderer.
pub(crate) struct Tty<W> {
    out: W,
    steps: Steps,
    warnings: Vec<String>,
    started: Instant,
    drawn_at: Option<Instant>,
    dirty: bool,
    /// Lines of the last picture, which the next one overwrites.
    drawn_lines: usize,
    palette: &'static Palette,
    size: fn() -> Option<(usize, usize)>,
}

impl<W: Write> Tty<W> {
    /// Draws to `out`; `size` tells columns and rows at any moment.
    pub(crate) fn new(out: W, colours: bool, size: fn() -> Option<(usize, usize)>) -> Self {
        Self {
            out,
            steps: Steps::default(),
            warnings: Vec::new(),
            started: Instant::now(),
            drawn_at: None,
            dirty: false,
            drawn_lines: 0,
            palette: if colours { &COLOURED } else { &PLAIN },
            size,
        }
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, event: Event) {
        self.dirty = true;
        match event {
            Event::Started { step, name, at } => self.steps.start(step, name, at),
            Event::Log { step, data, at, .. } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.add_output(&data, at);
                }
            }
            Event::Status { step, id, current_bytes, total_bytes, done, at } => {
                let status = Status { id, current_bytes, total_bytes, done, started: at, last: at };
                self.steps.set_status(step, status);
            }
            Event::Miss { step, reason } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.miss = Some(reason);
                }
            }
            Event::Imported { step, from } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.imported = Some(from);
                }
            }
            Event::Emulated { step, architecture } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.emulated = Some(architecture);
                }
            }
            Event::Warning { message, .. } => self.warnings.push(message),
            Event::Finished { step, outcome, at } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.end_output(at);
                    state.finished = Some((outcome, at));
                }
            }
            Event::End => self.draw(Instant::now(), true),
        }
    }

    /// Draws if something changed, or time passed, since the last picture.
    pub(crate) fn tick(&mut self, now: Instant) {
        let due = self.drawn_at.is_none_or(|at| now.duration_since(at) >= MIN_PERIOD);
        if due && (self.dirty || self.steps.by_id.values().any(|state| state.finished.is_none())) {
            self.draw(now, false);
        }
    }

    /// The steps, for the failure blocks.
    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    fn draw(&mut self, now: Instant, last: bool) {
        let (columns, rows) = (self.size)().unwrap_or(DEFAULT_SIZE);
        let mut lines = self.picture(now, columns, rows, last);
        if !last && lines.len() + 1 > rows {
            // The oldest finished steps scroll out; the header stays.
            let surplus = lines.len() + 1 - rows;
            lines.drain(1..=surplus.min(lines.len() - 1));
        }
        let mut frame = String::from("\x1b[?25l");
        if self.drawn_lines > 0 {
            frame.push_str(&format!("\x1b[{}A\r", self.drawn_lines));
        }
        for line in &lines {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("\x1b[J\x1b[?25h");
        // A closed terminal must not stop a build.
        drop(self.out.write_all(frame.as_bytes()));
        drop(self.out.flush());
        self.drawn_lines = lines.len();
        self.drawn_at = Some(now);
        self.dirty = false;
    }

    fn picture(&self, now: Instant, columns: usize, rows: usize, last: bool) -> Vec<String> {
        let total = self.steps.by_id.len();
        let done = self.steps.by_id.values().filter(|state| state.finished.is_some()).count();
        let seconds = now.duration_since(self.started).as_secs_f64();
        let finished = if last && done == total { " FINISHED" } else { "" };
        let mut lines = vec![format!("[+] Building {seconds:.1}s ({done}/{total}){finished}")];
        for state in self.steps.by_id.values() {
            lines.push(self.step_line(state, now, columns));
            let running = state.finished.is_none();
            for status in state.statuses.iter().filter(|_| running || last) {
                lines.push(clip(&format!(" => => {}", status_line(status)), columns));
            }
            let unfinished_log = running && !last && rows > 2 * LOG_LINES;
            for (_, line) in state.lines.iter().rev().take(LOG_LINES).rev().filter(|_| unfinished_log) {
                let text = clip(&format!(" => => # {}", visible(line)), columns);
                lines.push(format!("{}{text}{}", self.palette.faint, self.palette.reset));
            }
        }
        for warning in &self.warnings {
            let text = clip(&format!("WARN: {warning}"), columns);
            lines.push(format!("{}{text}{}", self.palette.warning, self.palette.reset));
        }
        lines
    }

    fn step_line(&self, state: &StepState, now: Instant, columns: usize) -> String {
        let (prefix, colour) = match &state.finished {
            None => ("", ""),
            Some((Outcome::Done, _)) => ("", self.palette.done),
            Some((Outcome::Cached, _)) => ("CACHED ", self.palette.done),
            Some((Outcome::Failed(_), _)) => ("ERROR ", self.palette.error),
            Some((Outcome::Canceled, _)) => ("CANCELED ", self.palette.warning),
        };
        let seconds = format!("{:3.1}s", state.elapsed(now).as_secs_f64());
        let room = columns.saturating_sub(seconds.len() + 1);
        let from = || state.imported.as_ref().map(|from| format!("  (from {from})"));
        let miss = state.miss.as_ref().map(|reason| format!("  ({reason})")).or_else(from).unwrap_or_default();
        let emulated = state.emulated.as_ref().map(|name| format!("EMULATED {name} ")).unwrap_or_default();
        let left = clip(&format!(" => {prefix}{emulated}{}{miss}", visible(&state.name)), room);
        let padding = " ".repeat((room + 1).saturating_sub(width(&left)));
        let reset = if colour.is_empty() { "" } else { self.palette.reset };
        format!("{colour}{left}{padding}{seconds}{reset}")
    }
}

/// A sub-task; one with a known total has a bar.
fn status_line(status: &Status) -> String {
    const BAR: usize = 20;
    let text = status.text();
    if status.total_bytes == 0 || status.done {
        return text;
    }
    let share = (status.current_bytes as f64 / status.total_bytes as f64).clamp(0.0, 1.0);
    let filled = (share * BAR as f64) as usize;
    format!("[{}{}] {text}", "=".repeat(filled), " ".repeat(BAR - filled))
}

/// Output of programs with its control characters made harmless; only what follows the last carriage return is seen,
/// as on a real terminal.
fn visible(text: &str) -> String {
    let text = text.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(character) = chars.next() {
        match character {
            '\t' => out.push_str("    "),
            '\x1b' => skip_escape(&mut chars),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Skips an ANSI control sequence whose escape character has been read.
fn skip_escape(chars: &mut std::str::Chars<'_>) {
    if chars.clone().next() != Some('[') {
        chars.next();
        return;
    }
    chars.next();
    chars.find(|c| ('\x40'..='\x7e').contains(c));
}

fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

fn clip(text: &str, columns: usize) -> String {
    let mut used = 0;
    text.chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= columns
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use solver::{StepId, Stream};

    #[test]
    fn a_picture_shows_running_cached_and_failed_steps() {
        let mut tty = Tty::new(Vec::new(), false, || Some((60, 24)));
        let at = tty.started;
        let names = ["[internal] load build definition", "[1/3] FROM busybox", "[2/3] RUN make"];
        for (id, name) in names.iter().enumerate() {
            tty.handle(Event::Started { step: StepId(id as u64), name: (*name).to_owned(), at });
        }
        tty.handle(Event::Finished { step: StepId(0), outcome: Outcome::Done, at });
        tty.handle(Event::Finished { step: StepId(1), outcome: Outcome::Cached, at });
        let data = b"\x1b[1mcc\x1b[0m -c a.c\nold\rnew\n".to_vec();
        tty.handle(Event::Log { step: StepId(2), stream: Stream::Stderr, data, at });
        let picture = tty.picture(at + Duration::from_millis(3940), 60, 24, false);
        assert_eq!(
            picture,
            [
                "[+] Building 3.9s (2/3)",
                " => [internal] load build definition                    0.0s",
                " => CACHED [1/3] FROM busybox                           0.0s",
                " => [2/3] RUN make                                      3.9s",
                " => => # cc -c a.c",
                " => => # new",
            ]
        );
    }
}
