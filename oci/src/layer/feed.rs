//! What feeds a sink: the caller as long as there is one item only, a thread of its own from the second on.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::stream::{BlobSink, StreamError};
use crate::digest::Digest;

/// Items that may wait for the sink.
const QUEUE_ITEMS: usize = 2;

/// Something that a sink takes.
pub(super) trait Item: Send + 'static {
    fn write_to(&self, sink: &mut dyn BlobSink) -> io::Result<()>;
}

/// A sink and its thread.
pub(super) struct Feed<T> {
    /// Which blob it is, for errors.
    blob: &'static str,
    state: State<T>,
}

enum State<T> {
    Inline(Box<dyn BlobSink>),
    Threaded(SinkThread<T>),
    /// Between states, and after a failure.
    Gone,
}

struct SinkThread<T> {
    /// `None` once the end has been announced.
    queue: Option<SyncSender<T>>,
    thread: Option<JoinHandle<io::Result<Box<dyn BlobSink>>>>,
}

impl<T: Item> Feed<T> {
    pub(super) fn new(blob: &'static str, sink: Box<dyn BlobSink>) -> Self {
        Self { blob, state: State::Inline(sink) }
    }

    /// Whether everything so far was written by the caller.
    pub(super) fn is_inline(&self) -> bool {
        matches!(self.state, State::Inline(_))
    }

    /// Writes the only item.
    pub(super) fn write_inline(&mut self, item: &T) -> Result<(), StreamError> {
        match &mut self.state {
            State::Inline(sink) => item.write_to(sink.as_mut()).map_err(|source| self.error(source)),
            State::Threaded(_) | State::Gone => Ok(()),
        }
    }

    /// Leaves an item to the thread; waits while too many are waiting.
    pub(super) fn send(&mut self, item: T) -> Result<(), StreamError> {
        if self.is_inline()
            && let State::Inline(sink) = std::mem::replace(&mut self.state, State::Gone)
        {
            let thread = SinkThread::start(sink).map_err(|source| self.error(source))?;
            self.state = State::Threaded(thread);
        }
        match &mut self.state {
            State::Threaded(thread) => thread.send(item).map_err(|source| self.error(source)),
            State::Inline(_) | State::Gone => Ok(()),
        }
    }

    /// Ends the blob.
    pub(super) fn finish(&mut self) -> Result<Digest, StreamError> {
        let sink = match std::mem::replace(&mut self.state, State::Gone) {
            State::Inline(sink) => Ok(sink),
            State::Threaded(mut thread) => thread.join(),
            State::Gone => Err(gone()),
        };
        sink.and_then(BlobSink::finish).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> StreamError {
        StreamError::Sink { blob: self.blob, source }
    }
}

impl<T: Item> SinkThread<T> {
    fn start(sink: Box<dyn BlobSink>) -> io::Result<Self> {
        let (queue, items) = sync_channel(QUEUE_ITEMS);
        let thread = std::thread::Builder::new().name("layer-sink".to_owned()).spawn(move || write(sink, &items))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    fn send(&mut self, item: T) -> io::Result<()> {
        if self.queue.as_ref().is_some_and(|queue| queue.send(item).is_ok()) {
            return Ok(());
        }
        // The thread has left: its result says why.
        self.join().map(drop)
    }

    fn join(&mut self) -> io::Result<Box<dyn BlobSink>> {
        self.queue = None;
        match self.thread.take().ok_or_else(gone)?.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl<T> Drop for SinkThread<T> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // An abandoned stream: whatever the thread has to say, nobody asks any more.
            let _ = thread.join();
        }
    }
}

fn write<T: Item>(mut sink: Box<dyn BlobSink>, items: &Receiver<T>) -> io::Result<Box<dyn BlobSink>> {
    for item in items {
        item.write_to(sink.as_mut())?;
    }
    Ok(sink)
}

fn gone() -> io::Error {
    io::Error::other("the stream has failed before")
}
