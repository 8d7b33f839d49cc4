//! What goes to a registry for an image of the store.
//!
//! Images that were built here name their layers by plain tars. Those leave compressed: the manifest that is pushed is
//! another one, with the same config and so with the same image ID. Images that came from elsewhere, or were stored with
//! compressed layers, leave as they are, with the digest that they have.

use std::collections::HashSet;

use bytes::Bytes;
use cache::{Codec, Store};
use oci::image::to_manifest_json;
use oci::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, attestation, media_type};
use serde::de::DeserializeOwned;
use solver::{Chain, OpError};

use crate::packer::{Packer, Wanted};

/// An image with all that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Layers and configs, each once.
    pub blobs: Vec<Blob>,
    /// Manifests and indexes, each behind what it names. The last is the image.
    pub documents: Vec<Document>,
}

/// Bytes that no registry looks into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// Of a layer: the digest of its tar, by which the store knows where else it is to be had.
    pub diff_id: Option<DiffId>,
}

/// A manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its media type, digest and length.
    pub descriptor: Descriptor,
    /// Its exact bytes.
    pub bytes: Bytes,
}

impl Parcel {
    /// All that the image `top` of the store consists of. Plain layers take the form that is wanted.
    ///
    /// # Errors
    /// A document is missing or is none; a layer cannot be packed.
    pub async fn of_stored(packer: &Packer, store: &Store, top: &Descriptor, wanted: Wanted) -> Result<Self, OpError> {
        let mut parcel = Self { blobs: Vec::new(), documents: Vec::new() };
        let mut seen = HashSet::new();
        if media_type::is_index(&top.media_type) {
            let bytes = read(store, top)?;
            let mut index: Index = parse(&top.digest, &bytes)?;
            let as_it_was = index.manifests.clone();
            // What an attestation speaks about keeps its digest.
            let described: HashSet<Digest> = as_it_was.iter().filter_map(attestation::described).collect();
            for entry in &mut index.manifests {
                let wanted = Some(wanted).filter(|_| !described.contains(&entry.digest));
                let document = parcel.add_manifest(packer, store, entry, wanted, &mut seen).await?;
                entry.digest = document.digest;
                entry.size_bytes = document.size_bytes;
            }
            let bytes = if index.manifests == as_it_was { bytes } else { to_manifest_json(&index) };
            parcel.add_document(&top.media_type, bytes);
        } else {
            parcel.add_manifest(packer, store, top, Some(wanted), &mut seen).await?;
        }
        Ok(parcel)
    }

    /// The image.
    ///
    /// # Panics
    /// Never: a parcel has at least one document.
    pub fn top(&self) -> &Descriptor {
        &self.documents.last().expect("a parcel has a document").descriptor
    }

    async fn add_manifest(
        &mut self,
        packer: &Packer,
        store: &Store,
        entry: &Descriptor,
        wanted: Option<Wanted>,
        seen: &mut HashSet<Digest>,
    ) -> Result<Descriptor, OpError> {
        let bytes = read(store, entry)?;
        let mut manifest: Manifest = parse(&entry.digest, &bytes)?;
        let diff_ids = diff_ids(store, &manifest)?;
        let as_it_was = manifest.layers.clone();
        if let Some(wanted) = wanted
            && manifest.layers.iter().any(is_plain)
        {
            compress(packer, store, &mut manifest.layers, &diff_ids, wanted).await?;
        }
        for (number, descriptor) in manifest.layers.iter().chain([&manifest.config]).enumerate() {
            // What is not to be pushed stays where its addresses say.
            if !media_type::is_nondistributable(&descriptor.media_type) && seen.insert(descriptor.digest.clone()) {
                let diff_id = diff_ids.get(number).cloned().filter(|_| number < manifest.layers.len());
                self.blobs.push(Blob { descriptor: bare(descriptor), diff_id });
            }
        }
        let bytes = if manifest.layers == as_it_was { bytes } else { to_manifest_json(&manifest) };
        Ok(self.add_document(&entry.media_type, bytes))
    }

    fn add_document(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.documents.push(Document { descriptor: descriptor.clone(), bytes: bytes.into() });
        descriptor
    }
}

/// Puts compressed layers in the place of plain ones; annotations stay.
async fn compress(
    packer: &Packer,
    store: &Store,
    layers: &mut [Descriptor],
    diff_ids: &[DiffId],
    wanted: Wanted,
) -> Result<(), OpError> {
    if matches!(wanted.codec, Codec::Estargz { .. }) {
        return Err(OpError::input(
            "an image cannot become eStargz when it leaves: its config would have to name other layers",
        )
        .help("build it so: `rbuild -o type=image,compression=estargz …`"));
    }
    if diff_ids.len() != layers.len() {
        return Err(OpError::environment("the image's config and manifest have different numbers of layers"));
    }
    let known = diff_ids.iter().map(|diff_id| Ok(store.layer_for_diff_id(diff_id)?.layer));
    let chain = Chain::new(known.collect::<Result<_, OpError>>()?);
    let packed = packer.packed(&chain, wanted).await?;
    for (layer, packed) in layers.iter_mut().zip(packed) {
        if is_plain(layer) {
            let is_docker = layer.media_type == media_type::DOCKER_LAYER;
            layer.media_type = if is_docker { docker_type(&packed.blob.media_type) } else { packed.blob.media_type };
            layer.digest = packed.blob.digest;
            layer.size_bytes = packed.blob.size_bytes;
        }
    }
    Ok(())
}

fn docker_type(oci: &str) -> String {
    match oci {
        media_type::OCI_LAYER_GZIP => media_type::DOCKER_LAYER_GZIP,
        media_type::OCI_LAYER_ZSTD => media_type::DOCKER_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    }
    .to_owned()
}

/// Of an image; what is no image (an attestation) has none.
fn diff_ids(store: &Store, manifest: &Manifest) -> Result<Vec<DiffId>, OpError> {
    let config = &manifest.config;
    if !matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return Ok(Vec::new());
    }
    let config: ImageConfig = parse(&config.digest, &read(store, config)?)?;
    Ok(config.rootfs.diff_ids)
}

fn is_plain(layer: &Descriptor) -> bool {
    matches!(layer.media_type.as_str(), media_type::OCI_LAYER | media_type::DOCKER_LAYER)
}

/// Without annotations: only the bytes count.
fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size_bytes)
}

fn read(store: &Store, descriptor: &Descriptor) -> Result<Vec<u8>, OpError> {
    let digest = &descriptor.digest;
    store.read_blob(digest)?.ok_or_else(|| {
        OpError::environment(format!("the store has lost the blob {digest}")).help("build or pull the image again")
    })
}

fn parse<T: DeserializeOwned>(digest: &Digest, bytes: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(bytes)
        .map_err(|error| OpError::environment(format!("blob {digest} is no image document: {error}")))
}
