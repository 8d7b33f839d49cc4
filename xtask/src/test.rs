//! `cargo xtask test`: everything, as CI runs it.

use std::process::Command;

use anyhow::Result;

use crate::process::{is_root, run_command, say, test_binary, workspace};
use crate::{bases, compare, packages};

/// Formats are checked, lints are errors, unit tests and end-to-end tests run, then images are compared with docker's.
/// `filter` goes to the tests, and leaves the comparison out.
pub(crate) fn test(filter: &[String]) -> Result<()> {
    if is_root() {
        packages::ensure(packages::BASES)?;
        packages::ensure(packages::REFEREES)?;
    }
    say("format");
    cargo(&["fmt", "--all", "--check"])?;
    say("lints");
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    let rbuild = test_binary()?;
    let store = bases::store_dir();
    if is_root() {
        bases::ensure_all(&rbuild, &store)?;
    }
    say("tests");
    let mut tests = Command::new(env!("CARGO"));
    tests.current_dir(workspace()).args(["test", "--workspace", "--no-fail-fast"]);
    tests.env("RBUILD_BIN", &rbuild).env("RBUILD_TEST_STORE", &store);
    if !filter.is_empty() {
        tests.arg("--").args(filter);
    }
    run_command(&mut tests)?;
    if filter.is_empty() {
        say("comparison with docker");
        compare::test(&rbuild)?;
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    run_command(Command::new(env!("CARGO")).current_dir(workspace()).args(args))
}
