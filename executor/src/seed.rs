//! Gives another store the images that a build is based on, and nothing else: so that it can build the same without a
//! registry, and without anything that was built before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use cache::{Codec, Store};
use oci::combine::{Listed, index};
use oci::{Descriptor, ImageRef, media_type};
use solver::{ImageOp, OpError, Step};

use crate::packer::{Packer, Wanted};
use crate::push::{Blob, Parcel};
use crate::relay::{Relay, combine};

/// How much is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Copies what `images` name from the relay's store to `to`, where their names mean them.
///
/// # Errors
/// An [`OpError`]: a layer cannot be had, or a store fails.
pub async fn seed(relay: &Relay, packer: &Packer, to: &Store, images: &[ImageOp], step: &Step) -> Result<(), OpError> {
    let mut by_name: BTreeMap<String, (ImageRef, Vec<Listed>)> = BTreeMap::new();
    for image in images {
        let bytes = document(&relay.store, &image.manifest)?;
        let kind = media_type::of_manifest(&bytes)
            .map_err(|error| OpError::input(format!("{} is no image: {error}", image.manifest)))?;
        let mut entry = Descriptor::new(&kind, image.manifest.clone(), bytes.len() as u64);
        let wanted = Wanted { codec: Codec::Plain, force: false, store_plain: true, may_stay_away: false };
        let parcel = Parcel::of_stored(packer, &relay.store, &entry, wanted).await?;
        relay.ensure_here(&parcel, step).await?;
        let (from, there) = (relay.store.clone(), to.clone());
        blocking(move || copy(&from, &there, &parcel)).await?;
        entry.platform = Some(image.platform.clone());
        let listed = Listed { entry, origin: image.reference.familiar() };
        let (_, entries) =
            by_name.entry(image.reference.to_string()).or_insert_with(|| (image.reference.clone(), Vec::new()));
        if !entries.contains(&listed) {
            entries.push(listed);
        }
    }
    for (reference, entries) in by_name.into_values() {
        name(relay, to, &reference, &entries)?;
    }
    Ok(())
}

fn name(relay: &Relay, to: &Store, reference: &ImageRef, entries: &[Listed]) -> Result<(), OpError> {
    if let Some(digest) = reference.digest() {
        // Whoever names a digest looks for the document itself.
        to.put_blob(&document(&relay.store, digest)?)?;
        return Ok(());
    }
    let target = match entries {
        [one] => Descriptor { platform: None, ..one.entry.clone() },
        several => {
            let top = combine::document(&index(several, BTreeMap::new()));
            to.put_blob(&top.bytes)?;
            top.descriptor
        }
    };
    Ok(to.tag(&reference.clone().with_default_tag(), &target)?)
}

fn document(store: &Store, digest: &oci::Digest) -> Result<Vec<u8>, OpError> {
    store.read_blob(digest)?.ok_or_else(|| OpError::environment(format!("the store has lost the blob {digest}")))
}

fn copy(from: &Store, to: &Store, parcel: &Parcel) -> Result<(), OpError> {
    for document in &parcel.documents {
        to.put_blob(&document.bytes)?;
    }
    for blob in &parcel.blobs {
        copy_blob(from, to, blob)?;
        if let Some(diff_id) = &blob.diff_id {
            to.layer_for_diff_id(diff_id)?;
            if *diff_id.digest() != blob.descriptor.digest {
                to.remember_foreign_blob(diff_id, &blob.descriptor)?;
            }
        }
    }
    Ok(())
}

fn copy_blob(from: &Store, to: &Store, blob: &Blob) -> Result<(), OpError> {
    let digest = &blob.descriptor.digest;
    let path = from.blob_path(digest);
    let path = path.ok_or_else(|| OpError::environment(format!("the store has lost the blob {digest}")))?;
    let mut file = File::open(&path).map_err(|error| fault("open", &path, &error))?;
    let mut writer = to.blob_writer()?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match file.read(&mut buffer).map_err(|error| fault("read", &path, &error))? {
            0 => break,
            n_read => writer.write(&buffer[..n_read])?,
        }
    }
    writer.commit(Some(digest))?;
    Ok(())
}

fn fault(operation: &str, path: &Path, error: &std::io::Error) -> OpError {
    OpError::environment(format!("cannot {operation} `{}`: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, OpError> + Send + 'static) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OpError::cancelled()),
    }
}
