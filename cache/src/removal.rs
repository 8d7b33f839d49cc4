//! Removing units, so that nobody who comes to need one at the same moment is left with half of it.
//!
//! The index and the names of files change in one immediate transaction, after a last look whether anybody has used
//! the unit since it was chosen. Bytes are deleted after that, from the trash.

use std::path::PathBuf;

use oci::Digest;
use rusqlite::{OptionalExtension, Transaction};

use crate::error::{Fault, Result};
use crate::id::LayerId;
use crate::images::{self, Kept};
use crate::lease::{Kind, session_of};
use crate::locks::{self, StoreLock};
use crate::mounts::Slot;
use crate::scratch::remove_tree;
use crate::store::Inner;
use crate::survey::{Target, Unit};
use crate::{durability, explanations, session};

/// So many units go before whoever waits to name an image has a turn.
const UNITS_PER_TURN: usize = 32;

/// Removes units one by one.
pub(crate) struct Remover<'a> {
    inner: &'a Inner,
    dry_run: bool,
    /// Held in turns: no name may move to something that is about to go.
    images: Option<(StoreLock, Kept)>,
    n_in_turn: usize,
    /// What has lost its place and its row; deleted while nobody waits for the lock.
    trash: Vec<PathBuf>,
}

impl<'a> Remover<'a> {
    /// With `dry_run`, only says what would go.
    pub(crate) fn new(inner: &'a Inner, dry_run: bool) -> Self {
        Self { inner, dry_run, images: None, n_in_turn: 0, trash: Vec::new() }
    }

    /// `false` when the unit has come into use or has gone.
    pub(crate) fn remove(&mut self, unit: &Unit) -> Result<bool> {
        if self.dry_run {
            return Ok(true);
        }
        match &unit.target {
            Target::Layer { n, id, blobs } => self.remove_layer(*n, id, blobs, unit.record.last_used_at),
            Target::Blob { n, digest } => self.remove_blob(*n, digest, unit.record.last_used_at),
            Target::Mount(slot) => self.remove_mount(slot),
            Target::File(path) | Target::SupersededIndex(path) => {
                remove_tree(path);
                Ok(!path.exists())
            }
            Target::DeadSession { name, files } => {
                let forget = |name: &str| self.inner.forget_leases(name);
                Ok(session::bury(&self.inner.layout, name, files, &|| false, &forget))
            }
            Target::Housekeeping => Ok(false),
        }
    }

    /// Removes what a killed process left between a file and its row, and what is known of things that are gone.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let inner = self.inner;
        self.end_turn();
        locks::sweep(&inner.layout);
        // The long look happens outside the transaction, which would keep builds waiting.
        let strangers = inner.index.read("look for strays", |conn| Ok(durability::strangers(conn, &inner.layout)?))?;
        inner.index.write("tidy up", |tx| {
            for stranger in &strangers {
                stranger.remove(tx)?;
            }
            tx.execute(
                "DELETE FROM remote WHERE diff_id NOT IN (SELECT diff_id FROM layer WHERE diff_id NOT NULL)",
                [],
            )?;
            tx.execute(
                "DELETE FROM variant WHERE digest NOT IN (SELECT digest FROM blob)
                     AND diff_id NOT IN (SELECT diff_id FROM layer WHERE diff_id NOT NULL)",
                [],
            )?;
            Ok(explanations::forget_unused_stacks(tx)?)
        })
    }

    fn end_turn(&mut self) {
        self.images = None;
        for trash in self.trash.drain(..) {
            remove_tree(&trash);
        }
    }

    /// What images need right now; stays true until the next turn.
    fn kept(&mut self) -> Result<&Kept> {
        if self.n_in_turn == 0 {
            self.end_turn();
        }
        self.n_in_turn = (self.n_in_turn + 1) % UNITS_PER_TURN;
        let (_, kept) = match self.images.take() {
            Some(turn) => self.images.insert(turn),
            None => {
                let lock = images::lock_images(&self.inner.layout)?;
                self.images.insert((lock, images::kept(&self.inner.layout)?))
            }
        };
        Ok(kept)
    }

    fn remove_layer(&mut self, n: i64, id: &LayerId, blobs: &[(i64, Digest)], used_at: i64) -> Result<bool> {
        let inner = self.inner;
        let kept = self.kept()?;
        if blobs.iter().any(|(_, digest)| kept.blobs.contains(digest)) {
            return Ok(false);
        }
        let trash = inner.trash_path()?;
        let removed = inner.index.write("remove a layer", |tx| {
            let diff_id: Option<Option<[u8; 32]>> =
                tx.query_row("SELECT diff_id FROM layer WHERE n = ?1", [n], |row| row.get(0)).optional()?;
            let Some(diff_id) = diff_id else { return Ok(false) };
            let diff_id = diff_id.map(Digest::from_sha256);
            let is_kept =
                diff_id.clone().is_some_and(|digest| kept.diff_ids.contains(&oci::DiffId::of_uncompressed(digest)));
            let mut is_used = is_kept || is_in_use(inner, tx, Kind::Layer, n, used_at)?;
            for &(blob, _) in blobs {
                is_used = is_used || is_in_use(inner, tx, Kind::Blob, blob, used_at)?;
            }
            if is_used {
                return Ok(false);
            }
            tx.prepare_cached("DELETE FROM layer WHERE n = ?1")?.execute([n])?;
            if !has_layers(tx, diff_id.as_ref())? {
                for (blob, digest) in blobs {
                    forget_blob(inner, tx, *blob, digest)?;
                }
            }
            // Absent when the layer never had a tree.
            let _ = std::fs::rename(inner.layout.layer_dir(id), &trash);
            Ok(true)
        })?;
        self.trash.push(trash);
        Ok(removed)
    }

    fn remove_blob(&mut self, n: i64, digest: &Digest, used_at: i64) -> Result<bool> {
        let inner = self.inner;
        if self.kept()?.blobs.contains(digest) {
            return Ok(false);
        }
        inner.index.write("remove a blob", |tx| {
            if is_in_use(inner, tx, Kind::Blob, n, used_at)? {
                return Ok(false);
            }
            forget_blob(inner, tx, n, digest)?;
            Ok(true)
        })
    }

    fn remove_mount(&self, slot: &Slot) -> Result<bool> {
        let Ok(Some(_lock)) = slot.try_take_exclusive() else { return Ok(false) };
        let trash = self.inner.trash_path()?;
        if std::fs::rename(&slot.dir, &trash).is_err() {
            return Ok(false);
        }
        remove_tree(&trash);
        self.inner.index.write("remove a cache mount", |tx| {
            tx.prepare_cached("DELETE FROM mount WHERE slot_dir = ?1")?.execute([slot.name()])?;
            Ok(true)
        })
    }
}

/// Whether somebody used the item after `used_at`, or holds a lease on it. Also true for one that is gone.
fn is_in_use(inner: &Inner, tx: &Transaction, kind: Kind, n: i64, used_at: i64) -> Result<bool, Fault> {
    let sql = match kind {
        Kind::Layer => "SELECT used_at FROM layer WHERE n = ?1",
        Kind::Blob => "SELECT used_at FROM blob WHERE n = ?1",
    };
    let now_used_at: Option<i64> = tx.prepare_cached(sql)?.query_row([n], |row| row.get(0)).optional()?;
    if now_used_at.is_none_or(|at| at > used_at) {
        return Ok(true);
    }
    let mut holders = tx.prepare_cached("SELECT holder FROM lease WHERE kind = ?1 AND item = ?2")?;
    let mut rows = holders.query((kind.code(), n))?;
    let own = inner.session_name();
    while let Some(row) = rows.next()? {
        let session = session_of(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?);
        if own.as_deref() == Some(session) || session::is_live(&inner.layout, session) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether any layer still has that diff ID.
fn has_layers(tx: &Transaction, diff_id: Option<&Digest>) -> rusqlite::Result<bool> {
    match diff_id {
        Some(diff_id) => tx.prepare_cached("SELECT 1 FROM layer WHERE diff_id = ?1")?.exists([diff_id.as_bytes()]),
        None => Ok(false),
    }
}

fn forget_blob(inner: &Inner, tx: &Transaction, n: i64, digest: &Digest) -> Result<(), Fault> {
    tx.prepare_cached("DELETE FROM blob WHERE n = ?1")?.execute([n])?;
    let _ = std::fs::remove_file(inner.layout.blob(digest));
    Ok(())
}
