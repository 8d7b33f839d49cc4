//! Records: which key once gave which layer.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use crate::error::{Fault, Result, StoreError};
use crate::explanations::{self, Explanation};
use crate::id::{Key, LayerId};
use crate::layers::{LAYER_COLUMNS, LayerInfo, LayerRow};
use crate::layout::Layout;
use crate::lease::{Kind, NOTE_RECORD_SQL};
use crate::store::{Store, now};
use crate::{blobs, layers, schema};

/// A stored result: this key once gave this layer.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is found by.
    pub key: Key,
    /// The result.
    pub layer: LayerInfo,
    /// Display name of the step that made it.
    pub name: String,
    /// Which place in which Dockerfile asked for it: equal for the same step of successive builds.
    pub slot: String,
    /// What it cost to make.
    pub cost: Duration,
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Seconds since the epoch.
    pub last_used_at: i64,
}

/// A record to be stored.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// What it is found by.
    pub key: Key,
    /// The result; must be committed already.
    pub layer: LayerId,
    /// What the key was made from; nothing for a further key of a result.
    pub explanation: Option<Explanation>,
    /// Display name of the step.
    pub name: String,
    /// See [`Record::slot`].
    pub slot: String,
    /// What it cost to make.
    pub cost: Duration,
}

/// A record as found, before its use is noted.
struct Found {
    n: i64,
    record: Record,
    /// What has to stay for the record to stay good.
    users: Vec<(Kind, i64)>,
}

impl Store {
    /// The record of `key` if its layer still has some form (here, or somewhere it can be fetched from); notes the use.
    pub fn find_record(&self, key: &Key) -> Result<Option<Record>> {
        let found = self
            .inner
            .index
            .read("find a record", |conn| find(conn, &self.inner.layout, "record.key = ?1", &key.0, true))?;
        let Some(found) = found else { return Ok(None) };
        let news = self.inner.use_leased(&found.users);
        if news.is_empty() {
            self.inner.use_record(found.n);
        } else if !self.note_use(found.n, &news)? {
            return Ok(None);
        }
        Ok(Some(found.record))
    }

    /// Leases the newest results of these slots, in one go. Who looks them up next notes nothing before the last lease
    /// ends, so that it costs no write to find them. Without a lease nothing happens.
    pub fn expect_results(&self, slots: &[&str]) -> Result<()> {
        self.inner.expect(|tx| {
            let sql = format!(
                "SELECT {LAYER_COLUMNS} FROM record JOIN layer ON layer.n = record.layer
                 WHERE record.slot = ?1 ORDER BY record.n DESC LIMIT 1"
            );
            let mut select = tx.prepare_cached(&sql)?;
            let mut users = Vec::new();
            for slot in slots {
                let Some(layer) = select.query_row([slot], LayerRow::read).optional()? else { continue };
                users.extend(layer.users(tx)?);
                if let Some(diff_id) = &layer.diff_id {
                    users.extend(blobs::find_row(tx, diff_id.digest())?.map(|row| (Kind::Blob, row.n)));
                }
            }
            Ok(users)
        })
    }

    /// Gives up what was expected and has not been found: a collector may take it.
    pub fn expect_no_more(&self) -> Result<()> {
        self.inner.expect_no_more()
    }

    /// Stores a record; a record of the same key is replaced.
    ///
    /// # Errors
    /// [`StoreError::UnknownLayer`].
    pub fn put_record(&self, record: &NewRecord) -> Result<()> {
        self.put_records(std::slice::from_ref(record), &[])
    }

    /// Stores records of one result, in one go; records of the same keys are replaced. `parents`, when there are any, are
    /// the layers directly below the result: for `du` and for the filter `parents`.
    ///
    /// # Errors
    /// [`StoreError::UnknownLayer`].
    pub fn put_records(&self, records: &[NewRecord], parents: &[LayerId]) -> Result<()> {
        let layers = self.inner.index.write("store a record", |tx| {
            let mut layers = Vec::with_capacity(records.len());
            for record in records {
                let n_layer = put(tx, record)?;
                self.inner.note_lease(tx, Kind::Layer, n_layer)?;
                layers.push((Kind::Layer, n_layer));
            }
            if let (Some((_, n_layer)), false) = (layers.first(), parents.is_empty()) {
                layers::set_parents(tx, *n_layer, parents)?;
            }
            Ok(layers)
        })?;
        self.inner.remember_noted(layers);
        Ok(())
    }

    /// The newest record of a slot, for "what changed since last time". Its layer may have gone.
    pub fn latest_of_slot(&self, slot: &str) -> Result<Option<Record>> {
        let found = self.inner.index.read("find the last record of a step", |conn| {
            find(conn, &self.inner.layout, "record.slot = ?1 ORDER BY record.n DESC LIMIT 1", slot, false)
        })?;
        Ok(found.map(|found| found.record))
    }

    /// The newest key under which a step in `slot` has given `layer`; `None` when nothing leads there.
    pub fn key_of_result(&self, slot: &str, layer: &LayerId) -> Result<Option<Key>> {
        self.inner.index.read("find the key of a result", |conn| {
            let sql = "SELECT record.key FROM record JOIN layer ON layer.n = record.layer
                WHERE record.slot = ?1 AND layer.id = ?2 ORDER BY record.n DESC LIMIT 1";
            let mut select = conn.prepare_cached(sql)?;
            Ok(select.query_row((slot, layer.as_str()), |row| Ok(Key(row.get(0)?))).optional()?)
        })
    }

    /// Notes the use of record `n`, and of what it needs and is not leased. `false` when a collector was quicker.
    fn note_use(&self, n: i64, news: &[(Kind, i64)]) -> Result<bool> {
        let is_there = self.inner.index.write("note the use of a record", |tx| {
            let at = now();
            if tx.prepare_cached(NOTE_RECORD_SQL)?.execute((n, at))? == 0 {
                return Ok(false);
            }
            for &(kind, n) in news {
                tx.prepare_cached(kind.note_use_sql())?.execute((n, at))?;
                self.inner.note_lease(tx, kind, n)?;
            }
            Ok(true)
        })?;
        if is_there {
            self.inner.remember_noted(news.iter().copied());
        }
        Ok(is_there)
    }
}

/// Stores one record; the number of its layer.
fn put(tx: &Transaction, record: &NewRecord) -> Result<i64, Fault> {
    let row = layers::find_row(tx, &record.layer)?;
    let n_layer = row.ok_or_else(|| StoreError::UnknownLayer { id: record.layer.clone() })?.n;
    tx.prepare_cached("DELETE FROM record WHERE key = ?1")?.execute([record.key.0])?;
    let sql = "INSERT INTO record(n, key, layer, slot, name, cost_ms, created_at, used_at)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)";
    let n = schema::new_number(tx)?;
    let cost_ms = i64::try_from(record.cost.as_millis()).unwrap_or(i64::MAX);
    tx.prepare_cached(sql)?.execute((n, record.key.0, n_layer, &record.slot, &record.name, cost_ms, now()))?;
    if let Some(explanation) = &record.explanation {
        explanations::put(tx, n, explanation)?;
    }
    Ok(n_layer)
}

/// Reads one record; `condition` selects it. With `usable`, only if its layer still has some form.
fn find(
    conn: &Connection,
    layout: &Layout,
    condition: &str,
    argument: &(impl rusqlite::ToSql + ?Sized),
    usable: bool,
) -> Result<Option<Found>, Fault> {
    let sql = format!(
        "SELECT {LAYER_COLUMNS}, record.key, record.name, record.slot, record.cost_ms, record.created_at,
             record.used_at, record.n
         FROM record JOIN layer ON layer.n = record.layer
         WHERE {condition}"
    );
    let read = |row: &Row<'_>| {
        let layer = LayerRow::read(row)?;
        let record = Record {
            key: Key(row.get(7)?),
            layer: layer.info(conn, layout)?,
            name: row.get(8)?,
            slot: row.get(9)?,
            cost: Duration::from_millis(row.get::<_, i64>(10)?.cast_unsigned()),
            created_at: row.get(11)?,
            last_used_at: row.get(12)?,
        };
        Ok((layer, Found { n: row.get(13)?, record, users: Vec::new() }))
    };
    let Some((layer, mut found)) = conn.prepare_cached(&sql)?.query_row([argument], read).optional()? else {
        return Ok(None);
    };
    found.users = layer.users(conn)?;
    let info = &found.record.layer;
    if usable && info.tree.is_none() && !info.has_tar {
        match layer.diff_id.as_ref().map(|diff_id| outside_forms(conn, layout, diff_id)).transpose()? {
            Some(Outside::Blob(n)) => found.users.push((Kind::Blob, n)),
            Some(Outside::Remote) => {}
            Some(Outside::Nothing) | None => return Ok(None),
        }
    } else if info.has_tar
        && let Some(diff_id) = &layer.diff_id
        && let Some(row) = blobs::find_row(conn, diff_id.digest())?
    {
        found.users.push((Kind::Blob, row.n));
    }
    Ok(Some(found))
}

/// In which form, besides tree and tar, a layer is to be had.
enum Outside {
    /// A stored compressed blob, by number.
    Blob(i64),
    /// A registry has it.
    Remote,
    /// None.
    Nothing,
}

fn outside_forms(conn: &Connection, layout: &Layout, diff_id: &oci::DiffId) -> Result<Outside, Fault> {
    let raw = diff_id.digest().as_bytes();
    let sql = "SELECT blob.n, blob.digest FROM variant JOIN blob USING (digest) WHERE variant.diff_id = ?1";
    let mut select = conn.prepare_cached(sql)?;
    let mut rows = select.query([raw])?;
    while let Some(row) = rows.next()? {
        if layout.blob(&oci::Digest::from_sha256(row.get(1)?)).is_file() {
            return Ok(Outside::Blob(row.get(0)?));
        }
    }
    let has_remote = conn.prepare_cached("SELECT 1 FROM remote WHERE diff_id = ?1")?.exists([raw])?;
    Ok(if has_remote { Outside::Remote } else { Outside::Nothing })
}

#[cfg(test)]
mod tests {
    use oci::{Descriptor, media_type};

    use super::*;
    use crate::PruneFilter;
    use crate::testing::{check, content, diff_id, record, store, tree_with};

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let (_dir, store) = store();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
        let new = record(1, &layer.id, "slot");
        store.put_record(&new).unwrap();
        let got = store.find_record(&Key([1; 32])).unwrap().unwrap();
        assert_eq!((got.key, got.layer.layer), (new.key, layer));
        assert_eq!((got.name, got.slot, got.cost), (new.name, new.slot, new.cost));
        assert!(store.find_record(&Key([2; 32])).unwrap().is_none());
        check(&store);
    }

    #[test]
    fn the_newest_record_of_a_slot_is_the_one_stored_last_even_within_a_second() {
        let (_dir, store) = store();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
        for key in [1, 2, 1] {
            store.put_record(&record(key, &layer.id, "slot")).unwrap();
        }
        assert_eq!(store.latest_of_slot("slot").unwrap().unwrap().key, Key([1; 32]));
        assert!(store.latest_of_slot("other").unwrap().is_none());
        assert_eq!(store.key_of_result("slot", &layer.id).unwrap(), Some(Key([1; 32])));
        assert_eq!(store.key_of_result("other", &layer.id).unwrap(), None);
        check(&store);
    }

    #[test]
    fn a_record_whose_layer_lost_every_form_is_a_miss() {
        let (_dir, store) = store();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap();
        store.put_record(&record(1, &layer.layer.id, "slot")).unwrap();
        std::fs::remove_dir_all(layer.tree.unwrap()).unwrap();
        assert!(store.find_record(&Key([1; 32])).unwrap().is_none());
    }

    #[test]
    fn a_remote_layer_is_form_enough() {
        let (_dir, store) = store();
        let pulled = store.layer_for_diff_id(&diff_id(1)).unwrap();
        store.put_record(&record(1, &pulled.layer.id, "slot")).unwrap();
        assert!(store.find_record(&Key([1; 32])).unwrap().is_none());
        let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, oci::Digest::of(b"z"), 1);
        store.remember_remote(&diff_id(1), &descriptor, "docker.io/library/a").unwrap();
        assert!(store.find_record(&Key([1; 32])).unwrap().is_some());
    }

    #[test]
    fn a_record_that_went_and_was_made_again_between_two_looks_is_not_the_one_that_was_seen() {
        let (_dir, store) = store();
        let make = || {
            let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
            store.put_record(&record(1, &layer.id, "slot")).unwrap();
        };
        make();
        let look = |conn: &Connection| find(conn, &store.inner.layout, "record.key = ?1", &[1_u8; 32], true);
        let seen = store.inner.index.read("find a record", look).unwrap().unwrap();
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap();
        make();
        let _lease = store.lease().unwrap();
        assert!(!store.note_use(seen.n, &seen.users).unwrap(), "its tree has gone");
        assert_eq!(store.inner.touch(&seen.users).unwrap(), seen.users);
        assert!(store.find_record(&Key([1; 32])).unwrap().is_some());
        check(&store);
    }

    #[test]
    fn what_was_expected_is_protected_and_its_uses_are_noted_with_the_end_of_the_lease() {
        let (dir, store) = store();
        let collector = Store::open(&dir.path().join("store")).unwrap();
        for key in 1..=3 {
            let layer = store.commit_tree(tree_with(&store, &key.to_string()), content(key)).unwrap().layer;
            store.put_record(&record(key, &layer.id, &format!("slot{key}"))).unwrap();
        }
        let uses = || {
            let sql = "SELECT uses FROM layer ORDER BY n";
            let read = |conn: &Connection| {
                Ok(conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?)
            };
            collector.inner.index.read("look", read).unwrap()
        };
        let before = uses();
        store.expect_results(&["slot1"]).unwrap();
        let lease = store.lease().unwrap();
        store.expect_results(&["slot2", "slot3", "slot4"]).unwrap();
        for _ in 0..2 {
            assert!(store.find_record(&Key([2; 32])).unwrap().is_some());
        }
        assert_eq!(uses(), before);
        let everything = PruneFilter { all: true, ..PruneFilter::default() };
        collector.prune(&everything, false).unwrap();
        assert!(store.find_record(&Key([1; 32])).unwrap().is_none(), "it was expected before there was a lease");
        assert_eq!(uses().len(), 2);
        store.expect_no_more().unwrap();
        collector.prune(&everything, false).unwrap();
        assert_eq!(uses().len(), 1, "the third one has not been used");
        drop(lease);
        assert_eq!(uses(), [before[1] + 1]);
        check(&store);
        collector.prune(&everything, false).unwrap();
        assert_eq!(uses(), [0; 0]);
    }

    #[test]
    fn a_record_needs_a_layer() {
        let (_dir, store) = store();
        let error = store.put_record(&record(1, &LayerId::of_built("0"), "slot")).unwrap_err();
        assert!(matches!(error, StoreError::UnknownLayer { .. }));
    }
}
