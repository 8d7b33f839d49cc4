//! Rooms: what a command needs and what does not depend on it, made ahead.
//!
//! Namespaces and `/dev` are a good part of the time between two steps, and so is taking down the mounts of the last one.
//! So two threads take turns: while one runs a command, the other has a room ready for the next, with the same network: a
//! thread does not come back from a network that it has joined. Rooms do not get old: their mount namespaces are pictures
//! of the host's.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use solver::{NetworkMode, SecurityMode};

use super::devices::Devices;
use super::error::SandboxError;
use super::host::Host;
use super::namespaces::{Namespaces, Remains};

/// A room that has waited longer than this is not used: the host may have got other mounts.
const OLDEST: Duration = Duration::from_secs(20);

/// Threads that wait with a room of one network, at most.
const MOST_WAITING: usize = 2;

/// Namespaces of the calling thread, with what is mounted in all of them.
pub(super) struct Room<'a> {
    pub(super) namespaces: Namespaces<'a>,
    pub(super) devices: Devices,
}

impl<'a> Room<'a> {
    /// Makes one that most commands with that network fit into.
    fn prepare(host: &'a Host, network: NetworkMode) -> Result<Self, SandboxError> {
        let namespaces = Namespaces::enter(host, network)?;
        let devices = Devices::prepare(host, host.guard().policy(SecurityMode::Sandbox), None)?;
        Ok(Self { namespaces, devices })
    }
}

/// A command to be run.
pub(super) struct Job {
    pub(super) network: NetworkMode,
    pub(super) work: Work,
}

/// Runs a command.
pub(super) type Work = Box<dyn FnOnce(&Host, Option<Room<'_>>) -> Ended + Send>;

/// A command that has ended.
pub(super) struct Ended {
    /// Says so to those who wait for it.
    pub(super) tell: Box<dyn FnOnce() + Send>,
    /// Its mounts.
    pub(super) remains: Option<Remains>,
}

/// Threads for commands. Dropping ends those that wait, and waits for that.
#[derive(Default)]
pub(super) struct Threads {
    /// Who has waited longest comes first: its room is the most likely to be ready.
    waiting: Mutex<VecDeque<Waiting>>,
}

/// A thread that waits for its next job.
struct Waiting {
    /// What it waits for.
    network: NetworkMode,
    jobs: SyncSender<Job>,
    /// Disconnected when the thread has given everything back.
    gone: Receiver<()>,
}

/// The other side of [`Waiting`].
struct Place {
    network: NetworkMode,
    orders: Receiver<Job>,
    going: Sender<()>,
}

impl Threads {
    /// Begins a job on a thread that it has to itself. Must not be called on the thread of a command: threads begin with
    /// the root and the namespaces of their makers.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn begin(self: &Arc<Self>, host: &Arc<Host>, job: Job) -> Result<(), SandboxError> {
        let network = job.network;
        let job = match self.longest_waiting(network) {
            None => job,
            Some(waiting) => match waiting.jobs.send(job) {
                Ok(()) => {
                    self.stand_by(host, network);
                    return Ok(());
                }
                Err(refused) => refused.0,
            },
        };
        self.start(host, Turn::Work(job, None)).map_err(SandboxError::io("start", "a thread"))
    }

    /// From the second command on, another thread makes a room while a command runs. Nothing depends on it.
    fn stand_by(self: &Arc<Self>, host: &Arc<Host>, network: NetworkMode) {
        if let Some(place) = self.announce(network, 1) {
            drop(self.start(host, Turn::Wait(place)));
        }
    }

    fn start(self: &Arc<Self>, host: &Arc<Host>, turn: Turn<'static>) -> std::io::Result<()> {
        let (host, threads) = (Arc::clone(host), Arc::downgrade(self));
        std::thread::Builder::new().name("sandbox".to_owned()).spawn(move || live(host, &threads, turn)).map(drop)
    }

    fn longest_waiting(&self, network: NetworkMode) -> Option<Waiting> {
        let mut waiting = self.waiting();
        let position = waiting.iter().position(|waiting| waiting.network == network)?;
        waiting.remove(position)
    }

    /// A place among those who wait for commands with that network, unless there are as many as `most`.
    fn announce(&self, network: NetworkMode, most: usize) -> Option<Place> {
        let mut waiting = self.waiting();
        if waiting.iter().filter(|waiting| waiting.network == network).count() >= most {
            return None;
        }
        let ((jobs, orders), (going, gone)) = (sync_channel(1), channel());
        waiting.push_back(Waiting { network, jobs, gone });
        Some(Place { network, orders, going })
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut *self.waiting());
        let gone: Vec<Receiver<()>> = waiting.into_iter().map(|Waiting { gone, .. }| gone).collect();
        for gone in gone {
            // Nothing is ever sent: this is the end of the other side.
            let _ = gone.recv();
        }
    }
}

/// What a thread does next.
enum Turn<'a> {
    Work(Job, Option<Room<'a>>),
    Wait(Place),
}

fn live(host: Arc<Host>, threads: &Weak<Threads>, first: Turn<'static>) {
    let Ended { tell, remains } = serve(&host, threads, first);
    drop(remains);
    drop(host);
    tell();
}

/// Does one job after the other, as long as somebody may have another. What is returned is to be told in the end, when
/// there is nothing of the thread left.
fn serve<'a>(host: &'a Host, threads: &Weak<Threads>, mut turn: Turn<'a>) -> Ended {
    loop {
        let Place { network, orders, going } = match turn {
            Turn::Wait(place) => place,
            Turn::Work(job, room) => {
                let network = job.network;
                let ended = (job.work)(host, room);
                // Announced first and told then: who hears the end of the last command finds nothing of us unaccounted
                // for.
                let place = threads.upgrade().and_then(|threads| threads.announce(network, MOST_WAITING));
                let Some(place) = place else { return ended };
                (ended.tell)();
                drop(ended.remains);
                place
            }
        };
        let prepared = host.isolation.has_namespaces().then(|| Room::prepare(host, network));
        if let Some(Err(error)) = &prepared {
            tracing::debug!(%error, "nothing can be prepared for the next command");
        }
        let since = Instant::now();
        let Ok(job) = orders.recv() else { return Ended { tell: Box::new(move || drop(going)), remains: None } };
        turn = Turn::Work(job, prepared.and_then(Result::ok).filter(|_| since.elapsed() < OLDEST));
    }
}
