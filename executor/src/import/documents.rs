//! Manifests and indexes whose blobs are in the store: do they hold together?

use std::fs::File;
use std::io::Read;

use cache::{BlobWriter, Store};
use oci::layout::{IMAGE_NAME, Layout, LayoutError, MAX_DOCUMENT_SIZE, REF_NAME};
use oci::{Descriptor, Digest, ImageConfig, ImageRef, Index, Manifest, Platform, attestation, media_type};
use serde::de::DeserializeOwned;

use super::{ImportError, Loaded};

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// The name that an entry of `index.json` gives its image: containerd's, else one that is more than a tag.
pub(super) fn name_of(entry: &Descriptor) -> Option<ImageRef> {
    let parse = |text: &String| ImageRef::parse_normalized(text).ok().map(ImageRef::with_default_tag);
    let full = entry.annotations.get(IMAGE_NAME).and_then(parse);
    let own = || entry.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])).and_then(parse);
    full.or_else(own).filter(|name| name.digest().is_none())
}

/// Checks that an image and all that it names is in the store, and notes its layers. Images that an index lists and that
/// are not there at all are left out, unless none is left.
pub(super) fn check(store: &Store, entry: &Descriptor, platform: Option<&Platform>) -> Result<Loaded, ImportError> {
    let (kind, bytes) = manifest(store, entry, "index.json")?;
    let target = Descriptor::new(&kind, entry.digest.clone(), bytes.len() as u64);
    if !media_type::is_index(&kind) {
        let image = check_manifest(store, &target, &bytes)?;
        if let (Some(wanted), Some(has)) = (platform, &image.platform)
            && wanted.match_rank(has).is_none()
        {
            return Err(ImportError::NoPlatform { wanted: Box::new(wanted.clone()), known: vec![has.to_string()] });
        }
        return Ok(Loaded { names: Vec::new(), id: image.config, target });
    }
    let index: Index = parse(&entry.digest, &bytes)?;
    let mut images = Vec::new();
    for listed in &index.manifests {
        if store.blob_path(&listed.digest).is_none() {
            continue;
        }
        let (kind, bytes) = manifest(store, listed, &entry.digest.to_string())?;
        if media_type::is_index(&kind) {
            return Err(ImportError::Nested { outer: entry.digest.clone(), inner: listed.digest.clone() });
        }
        let found = Descriptor::new(&kind, listed.digest.clone(), bytes.len() as u64);
        let checked = check_manifest(store, &found, &bytes)?;
        if attestation::is_image(listed) {
            let of = listed.platform.clone().map(|platform| platform.normalized()).or(checked.platform);
            images.push((found, of, checked.config));
        }
    }
    let known: Vec<String> = images.iter().filter_map(|(_, of, _)| of.as_ref().map(ToString::to_string)).collect();
    match platform {
        None if images.is_empty() => Err(ImportError::Incomplete {
            named_by: entry.digest.to_string(),
            missing: index.manifests.first().map(|entry| entry.digest.to_string()).unwrap_or_default(),
        }),
        None => Ok(Loaded { names: Vec::new(), id: target.digest.clone(), target }),
        Some(wanted) => {
            let rank = |of: &Option<Platform>| of.as_ref().and_then(|of| wanted.match_rank(of));
            let ranked = images.into_iter().filter_map(|image| Some((rank(&image.1)?, image)));
            let best = ranked.min_by_key(|(rank, _)| *rank);
            let (_, (target, _, id)) =
                best.ok_or_else(|| ImportError::NoPlatform { wanted: Box::new(wanted.clone()), known })?;
            Ok(Loaded { names: Vec::new(), target, id })
        }
    }
}

/// What was checked.
struct Checked {
    config: Digest,
    /// Of an image.
    platform: Option<Platform>,
}

fn check_manifest(store: &Store, target: &Descriptor, bytes: &[u8]) -> Result<Checked, ImportError> {
    let manifest: Manifest = parse(&target.digest, bytes)?;
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        let size_bytes = store.blob_size(&blob.digest)?;
        match size_bytes {
            // Layers that stay where they are may be absent.
            None if media_type::is_nondistributable(&blob.media_type) => {}
            None => {
                let (named_by, missing) = (target.digest.to_string(), blob.digest.to_string());
                return Err(ImportError::Incomplete { named_by, missing });
            }
            Some(size_bytes) if size_bytes != blob.size_bytes => {
                let reason = format!("it has {size_bytes} bytes, and {} says {}", target.digest, blob.size_bytes);
                return Err(ImportError::Malformed { name: blob.digest.to_string(), reason });
            }
            Some(_) => {}
        }
    }
    let config = manifest.config.digest.clone();
    if !matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return Ok(Checked { config, platform: None });
    }
    let image: ImageConfig = read(store, &config)?;
    note_layers(store, &target.digest.to_string(), &manifest.layers, &image)?;
    Ok(Checked { config, platform: Some(image.platform().normalized()) })
}

/// Notes which tars the layer blobs hold. Attestations in the old form look like images, and name no tars.
pub(super) fn note_layers(
    store: &Store,
    name: &str,
    layers: &[Descriptor],
    config: &ImageConfig,
) -> Result<(), ImportError> {
    let diff_ids = &config.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        let reason = format!("it has {} layers, and its config {} diff IDs", layers.len(), diff_ids.len());
        return Err(ImportError::Malformed { name: name.to_owned(), reason });
    }
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let is_plain = matches!(layer.media_type.as_str(), media_type::OCI_LAYER | media_type::DOCKER_LAYER);
        if is_plain && layer.digest != *diff_id.digest() {
            let reason = format!("its layer {} is called {diff_id} in its config", layer.digest);
            return Err(ImportError::Malformed { name: name.to_owned(), reason });
        }
        if !layer.media_type.contains(".tar") {
            continue;
        }
        if !is_plain {
            // Whoever unpacks it compares the tar with its name.
            store.remember_foreign_blob(diff_id, layer)?;
        }
        store.layer_for_diff_id(diff_id)?;
    }
    Ok(())
}

fn manifest(store: &Store, entry: &Descriptor, named_by: &str) -> Result<(String, Vec<u8>), ImportError> {
    let bytes = bytes(store, &entry.digest)?
        .ok_or_else(|| ImportError::Incomplete { named_by: named_by.to_owned(), missing: entry.digest.to_string() })?;
    if bytes.len() as u64 != entry.size_bytes {
        let reason = format!("it has {} bytes, and `{named_by}` says {}", bytes.len(), entry.size_bytes);
        return Err(ImportError::Malformed { name: entry.digest.to_string(), reason });
    }
    let kind =
        media_type::of_manifest(&bytes).map_err(|source| ImportError::Kind { digest: entry.digest.clone(), source })?;
    Ok((kind, bytes))
}

/// A document of the store that must be there.
pub(super) fn read<T: DeserializeOwned>(store: &Store, digest: &Digest) -> Result<T, ImportError> {
    parse(digest, &bytes(store, digest)?.unwrap_or_default())
}

fn bytes(store: &Store, digest: &Digest) -> Result<Option<Vec<u8>>, ImportError> {
    if store.blob_size(digest)?.is_some_and(|size_bytes| size_bytes > MAX_DOCUMENT_SIZE) {
        let reason = format!("it is larger than {MAX_DOCUMENT_SIZE} bytes");
        return Err(ImportError::Malformed { name: digest.to_string(), reason });
    }
    Ok(store.read_blob(digest)?)
}

fn parse<T: DeserializeOwned>(digest: &Digest, bytes: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImportError::Malformed { name: digest.to_string(), reason: error.to_string() })
}

/// Copies what the images of a layout consist of into the store; what is not there is found missing later.
pub(super) fn copy_layout(store: &Store, layout: &Layout, index: &Index) -> Result<(), ImportError> {
    for entry in &index.manifests {
        let Some(bytes) = copy_document(store, layout, entry)? else { continue };
        if !media_type::of_manifest(&bytes).is_ok_and(|kind| media_type::is_index(&kind)) {
            copy_blobs(store, layout, &parse(&entry.digest, &bytes)?)?;
            continue;
        }
        for listed in parse::<Index>(&entry.digest, &bytes)?.manifests {
            if let Some(bytes) = copy_document(store, layout, &listed)?
                && let Ok(manifest) = serde_json::from_slice(&bytes)
            {
                copy_blobs(store, layout, &manifest)?;
            }
        }
    }
    Ok(())
}

fn copy_document(store: &Store, layout: &Layout, entry: &Descriptor) -> Result<Option<Vec<u8>>, ImportError> {
    match layout.read_blob(&entry.digest, MAX_DOCUMENT_SIZE) {
        Err(LayoutError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(bytes) => {
            store.put_blob(&bytes)?;
            Ok(Some(bytes))
        }
    }
}

fn copy_blobs(store: &Store, layout: &Layout, manifest: &Manifest) -> Result<(), ImportError> {
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        if store.blob_path(&blob.digest).is_some() {
            continue;
        }
        match layout.open_blob(&blob.digest) {
            Err(LayoutError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(file) => copy_blob(store.blob_writer()?, file, layout, &blob.digest)?,
        }
    }
    Ok(())
}

fn copy_blob(mut writer: BlobWriter, mut file: File, layout: &Layout, digest: &Digest) -> Result<(), ImportError> {
    let path = || layout.dir().join(oci::layout::blob_path(digest));
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n_read =
            file.read(&mut buffer).map_err(|source| ImportError::Io { operation: "read", path: path(), source })?;
        if n_read == 0 {
            break;
        }
        writer.write(&buffer[..n_read])?;
    }
    match writer.commit(Some(digest)) {
        Err(cache::StoreError::DigestMismatch { got, .. }) => {
            Err(ImportError::DigestMismatch { path: path().display().to_string(), actual: got })
        }
        committed => Ok(committed.map(drop)?),
    }
}
