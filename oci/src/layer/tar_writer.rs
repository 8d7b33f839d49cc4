//! Writes layer tars whose bytes depend on their entries alone.
//!
//! The format is the one that Go's `archive/tar` gives for `FormatPAX`, because that is what the images of the world are
//! made with: a ustar block for every entry, preceded by an extended header (`x`) only when something does not fit the
//! block (a name over 100 bytes or with bytes outside ASCII, an id over 2 097 151, a size from 8 GiB, a time before 1970
//! or after 2242, an xattr). The `prefix` field is never used, owner names stay empty, two zero blocks end the archive.
//!
//! Spec: `spec/engine.md` §1.10; POSIX.1-2017, pax, "pax Interchange Format".

use std::io::{Read, Write};

use super::entry::{Entry, EntryKind};
use super::error::{LayerError, lossy};

/// Length of a tar block.
pub(crate) const BLOCK_BYTES: usize = 512;

/// Content is copied in steps of this size when it does not come as one slice.
const COPY_BUFFER_BYTES: usize = 128 * 1024;

const ZEROS: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// A field of a ustar block: first byte and length.
#[derive(Clone, Copy)]
struct Field(usize, usize);

const NAME: Field = Field(0, 100);
const MODE: Field = Field(100, 8);
const UID: Field = Field(108, 8);
const GID: Field = Field(116, 8);
const SIZE: Field = Field(124, 12);
const MTIME: Field = Field(136, 12);
const CHECKSUM: Field = Field(148, 8);
const TYPE_FLAG: usize = 156;
const LINK_NAME: Field = Field(157, 100);
const MAGIC: Field = Field(257, 8);
const DEV_MAJOR: Field = Field(329, 8);
const DEV_MINOR: Field = Field(337, 8);

/// Writes a layer tar entry by entry. The caller decides the order.
///
/// Nothing is allocated for an entry that fits a plain block. Writes are small (a header, a content slice, padding), so `W`
/// should buffer.
pub struct TarWriter<W: Write> {
    inner: W,
    /// Scratch: the name as written, with a directory's slash.
    name: Vec<u8>,
    /// Scratch: the records of the extended header.
    records: Vec<u8>,
    /// Scratch for content that comes as a reader; empty until then.
    copy_buffer: Vec<u8>,
    written_bytes: u64,
    /// Seconds since the epoch that no time may be later than.
    latest: Option<i64>,
}

impl<W: Write> TarWriter<W> {
    /// Starts an archive on `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, name: Vec::new(), records: Vec::new(), copy_buffer: Vec::new(), written_bytes: 0, latest: None }
    }

    /// Writes `seconds` since the epoch in place of every later time (`spec/engine.md` §1.8).
    #[must_use]
    pub fn clamp_times(mut self, seconds: i64) -> Self {
        self.latest = Some(seconds);
        self
    }

    /// Bytes of the archive so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Appends an entry whose content, if it is a regular file, is read from `content`.
    ///
    /// Exactly as many bytes are read as the entry says; a file that has grown meanwhile is cut.
    ///
    /// # Errors
    /// [`LayerError::ShortContent`] when `content` ends early: the archive is broken then and must be thrown away.
    /// [`LayerError::Unwritable`] for a NUL byte in a name or a device number above 2 097 151; nothing was written.
    pub fn append(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> Result<(), LayerError> {
        self.write_header(entry)?;
        let size_bytes = entry.content_bytes();
        self.copy_content(entry, size_bytes, content)?;
        self.pad(size_bytes)
    }

    /// Appends an entry whose whole content is at hand.
    ///
    /// # Errors
    /// As [`TarWriter::append`]; [`LayerError::ShortContent`] also when `content` is longer than the entry says.
    pub fn append_bytes(&mut self, entry: &Entry<'_>, content: &[u8]) -> Result<(), LayerError> {
        if content.len() as u64 != entry.content_bytes() {
            return Err(LayerError::ShortContent {
                path: lossy(entry.path),
                expected_bytes: entry.content_bytes(),
                got_bytes: content.len() as u64,
            });
        }
        self.write_header(entry)?;
        self.write(entry.path, content)?;
        self.pad(entry.content_bytes())
    }

    /// Ends the archive and gives the stream back, not flushed.
    pub fn finish(mut self) -> Result<W, LayerError> {
        self.end()?;
        Ok(self.inner)
    }

    /// Writes the end of the archive.
    pub(super) fn end(&mut self) -> Result<(), LayerError> {
        self.write(b"", &ZEROS)
    }

    /// Where it writes to.
    pub(super) fn inner_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Writes what comes before the content.
    pub(super) fn write_header(&mut self, entry: &Entry<'_>) -> Result<(), LayerError> {
        let mtime_secs = self.latest.map_or(entry.mtime_secs, |latest| entry.mtime_secs.min(latest));
        let entry = &Entry { mtime_secs, ..*entry };
        let parts = HeaderParts::of(entry)?;
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        name.extend_from_slice(entry.path);
        if entry.kind == EntryKind::Directory && !entry.path.ends_with(b"/") {
            name.push(b'/');
        }
        let mut records = std::mem::take(&mut self.records);
        records.clear();
        collect_records(entry, &parts, &name, &mut records);

        let outcome = if records.is_empty() { Ok(()) } else { self.write_extended_header(&name, &records) };
        let outcome = outcome.and_then(|()| self.write(entry.path, &parts.block(&name, entry)));
        self.name = name;
        self.records = records;
        outcome
    }

    fn write_extended_header(&mut self, name: &[u8], records: &[u8]) -> Result<(), LayerError> {
        let split = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let (dir, file) = name.split_at(split);
        let mut header_name: Vec<u8> = [dir, b"PaxHeaders.0/", file].concat();
        header_name.retain(|&byte| byte < 0x80);
        header_name.truncate(NAME.1);
        while header_name.last() == Some(&b'/') {
            header_name.pop();
        }

        let mut block = [0; BLOCK_BYTES];
        put_text(&mut block, NAME, &header_name);
        for field in [MODE, UID, GID, MTIME] {
            put_octal(&mut block, field, 0);
        }
        put_octal(&mut block, SIZE, records.len() as u64);
        block[TYPE_FLAG] = b'x';
        seal(&mut block);
        self.write(name, &block)?;
        self.write(name, records)?;
        self.pad(records.len() as u64)
    }

    fn copy_content(&mut self, entry: &Entry<'_>, size_bytes: u64, content: &mut dyn Read) -> Result<(), LayerError> {
        if size_bytes > 0 && self.copy_buffer.is_empty() {
            self.copy_buffer = vec![0; COPY_BUFFER_BYTES];
        }
        let mut buffer = std::mem::take(&mut self.copy_buffer);
        let outcome = self.copy_through(&mut buffer, entry, size_bytes, content);
        self.copy_buffer = buffer;
        outcome
    }

    fn copy_through(
        &mut self,
        buffer: &mut [u8],
        entry: &Entry<'_>,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        let mut copied_bytes = 0;
        while copied_bytes < size_bytes {
            let wanted = usize::try_from(size_bytes - copied_bytes).unwrap_or(usize::MAX).min(buffer.len());
            let n_read = match content.read(&mut buffer[..wanted]) {
                Ok(n_read) => n_read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerError::io("read", entry.path, error)),
            };
            if n_read == 0 {
                return Err(LayerError::ShortContent {
                    path: lossy(entry.path),
                    expected_bytes: size_bytes,
                    got_bytes: copied_bytes,
                });
            }
            self.write(entry.path, &buffer[..n_read])?;
            copied_bytes += n_read as u64;
        }
        Ok(())
    }

    /// Fills the last block of content.
    pub(super) fn pad(&mut self, content_bytes: u64) -> Result<(), LayerError> {
        let used = (content_bytes % BLOCK_BYTES as u64) as usize;
        if used == 0 { Ok(()) } else { self.write(b"", &ZEROS[..BLOCK_BYTES - used]) }
    }

    fn write(&mut self, path: &[u8], bytes: &[u8]) -> Result<(), LayerError> {
        self.inner.write_all(bytes).map_err(|error| LayerError::io("write the layer tar at", path, error))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}

/// The fields of a block that depend on the kind of the entry.
struct HeaderParts<'a> {
    type_flag: u8,
    link_name: &'a [u8],
    size_bytes: u64,
    device: (u32, u32),
}

impl<'a> HeaderParts<'a> {
    fn of(entry: &Entry<'a>) -> Result<Self, LayerError> {
        let (type_flag, link_name, device): (u8, &[u8], _) = match entry.kind {
            EntryKind::Regular { .. } => (b'0', b"", (0, 0)),
            EntryKind::Hardlink { target } => (b'1', target, (0, 0)),
            EntryKind::Symlink { target } => (b'2', target, (0, 0)),
            EntryKind::Char { major, minor } => (b'3', b"", (major, minor)),
            EntryKind::Block { major, minor } => (b'4', b"", (major, minor)),
            EntryKind::Directory => (b'5', b"", (0, 0)),
            EntryKind::Fifo => (b'6', b"", (0, 0)),
        };
        let unwritable = |reason| LayerError::Unwritable { path: lossy(entry.path), reason };
        if entry.path.contains(&0) || link_name.contains(&0) {
            return Err(unwritable("its name or link target holds a NUL byte"));
        }
        if entry.path.is_empty() {
            return Err(unwritable("it has no name"));
        }
        if !fits_octal(DEV_MAJOR, device.0.into()) || !fits_octal(DEV_MINOR, device.1.into()) {
            return Err(unwritable("its device number is above 2097151"));
        }
        if entry.xattrs.iter().any(|xattr| xattr.name.iter().any(|byte| matches!(byte, 0 | b'='))) {
            return Err(unwritable("an extended attribute has `=` or a NUL byte in its name"));
        }
        Ok(Self { type_flag, link_name, size_bytes: entry.content_bytes(), device })
    }

    /// The ustar block; whatever does not fit is shortened or zero here and complete in the extended header.
    fn block(&self, name: &[u8], entry: &Entry<'_>) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        put_name(&mut block, NAME, name);
        put_octal(&mut block, MODE, (entry.mode & 0o7777).into());
        put_octal(&mut block, UID, entry.uid.into());
        put_octal(&mut block, GID, entry.gid.into());
        put_octal(&mut block, SIZE, self.size_bytes);
        put_octal(&mut block, MTIME, u64::try_from(entry.mtime_secs).unwrap_or(0));
        block[TYPE_FLAG] = self.type_flag;
        put_name(&mut block, LINK_NAME, self.link_name);
        put_octal(&mut block, DEV_MAJOR, self.device.0.into());
        put_octal(&mut block, DEV_MINOR, self.device.1.into());
        seal(&mut block);
        block
    }
}

/// Gathers the extended header's records in byte order of their keys; none for an entry that fits its block.
fn collect_records(entry: &Entry<'_>, parts: &HeaderParts<'_>, name: &[u8], records: &mut Vec<u8>) {
    if !entry.xattrs.is_empty() {
        let mut sorted: Vec<_> = entry.xattrs.iter().collect();
        sorted.sort();
        for xattr in sorted {
            let key = [b"SCHILY.xattr.", xattr.name.as_slice()].concat();
            push_record(records, &key, &xattr.value);
        }
    }
    push_number(records, b"gid", GID, entry.gid.into());
    push_text(records, b"linkpath", LINK_NAME, parts.link_name);
    match u64::try_from(entry.mtime_secs) {
        Ok(secs) => push_number(records, b"mtime", MTIME, secs),
        Err(_) => push_record(records, b"mtime", entry.mtime_secs.to_string().as_bytes()),
    }
    push_text(records, b"path", NAME, name);
    push_number(records, b"size", SIZE, parts.size_bytes);
    push_number(records, b"uid", UID, entry.uid.into());
}

fn push_text(records: &mut Vec<u8>, key: &[u8], field: Field, text: &[u8]) {
    if text.len() > field.1 || !text.is_ascii() {
        push_record(records, key, text);
    }
}

fn push_number(records: &mut Vec<u8>, key: &[u8], field: Field, number: u64) {
    if !fits_octal(field, number) {
        push_record(records, key, number.to_string().as_bytes());
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A space, an equals sign and a newline.
    let without_length = key.len() + value.len() + 3;
    let mut length = without_length + n_digits(without_length);
    if n_digits(length) > n_digits(without_length) {
        length = without_length + n_digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn n_digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Whether `number` can be written in octal and leave room for the NUL.
fn fits_octal(field: Field, number: u64) -> bool {
    number < 1 << ((field.1 - 1) * 3)
}

/// Zero-padded octal, closed by a NUL; a number that does not fit becomes 0 (its record has it).
fn put_octal(block: &mut [u8; BLOCK_BYTES], field: Field, number: u64) {
    let mut rest = if fits_octal(field, number) { number } else { 0 };
    for place in block[field.0..field.0 + field.1 - 1].iter_mut().rev() {
        *place = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
}

/// The ASCII bytes of a name, cut to the field.
///
/// A cut that leaves a slash at the end loses it: old readers take any V7 name that ends in a slash for a directory.
fn put_name(block: &mut [u8; BLOCK_BYTES], field: Field, name: &[u8]) {
    if name.is_ascii() && name.len() <= field.1 {
        return put_text(block, field, name);
    }
    let ascii: Vec<u8> = name.iter().copied().filter(u8::is_ascii).collect();
    let mut cut = ascii.as_slice();
    if ascii.len() > field.1 {
        cut = &ascii[..field.1];
        while let Some(shorter) = cut.strip_suffix(b"/") {
            cut = shorter;
        }
    }
    put_text(block, field, cut);
}

fn put_text(block: &mut [u8; BLOCK_BYTES], field: Field, text: &[u8]) {
    block[field.0..field.0 + text.len()].copy_from_slice(text);
}

/// Adds magic, version and checksum.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    put_text(block, MAGIC, b"ustar\x0000");
    block[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    // Six digits, NUL, space: the last place keeps its blank.
    put_octal(block, Field(CHECKSUM.0, CHECKSUM.1 - 1), sum.into());
    block[CHECKSUM.0 + CHECKSUM.1 - 2] = 0;
}

#[cfg(test)]
mod tests;
