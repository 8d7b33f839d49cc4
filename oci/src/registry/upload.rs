//! Sending the bytes of a blob: in one request, or a long one in chunks, each of which the registry has for good.
//!
//! After a failure the registry is asked how far it got, and the rest goes there; one that has forgotten the upload, or
//! says something that cannot be, gets it from the start. Registries that know no chunks, or want smaller ones, are
//! remembered.
//!
//! Spec: OCI distribution-spec 1.1, "Pushing blobs"; `spec/engine.md` §4.3.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::client::{Client, Slot};
use super::error::{Attempt, RegistryError, is_transient_status};
use super::hosts::Endpoint;
use super::push::BlobReader;
use super::scopes::Scopes;
use super::transport::{Body, Failure, Reply, Request, protocol};
use crate::image::Descriptor;
use crate::reference::ImageRef;

/// Bytes handed to the network at a time.
const READ_BYTES: usize = 256 << 10;
/// How often an upload is looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How long a registry may take to answer once it has everything: it may move a large blob to another store first.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Chunks are not made smaller than this: stores behind registries take no smaller parts.
const MIN_CHUNK_BYTES: u64 = 5 << 20;
/// How much smaller the next request is when one was too long for a proxy in front of the registry.
const SMALLER: u64 = 4;
/// Times that an upload begins again because the registry wants requests of another size.
pub(super) const MAX_SIZES: u32 = 6;

/// A blob and what is needed to send it.
#[derive(Clone, Copy)]
pub(super) struct Upload<'a> {
    pub(super) target: &'a ImageRef,
    pub(super) blob: &'a Descriptor,
    pub(super) open: Open<'a>,
}

/// Gives the bytes of a blob from the start.
pub(super) type Open<'a> = &'a (dyn Fn() -> io::Result<BlobReader> + Send + Sync);

/// Is told the bytes sent so far.
pub(super) type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

/// Makes a request of the upload: method and URL.
type Requests<'a, 'r> = &'a (dyn Fn(Method, Url) -> Request<'r> + Sync);

/// An upload that a registry has begun to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Where the next bytes go.
    pub(super) url: Url,
    /// Bytes that the registry has.
    pub(super) offset_bytes: u64,
    /// The smallest chunk that it takes, but for the last.
    pub(super) min_chunk_bytes: u64,
}

/// Why an upload did not end well.
pub(super) enum Stop<'r> {
    /// The token ran out; a new one may help.
    Unauthorized(Box<(Request<'r>, Reply)>),
    /// The registry wants requests of another size, which is remembered: begin again.
    OtherSize(RegistryError),
    /// Sending it again can help, after the pause that the registry asks for.
    Passing(RegistryError, Option<Duration>),
    /// It cannot.
    Fatal(RegistryError),
}

/// The reader of a blob, between two requests.
#[derive(Default)]
pub(super) struct Feed(Arc<tokio::sync::Mutex<Option<Positioned>>>);

struct Positioned {
    reader: BlobReader,
    at: u64,
}

impl Client {
    /// Sends what the registry lacks of a blob. `session` moves on with every chunk that the registry has taken.
    pub(super) async fn send_rest<'r>(
        &self,
        session: &mut Session,
        feed: &mut Feed,
        upload: Upload<'_>,
        request: Requests<'_, 'r>,
        progress: Progress<'_>,
    ) -> Result<(), Stop<'r>> {
        let size = upload.blob.size_bytes;
        loop {
            let rest = size - session.offset_bytes;
            let mut request = request(Method::PUT, session.url.clone());
            let chunk = self.chunk_bytes(request.endpoint).max(session.min_chunk_bytes);
            if rest > chunk {
                self.send_chunk(session, chunk, feed, (upload.open, size), request, progress).await?;
                continue;
            }
            request.url.query_pairs_mut().append_pair("digest", &upload.blob.digest.to_string());
            let part = Part { offset: session.offset_bytes, len: rest, is_last: true, size };
            let reply = self.send_part(&request, part, feed, upload.open, progress).await?;
            if !reply.status().is_success() {
                return Err(self.why_not(request, reply, part).await);
            }
            progress(size);
            return Ok(());
        }
    }

    /// Sends `len` bytes of a blob of `size`, which are not its last. `session` moves on by what the registry has taken.
    pub(super) async fn send_chunk<'r>(
        &self,
        session: &mut Session,
        len: u64,
        feed: &mut Feed,
        (open, size): (Open<'_>, u64),
        mut request: Request<'r>,
        progress: Progress<'_>,
    ) -> Result<(), Stop<'r>> {
        let range = format!("{}-{}", session.offset_bytes, session.offset_bytes + len - 1);
        let range = HeaderValue::from_str(&range).expect("digits are valid in a header");
        request.headers.insert(CONTENT_RANGE, range);
        request.method = Method::PATCH;
        let part = Part { offset: session.offset_bytes, len, is_last: false, size };
        let reply = self.send_part(&request, part, feed, open, progress).await?;
        if !reply.status().is_success() {
            return Err(self.why_not(request, reply, part).await);
        }
        *session = Session {
            min_chunk_bytes: session.min_chunk_bytes,
            ..session_of(&reply, request.endpoint, request.attempt).map_err(Stop::Fatal)?
        };
        // Without a word of how much it has, it has what it was sent.
        session.offset_bytes = received(&reply).unwrap_or(part.offset + len);
        if session.offset_bytes <= part.offset || session.offset_bytes > part.offset + len {
            let reason = "it says that it has other bytes of an upload than it was sent";
            return Err(Stop::Passing(protocol(request.attempt, reason), None));
        }
        Ok(())
    }

    /// Asks how far the registry has the upload of a blob of that size, after it broke off; `None` if it has to begin again.
    pub(super) async fn session_as_it_is<'r>(
        &self,
        session: Session,
        size_bytes: u64,
        request: Requests<'_, 'r>,
    ) -> Option<Session> {
        let request = request(Method::GET, session.url.clone());
        // Another host has been given an address that is good for one request.
        if !request.endpoint.is_home_of(&session.url) || size_bytes <= READ_BYTES as u64 {
            return None;
        }
        let authorization = self.authorization(request.need()).await.ok()?;
        let reply = self.send_once(&request, authorization, Body::Bytes(Bytes::new())).await.ok()?;
        if !reply.status().is_success() {
            return None;
        }
        let offset_bytes = received(&reply)?;
        let url = match reply.header(LOCATION) {
            Some(_) => upload_url(&reply, request.endpoint, request.attempt).ok()?,
            None => session.url,
        };
        // What is complete has another way to be asked for.
        (offset_bytes < size_bytes).then_some(Session { url, offset_bytes, ..session })
    }

    /// Tells the registry that nothing more comes, if it takes that from us. One that knows no such request forgets the upload
    /// by itself.
    pub(super) async fn end_session(&self, request: &Request<'_>) {
        if request.endpoint.is_home_of(&request.url)
            && let Ok(authorization) = self.authorization(request.need()).await
        {
            drop(self.send_once(request, authorization, Body::Bytes(Bytes::new())).await);
        }
    }

    /// Sends one request with a part of the blob.
    async fn send_part<'r>(
        &self,
        request: &Request<'r>,
        part: Part,
        feed: &mut Feed,
        open: Open<'_>,
        progress: Progress<'_>,
    ) -> Result<Reply, Stop<'r>> {
        let mut request = request.clone();
        request.slot = if part.len > READ_BYTES as u64 { Slot::Upload } else { Slot::Small };
        let authorization = if request.endpoint.is_home_of(&request.url) {
            self.authorization(request.need()).await.map_err(Stop::Fatal)?
        } else {
            None
        };
        let local = |reason: String| Stop::Fatal(RegistryError::Local { attempt: request.attempt.clone(), reason });
        let place = self.place(&request.endpoint.host, request.slot).await;
        let reader = feed.at(part, open).await.map_err(|error| local(error.to_string()))?;
        let source = Arc::new(Source::new(part));
        let body = Body::Stream(source.clone().stream(reader), part.len);
        let answer = self.send_placed(place, &request, authorization, body);
        let outcome = self.watch(answer, &source, request.attempt, progress).await;
        if let Some(reason) = source.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(local(reason));
        }
        match outcome {
            Ok(reply) => Ok(reply),
            Err(Failure::Fatal(error)) => Err(Stop::Fatal(error)),
            Err(Failure::Connect(error) | Failure::Broken(error)) => Err(Stop::Passing(error, None)),
        }
    }

    /// What an answer to a part means that is no success.
    async fn why_not<'r>(&self, request: Request<'r>, reply: Reply, part: Part) -> Stop<'r> {
        let status = reply.status();
        if status == StatusCode::UNAUTHORIZED {
            return Stop::Unauthorized(Box::new((request, reply)));
        }
        let most = self.options().retry.max_retry_after;
        let delay = reply.retry_after().map(|delay| delay.min(most));
        let error = self.status_error(&request, reply).await;
        if is_transient_status(status.as_u16()) {
            return Stop::Passing(error, delay);
        }
        let is_in_chunks = !part.is_last || part.offset > 0;
        match status {
            StatusCode::PAYLOAD_TOO_LARGE if part.len > MIN_CHUNK_BYTES => {
                self.limit_chunks(request.endpoint, (part.len / SMALLER).max(MIN_CHUNK_BYTES));
                Stop::OtherSize(error)
            }
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::FORBIDDEN => Stop::Fatal(error),
            // What registries say when they have lost the upload session.
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE if !is_in_chunks || part.offset > 0 => {
                Stop::Passing(error, delay)
            }
            // A registry that takes no chunks has many ways to say so, some only at the end.
            _ if is_in_chunks => {
                self.limit_chunks(request.endpoint, u64::MAX);
                Stop::OtherSize(error)
            }
            _ => Stop::Fatal(error),
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
                progress(source.part.offset + sent_bytes);
            }
            let is_complete = sent_bytes == source.part.len;
            let patience = if is_complete { COMMIT_TIMEOUT } else { self.options().retry.stall_timeout };
            if moved_at.elapsed() > patience {
                return Err(Failure::Broken(RegistryError::Interrupted {
                    attempt: attempt.clone(),
                    transferred_bytes: source.part.offset + sent_bytes,
                    total_bytes: source.part.size,
                    reason: "the upload stands still".to_owned(),
                }));
            }
        }
    }
}

impl Feed {
    /// The reader at the beginning of a part: where it is, or opened again and led there.
    async fn at(&mut self, part: Part, open: Open<'_>) -> io::Result<OwnedMutexGuard<Option<Positioned>>> {
        let mut guard = match self.0.clone().try_lock_owned() {
            Ok(guard) => guard,
            // A connection that was given up and has not noticed yet holds it.
            Err(_) => {
                self.0 = Arc::default();
                self.0.clone().lock_owned().await
            }
        };
        let mut positioned = match guard.take() {
            Some(positioned) if positioned.at <= part.offset => positioned,
            _ => Positioned { reader: open()?, at: 0 },
        };
        let skip = part.offset - positioned.at;
        let skipped = tokio::io::copy(&mut (&mut positioned.reader).take(skip), &mut tokio::io::sink()).await?;
        if skipped < skip {
            return Err(only(positioned.at + skipped, part.size));
        }
        positioned.at = part.offset;
        *guard = Some(positioned);
        Ok(guard)
    }
}

/// Which bytes of a blob a request carries.
#[derive(Clone, Copy)]
struct Part {
    offset: u64,
    len: u64,
    is_last: bool,
    /// Bytes of the whole blob.
    size: u64,
}

/// What a request's body tells those outside of it.
struct Source {
    part: Part,
    sent_bytes: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Source {
    fn new(part: Part) -> Self {
        Self { part, sent_bytes: AtomicU64::new(0), error: Mutex::new(None) }
    }

    /// A body of exactly the part; notes every byte, and why it ended too early.
    fn stream(self: Arc<Self>, reader: OwnedMutexGuard<Option<Positioned>>) -> reqwest::Body {
        let chunks = futures_util::stream::unfold(Some(reader), move |reader| {
            let source = self.clone();
            async move {
                let mut reader = reader?;
                match source.next(&mut reader).await {
                    Ok(chunk) if chunk.is_empty() => None,
                    Ok(chunk) => Some((Ok(chunk), Some(reader))),
                    Err(error) => {
                        *source.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                        Some((Err(error), None))
                    }
                }
            }
        });
        reqwest::Body::wrap_stream(chunks)
    }

    /// The next bytes; none at the end of the part.
    async fn next(&self, reader: &mut Option<Positioned>) -> io::Result<Bytes> {
        let Some(positioned) = reader else { return Ok(Bytes::new()) };
        let left = self.part.len - self.sent_bytes.load(Ordering::Relaxed);
        // Of the last part, more is read than there should be, to see that there is no more.
        let wanted =
            if self.part.is_last { READ_BYTES } else { READ_BYTES.min(usize::try_from(left).unwrap_or(READ_BYTES)) };
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let chunk = read(&mut positioned.reader, wanted).await?;
        positioned.at += chunk.len() as u64;
        if chunk.len() as u64 > left {
            let size = self.part.size;
            return Err(io::Error::other(format!("blob has more than {size} bytes, expected {size}")));
        }
        if chunk.is_empty() && left > 0 {
            return Err(only(positioned.at, self.part.size));
        }
        self.sent_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(chunk)
    }
}

async fn read(reader: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(most);
    reader.take(most as u64).read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}

fn only(got: u64, expected: u64) -> io::Error {
    io::Error::other(format!("blob has only {got} bytes, expected {expected}"))
}

/// A request of an upload.
pub(super) fn upload_request<'a>(
    endpoint: &'a Endpoint,
    attempt: &'a Arc<Attempt>,
    repository: &'a str,
    scopes: &'a Scopes,
    method: Method,
    url: Url,
) -> Request<'a> {
    let octets = HeaderValue::from_static("application/octet-stream");
    let has_body = matches!(method, Method::PUT | Method::PATCH);
    let headers: HeaderMap = has_body.then_some((CONTENT_TYPE, octets)).into_iter().collect();
    Request { endpoint, attempt, repository, scopes, slot: Slot::Small, method, url, headers, body: Bytes::new() }
}

/// The upload that a registry has begun.
pub(super) fn session_of(reply: &Reply, endpoint: &Endpoint, attempt: &Arc<Attempt>) -> Result<Session, RegistryError> {
    let min_chunk_bytes = reply.header("oci-chunk-min-length").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Ok(Session { url: upload_url(reply, endpoint, attempt)?, offset_bytes: 0, min_chunk_bytes })
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
    if !endpoint.may_lead_to(&url) {
        return Err(protocol(attempt, "it wants what is uploaded by plain HTTP"));
    }
    Ok(url)
}

/// Bytes that a registry says it has: `Range: 0-N`, where N is the last one. `None` if it does not say, or has none: some
/// write `0-0` for nothing.
fn received(reply: &Reply) -> Option<u64> {
    let range = reply.header(RANGE)?.trim();
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let last: u64 = last.parse().ok()?;
    (first == "0" && last > 0).then(|| last.checked_add(1))?
}
