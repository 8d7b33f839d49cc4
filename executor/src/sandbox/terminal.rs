//! A terminal of the container's own, connected to ours.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

use super::error::SandboxError;
use crate::owners;

/// The side of a pseudo terminal that we hold, and what is on its way to it.
pub(super) struct Terminal {
    master: OwnedFd,
    /// Typed but not yet accepted by the container's side.
    pending: Vec<u8>,
    input_open: bool,
    output_open: bool,
    _raw: Option<RawMode>,
}

/// Both sides of a new pseudo terminal.
pub(super) struct Pair {
    /// For us.
    pub(super) terminal: Terminal,
    /// For the command: standard input, output and error.
    pub(super) peer: OwnedFd,
}

/// Typing end-of-file.
const END_OF_TRANSMISSION: u8 = 4;

impl Terminal {
    /// Makes a terminal in the `/dev/pts` of the calling thread's root, owned by `uid`, and shows it as `/dev/console`.
    pub(super) fn open(uid: u32) -> Result<Pair, SandboxError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let make = || -> Result<Pair, Errno> {
            let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
            rustix::pty::unlockpt(&master)?;
            let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let peer = rustix::pty::ioctl_tiocgptpeer(&master, peer_flags)?;
            if !owners::are_noted() {
                rustix::fs::fchown(&peer, Some(Uid::from_raw(uid)), None::<Gid>)?;
            }
            show_console(&master)?;
            let terminal =
                Self { master, pending: Vec::new(), input_open: true, output_open: true, _raw: RawMode::enter() };
            Ok(Pair { terminal, peer })
        };
        let pair = make().map_err(SandboxError::setup("open a terminal"))?;
        pair.terminal.copy_size();
        Ok(pair)
    }

    /// Descriptors to wait for: (our input if it is wanted, the container's side, whether that is to be written).
    pub(super) fn interests(&self) -> (Option<BorrowedFd<'static>>, Option<BorrowedFd<'_>>, bool) {
        let input = (self.input_open && self.pending.is_empty()).then(rustix::stdio::stdin);
        (input, self.output_open.then(|| self.master.as_fd()), !self.pending.is_empty())
    }

    /// Takes what was typed.
    pub(super) fn read_input(&mut self) {
        let mut buffer = [0_u8; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => {
                self.input_open = false;
                self.pending.push(END_OF_TRANSMISSION);
            }
            Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.input_open = false,
        }
        self.write_pending();
    }

    /// Passes on what was typed, as far as the other side takes it.
    pub(super) fn write_pending(&mut self) {
        match rustix::io::write(&self.master, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => {
                self.pending.clear();
                self.input_open = false;
            }
        }
    }

    /// Shows what the container has written; whether there may be more at once.
    pub(super) fn show_output(&mut self) -> bool {
        let mut buffer = [0_u8; 16 * 1024];
        match rustix::io::read(&self.master, &mut buffer) {
            // The last process has closed its side.
            Ok(0) | Err(Errno::IO) => {
                self.output_open = false;
                false
            }
            Ok(read) => {
                write_all(&buffer[..read]);
                true
            }
            Err(_) => false,
        }
    }

    /// Gives the container's terminal the size of ours.
    pub(super) fn copy_size(&self) {
        let size = [rustix::stdio::stdout(), rustix::stdio::stdin()]
            .into_iter()
            .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok());
        if let Some(size) = size.filter(|size: &Winsize| size.ws_row > 0) {
            // A terminal without a size works, too.
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }
}

fn show_console(master: &OwnedFd) -> Result<(), Errno> {
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    drop(rustix::fs::openat(CWD, "/dev/console", flags, Mode::from_raw_mode(0o620))?);
    rustix::mount::mount_bind(name, "/dev/console")
}

fn write_all(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Nobody looks any more; the command need not stop for that.
            Err(_) => return,
        }
    }
}

/// Our own terminal passing every key on; the old mode comes back on drop.
struct RawMode {
    old: Termios,
}

impl RawMode {
    /// `None` when standard input is no terminal.
    fn enter() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let old = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = old.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &raw).ok()?;
        Some(Self { old })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.old);
    }
}
