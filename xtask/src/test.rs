//! `cargo xtask test`: everything, as CI runs it.

use std::process::Stdio;

use anyhow::Result;

use crate::process::{cargo, is_root, run_command, say, test_binary};
use crate::{bases, compare, packages};

/// Formats are checked, lints are errors, unit tests and end-to-end tests run, then images are compared with docker's.
/// `filter` goes to the tests, and leaves the comparison out.
pub(crate) fn test(filter: &[String]) -> Result<()> {
    if is_root() {
        packages::ensure(packages::BASES)?;
        packages::ensure(packages::REFEREES)?;
    }
    say("format");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    say("lints");
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    let rbuild = test_binary()?;
    let store = bases::store_dir();
    // Making bases is waiting for mirrors, for a good part. What is wrong with the tests is said when they are run.
    let mut compiling = cargo().args(["test", "--workspace", "--no-run", "--quiet"]).stderr(Stdio::null()).spawn()?;
    let bases = if is_root() { bases::ensure_all(&rbuild, &store) } else { Ok(()) };
    compiling.wait()?;
    bases?;
    say("tests");
    let mut tests = cargo();
    // A dot for each that passes, so that a long log is about those that do not.
    tests.args(["test", "--workspace", "--no-fail-fast", "--", "--quiet"]).args(filter);
    tests.env("RBUILD_BIN", &rbuild).env("RBUILD_TEST_STORE", &store);
    run_command(&mut tests)?;
    if filter.is_empty() {
        say("comparison with docker");
        compare::test(&rbuild)?;
    }
    Ok(())
}
