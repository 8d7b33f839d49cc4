//! A second, strict look at the records of an extended header.
//!
//! tar-core is told to overlook values that it cannot parse, because it takes times before 1970 for errors. What must not
//! be overlooked is checked here: a record that two readers understand differently can smuggle entries past one of them.

/// What tar-core does not tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// Modification time: seconds rounded down, nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
}

/// Checks all records of `pax`; the reason when one is malformed.
pub(super) fn check(pax: &[u8]) -> Result<Records, String> {
    let mut records = Records::default();
    for record in split(pax) {
        let (key, value) = record.ok_or("an extended header has a malformed record")?;
        match key {
            b"mtime" => {
                let mtime = parse_time(value).ok_or_else(|| invalid(key, value))?;
                records.mtime = Some(mtime);
            }
            b"size" | b"uid" | b"gid" if !is_number(value) => return Err(invalid(key, value)),
            _ => {}
        }
    }
    Ok(records)
}

/// Whether `pax` has a `size` record.
pub(super) fn has_size(pax: &[u8]) -> bool {
    split(pax).flatten().any(|(key, _)| key == b"size")
}

/// Walks `LENGTH KEY=VALUE\n` records by their lengths; `None` for a malformed one, which ends the walk.
fn split(mut pax: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if pax.is_empty() {
            return None;
        }
        let record = split_first(pax);
        pax = record.map_or(&[], |(_, rest)| rest);
        Some(record.map(|(pair, _)| pair))
    })
}

type Pair<'a> = (&'a [u8], &'a [u8]);

fn split_first(pax: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let space = pax.iter().take(20).position(|&byte| byte == b' ')?;
    let length_digits = &pax[..space];
    if !is_number(length_digits) {
        return None;
    }
    let length: usize = std::str::from_utf8(length_digits).ok()?.parse().ok()?;
    let (record, rest) = pax.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some(((&pair[..equals], &pair[equals + 1..]), rest))
}

/// `[-]SECONDS[.FRACTION]`, rounded down to nanoseconds.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !is_number(whole.as_bytes()) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let secs: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    match (is_negative, nanos) {
        (false, nanos) => Some((secs, nanos)),
        (true, 0) => Some((-secs, 0)),
        (true, nanos) => Some((-secs - 1, 1_000_000_000 - nanos)),
    }
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn invalid(key: &[u8], value: &[u8]) -> String {
    let text = String::from_utf8_lossy;
    format!("an extended header has the invalid {} `{}`", text(key), text(&value[..value.len().min(64)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1700000000.5", Some((1_700_000_000, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("", None),
            (".5", None),
            ("1e3", None),
            ("--1", None),
            ("1.-5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn records_are_walked_by_length() {
        // The value holds a newline and something that looks like a record.
        let pax = b"48 SCHILY.xattr.user.x=a\n15 path=smuggled\nmore!\n12 mtime=-5\n".to_vec();
        let keys: Vec<_> = split(&pax).map(|record| record.expect("well formed").0.to_vec()).collect();
        assert_eq!(keys.len(), 2, "{keys:?}");
        assert_eq!(check(&pax), Ok(Records { mtime: Some((-5, 0)) }));
    }

    #[test]
    fn malformed_records_are_refused() {
        for pax in
            ["x", "5 a=b", "7 abcde\n", "6 a=b", "06a=b\n", "8 size=\n", "9 uid=-1\n", "999 a=b\n", "0 a=b\n", "1 \n"]
        {
            assert!(check(pax.as_bytes()).is_err(), "{pax:?}");
        }
    }
}
