//! What the fuzz targets share: how an input is cut, and how one is blown up to find what takes more than linear time.
#![forbid(unsafe_code)]

use std::time::Duration;

use parser::LineRange;

/// Blown-up inputs have about this size: what a large Dockerfile has.
const STRETCHED_BYTES: usize = 60_000;

/// All that a target does with an input of that size (a dozen expansions, for instance) takes less, in an optimised build
/// that counts coverage, on a busy machine.
const LIMIT: Duration = Duration::from_secs(5);

/// One in so many inputs is blown up.
const STRETCH_ONE_IN: u64 = 512;

/// The parts of an input, which a NUL byte separates. Bytes that are not UTF-8 become U+FFFD. The last part has the rest.
/// Parts that the input lacks are empty.
pub fn parts<const N: usize>(data: &[u8]) -> [String; N] {
    let mut parts = data.splitn(N, |byte| *byte == 0);
    std::array::from_fn(|_| String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned())
}

/// Checks `data`, and for some inputs also a long text in which it, or a piece of it, is repeated. Which ones and which
/// piece follow from the bytes alone, so that a finding can be repeated.
///
/// # Panics
///
/// `check` panics, or takes more processor time than any input should.
pub fn run(data: &[u8], check: impl Fn(&[u8])) {
    check(data);
    let hash = fnv1a(data);
    if !hash.is_multiple_of(STRETCH_ONE_IN) || data.is_empty() {
        return;
    }
    let stretched = stretch(data, hash / STRETCH_ONE_IN);
    let start = processor_time();
    check(&stretched);
    let spent = processor_time().saturating_sub(start);
    assert!(spent < LIMIT, "{} bytes took {spent:?}", stretched.len());
}

/// Repeats a piece of `data` in its place. The piece is the whole in one of four cases.
fn stretch(data: &[u8], choice: u64) -> Vec<u8> {
    let bounded = |number: u64, bound: usize| usize::try_from(number).unwrap_or(usize::MAX) % bound;
    let (start, end) = if choice.is_multiple_of(4) {
        (0, data.len())
    } else {
        let start = bounded((choice >> 2) & 0xffff, data.len());
        (start, start + 1 + bounded((choice >> 18) & 0xffff, data.len() - start))
    };
    let n_times = STRETCHED_BYTES.saturating_sub(data.len()) / (end - start) + 1;
    [&data[..start], &data[start..end].repeat(n_times), &data[end..]].concat()
}

fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)) >> 3
}

/// What this thread has used of a processor: a busy machine does not make an input slow. Zero where the kernel does not
/// say.
fn processor_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = statistics.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// Asserts that `lines` are lines of a file that has `n_lines`.
///
/// # Panics
///
/// They are not.
pub fn assert_in_file(lines: LineRange, n_lines: u32) {
    assert!(1 <= lines.start && lines.start <= lines.end && lines.end <= n_lines, "{lines:?} of {n_lines}");
}
