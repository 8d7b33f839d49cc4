//! Small questions about URLs.

pub(super) use solver::plan::redacted;

/// `host[:port]` of a URL with a scheme, in lower case, without user information.
pub(super) fn host(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

/// The host without its port.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// `scheme://host[:port]/`, the prefix of everything on that server.
pub(super) fn origin(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    Some(format!("{}://{}/", scheme.to_ascii_lowercase(), host(url)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_urls() {
        let cases = [
            ("https://Example.com/a/b?c#d", Some("example.com"), Some("https://example.com/")),
            ("http://u:p@h:8080", Some("h:8080"), Some("http://h:8080/")),
            ("https://u@p@h/x", Some("h"), Some("https://h/")),
            ("https://[::1]:5000/x", Some("[::1]:5000"), Some("https://[::1]:5000/")),
            ("git@github.com:a/b.git", None, None),
            ("https:///x", None, None),
        ];
        for (url, want_host, want_origin) in cases {
            assert_eq!(host(url).as_deref(), want_host, "{url}");
            assert_eq!(origin(url).as_deref(), want_origin, "{url}");
        }
        assert_eq!(without_port("h:8080"), "h");
        assert_eq!(without_port("h"), "h");
        assert_eq!(without_port("[::1]"), "[::1]");
    }
}
