//! `--name=value` before the arguments: how they are split off, and which ones an instruction takes. Spec: §1.5.

use std::borrow::Cow;

use nom::Parser;
use nom::branch::alt;
use nom::bytes::complete::take_while1;
use nom::character::complete::{anychar, char};
use nom::combinator::{eof, recognize, value};
use nom::error::Error;
use nom::multi::fold_many0;
use nom::sequence::preceded;

use crate::instruction::TABLES;
use crate::node::Fault;
use crate::suggest::with_suggestion;

/// A flag as it stands in the line, quotes and escapes removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawFlag {
    /// Without the two dashes.
    pub(crate) name: String,
    /// What follows the first `=`.
    pub(crate) value: Option<String>,
}

/// Splits the flags off the start of `rest`. Returns them and the argument text.
///
/// A word that is just `--` ends the flags and is dropped.
pub(crate) fn split_flags(mut rest: &str, escape: char) -> (Vec<RawFlag>, &str) {
    let mut flags = Vec::new();
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        // The grammar of a word accepts any text; if it ever did not, the rest would be the argument text.
        let Ok((behind, word)) = flag_word(escape).parse(rest) else { return (flags, rest) };
        rest = behind;
        let Some(body) = word.strip_prefix("--").filter(|body| !body.is_empty()) else { return (flags, rest) };
        flags.push(match body.split_once('=') {
            Some((name, value)) => RawFlag { name: name.to_owned(), value: Some(value.to_owned()) },
            None => RawFlag { name: body.to_owned(), value: None },
        });
    }
}

/// One word: quotes of both kinds group and vanish, the escape takes the next character as it is.
fn flag_word<'a>(escape: char) -> impl Parser<&'a str, Output = String, Error = Error<&'a str>> {
    let plain = take_while1(move |c: char| c != escape && c != '\'' && c != '"' && !c.is_whitespace());
    let piece =
        alt((plain.map(Cow::Borrowed), escaped(escape).map(Cow::Borrowed), quoted('\'', escape), quoted('"', escape)));
    fold_many0(piece, String::new, |mut word, piece| {
        word.push_str(&piece);
        word
    })
}

/// An escaped character; nothing when the escape is the last character.
fn escaped<'a>(escape: char) -> impl Parser<&'a str, Output = &'a str, Error = Error<&'a str>> {
    preceded(char(escape), alt((recognize(anychar), eof)))
}

/// From a quote to its partner, or to the end.
fn quoted<'a>(quote: char, escape: char) -> impl Parser<&'a str, Output = Cow<'a, str>, Error = Error<&'a str>> {
    let plain = take_while1(move |c| c != quote && c != escape);
    let content = fold_many0(alt((plain, escaped(escape))), String::new, |mut text, piece| {
        text.push_str(piece);
        text
    });
    let closing = alt((value((), char(quote)), value((), eof)));
    (char(quote), content, closing).map(|(_, content, ())| Cow::Owned(content))
}

/// What values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// `--x`, `--x=true`, `--x=false`.
    Bool,
    /// `--x=text`
    Text,
    /// `--x=text`, any number of times.
    List,
}

/// The flags of an instruction: names and kinds.
pub(crate) type FlagTable = &'static [(&'static str, FlagKind)];

/// Flags that are known and well formed.
#[derive(Debug)]
pub(crate) struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Checks `raw` against what `keyword` takes.
    pub(crate) fn check(keyword: &str, raw: &[RawFlag], table: FlagTable) -> Result<Self, Fault> {
        let mut flags: Vec<(&'static str, String)> = Vec::with_capacity(raw.len());
        for flag in raw {
            let name = flag.name.as_str();
            let about = |message: String| Fault::new(message).about(format!("--{name}"));
            let Some(&(known, kind)) = table.iter().find(|(known, _)| *known == name) else {
                let candidates = table.iter().map(|(known, _)| *known);
                let fault = about(with_suggestion(format!("unknown flag: --{name}"), name, candidates));
                let elsewhere = taken_by(name).map(|others| format!("; --{name} is a flag of {others}"));
                return Err(fault.help(accepted(keyword, table) + &elsewhere.unwrap_or_default()));
            };
            if kind != FlagKind::List && flags.iter().any(|(used, _)| *used == known) {
                return Err(about(format!("duplicate flag specified: --{name}")).help("give it once"));
            }
            let value = match (kind, flag.value.as_deref()) {
                (FlagKind::Bool, None) => "true".to_owned(),
                (FlagKind::Bool, Some("")) | (FlagKind::Text | FlagKind::List, None) => {
                    let fault = about(format!("missing a value on flag: --{name}"));
                    return Err(fault.help(match kind {
                        FlagKind::Bool => format!("write `--{name}`, or `--{name}=false`"),
                        _ => format!("write `--{name}=VALUE`, with `=` and without a blank"),
                    }));
                }
                (FlagKind::Bool, Some(text)) => match text.to_ascii_lowercase().as_str() {
                    lower @ ("true" | "false") => lower.to_owned(),
                    _ => {
                        let message = format!("expecting boolean value for flag --{name}, not: {text}");
                        return Err(about(message).help(format!("write `--{name}`, or `--{name}=false`")));
                    }
                },
                (FlagKind::Text | FlagKind::List, Some(text)) => text.to_owned(),
            };
            flags.push((known, value));
        }
        Ok(Self(flags))
    }

    /// A text flag; an empty text is as if the flag were absent.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, value)| *known == name && !value.is_empty()).map(|(_, value)| value.clone())
    }

    /// A boolean flag, `None` when absent.
    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value == "true")
    }

    /// All values of a repeatable flag, in order.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone()).collect()
    }
}

fn accepted(keyword: &str, table: FlagTable) -> String {
    if table.is_empty() {
        return format!("`{keyword}` takes no flags");
    }
    let names: Vec<String> = table.iter().map(|(name, _)| format!("--{name}")).collect();
    format!("`{keyword}` takes {}", names.join(", "))
}

/// The instructions that have a flag of that name.
fn taken_by(name: &str) -> Option<String> {
    let has_it = |table: FlagTable| table.iter().any(|(known, _)| *known == name);
    let keywords: Vec<&str> = TABLES.iter().filter(|(_, table)| has_it(table)).map(|(keyword, _)| *keyword).collect();
    (!keywords.is_empty()).then(|| keywords.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(rest: &str, escape: char) -> (Vec<(String, Option<String>)>, &str) {
        let (flags, rest) = split_flags(rest, escape);
        (flags.into_iter().map(|flag| (flag.name, flag.value)).collect(), rest)
    }

    #[test]
    fn splitting() {
        type Row = (&'static str, &'static [(&'static str, Option<&'static str>)], &'static str);
        let table: &[Row] = &[
            ("a b", &[], "a b"),
            ("--from=x a b", &[("from", Some("x"))], "a b"),
            ("--link --from= a", &[("link", None), ("from", Some(""))], "a"),
            ("--a=b=c", &[("a", Some("b=c"))], ""),
            ("-- --a b", &[], " --a b"),
            ("--x -- --a b", &[("x", None)], " --a b"),
            ("-x a", &[], "-x a"),
            ("a --x", &[], "a --x"),
            ("--c=\"1 2\":'3 4' a", &[("c", Some("1 2:3 4"))], "a"),
            ("--c=6\\4\\0 a", &[("c", Some("640"))], "a"),
            ("--c='x\\'y' a", &[("c", Some("x'y"))], "a"),
            ("--c=x\\", &[("c", Some("x"))], ""),
            ("--c=\"x y", &[("c", Some("x y"))], ""),
            ("--größe=☃ a", &[("größe", Some("☃"))], "a"),
        ];
        for (rest, want, want_rest) in table {
            let (flags, rest_got) = split(rest, '\\');
            let flags: Vec<(&str, Option<&str>)> =
                flags.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            assert_eq!((flags.as_slice(), rest_got), (*want, *want_rest), "{rest}");
        }
        assert_eq!(split("--c=a` b\\ c", '`').0, [("c".to_owned(), Some("a b\\".to_owned()))]);
    }

    #[test]
    fn checking() {
        const TABLE: FlagTable = &[("from", FlagKind::Text), ("link", FlagKind::Bool), ("mount", FlagKind::List)];
        let table = [
            ("--mont=x", Err("unknown flag: --mont (did you mean mount?)")),
            ("--recursive", Err("unknown flag: --recursive")),
            ("--Link", Err("unknown flag: --Link (did you mean link?)")),
            ("--from=a --from=b", Err("duplicate flag specified: --from")),
            ("--from", Err("missing a value on flag: --from")),
            ("--mount", Err("missing a value on flag: --mount")),
            ("--link=", Err("missing a value on flag: --link")),
            ("--link=yes", Err("expecting boolean value for flag --link, not: yes")),
            ("--link=TRUE --from= --mount=a --mount=b", Ok((None, Some(true), vec!["a", "b"]))),
            ("--link=False --from=x", Ok((Some("x"), Some(false), vec![]))),
            ("", Ok((None, None, vec![]))),
        ];
        for (text, want) in table {
            let got = Flags::check("COPY", &split_flags(text, '\\').0, TABLE)
                .map(|flags| (flags.text("from"), flags.bool("link"), flags.list("mount")))
                .map_err(|fault| fault.message);
            let want = want
                .map(|(from, link, mounts)| {
                    (from.map(str::to_owned), link, mounts.into_iter().map(str::to_owned).collect())
                })
                .map_err(str::to_owned);
            assert_eq!(got, want, "{text}");
        }
    }
}
