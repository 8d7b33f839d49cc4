//! Path patterns: `.dockerignore` and `--exclude` ([`Patterns`]), and Go's `filepath.Match` ([`Glob`]). Spec: §5.2, §5.3,
//! §2.15, §2.21.
//!
//! Paths are relative, with `/` between their elements and none at either end. Patterns are compiled once; matching
//! looks at a path once from left to right, whatever the pattern.

mod glob;
mod program;

pub use glob::{Glob, glob_match};

use program::Matcher;

/// A pattern that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Why a list of patterns is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyException {
        /// 1-based line or position.
        line_1based: u32,
    },
    /// An open bracket or the like.
    #[error("{}", BadPattern)]
    Syntax {
        /// The pattern as written.
        pattern: String,
        /// 1-based line or position.
        line_1based: u32,
    },
}

/// One pattern of a list.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As written, `!` included.
    pub text: String,
    /// 1-based line of the file, or position in the list.
    pub line_1based: u32,
    /// Whether it begins with `!`: what it matches is included again.
    pub is_exception: bool,
    matcher: Matcher,
}

impl Pattern {
    /// Whether the pattern matches `path` itself, parents not considered.
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.matches(path)
    }
}

/// An ordered list of patterns; the last one that matches a path or one of its parents decides.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    list: Vec<Pattern>,
    has_exceptions: bool,
}

/// Which pattern decides about a path: the last one that matches it or one of its parents.
///
/// A walk over a tree carries the verdict of a directory down to what is in it: see [`Patterns::descend`]. The default
/// is that of the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Index into [`Patterns::patterns`], plus one so that 0 is "none".
    decided_by: u32,
    excluded: bool,
}

impl Verdict {
    /// Whether the path is matched, that is: excluded.
    pub fn is_excluded(self) -> bool {
        self.excluded
    }

    /// Index into [`Patterns::patterns`] of the pattern that decided; `None` when none matched.
    pub fn decided_by(self) -> Option<usize> {
        (self.decided_by as usize).checked_sub(1)
    }
}

impl Patterns {
    /// Reads an ignore file: one pattern a line; `#` in column 0 begins a comment.
    ///
    /// # Errors
    ///
    /// A `!` alone, or a syntax error in a pattern.
    pub fn parse_ignore_file(text: &[u8]) -> Result<Self, PatternError> {
        let text = text.strip_prefix(crate::directive::BOM).unwrap_or(text);
        let text = String::from_utf8_lossy(text);
        let lines = (1..).zip(text.split('\n')).filter(|(_, line)| !line.starts_with('#'));
        Self::from_numbered(lines)
    }

    /// Takes the values of `--exclude` or the like, in order.
    ///
    /// # Errors
    ///
    /// As [`Self::parse_ignore_file`].
    pub fn new<I: IntoIterator<Item = S>, S: AsRef<str>>(patterns: I) -> Result<Self, PatternError> {
        let patterns: Vec<S> = patterns.into_iter().collect();
        Self::from_numbered((1..).zip(patterns.iter().map(AsRef::as_ref)))
    }

    fn from_numbered<'a>(lines: impl Iterator<Item = (u32, &'a str)>) -> Result<Self, PatternError> {
        let mut patterns = Self::default();
        for (line_1based, line) in lines {
            let text = line.trim();
            if text.is_empty() {
                continue;
            }
            let (is_exception, body) = match text.strip_prefix('!') {
                Some(body) => (true, body.trim()),
                None => (false, text),
            };
            if body.is_empty() {
                return Err(PatternError::EmptyException { line_1based });
            }
            let cleaned = clean(body);
            let relative = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
            let matcher = Matcher::compile(relative)
                .map_err(|BadPattern| PatternError::Syntax { pattern: text.to_owned(), line_1based })?;
            patterns.has_exceptions |= is_exception;
            patterns.list.push(Pattern { text: text.to_owned(), line_1based, is_exception, matcher });
        }
        Ok(patterns)
    }

    /// The patterns in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.list
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether some pattern begins with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether the last pattern that matches `path` itself excludes it; parents are not considered.
    pub fn matches(&self, path: &str) -> bool {
        self.descend(Verdict::default(), path).is_excluded()
    }

    /// The verdict on `path` without any knowledge of its parents.
    pub fn decide(&self, path: &str) -> Verdict {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.fold(Verdict::default(), |parent, end| self.descend(parent, &path[..end]))
    }

    /// Whether `path` is excluded, by itself or by a parent.
    pub fn matches_or_parent_matches(&self, path: &str) -> bool {
        self.decide(path).is_excluded()
    }

    /// The verdict on `path`, given that on its parent directory. `path` is complete, not just the last element.
    ///
    /// Gives what [`Self::decide`] gives, but looks only at `path` itself, and only at patterns behind the one that
    /// decided about the parent.
    pub fn descend(&self, parent: Verdict, path: &str) -> Verdict {
        let from = parent.decided_by as usize;
        match self.list[from..].iter().rposition(|pattern| pattern.matches(path)) {
            None => parent,
            Some(index) => self.verdict(from + index),
        }
    }

    /// Whether everything below the directory `path`, whose verdict this is, is excluded as well, so that a walk need
    /// not enter it. `false` when in doubt.
    pub fn excludes_all_below(&self, verdict: Verdict, path: &str) -> bool {
        let later = &self.list[verdict.decided_by as usize..];
        verdict.excluded && !later.iter().any(|pattern| pattern.is_exception && pattern.matcher.may_match_below(path))
    }

    fn verdict(&self, index: usize) -> Verdict {
        // A list has no more patterns than a file has lines, which `u32` counts.
        let decided_by = u32::try_from(index + 1).unwrap_or(u32::MAX);
        Verdict { decided_by, excluded: !self.list[index].is_exception }
    }
}

/// Go's `filepath.Clean`: no `.`, no `..` that could be resolved, no repeated or trailing `/`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            element => kept.push(element),
        }
    }
    let joined = kept.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
