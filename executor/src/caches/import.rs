//! Asking places for results.

use std::collections::HashMap;
use std::sync::Arc;

use cache::Key;
use cache::remote::{Entry, Hint, RemoteCache, RemoteError};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared as SharedFuture};
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use solver::{Imported, Outcome};

use super::breaker::Breaker;
use super::{ANSWER_DEADLINE, CacheSource, Shared, inline, lock};

/// What a place says before it is asked for anything.
#[derive(Default)]
pub(super) struct Foreword {
    /// What was used there before.
    pub(super) hint: Option<Hint>,
    /// What an image there says about its layers.
    layers: HashMap<Key, Entry>,
}

impl Foreword {
    /// That of a place without images.
    pub(super) fn of_list(hint: Option<Hint>) -> Self {
        Self { hint, layers: HashMap::new() }
    }
}

/// A foreword that is on its way; whoever needs it waits for it.
pub(super) type Coming = SharedFuture<BoxFuture<'static, Arc<Foreword>>>;

/// A place that is asked.
pub(super) struct Source {
    cache: Arc<dyn RemoteCache>,
    coming: Coming,
    breaker: Arc<Breaker>,
}

impl Source {
    /// Begins to listen. Must be called inside the runtime.
    pub(super) fn open(source: CacheSource, shared: &Arc<Shared>) -> Self {
        let CacheSource { cache, image } = source;
        let breaker = Arc::new(Breaker::new("read", cache.name(), shared.progress.clone()));
        let (place, listener, gone) = (cache.clone(), breaker.clone(), shared.clone());
        let listening = async move {
            let step = gone.progress.start(format!("importing cache from {}", place.name()));
            let hint = answer(place.hint());
            let layers = async {
                match &image {
                    Some((client, reference)) => answer(inline::layers(client, reference, &gone.progress)).await,
                    None => Ok(Vec::new()),
                }
            };
            let both = async { tokio::join!(hint, layers) };
            let (hint, layers) = gone.cancel.run_until_cancelled(both).await.unwrap_or((Ok(None), Ok(Vec::new())));
            let hint = hint.unwrap_or_else(|error| {
                listener.note(&error);
                None
            });
            let layers = layers.unwrap_or_else(|error| {
                listener.note(&error);
                Vec::new()
            });
            let n_listed = hint.as_ref().map_or(0, Hint::len) + layers.len();
            if n_listed > 0 {
                step.status(format!("{n_listed} results listed"), 0, 0, true);
            }
            step.finish(Outcome::Done);
            let by_key = |entry: Entry| entry.keys.clone().into_iter().map(move |key| (key, entry.clone()));
            Arc::new(Foreword { hint, layers: layers.into_iter().flat_map(by_key).collect() })
        };
        // Driven by the runtime, so that it comes while the build is being planned; the handle is kept by those who wait.
        let task = tokio::runtime::Handle::current().spawn(listening);
        let coming = async move { task.await.unwrap_or_default() }.boxed().shared();
        Self { cache, coming, breaker }
    }

    pub(super) fn place(&self) -> &str {
        self.cache.place()
    }

    pub(super) fn coming(&self) -> Coming {
        self.coming.clone()
    }

    async fn look(&self, key: &Key) -> Option<(Entry, &Self)> {
        if self.breaker.is_open() {
            return None;
        }
        let foreword = self.coming.clone().await;
        let listed = foreword.layers.get(key).or_else(|| Some(&foreword.hint.as_ref()?.find(key)?.entry));
        if let Some(entry) = listed {
            return Some((entry.clone(), self));
        }
        if self.breaker.is_open() {
            return None;
        }
        match answer(self.cache.find(key)).await {
            Ok(entry) => entry.map(|entry| (entry, self)),
            Err(error) => {
                self.breaker.note(&error);
                None
            }
        }
    }
}

/// Asks all places at once; of those that have a result, the first one given counts.
pub(super) async fn find(sources: &[Source], key: &Key, shared: &Shared) -> Option<Imported> {
    let mut answers: FuturesOrdered<_> = sources.iter().map(|source| source.look(key)).collect();
    while let Some(answer) = answers.next().await {
        let Some((entry, source)) = answer else { continue };
        // It has been tried.
        if shared.images.was_lost(&entry.diff_id) {
            continue;
        }
        match shared.store.import_layer(&entry, source.place()) {
            Ok(layer) => {
                lock(&shared.found).insert(*key, source.place().to_owned());
                return Some(Imported { layer, cost: entry.cost, from: source.cache.name().to_owned() });
            }
            Err(error) => source.breaker.note(&RemoteError::Down(error.to_string())),
        }
    }
    None
}

/// Waits for an answer, but not for long.
pub(super) async fn answer<T>(question: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
    match tokio::time::timeout(ANSWER_DEADLINE, question).await {
        Ok(answer) => answer,
        Err(_) => Err(RemoteError::Down(format!("no answer within {} seconds", ANSWER_DEADLINE.as_secs()))),
    }
}
