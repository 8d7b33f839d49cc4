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
    thread: JoinHandle<()>,
}

impl Ui {
    /// Starts it.
    pub(crate) fn start(mode: Mode, now: (Instant, std::time::SystemTime), colours: bool) -> Self {
        let (sender, receiver) = sync_channel(WAITING_EVENTS);
        let thread = std::thread::spawn(move || match mode {
            Mode::Silent => receiver.iter().take_while(|event| !matches!(event, Event::End)).for_each(drop),
            Mode::RawJson => {
                let mut json = rawjson::RawJson::new(std::io::stderr(), now);
                receiver.iter().take_while(|event| !matches!(event, Event::End)).for_each(|event| json.handle(event));
            }
            Mode::Plain => run_plain(&receiver),
            Mode::Tty => run_tty(&receiver, colours),
        });
        Self { progress: Progress::new(sender), thread }
    }

    /// Where events go.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Draws the last picture and the blocks of failed steps, and ends.
    pub(crate) fn close(self) {
        self.progress.end();
        // A panic of the renderer was reported by the panic hook; the build's own result counts.
        drop(self.thread.join());
    }
}

fn run_plain(events: &Receiver<Event>) {
    let mut plain = plain::Plain::new(BufWriter::new(std::io::stderr()));
    loop {
        match events.recv_timeout(TICK) {
            Ok(event) => {
                let end = matches!(event, Event::End);
                plain.handle(event);
                if end {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => plain.tick(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        // Lines are written together while events pour in, and at once when they pause.
        while let Ok(event) = events.try_recv() {
            let end = matches!(event, Event::End);
            plain.handle(event);
            if end {
                return replay(plain.steps().failure_replay(REPLAY_PLAIN));
            }
        }
        plain.flush();
    }
    replay(plain.steps().failure_replay(REPLAY_PLAIN));
}

fn run_tty(events: &Receiver<Event>, colours: bool) {
    let mut tty = tty::Tty::new(BufWriter::new(std::io::stderr()), colours, terminal_size);
    loop {
        match events.recv_timeout(TICK) {
            Ok(event) => {
                let end = matches!(event, Event::End);
                tty.handle(event);
                if end {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        tty.tick(Instant::now());
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
