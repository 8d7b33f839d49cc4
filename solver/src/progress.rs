//! Progress as typed events. Libraries send; only the command line renders.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// One line of progress, by number. Vertices and side jobs (`exporting to image`) alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// Which output of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was performed.
    Done,
    /// Its result was found.
    Cached,
    /// It failed; the message.
    Failed(String),
    /// Something else failed or the user stopped the build.
    Canceled,
}

/// Everything that can be shown.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step is known and begins.
    Started {
        /// Which.
        step: StepId,
        /// Its name.
        name: String,
        /// When.
        at: Instant,
    },
    /// Output of a command, as it came (not split at lines).
    Log {
        /// Of which step.
        step: StepId,
        /// Which output.
        stream: Stream,
        /// The bytes.
        data: Vec<u8>,
        /// When.
        at: Instant,
    },
    /// A sub-task: bytes of a download, `extracting …`, `exporting layers`.
    Status {
        /// Of which step.
        step: StepId,
        /// What: a digest or a phrase.
        id: String,
        /// Bytes so far.
        current_bytes: u64,
        /// Bytes in all; 0 is unknown.
        total_bytes: u64,
        /// Whether it has ended.
        done: bool,
        /// When.
        at: Instant,
    },
    /// Why a step was not found in the cache, in half a line: `ARG VERSION 1 → 2`.
    Miss {
        /// Which step.
        step: StepId,
        /// The reason.
        reason: String,
    },
    /// The step's result was found elsewhere.
    Imported {
        /// Which step.
        step: StepId,
        /// Where: `registry example.com/team/cache`.
        from: String,
    },
    /// The step's command is for another machine and runs in an emulator.
    Emulated {
        /// Which step.
        step: StepId,
        /// The machine's architecture: `arm64`.
        architecture: String,
    },
    /// Something the user should know, once.
    Warning {
        /// Of which step, if any.
        step: Option<StepId>,
        /// One sentence.
        message: String,
    },
    /// No more events follow: the renderer draws its last picture.
    End,
    /// A step ended.
    Finished {
        /// Which.
        step: StepId,
        /// How.
        outcome: Outcome,
        /// When.
        at: Instant,
    },
}

/// The sending side. Cheap to clone. Sending blocks when the renderer is far behind (bounded channel), and does
/// nothing once the renderer is gone.
#[derive(Clone, Debug)]
pub struct Progress {
    events: SyncSender<Event>,
    next: Arc<AtomicU64>,
}

impl Progress {
    /// Events go to `events`.
    pub fn new(events: SyncSender<Event>) -> Self {
        Self { events, next: Arc::new(AtomicU64::new(1)) }
    }

    /// Nobody looks.
    pub fn silent() -> Self {
        Self::new(std::sync::mpsc::sync_channel(0).0)
    }

    /// Begins a step.
    pub fn start(&self, name: impl Into<String>) -> Step {
        let id = StepId(self.next.fetch_add(1, Ordering::Relaxed));
        self.send(Event::Started { step: id, name: name.into(), at: Instant::now() });
        Step { id, progress: self.clone(), untold: None }
    }

    /// Begins a step that has been shown before: it is shown again only if more comes of it than that its result is found.
    pub fn start_again(&self, name: impl Into<String>) -> Step {
        let id = StepId(self.next.fetch_add(1, Ordering::Relaxed));
        let untold = (name.into(), Instant::now());
        Step { id, progress: self.clone(), untold: Some(Arc::new(Mutex::new(Some(untold)))) }
    }

    /// Says that no more events follow.
    pub fn end(&self) {
        self.send(Event::End);
    }

    /// Says something that belongs to no step.
    pub fn warn(&self, message: impl Into<String>) {
        self.send(Event::Warning { step: None, message: message.into() });
    }

    fn send(&self, event: Event) {
        // The receiver is dropped only when the program ends; progress is then nobody's business.
        drop(self.events.send(event));
    }
}

/// A step that has begun. Cheap to clone; whoever ends it calls [`Step::finish`] once.
#[derive(Clone, Debug)]
pub struct Step {
    id: StepId,
    progress: Progress,
    /// Name and begin of a step that nobody has been told of yet.
    untold: Option<Arc<Mutex<Option<Untold>>>>,
}

/// Name and begin of a step that has not been shown.
type Untold = (String, Instant);

impl Step {
    /// Its number.
    pub fn id(&self) -> StepId {
        self.id
    }

    /// Tells of the step, if nobody has been told.
    fn show(&self) {
        let Some(untold) = &self.untold else { return };
        let untold = untold.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((name, at)) = untold {
            self.progress.send(Event::Started { step: self.id, name, at });
        }
    }

    fn is_untold(&self) -> bool {
        self.untold.as_ref().is_some_and(|it| it.lock().unwrap_or_else(PoisonError::into_inner).is_some())
    }

    /// Passes output on.
    pub fn log(&self, stream: Stream, data: Vec<u8>) {
        self.show();
        self.progress.send(Event::Log { step: self.id, stream, data, at: Instant::now() });
    }

    /// Reports a sub-task.
    pub fn status(&self, id: impl Into<String>, current_bytes: u64, total_bytes: u64, done: bool) {
        self.show();
        let at = Instant::now();
        self.progress.send(Event::Status { step: self.id, id: id.into(), current_bytes, total_bytes, done, at });
    }

    /// Says why it was not found in the cache.
    pub fn miss(&self, reason: impl Into<String>) {
        self.show();
        self.progress.send(Event::Miss { step: self.id, reason: reason.into() });
    }

    /// Says where else its result was found.
    pub fn imported(&self, from: impl Into<String>) {
        if self.is_untold() {
            return;
        }
        self.progress.send(Event::Imported { step: self.id, from: from.into() });
    }

    /// Says that its command is for another machine, and emulated.
    pub fn emulated(&self, architecture: impl Into<String>) {
        self.show();
        self.progress.send(Event::Emulated { step: self.id, architecture: architecture.into() });
    }

    /// Warns.
    pub fn warn(&self, message: impl Into<String>) {
        self.show();
        self.progress.send(Event::Warning { step: Some(self.id), message: message.into() });
    }

    /// Ends it.
    pub fn finish(&self, outcome: Outcome) {
        if matches!(outcome, Outcome::Cached | Outcome::Canceled) && self.is_untold() {
            return;
        }
        self.show();
        self.progress.send(Event::Finished { step: self.id, outcome, at: Instant::now() });
    }
}
