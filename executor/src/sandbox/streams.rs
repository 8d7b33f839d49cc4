//! Standard input, output and error of a command, from both ends.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use solver::Stream;

use super::error::SandboxError;
use super::spec::Stdio;
use super::supervise::Io;
use super::terminal::{Pair, Terminal};
use crate::sys::spawn::Session;

/// Standard input, output and error, from both ends.
pub(super) struct Streams {
    /// The command's; empty when it has ours.
    theirs: Vec<OwnedFd>,
    ours: Io,
    pub(super) session: Session,
}

impl Streams {
    /// For a command of `uid`. The thread's root is the container's.
    pub(super) fn open(stdio: Stdio, uid: u32) -> Result<Self, SandboxError> {
        match stdio {
            Stdio::Inherit => Ok(Self { theirs: Vec::new(), ours: Io::Inherited, session: Session::Shared }),
            Stdio::Terminal => Ok(Self::of_terminal(Terminal::open(uid)?)),
            Stdio::Piped => {
                let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(SandboxError::call("open", "/dev/null"))?;
                let (out, out_writer) = pipe()?;
                let (error, error_writer) = pipe()?;
                let ours = Io::Pipes([(Stream::Stdout, Some(out)), (Stream::Stderr, Some(error))]);
                Ok(Self { theirs: vec![null, out_writer, error_writer], ours, session: Session::Own })
            }
        }
    }

    /// For an OCI runtime, which makes a terminal itself. The thread's root is the host's.
    pub(super) fn open_for_runtime(stdio: Stdio, uid: u32) -> Result<Self, SandboxError> {
        match stdio {
            Stdio::Terminal => Ok(Self::of_terminal(Terminal::open_outside()?)),
            Stdio::Inherit | Stdio::Piped => Self::open(stdio, uid),
        }
    }

    fn of_terminal(pair: Pair) -> Self {
        Self { theirs: vec![pair.peer], ours: Io::Terminal(pair.terminal), session: Session::OwnWithTerminal }
    }

    /// The command's standard input, output and error.
    pub(super) fn for_command(&self) -> [BorrowedFd<'_>; 3] {
        match &self.theirs[..] {
            [input, output, error] => [input.as_fd(), output.as_fd(), error.as_fd()],
            [terminal] => [terminal.as_fd(), terminal.as_fd(), terminal.as_fd()],
            _ => [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()],
        }
    }

    /// Our ends; the command's are closed here, so that we see the end of its output.
    pub(super) fn into_ours(self) -> Io {
        self.ours
    }
}

/// A pipe whose reading end does not block.
fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let make = || -> Result<_, Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        Ok((reader, writer))
    };
    make().map_err(SandboxError::setup("make a pipe"))
}
