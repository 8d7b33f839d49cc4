//! A cache in a repository of a registry: for every key a small manifest, tagged with the key, that names the layer.
//!
//! The registry's garbage collection keeps what a tagged manifest names, so that an entry and its layer stay and go
//! together; what removes old tags removes old entries.

use std::collections::BTreeMap;
use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use oci::digest::hex;
use oci::image::to_compact_json;
use oci::registry::{BlobReader, ChannelSink, Client, Pushed, RegistryError};
use oci::{Descriptor, Digest, ImageRef, Manifest, media_type};
use tokio::sync::{OnceCell, mpsc};

use super::hint::MAX_HINT_BYTES;
use super::{Domain, Entry, Hint, RemoteCache, RemoteError};
use crate::id::Key;

/// Annotation of a manifest: the entry, as JSON.
const ENTRY_ANNOTATION: &str = "dev.rbuild.cache.entry";
/// What manifests of entries are.
const ENTRY_TYPE: &str = "application/vnd.rbuild.cache.entry.v1+json";
/// What lists of entries, and the manifests that name them, are.
const HINT_TYPE: &str = "application/vnd.rbuild.cache.hint.v1+json";
/// The config of what is no image.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Its bytes.
const EMPTY_JSON: &[u8] = b"{}";

/// A cache in a repository.
pub struct RegistryCache {
    client: Client,
    repository: ImageRef,
    domain: Domain,
    name: String,
    place: String,
    /// The tag of the list of entries.
    hint_tag: String,
    /// Once the empty config is there.
    has_config: OnceCell<()>,
}

impl RegistryCache {
    /// A cache in the repository of `reference`, whose tag says which builds have a list in common. Does no I/O.
    pub fn new(client: Client, reference: &ImageRef, domain: Domain) -> Self {
        let repository = reference.name_only();
        let tag = reference.tag().unwrap_or("latest");
        let list = &hex(blake3::derive_key("rbuild remote cache hint, v1", tag.as_bytes()).as_slice())[..16];
        Self {
            client,
            name: format!("registry {}", repository.familiar()),
            place: repository.to_string(),
            hint_tag: format!("rbuild-hint-v1-{}-{list}", domain.as_str()),
            repository,
            domain,
            has_config: OnceCell::new(),
        }
    }

    fn target(&self, tag: &str) -> Result<ImageRef, RemoteError> {
        self.repository.clone().with_tag(tag).map_err(|error| RemoteError::Unusable(error.to_string()))
    }

    fn entry_target(&self, key: &Key) -> Result<ImageRef, RemoteError> {
        self.target(&format!("rbuild-v1-{}-{}", self.domain.as_str(), hex(&key.0)))
    }

    /// A tagged manifest; `None` when there is none.
    async fn manifest(&self, target: &ImageRef) -> Result<Option<Manifest>, RemoteError> {
        match self.client.fetch_tagged(target).await {
            Ok((_, bytes)) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| RemoteError::Unusable(format!("{target} is unusable: {error}"))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    async fn put_manifest(
        &self,
        target: &ImageRef,
        kind: &str,
        layer: Descriptor,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), RemoteError> {
        let push = || self.client.push_small_blob(&self.repository, EMPTY_TYPE, Bytes::from_static(EMPTY_JSON));
        self.has_config.get_or_try_init(async || push().await.map(drop)).await.map_err(|error| fault(&error))?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: Some(kind.to_owned()),
            config: Descriptor::new(EMPTY_TYPE, Digest::of(EMPTY_JSON), EMPTY_JSON.len() as u64),
            layers: vec![layer],
            subject: None,
            annotations,
        };
        let put = self.client.push_manifest(target, media_type::OCI_MANIFEST, to_compact_json(&manifest).into());
        put.await.map(drop).map_err(|error| fault(&error))
    }
}

#[async_trait]
impl RemoteCache for RegistryCache {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn find(&self, key: &Key) -> Result<Option<Entry>, RemoteError> {
        let target = self.entry_target(key)?;
        let Some(manifest) = self.manifest(&target).await? else { return Ok(None) };
        let unusable =
            |reason: &dyn std::fmt::Display| RemoteError::Unusable(format!("{target} is unusable: {reason}"));
        let text = manifest.annotations.get(ENTRY_ANNOTATION).ok_or_else(|| unusable(&"it holds no entry"))?;
        let entry = Entry::parse(text.as_bytes(), &self.domain, key).map_err(|fault| unusable(&fault))?;
        // What the registry keeps for the manifest's sake is what the entry means.
        let is_kept = manifest.layers.iter().any(|layer| layer.digest == entry.blob.digest);
        if is_kept { Ok(Some(entry)) } else { Err(unusable(&"it does not name its layer")) }
    }

    async fn put(&self, key: &Key, entry: &Entry) -> Result<(), RemoteError> {
        let text = String::from_utf8_lossy(&entry.to_json(&self.domain)).into_owned();
        let annotations = BTreeMap::from([(ENTRY_ANNOTATION.to_owned(), text)]);
        self.put_manifest(&self.entry_target(key)?, ENTRY_TYPE, entry.blob.clone(), annotations).await
    }

    async fn fetch(&self, blob: &Descriptor, to: mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
        let mut sink = ChannelSink(to);
        self.client.fetch_blob(&self.repository, blob, &mut sink, |_| ()).await.map_err(|error| match error {
            RegistryError::Local { .. } => RemoteError::Bytes(error.to_string()),
            RegistryError::NotFound { .. } => RemoteError::Unusable(error.to_string()),
            error => fault(&error),
        })
    }

    async fn keep(
        &self,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
        others: &[String],
    ) -> Result<Pushed, RemoteError> {
        let places = others.iter().filter_map(|place| ImageRef::parse_normalized(place).ok());
        let here = places.filter(|place| place.registry() == self.repository.registry());
        let mounts: Vec<String> = here.map(|place| place.repository().to_owned()).collect();
        let kept = self.client.push_blob(&self.repository, blob, open, &mounts, |_| ()).await;
        kept.map_err(|error| match error {
            RegistryError::Local { .. } => RemoteError::Bytes(error.to_string()),
            error => fault(&error),
        })
    }

    async fn hint(&self) -> Result<Option<Hint>, RemoteError> {
        let Some(manifest) = self.manifest(&self.target(&self.hint_tag)?).await? else { return Ok(None) };
        let Some(list) = manifest.layers.iter().find(|layer| layer.media_type == HINT_TYPE) else { return Ok(None) };
        match self.client.fetch_small_blob(&self.repository, list, MAX_HINT_BYTES).await {
            Ok(bytes) => Ok(Hint::parse(&bytes, &self.domain)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    async fn put_hint(&self, hint: &Hint) -> Result<(), RemoteError> {
        let bytes = Bytes::from(hint.to_json(&self.domain));
        let list =
            self.client.push_small_blob(&self.repository, HINT_TYPE, bytes).await.map_err(|error| fault(&error))?;
        self.put_manifest(&self.target(&self.hint_tag)?, HINT_TYPE, list, BTreeMap::new()).await
    }
}

/// What a registry said, for those who decide whether to ask it again.
fn fault(error: &RegistryError) -> RemoteError {
    match error {
        RegistryError::DigestMismatch { .. }
        | RegistryError::SizeMismatch { .. }
        | RegistryError::TooLarge { .. }
        | RegistryError::Protocol { .. }
        | RegistryError::Schema1 { .. } => RemoteError::Unusable(error.to_string()),
        _ => RemoteError::Down(error.to_string()),
    }
}
