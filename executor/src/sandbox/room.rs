//! Rooms: what a command needs and what does not depend on it, made ahead.
//!
//! Namespaces and `/dev` are a good part of the time between two steps. So when a command has ended, its thread makes a
//! room for the next one and waits there for it, while the solver still deals with the result. One thread waits at most,
//! and its room does not get old: its mount namespace is a picture of the host's.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use solver::{NetworkMode, SecurityMode};

use super::devices::Devices;
use super::error::SandboxError;
use super::host::Host;
use super::namespaces::Namespaces;

/// A room that has waited longer than this is not used: the host may have got other mounts.
const OLDEST: Duration = Duration::from_secs(20);

/// Namespaces of the calling thread, with what is mounted in all of them.
pub(super) struct Room<'a> {
    pub(super) namespaces: Namespaces<'a>,
    pub(super) devices: Devices,
}

impl<'a> Room<'a> {
    /// Makes one that most commands fit into.
    fn prepare(host: &'a Host) -> Result<Self, SandboxError> {
        let namespaces = Namespaces::enter(host, NetworkMode::Default)?;
        let devices = Devices::prepare(host, host.guard().policy(SecurityMode::Sandbox), None)?;
        Ok(Self { namespaces, devices })
    }
}

/// A command to be run.
pub(super) struct Job {
    pub(super) network: NetworkMode,
    pub(super) work: Work,
}

/// Runs a command; what is returned tells those who wait for it.
pub(super) type Work = Box<dyn FnOnce(&Host, Option<Room<'_>>) -> Tell + Send>;

/// Says that a job has ended.
pub(super) type Tell = Box<dyn FnOnce() + Send>;

/// Threads for commands.
#[derive(Default)]
pub(super) struct Threads {
    waiting: Mutex<Option<Waiting>>,
}

/// A thread that waits for its next job. Dropping lets it end, and waits for that.
struct Waiting {
    jobs: Option<SyncSender<Job>>,
    /// Disconnected when the thread has given everything back.
    gone: Receiver<()>,
}

impl Threads {
    /// Begins a job on a thread that it has to itself. Must not be called on the thread of a command: threads begin with
    /// the root and the namespaces of their makers.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn begin(self: &Arc<Self>, host: &Arc<Host>, job: Job) -> Result<(), SandboxError> {
        let waiting = match job.network {
            NetworkMode::Default => self.place().take(),
            // The way back from the default network to another is not known.
            NetworkMode::Host | NetworkMode::None => None,
        };
        let job = match waiting.and_then(|mut waiting| waiting.jobs.take()) {
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(refused) => refused.0,
            },
            None => job,
        };
        let (host, threads) = (Arc::clone(host), Arc::downgrade(self));
        let thread = std::thread::Builder::new().name("sandbox".to_owned());
        thread.spawn(move || work(host, &threads, job)).map(drop).map_err(SandboxError::io("start", "a thread"))
    }

    /// Announces the calling thread as the one that waits, unless there is one.
    fn announce(&self) -> Option<(Receiver<Job>, Sender<()>)> {
        let mut place = self.place();
        if place.is_some() {
            return None;
        }
        let ((jobs, orders), (going, gone)) = (sync_channel(1), channel());
        *place = Some(Waiting { jobs: Some(jobs), gone });
        Some((orders, going))
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a thread.
fn work(host: Arc<Host>, threads: &Weak<Threads>, job: Job) {
    let tell = serve(&host, threads, job);
    drop(host);
    tell();
}

/// Does one job after the other, as long as somebody may have another. What is returned is to be told in the end, when
/// there is nothing of the thread left.
fn serve(host: &Host, threads: &Weak<Threads>, mut job: Job) -> Tell {
    let mut room = None;
    loop {
        let is_free_afterwards = job.network == NetworkMode::Default;
        let tell = (job.work)(host, room.take());
        // Announced first and told then: who hears the end of the last command finds nothing of us unaccounted for.
        let place = threads.upgrade().filter(|_| is_free_afterwards).and_then(|threads| threads.announce());
        let Some((orders, going)) = place else { return tell };
        tell();
        let prepared = Room::prepare(host);
        if let Err(error) = &prepared {
            tracing::debug!(%error, "nothing can be prepared for the next command");
        }
        let since = Instant::now();
        let Ok(next) = orders.recv() else { return Box::new(move || drop(going)) };
        job = next;
        room = prepared.ok().filter(|_| since.elapsed() < OLDEST);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A thread that was given a job is nobody's to wait for.
        if let Some(jobs) = self.jobs.take() {
            drop(jobs);
            // Nothing is ever sent: this is the end of the other side.
            let _ = self.gone.recv();
        }
    }
}
