//! Timing whole processes.

use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::run_command;

/// One run of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// From start to exit.
    pub(crate) wall: Duration,
    /// The most memory that the process itself had resident; its children are not counted.
    pub(crate) peak_kib: u64,
}

/// How often the memory of a running process is looked at, after a first look. The kernel keeps the high-water mark, so that
/// only what is reached in the last moments before the exit can be missed.
const POLL: Duration = Duration::from_millis(20);
const FIRST_POLL: Duration = Duration::from_millis(4);

/// Runs a command once. What others have written before is on the disk by then, so that nobody waits for it.
pub(crate) fn sample(command: &mut Command) -> Result<Sample> {
    let text = format!("{command:?}");
    let log = tempfile_for_output()?;
    command.stdin(Stdio::null()).stdout(log.0.try_clone()?).stderr(log.0.try_clone()?);
    run_command(&mut Command::new("sync"))?;
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {text}"))?;
    let status_file = format!("/proc/{}/status", child.id());
    let (ending, ended) = mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let (mut peak_kib, mut pause) = (0, FIRST_POLL);
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            peak_kib = high_water_kib(&status_file).unwrap_or(0).max(peak_kib);
            pause = POLL;
        }
        peak_kib
    });
    let status = child.wait()?;
    let wall = start.elapsed();
    drop(ending);
    let peak_kib = watcher.join().unwrap_or(0);
    if !status.success() {
        bail!("{text} ended with {status}; its output is in {}", log.1.display());
    }
    Ok(Sample { wall, peak_kib })
}

/// The median of some samples, and the highest peak.
pub(crate) fn summary(samples: &[Sample]) -> Sample {
    let mut walls: Vec<Duration> = samples.iter().map(|sample| sample.wall).collect();
    walls.sort();
    let peak_kib = samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0);
    Sample { wall: walls[walls.len() / 2], peak_kib }
}

fn tempfile_for_output() -> Result<(std::fs::File, std::path::PathBuf)> {
    let path = crate::process::work_dir().join("bench-output.log");
    Ok((std::fs::File::create(&path)?, path))
}

fn high_water_kib(status_file: &str) -> Option<u64> {
    let status = std::fs::read_to_string(status_file).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
