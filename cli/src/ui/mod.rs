//! The only printer: events in, text on standard error out. Data (image IDs, JSON) goes to standard output elsewhere.

pub(crate) mod format;
mod model;
mod plain;
mod rawjson;
mod tty;

use std::io::{BufWriter, IsTerminal, Stderr, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use solver::{Event, Progress};

/// Events that may wait for the renderer. A build that logs faster than the terminal takes it is slowed down to its
/// pace instead of filling memory.
const WAITING_EVENTS: usize = 1024;
/// How often a picture moves when nothing happens.
const TICK: Duration = Duration::from_millis(150);
/// How long events gather before they are shown together: to wake the renderer for each costs a build that finds
/// everything more than to look for what it finds.
const GATHER: Duration = Duration::from_millis(5);
/// After more events than this there is no pause: whoever sends so many should not wait for room.
const BURST: usize = 64;
/// Log lines of a failed step that are repeated at the end.
const REPLAY_PLAIN: usize = 10;
const REPLAY_TTY: usize = 200;

/// How progress is shown (`--progress`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A live picture.
    Tty,
    /// Append-only text.
    Plain,
    /// One JSON object an event.
    RawJson,
    /// Nothing.
    Silent,
}

impl Mode {
    /// `--progress` and `BUILDKIT_PROGRESS`, with what the terminal is.
    ///
    /// # Errors
    /// An unknown name, or `tty` without a terminal.
    pub(crate) fn choose(name: &str) -> Result<Self, String> {
        let terminal = std::io::stderr().is_terminal();
        match name {
            "auto" | "" if terminal => Ok(Self::Tty),
            "auto" | "" | "plain" => Ok(Self::Plain),
            "tty" if terminal => Ok(Self::Tty),
            "tty" => Err("failed to get console: `--progress=tty` needs a terminal on standard error".to_owned()),
            "rawjson" => Ok(Self::RawJson),
            "quiet" | "none" => Ok(Self::Silent),
            other => Err(format!("invalid progress mode `{other}`: expected auto, none, plain, quiet, rawjson or tty")),
        }
    }
}

/// The renderer at work on its own thread.
pub(crate) struct Ui {
    progress: Progress,
    /// None where nothing is shown.
    thread: Option<JoinHandle<()>>,
}

impl Ui {
    /// Starts it.
    pub(crate) fn start(mode: Mode, now: (Instant, std::time::SystemTime), colours: bool) -> Self {
        if mode == Mode::Silent {
            return Self { progress: Progress::silent(), thread: None };
        }
        let (sender, receiver) = sync_channel(WAITING_EVENTS);
        let thread = std::thread::spawn(move || match mode {
            Mode::Silent => {}
            Mode::RawJson => {
                let mut json = rawjson::RawJson::new(std::io::stderr(), now);
                receiver.iter().take_while(|event| !matches!(event, Event::End)).for_each(|event| json.handle(event));
            }
            Mode::Plain => run_plain(&receiver),
            Mode::Tty => run_tty(&receiver, colours),
        });
        Self { progress: Progress::new(sender), thread: Some(thread) }
    }

    /// Where events go.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Draws the last picture and the blocks of failed steps, and ends.
    pub(crate) fn close(self) {
        let Some(thread) = self.thread else { return };
        self.progress.end();
        thread.thread().unpark();
        // A panic of the renderer was reported by the panic hook; the build's own result counts.
        drop(thread.join());
    }
}

/// What came of waiting for events.
enum Round {
    /// So many.
    Events(usize),
    /// None for a tick.
    Nothing,
    /// The last one.
    End,
}

/// Waits for an event, and hands over all that have come.
fn take_events(events: &Receiver<Event>, mut handle: impl FnMut(Event)) -> Round {
    let mut next = match events.recv_timeout(TICK) {
        Ok(event) => Some(event),
        Err(RecvTimeoutError::Timeout) => return Round::Nothing,
        Err(RecvTimeoutError::Disconnected) => return Round::End,
    };
    let mut n_events = 0;
    while let Some(event) = next {
        let is_end = matches!(event, Event::End);
        handle(event);
        if is_end {
            return Round::End;
        }
        n_events += 1;
        next = events.try_recv().ok();
    }
    Round::Events(n_events)
}

/// Lets events gather; ends early with [`Ui::close`].
fn gather(n_events: usize) {
    if n_events <= BURST {
        std::thread::park_timeout(GATHER);
    }
}

fn run_plain(events: &Receiver<Event>) {
    let mut plain = plain::Plain::new(BufWriter::new(std::io::stderr()));
    loop {
        match take_events(events, |event| plain.handle(event)) {
            Round::Events(n_events) => {
                plain.flush();
                gather(n_events);
            }
            Round::Nothing => {
                plain.tick(Instant::now());
                plain.flush();
            }
            Round::End => break,
        }
    }
    replay(plain.steps().failure_replay(REPLAY_PLAIN));
}

fn run_tty(events: &Receiver<Event>, colours: bool) {
    let mut tty = tty::Tty::new(BufWriter::new(std::io::stderr()), colours, terminal_size);
    loop {
        let round = take_events(events, |event| tty.handle(event));
        if matches!(round, Round::End) {
            break;
        }
        tty.tick(Instant::now());
        if let Round::Events(n_events) = round {
            gather(n_events);
        }
    }
    replay(tty.steps().failure_replay(REPLAY_TTY));
}

fn replay(text: String) {
    stderr(|out| out.write_all(text.as_bytes()));
}

/// Writes a report to standard error; a closed one must not change the outcome.
pub(crate) fn stderr(write: impl FnOnce(&mut Stderr) -> std::io::Result<()>) {
    drop(write(&mut std::io::stderr()));
}

/// Writes data to standard output. A reader that has gone away is a quiet end.
pub(crate) fn stdout(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
    (size.ws_col > 0).then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
}
