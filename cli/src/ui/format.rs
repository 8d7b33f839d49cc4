//! How numbers are shown: sizes and seconds in BuildKit's manner (`spec/cli.md` §3.2).

/// Bytes in decimal units with two decimals; plain bytes as an integer: `340B`, `1.23kB`, `28.23MB`, `1.00GB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

/// Bytes as `docker images` shows them: four significant digits, `811.7MB`.
pub(crate) fn size_short(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// Seconds of a log line: three decimals below 10, two below 100, else one.
pub(crate) fn log_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.3}"),
        s if s < 100.0 => format!("{s:.2}"),
        s => format!("{s:.1}"),
    }
}

/// How long ago, as docker says it: `3 minutes ago`.
pub(crate) fn ago(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (count, unit) = match seconds {
        0 => return "Less than a second ago".to_owned(),
        1 => return "1 second ago".to_owned(),
        2..60 => (seconds, "seconds"),
        60..120 => return "About a minute ago".to_owned(),
        120..3600 => (seconds / 60, "minutes"),
        3600..7200 => return "About an hour ago".to_owned(),
        7200..172_800 => (seconds / 3600, "hours"),
        172_800..1_209_600 => (seconds / 86_400, "days"),
        1_209_600..5_184_000 => (seconds / 604_800, "weeks"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "months"),
        _ => (seconds / 31_536_000, "years"),
    };
    format!("{count} {unit} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_with_two_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_230, "1.23kB"),
            (28_230_000, "28.23MB"),
            (999_999, "1.00MB"),
            (1_000_000_000, "1.00GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn short_sizes_have_four_digits() {
        for (bytes, text) in [(0, "0B"), (811_700_000, "811.7MB"), (1_297_000_000, "1.297GB"), (10_250_000, "10.25MB")]
        {
            assert_eq!(size_short(bytes), text);
        }
    }

    #[test]
    fn log_seconds_lose_digits_as_they_grow() {
        assert_eq!(log_seconds(0.2134), "0.213");
        assert_eq!(log_seconds(12.314), "12.31");
        assert_eq!(log_seconds(123.45), "123.5");
    }
}
