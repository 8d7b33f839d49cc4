//! The instructions, checked as far as that goes without evaluating anything.

use std::sync::Arc;

use crate::error::LineRange;
use crate::lexer::Heredoc;
use crate::lint::{CheckConfig, Warning};

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// What it says.
    pub kind: InstructionKind,
    /// Where it is, heredocs included.
    pub lines: LineRange,
    /// The logical line: continuations joined, comments gone, trimmed, without heredoc bodies.
    pub original: String,
    /// The keyword with its letter case.
    pub keyword_as_written: String,
    /// Comment lines attached to it, without `#` and surrounding blanks.
    pub comments: Vec<String>,
    /// What the first `check=` among its comments says.
    pub checks: CheckConfig,
    /// Findings that are to be reported if the stage is built or checked.
    pub warnings: Vec<Warning>,
}

/// Every instruction but FROM. Texts are unexpanded.
#[derive(Clone, Debug, PartialEq)]
pub enum InstructionKind {
    /// `RUN`
    Run(RunInstruction),
    /// `COPY`
    Copy(CopyInstruction),
    /// `ADD`
    Add(AddInstruction),
    /// `ENV`: keys and values in order, quotes and escapes still in them.
    Env(Vec<(String, String)>),
    /// `ARG`
    Arg(ArgInstruction),
    /// `LABEL`: keys and values in order, quotes and escapes still in them.
    Label(Vec<(String, String)>),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `EXPOSE`: the words; see [`crate::port`] for what to do with them after expansion.
    Expose(Vec<String>),
    /// `VOLUME`: the trimmed words, none empty.
    Volume(Vec<String>),
    /// `USER`
    User(String),
    /// `WORKDIR`
    Workdir(String),
    /// `ONBUILD`: the trigger as it is stored in the image, heredoc bodies included.
    Onbuild(String),
    /// `STOPSIGNAL`; see [`crate::signal`] for the check after expansion.
    StopSignal(String),
    /// `HEALTHCHECK`
    Healthcheck(HealthcheckInstruction),
    /// `SHELL`: at least one word.
    Shell(Vec<String>),
    /// `MAINTAINER`
    Maintainer(String),
}

impl InstructionKind {
    /// The keyword in upper case.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Run(_) => "RUN",
            Self::Copy(_) => "COPY",
            Self::Add(_) => "ADD",
            Self::Env(_) => "ENV",
            Self::Arg(_) => "ARG",
            Self::Label(_) => "LABEL",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::User(_) => "USER",
            Self::Workdir(_) => "WORKDIR",
            Self::Onbuild(_) => "ONBUILD",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Shell(_) => "SHELL",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }
}

/// The two ways to write a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Plain form: one text for the shell.
    Shell(String),
    /// JSON form: argv, possibly empty.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInstruction {
    /// The command line, without heredoc bodies.
    pub command: Command,
    /// In order of appearance.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values for [`crate::mount::parse_mount`]. Their CSV and their `from` have been checked.
    pub mounts: Vec<String>,
    /// `--network`
    pub network: RunNetwork,
    /// `--security`
    pub security: RunSecurity,
    /// `--device`
    pub devices: Vec<RunDevice>,
}

/// How a RUN gets its script. Spec: §1.9.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunScript {
    /// argv as is, no shell.
    Exec(Vec<String>),
    /// One text for the shell; heredocs that are more than the whole command have been put back behind it.
    Shell(String),
    /// The whole command is one heredoc that begins with `#!`: a file of that name in `/dev/pipes`, started through
    /// the shell.
    File {
        /// The delimiter.
        name: String,
        /// The body, tabs stripped.
        content: Vec<u8>,
    },
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// The builder's choice.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `RUN --security`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunSecurity {
    /// Confined.
    #[default]
    Sandbox,
    /// Privileged.
    Insecure,
}

/// `RUN --device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDevice {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Whether its absence is an error.
    pub required: bool,
}

/// `COPY`.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyInstruction {
    /// Sources that are paths, in order.
    pub sources: Vec<String>,
    /// Sources that are heredocs, in order; they are copied after the others.
    pub contents: Vec<SourceContent>,
    /// Destination.
    pub dest: String,
    /// `--from`; `None` when absent or empty.
    pub from: Option<String>,
    /// `--chown`; `None` when absent or empty.
    pub chown: Option<String>,
    /// `--chmod`; `None` when absent or empty.
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude` patterns, in order.
    pub excludes: Vec<String>,
}

/// `ADD`.
#[derive(Clone, Debug, PartialEq)]
pub struct AddInstruction {
    /// Sources that are paths or URLs, in order.
    pub sources: Vec<String>,
    /// Sources that are heredocs, in order; they are copied after the others.
    pub contents: Vec<SourceContent>,
    /// Destination.
    pub dest: String,
    /// `--chown`; `None` when absent or empty.
    pub chown: Option<String>,
    /// `--chmod`; `None` when absent or empty.
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--keep-git-dir`; `None` when absent.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`; `None` when absent or empty.
    pub checksum: Option<String>,
    /// `--unpack`; `None` when absent.
    pub unpack: Option<bool>,
    /// `--exclude` patterns, in order.
    pub excludes: Vec<String>,
}

/// A heredoc as a source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceContent {
    /// The delimiter, which names the file.
    pub path: String,
    /// Its bytes, tabs stripped if asked for. Sources of one name share them.
    pub data: Arc<[u8]>,
    /// Whether the bytes go through [`crate::expand::Expander::process_heredoc`].
    pub expand: bool,
}

/// `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgInstruction {
    /// In order; at least one.
    pub args: Vec<ArgDefinition>,
}

/// One name of an ARG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDefinition {
    /// Not expanded, ever.
    pub name: String,
    /// The default, unexpanded; `None` when there is no `=`.
    pub default: Option<String>,
}

/// `HEALTHCHECK`. Durations are in nanoseconds; zero is unset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthcheckInstruction {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "text"]`.
    pub test: Vec<String>,
    /// `--interval`
    pub interval_ns: i64,
    /// `--timeout`
    pub timeout_ns: i64,
    /// `--start-period`
    pub start_period_ns: i64,
    /// `--start-interval`
    pub start_interval_ns: i64,
    /// `--retries`
    pub retries: i64,
}
