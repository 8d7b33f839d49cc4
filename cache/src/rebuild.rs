//! Making an index from the files of the store, when there is none yet or the last one is beyond use.

use std::path::Path;

use oci::Digest;
use rusqlite::Transaction;

use crate::durability::{self, BootId};
use crate::error::Fault;
use crate::id::{LayerId, parse_hex32};
use crate::layers::LayerFile;
use crate::layout::{Bucket, Layout};
use crate::{blobs, images, layers, schema, variants};

/// Fills an empty database.
///
/// Blobs are believed after their bytes have been hashed, when somebody first asks for them. Trees are believed if they
/// were written in this boot or had been synced. Records, remotes and pieces are lost: a cold cache. `replaces` says
/// that there was an index before, whose users collectors must wait for.
pub(crate) fn fill(tx: &Transaction, layout: &Layout, boot: &BootId, replaces: bool) -> Result<(), Fault> {
    let durable = durability::durable_epoch(layout);
    let trees = believable_trees(layout, boot, durable);
    let epoch = trees.iter().map(|(_, file)| file.epoch).max().unwrap_or(0).max(durable) + 1;
    schema::seed(tx, boot, epoch, if replaces { file_clock_ns() } else { 0 })?;
    for (id, _) in &trees {
        layers::insert_found(tx, id, &layout.layer_dir(id))?;
    }
    for (digest, path) in files_named_by_digest(layout) {
        blobs::insert_found(tx, &digest, &path, epoch)?;
    }
    images::for_each_layer(layout, tx, &mut |diff_id, blob| variants::insert_found(tx, diff_id, blob))?;
    if replaces {
        // Found things may not have reached the disk: the next sync has something to do.
        tx.execute("UPDATE meta SET value = ?1 WHERE name = 'dirty'", [epoch])?;
    }
    Ok(())
}

/// The time that a file written now would get: what the starts of sessions are compared with.
fn file_clock_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn believable_trees(layout: &Layout, boot: &BootId, durable: i64) -> Vec<(LayerId, LayerFile)> {
    let entries = std::fs::read_dir(layout.bucket(Bucket::Trees)).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| LayerId::from_name(entry.file_name().to_str()?));
    let described = ids.filter_map(|id| {
        let dir = layout.layer_dir(&id);
        let (file, _) = LayerFile::read(&dir)?;
        let is_whole = file.epoch <= durable || file.boot == boot.as_str();
        (is_whole && dir.join("tree").is_dir()).then_some((id, file))
    });
    described.collect()
}

fn files_named_by_digest(layout: &Layout) -> Vec<(Digest, std::path::PathBuf)> {
    let entries = std::fs::read_dir(layout.blobs()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((digest_named(&entry.file_name())?, entry.path()))).collect()
}

/// The digest that a file in the blob bucket is named by.
pub(crate) fn digest_named(name: &std::ffi::OsStr) -> Option<Digest> {
    let name: &Path = name.as_ref();
    parse_hex32(name.to_str()?).map(Digest::from_sha256)
}

#[cfg(test)]
mod tests {
    use crate::store::Store;
    use crate::testing::{check, content, diff_id, image, record, reference, store, tree_with};

    /// Overwrites the database while `store` has it open, as a bad disk would.
    fn smash(store: &Store) {
        for entry in std::fs::read_dir(store.root().join("index-v1")).unwrap() {
            let path = entry.unwrap().path();
            let len = std::fs::metadata(&path).unwrap().len();
            std::fs::write(&path, vec![0xa5; len as usize]).unwrap();
        }
    }

    #[test]
    fn everything_but_the_records_survives_the_loss_of_the_index() {
        let (dir, first) = store();
        let target = image(&first, 1);
        first.tag(&reference("app"), &target).unwrap();
        let layer = first.commit_tree(tree_with(&first, "x"), content(1)).unwrap().layer;
        first.set_diff_id(&layer.id, &diff_id(9), 77).unwrap();
        first.put_record(&record(1, &layer.id, "slot")).unwrap();
        drop(first);
        std::fs::remove_dir_all(dir.path().join("store/index-v1")).unwrap();

        let second = Store::open(&dir.path().join("store")).unwrap();
        assert_eq!(second.image(&reference("app")).unwrap().unwrap().target, target);
        assert!(second.read_blob(&target.digest).unwrap().is_some());
        let info = second.layer(&layer.id).unwrap().unwrap();
        assert_eq!((info.layer, info.diff_id, info.tar_bytes), (layer, Some(diff_id(9)), Some(77)));
        assert!(second.latest_of_slot("slot").unwrap().is_none());
        check(&second);
    }

    #[test]
    fn a_corrupt_index_is_replaced_when_the_store_is_opened() {
        let (dir, first) = store();
        first.tag(&reference("app"), &image(&first, 1)).unwrap();
        smash(&first);
        let second = Store::open(&dir.path().join("store")).unwrap();
        assert_eq!(second.images().unwrap().len(), 1);
        check(&second);
    }

    #[test]
    fn a_blob_that_was_found_is_hashed_before_it_is_believed() {
        let (dir, first) = store();
        let (good, bad) = (first.put_blob(b"good").unwrap(), first.put_blob(b"bad").unwrap());
        let bad_path = first.blob_path(&bad).unwrap();
        drop(first);
        std::fs::remove_file(&bad_path).unwrap();
        std::fs::write(&bad_path, "other").unwrap();
        std::fs::remove_dir_all(dir.path().join("store/index-v1")).unwrap();
        let second = Store::open(&dir.path().join("store")).unwrap();
        assert!(second.blob_path(&good).is_some());
        assert!(second.blob_path(&bad).is_none());
        check(&second);
    }
}
