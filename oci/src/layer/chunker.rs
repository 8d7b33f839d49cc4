//! Where a raw tar is cut into pieces: format `pieces-v2` (`docs/formats/pieces-v2.md`).
//!
//! A rolling gear hash over the last 64 bytes decides, so that a cut depends on the bytes around it and not on its
//! offset: after a change in the middle of a layer, the cuts behind it fall where they fell before. The constants are part
//! of the identity of every packed layer; changing one means a new version.

/// No piece is shorter, except the last one.
pub const MIN_PIECE_BYTES: usize = 256 * 1024;
/// Up to here cuts are rare, from here on they are frequent; the average piece is a little longer.
pub const NORMAL_PIECE_BYTES: usize = 1024 * 1024;
/// No piece is longer.
pub const MAX_PIECE_BYTES: usize = 4 * 1024 * 1024;

/// Bits of the hash that must be zero for a cut before [`NORMAL_PIECE_BYTES`]: one byte in 4 Mi qualifies.
///
/// The top bits are used because only they depend on all of the last 64 bytes.
const RARE_MASK: u64 = !0 << (64 - 22);
/// Bits of the hash that must be zero for a cut from [`NORMAL_PIECE_BYTES`] on: one byte in 256 Ki qualifies.
const FREQUENT_MASK: u64 = !0 << (64 - 18);
/// Bytes that influence the hash: older ones have been shifted out.
const WINDOW_BYTES: usize = 64;

/// A random number for every byte value.
const GEAR: [u64; 256] = gear_table();

/// Finds the cuts of a stream that comes in slices of any length.
#[derive(Clone, Debug, Default)]
pub struct Chunker {
    hash: u64,
    /// Bytes of the current piece so far.
    len: usize,
}

impl Chunker {
    /// A chunker at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes of the current piece: `Some(n)` when the piece ends after the first `n` of `bytes` (at least 1), `None`
    /// when all of `bytes` belong to it and it goes on.
    ///
    /// After a cut the next call must begin with the byte behind it.
    pub fn cut(&mut self, bytes: &[u8]) -> Option<usize> {
        let start = self.len;
        let mut pos = self.skip(bytes);
        for (limit, mask) in [(NORMAL_PIECE_BYTES, RARE_MASK), (MAX_PIECE_BYTES, FREQUENT_MASK)] {
            let end = limit.saturating_sub(start).min(bytes.len());
            if pos >= end {
                continue;
            }
            if let Some(n) = self.scan(&bytes[pos..end], mask) {
                return Some(self.finish_piece(pos + n));
            }
            pos = end;
        }
        self.len = start + bytes.len();
        let n_to_max = MAX_PIECE_BYTES - start;
        (bytes.len() >= n_to_max).then(|| self.finish_piece(n_to_max))
    }

    /// Passes over the bytes that cannot influence a cut: all but the last window before the minimum.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let first_hashed = (MIN_PIECE_BYTES - WINDOW_BYTES).saturating_sub(self.len).min(bytes.len());
        let first_cut = MIN_PIECE_BYTES.saturating_sub(self.len).min(bytes.len());
        for &byte in &bytes[first_hashed..first_cut] {
            self.hash = (self.hash << 1).wrapping_add(GEAR[usize::from(byte)]);
        }
        first_cut
    }

    /// The number of bytes up to and including the first one behind which a cut falls.
    ///
    /// Two bytes a step: the additions that do not depend on the hash run ahead of the chain of those that do.
    fn scan(&mut self, bytes: &[u8], mask: u64) -> Option<usize> {
        let mut hash = self.hash;
        let mut pairs = bytes.chunks_exact(2);
        let mut n_before = 0;
        for pair in &mut pairs {
            let (first, second) = (GEAR[usize::from(pair[0])], GEAR[usize::from(pair[1])]);
            let middle = (hash << 1).wrapping_add(first);
            hash = (hash << 2).wrapping_add((first << 1).wrapping_add(second));
            if middle & mask == 0 {
                return Some(n_before + 1);
            }
            if hash & mask == 0 {
                return Some(n_before + 2);
            }
            n_before += 2;
        }
        if let &[last] = pairs.remainder() {
            hash = (hash << 1).wrapping_add(GEAR[usize::from(last)]);
            if hash & mask == 0 {
                return Some(n_before + 1);
            }
        }
        self.hash = hash;
        None
    }

    fn finish_piece(&mut self, n: usize) -> usize {
        *self = Self::new();
        n
    }
}

/// The table of the format: successive outputs of SplitMix64 started at 0.
const fn gear_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state: u64 = 0;
    let mut idx = 0;
    while idx < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[idx] = mixed ^ (mixed >> 31);
        idx += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random and are the same on every run.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(len)
        .collect()
    }

    fn pieces(bytes: &[u8], step: usize) -> Vec<usize> {
        let (mut chunker, mut lengths, mut len) = (Chunker::new(), Vec::new(), 0);
        for mut slice in bytes.chunks(step) {
            while let Some(n) = chunker.cut(slice) {
                lengths.push(len + n);
                len = 0;
                slice = &slice[n..];
            }
            len += slice.len();
        }
        lengths.push(len);
        lengths
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_stream_comes() {
        let bytes = noise(6 << 20, 42);
        let whole = pieces(&bytes, bytes.len());
        for step in [511, 4096, 65_537, 300_000] {
            assert_eq!(pieces(&bytes, step), whole, "slices of {step}");
        }
        assert_eq!(pieces(&bytes[..2 << 20], 1), pieces(&bytes[..2 << 20], 2 << 20));
    }

    #[test]
    fn lengths_keep_their_bounds_and_average() {
        let lengths = pieces(&noise(64 << 20, 7), 1 << 20);
        let (_, full) = lengths.split_last().expect("at least one");
        assert!(full.iter().all(|len| (MIN_PIECE_BYTES..=MAX_PIECE_BYTES).contains(len)), "{full:?}");
        let average = full.iter().sum::<usize>() / full.len();
        assert!((800 << 10..1500 << 10).contains(&average), "average {average}");
    }

    #[test]
    fn uniform_bytes_are_cut_at_the_maximum() {
        assert_eq!(pieces(&vec![0; 9 << 20], 1 << 20), [4 << 20, 4 << 20, 1 << 20]);
    }

    #[test]
    fn a_change_moves_only_the_cuts_around_it() {
        let mut bytes = noise(16 << 20, 3);
        let ends = |lengths: Vec<usize>, shift: usize| -> Vec<usize> {
            lengths
                .iter()
                .scan(0, |end, len| {
                    *end += len;
                    Some(*end)
                })
                .map(|end| end.wrapping_sub(shift))
                .collect()
        };
        let before = ends(pieces(&bytes, 1 << 20), 0);
        bytes.splice(5 << 20..5 << 20, *b"inserted");
        let after = ends(pieces(&bytes, 1 << 20), 8);
        let kept = before.iter().filter(|end| **end > 8 << 20 && after.contains(end)).count();
        assert!(kept >= 5, "{before:?} {after:?}");
    }

    #[test]
    fn the_format_has_not_changed() {
        // Golden: a change here is a new version of the format.
        assert_eq!(GEAR[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(pieces(&noise(4 << 20, 1), 4 << 20), [1_621_932, 1_114_783, 538_806, 918_783]);
    }
}
