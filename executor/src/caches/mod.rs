//! Caches elsewhere, for one build: asked for results (`--cache-from`), and given those of this build (`--cache-to`).
//!
//! [`Caches`] implements [`solver::RemoteCaches`] on top of [`cache::remote::RemoteCache`], one for each place. Results go out
//! one by one while later steps run, as soon as their layers are packed. A layer that is found is only noted; its bytes come
//! when a step or an output wants them, through `source::image`. A place that fails is told of once and then left alone: no
//! cache makes a build fail, wait for long, or come out differently. Documents: `docs/cache.md`, `docs/formats/remote-cache-v1.md`.

mod breaker;
mod export;
mod import;
mod inline;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cache::remote::{Domain, ImageLayerEntry, ImageMetadata, RemoteCache};
use cache::{Key, LayerId, Store};
use oci::ImageRef;
use oci::registry::Client;
use solver::{Chain, Imported, OpError, Progress, RemoteCaches, SettledResult};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::packer::{PackedLayer, Packer, Wanted};
use crate::source::ImageSource;
use export::Target;
use import::Source;

/// The longest time that a question to a place may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How keys and content digests are made here.
pub fn domain() -> Domain {
    Domain::of(&[solver::key::DOMAIN, crate::layer::CONTENT_DOMAIN])
}

/// A place to ask.
pub struct CacheSource {
    /// The place.
    pub cache: Arc<dyn RemoteCache>,
    /// The image there that may say which keys gave its layers.
    pub image: Option<(Client, ImageRef)>,
}

/// A place to give results to.
pub struct CacheTarget {
    /// The place.
    pub cache: Arc<dyn RemoteCache>,
    /// In which form layers go there.
    pub wanted: Wanted,
    /// Which results go there.
    pub scope: Scope,
    /// Whether the build fails when they do not get there.
    pub is_required: bool,
}

/// Which results go to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those whose layers are in the image.
    Result,
    /// All.
    AllSteps,
}

/// What [`Caches`] are made of.
pub struct CacheParts {
    /// Places to ask, the first that has something counts.
    pub sources: Vec<CacheSource>,
    /// Places to give results to.
    pub targets: Vec<CacheTarget>,
    /// Whether images say which keys gave their layers.
    pub is_inline: bool,
}

/// The caches of a build. Dropping it ends what is on its way.
pub struct Caches {
    shared: Arc<Shared>,
    sources: Vec<Source>,
    targets: Vec<Arc<Target>>,
    tasks: Mutex<JoinSet<()>>,
    /// What images say of their layers, when they do.
    inline: Option<Mutex<HashMap<LayerId, ImageLayerEntry>>>,
}

/// What all places work with.
struct Shared {
    store: Store,
    images: Arc<ImageSource>,
    packer: Packer,
    progress: Progress,
    cancel: CancellationToken,
    /// Where the entry of a key was found.
    found: Mutex<HashMap<Key, String>>,
}

impl Caches {
    /// Begins to ask the places what they have. Must be called inside the runtime.
    pub(crate) fn new(
        parts: CacheParts,
        store: Store,
        images: Arc<ImageSource>,
        packer: Packer,
        (progress, cancel): (Progress, CancellationToken),
    ) -> Self {
        images.use_caches(parts.sources.iter().map(|source| source.cache.clone()).collect());
        let shared = Arc::new(Shared { store, images, packer, progress, cancel, found: Mutex::default() });
        let sources: Vec<Source> = parts.sources.into_iter().map(|source| Source::open(source, &shared)).collect();
        let targets = parts.targets.into_iter().map(|target| {
            let known = sources.iter().find(|source| source.place() == target.cache.place());
            Arc::new(Target::open(target, known, &shared))
        });
        let targets = targets.collect();
        let inline = parts.is_inline.then(Mutex::default);
        Self { shared, sources, targets, tasks: Mutex::default(), inline }
    }

    /// Waits until every result is where it belongs, or cannot get there; then leaves lists for later builds.
    ///
    /// # Errors
    /// A place that had to get everything did not.
    pub async fn finish(&self) -> Result<(), OpError> {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while let Some(outcome) = tasks.join_next().await {
            if let Err(error) = outcome
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let outcomes = self.targets.iter().map(|target| target.finish(&self.shared));
        futures_util::future::join_all(outcomes).await.into_iter().collect()
    }

    /// What an image says about its layers; `None` when it is to say nothing. `packed` are the layers of `chain` as they leave.
    pub fn image_metadata(&self, chain: &Chain, packed: &[PackedLayer]) -> Option<serde_json::Value> {
        let known = lock(self.inline.as_ref()?);
        // Layers with other times are others.
        let layers = chain.layers().iter().zip(packed).map(|(layer, packed)| match packed.clamped_to {
            None => known.get(&layer.id).cloned(),
            Some(_) => None,
        });
        Some(ImageMetadata { layers: layers.collect() }.to_value(&domain()))
    }
}

#[async_trait]
impl RemoteCaches for Caches {
    fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    async fn find(&self, key: &Key) -> Option<Imported> {
        import::find(&self.sources, key, &self.shared).await
    }

    fn settled(&self, result: SettledResult) {
        if let (Some(inline), Some(layer), true) = (&self.inline, result.chain.layers().last(), result.is_exported) {
            let SettledResult { keys, cost, .. } = &result;
            let entry = ImageLayerEntry { keys: keys.clone(), content: layer.content, cost: *cost };
            lock(inline).insert(layer.id.clone(), entry);
        }
        let result = Arc::new(result);
        let mut tasks = lock(&self.tasks);
        for target in self.targets.iter().filter(|target| target.wants(&result)) {
            let (target, shared, result) = (target.clone(), self.shared.clone(), result.clone());
            tasks.spawn(async move {
                let export = target.export(&shared, &result);
                // Who is stopped leaves what has arrived.
                shared.cancel.run_until_cancelled(export).await;
            });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
