//! One path element against one pattern element, as Go's `filepath.Match` compares them.
//!
//! `*` is any run of characters, `?` one character, `[a-z]` and `[^a-z]` classes, `\` quotes the next character. Names
//! need not be UTF-8: a byte that is none counts as one character, as in Go.

/// A pattern that Go's `filepath.Match` would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPattern;

/// Whether `name` (one element) matches `pattern` (one element) as a whole.
///
/// # Errors
/// [`BadPattern`], whether or not the name matches up to the fault.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let tokens = parse(pattern)?;
    Ok(match_tokens(&tokens, name))
}

/// Checks the syntax of a pattern of one or more elements.
///
/// # Errors
/// [`BadPattern`].
pub fn check(pattern: &[u8]) -> Result<(), BadPattern> {
    pattern.split(|byte| *byte == b'/').try_for_each(|element| parse(element).map(drop))
}

/// Whether `text` has an unescaped `*`, `?` or `[`.
pub fn has_wildcard(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// A compiled element.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    AnyRun,
    AnyOne,
    One(u32),
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

/// Bytes that are not UTF-8 are kept apart from all characters.
const RAW_BYTE: u32 = 0x8000_0000;

/// The first character and the rest.
fn next_char(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let first = *bytes.first()?;
    let len = match first {
        0..=0x7f => return Some((first.into(), &bytes[1..])),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let decoded = bytes.get(..len).and_then(|head| std::str::from_utf8(head).ok()).and_then(|text| text.chars().next());
    Some(match decoded {
        Some(c) => (c.into(), &bytes[len..]),
        None => (RAW_BYTE | u32::from(first), &bytes[1..]),
    })
}

fn parse(mut pattern: &[u8]) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    while let Some((c, rest)) = next_char(pattern) {
        pattern = rest;
        let token = match u8::try_from(c) {
            Ok(b'*') => Token::AnyRun,
            Ok(b'?') => Token::AnyOne,
            Ok(b'[') => {
                let (class, rest) = parse_class(pattern)?;
                pattern = rest;
                class
            }
            Ok(b'\\') => {
                let (c, rest) = next_char(pattern).ok_or(BadPattern)?;
                pattern = rest;
                Token::One(c)
            }
            _ => Token::One(c),
        };
        if !(token == Token::AnyRun && tokens.last() == Some(&Token::AnyRun)) {
            tokens.push(token);
        }
    }
    Ok(tokens)
}

/// The class after `[`, and what follows its `]`.
fn parse_class(mut pattern: &[u8]) -> Result<(Token, &[u8]), BadPattern> {
    let negated = pattern.first() == Some(&b'^');
    if negated {
        pattern = &pattern[1..];
    }
    let mut ranges = Vec::new();
    loop {
        if pattern.first() == Some(&b']') && !ranges.is_empty() {
            return Ok((Token::Class { negated, ranges }, &pattern[1..]));
        }
        let (low, rest) = class_char(pattern)?;
        pattern = rest;
        let mut high = low;
        if let Some(after_dash) = pattern.strip_prefix(b"-") {
            (high, pattern) = class_char(after_dash)?;
        }
        ranges.push((low, high));
    }
}

fn class_char(pattern: &[u8]) -> Result<(u32, &[u8]), BadPattern> {
    let (c, rest) = next_char(pattern).ok_or(BadPattern)?;
    let (c, rest) = match u8::try_from(c) {
        Ok(b'-' | b']') => return Err(BadPattern),
        Ok(b'\\') => next_char(rest).ok_or(BadPattern)?,
        _ => (c, rest),
    };
    // Something must still follow, at least the closing bracket.
    if rest.is_empty() { Err(BadPattern) } else { Ok((c, rest)) }
}

/// Greedy matching with one backtracking point, the last `*`: linear for practical names, never exponential.
fn match_tokens(tokens: &[Token], name: &[u8]) -> bool {
    let (mut at, mut rest) = (0, name);
    let mut retry: Option<(usize, &[u8])> = None;
    loop {
        if tokens.get(at) == Some(&Token::AnyRun) {
            retry = Some((at + 1, rest));
            at += 1;
            continue;
        }
        let step = next_char(rest).filter(|(c, _)| tokens.get(at).is_some_and(|token| token_matches(token, *c)));
        if let Some((_, after)) = step {
            (at, rest) = (at + 1, after);
            continue;
        }
        if at == tokens.len() && rest.is_empty() {
            return true;
        }
        let Some((from, skipped)) = retry else { return false };
        let Some((_, after)) = next_char(skipped) else { return false };
        retry = Some((from, after));
        (at, rest) = (from, after);
    }
}

fn token_matches(token: &Token, c: u32) -> bool {
    match token {
        Token::AnyRun => false,
        Token::AnyOne => true,
        Token::One(want) => *want == c,
        Token::Class { negated, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_match_as_in_go() {
        let cases: [(&str, &str, Result<bool, BadPattern>); 28] = [
            ("abc", "abc", Ok(true)),
            ("*", "abc", Ok(true)),
            ("*", "", Ok(true)),
            ("*c", "abc", Ok(true)),
            ("a*", "ab", Ok(true)),
            ("a*b*c*d*e*", "axbxcxdxexxx", Ok(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Ok(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Ok(false)),
            ("ab[c]", "abc", Ok(true)),
            ("ab[b-d]", "abc", Ok(true)),
            ("ab[e-g]", "abc", Ok(false)),
            ("ab[^c]", "abc", Ok(false)),
            ("ab[^e-g]", "abc", Ok(true)),
            ("a\\*b", "a*b", Ok(true)),
            ("a\\*b", "ab", Ok(false)),
            ("a?b", "a☺b", Ok(true)),
            ("a[^a]b", "a☺b", Ok(true)),
            ("[a-ζ]*", "α", Ok(true)),
            ("[\\]a]", "]", Ok(true)),
            ("[\\-x]", "-", Ok(true)),
            ("[x\\-]", "z", Ok(false)),
            ("[]a]", "]", Err(BadPattern)),
            ("[-]", "-", Err(BadPattern)),
            ("[x-]", "x", Err(BadPattern)),
            ("\\", "a", Err(BadPattern)),
            ("[a-b-c]", "a", Err(BadPattern)),
            ("a[", "a", Err(BadPattern)),
            ("[[]z]", "[z]", Ok(true)),
        ];
        for (pattern, name, want) in cases {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn raw_bytes_are_characters_of_their_own() {
        assert_eq!(matches(b"a?c", b"a\xffc"), Ok(true));
        assert_eq!(matches(b"a\xffc", b"a\xffc"), Ok(true));
        assert_eq!(matches("a\u{ff}c".as_bytes(), b"a\xffc"), Ok(false));
    }

    #[test]
    fn escaped_wildcards_are_none() {
        for (text, want) in [("a*", true), ("a\\*", false), ("\\\\*", true), ("a\\?\\[", false), ("", false)] {
            assert_eq!(has_wildcard(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let name = vec![b'a'; 4096];
        let pattern = [b"a*".repeat(512).as_slice(), b"b"].concat();
        assert_eq!(matches(&pattern, &name), Ok(false));
    }
}
