//! What needs another process of ours: one that is killed, and one that has a terminal. The other process is this very
//! test program, which learns by a variable what to do.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::*;

/// What the other process is to do.
const PART: &str = "RBUILD_TEST_PART";

#[test]
fn privileged_a_killed_program_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let mut other = other_process(&fixture, "sleep", None);
    let started = fixture.directory.path().join("started");
    wait_until("the command has started", || started.exists());
    assert!(remains(&fixture).1 > 0);
    other.kill().unwrap();
    other.wait().unwrap();
    wait_until("all processes are gone", || remains(&fixture) == (0, 0));
}

#[test]
fn privileged_terminals_are_connected() {
    let Some(fixture) = Fixture::new() else { return };
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::unlockpt(&ours).unwrap();
    let peer = rustix::pty::ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let size = |rows| Winsize { ws_row: rows, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&ours, size(33)).unwrap();
    let mut other = other_process(&fixture, "terminal", Some(peer));
    let mut screen = Screen { terminal: File::from(ours), text: String::new() };
    screen.wait_for("tty=/dev/pts/0");
    screen.wait_for("size=33 90");
    screen.wait_for("console");
    screen.type_text("some words\r");
    screen.wait_for("got=some words");
    // A key that makes a signal reaches the shell inside, and not the program outside.
    screen.type_text("\x03");
    screen.wait_for("interrupted");
    rustix::termios::tcsetwinsize(&screen.terminal, size(44)).unwrap();
    let outside = rustix::process::Pid::from_child(&other);
    rustix::process::kill_process(outside, rustix::process::Signal::WINCH).unwrap();
    screen.wait_for("size=44 90");
    screen.wait_for("code=7");
    assert!(other.wait().unwrap().success());
    assert_eq!(remains(&fixture), (0, 0));
}

/// Does what the variable says; only in another process.
#[test]
fn other_half() {
    let Some(part) = std::env::var_os(PART) else { return };
    let directory = std::env::var_os("RBUILD_TEST_DIR").map(PathBuf::from).unwrap();
    let scratch = tempfile::tempdir_in(&directory).unwrap();
    let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &Confinement::of_this_process()).unwrap();
    let fixture =
        Fixture { directory: tempfile::tempdir_in(&directory).unwrap(), sandbox, base: directory.join("base") };
    if part == "sleep" {
        let mut spec = fixture.shell("sleep 1000 & touch /shared/started; sleep 1000");
        let source = MountSource::Directory { root: directory, path: "/".to_owned(), writes: Writes::Stay };
        spec.mounts = vec![mount("/shared", source, false)];
        fixture.run(&spec).unwrap();
        return;
    }
    let script = "echo tty=$(tty); echo size=$(stty size); [ -c /dev/console ] && echo console; read line; \
                  trap 'echo interrupted; go=1' INT; echo got=$line; while [ -z \"$go\" ]; do sleep 0.1; done; \
                  while [ \"$(stty size)\" = '33 90' ]; do sleep 0.1; done; echo size=$(stty size); exit 7";
    let spec = SandboxSpec { stdio: Stdio::Terminal, ..fixture.shell(script) };
    let cancel = CancellationToken::new();
    let exit = runtime().block_on(fixture.sandbox.run_interactive(spec, &cancel)).unwrap();
    eprintln!("code={}", exit.code);
}

fn other_process(fixture: &Fixture, part: &str, terminal: Option<OwnedFd>) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", "sandbox::tests::processes::other_half", "--nocapture"])
        .env(PART, part)
        .env("RBUILD_TEST_DIR", fixture.directory.path());
    if let Some(terminal) = terminal {
        let copy = || terminal.try_clone().unwrap();
        command.stdin(copy()).stdout(copy()).stderr(copy());
    }
    command.spawn().unwrap()
}

/// What a person sees.
struct Screen {
    terminal: File,
    text: String,
}

impl Screen {
    /// Reads on until `what` has been shown; what was shown before it is forgotten.
    fn wait_for(&mut self, what: &str) {
        loop {
            if let Some(at) = self.text.find(what) {
                self.text.drain(..at + what.len());
                return;
            }
            let mut buffer = [0_u8; 1024];
            let read = self.terminal.read(&mut buffer).unwrap_or_else(|_| panic!("no `{what}` in `{}`", self.text));
            self.text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    fn type_text(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
