//! Writing: blobs and manifests.
//!
//! A blob is asked for, then mounted from another repository, then sent as one stream: some registries know no chunks,
//! and those that do gain nothing from them.
//!
//! Spec: `spec/engine.md` §4.3.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::client::{Client, Slot};
use super::error::{Attempt, Operation, RegistryError, is_transient_status};
use super::hosts::{Endpoint, Purpose};
use super::scopes::Scopes;
use super::transport::{Body, Failure, Reply, Request, attempt, endpoint_url, protocol};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::reference::ImageRef;

/// Bytes handed to the network at a time.
const CHUNK_SIZE: usize = 256 << 10;
/// How often an upload is looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How long a registry may take to answer once it has everything: it may move a large blob to another store first.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The bytes of a blob, from the start.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// How a blob came to be in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was taken over from another repository of the registry.
    Mounted {
        /// That repository.
        from: String,
    },
    /// It was sent.
    Uploaded,
}

/// A blob and what is needed to send it.
#[derive(Clone, Copy)]
struct Upload<'a> {
    target: &'a ImageRef,
    blob: &'a Descriptor,
    open: &'a (dyn Fn() -> io::Result<BlobReader> + Send + Sync),
}

/// Is told the bytes sent so far.
type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

/// What came of asking for a mount.
enum Mount {
    Done,
    /// The registry wants the bytes, here.
    UploadTo(Url),
    /// We may not read the other repository.
    Denied,
}

/// Why an upload did not end well.
enum Stop {
    /// The token ran out; a new one may help.
    Unauthorized(Reply),
    /// Sending it again can help, after the pause that the registry asks for.
    Passing(RegistryError, Option<Duration>),
    /// It cannot.
    Fatal(RegistryError),
}

impl Client {
    /// Asks whether a blob is in the repository of `target`.
    ///
    /// # Errors
    /// [`RegistryError`]; absence is none.
    pub async fn blob_exists(&self, target: &ImageRef, digest: &Digest) -> Result<bool, RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.check_blob(&endpoint, target, digest, Operation::CheckBlob).await {
                Ok(exists) => return Ok(exists),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// Asks whether blobs may be sent to the repository of `target`: begins an upload, and gives it up.
    ///
    /// # Errors
    /// [`RegistryError`]: they may not, or the registry cannot be asked.
    pub async fn check_push(&self, target: &ImageRef) -> Result<(), RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.check_push_at(&endpoint, target).await {
                Ok(()) => return Ok(()),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    async fn check_push_at(&self, endpoint: &Endpoint, target: &ImageRef) -> Result<(), RegistryError> {
        let attempt = attempt(Operation::UploadBlob, endpoint, target, target.manifest_reference());
        let repository = endpoint.repository(target.repository());
        let scopes = Scopes::push(&repository);
        let session = self.open_session(endpoint, target, &attempt, &scopes).await?;
        if endpoint.is_home_of(&session) {
            let request = upload_request(endpoint, &attempt, &repository, &scopes, Method::DELETE, session);
            // A registry that knows no giving up forgets the upload by itself.
            drop(self.send_once(&request, self.authorization(request.need()).await?, Body::Bytes(Bytes::new())).await);
        }
        Ok(())
    }

    /// Brings a blob into the repository of `target`, sending it only if there is no other way.
    ///
    /// `open` gives the blob's bytes from the start; it is called once a try. `mounts` are repositories of the same
    /// registry that are known to have the blob; the one most like the target is tried. `progress` is told the bytes
    /// sent so far, and may be told less after a failed try.
    ///
    /// # Errors
    /// [`RegistryError`], after several tries if the reason may pass.
    ///
    /// # Cancellation
    /// Dropping the future ends the upload; the registry forgets the unfinished part after a while.
    pub async fn push_blob(
        &self,
        target: &ImageRef,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
        mounts: &[String],
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<Pushed, RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        let mount = best_mount(target.repository(), mounts);
        let upload = Upload { target, blob, open };
        loop {
            match self.push_blob_at(&endpoint, mount, upload, &mut progress).await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// [`push_blob`](Self::push_blob) for bytes in memory, such as an image config.
    ///
    /// # Errors
    /// As [`push_blob`](Self::push_blob).
    pub async fn push_small_blob(
        &self,
        target: &ImageRef,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, RegistryError> {
        let blob = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
        self.push_blob(target, &blob, &open, &[], |_| ()).await?;
        Ok(blob)
    }

    /// Puts a manifest or index under the tag of `target`, or under its digest if there is no tag.
    ///
    /// Everything that it names must be there already. Nothing is sent if the registry has just this under that name.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::DigestMismatch`] also if `target` names another digest than that of `bytes`.
    pub async fn push_manifest(
        &self,
        target: &ImageRef,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, RegistryError> {
        let manifest = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.push_manifest_at(&endpoint, target, &manifest, &bytes).await {
                Ok(()) => return Ok(manifest),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    async fn push_manifest_at(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        manifest: &Descriptor,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let object = target.tag().map_or_else(|| manifest.digest.to_string(), str::to_owned);
        let attempt = attempt(Operation::PutManifest, endpoint, target, object.clone());
        if let Some(expected) = target.digest().filter(|digest| **digest != manifest.digest).cloned() {
            return Err(RegistryError::DigestMismatch { attempt, expected, actual: manifest.digest.clone() });
        }
        let named = target.name_only();
        let named = match target.tag() {
            Some(tag) => named.with_tag(tag).expect("the tag of a reference is well formed"),
            None => named.with_digest(manifest.digest.clone()),
        };
        match self.head_manifest(endpoint, &named, Operation::PutManifest).await {
            Ok(Some(found)) if found.digest == manifest.digest && found.media_type == manifest.media_type => {
                return Ok(());
            }
            Ok(_) | Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let repository = endpoint.repository(target.repository());
        let content_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|_| protocol(&attempt, "the media type cannot stand in a header"))?;
        let request = Request {
            endpoint,
            attempt: &attempt,
            repository: &repository,
            scopes: &Scopes::push(&repository),
            slot: Slot::Small,
            method: Method::PUT,
            url: endpoint_url(endpoint, target, &format!("manifests/{object}"), &attempt)?,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
            body: bytes.clone(),
        };
        let reply = self.send(request.clone()).await?;
        if !reply.status().is_success() {
            return Err(self.status_error(&request, reply).await);
        }
        Ok(())
    }

    async fn push_blob_at(
        &self,
        endpoint: &Endpoint,
        mount: Option<&str>,
        upload: Upload<'_>,
        progress: Progress<'_>,
    ) -> Result<Pushed, RegistryError> {
        let attempt = attempt(Operation::UploadBlob, endpoint, upload.target, upload.blob.digest.to_string());
        let repository = endpoint.repository(upload.target.repository());
        let scopes = Scopes::push(&repository);
        let mut mount = mount;
        let mut answered_challenge = false;
        let mut failures = 0;
        loop {
            // Also after a failed try: the blob may be complete although the answer was lost.
            if self.check_blob(endpoint, upload.target, &upload.blob.digest, Operation::UploadBlob).await? {
                return Ok(Pushed::Existed);
            }
            let mounted = match mount.take() {
                Some(from) => match self.mount(endpoint, upload, &attempt, from).await? {
                    Mount::Done => return Ok(Pushed::Mounted { from: from.to_owned() }),
                    Mount::UploadTo(url) => Some(url),
                    Mount::Denied => None,
                },
                None => None,
            };
            let url = match mounted {
                Some(url) => url,
                None => self.open_session(endpoint, upload.target, &attempt, &scopes).await?,
            };
            let request = upload_request(endpoint, &attempt, &repository, &scopes, Method::PUT, url);
            let (error, delay) = match self.put_blob(&request, upload, progress).await {
                Ok(()) => return Ok(Pushed::Uploaded),
                Err(Stop::Unauthorized(reply)) if !answered_challenge => {
                    answered_challenge = true;
                    let rejected = self.authorization(request.need()).await?;
                    match self.reauthorize(&request, &reply, rejected.as_ref()).await? {
                        Some(_) => continue,
                        None => return Err(self.status_error(&request, reply).await),
                    }
                }
                Err(Stop::Unauthorized(reply)) => return Err(self.status_error(&request, reply).await),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Passing(error, delay)) => (error, delay),
            };
            failures += 1;
            let delay = delay.unwrap_or_else(|| self.options().retry.delay(failures));
            self.pause(error, failures, delay).await?;
        }
    }

    async fn check_blob(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        digest: &Digest,
        operation: Operation,
    ) -> Result<bool, RegistryError> {
        let attempt = attempt(operation, endpoint, target, digest.to_string());
        let repository = endpoint.repository(target.repository());
        let scopes = match operation {
            // One token for the question and for what follows from it.
            Operation::UploadBlob => Scopes::push(&repository),
            _ => Scopes::pull(&repository),
        };
        let url = endpoint_url(endpoint, target, &format!("blobs/{digest}"), &attempt)?;
        let request = upload_request(endpoint, &attempt, &repository, &scopes, Method::HEAD, url);
        let reply = self.send(request.clone()).await?;
        match reply.status() {
            status if status.is_success() => Ok(true),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.status_error(&request, reply).await),
            // Whatever else it is, the upload will tell.
            _ => Ok(false),
        }
    }

    /// Asks the registry to take the blob over from another repository.
    async fn mount(
        &self,
        endpoint: &Endpoint,
        upload: Upload<'_>,
        attempt: &Arc<Attempt>,
        from: &str,
    ) -> Result<Mount, RegistryError> {
        let repository = endpoint.repository(upload.target.repository());
        let scopes = Scopes::push(&repository).and(from, &["pull"]);
        let mut url = endpoint_url(endpoint, upload.target, "blobs/uploads/", attempt)?;
        url.query_pairs_mut().append_pair("mount", &upload.blob.digest.to_string()).append_pair("from", from);
        let request = upload_request(endpoint, attempt, &repository, &scopes, Method::POST, url);
        let reply = match self.send(request).await {
            Err(error) if error.is_unauthorized() => return Ok(Mount::Denied),
            outcome => outcome?,
        };
        match reply.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => upload_url(&reply, endpoint, attempt).map(Mount::UploadTo),
            _ => Ok(Mount::Denied),
        }
    }

    async fn open_session(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        attempt: &Arc<Attempt>,
        scopes: &Scopes,
    ) -> Result<Url, RegistryError> {
        let repository = endpoint.repository(target.repository());
        let url = endpoint_url(endpoint, target, "blobs/uploads/", attempt)?;
        let request = upload_request(endpoint, attempt, &repository, scopes, Method::POST, url);
        let reply = self.send(request.clone()).await?;
        if !reply.status().is_success() {
            return Err(self.status_error(&request, reply).await);
        }
        upload_url(&reply, endpoint, attempt)
    }

    /// Sends the whole blob once.
    async fn put_blob(&self, request: &Request<'_>, upload: Upload<'_>, progress: Progress<'_>) -> Result<(), Stop> {
        let mut request = request.clone();
        request.url.query_pairs_mut().append_pair("digest", &upload.blob.digest.to_string());
        request.slot = if upload.blob.size_bytes > CHUNK_SIZE as u64 { Slot::Upload } else { Slot::Small };
        let authorization = if request.endpoint.is_home_of(&request.url) {
            self.authorization(request.need()).await.map_err(Stop::Fatal)?
        } else {
            None
        };

        let local = |reason: String| RegistryError::Local { attempt: request.attempt.clone(), reason };
        let reader = (upload.open)().map_err(|error| Stop::Fatal(local(error.to_string())))?;
        let source = Arc::new(Source::new(upload.blob.size_bytes));
        let body = source.clone().stream(reader);
        let place = self.place(&request.endpoint.host, request.slot).await;
        let body = Body::Stream(body, upload.blob.size_bytes);
        let answer = self.send_placed(place, &request, authorization, body);
        let outcome = self.watch(answer, &source, request.attempt, progress).await;
        if let Some(reason) = source.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Stop::Fatal(local(reason)));
        }
        let reply = match outcome {
            Ok(reply) => reply,
            Err(Failure::Fatal(error)) => return Err(Stop::Fatal(error)),
            Err(Failure::Connect(error) | Failure::Broken(error)) => return Err(Stop::Passing(error, None)),
        };
        match reply.status() {
            status if status.is_success() => {
                progress(upload.blob.size_bytes);
                Ok(())
            }
            StatusCode::UNAUTHORIZED => Err(Stop::Unauthorized(reply)),
            // 404 and 416 are what registries say when they have lost the upload session.
            status => {
                let is_lost = matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE);
                let is_passing = is_lost || is_transient_status(status.as_u16());
                let most = self.options().retry.max_retry_after;
                let delay = reply.retry_after().map(|delay| delay.min(most));
                let error = self.status_error(&request, reply).await;
                Err(if is_passing { Stop::Passing(error, delay) } else { Stop::Fatal(error) })
            }
        }
    }

    /// Waits for the answer to an upload, reports how far it is, and gives up when it stands still.
    async fn watch(
        &self,
        answer: impl Future<Output = Result<Reply, Failure>>,
        source: &Source,
        attempt: &Arc<Attempt>,
        progress: Progress<'_>,
    ) -> Result<Reply, Failure> {
        let mut answer = std::pin::pin!(answer);
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        let (mut sent_bytes, mut moved_at) = (0, Instant::now());
        loop {
            tokio::select! {
                biased;
                outcome = &mut answer => return outcome,
                _ = ticks.tick() => {}
            }
            let now_sent = source.sent_bytes.load(Ordering::Relaxed);
            if now_sent != sent_bytes {
                (sent_bytes, moved_at) = (now_sent, Instant::now());
                progress(sent_bytes);
            }
            let is_complete = sent_bytes == source.len;
            let patience = if is_complete { COMMIT_TIMEOUT } else { self.options().retry.stall_timeout };
            if moved_at.elapsed() > patience {
                return Err(Failure::Broken(RegistryError::Interrupted {
                    attempt: attempt.clone(),
                    transferred_bytes: sent_bytes,
                    total_bytes: source.len,
                    reason: "the upload stands still".to_owned(),
                }));
            }
        }
    }
}

/// What an upload's body tells those outside of it.
struct Source {
    /// Bytes that must come.
    len: u64,
    sent_bytes: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Source {
    fn new(len: u64) -> Self {
        Self { len, sent_bytes: AtomicU64::new(0), error: Mutex::new(None) }
    }

    /// A body of exactly `len` bytes from `reader`; notes every byte, and why it ended too early.
    fn stream(self: Arc<Self>, reader: BlobReader) -> reqwest::Body {
        let chunks = ReaderStream::with_capacity(reader, CHUNK_SIZE);
        let end = futures_util::stream::once(async { Ok(Bytes::new()) });
        let checked = chunks.chain(end).map(move |chunk| {
            chunk.and_then(|chunk| self.count(chunk)).inspect_err(|error| {
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            })
        });
        reqwest::Body::wrap_stream(checked)
    }

    /// Counts a chunk; the empty one is the end.
    fn count(&self, chunk: Bytes) -> io::Result<Bytes> {
        let len = self.len;
        let sent = self.sent_bytes.load(Ordering::Relaxed) + chunk.len() as u64;
        if sent > len || chunk.is_empty() && sent < len {
            let relation = if sent > len { "more than" } else { "only" };
            return Err(io::Error::other(format!("blob has {relation} {} bytes, expected {len}", sent.min(len))));
        }
        self.sent_bytes.store(sent, Ordering::Relaxed);
        Ok(chunk)
    }
}

fn upload_request<'a>(
    endpoint: &'a Endpoint,
    attempt: &'a Arc<Attempt>,
    repository: &'a str,
    scopes: &'a Scopes,
    method: Method,
    url: Url,
) -> Request<'a> {
    let octets = HeaderValue::from_static("application/octet-stream");
    let is_body = method == Method::PUT;
    let headers = is_body.then_some((CONTENT_TYPE, octets)).into_iter().collect();
    Request { endpoint, attempt, repository, scopes, slot: Slot::Small, method, url, headers, body: Bytes::new() }
}

/// Where an upload goes: `Location`, which may be relative.
fn upload_url(reply: &Reply, endpoint: &Endpoint, attempt: &Arc<Attempt>) -> Result<Url, RegistryError> {
    let location = reply.header(LOCATION).ok_or_else(|| protocol(attempt, "it names no place to upload to"))?;
    let mut url = reply
        .response
        .url()
        .join(location)
        .map_err(|_| protocol(attempt, "the place that it names to upload to is no URL"))?;
    // Registries behind a proxy that ends TLS often do not know that they are reached by HTTPS.
    let mut secure = url.clone();
    if url.scheme() == "http" && secure.set_scheme("https").is_ok() && endpoint.is_home_of(&secure) {
        url = secure;
    }
    Ok(url)
}

/// The repository with the longest common path with `target`; the first of equals, never the target itself.
fn best_mount<'a>(target: &str, candidates: &'a [String]) -> Option<&'a str> {
    let common = |other: &str| target.split('/').zip(other.split('/')).take_while(|(a, b)| a == b).count();
    candidates
        .iter()
        .filter(|candidate| *candidate != target)
        .rev()
        .max_by_key(|candidate| common(candidate))
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_repository_is_mounted_from() {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cases: [(&[&str], Option<&str>); 5] = [
            (&[], None),
            (&["team/app"], None),
            (&["x/y", "team/base", "team/other"], Some("team/base")),
            (&["x/y", "z"], Some("x/y")),
            (&["team", "team/app/cache"], Some("team/app/cache")),
        ];
        for (candidates, expected) in cases {
            assert_eq!(best_mount("team/app", &own(candidates)), expected, "{candidates:?}");
        }
    }
}
