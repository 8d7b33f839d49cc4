//! Accompanies a running command to its end: output, orders, signals.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use solver::Stream;
use tokio::sync::mpsc::Sender;

use super::control::{Control, Report};
use super::error::SandboxError;
use super::terminal::Terminal;
use crate::sys::spawn::{Child, Ended};

/// Our ends of a command's input and output.
pub(super) enum Io {
    /// Output and error as pipes, non-blocking.
    Pipes([(Stream, Option<OwnedFd>); 2]),
    /// Nothing: the command has our own.
    Inherited,
    /// A terminal.
    Terminal(Terminal),
}

/// Largest piece of output that is passed on at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Waits for the end of `child`, passing output on.
///
/// # Errors
/// [`SandboxError::Cancelled`] when that was ordered; the child has ended then, too.
pub(super) fn supervise(
    child: &Child,
    mut io: Io,
    control: &Control,
    reports: &Sender<Report>,
) -> Result<Ended, SandboxError> {
    loop {
        let ready = wait(child, &io, control)?;
        if ready.order {
            control.clear();
            obey(child, &io, control);
        }
        io.transfer(&ready, reports);
        if ready.ended {
            // Whatever the command wrote before its end is there now.
            io.drain(reports);
            let ended = child.wait().map_err(SandboxError::setup("wait for the command"))?;
            return if control.is_cancelled() { Err(SandboxError::Cancelled) } else { Ok(ended) };
        }
    }
}

#[derive(Default)]
struct Ready {
    ended: bool,
    order: bool,
    /// Standard output and error, or our terminal's input and the container's side.
    streams: [bool; 2],
}

fn wait(child: &Child, io: &Io, control: &Control) -> Result<Ready, SandboxError> {
    let mut polls = vec![
        PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN),
        PollFd::from_borrowed_fd(control.event(), PollFlags::IN),
    ];
    let mut places = [None; 2];
    for (index, (fd, flags)) in io.interests().into_iter().enumerate() {
        if let Some(fd) = fd {
            places[index] = Some(polls.len());
            polls.push(PollFd::from_borrowed_fd(fd, flags));
        }
    }
    match rustix::event::poll(&mut polls, None) {
        Err(Errno::INTR) => return Ok(Ready::default()),
        result => result.map_err(SandboxError::setup("wait for the command"))?,
    };
    let happened = |index: usize| polls.get(index).is_some_and(|poll| !poll.revents().is_empty());
    let streams = places.map(|place| place.is_some_and(happened));
    Ok(Ready { ended: happened(0), order: happened(1), streams })
}

/// Signals to a process that has just ended go nowhere, which is fine.
fn obey(child: &Child, io: &Io, control: &Control) {
    if control.is_cancelled() {
        // The first process takes its whole pid namespace with it.
        let _ = rustix::process::pidfd_send_signal(child.pidfd(), Signal::KILL);
    }
    for number in control.take_signals() {
        if let Some(signal) = Signal::from_named_raw(number) {
            let _ = rustix::process::pidfd_send_signal(child.pidfd(), signal);
        }
    }
    if control.take_resized()
        && let Io::Terminal(terminal) = io
    {
        terminal.copy_size();
    }
}

impl Io {
    fn interests(&self) -> [(Option<BorrowedFd<'_>>, PollFlags); 2] {
        match self {
            Self::Pipes(pipes) => pipes.each_ref().map(|(_, fd)| (fd.as_ref().map(|fd| fd.as_fd()), PollFlags::IN)),
            Self::Inherited => [(None, PollFlags::IN), (None, PollFlags::IN)],
            Self::Terminal(terminal) => {
                let (input, output, has_pending) = terminal.interests();
                let flags = if has_pending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                [(input, PollFlags::IN), (output, flags)]
            }
        }
    }

    fn transfer(&mut self, ready: &Ready, reports: &Sender<Report>) {
        match self {
            Self::Pipes(pipes) => {
                for ((stream, fd), _) in pipes.iter_mut().zip(ready.streams).filter(|(_, ready)| *ready) {
                    read_pipe(*stream, fd, reports);
                }
            }
            Self::Inherited => {}
            Self::Terminal(terminal) => {
                if ready.streams[0] {
                    terminal.read_input();
                }
                if ready.streams[1] {
                    terminal.write_pending();
                    terminal.show_output();
                }
            }
        }
    }

    fn drain(&mut self, reports: &Sender<Report>) {
        match self {
            Self::Pipes(pipes) => {
                for (stream, fd) in pipes {
                    while read_pipe(*stream, fd, reports) {}
                }
            }
            Self::Inherited => {}
            Self::Terminal(terminal) => while terminal.show_output() {},
        }
    }
}

/// Passes on what is in a pipe; whether there was anything. The pipe is closed at its end.
fn read_pipe(stream: Stream, fd: &mut Option<OwnedFd>, reports: &Sender<Report>) -> bool {
    let Some(pipe) = fd else { return false };
    let mut buffer = Vec::with_capacity(CHUNK_BYTES);
    match rustix::io::read(pipe.as_fd(), rustix::buffer::spare_capacity(&mut buffer)) {
        Err(Errno::AGAIN | Errno::INTR) => false,
        Ok(0) | Err(_) => {
            *fd = None;
            false
        }
        Ok(_) => {
            // The other side is gone when the step was dropped; then it is being cancelled as well.
            drop(reports.blocking_send(Report::Log(stream, buffer)));
            true
        }
    }
}
