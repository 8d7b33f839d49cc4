//! Durations in Go's syntax, in nanoseconds.

use crate::go::quote;

/// A text that is no duration. Displays as Go's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form, or out of range.
    #[error("time: invalid duration {}", quote(.0))]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {}", quote(.0))]
    MissingUnit(String),
    /// A unit that does not exist.
    #[error("time: unknown unit {} in duration {}", quote(unit), quote(text))]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
}

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000), // U+00B5
    ("μs", 1_000), // U+03BC
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Parses `[+-](number unit)+`, for instance `1m30s` or `-1.5h`, and a lone `0`. Returns nanoseconds; digits beyond
/// them are cut off.
///
/// # Errors
///
/// The text is no duration, or one of more than 292 years.
pub fn parse(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, behind) = digits(rest);
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(behind) => digits(behind),
            None => ("", behind),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let (unit, behind) =
            behind.split_at(behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len()));
        rest = behind;
        if unit.is_empty() {
            return Err(DurationError::MissingUnit(text.to_owned()));
        }
        let Some((_, ns)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() });
        };
        total = amount(whole, fraction, *ns).and_then(|ns| total.checked_add(ns)).ok_or_else(invalid)?;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `whole.fraction` units of `unit_ns`; `None` when that is out of range.
fn amount(whole: &str, fraction: &str, unit_ns: i128) -> Option<i128> {
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let (mut tail, mut divisor) = (0_i128, 1_i128);
    // The largest unit has 13 digits of nanoseconds; what comes far behind does not count.
    for digit in fraction.bytes().take(18) {
        divisor *= 10;
        tail = tail * 10 + i128::from(digit - b'0');
    }
    let ns = i128::from(whole) * unit_ns + tail * unit_ns / divisor;
    (ns <= i128::from(i64::MAX) + 1).then_some(ns)
}

/// Go's text for a duration in nanoseconds: `1m30s`, `1.5s`, `100ms`, `0s`.
pub fn format(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let total = ns.unsigned_abs();
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => with_fraction(total, 1_000) + "µs",
        1_000_000..1_000_000_000 => with_fraction(total, 1_000_000) + "ms",
        _ => {
            let (minutes, seconds_ns) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = with_fraction(seconds_ns, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// `total / unit` as a decimal number without trailing zeros.
fn with_fraction(total: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let digits = format!("{:0width$}", total % unit);
    match digits.trim_end_matches('0') {
        "" => (total / unit).to_string(),
        fraction => format!("{}.{fraction}", total / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let table = [
            ("1m30s", Ok(90_000_000_000)),
            ("100ms", Ok(100_000_000)),
            ("1.5s", Ok(1_500_000_000)),
            (".5s", Ok(500_000_000)),
            ("1.s", Ok(1_000_000_000)),
            ("+1h2m3s4ms5us6ns", Ok(3_723_004_005_006)),
            ("10µs", Ok(10_000)),
            ("10μs", Ok(10_000)),
            ("-1s", Ok(-1_000_000_000)),
            ("0", Ok(0)),
            ("-0", Ok(0)),
            ("0s", Ok(0)),
            ("0.1234567899s", Ok(123_456_789)),
            ("9223372036854775807ns", Ok(i64::MAX)),
            ("-9223372036854775808ns", Ok(i64::MIN)),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("1s5", Err("time: missing unit in duration \"1s5\"")),
            ("", Err("time: invalid duration \"\"")),
            ("-", Err("time: invalid duration \"-\"")),
            (".s", Err("time: invalid duration \".s\"")),
            ("x", Err("time: invalid duration \"x\"")),
            ("1d", Err("time: unknown unit \"d\" in duration \"1d\"")),
            ("1s 2s", Err("time: unknown unit \"s \" in duration \"1s 2s\"")),
            ("9223372036854775808ns", Err("time: invalid duration \"9223372036854775808ns\"")),
            ("3000000h", Err("time: invalid duration \"3000000h\"")),
        ];
        for (text, want) in table {
            assert_eq!(parse(text).map_err(|error| error.to_string()), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn formatting() {
        let table = [
            (0, "0s"),
            (90_000_000_000, "1m30s"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_000, "1µs"),
            (1_500_000, "1.5ms"),
            (7, "7ns"),
            (-2_000_000_000, "-2s"),
            (60_001_000_000, "1m0.001s"),
        ];
        for (ns, want) in table {
            assert_eq!(format(ns), want);
            assert_eq!(parse(want), Ok(ns));
        }
    }
}
