//! Dates of HTTP headers.

/// Seconds since the epoch of an HTTP date such as `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for anything else.
///
/// Only this form is sent nowadays; the two obsolete ones count as no date. Spec: RFC 9110, 5.6.7.
pub(super) fn parse_http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, rest) = text.trim().split_once(", ")?;
    let [day, month, year, time, "GMT"] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    // The general form is checked and converted where all times of images are.
    let text = format!("{year:0>4}-{month:02}-{day:0>2}T{hour:0>2}:{minute:0>2}:{second:0>2}Z");
    oci::time::parse_rfc3339(&text).ok().map(|(seconds, _)| seconds)
}

#[cfg(test)]
mod tests {
    use super::parse_http_date;

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
}
