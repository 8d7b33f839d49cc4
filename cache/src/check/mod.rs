//! Looking whether the store is in order, and putting it in order.
//!
//! Everything is compared with what names or describes it: blobs with their digests, trees with their descriptions and
//! with the diff IDs that images give them, records with what they lead to, images with their documents and layers, files
//! with the index. What is broken is dropped, so that it is fetched or made again when it is needed; images are named and
//! left, because nothing here knows how to make one.

mod images;
mod pool;
mod problem;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use oci::{DiffId, Digest};

use crate::blobs::digest_of_file;
use crate::error::Result;
use crate::id::LayerId;
use crate::layers::{self, LayerFile};
use crate::layout::Bucket;
use crate::rebuild::digest_named;
use crate::store::Store;
use crate::{blobs, context_index, durability, session, survey};

pub use problem::{Finding, Problem};

/// What is done about what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// Nothing.
    Look,
    /// What is broken is dropped.
    Repair,
}

/// What is being looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckPart {
    /// Blobs; counted in bytes.
    Blobs,
    /// Trees of images; counted one by one.
    Trees,
}

/// Makes the tar of a tree (an overlay upper directory) on top of others (base first) and says what its diff ID is;
/// `None` when that cannot be told, because a tree has gone meanwhile.
pub type TreeDigest<'a> = &'a (dyn Fn(&Path, &[PathBuf]) -> Option<DiffId> + Sync);

/// How a check goes about it.
#[derive(Clone, Copy)]
pub struct CheckOptions<'a> {
    /// Whether to repair.
    pub mode: CheckMode,
    /// Told, from any thread, how much of a part is done, and how much there is. Must be quick.
    pub progress: &'a (dyn Fn(CheckPart, u64, u64) + Sync),
    /// For trees whose diff ID is known; without it, those are believed.
    pub tree_digest: Option<TreeDigest<'a>>,
}

impl CheckOptions<'_> {
    /// A check that tells nobody of its progress, and believes the bytes of trees.
    pub fn silent(mode: CheckMode) -> Self {
        Self { mode, progress: &|_, _, _| {}, tree_digest: None }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Number of blobs whose bytes were hashed and right.
    pub n_blobs: usize,
    /// Their length together.
    pub blob_bytes: u64,
    /// Number of trees that were looked at.
    pub n_trees: usize,
    /// Number of trees whose bytes were compared with a diff ID and right.
    pub n_trees_hashed: usize,
    /// Number of images.
    pub n_images: usize,
    /// Number of records.
    pub n_records: usize,
    /// What was wrong, in the order in which it was found.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong any more.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.is_repaired)
    }

    fn found(&mut self, problem: Problem, is_repaired: bool) {
        self.findings.push(Finding { problem, is_repaired });
    }
}

impl Store {
    /// Compares everything in the store with what it should be; see the module's text. With [`CheckMode::Repair`] drops
    /// what is broken.
    ///
    /// Reads every byte of every blob, on all processors. Builds may go on meanwhile.
    pub fn check(&self, options: &CheckOptions<'_>) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        self.check_index(options, &mut report)?;
        self.check_blobs(options, &mut report)?;
        self.check_trees(options, &mut report)?;
        self.check_images(options, &mut report)?;
        self.check_records(options, &mut report)?;
        self.check_strays(options, &mut report)?;
        self.check_contexts(options, &mut report);
        self.check_leftovers(options, &mut report)?;
        Ok(report)
    }

    fn check_index(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let index = &self.inner.index;
        let repaired = options.mode == CheckMode::Repair;
        let is_corrupt = if repaired { index.replace_if_corrupt()? } else { index.is_corrupt() };
        if is_corrupt {
            report.found(Problem::Index, repaired);
        }
        Ok(())
    }

    fn check_blobs(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let blobs = self.blobs_with_sizes()?;
        let total_bytes = blobs.iter().map(|(_, size_bytes)| size_bytes).sum();
        let progress = |done_bytes| (options.progress)(CheckPart::Blobs, done_bytes, total_bytes);
        let verdicts = pool::map(
            &blobs,
            |(_, size_bytes)| *size_bytes,
            &progress,
            |(digest, _)| {
                let path = self.inner.layout.blob(digest);
                match digest_of_file(&path) {
                    Ok(got) if got == *digest => None,
                    Ok(_) => Some(Problem::CorruptBlob(digest.clone())),
                    // It is there and cannot be read.
                    Err(_) if path.exists() => Some(Problem::CorruptBlob(digest.clone())),
                    Err(_) => Some(Problem::LostBlob(digest.clone())),
                }
            },
        );
        for ((digest, size_bytes), verdict) in blobs.iter().zip(verdicts) {
            let Some(problem) = verdict else {
                report.n_blobs += 1;
                report.blob_bytes += size_bytes;
                continue;
            };
            // Somebody may have removed it in all order since the list was made.
            if self.inner.index.read("find a blob", |conn| Ok(blobs::is_known(conn, digest)?))? {
                if options.mode == CheckMode::Repair {
                    self.drop_blob(digest)?;
                }
                report.found(problem, options.mode == CheckMode::Repair);
            }
        }
        Ok(())
    }

    fn check_trees(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        for id in self.layers_with_tree()? {
            report.n_trees += 1;
            if self.has_sound_tree(&id) {
                continue;
            }
            let is_lost = self.inner.index.write("look for a tree", |tx| {
                // Looked at again inside, where nobody commits or removes.
                let sql = "SELECT 1 FROM layer WHERE id = ?1 AND has_tree";
                let is_lost = !self.has_sound_tree(&id) && tx.prepare_cached(sql)?.exists([id.as_str()])?;
                if is_lost && options.mode == CheckMode::Repair {
                    layers::forget_tree(tx, &id)?;
                }
                Ok(is_lost)
            })?;
            if is_lost {
                report.found(Problem::LostTree(id), options.mode == CheckMode::Repair);
            }
        }
        Ok(())
    }

    /// Forgets the tree of a layer and removes its files; `false` when it has gone already.
    fn drop_tree(&self, id: &LayerId) -> Result<bool> {
        let trash = self.inner.trash_path()?;
        let dir = self.inner.layout.layer_dir(id);
        let is_dropped = self.inner.index.write("drop a tree", |tx| {
            let had_tree = layers::forget_tree(tx, id)?;
            // Without its files there is nothing to move.
            let _ = std::fs::rename(&dir, &trash);
            Ok(had_tree)
        })?;
        crate::scratch::remove_tree(&trash);
        Ok(is_dropped)
    }

    /// Records whose layers have no form any more: nobody finds them, they only take room.
    fn check_records(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let (n_records, n_formless) = self.inner.index.write("look for dead records", |tx| {
            let n_formless = match options.mode {
                CheckMode::Look => durability::formless_layers(tx)?,
                CheckMode::Repair => durability::drop_formless_layers(tx)?,
            };
            let n_records: i64 = tx.query_row("SELECT count(*) FROM record", [], |row| row.get(0))?;
            Ok((n_records, n_formless))
        })?;
        report.n_records = usize::try_from(n_records).unwrap_or(0);
        if n_formless > 0 {
            report.found(Problem::FormlessLayers(n_formless), options.mode == CheckMode::Repair);
        }
        Ok(())
    }

    fn check_strays(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let layout = &self.inner.layout;
        let strays = self.inner.index.read("look for strays", |conn| Ok(durability::strangers(conn, layout)?))?;
        // Looked at again inside a transaction, where nobody is between a file and its row.
        let strays = self.inner.index.write("look at strays", |tx| {
            let mut still = Vec::new();
            for stray in &strays {
                if stray.path.exists() && !stray.is_known(tx)? {
                    if options.mode == CheckMode::Repair {
                        stray.remove(tx)?;
                    }
                    still.push(stray.path.display().to_string());
                }
            }
            Ok(still)
        })?;
        for stray in strays {
            report.found(Problem::Stray(stray), options.mode == CheckMode::Repair);
        }
        Ok(())
    }

    fn check_contexts(&self, options: &CheckOptions<'_>, report: &mut CheckReport) {
        let entries = std::fs::read_dir(self.inner.layout.bucket(Bucket::Contexts)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if !context_index::is_sound(&path) {
                let is_removed = options.mode == CheckMode::Repair && std::fs::remove_file(&path).is_ok();
                report.found(Problem::BrokenContext(path.display().to_string()), is_removed);
            }
        }
    }

    /// What killed processes left, and generations of the index that another has replaced.
    fn check_leftovers(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let layout = &self.inner.layout;
        let live = survey::live_sessions(&self.inner);
        let n_dead = session::all_sessions(layout).keys().filter(|name| !live.contains(*name)).count();
        let superseded = self.inner.index.superseded();
        if options.mode == CheckMode::Repair {
            self.remove_leftovers(&|| false)?;
            superseded.iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        if n_dead > 0 {
            report.found(Problem::Leftovers(n_dead), options.mode == CheckMode::Repair);
        }
        for path in superseded {
            report.found(Problem::OldIndex(path.display().to_string()), options.mode == CheckMode::Repair);
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
        let digests: Vec<Digest> = self.blobs_with_sizes()?.into_iter().map(|(digest, _)| digest).collect();
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

    fn blobs_with_sizes(&self) -> Result<Vec<(Digest, u64)>> {
        self.inner.index.read("list blobs", |conn| {
            let mut select = conn.prepare("SELECT digest, size_bytes FROM blob")?;
            let blobs = select
                .query_map([], |row| Ok((Digest::from_sha256(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned())))?;
            Ok(blobs.collect::<rusqlite::Result<_>>()?)
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
