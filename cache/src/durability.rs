//! What survives a power cut.
//!
//! Nothing is fsynced while a build runs: what is written is visible at once to every process of this boot, because
//! they share the kernel's page cache. Each blob and tree carries the *epoch* in which it was written. [`Store::sync`]
//! closes the current epoch, makes the whole file system durable with one `syncfs`, and then notes the closed epoch in
//! the file `durable-v1`. A store that is opened in another boot than it was last used in drops everything of later
//! epochs, so that nothing half-written is ever believed. After a mere `kill -9` nothing is dropped.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oci::Digest;
use rusqlite::{Connection, Transaction};
use rustix::fs::FlockOperation;

use crate::error::{Fault, IoContext, Result};
use crate::id::LayerId;
use crate::index::Index;
use crate::layout::{Bucket, Layout};
use crate::rebuild::digest_named;
use crate::scratch::remove_tree;
use crate::store::Store;
use crate::{blobs, images, locks, schema};

/// Fixed length, so that rewriting it in place touches one sector.
const DURABLE_LEN: usize = 48;
const DURABLE_PREFIX: &str = "rbuild durable epoch ";

/// Names one boot of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootId(String);

impl BootId {
    /// This boot; a constant where the kernel does not tell.
    pub(crate) fn current() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self(text.trim().to_owned())
    }

    /// Stands for all boots of all machines that share a directory on a network: the server answers for durability
    /// there, and another machine's boot says nothing about it.
    pub(crate) fn shared_by_machines() -> Self {
        Self("network".to_owned())
    }

    /// A boot by name, for tests of power cuts.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The text that is stored.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Store {
    /// Makes everything written so far survive a power cut (one `syncfs`), and marks it so.
    ///
    /// Nothing happens when nothing was written since the last time.
    pub fn sync(&self) -> Result<()> {
        let index = &self.inner.index;
        let layout = index.layout();
        let durable_path = layout.bucket(Bucket::Durable);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&durable_path);
        let file = file.during("open", &durable_path)?;
        let Some(closed) = close_epoch(index, read_durable(&file))? else { return Ok(()) };
        let root = File::open(layout.root()).during("open", layout.root())?;
        rustix::fs::syncfs(&root).during("sync the file system of", layout.root())?;
        note_durable(&file, &durable_path, closed)?;
        index.tidy();
        Ok(())
    }
}

/// Starts a new epoch and returns the one before it; `None` when everything written is durable already.
fn close_epoch(index: &Index, durable: i64) -> Result<Option<i64>> {
    index.write("close an epoch", |tx| {
        if schema::meta(tx, "dirty")? <= durable {
            return Ok(None);
        }
        let closed = schema::meta(tx, "epoch")?;
        tx.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'epoch'")?.execute([closed + 1])?;
        Ok(Some(closed))
    })
}

/// The epoch that something written now belongs to. Call inside the transaction that notes it.
pub(crate) fn current_epoch(tx: &Connection) -> rusqlite::Result<i64> {
    let epoch = schema::meta(tx, "epoch")?;
    tx.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'dirty' AND value <> ?1")?.execute([epoch])?;
    Ok(epoch)
}

/// The last epoch that has reached the disk; 0 when none has, or when the note is unreadable.
pub(crate) fn durable_epoch(layout: &Layout) -> i64 {
    File::open(layout.bucket(Bucket::Durable)).map_or(0, |file| read_durable(&file))
}

fn read_durable(file: &File) -> i64 {
    let mut text = [0; DURABLE_LEN];
    if file.read_exact_at(&mut text, 0).is_err() {
        return 0;
    }
    let text = std::str::from_utf8(&text).unwrap_or_default();
    text.strip_prefix(DURABLE_PREFIX).and_then(|rest| rest.trim_end().parse().ok()).unwrap_or(0)
}

fn note_durable(file: &File, path: &Path, closed: i64) -> Result<()> {
    // Two processes may finish their syncs in either order; the higher epoch stays.
    rustix::fs::flock(file, FlockOperation::LockExclusive).during("lock", path)?;
    if read_durable(file) < closed {
        let text = format!("{:<width$}\n", format!("{DURABLE_PREFIX}{closed}"), width = DURABLE_LEN - 1);
        file.write_all_at(text.as_bytes(), 0).during("write", path)?;
        file.sync_data().during("sync", path)?;
    }
    rustix::fs::flock(file, FlockOperation::Unlock).during("unlock", path)
}

/// Drops what had not reached the disk when the machine went down, if it did since the store was last used.
pub(crate) fn forget_what_a_power_cut_took(index: &Index) -> Result<()> {
    let same_boot = |conn: &Connection| -> Result<bool, Fault> {
        let boot: String = conn.query_row("SELECT value FROM meta WHERE name = 'boot'", [], |row| row.get(0))?;
        Ok(boot == index.boot().as_str())
    };
    if index.read("look for a power cut", |conn| same_boot(conn))? {
        return Ok(());
    }
    let _lock = locks::lock(index.layout(), "index")?;
    let durable = durable_epoch(index.layout());
    index.write("recover from a power cut", |tx| {
        if same_boot(tx)? {
            return Ok(());
        }
        tracing::info!(durable, "first use since the machine started: dropping what was not synced");
        tx.execute("DELETE FROM blob WHERE epoch > ?1", [durable])?;
        tx.execute("UPDATE layer SET has_tree = 0, tree_bytes = NULL WHERE epoch > ?1", [durable])?;
        tx.execute("DELETE FROM lease", [])?;
        drop_formless_layers(tx)?;
        for stranger in strangers(tx, index.layout())? {
            stranger.remove(tx)?;
        }
        images::drop_broken_files(index.layout(), &|target| Ok(blobs::is_known(tx, target)?))?;
        tx.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'epoch'", [durable + 1])?;
        tx.execute("UPDATE meta SET value = ?1 WHERE name = 'boot'", [index.boot().as_str()])?;
        Ok(())
    })
}

/// The layers built here that have lost all their forms, as a condition on `layer`.
///
/// A layer of an image may have no form yet: it is known by its diff ID before anything is pulled.
const IS_FORMLESS: &str = "layer.id >= 'x-' AND layer.id < 'x.' AND layer.has_tree = 0 AND NOT EXISTS (
     SELECT 1 FROM layer AS twin WHERE twin.diff_id = layer.diff_id AND twin.has_tree
     UNION ALL SELECT 1 FROM blob WHERE blob.digest = layer.diff_id
     UNION ALL SELECT 1 FROM variant JOIN blob USING (digest) WHERE variant.diff_id = layer.diff_id
     UNION ALL SELECT 1 FROM remote WHERE remote.diff_id = layer.diff_id)";

/// Number of the layers built here that have lost all their forms.
pub(crate) fn formless_layers(conn: &Connection) -> rusqlite::Result<usize> {
    let n_layers: i64 =
        conn.query_row(&format!("SELECT count(*) FROM layer WHERE {IS_FORMLESS}"), [], |row| row.get(0))?;
    Ok(usize::try_from(n_layers).unwrap_or(0))
}

/// Deletes the layers built here that have lost all their forms, and with them their records; returns how many.
pub(crate) fn drop_formless_layers(tx: &Connection) -> rusqlite::Result<usize> {
    tx.execute(&format!("DELETE FROM layer WHERE {IS_FORMLESS}"), [])
}

/// Files in the buckets of blobs and trees that the index does not know. While somebody commits, that may be about to
/// change: look again inside a transaction before removing any.
pub(crate) fn strangers(conn: &Connection, layout: &Layout) -> rusqlite::Result<Vec<Stranger>> {
    let mut strangers = Vec::new();
    for entry in std::fs::read_dir(layout.blobs()).into_iter().flatten().flatten() {
        strangers.push(Stranger { path: entry.path(), digest: digest_named(&entry.file_name()), layer: None });
    }
    for entry in std::fs::read_dir(layout.bucket(Bucket::Trees)).into_iter().flatten().flatten() {
        let layer = entry.file_name().to_str().and_then(LayerId::from_name);
        strangers.push(Stranger { path: entry.path(), digest: None, layer });
    }
    let mut unknown = Vec::new();
    for stranger in strangers {
        if !stranger.is_known(conn)? {
            unknown.push(stranger);
        }
    }
    Ok(unknown)
}

/// A file that may belong to nothing in the index.
#[derive(Debug)]
pub(crate) struct Stranger {
    /// Where it lies.
    pub(crate) path: PathBuf,
    digest: Option<Digest>,
    layer: Option<LayerId>,
}

impl Stranger {
    /// Whether the index knows it by now.
    pub(crate) fn is_known(&self, conn: &Connection) -> rusqlite::Result<bool> {
        match (&self.digest, &self.layer) {
            (Some(digest), _) => blobs::is_known(conn, digest),
            (None, Some(id)) => {
                conn.prepare_cached("SELECT 1 FROM layer WHERE id = ?1 AND has_tree")?.exists([id.as_str()])
            }
            (None, None) => Ok(false),
        }
    }

    /// Removes the file if it is still unknown. Call inside a transaction, so that no commit is under way.
    pub(crate) fn remove(&self, tx: &Transaction) -> rusqlite::Result<()> {
        if !self.is_known(tx)? {
            remove_tree(&self.path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Key;
    use crate::testing::{check, content, diff_id, image, record, reference, tree_with};

    fn open(dir: &tempfile::TempDir, boot: &str) -> Store {
        Store::open_in(&dir.path().join("store"), &BootId::named(boot)).unwrap()
    }

    #[test]
    fn the_note_is_read_as_written_and_nothing_else_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("durable");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        assert_eq!(read_durable(&file), 0);
        for (epoch, expected) in [(7, 7), (3, 7), (i64::MAX, i64::MAX)] {
            note_durable(&file, &path, epoch).unwrap();
            assert_eq!(read_durable(&file), expected);
        }
        for text in ["", "rbuild durable epoch", &"x".repeat(DURABLE_LEN), &"9".repeat(DURABLE_LEN)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_durable(&File::open(&path).unwrap()), 0, "{text}");
        }
    }

    #[test]
    fn what_was_synced_survives_a_power_cut_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "first");
        let old = store.commit_tree(tree_with(&store, "old"), content(1)).unwrap().layer;
        store.put_record(&record(1, &old.id, "slot")).unwrap();
        let old_blob = store.put_blob(b"old").unwrap();
        store.sync().unwrap();
        let new = store.commit_tree(tree_with(&store, "new"), content(2)).unwrap().layer;
        store.put_record(&record(2, &new.id, "slot")).unwrap();
        let new_blob = store.put_blob(b"new").unwrap();
        let pulled = store.layer_for_diff_id(&diff_id(1)).unwrap().layer;
        store.attach_tree(&pulled.id, tree_with(&store, "unpacked")).unwrap();
        drop(store);

        let same_boot = open(&dir, "first");
        assert!(same_boot.find_record(&Key([2; 32])).unwrap().is_some(), "no power cut, nothing is lost");
        drop(same_boot);

        let store = open(&dir, "second");
        assert!(store.find_record(&Key([1; 32])).unwrap().is_some());
        assert!(store.find_record(&Key([2; 32])).unwrap().is_none());
        assert!(store.layer(&new.id).unwrap().is_none());
        assert!(store.read_blob(&old_blob).unwrap().is_some());
        assert!(store.blob_path(&new_blob).is_none());
        assert!(!store.inner.layout.blob(&new_blob).exists() && !store.inner.layout.layer_dir(&new.id).exists());
        assert_eq!(store.layer_for_diff_id(&diff_id(1)).unwrap().tree, None);
        check(&store);
        // Life goes on in the new boot.
        let next = store.commit_tree(tree_with(&store, "next"), content(3)).unwrap().layer;
        store.sync().unwrap();
        drop(store);
        assert!(open(&dir, "third").layer(&next.id).unwrap().is_some());
    }

    #[test]
    fn a_named_image_is_durable_with_all_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "first");
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
        store.set_diff_id(&layer.id, &diff_id(1), 10).unwrap();
        let target = image(&store, 1);
        store.tag(&reference("app"), &target).unwrap();
        let dangling = image(&store, 2);
        store.keep_dangling(&dangling).unwrap();
        drop(store);
        let store = open(&dir, "second");
        assert_eq!(store.images().unwrap().len(), 1, "the dangling image was not synced");
        assert!(store.read_blob(&target.digest).unwrap().is_some());
        assert!(store.layer(&layer.id).unwrap().unwrap().tree.is_some());
        check(&store);
    }

    #[test]
    fn files_that_appeared_behind_the_index_are_not_believed_after_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "first");
        store.put_blob(b"x").unwrap();
        store.sync().unwrap();
        let torn = store.inner.layout.blob(&Digest::of(b"torn"));
        std::fs::write(&torn, "to").unwrap();
        drop(store);
        let store = open(&dir, "second");
        assert!(!torn.exists());
        check(&store);
    }

    #[test]
    fn an_index_rebuilt_after_a_power_cut_believes_only_synced_trees() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "first");
        let synced = store.commit_tree(tree_with(&store, "a"), content(1)).unwrap().layer;
        store.sync().unwrap();
        let torn = store.commit_tree(tree_with(&store, "b"), content(2)).unwrap().layer;
        drop(store);
        std::fs::remove_dir_all(dir.path().join("store/index-v1")).unwrap();
        let store = open(&dir, "second");
        assert!(store.layer(&synced.id).unwrap().is_some());
        assert!(store.layer(&torn.id).unwrap().is_none());
    }

    #[test]
    fn a_sync_with_nothing_to_do_does_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "first");
        store.put_blob(b"x").unwrap();
        store.sync().unwrap();
        let durable = durable_epoch(&store.inner.layout);
        store.sync().unwrap();
        store.put_blob(b"x").unwrap();
        store.sync().unwrap();
        assert_eq!(durable_epoch(&store.inner.layout), durable);
        store.put_blob(b"y").unwrap();
        store.sync().unwrap();
        assert!(durable_epoch(&store.inner.layout) > durable);
    }
}
