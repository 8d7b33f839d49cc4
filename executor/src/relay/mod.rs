//! Whole images of registries: an index with everything that it lists, attestations and artifacts included.
//!
//! A build takes one platform out of an index ([`crate::source`]); this module leaves images as they are. [`Relay::read`]
//! gives a [`Parcel`], which a [`crate::push::Pusher`] can bring elsewhere: documents and small blobs are in the store
//! then, layers are known to be in their registry, and come here only when they cannot be taken over from there.
//!
//! [`combine`] makes one index of the images of several places.
//!
//! Spec: `spec/cli.md` §5.1, `spec/engine.md` §1.15.

pub mod combine;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use cache::Store;
use oci::registry::{ChannelSink, Client, MAX_MANIFEST_SIZE, RegistryError};
use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageRef, Index, Manifest, media_type};
use serde::de::DeserializeOwned;
use solver::{OpError, Step};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::push::{Blob, Document, Parcel};
use crate::source::ImageSource;
use crate::source::image::observer;

/// Chunks of the network that may wait for the disk.
const CHUNKS_AHEAD: usize = 64;

/// Largest attestation that is looked into.
const MAX_STATEMENT_BYTES: u64 = 40 << 20;

/// Reads whole images of registries.
#[derive(Clone)]
pub struct Relay {
    /// Where documents go.
    pub store: Store,
    /// Its client is what everything is read through.
    pub images: Arc<ImageSource>,
    /// Stops everything.
    pub cancel: CancellationToken,
}

/// How much of an image is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Manifests and indexes alone: for the repository that has the rest already.
    Documents,
    /// All that it consists of. Layers stay where they are.
    Blobs,
}

impl Relay {
    /// What a name stands for in its registry: the exact bytes of the manifest or index.
    ///
    /// # Errors
    /// An [`OpError`] with the registry's answer.
    pub async fn top(&self, reference: &ImageRef, step: &Step) -> Result<Document, OpError> {
        let client = self.images.client().observed_by(observer(step));
        let work = async {
            let resolved = client.resolve(reference).await.map_err(|error| failure(reference, &error))?;
            let bytes = match resolved.bytes {
                Some(bytes) => bytes,
                None => fetch_document(&client, reference, &resolved.descriptor).await?,
            };
            let media_type =
                media_type::of_manifest(&bytes).map_err(|error| unusable(&resolved.descriptor.digest, &error))?;
            let Descriptor { digest, size_bytes, .. } = resolved.descriptor;
            self.store.put_blob(&bytes)?;
            Ok(Document { descriptor: Descriptor::new(&media_type, digest, size_bytes), bytes })
        };
        self.cancel.run_until_cancelled(work).await.unwrap_or_else(|| Err(OpError::cancelled()))
    }

    /// Reads what `top` in the repository of `reference` names.
    ///
    /// # Errors
    /// An [`OpError`]: a document that is missing or is none, or an index inside of an index.
    pub async fn read(
        &self,
        reference: &ImageRef,
        top: &Document,
        depth: Depth,
        step: &Step,
    ) -> Result<Parcel, OpError> {
        let entries = if media_type::is_index(&top.descriptor.media_type) {
            parse::<Index>(&top.descriptor.digest, &top.bytes)?.manifests
        } else {
            vec![top.descriptor.clone()]
        };
        let mut parcel = self.read_entries(reference, &entries, depth, step).await?;
        if parcel.documents.last().is_none_or(|document| document.descriptor.digest != top.descriptor.digest) {
            self.store.put_blob(&top.bytes)?;
            parcel.documents.push(top.clone());
        }
        Ok(parcel)
    }

    /// Reads manifests in the repository of `reference`, and what they name.
    ///
    /// # Errors
    /// As [`Relay::read`].
    pub async fn read_entries(
        &self,
        reference: &ImageRef,
        entries: &[Descriptor],
        depth: Depth,
        step: &Step,
    ) -> Result<Parcel, OpError> {
        let client = self.images.client().observed_by(observer(step));
        let mut parcel = Parcel { blobs: Vec::new(), documents: Vec::new() };
        let mut reading = Reading { relay: self, client, reference, depth, seen: HashSet::new(), parcel: &mut parcel };
        let work = async {
            for entry in entries {
                if media_type::is_index(&entry.media_type) {
                    return Err(nested(reference, &entry.digest));
                }
                let bytes = match self.store.read_blob(&entry.digest)? {
                    Some(bytes) => bytes.into(),
                    None => fetch_document(&reading.client, reference, entry).await?,
                };
                let descriptor = Descriptor::new(&entry.media_type, entry.digest.clone(), entry.size_bytes);
                reading.add(Document { descriptor, bytes }).await?;
            }
            Ok(())
        };
        match self.cancel.run_until_cancelled(work).await {
            Some(read) => read.map(|()| parcel),
            None => Err(OpError::cancelled()),
        }
    }

    /// The config of an image, from the store or from the repository of `reference`.
    ///
    /// # Errors
    /// An [`OpError`]: it is not there, or is none.
    pub async fn config(&self, reference: &ImageRef, manifest: &[u8]) -> Result<Bytes, OpError> {
        let manifest: Manifest = parse(&Digest::of(manifest), manifest)?;
        if let Some(bytes) = self.store.read_blob(&manifest.config.digest)? {
            return Ok(bytes.into());
        }
        let client = self.images.client();
        let bytes = client.fetch_small_blob(reference, &manifest.config, MAX_MANIFEST_SIZE).await;
        bytes.map_err(|error| failure(reference, &error))
    }

    /// A small blob, from the store or from the repository of `reference`.
    ///
    /// # Errors
    /// An [`OpError`]: it cannot be had, or is larger than attestations are.
    pub async fn blob(&self, reference: &ImageRef, blob: &Descriptor) -> Result<Bytes, OpError> {
        if let Some(bytes) = self.store.read_blob(&blob.digest)? {
            return Ok(bytes.into());
        }
        let bytes = self.images.client().fetch_small_blob(reference, blob, MAX_STATEMENT_BYTES).await;
        bytes.map_err(|error| failure(reference, &error))
    }

    /// Makes sure that every blob of `parcel` is in the store: layers come from the registries that are known to have them.
    ///
    /// # Errors
    /// An [`OpError`]: one cannot be had.
    pub async fn ensure_here(&self, parcel: &Parcel, step: &Step) -> Result<(), OpError> {
        for blob in &parcel.blobs {
            let digest = &blob.descriptor.digest;
            if self.store.blob_path(digest).is_some() {
                continue;
            }
            if let Some(diff_id) = &blob.diff_id {
                self.images.ensure_blob(diff_id, step, &self.cancel).await?;
            }
            if self.store.blob_path(digest).is_some() {
                continue;
            }
            // The same layer may be here in another compression only.
            self.fetch_known(blob, step).await?;
        }
        Ok(())
    }

    async fn fetch_known(&self, blob: &Blob, step: &Step) -> Result<(), OpError> {
        let digest = &blob.descriptor.digest;
        let known = match &blob.diff_id {
            Some(diff_id) => self.store.find_remotes(diff_id)?,
            None => Vec::new(),
        };
        let place = known.into_iter().find(|(descriptor, _)| descriptor.digest == *digest);
        let lost = || {
            OpError::environment(format!("the store has lost the blob {digest}")).help("build or pull the image again")
        };
        let (descriptor, place) = place.ok_or_else(lost)?;
        let reference = ImageRef::parse_normalized(&place).map_err(|_| lost())?;
        let client = self.images.client().observed_by(observer(step));
        let fetch = fetch_blob(&self.store, &client, &reference, &descriptor);
        self.cancel.run_until_cancelled(fetch).await.unwrap_or_else(|| Err(OpError::cancelled()))
    }
}

/// A parcel in the making.
struct Reading<'a> {
    relay: &'a Relay,
    client: Client,
    reference: &'a ImageRef,
    depth: Depth,
    seen: HashSet<Digest>,
    parcel: &'a mut Parcel,
}

impl Reading<'_> {
    async fn add(&mut self, document: Document) -> Result<(), OpError> {
        let store = &self.relay.store;
        store.put_blob(&document.bytes)?;
        if self.depth == Depth::Documents {
            self.parcel.documents.push(document);
            return Ok(());
        }
        let manifest: Manifest = parse(&document.descriptor.digest, &document.bytes)?;
        let diff_ids = self.diff_ids(&manifest).await?;
        for (number, blob) in manifest.layers.iter().enumerate() {
            // What the config does not name is no layer: nobody could find it again.
            let diff_id = diff_ids.get(number).filter(|_| blob.media_type.contains(".tar"));
            match diff_id {
                Some(diff_id) => self.note(blob, diff_id)?,
                None if !media_type::is_nondistributable(&blob.media_type) => self.ensure(blob).await?,
                None => continue,
            }
            self.push(blob, diff_id.cloned());
        }
        self.ensure(&manifest.config).await?;
        self.push(&manifest.config, None);
        self.parcel.documents.push(document);
        Ok(())
    }

    /// Of an image; what is no image has none.
    async fn diff_ids(&mut self, manifest: &Manifest) -> Result<Vec<DiffId>, OpError> {
        let config = &manifest.config;
        if !matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
            return Ok(Vec::new());
        }
        self.ensure(config).await?;
        let bytes = self.relay.store.read_blob(&config.digest)?.unwrap_or_default();
        let config: ImageConfig = parse(&config.digest, &bytes)?;
        let diff_ids = config.rootfs.diff_ids;
        Ok(if diff_ids.len() == manifest.layers.len() { diff_ids } else { Vec::new() })
    }

    /// Notes where a layer is to be had.
    fn note(&self, layer: &Descriptor, diff_id: &DiffId) -> Result<(), OpError> {
        let store = &self.relay.store;
        store.layer_for_diff_id(diff_id)?;
        store.remember_remote(diff_id, layer, &self.reference.name_only().to_string())?;
        if store.blob_path(&layer.digest).is_some() && layer.digest != *diff_id.digest() {
            store.remember_foreign_blob(diff_id, layer)?;
        }
        Ok(())
    }

    async fn ensure(&self, blob: &Descriptor) -> Result<(), OpError> {
        match self.relay.store.blob_path(&blob.digest) {
            Some(_) => Ok(()),
            None => fetch_blob(&self.relay.store, &self.client, self.reference, blob).await,
        }
    }

    fn push(&mut self, blob: &Descriptor, diff_id: Option<DiffId>) {
        if self.seen.insert(blob.digest.clone()) {
            let descriptor = Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size_bytes);
            self.parcel.blobs.push(Blob { descriptor, diff_id });
        }
    }
}

/// Brings a blob into the store. The disk works in a thread of its own.
async fn fetch_blob(store: &Store, client: &Client, reference: &ImageRef, blob: &Descriptor) -> Result<(), OpError> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
    let (to, digest) = (store.clone(), blob.digest.clone());
    let disk = tokio::task::spawn_blocking(move || {
        let mut writer = to.blob_writer()?;
        while let Some(chunk) = receiver.blocking_recv() {
            writer.write(&chunk)?;
        }
        Ok::<_, cache::StoreError>(writer)
    });
    let fetched = {
        let mut sink = ChannelSink(sender);
        client.fetch_blob(reference, blob, &mut sink, |_| ()).await
    };
    let writer = match disk.await {
        Ok(writer) => writer?,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => return Err(OpError::cancelled()),
    };
    fetched.map_err(|error| failure(reference, &error))?;
    writer.commit(Some(&digest))?;
    Ok(())
}

async fn fetch_document(client: &Client, reference: &ImageRef, entry: &Descriptor) -> Result<Bytes, OpError> {
    client.fetch_manifest(reference, entry).await.map_err(|error| failure(reference, &error))
}

pub(crate) fn parse<T: DeserializeOwned>(digest: &Digest, bytes: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(bytes).map_err(|error| unusable(digest, &error))
}

fn unusable(digest: &Digest, reason: &dyn std::fmt::Display) -> OpError {
    OpError::input(format!("`{digest}` is no usable image document: {reason}"))
}

/// An index that lists an index.
fn nested(reference: &ImageRef, inner: &Digest) -> OpError {
    OpError::input(format!(
        "{} lists another index, {inner}: indexes inside of indexes are not supported",
        reference.familiar()
    ))
    .help("name the inner one by its digest")
}

fn failure(reference: &ImageRef, error: &RegistryError) -> OpError {
    let message = format!("{}: {}", reference.familiar(), error.without_reference());
    let failure = if error.is_not_found() || error.is_unauthorized() {
        OpError::input(message)
    } else {
        OpError::environment(message)
    };
    match error {
        RegistryError::Unauthorized { had_credentials, attempt, .. } => {
            let why = if *had_credentials { "the credentials were refused; " } else { "" };
            failure.help(format!("{why}log in: rbuild login {}", attempt.host))
        }
        _ => failure,
    }
}
