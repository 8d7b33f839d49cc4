//! Reading: which manifest a reference names, manifests, blobs.
//!
//! Spec: `spec/engine.md` §4.2.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::mpsc;

use super::client::{Client, Notice, Slot};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::scopes::Scopes;
use super::transport::{ReadError, Reply, Request, describe, protocol, read_limited};
use crate::digest::{Digest, Sha256};
use crate::image::Descriptor;
use crate::media_type::{self, DOCKER_LIST, DOCKER_MANIFEST, ManifestKindError, OCI_INDEX, OCI_MANIFEST};
use crate::reference::ImageRef;

/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST_SIZE: u64 = 4 * 1048 * 1048;
const NO_DATA: &str = "no data in time";
const DIGEST_HEADER: &str = "docker-content-digest";

/// What a reference names at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Media type, digest and size of the manifest or index.
    pub descriptor: Descriptor,
    /// The manifest itself, verified, when it came along; else [`Client::fetch_manifest`] gets it.
    pub bytes: Option<Bytes>,
}

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
    /// Asks a registry which manifest `reference` names.
    ///
    /// A tag costs a HEAD request, whose answer is believed; `latest` stands for a missing tag. A digest is read at
    /// once, because its manifest is wanted next. Mirrors are asked first.
    ///
    /// # Errors
    /// [`RegistryError`]; of several endpoints, that of the last.
    pub async fn resolve(&self, reference: &ImageRef) -> Result<Resolved, RegistryError> {
        let endpoints = self.endpoints(reference.registry(), Purpose::Pull);
        for (at, endpoint) in endpoints.iter().enumerate() {
            match self.resolve_at(endpoint, reference).await {
                Err(error) if self.falls_back(endpoint, endpoints.get(at + 1), &error) => {}
                outcome => return outcome,
            }
        }
        unreachable!("a registry has at least one endpoint, and the last one returns")
    }

    /// Reads the manifest or index that `descriptor` names, from the repository of `reference`.
    ///
    /// The bytes are verified against digest and size.
    ///
    /// # Errors
    /// [`RegistryError`]; of several endpoints, that of the last.
    pub async fn fetch_manifest(&self, reference: &ImageRef, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let endpoints = self.endpoints(reference.registry(), Purpose::Pull);
        for (at, endpoint) in endpoints.iter().enumerate() {
            let outcome = self.get_manifest(endpoint, reference, Some(&descriptor.digest)).await;
            match outcome.and_then(|(found, bytes, attempt)| same_size(descriptor, &found, bytes, attempt)) {
                Err(error) if self.falls_back(endpoint, endpoints.get(at + 1), &error) => {}
                outcome => return outcome,
            }
        }
        unreachable!("a registry has at least one endpoint, and the last one returns")
    }

    /// Reads a blob of the repository of `reference` into `sink` and verifies it.
    ///
    /// `progress` is told the bytes received so far. A connection that breaks is taken up where it broke, as long as
    /// each try gets further. Foreign layers are looked for at their own addresses first.
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
        let mut transfer = Transfer { blob, hasher: Sha256::new(), received_bytes: 0, sink, progress };
        let slot = if blob.size_bytes > MAX_MANIFEST_SIZE { Slot::Data } else { Slot::Small };
        for url in blob.urls.iter().filter_map(|url| Url::parse(url).ok()) {
            let Some(endpoint) = foreign_endpoint(&url) else {
                continue;
            };
            match self.fetch_blob_at(&endpoint, reference, url, slot, &mut transfer).await {
                Err(error @ (RegistryError::Local { .. } | RegistryError::DigestMismatch { .. })) => return Err(error),
                Err(error) => self.notify(&Notice::Fallback { error: &error, next_host: reference.registry() }),
                Ok(()) => return Ok(()),
            }
        }
        let endpoints = self.endpoints(reference.registry(), Purpose::Pull);
        for (at, endpoint) in endpoints.iter().enumerate() {
            let attempt = attempt(Operation::FetchBlob, endpoint, reference, blob.digest.to_string());
            let url = endpoint_url(endpoint, reference, &format!("blobs/{}", blob.digest), &attempt)?;
            let outcome = self.fetch_blob_at(endpoint, reference, url, slot, &mut transfer).await;
            match outcome {
                // What the sink has seen of wrong bytes cannot be taken back.
                Err(error @ RegistryError::DigestMismatch { .. }) => return Err(error),
                Err(error) if self.falls_back(endpoint, endpoints.get(at + 1), &error) => {}
                outcome => return outcome,
            }
        }
        unreachable!("a registry has at least one endpoint, and the last one returns")
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
            let endpoints = self.endpoints(reference.registry(), Purpose::Pull);
            let attempt = attempt(Operation::FetchBlob, &endpoints[0], reference, blob.digest.to_string());
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

    async fn resolve_at(&self, endpoint: &Endpoint, reference: &ImageRef) -> Result<Resolved, RegistryError> {
        if let Some(digest) = reference.digest() {
            let (descriptor, bytes, _) = self.get_manifest(endpoint, reference, Some(digest)).await?;
            return Ok(Resolved { descriptor, bytes: Some(bytes) });
        }
        if let Some(descriptor) = self.head_manifest(endpoint, reference, Operation::ResolveManifest).await? {
            return Ok(Resolved { descriptor, bytes: None });
        }
        let (descriptor, bytes, _) = self.get_manifest(endpoint, reference, None).await?;
        Ok(Resolved { descriptor, bytes: Some(bytes) })
    }

    /// Asks for the descriptor of a manifest. `None` if the server does not tell, and the manifest must be read.
    pub(super) async fn head_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        operation: Operation,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let object = reference.manifest_reference();
        let attempt = attempt(operation, endpoint, reference, object.clone());
        let repository = endpoint.repository(reference.repository());
        let scopes = match operation {
            Operation::PutManifest => Scopes::push(&repository),
            _ => Scopes::pull(&repository),
        };
        let url = endpoint_url(endpoint, reference, &format!("manifests/{object}"), &attempt)?;
        let request = Request {
            endpoint,
            attempt: &attempt,
            repository: &repository,
            scopes: &scopes,
            slot: Slot::Small,
            method: Method::HEAD,
            url,
            headers: accept_manifests(),
            body: Bytes::new(),
        };
        let reply = self.send(request.clone()).await?;
        if reply.status() == StatusCode::METHOD_NOT_ALLOWED {
            return Ok(None);
        }
        if !reply.status().is_success() {
            return Err(self.status_error(&request, reply).await);
        }
        let media_type = manifest_type(&reply);
        let digest: Option<Digest> = reply.header(DIGEST_HEADER).and_then(|text| text.parse().ok());
        let size_bytes: Option<u64> = reply.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        Ok(match (media_type, digest, size_bytes) {
            (Some(media_type), Some(digest), Some(size)) if size > 0 => {
                Some(Descriptor::new(&media_type, digest, size))
            }
            _ => None,
        })
    }

    /// Reads a manifest by digest or, without one, by what the reference names, and verifies it.
    async fn get_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        digest: Option<&Digest>,
    ) -> Result<(Descriptor, Bytes, Arc<Attempt>), RegistryError> {
        let object = digest.map_or_else(|| reference.manifest_reference(), Digest::to_string);
        let attempt = attempt(Operation::FetchManifest, endpoint, reference, object.clone());
        let (said, bytes) = match self.get_document(endpoint, reference, &format!("manifests/{object}"), &attempt).await
        {
            // Some registries keep what is not an image manifest among the blobs.
            Err(RegistryError::NotFound { message, .. }) if digest.is_some() => {
                let as_blob = self.get_document(endpoint, reference, &format!("blobs/{object}"), &attempt).await;
                let missing = |_| RegistryError::NotFound { attempt: attempt.clone(), message };
                as_blob.map_err(missing)?
            }
            outcome => outcome?,
        };
        let actual = Digest::of(&bytes);
        let expected = digest.cloned().or(said);
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(RegistryError::DigestMismatch { attempt, expected, actual });
        }
        let media_type = media_type::of_manifest(&bytes).map_err(|error| match error {
            ManifestKindError::Schema1 => RegistryError::Schema1 { attempt: attempt.clone() },
            error => protocol(&attempt, &error.to_string()),
        })?;
        Ok((Descriptor::new(&media_type, actual, bytes.len() as u64), bytes, attempt))
    }

    /// Reads a document of limited size, and the digest that the server says it has.
    async fn get_document(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        path: &str,
        attempt: &Arc<Attempt>,
    ) -> Result<(Option<Digest>, Bytes), RegistryError> {
        let repository = endpoint.repository(reference.repository());
        let scopes = Scopes::pull(&repository);
        let request = Request {
            endpoint,
            attempt,
            repository: &repository,
            scopes: &scopes,
            slot: Slot::Small,
            method: Method::GET,
            url: endpoint_url(endpoint, reference, path, attempt)?,
            headers: accept_manifests(),
            body: Bytes::new(),
        };
        let mut failures = 0;
        loop {
            let reply = self.send(request.clone()).await?;
            if !reply.status().is_success() {
                return Err(self.status_error(&request, reply).await);
            }
            let said = reply.header(DIGEST_HEADER).and_then(|text| text.parse().ok());
            let read = read_limited(reply.response, MAX_MANIFEST_SIZE);
            let reason = match tokio::time::timeout(self.options().retry.stall_timeout, read).await {
                Ok(Ok(bytes)) => return Ok((said, bytes)),
                Ok(Err(ReadError::TooLarge)) => {
                    return Err(RegistryError::TooLarge { attempt: attempt.clone(), limit_bytes: MAX_MANIFEST_SIZE });
                }
                Ok(Err(ReadError::Broken(reason))) => reason,
                Err(_) => NO_DATA.to_owned(),
            };
            failures += 1;
            self.pause(RegistryError::Unreachable { attempt: attempt.clone(), reason }, failures).await?;
        }
    }

    /// Goes on with a transfer at one endpoint until it is complete, or no longer gets further.
    async fn fetch_blob_at<S: BlobSink>(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        url: Url,
        slot: Slot,
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
            slot,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
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
            self.pause(error, failures).await?;
        }
    }

    /// Asks for what is missing of a blob and reads it as far as it comes.
    async fn fetch_blob_once<S: BlobSink>(
        &self,
        request: &Request<'_>,
        transfer: &mut Transfer<'_, S>,
    ) -> Result<(), Stop> {
        let mut request = request.clone();
        if transfer.received_bytes > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", transfer.received_bytes));
            request.headers.insert(RANGE, range.expect("digits are valid in a header"));
        }
        let reply = self.send(request.clone()).await.map_err(Stop::Fatal)?;
        let mut skip_bytes = match reply.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&reply) == Some(transfer.received_bytes) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Stop::Fatal(protocol(request.attempt, "it sends another range than it was asked for")));
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

fn same_size(
    descriptor: &Descriptor,
    found: &Descriptor,
    bytes: Bytes,
    attempt: Arc<Attempt>,
) -> Result<Bytes, RegistryError> {
    let (expected_bytes, actual_bytes) = (descriptor.size_bytes, found.size_bytes);
    if expected_bytes != actual_bytes {
        return Err(RegistryError::SizeMismatch { attempt, expected_bytes, actual_bytes });
    }
    Ok(bytes)
}

/// Who is asked for what, for errors.
pub(super) fn attempt(operation: Operation, endpoint: &Endpoint, reference: &ImageRef, object: String) -> Arc<Attempt> {
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    Arc::new(Attempt { operation, host: endpoint.host.clone(), repository, object })
}

/// The URL of something in the repository of `reference`.
pub(super) fn endpoint_url(
    endpoint: &Endpoint,
    reference: &ImageRef,
    path: &str,
    attempt: &Arc<Attempt>,
) -> Result<Url, RegistryError> {
    let no_url = || RegistryError::Configuration {
        path: attempt.host.clone(),
        reason: "it is not a host name with an optional port".to_owned(),
    };
    endpoint.url(reference.repository(), path).ok_or_else(no_url)
}

/// The address of a foreign layer as an endpoint of its own, so that nothing meant for the registry goes there.
fn foreign_endpoint(url: &Url) -> Option<Endpoint> {
    let scheme = match url.scheme() {
        "https" => "https",
        "http" => "http",
        _ => return None,
    };
    Some(Endpoint {
        scheme,
        host: super::tls::authority(url),
        path_prefix: String::new(),
        namespace: None,
        verify: true,
        is_mirror: true,
    })
}

fn accept_manifests() -> HeaderMap {
    let accept = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"].join(", ");
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(&accept).expect("media types are valid in a header"))])
}

/// The media type that an answer declares, if it is one of a manifest or index.
fn manifest_type(reply: &Reply) -> Option<String> {
    let declared = reply.header(CONTENT_TYPE)?;
    let media_type = declared.split(';').next().unwrap_or_default().trim();
    let is_document = media_type::is_index(media_type) || media_type::is_manifest(media_type);
    is_document.then(|| media_type.to_owned())
}

/// The first offset of `Content-Range: bytes 5-9/10`.
fn range_start(reply: &Reply) -> Option<u64> {
    let range = reply.header(CONTENT_RANGE)?.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.parse().ok()
}
