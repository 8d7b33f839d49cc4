//! Parts of blobs: what a list says where it is. Nothing verifies a part by itself; the list's digests do.

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::client::{Client, Slot};
use super::error::{Operation, RegistryError};
use super::hosts::Purpose;
use super::scopes::Scopes;
use super::transport::{ReadError, Reply, Request, attempt, endpoint_url, read_limited};
use crate::image::Descriptor;
use crate::reference::ImageRef;

impl Client {
    /// `len_bytes` bytes of a blob, or all up to its end, from `first_byte` on. `None` where the registry does not give parts.
    ///
    /// The bytes are not verified: whoever asks has to know a digest of what is in them.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn fetch_part(
        &self,
        reference: &ImageRef,
        blob: &Descriptor,
        first_byte: u64,
        len_bytes: u64,
    ) -> Result<Option<Bytes>, RegistryError> {
        let len_bytes = len_bytes.min(blob.size_bytes.saturating_sub(first_byte));
        if len_bytes == 0 {
            return Ok(None);
        }
        let (endpoint, _) = self.endpoints(reference, Purpose::Pull)?;
        let attempt = attempt(Operation::FetchBlob, &endpoint, reference, blob.digest.to_string());
        let repository = endpoint.repository(reference.repository());
        let scopes = Scopes::pull(&repository);
        let range = HeaderValue::from_str(&format!("bytes={first_byte}-{}", first_byte + len_bytes - 1));
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, range.expect("digits are valid in a header"));
        let request = Request {
            endpoint: &endpoint,
            attempt: &attempt,
            repository: &repository,
            scopes: &scopes,
            slot: Slot::Small,
            method: Method::GET,
            url: endpoint_url(&endpoint, reference, &format!("blobs/{}", blob.digest), &attempt)?,
            headers,
            body: Bytes::new(),
        };
        let reply = self.send(request.clone()).await?;
        match reply.status() {
            StatusCode::PARTIAL_CONTENT if super::blob::range_start(&reply) == Some(first_byte) => {}
            // All of it, or something else: not what this is for.
            status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => return Ok(None),
            _ => return Err(self.status_error(&request, reply).await),
        }
        let Reply { response, .. } = reply;
        match read_limited(response, len_bytes).await {
            Ok(bytes) if bytes.len() as u64 == len_bytes => Ok(Some(bytes)),
            Ok(_) | Err(ReadError::TooLarge) => Ok(None),
            Err(ReadError::Broken(reason)) => {
                Err(RegistryError::Interrupted { attempt, transferred_bytes: 0, total_bytes: len_bytes, reason })
            }
        }
    }
}
