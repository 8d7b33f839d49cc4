//! Flags of the commands that explain builds and contexts.

use clap::{ArgAction, Args, Subcommand};

/// `rbuild explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// One step in full: its number, `:LINE` of the Dockerfile, or a part of its name [default: all steps]
    #[arg(value_name = "STEP")]
    pub(crate) step: Option<String>,
    /// The build: an ID of `rbuild builds` or the beginning of one, or `^N` for the N-th before the last [default: the last]
    #[arg(long, value_name = "BUILD")]
    pub(crate) build: Option<String>,
    /// Compare with this earlier build, in place of saying what each step was compared with then; `^N` counts the builds of
    /// the same Dockerfile
    #[arg(long, value_name = "BUILD")]
    pub(crate) with: Option<String>,
    /// `table` or `json`
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}

/// `rbuild builds`.
#[derive(Args, Debug)]
pub(crate) struct BuildsArgs {
    /// Only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// `table`, `json` (one object a line), a Go template, or `table TEMPLATE`. Fields: .ID .Name .Dockerfile .Status
    /// .CreatedSince .CreatedAt .Duration .Steps .Cached .Image
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
}

/// `rbuild context …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ContextCommand {
    /// Show which files of a context a build can see, and why
    Ls(ContextLsArgs),
}

/// `rbuild context ls`.
#[derive(Args, Debug)]
pub(crate) struct ContextLsArgs {
    /// The context: a directory
    #[arg(value_name = "PATH", default_value = ".")]
    pub(crate) context: String,
    /// The Dockerfile, whose own ignore file counts before .dockerignore [default: PATH/Dockerfile]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Also show this named context; only directories can be shown (repeatable)
    #[arg(long = "build-context", value_name = "NAME=DIR", action = ArgAction::Append)]
    pub(crate) build_contexts: Vec<String>,
    /// Say which rule decides about this path, relative to the context (repeatable)
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub(crate) why: Vec<String>,
    /// Show what is hidden, and by which rule, in place of what is seen
    #[arg(long)]
    pub(crate) ignored: bool,
    /// Only totals and the biggest directories
    #[arg(short, long)]
    pub(crate) summary: bool,
    /// `table` or `json`
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}
