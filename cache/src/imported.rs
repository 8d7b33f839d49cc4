//! Layers of which others have told: results of steps that lie elsewhere until somebody needs their bytes.

use std::time::Duration;

use oci::DiffId;
use rusqlite::OptionalExtension;

use crate::durability::current_epoch;
use crate::error::{Result, StoreError};
use crate::id::{ContentDigest, Key, Layer, LayerId};
use crate::layers::{self, NewLayer};
use crate::lease::Kind;
use crate::remote::Entry;
use crate::store::{Store, now};
use crate::variants::{descriptor_json, insert_variant, is_codec_name};

impl Store {
    /// Makes the layer of an entry known, which is to be had from `place`; a layer of the same bytes and content that is known
    /// already is returned as it is. Moves nothing.
    pub fn import_layer(&self, entry: &Entry, place: &str) -> Result<Layer> {
        let id = LayerId::of_built(&self.session()?.unique());
        let (diff_id, content) = (&entry.diff_id, entry.content);
        let (n, id) = self.inner.index.write("note an imported layer", |tx| {
            let raw = diff_id.digest().as_bytes();
            let sql = "SELECT n, id FROM layer WHERE diff_id = ?1 AND content = ?2 AND id LIKE 'x-%' LIMIT 1";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
            let known = tx.prepare_cached(sql)?.query_row((raw, content.0), read).optional()?;
            let known = known.and_then(|(n, name)| Some((n, LayerId::from_name(&name)?)));
            let (n, id) = match known {
                Some(known) => known,
                None => {
                    let epoch = current_epoch(tx)?;
                    let new = NewLayer { id: &id, content, diff_id: Some(diff_id), tar_bytes: None, epoch };
                    (layers::insert(tx, &new)?, id.clone())
                }
            };
            let sql = "INSERT OR REPLACE INTO remote(diff_id, repository, digest, descriptor, noted_at)
                       VALUES (?1, ?2, ?3, ?4, ?5)";
            let json = descriptor_json(&entry.blob);
            tx.prepare_cached(sql)?.execute((raw, place, entry.blob.digest.as_bytes(), &json, now()))?;
            if let Some(codec) = entry.codec.as_deref().filter(|codec| is_codec_name(codec)) {
                insert_variant(tx, diff_id, codec, &entry.blob)?;
            }
            self.inner.note_lease(tx, Kind::Layer, n)?;
            Ok((n, id))
        })?;
        self.inner.remember_noted([(Kind::Layer, n)]);
        Ok(Layer { id, content })
    }

    /// Forgets where `diff_id` is to be had and which foreign blobs hold it, because none of that was so. Whether the
    /// layer is the result of some step, which can then be performed again.
    pub fn forget_remotes(&self, diff_id: &DiffId) -> Result<bool> {
        self.inner.index.write("forget a remote layer", |tx| {
            let raw = diff_id.digest().as_bytes();
            tx.prepare_cached("DELETE FROM remote WHERE diff_id = ?1")?.execute([raw])?;
            tx.prepare_cached("DELETE FROM variant WHERE diff_id = ?1 AND codec = 'foreign'")?.execute([raw])?;
            let sql = "SELECT 1 FROM layer JOIN record ON record.layer = layer.n WHERE layer.diff_id = ?1";
            Ok(tx.prepare_cached(sql)?.exists([raw])?)
        })
    }

    /// Whether `diff_id` is that of a layer that some step made, and of no layer of an image that was pulled.
    pub fn is_result_only(&self, diff_id: &DiffId) -> Result<bool> {
        let pulled = LayerId::of_diff_id(diff_id);
        self.inner.index.read("find a layer", |conn| {
            let sql = "SELECT count(*), coalesce(max(id = ?2), 0) FROM layer WHERE diff_id = ?1";
            let values = (diff_id.digest().as_bytes(), pulled.as_str());
            let (n, is_pulled): (i64, bool) =
                conn.prepare_cached(sql)?.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(n > 0 && !is_pulled)
        })
    }

    /// What it took to make the layer with this diff ID, as far as a step has made it.
    pub fn cost_of(&self, diff_id: &DiffId) -> Result<Duration> {
        self.inner.index.read("find the cost of a layer", |conn| {
            let sql = "SELECT coalesce(max(cost_ms), 0) FROM record JOIN layer ON layer.n = record.layer
                       WHERE layer.diff_id = ?1";
            let cost_ms: i64 = conn.prepare_cached(sql)?.query_row([diff_id.digest().as_bytes()], |row| row.get(0))?;
            Ok(Duration::from_millis(cost_ms.max(0).cast_unsigned()))
        })
    }

    /// Content keys under which a layer is recorded as the result of a step, newest first.
    ///
    /// # Errors
    /// Those of the index.
    pub fn keys_of(&self, layer: &LayerId) -> Result<Vec<Key>> {
        let sql = "SELECT record.key FROM record JOIN layer ON layer.n = record.layer
                   WHERE layer.id = ?1 AND record.name <> '' ORDER BY record.n DESC";
        self.inner.index.read("find the keys of a layer", |conn| {
            let mut select = conn.prepare_cached(sql)?;
            let keys = select.query_map([layer.as_str()], |row| row.get(0).map(Key))?;
            Ok(keys.collect::<rusqlite::Result<Vec<Key>>>()?)
        })
    }

    /// How we would compress `layer`'s tar to get just this blob, if we have; else `None`.
    pub fn codec_of(&self, diff_id: &DiffId, blob: &oci::Digest) -> Result<Option<String>, StoreError> {
        let sql = "SELECT codec FROM variant WHERE diff_id = ?1 AND digest = ?2 AND codec <> 'foreign'";
        self.inner.index.read("find the compression of a layer", |conn| {
            let values = (diff_id.digest().as_bytes(), blob.as_bytes());
            Ok(conn.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?)
        })
    }

    /// What keys see of a layer, by identity.
    pub fn content_of(&self, layer: &LayerId) -> Result<Option<ContentDigest>> {
        Ok(self.layer(layer)?.map(|info| info.layer.content))
    }
}

#[cfg(test)]
mod tests {
    use crate::remote::Entry;
    use crate::testing::{check, content, diff_id, record, store, tree_with};
    use crate::{Codec, Key};
    use oci::{Descriptor, Digest, media_type};

    fn entry() -> Entry {
        Entry {
            keys: vec![Key([1; 32])],
            content: content(1),
            diff_id: diff_id(1),
            blob: Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"z"), 1),
            codec: Some("gzip-4-2".to_owned()),
            cost: std::time::Duration::ZERO,
            created_at: 0,
            step: String::new(),
        }
    }

    #[test]
    fn an_imported_layer_is_a_result_that_lies_elsewhere_until_that_proves_wrong() {
        let (_dir, store) = store();
        let layer = store.import_layer(&entry(), "example.com/cache").unwrap();
        assert_eq!(store.import_layer(&entry(), "dir:///cache").unwrap(), layer);
        assert_eq!(layer.content, content(1));
        store.put_record(&record(1, &layer.id, "slot")).unwrap();
        assert!(store.find_record(&Key([1; 32])).unwrap().is_some());
        assert_eq!(store.find_remotes(&diff_id(1)).unwrap().len(), 2);
        assert_eq!(store.keys_of(&layer.id).unwrap(), [Key([1; 32])]);
        assert_eq!(store.codec_of(&diff_id(1), &Digest::of(b"z")).unwrap().as_deref(), Some("gzip-4-2"));
        assert!(store.blob_descriptor(&diff_id(1), Codec::Gzip { level: 4 }).unwrap().is_some());
        assert!(store.is_result_only(&diff_id(1)).unwrap());
        check(&store);
        assert!(store.forget_remotes(&diff_id(1)).unwrap());
        assert!(store.find_record(&Key([1; 32])).unwrap().is_none());
        check(&store);
    }

    #[test]
    fn a_layer_of_an_image_is_no_result() {
        let (_dir, store) = store();
        store.layer_for_diff_id(&diff_id(1)).unwrap();
        assert!(!store.is_result_only(&diff_id(1)).unwrap());
        assert!(!store.is_result_only(&diff_id(2)).unwrap());
        assert!(!store.forget_remotes(&diff_id(1)).unwrap());
    }

    #[test]
    fn what_is_here_already_stays_what_it_is() {
        let (_dir, store) = store();
        let built = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
        store.set_diff_id(&built.id, &diff_id(1), 10).unwrap();
        assert_eq!(store.import_layer(&entry(), "example.com/cache").unwrap(), built);
        let odd = Entry { codec: Some("plain'; --".to_owned()), diff_id: diff_id(2), ..entry() };
        store.import_layer(&odd, "example.com/cache").unwrap();
        assert_eq!(store.codec_of(&diff_id(2), &Digest::of(b"z")).unwrap(), None);
    }
}
