//! The client: what is shared between all requests of a process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::ahead::HeadStart;
use super::auth::Authenticator;
use super::config::Settings;
use super::error::RegistryError;
use super::hosts::{Endpoint, Purpose, endpoints, settings_of};
use super::options::ClientOptions;
use super::tls::HttpClients;
use crate::digest::Digest;
use crate::reference::ImageRef;

/// A client for all registries: pulls and pushes, with one set of connections, tokens and limits.
///
/// Cloning is cheap and shares everything but the observer. Dropping a future of the client cancels its request.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    observer: Option<Observer>,
}

struct Shared {
    options: Arc<ClientOptions>,
    http: HttpClients,
    auth: Authenticator,
    limits: Mutex<BTreeMap<String, HostLimit>>,
    /// What is known of a repository, by registry and name.
    settings: Mutex<BTreeMap<(String, String), KnownSettings>>,
    /// Blobs that were brought to a repository, or are: whether it has them.
    brought: Mutex<BTreeMap<(String, Digest), Gate>>,
    /// Blobs that were sent to a repository while they were made.
    head_starts: Mutex<BTreeMap<(String, Digest), Arc<HeadStart>>>,
    /// The longest request of an upload, for hosts that want others than usual.
    chunks: Mutex<BTreeMap<String, u64>>,
    /// The scheme that worked, for hosts that may speak several.
    schemes: Mutex<BTreeMap<String, &'static str>>,
}

/// What is known of a repository, or why nothing is.
type KnownSettings = Result<Arc<Settings>, RegistryError>;

/// Whether a repository has a blob; held by whoever brings it there.
type Gate = Arc<tokio::sync::Mutex<bool>>;

/// Is told what happens besides the bytes; must return quickly.
pub type Observer = Arc<dyn Fn(&Notice<'_>) + Send + Sync>;

/// Something a person may want to see in a step's log.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A request failed for a passing reason and is sent again after a pause.
    Retry {
        /// Why it failed.
        error: &'a RegistryError,
        /// The pause.
        delay: Duration,
    },
    /// A mirror or a scheme did not serve; the next one is asked.
    Fallback {
        /// Why it did not.
        error: &'a RegistryError,
        /// The host that is asked next.
        next_host: &'a str,
    },
    /// A token is fetched.
    Token {
        /// The registry host it is for.
        host: &'a str,
        /// What it is good for, space-separated.
        scopes: &'a str,
    },
    /// Configured credentials cannot be used; the request goes out without.
    Credentials {
        /// The registry host they are for.
        host: &'a str,
        /// Why not.
        reason: &'a str,
    },
}

/// Endpoints that are still to be tried.
pub(super) type Endpoints = std::vec::IntoIter<Endpoint>;

/// Requests in flight for a host. Small documents have a place of their own, so that a manifest never waits for
/// layers. Uploads have others than downloads, because an upload may be fed by a download from the same host.
#[derive(Clone)]
struct HostLimit {
    downloads: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

/// Which places a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Manifests, configs, questions.
    Small,
    /// Layers that come.
    Data,
    /// Layers that go.
    Upload,
    /// None: the caller holds one.
    Held,
}

/// A place among the requests of a host, until dropped.
pub(super) struct Place(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Client {
    /// Makes a client. Does no I/O; certificates and credentials are read when the first request needs them.
    pub fn new(options: ClientOptions) -> Self {
        let auth = Authenticator::new(&options);
        let shared = Shared {
            options: Arc::new(options),
            http: HttpClients::new(),
            auth,
            limits: Mutex::new(BTreeMap::new()),
            settings: Mutex::new(BTreeMap::new()),
            brought: Mutex::new(BTreeMap::new()),
            head_starts: Mutex::new(BTreeMap::new()),
            chunks: Mutex::new(BTreeMap::new()),
            schemes: Mutex::new(BTreeMap::new()),
        };
        Self { shared: Arc::new(shared), observer: None }
    }

    /// The same client with another observer, for instance one that writes to a step's log.
    #[must_use]
    pub fn observed_by(&self, observer: Observer) -> Self {
        Self { shared: self.shared.clone(), observer: Some(observer) }
    }

    /// What the client was told.
    pub fn options(&self) -> &ClientOptions {
        &self.shared.options
    }

    pub(super) fn auth(&self) -> &Authenticator {
        &self.shared.auth
    }

    pub(super) fn notify(&self, notice: &Notice<'_>) {
        tracing::debug!(?notice, "registry");
        if let Some(observer) = &self.observer {
            observer(notice);
        }
    }

    /// The connections to a URL that the endpoint led to.
    pub(super) async fn http_for(&self, url: &Url, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        self.shared.http.client_for(url, endpoint, &self.shared.options).await
    }

    /// The endpoint to ask first, and the others in order; for a host whose scheme is known by now, only that one.
    ///
    /// # Errors
    /// [`RegistryError::Configuration`]: a file is broken, or leaves no host that serves.
    pub(super) fn endpoints(
        &self,
        reference: &ImageRef,
        purpose: Purpose,
    ) -> Result<(Endpoint, Endpoints), RegistryError> {
        let settings = self.settings(reference)?;
        let mut list = endpoints(reference, purpose, &settings, &self.shared.options);
        let schemes = self.shared.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|endpoint| schemes.get(&endpoint.host).is_none_or(|scheme| *scheme == endpoint.scheme));
        let mut list = list.into_iter();
        let Some(first) = list.next() else {
            let (path, name) = (settings.source.clone(), reference.name_only());
            let reason = match purpose {
                Purpose::Push => format!("no host in it takes what is pushed to {name}"),
                Purpose::Resolve | Purpose::Pull => format!("no host in it serves {name}"),
            };
            return Err(RegistryError::Configuration { path, reason });
        };
        Ok((first, list))
    }

    /// What is known of the repository of `reference`; files are read once.
    pub(super) fn settings(&self, reference: &ImageRef) -> KnownSettings {
        let mut known = self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (reference.registry().to_owned(), reference.repository().to_owned());
        if let Some(settings) = known.get(&name) {
            return settings.clone();
        }
        let settings = settings_of(&name.0, &name.1, &self.shared.options).map(Arc::new);
        known.insert(name, settings.clone());
        settings
    }

    /// Remembers that the host speaks this scheme.
    pub(super) fn remember_scheme(&self, endpoint: &Endpoint) {
        let mut schemes = self.shared.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        schemes.insert(endpoint.host.clone(), endpoint.scheme);
    }

    /// Held by whoever brings the blob to the repository of `target`; says whether it is known to be there.
    pub(super) async fn gate(&self, target: &ImageRef, digest: &Digest) -> OwnedMutexGuard<bool> {
        let key = (target.name_only().to_string(), digest.clone());
        let gate = self.shared.brought.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        gate.lock_owned().await
    }

    /// Remembers what was sent to the repository of `target` of a blob that is complete now.
    pub(super) fn keep_head_start(&self, target: &ImageRef, digest: &Digest, start: Arc<HeadStart>) {
        let mut starts = self.shared.head_starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.insert((target.name_only().to_string(), digest.clone()), start);
    }

    /// What was sent of a blob while it was made.
    pub(super) fn take_head_start(&self, target: &ImageRef, digest: &Digest) -> Option<Arc<HeadStart>> {
        let mut starts = self.shared.head_starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.remove(&(target.name_only().to_string(), digest.clone()))
    }

    /// Gives up what was sent of blobs that nobody has pushed: the registries need not keep it.
    pub async fn give_up_unpushed(&self) {
        let starts = std::mem::take(&mut *self.shared.head_starts.lock().unwrap_or_else(PoisonError::into_inner));
        for start in starts.into_values() {
            start.give_up(self).await;
        }
    }

    /// Bytes that one request of an upload carries at most.
    pub(super) fn chunk_bytes(&self, endpoint: &Endpoint) -> u64 {
        let known = self.shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&endpoint.host).copied().unwrap_or(self.options().upload_chunk_bytes.max(1))
    }

    /// Remembers the longest request that the host takes; `u64::MAX` for one that takes no chunks.
    pub(super) fn limit_chunks(&self, endpoint: &Endpoint, most_bytes: u64) {
        let mut known = self.shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(endpoint.host.clone(), most_bytes);
    }

    /// Gives the endpoint to ask after `endpoint` has failed with `error`, and says so.
    ///
    /// A mirror may fail in any way. The registry itself is only asked in another scheme when there was no answer.
    ///
    /// # Errors
    /// Gives `error` back when there is no other endpoint, or none that could help.
    pub(super) fn fall_back(
        &self,
        endpoint: &Endpoint,
        others: &mut Endpoints,
        error: RegistryError,
    ) -> Result<Endpoint, RegistryError> {
        let is_local = matches!(error, RegistryError::Local { .. });
        if is_local || !(endpoint.is_mirror || error.is_unreachable()) {
            return Err(error);
        }
        let Some(next) = others.next() else {
            return Err(error);
        };
        self.notify(&Notice::Fallback { error: &error, next_host: &next.host });
        Ok(next)
    }

    /// Waits for a place among the requests of the host. Places of a kind are given in the order of asking.
    pub(super) async fn place(&self, host: &str, slot: Slot) -> Place {
        let limit = {
            let mut limits = self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let most = self.shared.options.max_requests_per_host.max(1);
            limits.entry(host.to_owned()).or_insert_with(|| HostLimit::new(most)).clone()
        };
        let never_closed = "the semaphores of a host are never closed";
        let permit = match slot {
            Slot::Held => return Place(None),
            Slot::Data => limit.downloads.acquire_owned().await.expect(never_closed),
            Slot::Upload => limit.uploads.acquire_owned().await.expect(never_closed),
            Slot::Small => tokio::select! {
                biased;
                permit = limit.small.acquire_owned() => permit.expect(never_closed),
                permit = limit.downloads.acquire_owned() => permit.expect(never_closed),
            },
        };
        Place(Some(permit))
    }
}

impl HostLimit {
    fn new(most: usize) -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self { downloads: semaphore(most), uploads: semaphore(most), small: semaphore(1) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
