//! The instructions: from the parts of a line to checked values. Spec: §2, the syntax side.
//!
//! One file per family. What is wrong here is reported with the prefix `dockerfile parse error on line N`.

mod copy;
mod healthcheck;
mod run;
mod simple;
mod stage;
mod types;

pub use types::*;

use crate::flags::{FlagTable, Flags};
use crate::lexer::LogicalLine;
use crate::lint::{self, CheckConfig};
use crate::node::{Args, Fault, Node};
use crate::suggest::nearest_ignoring_case;

pub(crate) use stage::parse_stage;

/// Every keyword.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The flags of every instruction that has some.
pub(crate) const TABLES: [(&str, FlagTable); 5] = [
    ("ADD", copy::ADD_FLAGS),
    ("COPY", copy::COPY_FLAGS),
    ("FROM", stage::FLAGS),
    ("HEALTHCHECK", healthcheck::FLAGS),
    ("RUN", run::FLAGS),
];

/// Checks an instruction other than FROM. `escape` is the file's.
pub(crate) fn parse_instruction(line: &LogicalLine, escape: char) -> Result<Instruction, Fault> {
    let mut instruction = Instruction {
        kind: parse_kind(line, escape)?,
        lines: line.lines,
        original: line.text.trim().to_owned(),
        keyword_as_written: line.node.keyword.clone(),
        comments: line.comments.clone(),
        checks: CheckConfig::from_comments(&line.comments),
        warnings: Vec::new(),
    };
    lint::check_instruction(line, &mut instruction);
    Ok(instruction)
}

fn parse_kind(line: &LogicalLine, escape: char) -> Result<InstructionKind, Fault> {
    let node = &line.node;
    match node.keyword.to_ascii_lowercase().as_str() {
        "add" => copy::parse_add(node, &line.heredocs).map(InstructionKind::Add),
        "arg" => simple::parse_arg(node).map(InstructionKind::Arg),
        "cmd" => simple::parse_command("CMD", node).map(InstructionKind::Cmd),
        "copy" => copy::parse_copy(node, &line.heredocs).map(InstructionKind::Copy),
        "entrypoint" => simple::parse_command("ENTRYPOINT", node).map(InstructionKind::Entrypoint),
        "env" => simple::parse_pairs("ENV", node).map(InstructionKind::Env),
        "expose" => simple::parse_expose(node).map(InstructionKind::Expose),
        "healthcheck" => healthcheck::parse_healthcheck(node).map(InstructionKind::Healthcheck),
        "label" => simple::parse_pairs("LABEL", node).map(InstructionKind::Label),
        "maintainer" => simple::parse_text("MAINTAINER", node).map(InstructionKind::Maintainer),
        "onbuild" => simple::parse_onbuild(line).map(InstructionKind::Onbuild),
        "run" => run::parse_run(node, &line.heredocs).map(InstructionKind::Run),
        "shell" => simple::parse_shell(node).map(InstructionKind::Shell),
        "stopsignal" => simple::parse_stopsignal(node).map(InstructionKind::StopSignal),
        "user" => simple::parse_text("USER", node).map(InstructionKind::User),
        "volume" => simple::parse_volume(node).map(InstructionKind::Volume),
        "workdir" => simple::parse_text("WORKDIR", node).map(InstructionKind::Workdir),
        _ => Err(unknown_instruction(&node.keyword, escape)),
    }
}

fn unknown_instruction(keyword: &str, escape: char) -> Fault {
    let message = format!("unknown instruction: {keyword}");
    let Some(name) = nearest_ignoring_case(keyword, KEYWORDS) else {
        let help =
            format!("a line begins with an instruction; to continue the line before, end that one with `{escape}`");
        return Fault::new(message).about(keyword).help(help);
    };
    // The suggestion speaks as the user does.
    let name = if keyword.chars().any(char::is_uppercase) { name.to_owned() } else { name.to_lowercase() };
    Fault::new(format!("{message} (did you mean {name}?)")).about(keyword)
}

/// For the instructions that define no flags and refuse all.
fn refuse_flags(keyword: &str, node: &Node) -> Result<(), Fault> {
    const NONE: FlagTable = &[];
    Flags::check(keyword, &node.flags, NONE).map(drop)
}

fn at_least_one(keyword: &str) -> Fault {
    with_example(Fault::new(format!("{keyword} requires at least one argument")), keyword)
}

fn exactly_one(keyword: &str) -> Fault {
    with_example(Fault::new(format!("{keyword} requires exactly one argument")), keyword)
}

/// Shows what the instruction looks like.
fn with_example(fault: Fault, keyword: &str) -> Fault {
    let arguments = match keyword {
        "ADD" | "COPY" => "src/ /app/",
        "ARG" => "VERSION=1.0",
        "ENV" => "MODE=production",
        "EXPOSE" => "8080",
        "HEALTHCHECK" => "CMD curl -f http://localhost/",
        "LABEL" => "version=1.0",
        "MAINTAINER" => "Jo Doe <jo@example.com>",
        "ONBUILD" => "RUN make",
        "SHELL" => "[\"/bin/bash\", \"-c\"]",
        "STOPSIGNAL" => "SIGTERM",
        "USER" => "1000:1000",
        "VOLUME" => "/data",
        "WORKDIR" => "/app",
        _ => return fault,
    };
    fault.help(format!("for instance `{keyword} {arguments}`")).about(keyword)
}

/// The arguments as a command line: nothing is the empty text.
fn command_of(args: &Args) -> Command {
    match args {
        Args::Json(words) => Command::Exec(words.clone()),
        Args::Text(text) => Command::Shell(text.clone()),
        _ => Command::Shell(String::new()),
    }
}

/// The arguments as words.
fn words_of(args: &Args) -> &[String] {
    match args {
        Args::Words { words, .. } => words,
        _ => &[],
    }
}
