//! How a running command is told things, and what it tells.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::EventfdFlags;
use solver::Stream;

use super::error::SandboxError;
use super::spec::Exit;

/// What the thread of a command reports.
pub(super) enum Report {
    /// Output.
    Log(Stream, Vec<u8>),
    /// The end; nothing follows.
    Done(Result<Exit, SandboxError>),
}

/// Orders for the thread of a command. Giving one never blocks.
#[derive(Debug)]
pub(super) struct Control {
    event: OwnedFd,
    cancelled: AtomicBool,
    resized: AtomicBool,
    /// One bit a signal.
    signals: AtomicU64,
}

impl Control {
    pub(super) fn new() -> Result<Self, SandboxError> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(SandboxError::setup("make an event descriptor"))?;
        Ok(Self {
            event,
            cancelled: AtomicBool::new(false),
            resized: AtomicBool::new(false),
            signals: AtomicU64::new(0),
        })
    }

    /// Kill the command and come to an end.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The window has another size.
    pub(super) fn resize(&self) {
        self.resized.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Pass a signal (1 to 63) on.
    pub(super) fn signal(&self, number: i32) {
        if let Ok(shift @ 1..64) = u32::try_from(number) {
            self.signals.fetch_or(1 << shift, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Readable when there is an order.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes [`Control::event`] unreadable until the next order.
    pub(super) fn clear(&self) {
        // An empty counter is as good as a read one.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn take_resized(&self) -> bool {
        self.resized.swap(false, Ordering::SeqCst)
    }

    pub(super) fn take_signals(&self) -> impl Iterator<Item = i32> + use<> {
        let set = self.signals.swap(0, Ordering::SeqCst);
        (1..64).filter(move |shift| set & (1 << shift) != 0)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_once() {
        let control = Control::new().unwrap();
        control.signal(15);
        control.signal(1);
        control.signal(99);
        control.resize();
        assert_eq!(control.take_signals().collect::<Vec<_>>(), [1, 15]);
        assert_eq!(control.take_signals().count(), 0);
        assert!(control.take_resized() && !control.take_resized());
        assert!(!control.is_cancelled());
        control.cancel();
        assert!(control.is_cancelled());
    }
}
