//! `cargo xtask fuzz`: the targets of `fuzz/`, one process at a time, from seeds that `testdata/` has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{is_installed, output, run_command, say, work_dir, workspace};

/// A target's name, and what makes seeds for it.
type Target = (&'static str, fn(&[Sample]) -> Vec<Vec<u8>>);

const TARGETS: [Target; 4] = [
    ("parser", |samples| samples.iter().map(|sample| sample.dockerfile.clone().into_bytes()).collect()),
    ("expander", words),
    ("flags", lines),
    ("ignore_patterns", ignore_files),
];

const SECONDS: u64 = 60;

/// What libFuzzer has to keep to: seconds that an input may take on a busy machine, and memory. The largest input is a line that is just too long for a Dockerfile, and then some.
const LIMITS: [&str; 4] = ["-timeout=60", "-rss_limit_mb=2048", "-max_len=70000", "-print_final_stats=1"];

/// Runs the named targets, or all of them, for `--seconds` each.
///
/// # Errors
///
/// A tool is missing, an argument is not understood, or a target found something.
pub(crate) fn fuzz(args: &[String]) -> Result<()> {
    let (targets, seconds) = parse(args)?;
    ensure_tools()?;
    let samples = samples(&workspace().join("testdata"))?;
    for (name, make_seeds) in targets {
        let seeds = write_seeds(name, make_seeds(&samples))?;
        say(&format!("fuzzing {name} for {seconds} s"));
        run_target(name, &seeds, seconds)?;
    }
    Ok(())
}

fn parse(args: &[String]) -> Result<(Vec<Target>, u64)> {
    let mut targets = Vec::new();
    let mut seconds = SECONDS;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let value = args.next().context("`--seconds` needs a number")?;
            seconds = value.parse().with_context(|| format!("`--seconds {value}` is no number"))?;
        } else if let Some(target) = TARGETS.iter().find(|(name, _)| name == arg) {
            targets.push(*target);
        } else {
            bail!("no fuzz target is named `{arg}`; there are {}", TARGETS.map(|(name, _)| name).join(", "));
        }
    }
    Ok((if targets.is_empty() { TARGETS.to_vec() } else { targets }, seconds))
}

fn ensure_tools() -> Result<()> {
    if !is_installed("rustup") || !output(Command::new("rustup").args(["toolchain", "list"]))?.contains("nightly") {
        bail!("fuzzing needs a nightly compiler; install it with: rustup toolchain install nightly --profile minimal");
    }
    if !is_installed("c++") {
        bail!("libFuzzer needs a C++ compiler; install it with: sudo apt-get install --no-install-recommends g++");
    }
    if !is_installed("cargo-fuzz") {
        bail!("missing programs; install them with: cargo install cargo-fuzz --locked");
    }
    Ok(())
}

/// Goes on from what earlier runs found (`fuzz/corpus`). The crates have no `unsafe`, so that no sanitizer is needed.
fn run_target(name: &str, seeds: &Path, seconds: u64) -> Result<()> {
    let corpus = workspace().join("fuzz/corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let mut fuzzer = Command::new("rustup");
    fuzzer.current_dir(workspace()).args(["run", "nightly", "cargo", "fuzz", "run", "--sanitizer", "none", name]);
    fuzzer.args([&corpus, seeds]).arg("--").args(LIMITS).arg(format!("-max_total_time={seconds}"));
    fuzzer.arg(format!("-dict={}", workspace().join("fuzz/words.dict").display()));
    // This process was started by cargo, which tells its children about itself; a toolchain of its own knows better.
    fuzzer.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    run_command(&mut fuzzer).with_context(|| format!("the target {name} found something; see CONTRIBUTING.md"))
}

/// A Dockerfile of `testdata/`, and what lies beside it.
struct Sample {
    dockerfile: String,
    ignore_file: Option<String>,
    /// Relative to the Dockerfile.
    files: Vec<String>,
}

fn samples(root: &Path) -> Result<Vec<Sample>> {
    let files = files_below(root)?;
    let dockerfiles = files.iter().filter(|path| path.ends_with("Dockerfile"));
    // Some are no text, on purpose; a seed need not be exact.
    let read = |path: &Path| match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let sample = |dockerfile: &PathBuf| {
        let directory = dockerfile.parent().unwrap_or(root);
        let ignore_file = directory.join(".dockerignore");
        let beside = files.iter().filter_map(|path| path.strip_prefix(directory).ok());
        Ok(Sample {
            dockerfile: read(dockerfile)?,
            ignore_file: if ignore_file.is_file() { Some(read(&ignore_file)?) } else { None },
            files: beside.map(|path| path.to_string_lossy().into_owned()).collect(),
        })
    };
    dockerfiles.map(sample).collect()
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        if entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Words that have anything to expand, with values for two variables.
fn words(samples: &[Sample]) -> Vec<Vec<u8>> {
    let words: BTreeSet<&str> = samples.iter().flat_map(|sample| sample.dockerfile.split_whitespace()).collect();
    let interesting = words.into_iter().filter(|word| word.contains(['$', '"', '\'', '\\']));
    interesting.map(|word| format!("{word}\0usr/local/bin\0*/?o").into_bytes()).collect()
}

/// Lines with flags, the flags alone, and their values.
fn lines(samples: &[Sample]) -> Vec<Vec<u8>> {
    let flags = samples.iter().flat_map(|sample| sample.dockerfile.split_whitespace()).filter(|w| w.starts_with("--"));
    let values = flags.clone().filter_map(|flag| flag.split_once('=').map(|(_, value)| value));
    let lines: BTreeSet<&str> =
        flags.clone().chain(values).chain(["8080:80/tcp", "1m30s", "skip=all;error=true"]).collect();
    lines.into_iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// Ignore files with the paths that they are about, and sources of COPY as patterns.
fn ignore_files(samples: &[Sample]) -> Vec<Vec<u8>> {
    let own = ["**/*.md\n!README.md\n", "a/**/b\n!a/b/[c-f]?\\*\n", "/x/../*.o\n# c\n!**/k*"];
    let texts = samples.iter().filter_map(|sample| sample.ignore_file.as_deref()).chain(own);
    let paths: Vec<String> =
        samples.iter().filter(|sample| sample.ignore_file.is_some()).map(|s| s.files.join("\n")).collect();
    texts.flat_map(|text| paths.iter().map(move |paths| format!("{text}\0{paths}\na/x/b").into_bytes())).collect()
}

fn write_seeds(name: &str, seeds: Vec<Vec<u8>>) -> Result<PathBuf> {
    let directory = work_dir().join("fuzz-seeds").join(name);
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (index, seed) in seeds.iter().enumerate() {
        let path = directory.join(index.to_string());
        std::fs::write(&path, seed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(directory)
}
