//! Looking whether the store is in order, and putting it in order.

use oci::Digest;

use crate::blobs::digest_of_file;
use crate::error::Result;
use crate::id::LayerId;
use crate::images;
use crate::layers::{self, LayerFile};
use crate::layout::Bucket;
use crate::rebuild::digest_named;
use crate::store::Store;
use crate::{blobs, durability};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Number of blobs whose bytes were hashed.
    pub n_blobs: usize,
    /// Their length together.
    pub blob_bytes: u64,
    /// Number of trees that were looked at.
    pub n_trees: usize,
    /// What was wrong, in the order in which it was found.
    pub problems: Vec<Problem>,
}

/// Something that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The database was corrupt. Repaired: another was made from the files.
    #[error("the index was corrupt and has been rebuilt from the files of the store")]
    Index,
    /// A blob has no file. Repaired: forgotten.
    #[error("blob `{0}` had lost its file and has been forgotten")]
    LostBlob(Digest),
    /// A blob's bytes have another digest. Repaired: removed.
    #[error("blob `{0}` was corrupt and has been removed")]
    CorruptBlob(Digest),
    /// A layer's tree is missing or has lost its description. Repaired: the layer has no tree any more.
    #[error("layer `{0}` had lost its tree, which has been forgotten")]
    LostTree(LayerId),
    /// A file that nothing refers to. Repaired: removed.
    #[error("`{0}` belonged to nothing and has been removed")]
    Stray(String),
    /// Files of images could not be read. Repaired: removed.
    #[error("{0} unreadable image files have been removed")]
    BrokenImages(usize),
    /// An image's manifest is not stored. Not repaired: pull or build it again, or remove its name.
    #[error("the manifest `{digest}` of image `{name}` is not in the store")]
    IncompleteImage {
        /// Its name.
        name: String,
        /// Its manifest.
        digest: Digest,
    },
}

impl Store {
    /// Compares everything in the store with what it should be: digests of blobs, trees of layers, files and index.
    /// Drops what is broken, so that it is made again when needed.
    ///
    /// Reads every byte of every blob. Builds may go on meanwhile.
    pub fn check(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        if self.inner.index.replace_if_corrupt()? {
            report.problems.push(Problem::Index);
        }
        self.check_blobs(&mut report)?;
        self.check_trees(&mut report)?;
        self.check_strays(&mut report)?;
        self.check_images(&mut report)?;
        self.inner.index.write("forget layers without any form", |tx| Ok(durability::drop_formless_layers(tx)?))?;
        Ok(report)
    }

    fn check_blobs(&self, report: &mut CheckReport) -> Result<()> {
        for digest in self.blob_digests()? {
            let path = self.inner.layout.blob(&digest);
            let problem = match digest_of_file(&path) {
                Ok(got) if got == digest => {
                    report.n_blobs += 1;
                    report.blob_bytes += std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
                    continue;
                }
                Ok(_) => Problem::CorruptBlob(digest.clone()),
                Err(_) if path.exists() => Problem::CorruptBlob(digest.clone()),
                Err(_) => Problem::LostBlob(digest.clone()),
            };
            // Somebody may have removed it in all order since the list was made.
            if self.inner.index.read("find a blob", |conn| Ok(blobs::is_known(conn, &digest)?))? {
                self.drop_blob(&digest)?;
                report.problems.push(problem);
            }
        }
        Ok(())
    }

    fn check_trees(&self, report: &mut CheckReport) -> Result<()> {
        for id in self.layers_with_tree()? {
            report.n_trees += 1;
            if self.has_sound_tree(&id) {
                continue;
            }
            let is_lost = self.inner.index.write("forget a tree", |tx| {
                // Looked at again inside, where nobody commits or removes.
                let is_lost = !self.has_sound_tree(&id) && layers::forget_tree(tx, &id)?;
                Ok(is_lost)
            })?;
            if is_lost {
                report.problems.push(Problem::LostTree(id));
            }
        }
        Ok(())
    }

    fn check_strays(&self, report: &mut CheckReport) -> Result<()> {
        let layout = &self.inner.layout;
        let strays = self.inner.index.read("look for strays", |conn| Ok(durability::strangers(conn, layout)?))?;
        self.inner.index.write("remove strays", |tx| {
            for stray in &strays {
                stray.remove(tx)?;
            }
            Ok(())
        })?;
        let gone = strays.into_iter().filter(|stray| !stray.path.exists());
        report.problems.extend(gone.map(|stray| Problem::Stray(stray.path.display().to_string())));
        Ok(())
    }

    fn check_images(&self, report: &mut CheckReport) -> Result<()> {
        let layout = &self.inner.layout;
        let _lock = images::lock_images(layout)?;
        let n_dropped = self.inner.index.write("check images", |tx| {
            images::drop_broken_files(layout, &|target| Ok(blobs::is_known(tx, target)?))
        })?;
        if n_dropped > 0 {
            report.problems.push(Problem::BrokenImages(n_dropped));
        }
        for image in images::list(layout)? {
            if self.read_blob(&image.target.digest)?.is_none() {
                let name = image.reference.map_or_else(|| "<none>".to_owned(), |reference| reference.to_string());
                report.problems.push(Problem::IncompleteImage { name, digest: image.target.digest });
            }
        }
        Ok(())
    }

    /// Everything that is not as it must be while no process is in the middle of something. Changes nothing; for tests.
    pub fn check_invariants(&self) -> Result<Vec<String>> {
        let layout = &self.inner.layout;
        let mut violations = Vec::new();
        let has_orphans =
            self.inner.index.read("check", |conn| Ok(conn.prepare("PRAGMA foreign_key_check")?.exists([])?))?;
        if has_orphans {
            violations.push("a row refers to one that is gone".to_owned());
        }
        let digests = self.blob_digests()?;
        violations.extend(digests.iter().filter(|d| !layout.blob(d).is_file()).map(|d| format!("no file: {d}")));
        let trees = self.layers_with_tree()?;
        violations.extend(trees.iter().filter(|id| !self.has_sound_tree(id)).map(|id| format!("no tree: {id}")));
        for entry in std::fs::read_dir(layout.blobs()).into_iter().flatten().flatten() {
            if !digest_named(&entry.file_name()).is_some_and(|digest| digests.contains(&digest)) {
                violations.push(format!("stray blob: {}", entry.path().display()));
            }
        }
        for entry in std::fs::read_dir(layout.bucket(Bucket::Trees)).into_iter().flatten().flatten() {
            if !trees.iter().any(|id| entry.file_name() == *id.as_str()) {
                violations.push(format!("stray tree: {}", entry.path().display()));
            }
        }
        Ok(violations)
    }

    fn blob_digests(&self) -> Result<Vec<Digest>> {
        self.inner.index.read("list blobs", |conn| {
            let mut select = conn.prepare("SELECT digest FROM blob")?;
            let digests = select.query_map([], |row| row.get(0).map(Digest::from_sha256))?;
            Ok(digests.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn layers_with_tree(&self) -> Result<Vec<LayerId>> {
        let names: Vec<String> = self.inner.index.read("list trees", |conn| {
            let mut select = conn.prepare("SELECT id FROM layer WHERE has_tree")?;
            let names = select.query_map([], |row| row.get(0))?;
            Ok(names.collect::<rusqlite::Result<_>>()?)
        })?;
        Ok(names.iter().filter_map(|name| LayerId::from_name(name)).collect())
    }

    fn has_sound_tree(&self, id: &LayerId) -> bool {
        let layout = &self.inner.layout;
        layout.tree(id).is_dir() && LayerFile::read(&layout.layer_dir(id)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, content, image, record, reference, store, tree_with};

    #[test]
    fn a_sound_store_has_no_problems() {
        let (_dir, store) = store();
        store.tag(&reference("a"), &image(&store, 1)).unwrap();
        store.commit_tree(tree_with(&store, "x"), content(1)).unwrap();
        let report = store.check().unwrap();
        assert_eq!((report.n_blobs, report.n_trees, report.problems), (3, 1, vec![]));
    }

    #[test]
    fn what_is_broken_is_named_and_dropped() {
        let (_dir, store) = store();
        let layout = &store.inner.layout;
        let target = image(&store, 1);
        store.tag(&reference("a"), &target).unwrap();
        let corrupt = store.put_blob(b"bytes").unwrap();
        std::fs::remove_file(layout.blob(&corrupt)).unwrap();
        std::fs::write(layout.blob(&corrupt), "other").unwrap();
        std::fs::remove_file(layout.blob(&target.digest)).unwrap();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap();
        store.put_record(&record(1, &layer.layer.id, "slot")).unwrap();
        std::fs::remove_dir_all(layer.tree.unwrap()).unwrap();
        let stray = layout.blobs().join("stray");
        std::fs::write(&stray, "x").unwrap();
        std::fs::write(layout.bucket(Bucket::Images).join("broken.json"), "{").unwrap();

        let mut problems = store.check().unwrap().problems;
        problems.sort_by_key(ToString::to_string);
        let layer_dir = layout.layer_dir(&layer.layer.id);
        let mut expected = [
            Problem::CorruptBlob(corrupt),
            Problem::LostBlob(target.digest.clone()),
            Problem::LostTree(layer.layer.id),
            Problem::Stray(stray.display().to_string()),
            Problem::Stray(layer_dir.display().to_string()),
            Problem::BrokenImages(1),
            Problem::IncompleteImage { name: reference("a").to_string(), digest: target.digest },
        ];
        expected.sort_by_key(ToString::to_string);
        assert_eq!(problems, expected);
        assert!(store.latest_of_slot("slot").unwrap().is_none(), "the record went with its layer");
        check(&store);
        let left = store.check().unwrap().problems;
        assert!(matches!(left[..], [Problem::IncompleteImage { .. }]), "{left:?}");
    }
}
