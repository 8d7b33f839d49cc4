//! Running programs, and where things lie.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Where developer commands keep what they make.
pub(crate) fn work_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    target.join("xtask")
}

/// A line for the person who watches.
#[expect(clippy::print_stderr, reason = "developer commands talk to a terminal")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Runs a program to its end; an exit code other than 0 is an error.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<()> {
    run_command(Command::new(program).args(args))
}

/// As [`run`], for a prepared command.
pub(crate) fn run_command(command: &mut Command) -> Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {text}"))?;
    if !status.success() {
        bail!("{text} ended with {status}");
    }
    Ok(())
}

/// Runs a program and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {text}"))?;
    if !output.status.success() {
        bail!("{text} ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program is on the path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Builds the release binary and returns its path.
pub(crate) fn release_binary() -> Result<PathBuf> {
    binary("release")
}

/// Builds the binary that tests run: quicker to compile than the release.
pub(crate) fn test_binary() -> Result<PathBuf> {
    binary("dev")
}

/// Cargo, in the workspace, as a shell would start it: without what cargo has said to this program about its own package.
/// Build scripts of libraries ask for some of that, and a change of it would have everything above them compiled again.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace());
    let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_package)) {
        cargo.env_remove(name);
    }
    cargo
}

fn binary(profile: &str) -> Result<PathBuf> {
    say(&format!("building rbuild ({profile})"));
    let mut cargo = cargo();
    cargo.args(["build", "--profile", profile, "--quiet", "--package", "cli"]);
    cargo.arg("--message-format=json");
    let messages = output(&mut cargo)?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    executables.next_back().context("cargo named no executable")
}
