//! Layers that were to be had from somewhere and are not; and whose turn it is to bring a blob to a registry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cache::remote::RemoteCache;
use oci::{DiffId, Digest};
use tokio::sync::OwnedMutexGuard;

use super::ImageSource;

/// Layers that could not be had.
#[derive(Default)]
pub(super) struct Lost {
    /// Why, of those that nobody has been told of.
    untold: Mutex<BTreeMap<DiffId, String>>,
    all: Mutex<BTreeSet<DiffId>>,
    /// Places that do not answer: nothing more is asked of them that can be made instead.
    places: Mutex<BTreeSet<String>>,
}

/// One lock for each registry and blob.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<(String, Digest), Turn>>);

/// Held by whoever brings the blob there.
type Turn = Arc<tokio::sync::Mutex<()>>;

impl ImageSource {
    /// Layers that lie in these places are fetched through them.
    pub(crate) fn use_caches(&self, caches: Vec<Arc<dyn RemoteCache>>) {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).extend(caches);
    }

    /// The cache at a place, as [`cache::Store::find_remotes`] names it.
    pub(super) fn cache_at(&self, place: &str) -> Option<Arc<dyn RemoteCache>> {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.iter().find(|cache| cache.place() == place).cloned()
    }

    /// Takes note that a result of a step cannot be had from where it was said to be.
    pub(super) fn lose(&self, diff_id: &DiffId, reason: &str) {
        self.lost.all.lock().unwrap_or_else(PoisonError::into_inner).insert(diff_id.clone());
        self.lost.untold.lock().unwrap_or_else(PoisonError::into_inner).insert(diff_id.clone(), reason.to_owned());
    }

    /// Takes note that a place does not answer.
    pub(super) fn give_up(&self, place: &str) {
        self.lost.places.lock().unwrap_or_else(PoisonError::into_inner).insert(place.to_owned());
    }

    /// Whether it has not answered before.
    pub(super) fn is_given_up(&self, place: &str) -> bool {
        self.lost.places.lock().unwrap_or_else(PoisonError::into_inner).contains(place)
    }

    /// Layers that were lost since the last call, and why.
    pub(crate) fn take_lost(&self) -> BTreeMap<DiffId, String> {
        std::mem::take(&mut *self.lost.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a layer was lost since the build began.
    pub(crate) fn was_lost(&self, diff_id: &DiffId) -> bool {
        self.lost.all.lock().unwrap_or_else(PoisonError::into_inner).contains(diff_id)
    }

    /// Waits until nobody else brings this blob to the registry, so that a second repository can take it from the first.
    pub(crate) async fn turn(&self, registry: &str, digest: &Digest) -> OwnedMutexGuard<()> {
        let key = (registry.to_owned(), digest.clone());
        let turn = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        turn.lock_owned().await
    }
}
