//! Mistakes on the command line, in our own words: what is wrong, and the flag, command or value that was probably meant.

use clap::CommandFactory;
use clap::builder::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::Cli;
use crate::failure::Failure;

/// Names that lie further away are no suggestion.
const MAX_DISTANCE: usize = 2;

/// Turns what the parser of the command line says into a failure. `args` is the line, with its command.
pub(crate) fn explain(error: &clap::Error, args: &[String]) -> Failure {
    let cli = Cli::command();
    let (command, name) = command_of(&cli, args);
    let takes_a_context = matches!(command.get_name(), "build" | "repro");
    let invalid = text(error, ContextKind::InvalidArg);
    match (error.kind(), invalid) {
        (ErrorKind::UnknownArgument, Some(flag)) if flag.starts_with('-') => unknown_flag(&flag, &cli, command, &name),
        (ErrorKind::UnknownArgument, Some(word)) if takes_a_context => {
            Failure::usage(format!("unexpected argument `{word}`: a build has one context"))
                .help("quote values with spaces; a context is one PATH, URL or -")
        }
        (ErrorKind::UnknownArgument, Some(word)) => Failure::usage(format!("unexpected argument `{word}`")),
        (ErrorKind::MissingRequiredArgument, _) if takes_a_context => {
            Failure::usage("the build context is missing").help("name a directory, for instance this one: `rbuild .`")
        }
        (ErrorKind::MissingRequiredArgument, _) => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(missing)) => missing.join(" "),
                _ => "an argument".to_owned(),
            };
            Failure::usage(format!("missing: {missing}")).help(format!("`rbuild {name} --help` says what it takes"))
        }
        (ErrorKind::InvalidSubcommand, _) if command.has_subcommands() => {
            let word = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            unknown_subcommand(command, &name, &word)
        }
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand, _) if !name.is_empty() => {
            Failure::usage(format!("`rbuild {name}` needs to know what to do: {}", subcommands(command).join(", ")))
        }
        (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(flag)) => invalid_value(error, &flag),
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            Failure::usage("nothing to do: name a build context or a command").help("`rbuild .` builds this directory")
        }
        _ => Failure::usage(first_sentence(error)),
    }
}

/// The name nearest to `word`, among equals one of its length; `None` when none is near.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances =
        names.into_iter().map(|name| (strsim::osa_distance(word, name), name.len().abs_diff(word.len()), name));
    let is_near = |distance: usize| distance <= MAX_DISTANCE && distance < word.chars().count();
    distances.filter(|(distance, ..)| is_near(*distance)).min().map(|(.., name)| name)
}

/// The command nearest to `word`.
pub(crate) fn nearest_command(word: &str) -> Option<String> {
    let cli = Cli::command();
    nearest(word, cli.get_subcommands().map(Command::get_name)).map(str::to_owned)
}

/// The command that a line is about, and its name with those of the groups that it is in; the program's is empty.
fn command_of<'a>(cli: &'a Command, args: &[String]) -> (&'a Command, String) {
    let (mut command, mut names) = (cli, Vec::new());
    for word in args {
        if let Some(sub) = command.find_subcommand(word) {
            command = sub;
            names.push(sub.get_name());
        }
    }
    (command, names.join(" "))
}

fn subcommands(command: &Command) -> Vec<&str> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name).collect()
}

fn unknown_subcommand(command: &Command, name: &str, word: &str) -> Failure {
    let known = subcommands(command);
    let failure = Failure::usage(format!("`rbuild {name}` has no command `{word}`: there are {}", known.join(", ")));
    match nearest(word, known) {
        Some(meant) => failure.help(format!("did you mean `{meant}`?")),
        None => failure,
    }
}

fn unknown_flag(flag: &str, cli: &Command, command: &Command, command_name: &str) -> Failure {
    let failure = Failure::usage(format!("unknown flag: {flag}"));
    // Flags of every command are declared by the program itself; hidden ones are nobody's intention.
    let known = command.get_arguments().chain(cli.get_arguments()).filter(|arg| !arg.is_hide_set());
    let names: Vec<&str> = known.flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default()).collect();
    match flag.strip_prefix("--").and_then(|name| nearest(name, names)) {
        Some(name) => failure.help(format!("did you mean --{name}?")),
        None => failure.help(format!("`rbuild {command_name} --help` lists all flags")),
    }
}

fn invalid_value(error: &clap::Error, flag: &str) -> Failure {
    let flag = flag.split([' ', '=', '[', '<']).next().unwrap_or(flag);
    let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
    let valid = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => values.clone(),
        _ => Vec::new(),
    };
    if value.is_empty() {
        return Failure::usage(format!("{flag} needs a value"));
    }
    let failure = Failure::usage(format!("invalid value `{value}` for {flag}"));
    if !valid.is_empty() {
        return failure.help(format!("{flag} takes {}", valid.join(", ")));
    }
    match std::error::Error::source(error) {
        Some(reason) => failure.help(reason.to_string()),
        None => failure,
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn first_sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::with_default_command;

    fn usage(line: &str) -> (String, Vec<String>) {
        let args = with_default_command(line.split(' ').map(str::to_owned).collect());
        match explain(&Cli::try_parse_from(&args).expect_err(line), &args) {
            Failure::Usage { message, help } => (message, help),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_group_alone_says_what_is_in_it() {
        let (message, _) = usage("rbuild imagetools");
        assert_eq!(message, "`rbuild imagetools` needs to know what to do: inspect, create");
    }

    #[test]
    fn mistakes_name_what_was_meant() {
        let cases = [
            ("rbuild --tga x .", "unknown flag: --tga", "did you mean --tag?"),
            ("rbuild --bulid-arg A=1 .", "unknown flag: --bulid-arg", "did you mean --build-arg?"),
            ("rbuild --stroe /x .", "unknown flag: --stroe", "did you mean --store?"),
            ("rbuild images --fromat json", "unknown flag: --fromat", "did you mean --format?"),
            ("rbuild --frobnicate .", "unknown flag: --frobnicate", "`rbuild build --help` lists all flags"),
            ("rbuild -x .", "unknown flag: -x", "`rbuild build --help` lists all flags"),
            ("rbuild -t app", "the build context is missing", "name a directory, for instance this one: `rbuild .`"),
            (
                "rbuild a b",
                "unexpected argument `b`: a build has one context",
                "quote values with spaces; a context is one PATH, URL or -",
            ),
            ("rbuild doctor --format xml", "invalid value `xml` for --format", "--format takes table, json"),
            ("rbuild image ls --digest", "unknown flag: --digest", "did you mean --digests?"),
            ("rbuild repro", "the build context is missing", "name a directory, for instance this one: `rbuild .`"),
            ("rbuild diff a", "missing: <B>", "`rbuild diff --help` says what it takes"),
            (
                "rbuild manifest inspct a",
                "`rbuild manifest` has no command `inspct`: there are inspect",
                "did you mean `inspect`?",
            ),
            ("rbuild --jobs many .", "invalid value `many` for --jobs", "invalid digit found in string"),
        ];
        for (line, message, help) in cases {
            assert_eq!(usage(line), (message.to_owned(), vec![help.to_owned()]), "{line}");
        }
    }
}
