//! Giving results to a place: each as soon as its layer is final, while later steps run.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use cache::Key;
use cache::remote::{Entry, HintedEntry, RemoteCache, RemoteError};
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use oci::ImageRef;
use oci::registry::{BlobReader, Pushed};
use solver::{OpError, Origin, Outcome, SettledResult, Step};
use tokio::sync::Semaphore;

use super::breaker::Breaker;
use super::import::{Coming, Foreword, Source, answer};
use super::{CacheTarget, Scope, Shared, lock};
use crate::packer::{PackedLayer, Wanted};
use crate::push::open_blob;

/// Results that are looked at or sent at once. The client of a registry limits what goes to one host.
const AT_ONCE: usize = 8;

/// A place that gets results.
pub(super) struct Target {
    cache: Arc<dyn RemoteCache>,
    wanted: Wanted,
    scope: Scope,
    is_required: bool,
    breaker: Breaker,
    /// What was there when the build began.
    coming: Coming,
    places: Semaphore,
    /// Keys that this build has taken care of.
    seen: Mutex<HashSet<Key>>,
    /// What is to be listed for later builds.
    news: Mutex<Vec<HintedEntry>>,
    n_added: AtomicUsize,
    n_known: AtomicUsize,
    step: Mutex<Option<Step>>,
}

/// Why a result did not get to the place.
enum Failure {
    /// The place has failed.
    Place(RemoteError),
    /// The layer cannot be had here; whoever needs it for the image says so.
    Layer(OpError),
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        Self::Place(error)
    }
}

impl From<OpError> for Failure {
    fn from(error: OpError) -> Self {
        Self::Layer(error)
    }
}

impl Target {
    /// Begins to read what is there, unless `known` is doing that. Must be called inside the runtime.
    pub(super) fn open(target: CacheTarget, known: Option<&Source>, shared: &Arc<Shared>) -> Self {
        let CacheTarget { cache, wanted, scope, is_required } = target;
        let breaker = Breaker::new("written", cache.name(), shared.progress.clone());
        let coming = known.map_or_else(|| listen(cache.clone()), Source::coming);
        Self {
            cache,
            wanted,
            scope,
            is_required,
            breaker,
            coming,
            places: Semaphore::new(AT_ONCE),
            seen: Mutex::default(),
            news: Mutex::default(),
            n_added: AtomicUsize::new(0),
            n_known: AtomicUsize::new(0),
            step: Mutex::default(),
        }
    }

    /// Whether a result belongs here.
    pub(super) fn wants(&self, result: &SettledResult) -> bool {
        self.scope == Scope::AllSteps || result.is_exported
    }

    /// Brings a result here, if it is not here.
    pub(super) async fn export(&self, shared: &Shared, result: &SettledResult) {
        let Ok(_place) = self.places.acquire().await else { return };
        if self.breaker.is_open() {
            return;
        }
        match self.try_export(shared, result).await {
            Ok(()) => {}
            Err(Failure::Place(error)) => self.breaker.note(&error),
            Err(Failure::Layer(error)) => tracing::debug!(error = error.message, "a layer is not cached elsewhere"),
        }
    }

    async fn try_export(&self, shared: &Shared, result: &SettledResult) -> Result<(), Failure> {
        // What is performed was not to be had, whatever was thought of it before.
        let new = |key: &&Key| lock(&self.seen).insert(**key) || result.origin == Origin::Performed;
        let keys: Vec<Key> = result.keys.iter().filter(new).copied().collect();
        let mut missing = Vec::new();
        for key in keys {
            if !self.is_here(shared, &key, result.origin).await? {
                missing.push(key);
            }
        }
        if missing.is_empty() {
            self.n_known.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let packed = shared.packer.packed_top(&result.chain, self.wanted).await?;
        self.bring(shared, &packed).await?;
        let entry = entry(shared, result, &packed)?;
        try_join_all(missing.iter().map(|key| answer(self.cache.put(key, &entry)))).await?;
        self.n_added.fetch_add(1, Ordering::Relaxed);
        lock(&self.news).push(HintedEntry { entry, seen_at: now() });
        Ok(())
    }

    /// Whether the place has a good entry of the key. Costs a question only when nobody knows.
    async fn is_here(&self, shared: &Shared, key: &Key, origin: Origin) -> Result<bool, RemoteError> {
        let is_from_here = || lock(&shared.found).get(key).is_some_and(|place| place == self.cache.place());
        if origin == Origin::Imported && is_from_here() {
            return Ok(true);
        }
        let foreword = self.coming.clone().await;
        let listed = foreword.hint.as_ref().filter(|hint| hint.vouches_for(key, now()));
        if let Some(hinted) = listed.and_then(|hint| hint.find(key)) {
            return Ok(!shared.images.was_lost(&hinted.entry.diff_id));
        }
        match answer(self.cache.find(key)).await {
            // It leads to a layer that is not to be had.
            Ok(Some(entry)) if shared.images.was_lost(&entry.diff_id) => Ok(false),
            // Another build was quicker, with a result that is as good. It is listed from now on.
            Ok(Some(entry)) => {
                lock(&self.news).push(HintedEntry { entry, seen_at: now() });
                Ok(true)
            }
            Ok(None) | Err(RemoteError::Unusable(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings the blob of a layer here.
    async fn bring(&self, shared: &Shared, packed: &PackedLayer) -> Result<(), Failure> {
        let PackedLayer { diff_id, blob, .. } = packed;
        let place = self.cache.place();
        // The image may be on its way to the same registry with the same blob: one of the two sends it, the other mounts it.
        let registry = ImageRef::parse_normalized(place).ok();
        let _turn = match &registry {
            Some(repository) => Some(shared.images.turn(repository.registry(), &blob.digest).await),
            None => None,
        };
        let open = || -> io::Result<BlobReader> {
            let path = shared.store.blob_path(&blob.digest).ok_or(io::ErrorKind::NotFound)?;
            open_blob(&path)
        };
        let others = async || {
            let known = shared.store.find_remotes(diff_id).unwrap_or_default();
            let same = known.into_iter().filter(|(descriptor, _)| descriptor.digest == blob.digest);
            same.map(|(_, place)| place).collect::<Vec<_>>()
        };
        let kept = match self.cache.keep(blob, &open, &others().await).await {
            Err(RemoteError::Bytes(_)) if shared.store.blob_path(&blob.digest).is_none() => {
                shared.images.ensure_blob(diff_id, &self.shown(shared), &shared.cancel).await?;
                self.cache.keep(blob, &open, &[]).await
            }
            kept => kept,
        };
        let id = blob.digest.to_string();
        match kept? {
            Pushed::Uploaded => self.shown(shared).status(id, blob.size_bytes, blob.size_bytes, true),
            Pushed::Mounted { from } => self.shown(shared).status(format!("{id} mounted from {from}"), 0, 0, true),
            Pushed::Existed => {}
        }
        if registry.is_some() {
            shared.store.remember_remote(diff_id, blob, place).map_err(OpError::from)?;
        }
        Ok(())
    }

    /// Leaves a list for later builds, and says what has come of it.
    pub(super) async fn finish(&self, shared: &Shared) -> Result<(), OpError> {
        let news = std::mem::take(&mut *lock(&self.news));
        if !news.is_empty() && !self.breaker.is_open() {
            // Others may have left one since.
            let listed = async {
                let before = answer(self.cache.hint()).await?.unwrap_or_default();
                answer(self.cache.put_hint(&before.with(news))).await
            };
            if let Some(Err(error)) = shared.cancel.run_until_cancelled(listed).await {
                self.breaker.note(&error);
            }
        }
        let (n_added, n_known) = (self.n_added.load(Ordering::Relaxed), self.n_known.load(Ordering::Relaxed));
        let step = self.shown(shared);
        step.status(format!("{n_added} results added, {n_known} known"), 0, 0, true);
        match self.breaker.reason() {
            Some(reason) if self.is_required => {
                let message = format!("failed to export the cache to {}: {reason}", self.cache.name());
                step.finish(Outcome::Failed(message.clone()));
                Err(OpError::environment(message)
                    .help("leave out `ignore-error=false`, and the build succeeds without"))
            }
            _ => {
                step.finish(Outcome::Done);
                Ok(())
            }
        }
    }

    /// The step in which this is seen; it begins when there is something to see.
    fn shown(&self, shared: &Shared) -> Step {
        let begin = || shared.progress.start(format!("exporting cache to {}", self.cache.name()));
        lock(&self.step).get_or_insert_with(begin).clone()
    }
}

fn listen(cache: Arc<dyn RemoteCache>) -> Coming {
    let task = tokio::runtime::Handle::current().spawn(async move {
        // What fails here fails again when something is written, and is told then.
        let hint = answer(cache.hint()).await.unwrap_or_default();
        Arc::new(Foreword::of_list(hint))
    });
    async move { task.await.unwrap_or_default() }.boxed().shared()
}

fn entry(shared: &Shared, result: &SettledResult, packed: &PackedLayer) -> Result<Entry, OpError> {
    let top = result.chain.layers().last().ok_or_else(|| OpError::internal("a result without a layer"))?;
    let PackedLayer { diff_id, created_at, blob, .. } = packed;
    Ok(Entry {
        keys: result.keys.clone(),
        content: top.content,
        diff_id: diff_id.clone(),
        blob: blob.clone(),
        codec: shared.store.codec_of(diff_id, &blob.digest)?,
        cost: result.cost,
        created_at: *created_at,
        step: result.name.clone(),
    })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
