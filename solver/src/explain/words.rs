//! Changes in words.

use std::fmt::Write as _;

use super::change::{Change, What};

/// Longest value shown in [`brief`], in characters.
const BRIEF_VALUE_CHARS: usize = 32;
/// How commands in shell form begin.
const SHELL: &str = "/bin/sh -c ";
/// What is shown of a value before the place where two long ones begin to differ.
const LEAD_CHARS: usize = 10;

/// Changes in half a line, the first one in full: `src/a.rs changed, and 3 more`.
///
/// Empty when there are none.
pub fn brief(changes: &[Change]) -> String {
    let Some(first) = changes.first() else { return String::new() };
    let n_hidden: usize = changes.iter().filter_map(hidden_files).sum();
    let n_more = changes[1..].iter().filter(|change| change.what != What::MoreFiles).count() + n_hidden;
    let mut text = worded(first, &clipped_pair);
    if n_more > 0 {
        write!(text, ", and {n_more} more").expect("a String takes all text");
    }
    if let Some(because) = &first.because {
        write!(text, ": {because}").expect("a String takes all text");
    }
    text
}

/// Changes in full, one a line without line ends.
pub fn full(changes: &[Change]) -> Vec<String> {
    changes.iter().map(sentence).collect()
}

/// One change in full.
pub fn sentence(change: &Change) -> String {
    let text = worded(change, &|before, after| (before.to_owned(), after.to_owned()));
    match &change.because {
        Some(because) => format!("{text}: {because}"),
        None => text,
    }
}

/// A time span before now: `2 h ago`.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0 => "just now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn hidden_files(change: &Change) -> Option<usize> {
    if change.what == What::MoreFiles { change.after.as_deref()?.parse().ok() } else { None }
}

type Show<'a> = &'a dyn Fn(&str, &str) -> (String, String);

fn worded(change: &Change, show: Show<'_>) -> String {
    let Change { what, name, before, after, because: _ } = change;
    let (before, after) = (before.as_deref(), after.as_deref());
    match what {
        What::File => match (before, after) {
            (None, Some(_)) => format!("{name} added"),
            (Some(_), None) => format!("{name} removed"),
            _ => format!("{name} changed"),
        },
        What::FileMode => pair(&format!("{name} mode changed"), before, after, show),
        What::FileOwner => pair(&format!("{name} owner changed"), before, after, show),
        What::FileKind => pair(&format!("{name} changed its kind:"), before, after, show),
        What::FileRenamed => format!("{name} renamed to {}", after.unwrap_or_default()),
        What::MoreFiles => format!("{} more files", after.unwrap_or_default()),
        What::Files => match (before, after) {
            (None, Some(_)) => format!("source {name} is new"),
            (Some(_), None) => format!("source {name} has gone"),
            _ => format!("files of {name} changed"),
        },
        What::Arg => pair(&format!("ARG {name}"), before, after, show),
        What::Env => pair(&format!("ENV {name}"), before, after, show),
        What::Base => base(before, after),
        What::Step => match (before, after) {
            (None, Some(_)) => format!("{name} is new"),
            (Some(_), None) => format!("{name} has gone"),
            _ => format!("{name} gave another result"),
        },
        What::Order if name.is_empty() => "the order changed".to_owned(),
        What::Order => format!("the order changed at {}", ingredient(name)),
        What::Ingredient if name == "argv" => {
            let is_shell = [before, after].into_iter().flatten().all(|it| it.starts_with(SHELL));
            let script = |argv: &str| if is_shell { script(argv) } else { argv.to_owned() };
            pair("command", before.map(script).as_deref(), after.map(script).as_deref(), show)
        }
        What::Ingredient => pair(&ingredient(name), before, after, show),
        What::Unknown => "something changed that has no name".to_owned(),
    }
}

/// What the shell is given, without the quotes of a single word.
fn script(argv: &str) -> String {
    let script = argv.strip_prefix(SHELL).unwrap_or(argv);
    match script.strip_prefix('\'').and_then(|script| script.strip_suffix('\'')) {
        Some(script) => script.replace(r"'\''", "'"),
        None => script.to_owned(),
    }
}

fn pair(name: &str, before: Option<&str>, after: Option<&str>, show: Show<'_>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before.starts_with("(hidden") && after.starts_with("(hidden") => {
            format!("{name} changed")
        }
        (Some(before), Some(after)) => {
            let (before, after) = show(before, after);
            // Cut down to the same words, the values would seem equal.
            if before == after { format!("{name} changed") } else { format!("{name} {before} → {after}") }
        }
        (None, Some(after)) => format!("{name} {} is new", show(after, after).0),
        (Some(before), None) => format!("{name} {} has gone", show(before, before).0),
        (None, None) => name.to_owned(),
    }
}

/// `base debian:bookworm moved sha256:ab… → cd…`, or one name after the other.
fn base(before: Option<&str>, after: Option<&str>) -> String {
    let split = |text: &str| match text.split_once('@') {
        Some((name, digest)) => (name.to_owned(), digest.to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(8).collect::<String>();
    match (before.map(split), after.map(split)) {
        (Some((old, was)), Some((new, is))) if old == new => {
            format!("base {new} moved sha256:{}… → {}…", short(&was), short(&is))
        }
        (Some((old, _)), Some((new, _))) => format!("base {old} → {new}"),
        (None, Some((new, _))) => format!("base {new} is new"),
        (Some((old, _)), None) => format!("base {old} has gone"),
        (None, None) => "base image changed".to_owned(),
    }
}

/// Ingredients by the words of Dockerfiles.
fn ingredient(name: &str) -> String {
    match name {
        "argv" => "command".to_owned(),
        other => match other.split_once(' ') {
            Some(("script", label)) => format!("heredoc {label}"),
            Some(("content", rest)) if rest.starts_with("of ") => rest["of ".len()..].to_owned(),
            _ => other.to_owned(),
        },
    }
}

/// Both values as far as half a line allows: the place where they begin to differ is in it.
fn clipped_pair(before: &str, after: &str) -> (String, String) {
    let is_long = |text: &str| text.chars().count() > BRIEF_VALUE_CHARS;
    if before == after || is_digest(before) || is_digest(after) || !(is_long(before) || is_long(after)) {
        return (clip(before), clip(after));
    }
    let n_equal = before.chars().zip(after.chars()).take_while(|(a, b)| a == b).count();
    let from = |text: &str| {
        let n_skipped = n_equal.saturating_sub(LEAD_CHARS);
        let rest: String = text.chars().skip(n_skipped).collect();
        if n_skipped > 0 { clip(&format!("…{rest}")) } else { clip(&rest) }
    };
    (from(before), from(after))
}

fn is_digest(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Digests are shown by their beginning, as everywhere; other values as far as half a line allows.
fn clip(value: &str) -> String {
    if is_digest(value) {
        return value[..12].to_owned();
    }
    if value.is_empty() {
        return "``".to_owned();
    }
    let one_line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if one_line.chars().count() <= BRIEF_VALUE_CHARS {
        return one_line;
    }
    one_line.chars().take(BRIEF_VALUE_CHARS - 1).chain(['…']).collect()
}
