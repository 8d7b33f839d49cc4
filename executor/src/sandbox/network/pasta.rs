//! A private network for the steps of one build, with addresses translated in user mode by `pasta` (of passt).
//!
//! One namespace and one helper process serve all steps; both are made when the first step wants them. The namespace is
//! held by descriptors only, and the helper is told of it by its standard input: nothing of this has a path, so nothing
//! can be left behind. The thread that starts the helper keeps it: the kernel kills the helper when that thread ends,
//! however it ends.
//!
//! Where there can be no such network, steps get the host's, and a warning says why.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, Signal};
use rustix::thread::UnshareFlags;

use super::super::rootless::find_program;
use super::{Network, NetworkProvider, fence, host_address, resolv};
use crate::sys::spawn::{Capabilities, Child, Identity, Plan, Program, Session, SpawnError, spawn};

/// The helper's name.
const PASTA: &str = "pasta";

/// Of the namespace, its gateway, and where the host's name server answers. They are of the block for carrying IPv4 over
/// something else (RFC 7335), so that they hide no address that steps might want to reach, the host's own among them.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 3);
const PREFIX_BITS: &str = "29";

/// The interface of the namespace that leads out, as containers usually have it.
const INTERFACE: &str = "eth0";

/// How long the helper may take to say that it is ready; usually it is some hundredths of a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most of the helper's complaints that is kept.
const MOST_WORDS_BYTES: usize = 4096;

/// A private network made by `pasta`; the host's where that is not possible. Dropping ends the helper and waits for that.
pub struct PastaNetwork {
    search_path: String,
    shared: Arc<Shared>,
    keeper: Mutex<Option<Keeper>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Unwanted,
    Starting,
    /// The helper serves this namespace.
    Private {
        namespace: OwnedFd,
        resolver: Option<Ipv4Addr>,
    },
    /// There is no private network, because of this.
    Impossible(String),
    /// There was one, and its helper has ended.
    Lost(String),
}

/// The thread that has the helper.
struct Keeper {
    thread: JoinHandle<()>,
    /// Closed to end it.
    stop: OwnedFd,
}

impl PastaNetwork {
    /// The helper is looked for in `search_path`, directories as in `PATH`. Nothing is started yet.
    pub fn new(search_path: String) -> Self {
        Self { search_path, shared: Arc::default(), keeper: Mutex::new(None) }
    }

    fn start(&self) -> Result<Keeper, Failure> {
        let program = find_program(PASTA, &self.search_path).ok_or(Failure::NotInstalled)?;
        let (stopped, stop) = pipe()?;
        let shared = Arc::clone(&self.shared);
        let work = move || keep(&program, &stopped, &shared);
        let thread = std::thread::Builder::new().name("network".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Failure::Setup { what: "start a thread", error })?;
        Ok(Keeper { thread, stop })
    }
}

impl NetworkProvider for PastaNetwork {
    fn expect(&self) {
        {
            let mut state = self.shared.state();
            if !matches!(*state, State::Unwanted) {
                return;
            }
            *state = State::Starting;
        }
        match self.start() {
            Ok(keeper) => *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper),
            Err(failure) => self.shared.set(State::Impossible(failure.to_string())),
        }
    }

    fn network(&self) -> io::Result<Network> {
        self.expect();
        let state = self.shared.changed.wait_while(self.shared.state(), |state| matches!(state, State::Starting));
        match &*state.unwrap_or_else(PoisonError::into_inner) {
            State::Unwanted | State::Starting => Err(io::Error::other("nobody makes the private network")),
            State::Private { namespace, resolver } => Ok(Network {
                namespace: Some(namespace.try_clone()?),
                resolver: resolver.map(IpAddr::V4),
                warning: None,
            }),
            State::Impossible(why) => Ok(Network {
                warning: Some(format!("RUN steps share the network of this machine: {why}")),
                ..Network::default()
            }),
            State::Lost(why) => Err(io::Error::other(why.clone())),
        }
    }
}

impl Drop for PastaNetwork {
    fn drop(&mut self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Keeper { thread, stop }) = keeper {
            drop(stop);
            drop(thread.join());
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }
}

/// Why there is no private network.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "`pasta` is not installed, which gives them one of their own (apt-get install passt; dnf, apk, zypper and pacman call it passt, too)"
    )]
    NotInstalled,
    #[error("cannot {what} for one of their own: {error}")]
    Setup { what: &'static str, error: io::Error },
    #[error("`pasta` cannot give them one of their own: {}{}", .0, hint(.0))]
    Helper(String),
    #[error("`pasta` was not ready after {} seconds", PATIENCE.as_secs())]
    Late,
    #[error("the build is at its end")]
    Stopped,
}

impl Failure {
    fn setup(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Setup { what, error: errno.into() }
    }
}

/// What can be done about a complaint of the helper.
fn hint(words: &str) -> &'static str {
    if words.contains("tun") || words.contains("tap device") {
        return " (it needs to open /dev/net/tun: load the module `tun`; as an ordinary user: chmod 666 /dev/net/tun; in a container: --device /dev/net/tun)";
    }
    ""
}

/// The life of the helper.
fn keep(program: &Path, stopped: &OwnedFd, shared: &Shared) {
    let began = Instant::now();
    let mut helper = match Helper::start(program) {
        Ok(helper) => helper,
        Err(failure) => return shared.set(State::Impossible(failure.to_string())),
    };
    let ready = helper.wait_until_ready(stopped).and_then(|()| {
        let resolver = helper.addresses.resolver;
        let namespace = helper.namespace.try_clone();
        namespace.map(|namespace| State::Private { namespace, resolver }).map_err(setup("keep the network namespace"))
    });
    if let Err(errno) = fence::raise(&helper.namespace, INTERFACE) {
        tracing::debug!(%errno, "packets for loopback addresses are left to pasta");
    }
    match ready {
        Ok(state) => shared.set(state),
        Err(failure) => return shared.set(State::Impossible(failure.to_string())),
    }
    tracing::debug!(milliseconds = began.elapsed().as_millis(), "the private network is ready");
    if let Err(failure) = helper.wait_for_end(stopped) {
        shared.set(State::Lost(format!("the private network is gone: {failure}")));
    }
}

fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Setup { what, error }
}

/// The running process. Dropping kills it and waits for its end.
struct Helper {
    child: Child,
    namespace: OwnedFd,
    addresses: Addresses,
    /// It writes a line to its standard output once it is ready.
    ready: Option<OwnedFd>,
    /// Its standard error, until it closes that.
    complaints: Option<OwnedFd>,
    words: Vec<u8>,
}

/// What a helper is waited for.
#[derive(Default)]
struct Happened {
    ended: bool,
    /// It is to end.
    stopped: bool,
    /// It has something to say.
    complaint: bool,
    ready: bool,
}

impl Helper {
    fn start(program: &Path) -> Result<Self, Failure> {
        let namespace = new_namespace()?;
        let addresses = Addresses::for_this_host();
        let (ready, says_ready) = pipe()?;
        let (complaints, complains) = pipe()?;
        rustix::io::ioctl_fionbio(&complaints, true).map_err(Failure::setup("prepare a pipe"))?;
        let path = CString::new(program.as_os_str().as_encoded_bytes())
            .map_err(|error| Failure::Setup { what: "name `pasta`", error: error.into() })?;
        let this_process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(Failure::setup("get a descriptor of this process"))?;
        let own_program = rustix::fs::stat("/proc/self/exe").map_err(Failure::setup("look at this program"))?;
        let held = rustix::thread::capabilities(None).map_err(Failure::setup("read the capabilities"))?;
        let child = spawn(&Plan {
            pid_namespace: false,
            birth_cgroup: None,
            cgroups: Vec::new(),
            cgroup_namespace: false,
            stdio: [namespace.as_fd(), says_ready.as_fd(), complains.as_fd()],
            session: Session::Own,
            mounts: Vec::new(),
            limits: Vec::new(),
            root: None,
            user_namespace: None,
            filter: None,
            listener: None,
            directory: c"/".to_owned(),
            identity: Identity {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                groups: None,
                capabilities: Capabilities::Bounded(held.permitted.bits()),
            },
            parent: this_process.as_fd(),
            forbidden: (own_program.st_dev, own_program.st_ino),
            program: Program::new(vec![path], arguments(&addresses), Vec::new()),
        });
        let child = child.map_err(|error| {
            let (SpawnError::Clone(errno) | SpawnError::Child { errno, .. }) = error;
            Failure::Setup { what: "start `pasta`", error: errno.into() }
        })?;
        Ok(Self { child, namespace, addresses, ready: Some(ready), complaints: Some(complaints), words: Vec::new() })
    }

    fn wait_until_ready(&mut self, stopped: &OwnedFd) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let happened = self.poll(stopped, Some(left))?;
            if happened.complaint {
                self.listen();
            }
            if happened.ready {
                // Nothing to be read is the end of it; that of the process follows.
                let line = self.ready.take().map_or(Ok(0), |ready| rustix::io::read(ready, &mut [0_u8; 32]));
                if line.is_ok_and(|n_bytes| n_bytes > 0) {
                    return Ok(());
                }
            }
            if happened.ended {
                return Err(self.end());
            }
            if happened.stopped {
                return Err(Failure::Stopped);
            }
            if left.is_zero() {
                return Err(Failure::Late);
            }
        }
    }

    /// Until it is told to stop.
    fn wait_for_end(&mut self, stopped: &OwnedFd) -> Result<(), Failure> {
        loop {
            let happened = self.poll(stopped, None)?;
            if happened.complaint {
                self.listen();
            }
            if happened.stopped {
                return Ok(());
            }
            if happened.ended {
                return Err(self.end());
            }
        }
    }

    fn poll(&self, stopped: &OwnedFd, left: Option<Duration>) -> Result<Happened, Failure> {
        let mut polls =
            vec![PollFd::from_borrowed_fd(self.child.pidfd(), PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        polls.extend(self.complaints.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        polls.extend(self.ready.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut polls, left.as_ref()) {
            Err(Errno::INTR) => return Ok(Happened::default()),
            result => result.map_err(Failure::setup("wait for `pasta`"))?,
        };
        let mut happened = polls.iter().map(|poll| !poll.revents().is_empty());
        let mut next = |is_polled: bool| is_polled && happened.next().unwrap_or(false);
        let (ended, stopped) = (next(true), next(true));
        let complaint = next(self.complaints.is_some());
        Ok(Happened { ended, stopped, complaint, ready: next(self.ready.is_some()) })
    }

    /// Takes what it has to say, as far as it has said it. Never blocks.
    fn listen(&mut self) {
        let Some(pipe) = &self.complaints else { return };
        let mut buffer = [0; 1024];
        loop {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(n_bytes @ 1..) => {
                    let room = MOST_WORDS_BYTES.saturating_sub(self.words.len());
                    self.words.extend_from_slice(&buffer[..n_bytes.min(room)]);
                }
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => break,
            }
        }
        self.complaints = None;
    }

    /// It has ended by itself: in its own words.
    fn end(&mut self) -> Failure {
        self.listen();
        Failure::Helper(reason(&String::from_utf8_lossy(&self.words)))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = rustix::process::pidfd_send_signal(self.child.pidfd(), Signal::KILL);
        if let Err(errno) = self.child.wait() {
            tracing::debug!(%errno, "pasta was reaped by somebody else");
        }
    }
}

/// A network namespace with a loopback interface that is up. A thread makes it, which ends: a thread of an ordinary user
/// finds no way back from it.
fn new_namespace() -> Result<OwnedFd, Failure> {
    let make = || -> Result<OwnedFd, Errno> {
        crate::sys::namespace::unshare(UnshareFlags::NEWNET)?;
        crate::sys::net::loopback_up()?;
        rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    made.unwrap_or(Err(Errno::IO)).map_err(Failure::setup("make a network namespace"))
}

/// What the namespace gets of IPv4. Of IPv6 it gets the host's own addresses, as the helper does by itself.
struct Addresses {
    /// Whether it has any; the host has none otherwise.
    has_ipv4: bool,
    /// Only where it is needed: old helpers give all answers of the host's server this address, whoever was asked.
    resolver: Option<Ipv4Addr>,
}

impl Addresses {
    fn for_this_host() -> Self {
        let has_ipv4 = host_address().is_some();
        Self { has_ipv4, resolver: (has_ipv4 && resolv::needs_forwarding()).then_some(RESOLVER) }
    }
}

/// Every option is one that the oldest releases in use (2023) have, and that new ones take as well.
fn arguments(addresses: &Addresses) -> Vec<CString> {
    let mut arguments = vec![PASTA, "--foreground", "--quiet"];
    // It stays who it is: a change of user would make the kernel forget to kill it with us.
    let user = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    arguments.extend(["--runas", &user]);
    // No port of the host leads in, none of the namespace leads to the host's loopback interface, and neither does the
    // gateway's address.
    arguments.extend(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"]);
    arguments.extend(["--ns-ifname", INTERFACE, "--config-net", "--no-dhcp", "--no-dhcpv6"]);
    let (own, gateway) = (OWN.to_string(), GATEWAY.to_string());
    if addresses.has_ipv4 {
        arguments.extend(["-a", &own, "-n", PREFIX_BITS, "-g", &gateway]);
    }
    let resolver = addresses.resolver.map(|address| address.to_string());
    arguments.extend(resolver.iter().flat_map(|address| ["--dns-forward", address]));
    // The namespace is its standard input. What it believes to be a file is the pipe that tells us that it is ready.
    arguments.extend(["--no-netns-quit", "--pid", "/proc/self/fd/1", "--netns", "/proc/self/fd/0"]);
    arguments.into_iter().filter_map(|text| CString::new(text).ok()).collect()
}

/// The last of its lines that says something. Without a system log, it complains about that as well.
fn reason(words: &str) -> String {
    let mut lines = words.lines().rev().map(str::trim);
    let said = lines.find(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    said.unwrap_or("it ended without a word").to_owned()
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Failure::setup("make a pipe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_without_noise() {
        for (words, expected) in [
            ("Failed to send 56 bytes to syslog\nCouldn't open it\n\n", "Couldn't open it"),
            ("first\n  second \nFailed to send 3 bytes to syslog\n", "second"),
            ("", "it ended without a word"),
        ] {
            assert_eq!(reason(words), expected);
        }
    }

    #[test]
    fn without_the_program_there_is_a_warning_and_the_hosts_network() {
        let empty = tempfile::tempdir().unwrap();
        let network = PastaNetwork::new(format!("relative:{}", empty.path().display()));
        let given = network.network().unwrap();
        assert!(given.namespace.is_none());
        let warning = given.warning.unwrap();
        assert!(warning.contains("`pasta` is not installed") && warning.contains("apt-get install passt"), "{warning}");
        assert_eq!(network.network().unwrap().warning, Some(warning), "it is the same for every step");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(PASTA);
        std::fs::write(&path, "#!/bin/sh\necho 'Failed to open() /dev/net/tun' >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let network = PastaNetwork::new(directory.path().display().to_string());
        let warning = network.network().unwrap().warning.unwrap();
        let may_make_namespaces = rustix::process::geteuid().is_root();
        assert!(!may_make_namespaces || warning.contains("Failed to open() /dev/net/tun (it needs"), "{warning}");
    }
}
