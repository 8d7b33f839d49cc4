//! What images say about their layers, so that they can be the cache of later builds.

use cache::remote::{Entry, ImageMetadata, RemoteError};
use oci::registry::{Client, RegistryError};
use oci::{Descriptor, ImageConfig, ImageRef, Index, Manifest, image, media_type};
use solver::Progress;

use super::domain;

/// The longest config that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The config of BuildKit's caches.
const BUILDKIT_CACHE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The entries of all layers that the image, or the images, of a name tell about. None when there is no such image.
pub(super) async fn layers(
    client: &Client,
    reference: &ImageRef,
    progress: &Progress,
) -> Result<Vec<Entry>, RemoteError> {
    let (top, bytes) = match client.fetch_tagged(reference).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(fault(&error)),
    };
    if !media_type::is_index(&top.media_type) {
        return of_manifest(client, reference, &bytes, progress).await;
    }
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| RemoteError::Unusable(error.to_string()))?;
    let mut entries = Vec::new();
    for child in index.manifests.iter().filter(|child| media_type::is_manifest(&child.media_type)) {
        let bytes = client.fetch_manifest(reference, child).await.map_err(|error| fault(&error))?;
        entries.extend(of_manifest(client, reference, &bytes, progress).await?);
    }
    if index.manifests.iter().any(|child| child.media_type == BUILDKIT_CACHE) {
        tell_stranger(reference, progress);
    }
    Ok(entries)
}

async fn of_manifest(
    client: &Client,
    reference: &ImageRef,
    bytes: &[u8],
    progress: &Progress,
) -> Result<Vec<Entry>, RemoteError> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return Ok(Vec::new()) };
    let Descriptor { media_type, .. } = &manifest.config;
    if media_type == BUILDKIT_CACHE {
        tell_stranger(reference, progress);
    }
    if !matches!(media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return Ok(Vec::new());
    }
    let config = client.fetch_small_blob(reference, &manifest.config, MAX_CONFIG_BYTES).await;
    let config = config.map_err(|error| fault(&error))?;
    let Some(metadata) = serde_json::from_slice::<serde_json::Value>(&config)
        .ok()
        .and_then(|config| ImageMetadata::parse(config.get(image::CACHE_FIELD)?, &domain()))
    else {
        return Ok(Vec::new());
    };
    let Ok(config) = serde_json::from_slice::<ImageConfig>(&config) else { return Ok(Vec::new()) };
    Ok(metadata.entries(&config.rootfs.diff_ids, &manifest.layers))
}

fn tell_stranger(reference: &ImageRef, progress: &Progress) {
    progress.warn(format!("{} is a cache of BuildKit, whose keys rbuild does not know", reference.familiar()));
}

fn fault(error: &RegistryError) -> RemoteError {
    RemoteError::Down(error.to_string())
}
