//! What the files of one local context contained last time, so that only changed files are read.
//!
//! One file per context, read and checked in one go; a missing, corrupt or strange one is an empty index. An entry
//! holds digests of the path and of the stat fields rather than the values: 52 bytes a file, looked up in place.
//! Format: `docs/formats/store-v1.md`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::layout::{Bucket, name_digest};
use crate::store::Store;

const MAGIC: &[u8; 8] = b"rbctx\0\0\x01";
/// Magic, generation, number of entries, checksum of what follows.
const HEADER_BYTES: usize = 8 + 4 + 4 + 32;
/// Digest of the path, digest of the stat fields, generation last seen, digest of the content.
const ENTRY_BYTES: usize = 8 + 8 + 4 + 32;
/// An entry that the scans of this many builds have not met is forgotten. Not the first time, because builds with
/// other targets or ignore files see other parts of the same directory.
const KEPT_GENERATIONS: u32 = 16;
/// A file whose times are not older than its reading by more than this may change again without a change of its times.
/// Twice the coarsest tick of a file system's clock (`HZ` = 100).
const RACY_NS: i64 = 20_000_000;

/// The facts by which a changed file is told from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatKey {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub inode: u64,
    /// Length.
    pub size_bytes: u64,
    /// Time of the last change of the bytes, in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Time of the last change of anything, in nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Type and permissions.
    pub mode: u32,
}

/// What one scan learned about one file.
#[derive(Clone, Copy, Debug)]
pub struct ContextEntry<'a> {
    /// Relative to the context's root; only equality matters.
    pub path: &'a Path,
    /// As seen before the file was read (or as looked up).
    pub stat: StatKey,
    /// BLAKE3 of the bytes.
    pub content: [u8; 32],
    /// When the scan began to read the file, or looked it up: nanoseconds since the epoch, taken *before* the stat.
    pub read_at_ns: i64,
}

/// The remembered contents of one context, immutable.
#[derive(Debug)]
pub struct ContextIndex {
    path: PathBuf,
    temporary: Store,
    /// The entries as stored, in any order.
    entries: Vec<u8>,
    generation: u32,
    /// Open addressing by path digest: the number of an entry, or [`VACANT`]. A power of two, at most half full.
    table: Vec<u32>,
}

const VACANT: u32 = u32::MAX;

/// Whether a file is an index as it was written.
pub(crate) fn is_sound(path: &Path) -> bool {
    std::fs::read(path).ok().and_then(decode).is_some()
}

impl ContextIndex {
    /// The index of the context `root_identity` (its canonical path, or anything else that names it).
    ///
    /// Never fails: what cannot be read is an empty index.
    pub fn load(store: &Store, root_identity: &str) -> Self {
        let name = format!("{}.idx", name_digest(root_identity));
        let path = store.inner.layout.bucket(Bucket::Contexts).join(name);
        let (generation, entries) = std::fs::read(&path).ok().and_then(decode).unwrap_or_default();
        let table = build_table(&entries);
        Self { path, temporary: store.clone(), entries, generation, table }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The content of the file at `path` if it still looks as it did when it was last read.
    pub fn lookup(&self, path: &Path, stat: &StatKey) -> Option<[u8; 32]> {
        let path_digest = digest_path(path);
        let entry = self.find(path_digest)?;
        let stored = &entry[8..16];
        (stored == digest_stat(stat, path_digest).to_le_bytes()).then(|| content_of(entry))
    }

    /// Replaces the stored index by `entries` and what this one remembers of files that are not among them.
    ///
    /// Atomic; the last writer wins. Entries that were read too soon after their last change are left out, because a
    /// later change within the same tick of the clock would not show.
    pub fn save<'a>(&self, entries: impl IntoIterator<Item = ContextEntry<'a>>) -> Result<()> {
        let generation = self.generation.wrapping_add(1);
        let mut body = Vec::with_capacity(HEADER_BYTES + self.entries.len());
        body.resize(HEADER_BYTES, 0);
        let mut is_replaced = vec![false; self.len()];
        for entry in entries {
            let path_digest = digest_path(entry.path);
            if let Some(number) = self.number(path_digest) {
                is_replaced[number] = true;
            }
            if is_trustworthy(&entry) {
                push_entry(&mut body, path_digest, &entry, generation);
            }
        }
        for (old, _) in self.entries.chunks_exact(ENTRY_BYTES).zip(&is_replaced).filter(|(_, replaced)| !**replaced) {
            if generation.wrapping_sub(word(old, 16)) < KEPT_GENERATIONS {
                body.extend_from_slice(old);
            }
        }
        seal(&mut body, generation);
        self.publish(&body)
    }

    fn publish(&self, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary.session()?.fresh_path("context");
        let mut file = std::fs::File::create(&temporary).during("create", &temporary)?;
        file.write_all(bytes).during("write", &temporary)?;
        std::fs::rename(&temporary, &self.path).during("rename", &temporary)
    }

    fn find(&self, path_digest: u64) -> Option<&[u8]> {
        let number = self.number(path_digest)?;
        self.entries.get(number * ENTRY_BYTES..(number + 1) * ENTRY_BYTES)
    }

    fn number(&self, path_digest: u64) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut slot = path_digest as usize & mask;
        while self.table[slot] != VACANT {
            let number = self.table[slot] as usize;
            if long(&self.entries, number * ENTRY_BYTES) == path_digest {
                return Some(number);
            }
            slot = (slot + 1) & mask;
        }
        None
    }
}

/// Whether a change after the reading would have changed the times.
fn is_trustworthy(entry: &ContextEntry<'_>) -> bool {
    let changed_at = entry.stat.mtime_ns.max(entry.stat.ctime_ns);
    changed_at.saturating_add(RACY_NS) < entry.read_at_ns
}

fn push_entry(body: &mut Vec<u8>, path_digest: u64, entry: &ContextEntry<'_>, generation: u32) {
    body.extend_from_slice(&path_digest.to_le_bytes());
    body.extend_from_slice(&digest_stat(&entry.stat, path_digest).to_le_bytes());
    body.extend_from_slice(&generation.to_le_bytes());
    body.extend_from_slice(&entry.content);
}

/// Fills in the header of a body whose first [`HEADER_BYTES`] are free.
fn seal(body: &mut [u8], generation: u32) {
    let n_entries = ((body.len() - HEADER_BYTES) / ENTRY_BYTES) as u32;
    body[..8].copy_from_slice(MAGIC);
    body[8..12].copy_from_slice(&generation.to_le_bytes());
    body[12..16].copy_from_slice(&n_entries.to_le_bytes());
    let checksum = checksum(&body[..16], &body[HEADER_BYTES..]);
    body[16..HEADER_BYTES].copy_from_slice(&checksum);
}

/// Generation and entries of a stored index; `None` when it is not exactly what [`seal`] made.
fn decode(mut bytes: Vec<u8>) -> Option<(u32, Vec<u8>)> {
    let (header, entries) = bytes.split_at_checked(HEADER_BYTES)?;
    let n_entries = word(header, 12) as usize;
    let is_sound = header.starts_with(MAGIC)
        && n_entries.checked_mul(ENTRY_BYTES) == Some(entries.len())
        && header[16..] == checksum(&header[..16], entries);
    let generation = word(header, 8);
    if !is_sound {
        return None;
    }
    bytes.drain(..HEADER_BYTES);
    Some((generation, bytes))
}

fn checksum(header: &[u8], entries: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update_rayon(entries);
    *hasher.finalize().as_bytes()
}

fn build_table(entries: &[u8]) -> Vec<u32> {
    let n_entries = entries.len() / ENTRY_BYTES;
    if n_entries == 0 {
        return Vec::new();
    }
    let mut table = vec![VACANT; (n_entries * 2).next_power_of_two()];
    let mask = table.len() - 1;
    for number in 0..n_entries {
        let mut slot = long(entries, number * ENTRY_BYTES) as usize & mask;
        while table[slot] != VACANT {
            slot = (slot + 1) & mask;
        }
        table[slot] = number as u32;
    }
    table
}

fn digest_path(path: &Path) -> u64 {
    long(blake3::hash(path.as_os_str().as_bytes()).as_bytes(), 0)
}

/// A 64-bit digest of the stat fields, tied to the path so that it means nothing elsewhere.
///
/// Two multiplications a field: this runs once per file of a scan. Not for adversaries: who can choose the inode and
/// the change time of a file in the context can also change the Dockerfile.
fn digest_stat(stat: &StatKey, path_digest: u64) -> u64 {
    let fields = [
        stat.dev,
        stat.inode,
        stat.size_bytes,
        stat.mtime_ns.cast_unsigned(),
        stat.ctime_ns.cast_unsigned(),
        u64::from(stat.mode),
    ];
    fields.iter().fold(path_digest | 1, |state, &field| {
        // The constants are the fractional parts of the golden ratio and of the square root of three.
        let product = u128::from(state ^ 0x9e37_79b9_7f4a_7c15) * u128::from(field ^ 0xbb67_ae85_84ca_a73b);
        let folded = (product as u64) ^ ((product >> 64) as u64);
        // A factor of zero would forget the state.
        (folded ^ state.rotate_left(29) ^ field).wrapping_mul(0xff51_afd7_ed55_8ccd)
    })
}

fn content_of(entry: &[u8]) -> [u8; 32] {
    let mut content = [0; 32];
    content.copy_from_slice(&entry[20..52]);
    content
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::store;

    const SECOND: i64 = 1_000_000_000;

    fn stat(seed: u64) -> StatKey {
        StatKey { dev: 1, inode: seed, size_bytes: 10, mtime_ns: SECOND, ctime_ns: SECOND, mode: 0o100_644 }
    }

    fn entry(path: &str, seed: u64) -> ContextEntry<'_> {
        ContextEntry { path: Path::new(path), stat: stat(seed), content: [seed as u8; 32], read_at_ns: 9 * SECOND }
    }

    #[test]
    fn any_change_of_any_field_is_a_miss() {
        let (_dir, store) = store();
        ContextIndex::load(&store, "/src").save([entry("a", 1), entry("b", 2)]).unwrap();
        let index = ContextIndex::load(&store, "/src");
        let same = stat(1);
        assert_eq!(index.lookup(Path::new("a"), &same), Some([1; 32]));
        let changed = [
            StatKey { dev: 2, ..same },
            StatKey { inode: 3, ..same },
            StatKey { size_bytes: 11, ..same },
            StatKey { mtime_ns: SECOND + 1, ..same },
            StatKey { ctime_ns: SECOND - 1, ..same },
            StatKey { mode: 0o100_755, ..same },
        ];
        for stat in changed {
            assert_eq!(index.lookup(Path::new("a"), &stat), None, "{stat:?}");
        }
        assert_eq!(index.lookup(Path::new("b"), &same), None);
        assert_eq!(index.lookup(Path::new("c"), &same), None);
        assert_eq!(ContextIndex::load(&store, "/other").lookup(Path::new("a"), &same), None);
    }

    #[test]
    fn a_file_that_was_read_right_after_its_change_is_not_trusted() {
        let (_dir, store) = store();
        let read_at = |read_at_ns| ContextEntry { read_at_ns, ..entry("a", 1) };
        for (read_at_ns, trusted) in [(SECOND - 1, false), (SECOND, false), (SECOND + RACY_NS, false)]
            .into_iter()
            .chain([(SECOND + RACY_NS + 1, true), (i64::MAX, true)])
        {
            ContextIndex::load(&store, "/src").save([read_at(read_at_ns)]).unwrap();
            let got = ContextIndex::load(&store, "/src").lookup(Path::new("a"), &stat(1));
            assert_eq!(got.is_some(), trusted, "{read_at_ns}");
        }
    }

    #[test]
    fn a_racy_entry_also_drops_what_was_remembered_before() {
        let (_dir, store) = store();
        ContextIndex::load(&store, "/src").save([entry("a", 1)]).unwrap();
        ContextIndex::load(&store, "/src").save([ContextEntry { read_at_ns: 0, ..entry("a", 1) }]).unwrap();
        assert!(ContextIndex::load(&store, "/src").is_empty());
    }

    #[test]
    fn files_that_a_scan_did_not_meet_are_remembered_for_a_while() {
        let (_dir, store) = store();
        ContextIndex::load(&store, "/src").save([entry("a", 1)]).unwrap();
        for n_scans in 1..=KEPT_GENERATIONS {
            ContextIndex::load(&store, "/src").save([entry("b", 2)]).unwrap();
            let got = ContextIndex::load(&store, "/src").lookup(Path::new("a"), &stat(1));
            assert_eq!(got.is_some(), n_scans < KEPT_GENERATIONS, "{n_scans}");
        }
        assert_eq!(ContextIndex::load(&store, "/src").len(), 1);
    }

    #[test]
    fn any_flipped_byte_or_cut_makes_it_empty() {
        let (_dir, store) = store();
        let index = ContextIndex::load(&store, "/src");
        index.save([entry("a", 1), entry("b", 2)]).unwrap();
        let sound = std::fs::read(&index.path).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x40;
            assert_eq!(decode(bytes), None, "flipped at {at}");
            assert_eq!(decode(sound[..at].to_vec()), None, "cut at {at}");
        }
        assert_eq!(decode([&sound[..], b"x"].concat()), None);
        std::fs::write(&index.path, b"garbage").unwrap();
        assert!(ContextIndex::load(&store, "/src").is_empty());
    }

    #[test]
    fn fifty_thousand_files_load_quickly() {
        let (_dir, store) = store();
        let paths: Vec<String> =
            (0..50_000).map(|n| format!("node_modules/package-{}/lib/file-{n}.js", n / 30)).collect();
        let entries = paths.iter().zip(0..).map(|(path, seed)| entry(path, seed));
        ContextIndex::load(&store, "/src").save(entries).unwrap();
        let started = Instant::now();
        let index = ContextIndex::load(&store, "/src");
        let elapsed = started.elapsed();
        assert_eq!(index.len(), 50_000);
        for (path, seed) in paths.iter().zip(0..) {
            assert_eq!(index.lookup(Path::new(path), &stat(seed)), Some([seed as u8; 32]));
        }
        // An unoptimised build on a busy machine; optimised, it is a few milliseconds.
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    }
}
