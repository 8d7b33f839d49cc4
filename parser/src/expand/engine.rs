//! One pass over a text. The cursor only moves forward, so every loop ends.

use std::collections::HashSet;

use super::pattern::Pattern;
use super::{ExpandError, ExpandFault, Expanded, ExpandedWords, Lookup};

/// `${` within `${`: beyond this the text is refused, so that recursion cannot exhaust the stack.
const MAX_DEPTH: usize = 100;

/// What variables may bring into one text. A few lines of `ENV a=$a$a$a` would otherwise take all memory there is.
const MAX_EXPANSION_BYTES: usize = 4 << 20;

/// Pattern × value, for all patterns of a text: some ten milliseconds. No value that a process can be given comes near.
const MAX_PATTERN_STEPS: usize = 1 << 26;

/// Stands for the end of the text in messages.
const END: char = '\u{fffd}';

/// What varies between the users of the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    escape: char,
    /// Quotes group text; otherwise they are ordinary characters.
    quotes: bool,
    /// Quotes stay in the result.
    raw_quotes: bool,
    /// Escapes stay in the result.
    raw_escapes: bool,
    /// Unset variables stay in the result as they are written.
    keep_unset: bool,
    /// Blanks behind `<<` belong to the word.
    join_heredoc: bool,
}

impl Mode {
    pub(super) fn word(escape: char) -> Self {
        Self { escape, quotes: true, raw_quotes: false, raw_escapes: false, keep_unset: false, join_heredoc: false }
    }

    pub(super) fn display(escape: char) -> Self {
        Self { raw_quotes: true, keep_unset: true, ..Self::word(escape) }
    }

    pub(super) fn heredoc_body() -> Self {
        Self { quotes: false, ..Self::word('\\') }
    }

    pub(super) fn heredoc_scan() -> Self {
        Self { raw_quotes: true, raw_escapes: true, keep_unset: true, join_heredoc: true, ..Self::word('\\') }
    }

    pub(super) fn heredoc_delimiter(raw_quotes: bool) -> Self {
        Self { raw_quotes, keep_unset: true, ..Self::word('\\') }
    }
}

/// The text as a whole and split into words.
pub(super) struct Output {
    text: String,
    words: Words,
    used: Vec<String>,
    unset: Vec<String>,
}

impl Output {
    pub(super) fn into_text(self) -> Expanded {
        Expanded { text: self.text, used: self.used, unset: self.unset }
    }

    pub(super) fn into_words(self) -> ExpandedWords {
        ExpandedWords { words: self.words.finish(), used: self.used, unset: self.unset }
    }
}

/// Runs the engine over all of `text`.
pub(super) fn run(text: &str, env: &dyn Lookup, mode: Mode) -> Result<Output, ExpandError> {
    let mut engine = Engine {
        rest: text,
        env,
        mode,
        depth: 0,
        n_expanded_bytes: 0,
        n_steps: 0,
        known: HashSet::new(),
        used: Vec::new(),
        unset: Vec::new(),
    };
    let mut out = Sink::default();
    match engine.until(None, mode.raw_escapes, &mut out) {
        Ok(()) => Ok(Output { text: out.text, words: out.words, used: engine.used, unset: engine.unset }),
        Err(fault) => Err(ExpandError { word: text.to_owned(), fault }),
    }
}

/// Collects words. A word ends at a blank that is not quoted.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn push_splitting(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

#[derive(Default)]
struct Sink {
    text: String,
    words: Words,
}

impl Sink {
    /// Text that was written plainly or came from a variable.
    fn plain(&mut self, text: &str) {
        self.text.push_str(text);
        text.chars().for_each(|c| self.words.push_splitting(c));
    }

    /// Text that was quoted or escaped.
    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.words.word.push_str(text);
    }
}

struct Engine<'a> {
    rest: &'a str,
    env: &'a dyn Lookup,
    mode: Mode,
    depth: usize,
    /// What variables have brought so far, see [`MAX_EXPANSION_BYTES`].
    n_expanded_bytes: usize,
    /// See [`MAX_PATTERN_STEPS`].
    n_steps: usize,
    /// All names in `used` and `unset`.
    known: HashSet<String>,
    used: Vec<String>,
    unset: Vec<String>,
}

impl Engine<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.rest = &self.rest[c.len_utf8()..];
        }
        found
    }

    /// Processes up to `stop`, which is consumed, or to the end of the text if there is no `stop`.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool, out: &mut Sink) -> Result<(), ExpandFault> {
        while let Some(c) = self.next() {
            if stop == Some(c) {
                return Ok(());
            }
            let mut buffer = [0; 4];
            match c {
                '$' => out.plain(&self.dollar()?),
                '\'' if self.mode.quotes => out.quoted(&self.single_quoted()?),
                '"' if self.mode.quotes => out.quoted(&self.double_quoted(raw_escapes)?),
                '<' if self.mode.join_heredoc && self.eat('<') => {
                    out.quoted("<<");
                    while let Some(blank) = self.peek().filter(|c| c.is_whitespace()) {
                        self.next();
                        out.quoted(blank.encode_utf8(&mut buffer));
                    }
                }
                c if c == self.mode.escape => {
                    if raw_escapes {
                        out.quoted(c.encode_utf8(&mut buffer));
                    }
                    // At the very end the escape just vanishes.
                    let Some(escaped) = self.next() else { break };
                    out.quoted(escaped.encode_utf8(&mut buffer));
                }
                c => out.plain(c.encode_utf8(&mut buffer)),
            }
        }
        match stop {
            None => Ok(()),
            Some('/') => Err(ExpandFault::MissingSlash),
            Some(_) => Err(ExpandFault::MissingBrace),
        }
    }

    /// The text of an operand, which ends at `stop`.
    fn operand(&mut self, stop: char, raw_escapes: bool) -> Result<String, ExpandFault> {
        if self.depth == MAX_DEPTH {
            return Err(ExpandFault::TooDeep);
        }
        self.depth += 1;
        let mut out = Sink::default();
        let result = self.until(Some(stop), raw_escapes, &mut out);
        self.depth -= 1;
        match result {
            Ok(()) => Ok(out.text),
            Err(fault @ (ExpandFault::TooDeep | ExpandFault::TooLong | ExpandFault::PatternTooLong)) => Err(fault),
            // A quote that swallowed the rest is reported as what is missing behind it.
            Err(_) if self.rest.is_empty() && stop == '/' => Err(ExpandFault::MissingSlash),
            Err(_) if self.rest.is_empty() => Err(ExpandFault::MissingBrace),
            Err(fault) => Err(fault),
        }
    }

    /// Behind `'`: everything is literal up to the next one.
    fn single_quoted(&mut self) -> Result<String, ExpandFault> {
        let Some(end) = self.rest.find('\'') else {
            self.rest = "";
            return Err(ExpandFault::OpenSingleQuote);
        };
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(if self.mode.raw_quotes { format!("'{text}'") } else { text.to_owned() })
    }

    /// Behind `"`: variables expand, and the escape only escapes `"`, `$` and itself.
    fn double_quoted(&mut self, raw_escapes: bool) -> Result<String, ExpandFault> {
        let quote = if self.mode.raw_quotes { "\"" } else { "" };
        let mut out = quote.to_owned();
        loop {
            match self.next() {
                None => return Err(ExpandFault::OpenDoubleQuote),
                Some('"') => {
                    out.push_str(quote);
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(c) if c == self.mode.escape => {
                    if raw_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == c => {
                            self.next();
                            out.push(escaped);
                        }
                        // Kept where it escapes nothing; in an operand it is thereby escaped itself.
                        Some(_) => out.push(c),
                    }
                }
                Some(c) => out.push(c),
            }
        }
    }

    /// Behind `$`.
    fn dollar(&mut self) -> Result<String, ExpandFault> {
        if self.eat('{') {
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        match self.lookup(&name)? {
            None if self.mode.keep_unset => Ok(format!("${name}")),
            value => Ok(value.unwrap_or_default()),
        }
    }

    /// Behind `${`.
    fn braces(&mut self) -> Result<String, ExpandFault> {
        match self.peek() {
            None => return Err(ExpandFault::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandFault::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => match self.lookup(&name)? {
                None if self.mode.keep_unset => Ok(format!("${{{name}}}")),
                value => Ok(value.unwrap_or_default()),
            },
            Some(':') => {
                let operator = self.next();
                self.conditional(&name, operator.unwrap_or(END), true)
            }
            Some(operator @ ('+' | '-' | '?')) => self.conditional(&name, operator, false),
            Some(operator @ ('#' | '%')) => self.trim(&name, operator),
            Some('/') => self.replace(&name),
            other => Err(ExpandFault::UnsupportedModifier(other.unwrap_or(END).to_string())),
        }
    }

    /// `-`, `+` and `?`; with `colon` an empty value counts as unset.
    fn conditional(&mut self, name: &str, operator: char, colon: bool) -> Result<String, ExpandFault> {
        let word = self.operand('}', false)?;
        let written = if colon { format!(":{operator}") } else { operator.to_string() };
        if !matches!(operator, '-' | '+' | '?') {
            return Err(ExpandFault::UnsupportedModifier(written));
        }
        let value = self.lookup(name)?;
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let is_set = value.is_some();
        let present = value.filter(|value| !colon || !value.is_empty());
        match (operator, present) {
            ('-', None) => Ok(word),
            ('+', None) => Ok(String::new()),
            ('+', Some(_)) => Ok(word),
            ('?', None) => {
                let reason = if is_set { "is not allowed to be empty" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { reason.to_owned() } else { word };
                Err(ExpandFault::Required { name: name.to_owned(), message })
            }
            (_, Some(value)) => Ok(value),
            (_, None) => Ok(String::new()),
        }
    }

    /// `#`, `##`, `%` and `%%`.
    fn trim(&mut self, name: &str, operator: char) -> Result<String, ExpandFault> {
        let word = self.operand('}', true)?;
        let value = self.lookup(name)?;
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}{operator}{word}}}"));
        }
        let (text, longest) = match word.strip_prefix(operator) {
            Some(text) => (text, true),
            None => (word.as_str(), false),
        };
        let pattern = Pattern::parse(text)?;
        let value = value.unwrap_or_default();
        self.spend_steps(&pattern, &value)?;
        Ok(if operator == '#' { pattern.trim_prefix(&value, longest) } else { pattern.trim_suffix(&value, longest) })
    }

    /// `/p/r` and `//p/r`.
    fn replace(&mut self, name: &str) -> Result<String, ExpandFault> {
        let every = self.eat('/');
        let pattern = self.operand('/', true)?;
        let replacement = self.operand('}', true)?;
        let value = self.lookup(name)?;
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let compiled = Pattern::parse(&pattern)?;
        let value = value.unwrap_or_default();
        self.spend_steps(&compiled, &value)?;
        let replaced = compiled.replace(&value, &replacement, every, MAX_EXPANSION_BYTES);
        let replaced = replaced.ok_or(ExpandFault::TooLong)?;
        self.spend_bytes(replaced.len())?;
        Ok(replaced)
    }

    /// A name: digits only, one special character, or letters, digits and underscores. Empty if there is none.
    fn name(&mut self) -> String {
        let first = self.peek();
        let end = match first {
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => Some(1),
            Some(c) if c.is_numeric() => self.rest.find(|c: char| !c.is_numeric()),
            _ => self.rest.find(|c: char| !c.is_alphanumeric() && c != '_'),
        };
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        name.to_owned()
    }

    fn lookup(&mut self, name: &str) -> Result<Option<String>, ExpandFault> {
        let value = self.env.get(name).map(str::to_owned);
        if self.known.insert(name.to_owned()) {
            let names = if value.is_some() { &mut self.used } else { &mut self.unset };
            names.push(name.to_owned());
        }
        self.spend_bytes(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn spend_bytes(&mut self, n_bytes: usize) -> Result<(), ExpandFault> {
        self.n_expanded_bytes = self.n_expanded_bytes.saturating_add(n_bytes);
        if self.n_expanded_bytes > MAX_EXPANSION_BYTES { Err(ExpandFault::TooLong) } else { Ok(()) }
    }

    fn spend_steps(&mut self, pattern: &Pattern, value: &str) -> Result<(), ExpandFault> {
        self.n_steps = self.n_steps.saturating_add(pattern.longest_segment().saturating_mul(value.len()));
        if self.n_steps > MAX_PATTERN_STEPS { Err(ExpandFault::PatternTooLong) } else { Ok(()) }
    }
}
