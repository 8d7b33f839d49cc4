//! Layers on their way to registries while they are being made: a long one is half there when its digest is known.
//!
//! The push that follows finds them by that digest; whatever failed here is done again there. A layer of which the store knows every
//! piece is not sent ahead: the registry may well have it. Where it has one that was made anew, what was sent in vain is no
//! more than the network took while the layer was made.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cache::Codec;
use oci::registry::{Ahead, Client};
use oci::{Digest, ImageRef};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::reader;
use crate::layer::{Onlooker, Onlookers};
use crate::packer::Wanted;

/// Sends what it sees. Dropping it ends what is on its way.
pub(super) struct SendAhead {
    client: Client,
    /// One repository of each registry, where blobs in that form go first.
    targets: Vec<(Codec, ImageRef)>,
    runtime: Handle,
    tasks: Mutex<JoinSet<()>>,
}

/// A blob on its way.
struct Sent {
    n_bytes: watch::Sender<u64>,
    to: Vec<Ahead>,
}

impl SendAhead {
    /// Sends through `client` what goes to `targets`. Must be called inside the runtime.
    pub(super) fn new(client: Client, targets: &[(Wanted, ImageRef)]) -> Self {
        let mut firsts: Vec<(Codec, ImageRef)> = Vec::new();
        for (wanted, repository) in targets {
            // The other repositories of a registry take it over from the first.
            let is_known = |(codec, first): &(Codec, ImageRef)| {
                *codec == wanted.codec && first.registry() == repository.registry()
            };
            if !firsts.iter().any(is_known) {
                firsts.push((wanted.codec, repository.clone()));
            }
        }
        Self { client, targets: firsts, runtime: Handle::current(), tasks: Mutex::default() }
    }
}

impl SendAhead {
    /// Gives up whatever has not been pushed, once that is no longer on its way.
    pub(super) async fn give_up(&self) {
        self.client.give_up_unpushed().await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

impl Onlookers for SendAhead {
    fn watch(&self, codec: Codec, path: &Path) -> Option<Box<dyn Onlooker>> {
        let (n_bytes, mut to) = (watch::Sender::new(0), Vec::new());
        for (_, repository) in self.targets.iter().filter(|(wanted, _)| *wanted == codec) {
            let bytes = reader::open_growing(path).ok()?;
            let ahead = self.client.ahead(repository);
            let sending = ahead.sending(bytes, n_bytes.subscribe());
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn_on(sending, &self.runtime);
            to.push(ahead);
        }
        if to.is_empty() { None } else { Some(Box::new(Sent { n_bytes, to })) }
    }
}

impl Onlooker for Sent {
    fn see_grown(&mut self, n_bytes: u64) {
        self.n_bytes.send_if_modified(|known| std::mem::replace(known, n_bytes) != n_bytes);
    }

    fn see_complete(self: Box<Self>, digest: &Digest) {
        self.to.into_iter().for_each(|ahead| ahead.complete(digest));
    }
}
