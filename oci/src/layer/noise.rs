//! Which bytes of a piece deflate could not make shorter: what is compressed already, encrypted, or random.
//!
//! Looking for repeats where there are none is the slowest thing that deflate does; telling that there are none is ten
//! times as fast. The answer depends on the piece's bytes alone and is part of format `pieces-v2`
//! (`docs/formats/pieces-v2.md`).

/// What is judged at once. Also how far back deflate sees.
const SPAN_BYTES: usize = 32 << 10;
/// No part of a piece that is divided is shorter.
pub(super) const MIN_PART_BYTES: usize = SPAN_BYTES;
/// Fewer noisy spans in a row stay with their neighbours, who would lose sight of what is before.
const MIN_NOISE_SPANS: usize = 4;

/// Of a span, every so many bytes ...
const SAMPLE_EVERY_BYTES: usize = 512;
/// ... this many are looked at first. Hardly anything that can be compressed gets any further.
const SAMPLE_BYTES: usize = 64;

/// Byte values may meet by so much more than they would by chance, a part of that. What is below has more than 7.93 bits of
/// entropy in a byte: its best Huffman code saves less than a hundredth.
const EXCESS_DIVISOR: u64 = 20;

/// Of so many places, one that repeats the place before is worth compressing.
const PLACES_PER_REPEAT: u32 = 64;
/// With fewer places in a span, nothing can be told.
const MIN_PLACES: u32 = 32;
/// Log2 of the number of places that are remembered.
const TABLE_BITS: u32 = 12;

/// A part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether compressing it is a waste.
    pub(super) is_noise: bool,
}

/// Divides a piece, in order. A piece without noise, or of nothing else, is one part, and so is an empty one; no part is
/// shorter than a span unless the piece is.
pub(super) fn parts(raw: &[u8]) -> Vec<Part<'_>> {
    // The last span takes what is left.
    let n_spans = (raw.len() / SPAN_BYTES).max(1);
    let span = |number: usize| {
        let end = if number + 1 == n_spans { raw.len() } else { (number + 1) * SPAN_BYTES };
        number * SPAN_BYTES..end
    };
    let mut repeats = Repeats::default();
    let is_noise: Vec<bool> = (0..n_spans)
        .map(|number| n_spans >= MIN_NOISE_SPANS && is_spread(&raw[span(number)]) && !repeats.are_in(raw, span(number)))
        .collect();
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut first = 0;
    for run in is_noise.chunk_by(|a, b| a == b) {
        let bytes = span(first).start..span(first + run.len() - 1).end;
        first += run.len();
        let is_noise = run[0] && run.len() >= MIN_NOISE_SPANS;
        match parts.last_mut() {
            Some(last) if last.is_noise == is_noise => {
                let start = bytes.start - last.bytes.len();
                last.bytes = &raw[start..bytes.end];
            }
            _ => parts.push(Part { bytes: &raw[bytes], is_noise }),
        }
    }
    parts
}

/// Whether all byte values are about equally frequent.
fn is_spread(span: &[u8]) -> bool {
    let sample = || span.chunks(SAMPLE_EVERY_BYTES).flat_map(|chunk| &chunk[..chunk.len().min(SAMPLE_BYTES)]);
    meets_by_chance(sample()) && meets_by_chance(span)
}

/// Whether two of the bytes are equal hardly more often than if all values were equally probable.
fn meets_by_chance<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> bool {
    let mut counts = [[0_u32; 256]; 2];
    for (number, &byte) in bytes.into_iter().enumerate() {
        // Two tables: a count need not wait for the one before it.
        counts[number % 2][usize::from(byte)] += 1;
    }
    let counts = counts[0].iter().zip(&counts[1]).map(|(a, b)| u64::from(a + b));
    let (n_bytes, n_meetings) =
        counts.fold((0, 0), |(n, met), count| (n + count, met + count * count.saturating_sub(1)));
    let by_chance = n_bytes * n_bytes.saturating_sub(1) / 256;
    n_meetings <= by_chance + by_chance / EXCESS_DIVISOR
}

/// Places of a piece with the same byte, which is as good as chance, by the eight bytes that begin there.
#[derive(Default)]
struct Repeats {
    /// The byte: the first one of the first span.
    mark: Option<u8>,
    /// The last place with such bytes, plus one.
    places: Vec<u32>,
}

impl Repeats {
    /// Whether a span of `raw` repeats what is in it or in those before it that were looked at, or nobody can tell.
    fn are_in(&mut self, raw: &[u8], span: std::ops::Range<usize>) -> bool {
        /// 2^64 divided by the golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mark = *self.mark.get_or_insert(raw[span.start]);
        self.places.resize(1 << TABLE_BITS, 0);
        let (mut n_places, mut n_repeats) = (0, 0);
        for offset in memchr::memchr_iter(mark, &raw[span.start..span.end - 7]) {
            let place = span.start + offset;
            let bytes = word(&raw[place..]);
            let slot = &mut self.places[(bytes.wrapping_mul(SPREAD) >> (64 - TABLE_BITS)) as usize];
            let before = (*slot as usize).checked_sub(1);
            n_places += 1;
            n_repeats += u32::from(before.is_some_and(|before| word(&raw[before..]) == bytes));
            *slot = (place + 1) as u32;
        }
        n_places < MIN_PLACES || n_repeats * PLACES_PER_REPEAT > n_places
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend((word ^ (word >> 31)).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn text(len: usize) -> Vec<u8> {
        (0..)
            .flat_map(|line: u64| format!("line {line} of a log, {}\n", line * 7919 % 1000).into_bytes())
            .take(len)
            .collect()
    }

    fn shape(raw: &[u8]) -> Vec<(usize, bool)> {
        let parts = parts(raw);
        assert_eq!(parts.iter().flat_map(|part| part.bytes).copied().collect::<Vec<u8>>(), raw, "nothing is lost");
        parts.iter().map(|part| (part.bytes.len(), part.is_noise)).collect()
    }

    #[test]
    fn noise_is_told_from_text_to_the_span() {
        assert_eq!(shape(&[]), [(0, false)]);
        assert_eq!(shape(&noise(1, SPAN_BYTES)), [(SPAN_BYTES, false)], "too short to matter");
        assert_eq!(shape(&text(1 << 20)), [(1 << 20, false)]);
        assert_eq!(shape(&noise(1, (1 << 20) + 5)), [((1 << 20) + 5, true)]);
        let mixed = [text(100_000), noise(2, 500_000), text(100_000)].concat();
        let found = shape(&mixed);
        assert!(matches!(found[..], [(98_304..=131_072, false), (430_000..=500_000, true), (_, false)]), "{found:?}");
    }

    #[test]
    fn a_short_stretch_of_noise_stays_with_its_neighbours() {
        let mixed = [text(100_000), noise(3, 3 * SPAN_BYTES), text(100_000)].concat();
        assert_eq!(shape(&mixed).len(), 1);
    }

    #[test]
    fn what_deflate_can_shorten_is_no_noise() {
        let random = noise(4, 1 << 20);
        let hex: Vec<u8> = random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
        let seven_bits: Vec<u8> = random.iter().map(|byte| byte & 0x7f).collect();
        // Random bytes, each stretch of them twice.
        let twice: Vec<u8> = random.chunks(5_000).flat_map(|chunk| [chunk, chunk].concat()).collect();
        // One in ten bytes is nothing.
        let sparse: Vec<u8> =
            random.iter().enumerate().map(|(number, byte)| if number % 10 == 0 { 0 } else { *byte }).collect();
        // Floating point numbers of one magnitude.
        let floats: Vec<u8> =
            random.iter().flat_map(|byte| (1.0 + f32::from(*byte) / 300.0 + 1e-4).to_le_bytes()).collect();
        for (name, raw) in
            [("hex", hex), ("7 bits", seven_bits), ("twice", twice), ("sparse", sparse), ("floats", floats)]
        {
            assert_eq!(shape(&raw).iter().filter(|(_, is_noise)| *is_noise).count(), 0, "{name}");
        }
    }

    #[test]
    fn what_is_compressed_already_is_noise() {
        let mut deflater = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let words: Vec<u8> = noise(5, 1 << 20).iter().flat_map(|byte| format!("{byte} ").into_bytes()).collect();
        let mut compressed = vec![0; deflater.gzip_compress_bound(words.len())];
        let len = deflater.gzip_compress(&words, &mut compressed).unwrap();
        let found = shape(&compressed[..len]);
        assert!(found.iter().all(|(_, is_noise)| *is_noise), "{found:?}");
    }
}
