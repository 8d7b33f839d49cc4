//! Reading blobs: streamed, verified, resumed.
//!
//! Spec: `spec/engine.md` §4.2, "Blobs".

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::mpsc;

use super::client::{Client, Notice, Slot};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{self, Endpoint, Purpose};
use super::scopes::Scopes;
use super::tls::authority;
use super::transport::{NO_DATA, Reply, Request, attempt, describe, endpoint_url};
use crate::digest::Sha256;
use crate::image::Descriptor;
use crate::reference::ImageRef;

/// Blobs up to this many bytes may take the place that is kept for small documents.
const SMALL_BLOB: u64 = 256 << 10;

/// Takes the bytes of a blob, in order.
///
/// Bytes come before their digest is verified: nothing made of them may be used until [`Client::fetch_blob`] has
/// returned without an error. A chunk is never given twice.
pub trait BlobSink: Send {
    /// Takes the next bytes; waiting here slows the transfer down. Must not block a thread.
    ///
    /// # Errors
    /// Any error ends the transfer.
    fn write(&mut self, chunk: Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

impl<F> BlobSink for F
where
    F: FnMut(Bytes) -> io::Result<()> + Send,
{
    async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self(chunk)
    }
}

/// A sink that hands the bytes to another task or thread; the channel's bound is how far the network may run ahead.
#[derive(Clone, Debug)]
pub struct ChannelSink(pub mpsc::Sender<Bytes>);

impl BlobSink for ChannelSink {
    async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader of the blob is gone");
        self.0.send(chunk).await.map_err(gone)
    }
}

/// A blob on its way. Survives broken connections and changes of the endpoint.
struct Transfer<'a, S> {
    blob: &'a Descriptor,
    hasher: Sha256,
    received_bytes: u64,
    /// Whether a server has answered a question for a range with nonsense.
    knows_no_ranges: bool,
    sink: &'a mut S,
    progress: &'a mut (dyn FnMut(u64) + Send),
}

/// Why a transfer stopped.
enum Stop {
    /// The connection ended early; the rest can be asked for.
    Broken(String),
    /// Asking again cannot help.
    Fatal(RegistryError),
}

impl Client {
    /// Reads a blob of the repository of `reference` into `sink` and verifies it.
    ///
    /// `progress` is told the bytes received so far. A connection that breaks is taken up where it broke, as long as
    /// tries get further. Foreign layers are looked for at their own addresses first.
    ///
    /// A transfer keeps its place among the host's requests until it is complete, and places are given in the order
    /// of asking: whoever handles layers in an order should ask in that order.
    ///
    /// # Errors
    /// [`RegistryError`]; the sink then holds a part of the blob, or other bytes.
    ///
    /// # Cancellation
    /// Dropping the future ends the transfer.
    pub async fn fetch_blob<S: BlobSink>(
        &self,
        reference: &ImageRef,
        blob: &Descriptor,
        sink: &mut S,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<(), RegistryError> {
        let progress = &mut progress;
        let mut transfer =
            Transfer { blob, hasher: Sha256::new(), received_bytes: 0, knows_no_ranges: false, sink, progress };
        for url in blob.urls.iter().filter_map(|url| Url::parse(url).ok()) {
            let Some(endpoint) = foreign_endpoint(&url) else {
                continue;
            };
            match self.fetch_blob_at(&endpoint, reference, url, &mut transfer).await {
                Ok(()) => return Ok(()),
                Err(error) if transfer.is_spoiled_by(&error) => return Err(error),
                Err(error) => self.notify(&Notice::Fallback { error: &error, next_host: reference.registry() }),
            }
        }
        let (mut endpoint, mut others) = self.endpoints(reference, Purpose::Pull)?;
        loop {
            let attempt = attempt(Operation::FetchBlob, &endpoint, reference, blob.digest.to_string());
            let url = endpoint_url(&endpoint, reference, &format!("blobs/{}", blob.digest), &attempt)?;
            match self.fetch_blob_at(&endpoint, reference, url, &mut transfer).await {
                Ok(()) => return Ok(()),
                Err(error) if transfer.is_spoiled_by(&error) => return Err(error),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// Reads a small blob, such as an image config, into memory and verifies it.
    ///
    /// # Errors
    /// [`RegistryError::TooLarge`] when the descriptor says more than `limit_bytes`; else as [`Self::fetch_blob`].
    pub async fn fetch_small_blob(
        &self,
        reference: &ImageRef,
        blob: &Descriptor,
        limit_bytes: u64,
    ) -> Result<Bytes, RegistryError> {
        if blob.size_bytes > limit_bytes {
            let (endpoint, _) = self.endpoints(reference, Purpose::Pull)?;
            let attempt = attempt(Operation::FetchBlob, &endpoint, reference, blob.digest.to_string());
            return Err(RegistryError::TooLarge { attempt, limit_bytes });
        }
        let mut bytes = Vec::new();
        let mut sink = |chunk: Bytes| {
            bytes.extend_from_slice(&chunk);
            Ok(())
        };
        self.fetch_blob(reference, blob, &mut sink, |_| ()).await?;
        Ok(bytes.into())
    }

    /// Goes on with a transfer at one endpoint until it is complete, or no longer gets further.
    async fn fetch_blob_at<S: BlobSink>(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        url: Url,
        transfer: &mut Transfer<'_, S>,
    ) -> Result<(), RegistryError> {
        let attempt = attempt(Operation::FetchBlob, endpoint, reference, transfer.blob.digest.to_string());
        let repository = endpoint.repository(reference.repository());
        let scopes = Scopes::pull(&repository);
        let request = Request {
            endpoint,
            attempt: &attempt,
            repository: &repository,
            scopes: &scopes,
            slot: Slot::Held,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        // Kept until the end: were it given up when a connection breaks, transfers whose sinks wait for this blob could
        // take all places, and everybody would wait for everybody.
        let slot = if transfer.blob.size_bytes > SMALL_BLOB { Slot::Data } else { Slot::Small };
        let _place = self.place(&endpoint.host, slot).await;
        let mut failures = 0;
        loop {
            let before = transfer.received_bytes;
            let reason = match self.fetch_blob_once(&request, transfer).await {
                Ok(()) => return Ok(()),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Broken(reason)) => reason,
            };
            failures = if transfer.received_bytes > before { 1 } else { failures + 1 };
            let error = RegistryError::Interrupted {
                attempt: attempt.clone(),
                transferred_bytes: transfer.received_bytes,
                total_bytes: transfer.blob.size_bytes,
                reason,
            };
            self.pause_after_break(error, failures).await?;
        }
    }

    /// Asks for what is missing of a blob and reads it as far as it comes.
    async fn fetch_blob_once<S: BlobSink>(
        &self,
        request: &Request<'_>,
        transfer: &mut Transfer<'_, S>,
    ) -> Result<(), Stop> {
        let mut request = request.clone();
        if transfer.received_bytes > 0 && !transfer.knows_no_ranges {
            let range = HeaderValue::from_str(&format!("bytes={}-", transfer.received_bytes));
            request.headers.insert(RANGE, range.expect("digits are valid in a header"));
        }
        let reply = self.send(request.clone()).await.map_err(Stop::Fatal)?;
        let mut skip_bytes = match reply.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&reply) == Some(transfer.received_bytes) => 0,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                // What came is right; the rest can be had by asking for everything.
                transfer.knows_no_ranges = true;
                return Err(Stop::Broken("it sends another range than it was asked for".to_owned()));
            }
            // The server does not know ranges and starts anew.
            status if status.is_success() => transfer.received_bytes,
            _ => return Err(Stop::Fatal(self.status_error(&request, reply).await)),
        };
        let Reply { mut response, .. } = reply;
        loop {
            let next = tokio::time::timeout(self.options().retry.stall_timeout, response.chunk()).await;
            let broken = match next {
                Ok(Ok(Some(mut chunk))) => {
                    let skipped = skip_bytes.min(chunk.len() as u64);
                    skip_bytes -= skipped;
                    transfer.take(chunk.split_off(skipped as usize), request.attempt).await.map_err(Stop::Fatal)?;
                    continue;
                }
                Ok(Ok(None)) => "the server closed the connection".to_owned(),
                Ok(Err(error)) => describe(&error),
                Err(_) => NO_DATA.to_owned(),
            };
            if transfer.received_bytes < transfer.blob.size_bytes {
                return Err(Stop::Broken(broken));
            }
            return transfer.verify(request.attempt).map_err(Stop::Fatal);
        }
    }
}

impl<S: BlobSink> Transfer<'_, S> {
    /// Whether no other server can complete the transfer: what the sink has got cannot be taken back.
    fn is_spoiled_by(&self, error: &RegistryError) -> bool {
        matches!(error, RegistryError::Local { .. } | RegistryError::DigestMismatch { .. })
    }

    async fn take(&mut self, chunk: Bytes, attempt: &Arc<Attempt>) -> Result<(), RegistryError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let received_bytes = self.received_bytes + chunk.len() as u64;
        if received_bytes > self.blob.size_bytes {
            let expected_bytes = self.blob.size_bytes;
            return Err(RegistryError::SizeMismatch {
                attempt: attempt.clone(),
                expected_bytes,
                actual_bytes: received_bytes,
            });
        }
        self.hasher.update(&chunk);
        self.received_bytes = received_bytes;
        let written = self.sink.write(chunk).await;
        written.map_err(|error| RegistryError::Local { attempt: attempt.clone(), reason: error.to_string() })?;
        (self.progress)(received_bytes);
        Ok(())
    }

    fn verify(&self, attempt: &Arc<Attempt>) -> Result<(), RegistryError> {
        let actual = self.hasher.clone().finish();
        if actual == self.blob.digest {
            return Ok(());
        }
        let expected = self.blob.digest.clone();
        Err(RegistryError::DigestMismatch { attempt: attempt.clone(), expected, actual })
    }
}

/// The address of a foreign layer as an endpoint of its own, so that nothing meant for the registry goes there.
fn foreign_endpoint(url: &Url) -> Option<Endpoint> {
    let scheme = match url.scheme() {
        "https" => "https",
        "http" => "http",
        _ => return None,
    };
    Some(hosts::foreign_endpoint(scheme, authority(url)))
}

/// The first offset of `Content-Range: bytes 5-9/10`.
pub(super) fn range_start(reply: &Reply) -> Option<u64> {
    let range = reply.header(CONTENT_RANGE)?.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.parse().ok()
}
