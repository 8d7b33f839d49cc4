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

use super::file_list::{Group, list};
use super::select::{Item, Place, Selected, literal, select};
use super::source::{Source, SourceDir};
use super::walk::{WalkRules, walk};
use super::{ContextDir, ContextError, Entry, LocalContext, Result, content, scan};
use crate::view::{Node, NodeKind};

/// Domain of version 1 of the encoding.
const DOMAIN: &str = "rbuild selection digest, v1";

/// A digest, and what was hashed.
#[derive(Debug)]
pub struct Digested {
    /// The digest.
    pub digest: ContentDigest,
    records: Vec<u8>,
    groups: Vec<Group>,
}

impl Digested {
    /// The files, one by one, as [`cache::Store::put_file_list`] takes them.
    pub fn file_list(&self) -> Vec<u8> {
        list(&self.records, &self.groups)
    }
}

/// Computes the digest of what `selection` takes from `source`.
///
/// # Errors
/// As [`digested`].
pub fn digest(source: &Source, selection: &Selection<'_>) -> Result<ContentDigest> {
    Ok(digested(source, selection)?.digest)
}

/// Computes the digest of what `selection` takes from `source`, and keeps what it is made from.
///
/// Reads files on all cores; of a context only those that the index does not know.
///
/// # Errors
/// As [`select`]; [`ContextError::Changed`] for a file that is written to.
pub fn digested(source: &Source, selection: &Selection<'_>) -> Result<Digested> {
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
                    records.mark(Mark::Base, base.path());
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
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    Leaf = 1,
    Contents = 2,
    Root = 3,
    Base = 4,
}

/// Encoded records, in order, with gaps for the digests of files, which are computed in parallel afterwards.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    groups: Vec<Group>,
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
/// Entries of a directory that one parallel task looks at in a row.
const ENTRIES_PER_TASK: usize = 32;

impl Records {
    fn mark(&mut self, mark: Mark, place: &Path) {
        self.groups.push(Group::new(self.bytes.len(), mark, place));
        self.bytes.push(mark as u8);
    }

    fn item(&mut self, item: &Item, top: Top, rules: &WalkRules) -> Result<()> {
        match (&item.place, top) {
            (Place::Leaf(dir, name), _) => {
                self.mark(Mark::Leaf, Path::new(&item.name));
                self.record(Path::new(&item.name), dir, name, &item.node)
            }
            (Place::Dir(dir), Top::Dissolves) => {
                self.mark(Mark::Contents, Path::new(&item.name));
                self.contents(dir, rules)
            }
            (Place::Dir(dir), Top::Counts) => {
                self.mark(Mark::Root, Path::new(&item.name));
                put_metadata(&mut self.bytes, &item.node);
                self.contents(dir, rules)
            }
        }
    }

    fn contents(&mut self, dir: &SourceDir, rules: &WalkRules) -> Result<()> {
        match dir {
            SourceDir::Context(context, dir) if rules.want_everything() => {
                self.bytes.extend(everything(context, dir, Path::new(""))?);
                context.save_news();
                Ok(())
            }
            _ => walk(dir, rules, &mut |entry| self.record(entry.path, entry.dir, entry.name, entry.node)),
        }
    }

    /// One entry: metadata, path, then what its kind adds.
    fn record(&mut self, path: &Path, dir: &SourceDir, name: &OsStr, node: &Node) -> Result<()> {
        let record_start = self.bytes.len();
        put_metadata(&mut self.bytes, node);
        put_field(&mut self.bytes, path.as_os_str().as_bytes());
        match node.kind {
            NodeKind::File => {
                let capability = dir.capability(name)?.unwrap_or_default();
                put_field(&mut self.bytes, &capability);
                self.files.push(PendingFile {
                    record_start,
                    offset: self.bytes.len(),
                    dir: dir.clone(),
                    name: name.into(),
                });
                self.bytes.extend_from_slice(&[0; 32]);
            }
            NodeKind::Symlink => put_field(&mut self.bytes, dir.read_link(name)?.as_bytes()),
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                self.bytes.extend_from_slice(&node.meta.rdev.to_le_bytes());
            }
            NodeKind::Dir => {
                let capability = dir.capability(name)?.unwrap_or_default();
                put_field(&mut self.bytes, &capability);
            }
            NodeKind::Fifo | NodeKind::Socket => {}
        }
        Ok(())
    }

    /// Fills the gaps and hashes everything.
    fn finish(mut self) -> Result<Digested> {
        let files = std::mem::take(&mut self.files);
        let digests = files.par_iter().with_min_len(16).map(file_digest).collect::<Result<Vec<_>>>()?;
        if let Some(SourceDir::Context(context, _)) = files.first().map(|file| &file.dir) {
            context.save_news();
        }
        for (file, (digest, size_bytes)) in files.iter().zip(digests) {
            self.bytes[file.offset..file.offset + 32].copy_from_slice(&digest);
            let size_at = file.record_start + SIZE_OFFSET;
            self.bytes[size_at..size_at + 8].copy_from_slice(&size_bytes.to_le_bytes());
        }
        let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
        hasher.update(&self.bytes);
        let digest = ContentDigest(*hasher.finalize().as_bytes());
        Ok(Digested { digest, records: self.bytes, groups: self.groups })
    }
}

/// The records of everything below a directory of a context, as a walk would make them, on all cores: directories are
/// read and files are known by the time that their records are written.
fn everything(context: &LocalContext, dir: &ContextDir, path: &Path) -> Result<Vec<u8>> {
    let part = |entries: &[Entry]| {
        let mut bytes = Vec::new();
        let mut path = path.to_owned();
        for entry in entries {
            let name = dir.name_of(entry);
            path.push(name);
            put_entry(&mut bytes, context, dir, entry, &path)?;
            path.pop();
        }
        Ok(bytes)
    };
    match dir.entries() {
        entries if entries.len() <= ENTRIES_PER_TASK => part(entries),
        entries => Ok(entries.par_chunks(ENTRIES_PER_TASK).map(part).collect::<Result<Vec<_>>>()?.concat()),
    }
}

/// As [`Records::record`], with what is below a directory.
fn put_entry(bytes: &mut Vec<u8>, context: &LocalContext, dir: &ContextDir, entry: &Entry, path: &Path) -> Result<()> {
    let content = match entry.kind() {
        NodeKind::File => Some(content::of_file(context, dir, entry)?),
        _ => None,
    };
    // The size may be known better now.
    put_metadata(bytes, &entry.node());
    put_field(bytes, path.as_os_str().as_bytes());
    match entry.kind() {
        // A transfer drops capabilities.
        NodeKind::File => {
            put_field(bytes, &[]);
            bytes.extend_from_slice(&content.map(|content| content.digest).unwrap_or_default());
        }
        NodeKind::Symlink => put_field(bytes, scan::read_link(context, dir, dir.name_of(entry))?.as_bytes()),
        NodeKind::CharDevice | NodeKind::BlockDevice => bytes.extend_from_slice(&entry.node().meta.rdev.to_le_bytes()),
        NodeKind::Dir => {
            put_field(bytes, &[]);
            if let Some(below) = context.child_dir(dir, dir.name_of(entry))? {
                bytes.extend(everything(context, &below, path)?);
            }
        }
        NodeKind::Fifo | NodeKind::Socket => {}
    }
    Ok(())
}

fn put_metadata(bytes: &mut Vec<u8>, node: &Node) {
    // Links have no mode that could be set; what file systems report for them differs.
    let mode = if node.kind == NodeKind::Symlink { 0o777 } else { node.meta.mode };
    let size_bytes = if node.kind == NodeKind::File { node.meta.size_bytes } else { 0 };
    bytes.push(kind_code(node.kind));
    for number in [mode, node.meta.uid, node.meta.gid] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&size_bytes.to_le_bytes());
}

fn put_field(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.extend_from_slice(&(field.len() as u64).to_le_bytes());
    bytes.extend_from_slice(field);
}

/// Digest and size of a file; the size may be newer than that of the walk.
fn file_digest(file: &PendingFile) -> Result<([u8; 32], u64)> {
    match &file.dir {
        SourceDir::Context(context, dir) => {
            let gone = || ContextError::Changed { path: dir.path().join(&*file.name) };
            let entry = dir.entry(&file.name).ok_or_else(gone)?;
            let content = content::of_file(context, dir, entry)?;
            Ok((content.digest, entry.stamp().size_bytes))
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
