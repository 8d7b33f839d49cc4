//! Compresses one piece of a layer on its own: gzip members or a zstd frame.
//!
//! A blob is the members or frames of its pieces in order, which every gzip or zstd reader takes for one stream.

use std::sync::Mutex;

use libdeflater::{CompressionLvl, Compressor as Deflater};
use zstd::zstd_safe::{CParameter, compress_bound, get_frame_content_size};

use super::noise::{MIN_PART_BYTES, Part, parts};

/// How the pieces of a blob are compressed. The level is part of the identity of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PieceCodec {
    /// One gzip member a piece, without name and time (`spec/engine.md` §1.9); several where parts of it would not become
    /// shorter, which are stored.
    Gzip {
        /// libdeflate's levels: 0 (stored) to 12.
        level: u8,
    },
    /// One zstd frame a piece, with content size and checksum.
    Zstd {
        /// 1 to 22.
        level: u8,
    },
}

/// A codec that cannot compress.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The codec has no such level.
    #[error("{codec} has no compression level {level}: expected {expected}")]
    Level {
        /// Which codec.
        codec: &'static str,
        /// What was asked for.
        level: u8,
        /// The range there is.
        expected: &'static str,
    },
    /// The library refused to work.
    #[error("{codec} failed to compress: {reason}")]
    Library {
        /// Which codec.
        codec: &'static str,
        /// In the library's words.
        reason: String,
    },
}

/// Compression contexts of one codec, reused from piece to piece and shared by threads.
pub(crate) struct Compressors {
    codec: PieceCodec,
    is_divided: bool,
    idle: Mutex<Vec<Context>>,
}

/// A compressor and the room for its worst case, which would otherwise be made and cleared for every piece.
struct Context {
    library: Library,
    scratch: Vec<u8>,
}

enum Library {
    Gzip {
        deflater: Deflater,
        /// For what does not become shorter: level 0.
        storer: Deflater,
    },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl PieceCodec {
    /// Checks the level.
    fn check(self) -> Result<(), CodecError> {
        let (codec, level, valid, expected) = match self {
            Self::Gzip { level } => ("gzip", level, level <= 12, "0 to 12"),
            Self::Zstd { level } => ("zstd", level, (1..=22).contains(&level), "1 to 22"),
        };
        if valid { Ok(()) } else { Err(CodecError::Level { codec, level, expected }) }
    }

    /// Whether `compressed` can be `raw` in this codec, judged by the lengths and checksums that the format carries.
    ///
    /// Cheap: nothing is decompressed. Keeps a damaged or mixed-up piece store from making wrong layers.
    pub fn is_plausible(self, compressed: &[u8], raw: &[u8]) -> bool {
        match self {
            Self::Gzip { .. } => {
                let Some((member, trailer)) = compressed.split_last_chunk::<8>() else { return false };
                let trailer = u64::from_le_bytes(*trailer);
                // Of the last member, which may hold the last part only.
                let (crc, len) = (trailer as u32, (trailer >> 32) as usize);
                let is_part = len == raw.len() || (MIN_PART_BYTES..raw.len()).contains(&len);
                let last = is_part.then(|| &raw[raw.len() - len..]);
                member.starts_with(&[0x1f, 0x8b, 8]) && last.is_some_and(|last| crc == libdeflater::crc32(last))
            }
            Self::Zstd { .. } => get_frame_content_size(compressed).is_ok_and(|len| len == Some(raw.len() as u64)),
        }
    }
}

impl Compressors {
    pub(crate) fn new(codec: PieceCodec) -> Result<Self, CodecError> {
        codec.check()?;
        Ok(Self { codec, is_divided: true, idle: Mutex::new(Vec::new()) })
    }

    /// For formats that count members: each piece becomes one, whatever is in it.
    pub(crate) fn undivided(codec: PieceCodec) -> Result<Self, CodecError> {
        Ok(Self { is_divided: false, ..Self::new(codec)? })
    }

    pub(crate) fn codec(&self) -> PieceCodec {
        self.codec
    }

    /// Compresses a whole piece. Deterministic: contexts carry nothing from piece to piece.
    pub(crate) fn compress(&self, raw: &[u8]) -> Result<Vec<u8>, CodecError> {
        let idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let mut context = match idle {
            Some(context) => context,
            None => Context::new(self.codec)?,
        };
        let compressed = context.compress(raw, self.is_divided)?;
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(context);
        Ok(compressed)
    }
}

impl Context {
    fn new(codec: PieceCodec) -> Result<Self, CodecError> {
        let library = match codec {
            PieceCodec::Gzip { level } => {
                let deflater = |level: u8| {
                    let valid = CompressionLvl::new(level.into());
                    let valid = valid.map_err(|_| CodecError::Level { codec: "gzip", level, expected: "0 to 12" });
                    valid.map(Deflater::new)
                };
                Library::Gzip { deflater: deflater(level)?, storer: deflater(0)? }
            }
            PieceCodec::Zstd { level } => {
                let mut context = zstd::bulk::Compressor::new(level.into()).map_err(zstd_error)?;
                context.set_parameter(CParameter::ChecksumFlag(true)).map_err(zstd_error)?;
                Library::Zstd(context)
            }
        };
        Ok(Self { library, scratch: Vec::new() })
    }

    /// Compresses a piece into a buffer of exactly its length: pieces wait for their turn, slack must not wait with them.
    fn compress(&mut self, raw: &[u8], is_divided: bool) -> Result<Vec<u8>, CodecError> {
        let mut n_written = 0;
        match &mut self.library {
            Library::Gzip { deflater, storer } => {
                let parts = if is_divided { parts(raw) } else { vec![Part { bytes: raw, is_noise: false }] };
                for part in parts {
                    let deflater = if part.is_noise { &mut *storer } else { &mut *deflater };
                    make_room(&mut self.scratch, n_written + deflater.gzip_compress_bound(part.bytes.len()));
                    n_written += deflater
                        .gzip_compress(part.bytes, &mut self.scratch[n_written..])
                        .map_err(|error| CodecError::Library { codec: "gzip", reason: error.to_string() })?;
                }
            }
            Library::Zstd(context) => {
                make_room(&mut self.scratch, compress_bound(raw.len()));
                n_written = context.compress_to_buffer(raw, &mut self.scratch[..]).map_err(zstd_error)?;
            }
        }
        Ok(self.scratch[..n_written].to_vec())
    }
}

fn make_room(scratch: &mut Vec<u8>, len: usize) {
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
}

fn zstd_error(error: std::io::Error) -> CodecError {
    CodecError::Library { codec: "zstd", reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const CODECS: [PieceCodec; 5] = [
        PieceCodec::Gzip { level: 0 },
        PieceCodec::Gzip { level: 4 },
        PieceCodec::Gzip { level: 9 },
        PieceCodec::Zstd { level: 1 },
        PieceCodec::Zstd { level: 3 },
    ];

    fn decompressed(codec: PieceCodec, blob: &[u8]) -> Vec<u8> {
        let mut raw = Vec::new();
        match codec {
            PieceCodec::Gzip { .. } => flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut raw),
            PieceCodec::Zstd { .. } => zstd::Decoder::new(blob).expect("a decoder").read_to_end(&mut raw),
        }
        .expect("valid stream");
        raw
    }

    #[test]
    fn concatenated_pieces_are_one_stream() {
        let pieces: [&[u8]; 4] = [b"hello hello hello ", b"", b"world", &[7; 100_000]];
        for codec in CODECS {
            let compressors = Compressors::new(codec).expect("valid level");
            let blob: Vec<u8> =
                pieces.iter().flat_map(|piece| compressors.compress(piece).expect("compresses")).collect();
            assert_eq!(decompressed(codec, &blob), pieces.concat(), "{codec:?}");
        }
    }

    #[test]
    fn what_cannot_become_shorter_is_stored_in_a_member_of_its_own() {
        let mut random = zstd::bulk::compress(&[7; 10], 3).expect("compresses");
        while random.len() < 1 << 20 {
            random.extend_from_slice(blake3::hash(&random[random.len().saturating_sub(64)..]).as_bytes());
        }
        let piece = [vec![b'a'; 200_000], random.clone(), vec![b'b'; 200_000]].concat();
        let gzip = PieceCodec::Gzip { level: 4 };
        let divided = Compressors::new(gzip).expect("level");
        let member = divided.compress(&piece).expect("compresses");
        assert_eq!(decompressed(gzip, &member), piece);
        let (mut first, mut n_members) = (flate2::bufread::GzDecoder::new(&member[..]), 1);
        loop {
            std::io::copy(&mut first, &mut std::io::sink()).expect("a member");
            let rest = first.into_inner();
            if rest.is_empty() {
                break;
            }
            (first, n_members) = (flate2::bufread::GzDecoder::new(rest), n_members + 1);
        }
        assert_eq!(n_members, 3);
        assert!(gzip.is_plausible(&member, &piece));
        assert!(!gzip.is_plausible(&member, &piece[..piece.len() - 1]));
        let lost = [&member[..member.len() - 8], &[0; 8]].concat();
        assert!(!gzip.is_plausible(&lost, &piece), "nothing is no part");
        let one = Compressors::undivided(gzip).expect("level").compress(&piece).expect("compresses");
        let mut first = Vec::new();
        flate2::read::GzDecoder::new(&one[..]).read_to_end(&mut first).expect("a member");
        assert_eq!(first, piece);
    }

    #[test]
    fn gzip_members_carry_no_name_and_no_time() {
        let member =
            Compressors::new(PieceCodec::Gzip { level: 6 }).expect("level").compress(b"x").expect("compresses");
        assert_eq!(member[..9], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_piece_that_is_not_the_one_wanted_is_noticed() {
        for codec in CODECS {
            let member = Compressors::new(codec).expect("level").compress(b"some bytes").expect("compresses");
            assert!(codec.is_plausible(&member, b"some bytes"), "{codec:?}");
            assert!(!codec.is_plausible(&member, b"other things"), "{codec:?}");
            assert!(!codec.is_plausible(b"", b"some bytes"), "{codec:?}");
        }
    }

    #[test]
    fn levels_out_of_range_are_refused() {
        for codec in [PieceCodec::Gzip { level: 13 }, PieceCodec::Zstd { level: 0 }, PieceCodec::Zstd { level: 23 }] {
            assert!(matches!(Compressors::new(codec), Err(CodecError::Level { .. })), "{codec:?}");
        }
    }
}
