//! Digests of what is taken from a source: what of it counts for keys.
//!
//! Names, kinds, modes, owners, sizes, link targets, device numbers, the capability xattr and the bytes of files count;
//! times and hard links do not (`spec/engine.md` §3.5). The encoding is ours and is written down, with its version, in
//! `docs/formats/selection-digest-v1.md`; a change of it is a new version.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cache::ContentDigest;
use rayon::prelude::*;
use solver::traits::Selection;

use super::select::{Item, Place, Selected, literal, select};
use super::source::{Source, SourceDir};
use super::walk::{WalkRules, walk};
use super::{ContextDir, ContextError, LocalContext, Result, content};
use crate::view::{Node, NodeKind};

/// Domain of version 1 of the encoding.
const DOMAIN: &str = "rbuild selection digest, v1";

/// Computes the digest of what `selection` takes from `source`.
///
/// Reads files on all cores; of a context only those that the index does not know.
///
/// # Errors
/// As [`select`]; [`ContextError::Changed`] for a file that is written to.
pub fn digest(source: &Source, selection: &Selection<'_>) -> Result<ContentDigest> {
    let mut records = Records::default();
    match selection {
        Selection::Path(path) => records.item(&literal(source, path)?, Top::Counts, &WalkRules::default())?,
        Selection::Copy(selection) => match select(source, selection)? {
            Selected::Items { items, rules } => {
                for item in &items {
                    records.item(item, Top::Dissolves, &rules)?;
                }
            }
            Selected::Parents { bases, rules } => {
                for base in &bases {
                    records.mark(Mark::Base);
                    records.contents(base, &rules)?;
                }
            }
        },
    }
    records.finish()
}

/// Whether the directory that is selected itself leaves a trace in the result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Top {
    /// It is mounted: its metadata can be seen.
    Counts,
    /// Its contents are copied; its own name, mode and owner are not.
    Dissolves,
}

/// Starts a group of records.
#[derive(Clone, Copy)]
enum Mark {
    Leaf = 1,
    Contents = 2,
    Root = 3,
    Base = 4,
}

/// Encoded records, in order, with gaps for the digests of files, which are computed in parallel afterwards.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    files: Vec<PendingFile>,
}

/// A file whose digest is still to be written at `offset`.
struct PendingFile {
    record_start: usize,
    offset: usize,
    dir: SourceDir,
    name: Box<OsStr>,
}

/// Offset of the size within a record, behind kind, mode, uid and gid.
const SIZE_OFFSET: usize = 1 + 3 * 4;

impl Records {
    fn mark(&mut self, mark: Mark) {
        self.bytes.push(mark as u8);
    }

    fn item(&mut self, item: &Item, top: Top, rules: &WalkRules) -> Result<()> {
        match (&item.place, top) {
            (Place::Leaf(dir, name), _) => {
                self.mark(Mark::Leaf);
                self.record(Path::new(&item.name), dir, name, &item.node)
            }
            (Place::Dir(dir), Top::Dissolves) => {
                self.mark(Mark::Contents);
                self.contents(dir, rules)
            }
            (Place::Dir(dir), Top::Counts) => {
                self.mark(Mark::Root);
                self.metadata(&item.node);
                self.contents(dir, rules)
            }
        }
    }

    fn contents(&mut self, dir: &SourceDir, rules: &WalkRules) -> Result<()> {
        walk(dir, rules, &mut |entry| self.record(entry.path, entry.dir, entry.name, entry.node))
    }

    /// One entry: metadata, path, then what its kind adds.
    fn record(&mut self, path: &Path, dir: &SourceDir, name: &OsStr, node: &Node) -> Result<()> {
        let record_start = self.bytes.len();
        self.metadata(node);
        self.field(path.as_os_str().as_bytes());
        match node.kind {
            NodeKind::File => {
                let capability = dir.capability(name)?.unwrap_or_default();
                self.field(&capability);
                self.files.push(PendingFile {
                    record_start,
                    offset: self.bytes.len(),
                    dir: dir.clone(),
                    name: name.into(),
                });
                self.bytes.extend_from_slice(&[0; 32]);
            }
            NodeKind::Symlink => {
                let target = dir.read_link(name)?;
                self.field(target.as_bytes());
            }
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                self.bytes.extend_from_slice(&node.meta.rdev.to_le_bytes());
            }
            NodeKind::Dir => {
                let capability = dir.capability(name)?.unwrap_or_default();
                self.field(&capability);
            }
            NodeKind::Fifo | NodeKind::Socket => {}
        }
        Ok(())
    }

    fn metadata(&mut self, node: &Node) {
        // Links have no mode that could be set; what file systems report for them differs.
        let mode = if node.kind == NodeKind::Symlink { 0o777 } else { node.meta.mode };
        let size_bytes = if node.kind == NodeKind::File { node.meta.size_bytes } else { 0 };
        self.bytes.push(kind_code(node.kind));
        for number in [mode, node.meta.uid, node.meta.gid] {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes.extend_from_slice(&size_bytes.to_le_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// Fills the gaps and hashes everything.
    fn finish(mut self) -> Result<ContentDigest> {
        let files = std::mem::take(&mut self.files);
        let of_context: Vec<(&LocalContext, &ContextDir, &OsStr)> = files
            .iter()
            .filter_map(|file| match &file.dir {
                SourceDir::Context(context, dir) => Some((context, &**dir, &*file.name)),
                SourceDir::View(_) => None,
            })
            .collect();
        if let Some((context, ..)) = of_context.first() {
            let pairs: Vec<_> = of_context.iter().map(|(_, dir, name)| (*dir, *name)).collect();
            content::ensure_contents(context, &pairs)?;
        }
        let digests = files.par_iter().with_min_len(16).map(file_digest).collect::<Result<Vec<_>>>()?;
        for (file, (digest, size_bytes)) in files.iter().zip(digests) {
            self.bytes[file.offset..file.offset + 32].copy_from_slice(&digest);
            let size_at = file.record_start + SIZE_OFFSET;
            self.bytes[size_at..size_at + 8].copy_from_slice(&size_bytes.to_le_bytes());
        }
        let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
        hasher.update(&self.bytes);
        Ok(ContentDigest(*hasher.finalize().as_bytes()))
    }
}

/// Digest and size of a file; the size may be newer than that of the walk.
fn file_digest(file: &PendingFile) -> Result<([u8; 32], u64)> {
    match &file.dir {
        SourceDir::Context(_, dir) => {
            let entry = dir.entry(&file.name);
            let known = entry.and_then(|entry| Some((entry.content()?.digest, entry.stamp().size_bytes)));
            known.ok_or_else(|| ContextError::Changed { path: dir.path().join(&*file.name) })
        }
        SourceDir::View(dir) => {
            let Some(mut opened) = dir.open_file(&file.name)? else {
                return Err(ContextError::Changed { path: file.dir.display_path(&file.name) });
            };
            content::hash_reader(&mut opened)
                .map_err(|e| crate::view::ViewError::io("read", dir.path().join(&*file.name), e).into())
        }
    }
}

/// The code of a kind in the encoding: the tar type flag.
fn kind_code(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::File => b'0',
        NodeKind::Symlink => b'2',
        NodeKind::CharDevice => b'3',
        NodeKind::BlockDevice => b'4',
        NodeKind::Dir => b'5',
        NodeKind::Fifo => b'6',
        NodeKind::Socket => b's',
    }
}

/// A context as a source.
impl From<LocalContext> for Source {
    fn from(context: LocalContext) -> Self {
        Self::Context(context)
    }
}
