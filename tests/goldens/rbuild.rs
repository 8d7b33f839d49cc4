//! Runs the program and reads what it prints: steps, warnings, the error and its excerpt.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::compare::merged;

/// A build that takes longer hangs.
const TIMEOUT_SECONDS: &str = "60";

/// The program with its store.
pub(crate) struct Rbuild {
    /// The store that all cases share.
    pub(crate) store: PathBuf,
    /// An empty home directory.
    pub(crate) home: PathBuf,
}

/// What one build printed.
pub(crate) struct Printed {
    /// Exit status; 124 when it took too long.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// One step of the progress.
pub(crate) struct Step {
    name: String,
    cached: bool,
}

impl Rbuild {
    /// Runs `rbuild build` in `dir`.
    pub(crate) fn build<S: AsRef<OsStr>>(
        &self,
        dir: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Printed, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", TIMEOUT_SECONDS]).arg(e2e::rbuild_bin());
        // Expanded warnings hold the lines; the traces that come along are switched off.
        command.arg("--debug").env("RBUILD_LOG", "off");
        command.arg("--store").arg(&self.store).arg("build").args(args).current_dir(dir).stdin(Stdio::null());
        command.env_remove("SOURCE_DATE_EPOCH").env_remove("DOCKER_DEFAULT_PLATFORM").env("NO_COLOR", "1");
        for proxy in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.env("HOME", &self.home);
        command.output().map(Printed::of).map_err(|error| format!("rbuild: {error}"))
    }
}

impl Printed {
    fn of(output: Output) -> Self {
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or(0);
        Self {
            code: output.status.code().unwrap_or(128 + signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The error as a client of BuildKit would get it.
    pub(crate) fn error(&self) -> Option<String> {
        let start = self.stderr.match_indices("ERROR: ").map(|(start, _)| start);
        let start = start.filter(|start| *start == 0 || self.stderr.as_bytes()[start - 1] == b'\n').last()?;
        let text = &self.stderr[start + "ERROR: ".len()..];
        let text = text.split("\nhelp: ").next().unwrap_or_default();
        let text = text.strip_prefix("failed to build: ").unwrap_or(text);
        Some(cleaned(text.strip_prefix("failed to solve: ").unwrap_or(text).trim()))
    }

    /// The ranges of lines that the excerpts of the error mark.
    pub(crate) fn lines(&self) -> Vec<[u64; 2]> {
        marked_lines(&self.stderr)
    }

    /// The warnings of the summary, and those that belong to no line.
    pub(crate) fn warnings(&self) -> Vec<Value> {
        let general = self.stderr.lines().filter_map(|line| line.strip_prefix("WARN: "));
        let general = general.map(|message| json!({"rule": "", "lines": [], "message": message}));
        let summary = self.stderr.split_once(" found:\n").map_or_else(String::new, |(_, text)| format!("\n{text}"));
        general.chain(summary.split("\n - ").skip(1).map(read_warning)).collect()
    }

    /// Names of all steps but FROM.
    pub(crate) fn steps(&self) -> Vec<String> {
        names(self.read_steps().iter())
    }

    /// Names of the steps that came from the cache, or that did not.
    pub(crate) fn cached_steps(&self, cached: bool) -> Vec<String> {
        let steps = self.read_steps();
        names(steps.iter().filter(|step| step.cached == cached && !step.name.contains("internal]")))
    }

    fn read_steps(&self) -> Vec<Step> {
        let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
        for line in self.stderr.lines() {
            let Some((number, text)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else { continue };
            let Ok(number) = number.parse() else { continue };
            if text.starts_with('[') {
                steps.entry(number).or_insert_with(|| Step { name: text.to_owned(), cached: false });
            } else if let (Some(step), "CACHED") = (steps.get_mut(&number), text) {
                step.cached = true;
            }
        }
        steps.into_values().filter(|step| !step.name.contains(" FROM ")).collect()
    }
}

/// ` - Rule: message (line N)`, a page, an excerpt.
fn read_warning(text: &str) -> Value {
    let lines = marked_lines(text);
    let text = text.split("\nMore info: ").next().unwrap_or_default();
    let text = text.split("\n--------------------\n").next().unwrap_or_default().trim_end();
    let text = match text.rsplit_once(" (line ") {
        Some((text, _)) => text,
        None => text,
    };
    let is_rule = |rule: &&str| !rule.is_empty() && rule.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (rule, message) = text.split_once(": ").filter(|(rule, _)| is_rule(rule)).unwrap_or(("", text));
    json!({"rule": rule, "lines": lines, "message": message})
}

/// The ranges of lines that the excerpts in `text` mark.
fn marked_lines(text: &str) -> Vec<[u64; 2]> {
    let marked = text.lines().filter_map(|line| line.split_once(" | >>>")?.0.trim().parse::<u64>().ok());
    merged(marked.map(|line| [line, line]).collect())
}

fn names<'a>(steps: impl Iterator<Item = &'a Step>) -> Vec<String> {
    let names: BTreeSet<String> = steps.map(|step| step.name.clone()).collect();
    names.into_iter().collect()
}

/// `text` without identifiers that change from build to build.
fn cleaned(text: &str) -> String {
    let words = text.split(' ').collect::<Vec<_>>();
    let is_checksum = |index: usize| index >= 2 && words[index - 1] == "ref" && words[index - 2] == "of";
    let mut cleaned = Vec::new();
    for (index, word) in words.iter().enumerate() {
        cleaned.push(if is_checksum(index) && word.ends_with(':') { "<ref>:" } else { word });
    }
    cleaned.join(" ")
}
