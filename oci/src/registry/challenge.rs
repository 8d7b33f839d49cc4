//! `WWW-Authenticate`: what a registry wants to see before it answers.
//!
//! Spec: RFC 9110 §11.6.1 (the grammar), distribution's token specification (the parameters of `Bearer`).

use std::collections::BTreeMap;

/// One challenge: a scheme and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from a token server.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// The name by which the token server knows the registry.
        service: Option<String>,
        /// Space-separated scopes that the request needed.
        scope: Option<String>,
        /// Why the token that came was not enough.
        error: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// Reads the challenges out of all `WWW-Authenticate` headers of an answer, in order; unknown schemes are left out.
pub(super) fn parse_challenges<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    headers.into_iter().flat_map(parse_header).collect()
}

fn parse_header(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, tail) = split_token(rest);
        if word.is_empty() {
            break;
        }
        let after = tail.trim_start_matches([' ', '\t']);
        if let (Some(value), Some((_, parameters))) = (after.strip_prefix('='), challenges.last_mut()) {
            let (value, tail) = split_value(value.trim_start_matches([' ', '\t']));
            parameters.entry(word.to_ascii_lowercase()).or_insert(value);
            rest = tail;
        } else {
            challenges.push((word.to_ascii_lowercase(), BTreeMap::new()));
            rest = tail;
        }
    }
    challenges.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

fn challenge(scheme: &str, mut parameters: BTreeMap<String, String>) -> Option<Challenge> {
    let mut take = |name: &str| parameters.remove(name).filter(|value| !value.is_empty());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: take("realm")?,
            service: take("service"),
            scope: take("scope"),
            error: take("error"),
        }),
        _ => None,
    }
}

/// Splits off a token: everything up to a separator that cannot be inside one. Stray characters are skipped one by one,
/// so that a malformed header ends instead of looping.
fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| !c.is_whitespace() && !matches!(c, ',' | '=' | '"');
    let len = text.find(|c| !is_token(c)).unwrap_or(text.len());
    let len = if len == 0 { text.chars().next().map_or(0, char::len_utf8) } else { len };
    text.split_at(len)
}

/// Splits off a quoted string, unescaped, or a bare value up to the next comma or blank.
fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let len = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..len].to_owned(), &text[len..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>, error: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope), error: own(error) }
    }

    #[test]
    fn headers_of_real_registries() {
        let cases: Vec<(Vec<&str>, Vec<Challenge>)> = vec![
            (
                vec![
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#,
                ],
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/x:pull"),
                    None,
                )],
            ),
            (
                vec![
                    r#"bearer realm="https://r/t",scope="repository:a:pull,push repository:b:pull",error="insufficient_scope""#,
                ],
                vec![bearer(
                    "https://r/t",
                    None,
                    Some("repository:a:pull,push repository:b:pull"),
                    Some("insufficient_scope"),
                )],
            ),
            (vec![r#"Basic realm="Registry Realm""#], vec![Challenge::Basic]),
            (vec![r#"BASIC realm="a, b=c", charset="UTF-8""#], vec![Challenge::Basic]),
            (
                vec![r#"Negotiate, Basic realm="x", Bearer realm=https://r/t , service = s"#],
                vec![Challenge::Basic, bearer("https://r/t", Some("s"), None, None)],
            ),
            (vec![r#"Basic realm="x""#, r#"Bearer realm="y""#], vec![Challenge::Basic, bearer("y", None, None, None)]),
            (vec![r#"Bearer realm="a\"b\\c""#], vec![bearer(r#"a"b\c"#, None, None, None)]),
            (vec![r#"Bearer service="no realm""#], vec![]),
            (vec![r#"Bearer realm="never closed"#], vec![bearer("never closed", None, None, None)]),
            (vec!["", ",,", "=", "\"\"", "Digest realm=x"], vec![]),
        ];
        for (headers, expected) in cases {
            assert_eq!(parse_challenges(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_or_loops(header in "\\PC{0,80}") {
            let _ = parse_challenges([header.as_str()]);
        }
    }
}
