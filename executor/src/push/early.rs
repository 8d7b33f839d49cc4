//! Blobs on their way to registries while the build still runs: each is sent as soon as it is final, and its beginning while it
//! is made (`ahead`).
//!
//! The push at the end finds them there, or joins those still on their way; what failed here is tried again there, and
//! told there if it fails for good. Nothing has a name before that push, so a build that fails has pushed nothing that
//! anybody could pull.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci::ImageRef;
use oci::registry::{Client, Notice, Pushed};
use solver::{Chain, Outcome, Progress, Step, Stream};
use tokio::task::JoinSet;

use super::ahead::SendAhead;
use super::{Blob, Pusher, by_repository, tell};
use crate::packer::{Packer, Wanted};
use crate::source::image::observer;

/// How long a build that is over waits until registries know what they need not keep. They forget it by themselves in time.
const GIVING_UP: Duration = Duration::from_secs(2);

/// A form of the layers, and the names under which images with them are going to be pushed.
#[derive(Clone, Debug)]
pub struct EarlyTarget {
    /// The form.
    pub wanted: Wanted,
    /// Only their repositories matter here.
    pub names: Vec<ImageRef>,
}

/// Sends layers of a build. Dropping it ends what is on its way.
pub(crate) struct Early {
    sender: Arc<Sender>,
    tasks: Mutex<JoinSet<()>>,
    ahead: Arc<SendAhead>,
}

struct Sender {
    pusher: Pusher,
    client: Client,
    packer: Packer,
    targets: Vec<(Wanted, ImageRef)>,
    shown: Arc<Shown>,
}

/// The step in which this is seen; it begins when there is something to see.
struct Shown {
    progress: Progress,
    step: Mutex<Option<Step>>,
}

impl Early {
    /// Sends to `targets` through `pusher` what `packer` makes.
    pub(crate) fn new(pusher: Pusher, packer: Packer, targets: &[EarlyTarget], progress: Progress) -> Self {
        let mut list: Vec<(Wanted, ImageRef)> = Vec::new();
        for target in targets {
            for (repository, _) in by_repository(&target.names) {
                if !list.contains(&(target.wanted, repository.clone())) {
                    list.push((target.wanted, repository));
                }
            }
        }
        let shown = Arc::new(Shown { progress, step: Mutex::default() });
        let told = shown.clone();
        let client = pusher.images.client().observed_by(Arc::new(move |notice| match notice {
            Notice::Token { .. } => {}
            notice => observer(&told.step())(notice),
        }));
        let ahead = Arc::new(SendAhead::new(client.clone(), &list));
        packer.let_watch(ahead.clone());
        let sender = Sender { pusher, client, packer, targets: list, shown };
        Self { sender: Arc::new(sender), tasks: Mutex::default(), ahead }
    }

    /// Begins to send the top layer of `chain`. Must be called inside the runtime.
    pub(crate) fn send(&self, chain: &Chain) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for (wanted, repository) in self.sender.targets.clone() {
            let (sender, chain) = (self.sender.clone(), chain.clone());
            tasks.spawn(async move { sender.send(&chain, wanted, &repository).await });
        }
    }

    /// Waits until everything has been sent, or has failed.
    pub(crate) async fn settle(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(outcome) = tasks.join_next().await {
            if let Err(error) = outcome
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.sender.shown.finish(Outcome::Done);
    }

    /// Gives up what was sent ahead and has not been pushed, unless that takes long or the build was cancelled.
    pub(crate) async fn end(&self) {
        let cancel = &self.sender.pusher.cancel;
        let given_up = tokio::time::timeout(GIVING_UP, self.ahead.give_up());
        if !matches!(cancel.run_until_cancelled(given_up).await, Some(Ok(()))) {
            tracing::debug!("registries may keep what was not finished for a while");
        }
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.sender.shown.finish(Outcome::Canceled);
    }
}

impl Sender {
    async fn send(&self, chain: &Chain, wanted: Wanted, repository: &ImageRef) {
        // Whoever waits for the layer in the end hears of a failure.
        let Ok(packed) = self.packer.packed_top(chain, wanted).await else { return };
        let blob = Blob { descriptor: packed.blob, diff_id: Some(packed.diff_id) };
        let show = || self.shown.step();
        let pushed = self.pusher.push_blob(&self.client, repository, &blob, &show);
        match self.pusher.cancel.run_until_cancelled(pushed).await {
            // The push at the end says so.
            None | Some(Ok(Pushed::Existed)) => {}
            Some(Ok(pushed)) => tell(&pushed, &blob.descriptor, &show()),
            Some(Err(error)) => {
                show().log(Stream::Stderr, format!("{}; it is tried again in the end\n", error.message).into_bytes());
            }
        }
    }
}

impl Shown {
    fn step(&self) -> Step {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        step.get_or_insert_with(|| self.progress.start("pushing layers while the build runs")).clone()
    }

    fn finish(&self, outcome: Outcome) {
        if let Some(step) = self.step.lock().unwrap_or_else(PoisonError::into_inner).take() {
            step.finish(outcome);
        }
    }
}
