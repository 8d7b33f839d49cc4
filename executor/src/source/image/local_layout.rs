//! Images in OCI layouts of this machine (`--build-context x=oci-layout://DIR[:TAG][@DIGEST]`): copied into the store.
//!
//! Nothing there has to stay: afterwards the image is found by the digests of its documents, as one from a registry is
//! whose layers have been pulled. Spec: `spec/engine.md` §4.4.

use std::io::Read;
use std::path::Path;

use cache::Store;
use oci::layout::{Layout, Selector};
use oci::registry::{image_platforms, select_platform};
use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageRef, Index, Manifest, Platform, media_type};
use serde::de::DeserializeOwned;
use solver::{OciLayout, OpError, ResolvedImage, Step};

use super::ImageSource;
use crate::source::blocking;

/// The most bytes of an image config.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// How much of a layer is copied at once.
const CHUNK_BYTES: usize = 1 << 20;

/// In front of the path in the reference of such an image, where others have a registry.
const PLACE: &str = "oci-layout.invalid";

impl ImageSource {
    /// Brings the image of a layout that `platform` wants into the store.
    ///
    /// # Errors
    /// An [`OpError`] for the user: there is no layout, no such image in it, none for that platform, or a file in it is not
    /// what its name says.
    pub async fn resolve_layout(
        &self,
        layout: &OciLayout,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, OpError> {
        let (store, wanted, platform, step) = (self.store.clone(), layout.clone(), platform.clone(), step.clone());
        blocking(move || import(&store, &wanted, &platform, &step)).await
    }
}

fn import(store: &Store, wanted: &OciLayout, platform: &Platform, step: &Step) -> Result<ResolvedImage, OpError> {
    let fault = |error: oci::layout::LayoutError| {
        let named = "a context of this kind is `oci-layout://DIR`, `oci-layout://DIR:TAG` or `oci-layout://DIR@DIGEST`";
        OpError::input(error.to_string()).help(named)
    };
    let layout = Layout::open(&wanted.path).map_err(fault)?;
    let selector = match (&wanted.digest, &wanted.tag) {
        (Some(digest), _) => Selector::Digest(digest.clone()),
        (None, Some(tag)) => Selector::Tag(tag.clone()),
        (None, None) => Selector::default(),
    };
    let top = layout.resolve(&selector).map_err(fault)?;
    let document = |digest: &Digest| {
        let (_, bytes) = layout.read_manifest(digest).map_err(fault)?;
        store.put_blob(&bytes)?;
        Ok::<_, OpError>(bytes)
    };
    let bytes = document(&top.digest)?;
    let (digest, bytes) = if media_type::is_index(&top.media_type) {
        let index: Index = parse(&wanted.path, &top.digest, &bytes)?;
        let child = select_platform(&index, platform).ok_or_else(|| {
            let known: Vec<String> = image_platforms(&index).map(ToString::to_string).collect();
            let message = format!("no match for platform in manifest: `{}` has no image for {platform}", wanted.path);
            OpError::input(message).help(format!("it has {}", known.join(", ")))
        })?;
        (child.digest.clone(), document(&child.digest)?)
    } else {
        (top.digest.clone(), bytes)
    };
    let manifest: Manifest = parse(&wanted.path, &digest, &bytes)?;
    let config = layout.read_blob(&manifest.config.digest, MAX_CONFIG_BYTES).map_err(fault)?;
    store.put_blob(&config)?;
    let config: ImageConfig = parse(&wanted.path, &manifest.config.digest, &config)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        let (n_layers, n_diff_ids) = (manifest.layers.len(), diff_ids.len());
        let message = format!("`{}`: the image has {n_layers} layers, and its config {n_diff_ids}", wanted.path);
        return Err(OpError::input(message));
    }
    for (diff_id, blob) in diff_ids.iter().zip(&manifest.layers) {
        import_layer(store, &layout, diff_id, blob, step)?;
    }
    let named = config.platform().normalized();
    let is_named = !named.os.is_empty() && !named.architecture.is_empty();
    Ok(ResolvedImage {
        reference: reference(&wanted.path).with_digest(top.digest.clone()),
        top_digest: top.digest,
        manifest: digest,
        platform: if is_named { named } else { platform.clone() },
        config,
    })
}

/// Copies a layer that the store has in no form.
fn import_layer(
    store: &Store,
    layout: &Layout,
    diff_id: &DiffId,
    blob: &Descriptor,
    step: &Step,
) -> Result<(), OpError> {
    let known = store.layer_for_diff_id(diff_id)?;
    if known.tree.is_some() || known.has_tar || !store.find_blobs(diff_id)?.is_empty() {
        return Ok(());
    }
    let fault = |error: std::io::Error| OpError::input(format!("cannot read layer {}: {error}", blob.digest));
    let mut file = layout.open_blob(&blob.digest).map_err(|error| OpError::input(error.to_string()))?;
    let mut writer = store.blob_writer()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut copied = 0;
    loop {
        let n_bytes = file.read(&mut chunk).map_err(fault)?;
        if n_bytes == 0 {
            break;
        }
        writer.write(&chunk[..n_bytes])?;
        copied += n_bytes as u64;
        step.status(blob.digest.to_string(), copied, blob.size_bytes, false);
    }
    writer.commit(Some(&blob.digest)).map_err(|error| {
        OpError::input(format!("`{}` in `{}` is not what its name says: {error}", blob.digest, layout.dir().display()))
    })?;
    store.remember_foreign_blob(diff_id, blob)?;
    step.status(blob.digest.to_string(), copied, blob.size_bytes, true);
    Ok(())
}

/// What the image is called: no registry has it, and none is ever asked for it.
fn reference(path: &str) -> ImageRef {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let unnamed = || ImageRef::new(PLACE, "image").expect("the name is well formed");
    ImageRef::new(PLACE, &name).unwrap_or_else(|_| unnamed())
}

fn parse<T: DeserializeOwned>(path: &str, digest: &Digest, bytes: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(bytes)
        .map_err(|error| OpError::input(format!("`{path}`: {digest} is no image document: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_references_whatever_they_are_called() {
        for (path, expected) in [
            ("/tmp/Layout", "oci-layout.invalid/layout"),
            ("out/app", "oci-layout.invalid/app"),
            ("/", "oci-layout.invalid/image"),
            ("/x/ä b", "oci-layout.invalid/image"),
        ] {
            assert_eq!(reference(path).to_string(), expected);
        }
    }
}
