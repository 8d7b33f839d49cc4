//! Looking whether the store is in order.

use oci::Digest;

use crate::error::Result;
use crate::id::LayerId;
use crate::layers::LayerFile;
use crate::layout::Bucket;
use crate::rebuild::digest_named;
use crate::store::Store;

impl Store {
    /// Everything that is not as it must be while no process is in the middle of something; for tests.
    pub fn check_invariants(&self) -> Result<Vec<String>> {
        let layout = &self.inner.layout;
        let mut violations = Vec::new();
        let (blobs, trees) = self.inner.index.read("check", |conn| {
            let mut select = conn.prepare("SELECT digest FROM blob")?;
            let blobs = select.query_map([], |row| row.get(0).map(Digest::from_sha256))?;
            let blobs = blobs.collect::<rusqlite::Result<Vec<_>>>()?;
            let mut select = conn.prepare("SELECT id FROM layer WHERE has_tree")?;
            let trees = select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
            let mut select = conn.prepare("PRAGMA foreign_key_check")?;
            if select.exists([])? {
                violations.push("a row refers to one that is gone".to_owned());
            }
            Ok((blobs, trees))
        })?;
        violations
            .extend(blobs.iter().filter(|digest| !layout.blob(digest).is_file()).map(|d| format!("no file: {d}")));
        for id in trees.iter().filter_map(|name| LayerId::from_name(name)) {
            if !layout.tree(&id).is_dir() || LayerFile::read(&layout.layer_dir(&id)).is_none() {
                violations.push(format!("no tree: {id}"));
            }
        }
        for entry in std::fs::read_dir(layout.blobs()).into_iter().flatten().flatten() {
            if !digest_named(&entry.file_name()).is_some_and(|digest| blobs.contains(&digest)) {
                violations.push(format!("stray blob: {}", entry.path().display()));
            }
        }
        for entry in std::fs::read_dir(layout.bucket(Bucket::Trees)).into_iter().flatten().flatten() {
            if !trees.iter().any(|name| entry.file_name() == **name) {
                violations.push(format!("stray tree: {}", entry.path().display()));
            }
        }
        Ok(violations)
    }
}
