//! Images: names for manifests. Small JSON files are the truth and the only place; the index knows nothing of them.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageRef, Index, Manifest, media_type};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::blobs;
use crate::error::{Fault, IoContext, Result};
use crate::layout::{Bucket, Layout};
use crate::locks::{self, StoreLock};
use crate::store::{Store, now};

/// Manifests, indexes and configs are small; a bigger blob is none, whatever points to it.
const MAX_DOCUMENT_BYTES: u64 = 32 << 20;

/// How long an image is kept for a push that has not ended.
const PUSH_LIFE_SECONDS: i64 = 7 * 24 * 3600;

/// A named or dangling image of the local store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its name; `None` for a dangling image.
    pub reference: Option<ImageRef>,
    /// The manifest or index; its bytes are a blob of the store.
    pub target: Descriptor,
    /// Seconds since the epoch at which the name was given.
    pub updated_at: i64,
}

/// The content of an image's file.
#[derive(Serialize, Deserialize)]
struct ImageFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    target: Descriptor,
    updated_at: i64,
}

/// Everything that images need, so that it is not garbage.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Manifests, configs, layers: what the documents name, stored or not.
    pub(crate) blobs: HashSet<Digest>,
    /// The layers that the configs name.
    pub(crate) diff_ids: HashSet<DiffId>,
}

/// Whether a write has to be on the disk before it is believed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Survives a power cut once written.
    Durable,
    /// May be lost.
    Volatile,
}

impl Store {
    /// Names an image; a previous image of that name becomes dangling. Durable when it returns, with everything the
    /// image needs.
    pub fn tag(&self, reference: &ImageRef, target: &Descriptor) -> Result<()> {
        // Before the name: a power cut in between leaves the previous image.
        self.sync()?;
        let layout = &self.inner.layout;
        let _lock = lock_images(layout)?;
        let path = layout.image(reference);
        let previous = read_image(&path)?;
        if previous.as_ref().is_some_and(|image| image.target == *target) {
            return Ok(());
        }
        let file = ImageFile { reference: Some(reference.to_string()), target: target.clone(), updated_at: now() };
        self.write_image(&path, &file, Durability::Durable)?;
        remove_if_there(&layout.dangling(&target.digest))?;
        match previous {
            Some(previous) if !is_named(layout, &previous.target.digest)? => self.write_dangling(&previous.target),
            _ => Ok(()),
        }
    }

    /// Keeps an unnamed image. Nothing happens when the image has a name.
    pub fn keep_dangling(&self, target: &Descriptor) -> Result<()> {
        let _lock = lock_images(&self.inner.layout)?;
        if is_named(&self.inner.layout, &target.digest)? { Ok(()) } else { self.write_dangling(target) }
    }

    /// Removes a name. `false` when there was none. An image without any name is garbage.
    pub fn untag(&self, reference: &ImageRef) -> Result<bool> {
        let _lock = lock_images(&self.inner.layout)?;
        remove_if_there(&self.inner.layout.image(reference))
    }

    /// Removes a dangling image. `false` when there was none.
    pub fn remove_dangling(&self, digest: &Digest) -> Result<bool> {
        let _lock = lock_images(&self.inner.layout)?;
        remove_if_there(&self.inner.layout.dangling(digest))
    }

    /// The image of that name.
    pub fn image(&self, reference: &ImageRef) -> Result<Option<StoredImage>> {
        read_image(&self.inner.layout.image(reference))
    }

    /// All images, newest first.
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        list(&self.inner.layout)
    }

    /// Notes that an image is about to be pushed under a name that it need not have here, so that it is kept, and can be
    /// found by [`Self::unfinished_push`] should the push not end. Survives the process, not a power cut.
    pub fn begin_push(&self, reference: &ImageRef, target: &Descriptor) -> Result<()> {
        let _lock = lock_images(&self.inner.layout)?;
        let file = ImageFile { reference: Some(reference.to_string()), target: target.clone(), updated_at: now() };
        self.write_image(&self.inner.layout.push(reference), &file, Durability::Volatile)
    }

    /// Forgets the push of an image under a name; nothing happens when the name is that of another push by now.
    pub fn end_push(&self, reference: &ImageRef, target: &Descriptor) -> Result<()> {
        let _lock = lock_images(&self.inner.layout)?;
        let path = self.inner.layout.push(reference);
        if read_image(&path)?.is_some_and(|image| image.target == *target) {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    /// The image that was last to be pushed under a name, if that push has not ended and is not too long ago.
    pub fn unfinished_push(&self, reference: &ImageRef) -> Result<Option<StoredImage>> {
        let pushed = read_image(&self.inner.layout.push(reference))?;
        Ok(pushed.filter(|push| push.updated_at + PUSH_LIFE_SECONDS > now()))
    }

    fn write_dangling(&self, target: &Descriptor) -> Result<()> {
        let file = ImageFile { reference: None, target: target.clone(), updated_at: now() };
        self.write_image(&self.inner.layout.dangling(&target.digest), &file, Durability::Volatile)
    }

    fn write_image(&self, path: &Path, file: &ImageFile, durability: Durability) -> Result<()> {
        let bytes = serde_json::to_vec(file).map_err(std::io::Error::from).during("encode", path)?;
        let temporary = self.session()?.fresh_path("image");
        let mut out = File::create(&temporary).during("create", &temporary)?;
        out.write_all(&bytes).during("write", &temporary)?;
        if durability == Durability::Durable {
            out.sync_all().during("sync", &temporary)?;
        }
        std::fs::rename(&temporary, path).during("rename", &temporary)?;
        if durability == Durability::Durable {
            let dir = self.inner.layout.bucket(Bucket::Images);
            File::open(&dir).and_then(|dir| dir.sync_all()).during("sync", &dir)?;
        }
        Ok(())
    }
}

/// Keeps other processes from changing names.
pub(crate) fn lock_images(layout: &Layout) -> Result<StoreLock> {
    locks::lock(layout, "images")
}

/// All images, newest first; unreadable files are skipped.
pub(crate) fn list(layout: &Layout) -> Result<Vec<StoredImage>> {
    let dir = layout.bucket(Bucket::Images);
    let mut images = Vec::new();
    for entry in std::fs::read_dir(&dir).during("list", &dir)? {
        images.extend(read_image(&entry.during("list", &dir)?.path())?);
    }
    let name = |image: &StoredImage| image.reference.as_ref().map(ToString::to_string);
    images.sort_by(|a, b| b.updated_at.cmp(&a.updated_at).then_with(|| name(a).cmp(&name(b))));
    Ok(images)
}

/// Reads an image's file; `None` when there is none or it is unreadable.
fn read_image(path: &Path) -> Result<Option<StoredImage>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.during("read", path)?,
    };
    let image = parse_image(&bytes);
    if image.is_none() {
        tracing::warn!(path = %path.display(), "not an image of the store; ignoring it");
    }
    Ok(image)
}

fn parse_image(bytes: &[u8]) -> Option<StoredImage> {
    let file: ImageFile = serde_json::from_slice(bytes).ok()?;
    let reference = file.reference.map(|text| text.parse()).transpose().ok()?;
    Some(StoredImage { reference, target: file.target, updated_at: file.updated_at })
}

/// Removes image files that are torn, and dangling images whose manifest `is_stored` denies.
pub(crate) fn drop_broken_files(
    layout: &Layout,
    is_stored: &dyn Fn(&Digest) -> Result<bool, Fault>,
) -> Result<usize, Fault> {
    let dir = layout.bucket(Bucket::Images);
    let mut n_dropped = 0;
    for entry in std::fs::read_dir(&dir).during("list", &dir)?.flatten() {
        let image = std::fs::read(entry.path()).ok().and_then(|bytes| parse_image(&bytes));
        let keep = match image {
            None => false,
            Some(image) => image.reference.is_some() || is_stored(&image.target.digest)?,
        };
        if !keep {
            n_dropped += usize::from(remove_if_there(&entry.path())?);
        }
    }
    Ok(n_dropped)
}

/// Number of files that are no images.
pub(crate) fn n_broken_files(layout: &Layout) -> Result<usize> {
    let dir = layout.bucket(Bucket::Images);
    let entries = std::fs::read_dir(&dir).during("list", &dir)?.flatten();
    let is_broken = |path: &Path| std::fs::read(path).is_ok_and(|bytes| parse_image(&bytes).is_none());
    Ok(entries.filter(|entry| is_broken(&entry.path())).count())
}

fn remove_if_there(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other.during("remove", path).map(|()| true),
    }
}

fn is_named(layout: &Layout, digest: &Digest) -> Result<bool> {
    Ok(list(layout)?.iter().any(|image| image.reference.is_some() && image.target.digest == *digest))
}

/// Collects what all images need.
pub(crate) fn kept(layout: &Layout) -> Result<Kept> {
    let mut kept = Kept::default();
    for image in list(layout)?.into_iter().chain(unfinished_pushes(layout)?) {
        keep_document(layout, &image.target, &mut kept);
    }
    Ok(kept)
}

/// Pushes that have not ended; the files of old ones are removed.
fn unfinished_pushes(layout: &Layout) -> Result<Vec<StoredImage>> {
    let dir = layout.bucket(Bucket::Pushes);
    let mut pushes = Vec::new();
    for entry in std::fs::read_dir(&dir).during("list", &dir)? {
        let path = entry.during("list", &dir)?.path();
        match read_image(&path)? {
            Some(push) if push.updated_at + PUSH_LIFE_SECONDS > now() => pushes.push(push),
            _ => {
                remove_if_there(&path)?;
            }
        }
    }
    Ok(pushes)
}

/// Each document is read once; what a broken or absent one would have named is unknown and therefore not kept.
fn keep_document(layout: &Layout, target: &Descriptor, kept: &mut Kept) {
    if !kept.blobs.insert(target.digest.clone()) {
        return;
    }
    if media_type::is_index(&target.media_type) {
        let index: Option<Index> = read_document(layout, &target.digest);
        for manifest in index.iter().flat_map(|index| &index.manifests) {
            keep_document(layout, manifest, kept);
        }
    } else if let Some(manifest) = read_document::<Manifest>(layout, &target.digest) {
        kept.blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
        if let Some(config) = read_document::<ImageConfig>(layout, &manifest.config.digest) {
            kept.diff_ids.extend(config.rootfs.diff_ids);
        }
        kept.blobs.insert(manifest.config.digest);
    }
}

/// A document of an image, not verified; `None` when it is missing or is none.
pub(crate) fn read_document<T: serde::de::DeserializeOwned>(layout: &Layout, digest: &Digest) -> Option<T> {
    let path = layout.blob(digest);
    if std::fs::metadata(&path).ok()?.len() > MAX_DOCUMENT_BYTES {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Calls `note` with each layer blob of each image and the diff ID that the image's config gives it.
pub(crate) fn for_each_layer(
    layout: &Layout,
    conn: &Connection,
    note: &mut dyn FnMut(&DiffId, &Descriptor) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for digest in kept(layout)?.blobs {
        if !blobs::is_known(conn, &digest)? {
            continue;
        }
        let Some(manifest) = read_document::<Manifest>(layout, &digest) else { continue };
        let Some(config) = read_document::<ImageConfig>(layout, &manifest.config.digest) else { continue };
        if config.rootfs.diff_ids.len() == manifest.layers.len() {
            for (diff_id, layer) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
                note(diff_id, layer)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gc::PruneFilter;
    use crate::testing::{check, image, reference, store};

    #[test]
    fn a_name_moves_and_leaves_a_dangling_image() {
        let (_dir, store) = store();
        let (old, new) = (image(&store, 1), image(&store, 2));
        let name = reference("app:1");
        store.tag(&name, &old).unwrap();
        store.tag(&name, &new).unwrap();
        assert_eq!(store.image(&name).unwrap().unwrap().target, new);
        let mut listed: Vec<_> =
            store.images().unwrap().into_iter().map(|image| (image.reference, image.target)).collect();
        listed.sort_by_key(|(reference, _)| reference.is_some());
        assert_eq!(listed, [(None, old.clone()), (Some(name.clone()), new.clone())]);
        store.tag(&name, &old).unwrap();
        assert!(!store.remove_dangling(&old.digest).unwrap(), "the old image has its name back");
        assert!(store.remove_dangling(&new.digest).unwrap());
        check(&store);
    }

    #[test]
    fn an_image_with_another_name_does_not_dangle() {
        let (_dir, store) = store();
        let (old, new) = (image(&store, 1), image(&store, 2));
        store.tag(&reference("a"), &old).unwrap();
        store.tag(&reference("b"), &old).unwrap();
        store.tag(&reference("a"), &new).unwrap();
        store.keep_dangling(&old).unwrap();
        assert!(store.images().unwrap().iter().all(|image| image.reference.is_some()));
        assert!(store.untag(&reference("b")).unwrap());
        assert!(!store.untag(&reference("b")).unwrap());
        store.keep_dangling(&old).unwrap();
        assert!(store.remove_dangling(&old.digest).unwrap());
        check(&store);
    }

    #[test]
    fn an_image_is_kept_while_it_is_pushed() {
        let (_dir, store) = store();
        let (old, new) = (image(&store, 1), image(&store, 2));
        let name = reference("r.example/app:1");
        store.begin_push(&name, &old).unwrap();
        assert!(store.images().unwrap().is_empty(), "it has no name here");
        assert!(kept(&store.inner.layout).unwrap().blobs.contains(&old.digest));
        store.begin_push(&name, &new).unwrap();
        store.end_push(&name, &old).unwrap();
        assert_eq!(store.unfinished_push(&name).unwrap().map(|push| push.target), Some(new.clone()));
        store.end_push(&name, &new).unwrap();
        store.end_push(&name, &new).unwrap();
        assert_eq!(store.unfinished_push(&name).unwrap(), None);
        assert!(kept(&store.inner.layout).unwrap().blobs.is_empty());

        let long_ago = ImageFile { reference: Some(name.to_string()), target: new, updated_at: 1_000_000 };
        let path = store.inner.layout.push(&name);
        store.write_image(&path, &long_ago, Durability::Volatile).unwrap();
        assert_eq!(store.unfinished_push(&name).unwrap(), None);
        assert!(kept(&store.inner.layout).unwrap().blobs.is_empty() && !path.exists());
        check(&store);
    }

    #[test]
    fn an_index_keeps_all_that_its_images_need() {
        let (_dir, store) = store();
        let images = [image(&store, 1), image(&store, 2)];
        let other = image(&store, 3);
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            manifests: images.to_vec(),
            annotations: Default::default(),
        };
        let bytes = oci::image::to_manifest_json(&index);
        let digest = store.put_blob(&bytes).unwrap();
        let target = Descriptor::new(media_type::OCI_INDEX, digest, bytes.len() as u64);
        store.tag(&reference("app"), &target).unwrap();
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap();
        for image in &images {
            let bytes = store.read_blob(&image.digest).unwrap().expect("a manifest of the index");
            let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
            assert!(store.read_blob(&manifest.config.digest).unwrap().is_some());
            assert!(manifest.layers.iter().all(|layer| store.blob_path(&layer.digest).is_some()));
        }
        assert!(store.read_blob(&other.digest).unwrap().is_none());
        store.untag(&reference("app")).unwrap();
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap();
        assert!(store.read_blob(&images[0].digest).unwrap().is_none());
        check(&store);
    }

    #[test]
    fn an_unreadable_file_is_no_image() {
        let (_dir, store) = store();
        store.tag(&reference("a"), &image(&store, 1)).unwrap();
        std::fs::write(store.inner.layout.image(&reference("a")), "{").unwrap();
        assert_eq!(store.image(&reference("a")).unwrap(), None);
        assert!(store.images().unwrap().is_empty());
    }
}
