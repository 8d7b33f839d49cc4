//! Times as image documents write them: RFC 3339, nanoseconds without trailing zeros.
//!
//! Pure functions between text and (seconds, nanoseconds) since 1970-01-01 UTC; nothing here asks a clock.

use std::fmt::Write;

const SECONDS_PER_DAY: i64 = 86_400;
/// 0000-01-01T00:00:00Z, the earliest time with a four-digit year.
const MIN_SECONDS: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59Z, the last time with a four-digit year.
const MAX_SECONDS: i64 = 253_402_300_799;

/// Text that is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an RFC 3339 time: expected for instance `2026-01-31T08:00:00Z`")]
pub struct TimeError {
    /// What was given.
    pub text: String,
}

/// Writes a time in UTC, as Go's `RFC3339Nano` does: `2026-01-31T08:00:00.12Z`.
///
/// Seconds outside the years 0 to 9999 are moved to the nearest end of that range; `nanos` must be below 10⁹.
pub fn format_rfc3339(secs: i64, nanos: u32) -> String {
    format_with_offset(secs, nanos, 0)
}

/// Reads an RFC 3339 time with any offset into (seconds, nanoseconds) since 1970-01-01 UTC.
///
/// Digits beyond nanoseconds are dropped.
///
/// # Errors
/// [`TimeError`] for any other text, dates that do not exist and leap seconds, as Go.
pub fn parse_rfc3339(text: &str) -> Result<(i64, u32), TimeError> {
    scan(text).map(|time| (time.secs, time.nanos)).ok_or_else(|| TimeError { text: text.to_owned() })
}

/// The text that a Go program writes after reading `text`: the fraction without trailing zeros, the offset kept.
///
/// `None` when `text` is not an RFC 3339 time.
pub fn canonical_rfc3339(text: &str) -> Option<String> {
    scan(text).map(|time| format_with_offset(time.secs, time.nanos, time.offset_secs))
}

/// Seconds since the epoch of an HTTP date such as `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for anything else.
///
/// Only this form is sent nowadays; the two obsolete ones count as no date. Spec: RFC 9110, 5.6.7.
pub fn parse_http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, rest) = text.trim().split_once(", ")?;
    let [day, month, year, time, "GMT"] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let text = format!("{year:0>4}-{month:02}-{day:0>2}T{hour:0>2}:{minute:0>2}:{second:0>2}Z");
    parse_rfc3339(&text).ok().map(|(seconds, _)| seconds)
}

struct Scanned {
    secs: i64,
    nanos: u32,
    offset_secs: i64,
}

fn format_with_offset(secs: i64, nanos: u32, offset_secs: i64) -> String {
    let local = (secs.clamp(MIN_SECONDS, MAX_SECONDS) + offset_secs).clamp(MIN_SECONDS, MAX_SECONDS);
    let (year, month, day) = civil_from_days(local.div_euclid(SECONDS_PER_DAY));
    let second_of_day = local.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos > 0 {
        let digits = format!("{nanos:09}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    if offset_secs == 0 {
        text.push('Z');
    } else {
        let sign = if offset_secs < 0 { '-' } else { '+' };
        let minutes = offset_secs.abs() / 60;
        write!(text, "{sign}{:02}:{:02}", minutes / 60, minutes % 60).expect("writing to a string cannot fail");
    }
    text
}

fn scan(text: &str) -> Option<Scanned> {
    let (date_time, rest) = text.split_at_checked("2026-01-31T08:00:00".len())?;
    let bytes = date_time.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, separator)| bytes[at] != separator) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| digits(&bytes[range]);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, zone) = scan_fraction(rest)?;
    let offset_secs = scan_zone(zone)?;
    let local = days_from_civil(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    Some(Scanned { secs: local - offset_secs, nanos, offset_secs })
}

/// Reads `.digits` if the text starts with it; gives nanoseconds and the rest.
fn scan_fraction(text: &str) -> Option<(u32, &str)> {
    let Some(fraction) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let (fraction, rest) = fraction.split_at(len);
    if fraction.is_empty() {
        return None;
    }
    let nanos =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    Some((nanos, rest))
}

fn scan_zone(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let bytes = text.as_bytes();
    if bytes.len() != 6 || bytes[3] != b':' {
        return None;
    }
    let (hours, minutes) = (digits(&bytes[1..3])?, digits(&bytes[4..6])?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset = hours * 3600 + minutes * 60;
    match bytes[0] {
        b'+' => Some(offset),
        b'-' => Some(-offset),
        _ => None,
    }
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |n, byte| byte.is_ascii_digit().then(|| n * 10 + i64::from(byte - b'0')))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a Gregorian date. Years are counted from March, so that the leap day comes last and the
/// days before a month are a linear formula; 400 years are 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn http_dates() {
        let cases = [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun Nov  6 08:49:37 1994", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 36 Nov 1994 08:49:37 GMT", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_http_date(text), want, "{text}");
        }
    }

    #[test]
    fn known_times() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_700_000_000, 120_000_000, "2023-11-14T22:13:20.12Z"),
            (1_700_000_000, 1, "2023-11-14T22:13:20.000000001Z"),
            (MIN_SECONDS, 0, "0000-01-01T00:00:00Z"),
            (MAX_SECONDS, 0, "9999-12-31T23:59:59Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00Z"),
        ];
        for (secs, nanos, text) in cases {
            assert_eq!(format_rfc3339(secs, nanos), text);
            assert_eq!(parse_rfc3339(text), Ok((secs, nanos)), "{text}");
        }
        assert_eq!(format_rfc3339(i64::MAX, 0), "9999-12-31T23:59:59Z");
        assert_eq!(format_rfc3339(i64::MIN, 0), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn offsets_are_taken_off_when_parsed_and_kept_when_rewritten() {
        assert_eq!(parse_rfc3339("2023-11-15T00:13:20+02:00"), Ok((1_700_000_000, 0)));
        assert_eq!(parse_rfc3339("2023-11-14T16:43:20-05:30"), Ok((1_700_000_000, 0)));
        let cases = [
            ("2023-11-15T00:13:20.500+02:00", Some("2023-11-15T00:13:20.5+02:00")),
            ("2023-11-14T22:13:20.000Z", Some("2023-11-14T22:13:20Z")),
            ("2023-11-14T22:13:20+00:00", Some("2023-11-14T22:13:20Z")),
            ("2023-11-14T22:13:20.1234567899Z", Some("2023-11-14T22:13:20.123456789Z")),
            ("yesterday", None),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical_rfc3339(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_time_is_refused() {
        let cases = [
            "",
            "2023",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20Z",
            "2023-11-14t22:13:20Z",
            "2023-11-14T22:13:20z",
            "2023-13-14T22:13:20Z",
            "2023-00-14T22:13:20Z",
            "2023-02-29T22:13:20Z",
            "2023-11-31T22:13:20Z",
            "2023-11-14T24:13:20Z",
            "2023-11-14T22:60:20Z",
            "2023-11-14T22:13:60Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20+0200",
            "2023-11-14T22:13:20+24:00",
            "+023-11-14T22:13:20Z",
            "2023-11-14T22:13:20Zx",
            "2023-11-14T22:13:2éZ",
            "１023-11-14T22:13:20Z",
        ];
        for text in cases {
            assert!(parse_rfc3339(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn formatting_and_parsing_are_inverse(secs in MIN_SECONDS..=MAX_SECONDS, nanos in 0u32..1_000_000_000) {
            prop_assert_eq!(parse_rfc3339(&format_rfc3339(secs, nanos)), Ok((secs, nanos)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = canonical_rfc3339(&text);
        }
    }
}
