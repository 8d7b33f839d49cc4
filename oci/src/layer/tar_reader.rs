//! Reads layer tars of strangers: ustar, PAX, GNU long names, sparse files.
//!
//! tar-core parses the headers; this module feeds it, checks what it lets pass, and streams the contents. Where formats
//! disagree, Go's `archive/tar` decides, because that is what wrote most images and what other engines read them with.
//!
//! Spec: `spec/engine.md` §1.11.

use std::io::{self, Read};

use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, SparseEntry};

use super::entry::{Entry, EntryKind, Xattr};
use super::error::{LayerError, lossy};
use super::tar_writer::BLOCK_BYTES;

mod input;
mod pax;

use input::Input;

/// Position of the type flag in a header.
const TYPE_FLAG: usize = 156;

/// What a hostile archive may not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Length of a path or link target.
    pub max_path_bytes: u32,
    /// Length of one entry's extended headers and long names together.
    pub max_metadata_bytes: u32,
    /// Number of entries.
    pub max_entries: u64,
    /// Sum of the stored content of all entries (holes of sparse files do not count).
    pub max_content_bytes: u64,
    /// Sum of the paths that whoever unpacks has to remember until the end: of directories, and of links whose target is
    /// not in the archive.
    pub max_remembered_bytes: u64,
}

impl Default for ReadLimits {
    /// `PATH_MAX`, 1 MiB, 16 Mi entries, 256 GiB of content, more than registries take in one layer, and 128 MiB of paths,
    /// more than a million directories.
    fn default() -> Self {
        Self {
            max_path_bytes: 4095,
            max_metadata_bytes: 1 << 20,
            max_entries: 16 << 20,
            max_content_bytes: 256 << 30,
            max_remembered_bytes: 128 << 20,
        }
    }
}

/// Reads the entries of a tar in order.
///
/// Memory: one buffer of 256 KiB, more only for long extended headers (up to their limit) and sparse maps.
pub struct LayerReader<R> {
    input: Input<R>,
    parser: Parser,
    limits: ReadLimits,
    n_entries: u64,
    content_bytes: u64,
    at_end: bool,
    current: Current,
    body: Body,
}

/// One entry with its content.
pub struct Member<'a, R> {
    /// Its metadata, as hostile as the archive.
    pub entry: Entry<'a>,
    /// Its content; empty for everything but regular files. What is not read is skipped.
    pub content: Content<'a, R>,
}

/// The content of an entry.
///
/// As [`Read`], holes of a sparse file are zeros; [`Content::next_data`] passes over them.
pub struct Content<'a, R> {
    input: &'a mut Input<R>,
    body: &'a mut Body,
}

/// Owned metadata of the entry at hand, in buffers that are reused.
#[derive(Default)]
struct Current {
    path: Vec<u8>,
    link_target: Vec<u8>,
    xattrs: Vec<Xattr>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

/// What is left of the entry's content.
#[derive(Default)]
struct Body {
    /// Regions with data, ascending; an ordinary file is one region.
    regions: Vec<SparseEntry>,
    region_idx: usize,
    /// Where in the logical file we are.
    position: u64,
    size_bytes: u64,
    /// Zeros behind the stored content.
    padding: u64,
}

/// The kind of an entry without borrowed parts.
#[derive(Clone, Copy)]
enum Kind {
    Regular,
    Hardlink,
    Symlink,
    Char(u32, u32),
    Block(u32, u32),
    Directory,
    Fifo,
    /// To be passed over: a GNU volume label.
    Label,
}

impl<R: Read> LayerReader<R> {
    /// Starts to read an uncompressed tar (see [`crate::layer::decompress`]).
    pub fn new(reader: R, limits: ReadLimits) -> Self {
        let mut parser = Parser::new(Limits {
            max_metadata_size: limits.max_metadata_bytes,
            max_path_len: Some(limits.max_path_bytes),
            ..Limits::default()
        });
        parser.set_allow_empty_path(true);
        // Times before 1970 would be errors; `pax::check` is strict about the rest.
        parser.set_ignore_pax_errors(true);
        Self {
            input: Input::new(reader, limits.max_metadata_bytes),
            parser,
            limits,
            n_entries: 0,
            content_bytes: 0,
            at_end: false,
            current: Current::default(),
            body: Body::default(),
        }
    }

    /// The next entry; `None` at the end of the archive. Global extended headers and volume labels are passed over.
    ///
    /// What follows the end marker is not read. An archive that ends between entries without a marker is accepted.
    ///
    /// # Errors
    /// Any [`LayerError`]; the reader is at its end then.
    pub fn next_member(&mut self) -> Result<Option<Member<'_, R>>, LayerError> {
        match self.advance() {
            Ok(Some(kind)) => {
                let entry = self.current.entry(kind, self.body.size_bytes);
                Ok(Some(Member { entry, content: Content { input: &mut self.input, body: &mut self.body } }))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.at_end = true;
                Err(error)
            }
        }
    }

    /// Moves to the next entry that counts and fills `current` and `body`.
    fn advance(&mut self) -> Result<Option<Kind>, LayerError> {
        loop {
            if self.at_end {
                return Ok(None);
            }
            let rest = self.body.take_stored();
            self.input.skip(rest)?;
            let Some(kind) = self.read_header()? else {
                self.at_end = true;
                return Ok(None);
            };
            self.count()?;
            match kind {
                Kind::Label => {}
                kind => return Ok(Some(kind)),
            }
        }
    }

    fn count(&mut self) -> Result<(), LayerError> {
        self.n_entries += 1;
        if self.n_entries > self.limits.max_entries {
            return Err(LayerError::LimitExceeded { what: "entries", limit: self.limits.max_entries });
        }
        self.content_bytes = self.content_bytes.saturating_add(self.body.stored_bytes());
        if self.content_bytes > self.limits.max_content_bytes {
            return Err(LayerError::LimitExceeded { what: "bytes", limit: self.limits.max_content_bytes });
        }
        Ok(())
    }

    fn read_header(&mut self) -> Result<Option<Kind>, LayerError> {
        loop {
            let offset_bytes = self.input.offset_bytes();
            let malformed = |reason: String| LayerError::Malformed { offset_bytes, reason };
            let event = self.parser.parse(self.input.buffered());
            let (consumed, kind) = match event.map_err(|error| malformed(error.to_string()))? {
                ParseEvent::NeedData { min_bytes } => {
                    if self.input.fill(min_bytes)? {
                        continue;
                    }
                    return self.input.check_end().map(|()| None);
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::GlobalExtensions { consumed, .. } => (consumed, None),
                ParseEvent::Entry { consumed, entry } => {
                    let kind = self.current.set(&entry, &malformed)?;
                    self.body.set_plain(if kind.has_content() { entry.size } else { 0 });
                    (consumed, Some(kind))
                }
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    let kind = self.current.set(&entry, &malformed)?;
                    if !matches!(kind, Kind::Regular) {
                        return Err(malformed("an entry with a sparse map is no regular file".to_owned()));
                    }
                    let has_own_size = entry.pax.is_some_and(pax::has_size);
                    self.body
                        .set_sparse(sparse_map, real_size, entry.size, has_own_size)
                        .map_err(|reason| malformed(reason.to_owned()))?;
                    (consumed, Some(kind))
                }
            };
            self.input.consume(consumed);
            if let Some(kind) = kind {
                return Ok(Some(kind));
            }
        }
    }
}

impl Current {
    fn set(&mut self, entry: &ParsedEntry<'_>, malformed: &impl Fn(String) -> LayerError) -> Result<Kind, LayerError> {
        let records = entry.pax.map(pax::check).transpose().map_err(malformed)?.unwrap_or_default();
        replace(&mut self.path, &entry.path);
        replace(&mut self.link_target, entry.link_target.as_deref().unwrap_or_default());
        if self.path.contains(&0) || self.link_target.contains(&0) {
            return Err(malformed("a path holds a NUL byte".to_owned()));
        }
        let id = |what: &str, id: u64| {
            u32::try_from(id)
                .map_err(|_| malformed(format!("the {what} {id} of `{}` is out of range", lossy(&entry.path))))
        };
        self.uid = id("uid", entry.uid)?;
        self.gid = id("gid", entry.gid)?;
        self.mode = entry.mode & 0o7777;
        // A negative time in the header's base-256 form arrives as its two's complement.
        self.mtime = records.mtime.unwrap_or((entry.mtime as i64, 0));
        self.xattrs.clear();
        let xattrs = entry.xattrs.iter().map(|(name, value)| Xattr { name: name.to_vec(), value: value.to_vec() });
        self.xattrs.extend(xattrs);
        let kind = Kind::of(entry)?;
        if matches!(kind, Kind::Hardlink | Kind::Symlink) && self.link_target.is_empty() {
            return Err(malformed(format!("the link `{}` has no target", lossy(&entry.path))));
        }
        Ok(kind)
    }

    fn entry(&self, kind: Kind, size_bytes: u64) -> Entry<'_> {
        let target = self.link_target.as_slice();
        let kind = match kind {
            Kind::Regular | Kind::Label => EntryKind::Regular { size_bytes },
            Kind::Hardlink => EntryKind::Hardlink { target },
            Kind::Symlink => EntryKind::Symlink { target },
            Kind::Char(major, minor) => EntryKind::Char { major, minor },
            Kind::Block(major, minor) => EntryKind::Block { major, minor },
            Kind::Directory => EntryKind::Directory,
            Kind::Fifo => EntryKind::Fifo,
        };
        Entry {
            path: &self.path,
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime_secs: self.mtime.0,
            mtime_nanos: self.mtime.1,
            xattrs: &self.xattrs,
        }
    }
}

impl Kind {
    fn of(entry: &ParsedEntry<'_>) -> Result<Self, LayerError> {
        let type_flag = entry.header.as_bytes()[TYPE_FLAG];
        let device = || (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
        Ok(match entry.entry_type {
            // Archives from before POSIX mark directories by a slash alone.
            EntryType::Regular if type_flag == 0 && entry.path.ends_with(b"/") => Self::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Self::Regular,
            EntryType::Link => Self::Hardlink,
            EntryType::Symlink => Self::Symlink,
            EntryType::Char => Self::Char(device().0, device().1),
            EntryType::Block => Self::Block(device().0, device().1),
            EntryType::Directory => Self::Directory,
            EntryType::Fifo => Self::Fifo,
            EntryType::Other(b'V') => Self::Label,
            _ => return Err(LayerError::UnsupportedType { path: lossy(&entry.path), type_flag }),
        })
    }

    /// Whether content follows. Some writers give links and directories a size; Go reads none there.
    fn has_content(self) -> bool {
        matches!(self, Self::Regular | Self::Label)
    }
}

impl Body {
    fn set_plain(&mut self, size_bytes: u64) {
        self.regions.clear();
        self.regions.push(SparseEntry { offset: 0, length: size_bytes });
        self.start(size_bytes, size_bytes);
    }

    /// `stored_bytes` is the stored length according to the header; a PAX `size` record of a sparse file counts its map
    /// as well and is not comparable.
    fn set_sparse(
        &mut self,
        map: Vec<SparseEntry>,
        size_bytes: u64,
        stored_bytes: u64,
        has_own_size: bool,
    ) -> Result<(), &'static str> {
        let mut end: u64 = 0;
        let mut sum: u64 = 0;
        for region in &map {
            if region.offset < end {
                return Err("a sparse map is not ascending");
            }
            end = region.offset.checked_add(region.length).ok_or("a sparse map overflows")?;
            sum += region.length;
        }
        if end > size_bytes {
            return Err("a sparse map exceeds its file");
        }
        if sum != stored_bytes && !has_own_size {
            return Err("a sparse map does not match the stored size");
        }
        self.regions = map;
        // GNU tar marks a hole at the end by an empty region.
        self.regions.retain(|region| region.length > 0);
        self.start(size_bytes, sum);
        Ok(())
    }

    fn start(&mut self, size_bytes: u64, stored_bytes: u64) {
        self.region_idx = 0;
        self.position = 0;
        self.size_bytes = size_bytes;
        self.padding = stored_bytes.wrapping_neg() % BLOCK_BYTES as u64;
    }

    /// Stored bytes that have not been read.
    fn stored_bytes(&self) -> u64 {
        let rest = self.regions.get(self.region_idx..).unwrap_or_default();
        rest.iter().map(|region| (region.offset + region.length).saturating_sub(region.offset.max(self.position))).sum()
    }

    /// Everything up to the next header, given up.
    fn take_stored(&mut self) -> u64 {
        let stored = self.stored_bytes().saturating_add(self.padding);
        *self = Self { regions: std::mem::take(&mut self.regions), ..Self::default() };
        self.regions.clear();
        stored
    }

    /// The region at or behind the position that still has data.
    fn region(&mut self) -> Option<SparseEntry> {
        while let Some(region) = self.regions.get(self.region_idx) {
            if region.offset + region.length > self.position {
                return Some(*region);
            }
            self.region_idx += 1;
        }
        None
    }
}

impl<R: Read> Content<'_, R> {
    /// Logical length: holes included.
    pub fn size_bytes(&self) -> u64 {
        self.body.size_bytes
    }

    /// The next stored bytes and their offset in the file; `None` after the last ones.
    ///
    /// Never copies; slices are as long as the reader's buffer allows. Offsets ascend, gaps are holes. A file may end in
    /// a hole: its length is [`Content::size_bytes`].
    pub fn next_data(&mut self) -> Result<Option<(u64, &[u8])>, LayerError> {
        let Some(region) = self.body.region() else { return Ok(None) };
        let offset = region.offset.max(self.body.position);
        let left = region.offset + region.length - offset;
        if self.input.buffered().is_empty() && !self.input.fill(1)? {
            return Err(self.input.cut_off());
        }
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.buffered().len());
        self.body.position = offset + n as u64;
        Ok(Some((offset, self.input.take(n))))
    }
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let body = &mut *self.body;
        let to_io = |error: LayerError| io::Error::new(io::ErrorKind::InvalidData, error);
        let region = body.region();
        let in_hole = match region {
            Some(region) => region.offset.saturating_sub(body.position),
            None => body.size_bytes - body.position,
        };
        if in_hole > 0 || region.is_none() {
            let n = usize::try_from(in_hole).unwrap_or(usize::MAX).min(out.len());
            out[..n].fill(0);
            body.position += n as u64;
            return Ok(n);
        }
        let Some(region) = region else { return Ok(0) };
        let left = region.offset + region.length - body.position;
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let n_read = self.input.read(&mut out[..n]).map_err(to_io)?;
        if n_read == 0 && n > 0 {
            return Err(to_io(self.input.cut_off()));
        }
        body.position += n_read as u64;
        Ok(n_read)
    }
}

fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
