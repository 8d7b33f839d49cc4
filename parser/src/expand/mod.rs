//! The expansion engine: variables, quotes and escapes in one word. Spec: §3.1.
//!
//! Pure: it knows no instructions and no stages, only a [`Lookup`]. Linear in the text apart from patterns; nesting is
//! bounded, so no text can exhaust the stack.

mod engine;
mod pattern;

use crate::go;

/// Where values come from.
pub trait Lookup {
    /// The value of `name`, `None` when it is not set. An empty value is set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// Nothing is set.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVariables;

impl Lookup for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// The last pair of a name counts.
impl<K: AsRef<str>, V: AsRef<str>> Lookup for [(K, V)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.as_ref())
    }
}

impl<K: AsRef<str>, V: AsRef<str>> Lookup for Vec<(K, V)> {
    fn get(&self, name: &str) -> Option<&str> {
        Lookup::get(self.as_slice(), name)
    }
}

impl Lookup for std::collections::BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        std::collections::BTreeMap::get(self, name).map(String::as_str)
    }
}

impl Lookup for std::collections::HashMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        std::collections::HashMap::get(self, name).map(String::as_str)
    }
}

/// A text after expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The result.
    pub text: String,
    /// Names that were looked up and are set, each once, in order.
    pub used: Vec<String>,
    /// Names that were looked up and are not set, each once, in order; whether a default stood in does not matter.
    pub unset: Vec<String>,
}

/// A text after expansion and splitting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpandedWords {
    /// The words; none is empty.
    pub words: Vec<String>,
    /// As in [`Expanded::used`].
    pub used: Vec<String>,
    /// As in [`Expanded::unset`].
    pub unset: Vec<String>,
}

/// Why a word cannot be expanded. Displays as BuildKit's text, the word included.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {fault}", go::quote(word))]
pub struct ExpandError {
    /// The complete word.
    pub word: String,
    /// What is wrong with it.
    pub fault: ExpandFault,
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandFault {
    /// `'` without its end.
    #[error("unexpected end of statement while looking for matching single-quote")]
    OpenSingleQuote,
    /// `"` without its end.
    #[error("unexpected end of statement while looking for matching double-quote")]
    OpenDoubleQuote,
    /// `${x:-` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${x/a` without the second `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${{`, `${:`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// Whatever follows the name is no operator; U+FFFD stands for the end of the text.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${x?message}`.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The user's text, or why it is needed.
        message: String,
    },
    /// An escape in a pattern that means nothing.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped}'")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// What is escaped; U+FFFD stands for the end of the pattern.
        escaped: char,
    },
    /// More `${` within `${` than anyone writes.
    #[error("syntax error: substitutions are nested too deeply")]
    TooDeep,
    /// Variables bring more than memory should be spent on.
    #[error("substitutions make the text longer than 4 MiB")]
    TooLong,
    /// A pattern and its value would take seconds to compare.
    #[error("pattern and value of a substitution are too long")]
    PatternTooLong,
}

impl ExpandFault {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        const OPERATORS: &str = "after the name, `${X…}` takes `:-default`, `:+alternative`, `:?message`, `#prefix`, \
                                 `%suffix` or `/old/new`";
        Some(match self {
            Self::OpenSingleQuote => "close the quote; an apostrophe that is text stands in double quotes".to_owned(),
            Self::OpenDoubleQuote => "close the quote; a quote that is text has an escape before it: `\\\"`".to_owned(),
            Self::MissingBrace => "close the substitution with `}`".to_owned(),
            Self::MissingSlash => "write it as `${NAME/old/new}`".to_owned(),
            Self::BadSubstitution => "write it as `${NAME}`".to_owned(),
            Self::UnsupportedModifier(end) if end == "\u{fffd}" => "close the substitution with `}`".to_owned(),
            Self::UnsupportedModifier(_) => OPERATORS.to_owned(),
            Self::Required { name, .. } => {
                format!("give `{name}` a value with ARG or ENV, or pass --build-arg {name}=VALUE")
            }
            Self::InvalidPattern { .. } => {
                "in a pattern, a backslash stands only before `*`, `?`, `/`, `}` and another backslash".to_owned()
            }
            Self::TooLong | Self::PatternTooLong => "make the text in a RUN, where a shell is at hand".to_owned(),
            Self::TooDeep => return None,
        })
    }
}

/// Expands words. Copies of it are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expander {
    /// The escape token of the file.
    pub escape: char,
}

impl Expander {
    /// `escape` is [`crate::directive::Directives::escape`].
    pub fn new(escape: char) -> Self {
        Self { escape }
    }

    /// Expands `word`; blanks are kept.
    ///
    /// # Errors
    ///
    /// Unbalanced quotes, malformed `${…}`, or a variable that `?` requires.
    pub fn process_word(&self, word: &str, env: &dyn Lookup) -> Result<Expanded, ExpandError> {
        engine::run(word, env, engine::Mode::word(self.escape)).map(engine::Output::into_text)
    }

    /// Expands `word` and splits it at blanks that are not quoted, also those that come from a variable.
    ///
    /// # Errors
    ///
    /// As [`Self::process_word`].
    pub fn process_words(&self, word: &str, env: &dyn Lookup) -> Result<ExpandedWords, ExpandError> {
        engine::run(word, env, engine::Mode::word(self.escape)).map(engine::Output::into_words)
    }

    /// Expands a command line for people to read: quotes stay, and so do variables that are not set.
    ///
    /// # Errors
    ///
    /// As [`Self::process_word`].
    pub fn process_display(&self, text: &str, env: &dyn Lookup) -> Result<Expanded, ExpandError> {
        engine::run(text, env, engine::Mode::display(self.escape)).map(engine::Output::into_text)
    }

    /// Expands the body of an unquoted heredoc: quotes are ordinary characters and the escape is always a backslash.
    /// Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// As [`Self::process_word`], without quotes.
    pub fn process_heredoc(&self, body: &[u8], env: &dyn Lookup) -> Result<Expanded, ExpandError> {
        engine::run(&String::from_utf8_lossy(body), env, engine::Mode::heredoc_body()).map(engine::Output::into_text)
    }
}

/// Splits a line into words as the search for heredocs needs it: quotes, escapes and variables stay as they are, and
/// blanks behind `<<` belong to the word. `None` when the line has unbalanced quotes or the like.
pub(crate) fn heredoc_candidates(line: &str) -> Option<Vec<String>> {
    engine::run(line, &NoVariables, engine::Mode::heredoc_scan()).ok().map(|output| output.into_words().words)
}

/// The delimiter that a heredoc word names, as words: once without and once with its quotes.
pub(crate) fn heredoc_delimiter(word: &str) -> Result<(Vec<String>, Vec<String>), ExpandError> {
    let split = |raw_quotes| {
        engine::run(word, &NoVariables, engine::Mode::heredoc_delimiter(raw_quotes))
            .map(|output| output.into_words().words)
    };
    Ok((split(false)?, split(true)?))
}

#[cfg(test)]
mod tests;
