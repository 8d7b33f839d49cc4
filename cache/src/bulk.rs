//! Long files, past the page cache.
//!
//! A layer is written once, by and large never read soon, and has to be on the disk when the image gets its name. Through
//! the page cache it would cost memory that others had put to use, a second copy, and all the waiting at the end. Short
//! files go the usual way, and so does every file where the file system has no other.

use std::fs::File;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// What is read or written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Memory, offsets and lengths are multiples of this: the largest block of common disks, and the page size of most machines.
const ALIGN_BYTES: usize = 4096;
/// Shorter files stay in memory until they end.
const SHORT_BYTES: usize = 64 << 10;

/// A new file that is written from front to end.
///
/// Its end may be missing until [`BulkFile::finish`] has returned.
#[derive(Debug)]
pub struct BulkFile {
    file: File,
    /// What is not yet written.
    pending: Chunk,
    /// Bytes that are in the file.
    n_written: u64,
    is_direct: bool,
}

/// A file that is read from front to end.
#[derive(Debug)]
pub struct BulkReader {
    file: File,
    chunk: Chunk,
    /// What has been handed out of the chunk.
    n_taken: usize,
}

/// Bytes at an address that suits disks.
#[derive(Debug, Default)]
struct Chunk {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Room for a whole chunk; what is there stays.
    fn make_room(&mut self) {
        if self.memory.len() >= CHUNK_BYTES {
            return;
        }
        let mut memory = vec![0; CHUNK_BYTES + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        memory[start..start + self.len].copy_from_slice(self.bytes());
        (self.memory, self.start) = (memory, start);
    }

    /// Takes as much as there is room for.
    fn take(&mut self, bytes: &[u8]) -> usize {
        if self.memory.len() < CHUNK_BYTES {
            if self.len + bytes.len() <= SHORT_BYTES {
                self.memory.truncate(self.len);
                self.memory.extend_from_slice(bytes);
                self.len += bytes.len();
                return bytes.len();
            }
            self.make_room();
        }
        let n_bytes = bytes.len().min(CHUNK_BYTES - self.len);
        let end = self.start + self.len;
        self.memory[end..end + n_bytes].copy_from_slice(&bytes[..n_bytes]);
        self.len += n_bytes;
        n_bytes
    }
}

impl BulkFile {
    /// Writes to `file`, which is empty and at its beginning.
    pub fn new(file: File) -> Self {
        Self { file, pending: Chunk::default(), n_written: 0, is_direct: false }
    }

    /// How many of the first bytes can be read from the file by now.
    pub(crate) fn n_written(&self) -> u64 {
        self.n_written
    }

    /// Writes what is left and returns the file.
    ///
    /// # Errors
    /// As writing.
    pub fn finish(mut self) -> io::Result<File> {
        self.finish_in_place()?;
        Ok(self.file)
    }

    /// As [`BulkFile::finish`]; the file stays here and takes nothing more.
    pub(crate) fn finish_in_place(&mut self) -> io::Result<&File> {
        if self.is_direct {
            // The end is no multiple of anything.
            self.is_direct = set_direct(&self.file, false).is_err();
        }
        self.file.write_all(self.pending.bytes())?;
        self.pending.len = 0;
        Ok(&self.file)
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        if !self.is_direct && self.pending.bytes().as_ptr().align_offset(ALIGN_BYTES) == 0 {
            self.is_direct = set_direct(&self.file, true).is_ok();
        }
        match self.file.write_all(self.pending.bytes()) {
            // A file system that accepts the flag need not do what it says.
            Err(error) if self.is_direct && error.kind() == ErrorKind::InvalidInput => {
                set_direct(&self.file, false)?;
                self.is_direct = false;
                self.file.write_all(self.pending.bytes())?;
            }
            written => written?,
        }
        self.n_written += self.pending.len as u64;
        self.pending.len = 0;
        Ok(())
    }
}

impl Write for BulkFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_bytes = self.pending.take(bytes);
        if self.pending.len == CHUNK_BYTES {
            self.write_chunk()?;
        }
        Ok(n_bytes)
    }

    /// Does nothing: see [`BulkFile::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BulkReader {
    /// Reads `file` from its beginning, where it is now.
    pub fn new(file: File) -> Self {
        // Where this is refused, it is read like any other.
        let is_long = file.metadata().is_ok_and(|metadata| metadata.len() >= CHUNK_BYTES as u64);
        if is_long {
            let _ = set_direct(&file, true);
        }
        Self { file, chunk: Chunk::default(), n_taken: 0 }
    }

    /// Reads `file`, which is being written, from its beginning. Whoever reads asks for no more than a [`BulkFile`] says is there.
    pub fn of_growing(file: File) -> Self {
        let _ = set_direct(&file, true);
        Self { file, chunk: Chunk::default(), n_taken: 0 }
    }

    /// What has been read and not been taken.
    pub fn buffered(&self) -> &[u8] {
        &self.chunk.bytes()[self.n_taken..]
    }

    fn fill(&mut self) -> io::Result<()> {
        self.chunk.make_room();
        let (start, end) = (self.chunk.start, self.chunk.start + CHUNK_BYTES);
        (self.chunk.len, self.n_taken) = (0, 0);
        self.chunk.len = loop {
            match self.file.read(&mut self.chunk.memory[start..end]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::InvalidInput => set_direct(&self.file, false)?,
                read => break read?,
            }
        };
        if !self.chunk.len.is_multiple_of(ALIGN_BYTES) {
            // The end, or the middle of nothing: what follows has no suitable place.
            set_direct(&self.file, false)?;
        }
        Ok(())
    }
}

impl Read for BulkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.fill_buf()?;
        let n_bytes = left.len().min(into.len());
        into[..n_bytes].copy_from_slice(&left[..n_bytes]);
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}

impl BufRead for BulkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.n_taken == self.chunk.len {
            self.fill()?;
        }
        Ok(self.buffered())
    }

    fn consume(&mut self, n_bytes: usize) {
        self.n_taken = (self.n_taken + n_bytes).min(self.chunk.len);
    }
}

/// Reads a part of a long file that nobody is going to need again soon, past the page cache where that can be.
///
/// # Errors
/// Those of reading; the file ends before the part does.
pub fn read_part(file: &File, first_byte: u64, len: usize) -> io::Result<Vec<u8>> {
    let skipped = (first_byte % ALIGN_BYTES as u64) as usize;
    if len < SHORT_BYTES || set_direct(file, true).is_err() {
        let mut bytes = vec![0; len];
        return file.read_exact_at(&mut bytes, first_byte).map(|()| bytes);
    }
    let mut memory = vec![0; (skipped + len).next_multiple_of(ALIGN_BYTES) + ALIGN_BYTES];
    let start = memory.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
    let end = memory.len() - ALIGN_BYTES + start;
    let (wanted, mut n_read) = (skipped + len, 0);
    while n_read < wanted {
        let at = first_byte - skipped as u64 + n_read as u64;
        match file.read_at(&mut memory[start + n_read..end], at) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n_bytes) => n_read += n_bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The file system wants another alignment, or has given less than was asked for.
            Err(error) if error.kind() == ErrorKind::InvalidInput => set_direct(file, false)?,
            Err(error) => return Err(error),
        }
    }
    memory.truncate(start + wanted);
    memory.drain(..start + skipped);
    Ok(memory)
}

/// Lets reads and writes pass by the page cache, or not.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    let wanted = if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    if wanted != flags {
        fcntl_setfl(file, wanted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 31 % 251) as u8).collect()
    }

    #[test]
    fn what_is_written_in_any_pieces_is_read_in_any_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [
            0,
            1,
            SHORT_BYTES,
            SHORT_BYTES + 1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
            3 * CHUNK_BYTES + ALIGN_BYTES + 7,
        ];
        for len in lengths {
            for piece in [1 + len / 3, 100_000, 4096, 5 * CHUNK_BYTES] {
                let path = dir.path().join("file");
                let bytes = pattern(len);
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
                let mut bulk = BulkFile::new(file);
                bytes.chunks(piece).for_each(|piece| bulk.write_all(piece).unwrap());
                bulk.finish().unwrap();
                assert_eq!(std::fs::read(&path).unwrap().len(), len, "{piece}");

                let mut reader = BulkReader::new(File::open(&path).unwrap());
                let (mut read, mut buffer) = (Vec::new(), vec![0; piece]);
                loop {
                    match reader.read(&mut buffer).unwrap() {
                        0 => break,
                        n => read.extend_from_slice(&buffer[..n]),
                    }
                }
                assert!(read == bytes, "{len} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn parts_are_read_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = (dir.path().join("file"), pattern(3 * CHUNK_BYTES + 7));
        std::fs::write(&path, &bytes).unwrap();
        for first_byte in [0, 1, ALIGN_BYTES, CHUNK_BYTES + 5] {
            for len in [0, 1, SHORT_BYTES, SHORT_BYTES + ALIGN_BYTES, CHUNK_BYTES + 1, bytes.len() - first_byte] {
                let part = read_part(&File::open(&path).unwrap(), first_byte as u64, len).unwrap();
                assert!(part == bytes[first_byte..first_byte + len], "{len} bytes from {first_byte} on");
            }
        }
        let error = read_part(&File::open(&path).unwrap(), 1 << 20, bytes.len()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_finished_file_is_an_ordinary_one() {
        let mut file = BulkFile::new(tempfile::tempfile().unwrap());
        file.write_all(&pattern(CHUNK_BYTES + 5)).unwrap();
        let mut file = file.finish().unwrap();
        file.write_all(b"more").unwrap();
        file.seek(SeekFrom::Start(CHUNK_BYTES as u64 + 3)).unwrap();
        let mut end = Vec::new();
        file.read_to_end(&mut end).unwrap();
        assert!(end.ends_with(b"more") && end.len() == 6);
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
    }
}
