//! What keys were made from: for "why did this step run again?", never for a look-up.
//!
//! A step over a hundred layers names all of them among its ingredients, and the next step the same ones and one more. So
//! the layers are kept as *stacks*: a row holds the topmost layer and the name of the stack below it, and a step adds one
//! row. The name of a stack is the BLAKE3 digest (key derivation, context [`DOMAIN`]) of the name below, if there is one, and
//! the content of the topmost layer.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::error::Result;
use crate::id::{ContentDigest, Key};
use crate::store::Store;

const DOMAIN: &str = "rbuild stack of layers, v1";

/// What a key was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The ingredients as JSON, without the layers.
    pub ingredients: String,
    /// What the layers contain that the step was performed on, base first.
    pub layers: Vec<ContentDigest>,
    /// How many of them are the base image's.
    pub n_base_layers: usize,
}

impl Store {
    /// What `key` was made from; `None` where that was not recorded, or the record has gone.
    pub fn explanation(&self, key: &Key) -> Result<Option<Explanation>> {
        self.inner.index.read("find what a key was made from", |conn| Ok(find(conn, key)?))
    }
}

/// Stores the explanation of the record with number `n_record`.
pub(crate) fn put(tx: &Transaction, n_record: i64, explanation: &Explanation) -> rusqlite::Result<()> {
    let top = put_stack(tx, &explanation.layers)?;
    let sql = "INSERT INTO ingredients(record, json, stack, base_layers) VALUES (?1, ?2, ?3, ?4)";
    tx.prepare_cached(sql)?.execute((n_record, &explanation.ingredients, top, explanation.n_base_layers as i64))?;
    Ok(())
}

/// The name of the stack, which is there afterwards; `None` for no layers.
fn put_stack(tx: &Transaction, layers: &[ContentDigest]) -> rusqlite::Result<Option<[u8; 32]>> {
    let mut names: Vec<[u8; 32]> = Vec::with_capacity(layers.len());
    for layer in layers {
        names.push(name(names.last(), layer));
    }
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO stack(name, below, content) VALUES (?1, ?2, ?3)")?;
    for (idx, layer) in layers.iter().enumerate().rev() {
        let below = idx.checked_sub(1).map(|idx| names[idx]);
        // What is below a stack that is there is there as well.
        if insert.execute((names[idx], below, layer.0))? == 0 {
            break;
        }
    }
    Ok(names.pop())
}

fn name(below: Option<&[u8; 32]>, layer: &ContentDigest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
    hasher.update(below.map_or(&[], |below| below.as_slice()));
    hasher.update(&layer.0);
    *hasher.finalize().as_bytes()
}

fn find(conn: &Connection, key: &Key) -> rusqlite::Result<Option<Explanation>> {
    let sql = "SELECT json, stack, base_layers FROM record JOIN ingredients ON ingredients.record = record.n
               WHERE record.key = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        let n_base_layers = usize::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
        let explanation = Explanation { ingredients: row.get(0)?, layers: Vec::new(), n_base_layers };
        Ok((row.get::<_, Option<[u8; 32]>>(1)?, explanation))
    };
    let Some((top, mut explanation)) = conn.prepare_cached(sql)?.query_row([key.0], read).optional()? else {
        return Ok(None);
    };
    if let Some(top) = top {
        explanation.layers = stack(conn, &top)?;
    }
    Ok(Some(explanation))
}

/// The layers of a stack, base first.
fn stack(conn: &Connection, top: &[u8; 32]) -> rusqlite::Result<Vec<ContentDigest>> {
    let sql = "WITH RECURSIVE part(below, content, depth) AS (
            SELECT below, content, 0 FROM stack WHERE name = ?1
            UNION ALL SELECT stack.below, stack.content, depth + 1 FROM part JOIN stack ON stack.name = part.below)
        SELECT content FROM part ORDER BY depth DESC";
    let mut select = conn.prepare_cached(sql)?;
    let rows = select.query_map([top], |row| row.get(0).map(ContentDigest))?;
    rows.collect()
}

/// Deletes the stacks that no explanation leads to.
pub(crate) fn forget_unused_stacks(tx: &Transaction) -> rusqlite::Result<()> {
    tx.execute(
        "WITH RECURSIVE used(name) AS (
             SELECT stack FROM ingredients WHERE stack NOT NULL
             UNION SELECT below FROM stack JOIN used USING (name) WHERE below NOT NULL)
         DELETE FROM stack WHERE name NOT IN (SELECT name FROM used)",
        [],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PruneFilter;
    use crate::testing::{check, content, record, store, tree_with};
    use crate::{LayerId, NewRecord};

    fn explained(seed: u8, layer: &LayerId, layers: &[u8]) -> NewRecord {
        let layers = layers.iter().map(|&seed| content(seed)).collect();
        let explanation = Explanation { ingredients: format!("[{seed}]"), layers, n_base_layers: 1 };
        NewRecord { explanation: Some(explanation), ..record(seed, layer, "slot") }
    }

    fn n_stacks(store: &Store) -> i64 {
        let count =
            |conn: &Connection| Ok(conn.query_row("SELECT count(*) FROM stack", [], |row| row.get::<_, i64>(0))?);
        store.inner.index.read("count", count).unwrap()
    }

    #[test]
    fn explanations_come_back_and_share_what_is_below() {
        let (_dir, store) = store();
        let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer.id;
        for (layers, expected) in [
            (&[][..], 0),
            (&[1], 1),
            (&[1, 2], 2),
            (&[1, 2, 3, 4], 4),
            (&[1, 2, 3], 4),
            (&[2, 3, 4], 7),
            (&[1, 2, 3, 4, 1], 8),
        ] {
            let new = explained(1, &layer, layers);
            store.put_record(&new).unwrap();
            assert_eq!(store.explanation(&new.key).unwrap(), new.explanation, "{layers:?}");
            assert_eq!(n_stacks(&store), expected, "{layers:?}");
        }
        let alias = NewRecord { explanation: None, ..record(2, &layer, "") };
        store.put_record(&alias).unwrap();
        assert_eq!(store.explanation(&alias.key).unwrap(), None);
        check(&store);
    }

    #[test]
    fn stacks_go_with_the_last_record_that_stands_on_them() {
        let (_dir, store) = store();
        let make = |seed: u8| store.commit_tree(tree_with(&store, &seed.to_string()), content(seed)).unwrap().layer.id;
        let (old, new) = (make(1), make(2));
        store.put_record(&explained(1, &old, &[1, 2, 3])).unwrap();
        store.put_record(&explained(2, &new, &[1, 2, 4])).unwrap();
        assert_eq!(n_stacks(&store), 4);
        let filter = PruneFilter::from_flags(&[format!("id={old}")]).unwrap();
        assert_eq!(store.prune(&filter, false).unwrap().len(), 1);
        assert_eq!(n_stacks(&store), 3);
        assert_eq!(store.explanation(&Key([2; 32])).unwrap().unwrap().layers, [1, 2, 4].map(content));
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap();
        assert_eq!(n_stacks(&store), 0);
        check(&store);
    }
}
