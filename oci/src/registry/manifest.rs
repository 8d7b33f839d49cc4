//! Reading manifests: which one a reference names, and its bytes.
//!
//! Spec: `spec/engine.md` §4.2, "Reference resolution".

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use super::client::{Client, Slot};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::scopes::Scopes;
use super::transport::{NO_DATA, ReadError, Reply, Request, attempt, endpoint_url, protocol, read_limited};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::media_type::{self, DOCKER_LIST, DOCKER_MANIFEST, ManifestKindError, OCI_INDEX, OCI_MANIFEST};
use crate::reference::ImageRef;

/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST_SIZE: u64 = 4 * 1048 * 1048;
const DIGEST_HEADER: &str = "docker-content-digest";

/// What a reference names at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Media type, digest and size of the manifest or index.
    pub descriptor: Descriptor,
    /// The manifest itself, verified, when it came along; else [`Client::fetch_manifest`] gets it.
    pub bytes: Option<Bytes>,
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
        let (mut endpoint, mut others) = self.endpoints(reference, Purpose::Resolve)?;
        loop {
            match self.resolve_at(&endpoint, reference).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// Reads the manifest or index that `descriptor` names, from the repository of `reference`.
    ///
    /// The bytes are verified against digest and size.
    ///
    /// # Errors
    /// [`RegistryError`]; of several endpoints, that of the last.
    pub async fn fetch_manifest(&self, reference: &ImageRef, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(reference, Purpose::Pull)?;
        loop {
            let outcome = self.get_manifest(&endpoint, reference, Some(&descriptor.digest)).await;
            match outcome.and_then(|(found, bytes, attempt)| same_size(descriptor, &found, bytes, attempt)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// Reads the manifest or index that a tag names now, with one request. The digest that the registry tells is verified.
    ///
    /// # Errors
    /// [`RegistryError`]; of several endpoints, that of the last.
    pub async fn fetch_tagged(&self, reference: &ImageRef) -> Result<(Descriptor, Bytes), RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(reference, Purpose::Resolve)?;
        loop {
            match self.get_manifest(&endpoint, reference, reference.digest()).await {
                Ok((descriptor, bytes, _)) => return Ok((descriptor, bytes)),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
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
            self.pause_after_break(RegistryError::Unreachable { attempt: attempt.clone(), reason }, failures).await?;
        }
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
