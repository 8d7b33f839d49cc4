//! The `rbuild` program: flags, configuration, progress, reports, exit codes. The only printer.
//!
//! Read [`args`] (flags as typed), then [`request`] (checked), then [`commands::build`] (one build from flags to image).
#![forbid(unsafe_code)]

mod annotations;
mod args;
mod attestations;
mod cache_flags;
mod call;
mod commands;
mod container_engine;
mod csv;
mod env;
mod failure;
mod host_ca;
mod isolation;
mod limits;
mod mistakes;
mod output;
mod proxies;
mod report;
mod request;
mod template;
mod ui;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, with_default_command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = with_default_command(std::env::args().collect());
    let mut cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help and version are data. A closed terminal does not change the outcome.
            drop(error.print());
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&mistakes::explain(&error, &args)),
    };
    trace(cli.global.debug);
    // A user namespace is entered while there is one thread.
    match isolation::enter(&mut cli).and_then(|()| commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    report::failure(failure);
    ExitCode::from(failure.code())
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
