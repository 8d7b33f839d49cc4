//! The `rbuild` program: flags, configuration, progress, reports, exit codes. The only printer.
//!
//! Read [`args`] (flags as typed), then [`request`] (checked), then [`commands::build`] (one build from flags to image).
#![forbid(unsafe_code)]

mod args;
mod commands;
mod csv;
mod env;
mod failure;
mod output;
mod report;
mod request;
mod ui;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, with_default_command};
use crate::failure::{Failure, exit};

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(with_default_command(std::env::args().collect())) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    trace(cli.global.debug);
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}

/// Help and version are data; anything else is a mistake on the command line.
fn usage(error: &clap::Error) -> ExitCode {
    let is_data = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // A closed terminal does not change the outcome.
    drop(error.print());
    if is_data { ExitCode::SUCCESS } else { ExitCode::from(exit::USAGE) }
}

/// Traces go to standard error: decisions with `--debug`, anything with `RBUILD_LOG`.
fn trace(debug: bool) {
    let directives = env::var("RBUILD_LOG");
    if directives.is_none() && !debug {
        return;
    }
    let directives = directives.unwrap_or_else(|| "warn,cache=debug,solver=debug,executor=debug,oci=debug".to_owned());
    let filter = tracing_subscriber::EnvFilter::new(directives);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// A fault of the command line.
pub(crate) fn no_store_dir() -> Failure {
    Failure::usage("cannot tell where the store lies: HOME is not set").help("name a directory with --store DIR")
}
