//! Finds out how a stream is compressed and decompresses it in bounded memory.

use std::io::{self, BufReader, Cursor, Read};

use super::tar_reader::{LayerReader, ReadLimits};

/// Input is read in steps of this size.
const INPUT_BUFFER_BYTES: usize = 128 * 1024;
/// Longest magic number.
const MAGIC_BYTES: usize = 6;
/// Largest xz dictionary that is accepted, KiB; `xz -9` needs 64 MiB. A header may ask for 4 GiB.
const XZ_MEMORY_LIMIT_KIB: u32 = 256 * 1024;
/// Largest zstd window that is accepted, as a power of two: 128 MiB, what zstd itself accepts without being told.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip: any number of members.
    Gzip,
    /// zstd: any number of frames, skippable ones included.
    Zstd,
    /// bzip2: any number of streams.
    Bzip2,
    /// xz: any number of streams.
    Xz,
}

impl Compression {
    /// Judges by the first bytes of a stream; six are enough.
    ///
    /// Spec: `spec/engine.md` §1.9, `spec/dockerfile.md` §2.23.
    pub fn of_magic(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// Decompresses `reader`, whatever it is compressed with; plain streams pass through.
///
/// # Errors
/// Only reading the first bytes can fail here; a damaged stream fails when it is read.
pub fn decompress<'a, R: Read + Send + 'a>(mut reader: R) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut start = [0; MAGIC_BYTES];
    let n_start = read_up_to(&mut reader, &mut start)?;
    let compression = Compression::of_magic(&start[..n_start]);
    let whole = Cursor::new(start).take(n_start as u64).chain(reader);
    let raw: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(whole))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered(whole))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(whole))),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(buffered(whole), true, XZ_MEMORY_LIMIT_KIB)),
    };
    Ok((compression, raw))
}

/// Says whether `reader` is a tar, and how compressed: its decompressed beginning must be a readable tar header.
///
/// `None` for everything else, an archive without entries included, as Go's reader has it. Reads no more than the first
/// entry; the caller rewinds.
///
/// Spec: `spec/dockerfile.md` §2.23.
pub fn sniff_archive<R: Read + Send>(reader: R) -> Option<Compression> {
    let (compression, raw) = decompress(reader).ok()?;
    let mut archive = LayerReader::new(raw, ReadLimits::default());
    let first = archive.next_member().ok()?;
    first.map(|_| compression)
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(INPUT_BUFFER_BYTES, reader)
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n_read = 0;
    while n_read < buffer.len() {
        match reader.read(&mut buffer[n_read..]) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n_read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layer::{Entry, EntryKind, TarWriter};

    fn gzip(raw: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(raw).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zstd_frame(raw: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(raw, 1).expect("compresses")
    }

    fn bzip2(raw: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(raw).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn xz(raw: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("options");
        encoder.write_all(raw).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn tar() -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        writer.append_bytes(&Entry::new(b"file", EntryKind::Regular { size_bytes: 5 }), b"hello").expect("in memory");
        writer.finish().expect("in memory")
    }

    fn skippable(len: u8) -> Vec<u8> {
        let mut frame = vec![0x5a, 0x2a, 0x4d, 0x18, len, 0, 0, 0];
        frame.resize(8 + usize::from(len), 0xee);
        frame
    }

    #[test]
    fn streams_of_several_parts_come_out_whole() {
        let (first, second) = (b"first part ".repeat(1000), b"second".to_vec());
        let both = [first.clone(), second.clone()].concat();
        let cases = [
            (Compression::None, both.clone()),
            (Compression::Gzip, [gzip(&first), gzip(&second)].concat()),
            (Compression::Zstd, [zstd_frame(&first), skippable(9), zstd_frame(&second)].concat()),
            (Compression::Zstd, [skippable(3), zstd_frame(&both)].concat()),
            (Compression::Bzip2, [bzip2(&first), bzip2(&second)].concat()),
            (Compression::Xz, [xz(&first), xz(&second)].concat()),
        ];
        for (expected, stream) in cases {
            let (compression, mut raw) = decompress(stream.as_slice()).expect("opens");
            assert_eq!(compression, expected);
            let mut bytes = Vec::new();
            raw.read_to_end(&mut bytes).expect("valid");
            assert_eq!(bytes, both, "{expected:?}");
        }
    }

    #[test]
    fn cut_off_streams_fail() {
        for stream in [gzip(b"some text"), zstd_frame(b"some text"), bzip2(b"some text"), xz(b"some text")] {
            let (compression, mut raw) = decompress(&stream[..stream.len() - 3]).expect("opens");
            assert!(raw.read_to_end(&mut Vec::new()).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn archives_are_known_by_content() {
        let text = b"just some text ".repeat(100);
        let cases: [(&str, Vec<u8>, Option<Compression>); 11] = [
            ("tar", tar(), Some(Compression::None)),
            ("tar.gz", gzip(&tar()), Some(Compression::Gzip)),
            ("tar.zst", zstd_frame(&tar()), Some(Compression::Zstd)),
            ("skippable", [skippable(4), zstd_frame(&tar())].concat(), Some(Compression::Zstd)),
            ("tar.bz2", bzip2(&tar()), Some(Compression::Bzip2)),
            ("tar.xz", xz(&tar()), Some(Compression::Xz)),
            ("text", text.clone(), None),
            ("text.gz", gzip(&text), None),
            ("nothing", Vec::new(), None),
            ("zeros", vec![0; 10_240], None),
            ("broken gz", gzip(&tar())[..20].to_vec(), None),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(sniff_archive(bytes.as_slice()), expected, "{name}");
        }
    }
}
