//! What was removed from the store, and when: so that a step which has to run again can say so.
//!
//! Triggers of the index note it in the transaction that forgets a record, whoever does; the notes are a ring of
//! bounded length.

use rusqlite::OptionalExtension as _;

use crate::error::Result;
use crate::id::Key;
use crate::store::{Store, now};

impl Store {
    /// How many seconds ago the record of `key` was removed together with its layer; `None` when it was not, or so long
    /// ago that nobody remembers.
    pub fn evicted_since(&self, key: &Key) -> Result<Option<u64>> {
        self.inner.index.read("find what was removed", |conn| {
            let sql = "SELECT max(at) FROM evicted WHERE key = ?1";
            let at: Option<Option<i64>> = conn.prepare_cached(sql)?.query_row([key.0], |row| row.get(0)).optional()?;
            Ok(at.flatten().map(|at| now().saturating_sub(at).max(0).cast_unsigned()))
        })
    }

    /// How many seconds ago a result of the step in `slot` was last removed, whatever its key.
    pub fn slot_evicted_since(&self, slot: &str) -> Result<Option<u64>> {
        self.inner.index.read("find what was removed", |conn| {
            let sql = "SELECT max(at) FROM evicted WHERE slot = ?1";
            let at: Option<Option<i64>> = conn.prepare_cached(sql)?.query_row([slot], |row| row.get(0)).optional()?;
            Ok(at.flatten().map(|at| now().saturating_sub(at).max(0).cast_unsigned()))
        })
    }

    /// How many seconds ago the index was lost and made anew from the files of the store, which hold no records; `None`
    /// when that never happened.
    pub fn index_lost_since(&self) -> Result<Option<u64>> {
        let at_ns =
            self.inner.index.read("find the age of the index", |conn| Ok(crate::schema::meta(conn, "rebuilt_at")?))?;
        Ok((at_ns > 0).then(|| now().saturating_sub(at_ns / 1_000_000_000).max(0).cast_unsigned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PruneFilter;
    use crate::testing::{check, content, record, store, tree_with};

    #[test]
    fn what_is_pruned_is_noted_and_what_is_replaced_is_not() {
        let (_dir, store) = store();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
        store.put_record(&record(1, &layer.id, "slot")).unwrap();
        store.put_record(&record(1, &layer.id, "slot")).unwrap();
        store.put_record(&record(2, &layer.id, "")).unwrap();
        assert_eq!(store.evicted_since(&Key([1; 32])).unwrap(), None);
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap();
        assert!(store.evicted_since(&Key([1; 32])).unwrap().is_some_and(|seconds| seconds < 60));
        assert!(store.slot_evicted_since("slot").unwrap().is_some());
        assert_eq!(store.evicted_since(&Key([2; 32])).unwrap(), None, "it belongs to no step");
        assert_eq!(store.slot_evicted_since("other").unwrap(), None);
        assert_eq!(store.index_lost_since().unwrap(), None);
        check(&store);
    }

    #[test]
    fn the_notes_are_bounded() {
        let (_dir, store) = store();
        let note = |n: i64| {
            store.inner.index.write("note", |tx| {
                let mut key = [0; 32];
                key[..8].copy_from_slice(&n.to_le_bytes());
                tx.execute("INSERT INTO evicted(slot, key, at) VALUES ('s', ?1, 0)", [key])?;
                Ok(())
            })
        };
        (0..5000).for_each(|n| note(n).unwrap());
        let count = |conn: &rusqlite::Connection| {
            Ok(conn.query_row("SELECT count(*) FROM evicted", [], |row| row.get::<_, i64>(0))?)
        };
        assert_eq!(store.inner.index.read("count", count).unwrap(), 4096);
    }
}
