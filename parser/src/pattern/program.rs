//! One compiled pattern of an ignore list.
//!
//! Most patterns are a plain path, `**/name` or `dir/**` and are decided by comparing strings. The others become a
//! program of tokens that is run as a set of states, so that no pattern takes more than path × tokens steps.

use super::BadPattern;
use super::glob::{Class, take_escaped, validate};

/// How a path is compared. Which of them a pattern is decides how odd corners behave, as in the reference.
#[derive(Clone, Debug)]
pub(super) enum Matcher {
    /// No wildcards.
    Exact(String),
    /// `x**`: begins with.
    Prefix(String),
    /// `**x`: ends with; `**/x` is also `x`.
    Suffix(String),
    /// Anything else.
    Program(Program),
}

/// Tokens, and what must hold of a path before it is worth running them.
#[derive(Clone, Debug)]
pub(super) struct Program {
    tokens: Vec<Token>,
    /// Literal text that every match begins with.
    prefix: String,
    /// Literal text that every match ends with.
    suffix: String,
    /// The number of slashes in every match, where that is fixed.
    n_slashes: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `?`: one character but a slash.
    One,
    /// `[…]`
    Class(Class),
    /// `*`: any run without a slash.
    Star,
    /// `**` at the end: anything.
    Rest,
    /// `**`: nothing, or anything up to and with a slash. Its loop is the next token.
    Deep,
    DeepLoop,
}

impl Matcher {
    /// `pattern` is cleaned and relative.
    pub(super) fn compile(pattern: &str) -> Result<Self, BadPattern> {
        validate(pattern)?;
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            if let Some(behind) = rest.strip_prefix("**") {
                // `**/` and `**` are the same.
                rest = behind.strip_prefix('/').unwrap_or(behind);
                if rest.is_empty() {
                    // Whatever stands before it that takes anything, it takes as well.
                    while let Some(Token::Star | Token::Deep | Token::DeepLoop) = tokens.last() {
                        tokens.pop();
                    }
                    tokens.push(Token::Rest);
                } else if tokens.last() != Some(&Token::DeepLoop) {
                    // Two in a row are as one; a line of nothing but stars would have a state for each.
                    tokens.extend([Token::Deep, Token::DeepLoop]);
                }
                continue;
            }
            rest = &rest[c.len_utf8()..];
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::One,
                '[' => Token::Class(Class::parse(&mut rest)?),
                '\\' => Token::Literal(take_escaped(&mut rest)?),
                c => Token::Literal(c),
            });
        }
        Ok(Self::of_tokens(pattern, tokens))
    }

    fn of_tokens(pattern: &str, tokens: Vec<Token>) -> Self {
        let is_plain = |tokens: &[Token]| tokens.iter().all(|token| matches!(token, Token::Literal(_)));
        let escaped = pattern.contains('\\');
        match tokens.as_slice() {
            all if is_plain(all) => Self::Exact(literals(all)),
            [Token::Rest] => Self::Suffix(String::new()),
            // Of one pair of stars: several have become one by now.
            [Token::Deep, Token::DeepLoop, rest @ ..]
                if is_plain(rest) && !escaped && pattern.matches('*').count() == 2 =>
            {
                Self::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned())
            }
            [start @ .., Token::Rest] if is_plain(start) && !escaped => Self::Prefix(literals(start)),
            _ => Self::Program(Program::new(tokens)),
        }
    }

    /// Whether the whole of `path` matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text.as_str()),
            Self::Suffix(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Self::Program(program) => program.matches(path),
        }
    }

    /// Whether something below the directory `dir` might match.
    pub(super) fn may_match_below(&self, dir: &str) -> bool {
        let prefix = match self {
            Self::Exact(text) | Self::Prefix(text) => text.as_str(),
            Self::Suffix(_) => return true,
            Self::Program(program) => program.prefix.as_str(),
        };
        // One of the two must be the beginning of the other, `/` behind `dir` included.
        match prefix.strip_prefix(dir) {
            Some(rest) => rest.starts_with('/') || (rest.is_empty() && !matches!(self, Self::Exact(_))),
            None => dir.starts_with(prefix) && !matches!(self, Self::Exact(_)),
        }
    }
}

/// The literals of `tokens`.
fn literals(tokens: &[Token]) -> String {
    tokens.iter().map_while(literal).collect()
}

fn literal(token: &Token) -> Option<char> {
    match token {
        Token::Literal(c) => Some(*c),
        _ => None,
    }
}

impl Program {
    fn new(tokens: Vec<Token>) -> Self {
        let prefix = literals(&tokens);
        let suffix: Vec<char> = tokens.iter().rev().map_while(literal).collect();
        let suffix = suffix.into_iter().rev().collect();
        let may_hide_slash = |token: &Token| match token {
            Token::Rest | Token::Deep | Token::DeepLoop => true,
            Token::Class(class) => class.contains('/'),
            Token::Literal(_) | Token::One | Token::Star => false,
        };
        let n_slashes = if tokens.iter().any(may_hide_slash) {
            None
        } else {
            Some(tokens.iter().filter(|token| **token == Token::Literal('/')).count())
        };
        Self { tokens, prefix, suffix, n_slashes }
    }

    fn matches(&self, path: &str) -> bool {
        path.starts_with(&self.prefix)
            && path.ends_with(&self.suffix)
            && self.n_slashes.is_none_or(|n| path.bytes().filter(|byte| *byte == b'/').count() == n)
            && self.run(path)
    }

    /// State `i` means: what was read so far matches the tokens before `i`.
    fn run(&self, path: &str) -> bool {
        let mut states = States::new(self.tokens.len() + 1);
        let mut next = States::new(self.tokens.len() + 1);
        states.insert(0);
        self.close(&mut states);
        for c in path.chars() {
            next.clear();
            let mut from = 0;
            while let Some(state) = states.first_from(from) {
                self.step(state, c, &mut next);
                from = state + 1;
            }
            if next.first_from(0).is_none() {
                return false;
            }
            self.close(&mut next);
            std::mem::swap(&mut states, &mut next);
        }
        states.contains(self.tokens.len())
    }

    fn step(&self, state: usize, c: char, next: &mut States) {
        let Some(token) = self.tokens.get(state) else { return };
        match token {
            Token::Literal(wanted) if *wanted == c => next.insert(state + 1),
            Token::One if c != '/' => next.insert(state + 1),
            Token::Class(class) if class.contains(c) => next.insert(state + 1),
            Token::Star if c != '/' => next.insert(state),
            Token::Rest => next.insert(state),
            Token::DeepLoop => {
                next.insert(state);
                if c == '/' {
                    next.insert(state + 1);
                }
            }
            _ => {}
        }
    }

    /// Adds the states that are reached without reading. They lie behind their origins, so that one sweep is enough.
    fn close(&self, states: &mut States) {
        let mut from = 0;
        while let Some(state) = states.first_from(from) {
            match self.tokens.get(state) {
                Some(Token::Star | Token::Rest) => states.insert(state + 1),
                Some(Token::Deep) => {
                    states.insert(state + 1);
                    states.insert(state + 2);
                }
                _ => {}
            }
            from = state + 1;
        }
    }
}

/// A set of small numbers. Most patterns have fewer than 64 states, which need no allocation.
struct States {
    first: u64,
    others: Vec<u64>,
}

impl States {
    fn new(n_states: usize) -> Self {
        Self { first: 0, others: vec![0; n_states.saturating_sub(1) / 64] }
    }

    fn insert(&mut self, state: usize) {
        let word = if state < 64 { &mut self.first } else { &mut self.others[state / 64 - 1] };
        *word |= 1 << (state % 64);
    }

    fn contains(&self, state: usize) -> bool {
        self.first_from(state) == Some(state)
    }

    fn clear(&mut self) {
        self.first = 0;
        self.others.fill(0);
    }

    /// The smallest number that is not below `from`.
    fn first_from(&self, from: usize) -> Option<usize> {
        let words = std::iter::once(&self.first).chain(&self.others).enumerate().skip(from / 64);
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in words {
            let masked = *word & mask;
            if masked != 0 {
                return Some(index * 64 + masked.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}
