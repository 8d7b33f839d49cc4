//! Go's `filepath.Match`.

use super::BadPattern;

/// A set of characters in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    /// Parses what follows `[`, up to and with `]`. The class has at least one range; `-` and `]` must be escaped.
    pub(super) fn parse(rest: &mut &str) -> Result<Self, BadPattern> {
        let negated = eat(rest, '^');
        let mut ranges = Vec::new();
        while ranges.is_empty() || !eat(rest, ']') {
            let low = take_bound(rest)?;
            let high = if eat(rest, '-') { take_bound(rest)? } else { low };
            ranges.push((low, high));
        }
        Ok(Self { negated, ranges })
    }

    pub(super) fn contains(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != self.negated
    }
}

fn eat(rest: &mut &str, c: char) -> bool {
    match rest.strip_prefix(c) {
        Some(behind) => {
            *rest = behind;
            true
        }
        None => false,
    }
}

fn take(rest: &mut &str) -> Result<char, BadPattern> {
    let mut chars = rest.chars();
    let c = chars.next().ok_or(BadPattern)?;
    *rest = chars.as_str();
    Ok(c)
}

/// One end of a range.
fn take_bound(rest: &mut &str) -> Result<char, BadPattern> {
    match take(rest)? {
        '-' | ']' => Err(BadPattern),
        '\\' => take(rest),
        c => Ok(c),
    }
}

/// The character behind a backslash.
pub(super) fn take_escaped(rest: &mut &str) -> Result<char, BadPattern> {
    take(rest)
}

/// Whether a pattern is well formed: brackets are closed, and no backslash is last.
pub(super) fn validate(pattern: &str) -> Result<(), BadPattern> {
    Glob::compile(pattern).map(drop)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Class(Class),
    Star,
}

/// A compiled pattern of Go's `filepath.Match`.
///
/// `*` and `?` match no slash; `[a-z]` and `[^a]` are classes; a backslash makes the next character literal. The whole
/// name must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    ///
    /// A bracket is open, a class is empty, or a backslash is last.
    pub fn compile(pattern: &str) -> Result<Self, BadPattern> {
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Ok(c) = take(&mut rest) {
            tokens.push(match c {
                '*' => {
                    // Several stars are one.
                    if tokens.last() == Some(&Token::Star) {
                        continue;
                    }
                    Token::Star
                }
                '?' => Token::One,
                '[' => Token::Class(Class::parse(&mut rest)?),
                '\\' => Token::Literal(take_escaped(&mut rest)?),
                c => Token::Literal(c),
            });
        }
        Ok(Self { tokens })
    }

    /// Whether all of `name` matches. At most pattern × name steps.
    pub fn matches(&self, name: &str) -> bool {
        let mut at = 0;
        let mut rest = name;
        // Where to go on when the text behind the last star does not match: one character further on.
        let mut retry: Option<(usize, &str)> = None;
        loop {
            if self.tokens.get(at) == Some(&Token::Star) {
                at += 1;
                retry = Some((at, rest));
                continue;
            }
            let mut chars = rest.chars();
            match (self.tokens.get(at), chars.next()) {
                (None, None) => return true,
                (Some(token), Some(c)) if token.accepts(c) => {
                    at += 1;
                    rest = chars.as_str();
                }
                _ => {
                    let Some((behind_star, from)) = retry else { return false };
                    let mut chars = from.chars();
                    // A star cannot swallow a slash, and no earlier star could do better.
                    if chars.next().is_none_or(|c| c == '/') {
                        return false;
                    }
                    at = behind_star;
                    rest = chars.as_str();
                    retry = Some((at, rest));
                }
            }
        }
    }
}

impl Token {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Literal(wanted) => *wanted == c,
            Self::One => c != '/',
            Self::Class(class) => class.contains(c),
            Self::Star => false,
        }
    }
}

/// Whether `name` matches `pattern`. Whoever matches many names compiles a [`Glob`].
///
/// # Errors
///
/// The pattern is malformed, whether or not `name` gets that far.
pub fn glob_match(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    Ok(Glob::compile(pattern)?.matches(name))
}
