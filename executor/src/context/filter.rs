//! What a set of `.dockerignore`-style patterns says about paths, as far as contexts need to know.

use std::path::Path;

use super::{ContextError, Result};

/// A set of patterns. Spec: `spec/dockerfile.md` §5.3.
///
/// Paths are relative to where the patterns are anchored, without a leading `/`.
pub trait PathFilter: Send + Sync {
    /// Whether the last pattern that matches `path` or one of its parents is one that hides.
    fn hides(&self, path: &Path) -> bool;

    /// Whether something below the hidden directory `dir` may be visible again (`!` patterns).
    fn may_show_below(&self, dir: &Path) -> bool;

    /// Whether nothing is ever hidden.
    fn keeps_all(&self) -> bool {
        false
    }

    /// The pattern that hides `path`, for messages.
    fn rule(&self, path: &Path) -> Option<IgnoreRule>;
}

/// A pattern and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreRule {
    /// The pattern as written.
    pub pattern: String,
    /// The file it is in, for instance `.dockerignore`; `None` for a flag.
    pub file: Option<String>,
    /// Its line, 1-based; 0 is unknown.
    pub line_1based: usize,
}

/// No patterns: everything is visible.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl PathFilter for KeepAll {
    fn hides(&self, _path: &Path) -> bool {
        false
    }

    fn may_show_below(&self, _dir: &Path) -> bool {
        true
    }

    fn keeps_all(&self) -> bool {
        true
    }

    fn rule(&self, _path: &Path) -> Option<IgnoreRule> {
        None
    }
}

/// Compiles the patterns of a flag.
///
/// # Errors
/// [`ContextError::BadFilter`].
pub fn compile(patterns: &[String]) -> Result<Box<dyn PathFilter>> {
    let parsed = patterns.iter().map(|text| Pattern::new(text)).collect::<Result<_>>()?;
    Ok(Box::new(Patterns(parsed)))
}

struct Patterns(Vec<Pattern>);

struct Pattern {
    text: String,
    negated: bool,
    body: Vec<u8>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        let (negated, body) = match text.strip_prefix('!') {
            Some(b) => (true, b),
            None => (false, text),
        };
        let body: Vec<String> = crate::view::normal_components(Path::new(body))
            .into_iter()
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        if body.is_empty() && negated {
            return Err(ContextError::BadFilter { pattern: text.into(), reason: "illegal exclusion pattern".into() });
        }
        Ok(Self { text: text.into(), negated, body: body.join("/").into_bytes() })
    }
    fn hits(&self, path: &[u8]) -> bool {
        (0..=path.len()).filter(|at| *at == path.len() || path[*at] == b'/').any(|at| go(&self.body, &path[..at]))
    }
}

fn go(p: &[u8], s: &[u8]) -> bool {
    if let Some(rest) = p.strip_prefix(b"**/") {
        return go(rest, s) || (0..s.len()).any(|i| s[i] == b'/' && go(rest, &s[i + 1..]));
    }
    if let Some(rest) = p.strip_prefix(b"**") {
        return (0..=s.len()).any(|i| go(rest, &s[i..]));
    }
    match p.first() {
        None => s.is_empty(),
        Some(b'*') => (0..=s.len()).take_while(|i| *i == 0 || s[*i - 1] != b'/').any(|i| go(&p[1..], &s[i..])),
        Some(b'?') => s.first().is_some_and(|c| *c != b'/') && go(&p[1..], &s[1..]),
        Some(b'[') => {
            let Some(end) = p.iter().position(|c| *c == b']') else { return false };
            s.first().is_some_and(|c| super::glob::matches(&p[..=end], &[*c]) == Ok(true)) && go(&p[end + 1..], &s[1..])
        }
        Some(b'\\') if p.len() > 1 => s.first() == Some(&p[1]) && go(&p[2..], &s[1..]),
        Some(c) => s.first() == Some(c) && go(&p[1..], &s[1..]),
    }
}

impl PathFilter for Patterns {
    fn hides(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_encoded_bytes();
        self.0.iter().rev().find(|p| p.hits(path)).is_some_and(|p| !p.negated)
    }
    fn may_show_below(&self, _dir: &Path) -> bool {
        self.0.iter().any(|p| p.negated)
    }
    fn keeps_all(&self) -> bool {
        self.0.is_empty()
    }
    fn rule(&self, path: &Path) -> Option<IgnoreRule> {
        let path = path.as_os_str().as_encoded_bytes();
        let p = self.0.iter().rev().find(|p| p.hits(path)).filter(|p| !p.negated)?;
        Some(IgnoreRule { pattern: p.text.clone(), file: None, line_1based: 0 })
    }
}
