//! The parts of one logical line: keyword, flags, arguments in the form that the keyword calls for. Spec: §1.5, §1.6,
//! §2.4.
//!
//! The first of two steps: what is wrong here is reported without the prefix `dockerfile parse error on line N`, and
//! before anything that [`crate::instruction`] finds, wherever in the file that is.

use crate::error::{LineRange, ParseError};
use crate::exec_form::{ExecForm, exec_form};
use crate::flags::{RawFlag, split_flags};
use crate::go;
use crate::words::{split_blanks, split_keyword, split_words};

/// A logical line in parts.
#[derive(Debug, PartialEq)]
pub(crate) struct Node {
    /// With its letter case.
    pub(crate) keyword: String,
    /// In order, unchecked.
    pub(crate) flags: Vec<RawFlag>,
    /// What follows the flags.
    pub(crate) args: Args,
}

/// Arguments as the keyword's grammar splits them.
#[derive(Debug, PartialEq)]
pub(crate) enum Args {
    /// Nothing, or the keyword is not known.
    None,
    /// The rest of the line.
    Text(String),
    /// Split at blanks, or a JSON array of a keyword that takes a list of paths.
    Words { words: Vec<String>, json: bool },
    /// A JSON array in place of a command line.
    Json(Vec<String>),
    /// `key=value` or, in the legacy form, one key and the rest of the line.
    Pairs { pairs: Vec<(String, String)>, legacy: bool },
    /// HEALTHCHECK: its type and what follows.
    Healthcheck { kind: String, command: Box<Args> },
    /// ONBUILD: the trigger.
    Trigger(Box<Node>),
}

/// Something is wrong with an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    /// The word at fault, as it stands in the source.
    pub(crate) word: Option<String>,
    pub(crate) help: Vec<String>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), word: None, help: Vec::new() }
    }

    pub(crate) fn about(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// With the message as it is.
    pub(crate) fn into_error(self, lines: LineRange) -> ParseError {
        let mut error = ParseError::new(self.message).at(lines);
        error.help = self.help;
        error
    }
}

impl Node {
    /// Splits a logical line. A fault does not keep the line from having a node: it then has no arguments.
    pub(crate) fn parse(text: &str, escape: char) -> (Self, Option<Fault>) {
        let (keyword, rest) = split_keyword(text.trim());
        let (flags, rest) = split_flags(rest, escape);
        let (args, fault) = match Args::parse(&keyword.to_ascii_lowercase(), rest.trim(), escape) {
            Ok(args) => (args, None),
            Err(fault) => (Args::None, Some(fault)),
        };
        (Self { keyword: keyword.to_owned(), flags, args }, fault)
    }

    /// Whether bodies may follow: ADD, COPY and RUN, also behind ONBUILD, unless in JSON form.
    pub(crate) fn takes_heredocs(&self) -> bool {
        let node = match &self.args {
            Args::Trigger(trigger) => trigger,
            _ => self,
        };
        let takes = ["add", "copy", "run"].iter().any(|name| node.keyword.eq_ignore_ascii_case(name));
        takes && !matches!(node.args, Args::Json(_) | Args::Words { json: true, .. })
    }
}

impl Args {
    /// `rest` is trimmed; `keyword` in lower case.
    fn parse(keyword: &str, rest: &str, escape: char) -> Result<Self, Fault> {
        if rest.is_empty() {
            return Ok(Self::None);
        }
        match keyword {
            "run" | "cmd" | "entrypoint" | "shell" => Self::command(rest),
            "add" | "copy" | "volume" => Ok(match exec_form(rest)? {
                ExecForm::Array(words) => Self::Words { words, json: true },
                ExecForm::Plain => Self::Words { words: split_blanks(rest), json: false },
            }),
            "expose" | "from" => Ok(Self::Words { words: split_blanks(rest), json: false }),
            "arg" => Ok(Self::Words { words: split_words(rest, escape), json: false }),
            "env" | "label" => Self::pairs(keyword, rest, escape),
            "maintainer" | "stopsignal" | "user" | "workdir" => Ok(Self::Text(rest.to_owned())),
            "healthcheck" => {
                let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let command = command.trim_start();
                let command = if command.is_empty() { Self::None } else { Self::command(command)? };
                Ok(Self::Healthcheck { kind: kind.to_owned(), command: Box::new(command) })
            }
            "onbuild" => Self::trigger(rest, escape),
            _ => Ok(Self::None),
        }
    }

    fn command(rest: &str) -> Result<Self, Fault> {
        Ok(match exec_form(rest)? {
            ExecForm::Array(words) => Self::Json(words),
            ExecForm::Plain => Self::Text(rest.to_owned()),
        })
    }

    /// ONBUILD of ONBUILD is refused later, so only its keyword is looked at; this also bounds the nesting.
    fn trigger(rest: &str, escape: char) -> Result<Self, Fault> {
        let (keyword, _) = split_keyword(rest);
        if keyword.eq_ignore_ascii_case("onbuild") {
            let node = Node { keyword: keyword.to_owned(), flags: Vec::new(), args: Self::None };
            return Ok(Self::Trigger(Box::new(node)));
        }
        match Node::parse(rest, escape) {
            (node, None) => Ok(Self::Trigger(Box::new(node))),
            (_, Some(fault)) => Err(fault),
        }
    }

    /// The first word decides: with `=` in it all words are pairs, without it is the key of the rest of the line.
    fn pairs(keyword: &str, rest: &str, escape: char) -> Result<Self, Fault> {
        let words = split_words(rest, escape);
        let Some(first) = words.first() else { return Ok(Self::None) };
        if !first.contains('=') {
            let (key, value) = split_keyword(rest);
            if value.is_empty() {
                let name = keyword.to_ascii_uppercase();
                return Err(Fault::new(format!("{name} must have two arguments"))
                    .about(key)
                    .help(format!("write `{name} {key}=value`")));
            }
            return Ok(Self::Pairs { pairs: vec![(key.to_owned(), value.to_owned())], legacy: true });
        }
        let mut pairs = Vec::with_capacity(words.len());
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                let quoted = go::quote(&word);
                let message = format!("Syntax error - can't find = in {quoted}. Must be of the form: name=value");
                return Err(Fault::new(message)
                    .about(word.as_str())
                    .help(format!("write `{word}=value`; a value that has blanks in it needs quotes around it")));
            };
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self::Pairs { pairs, legacy: false })
    }
}
