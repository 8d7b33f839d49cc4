//! `cargo xtask stress`: many builds on one store, and every accident that can happen to it ([`e2e::stress`]).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use e2e::stress::{Medium, Plan, run};

use crate::process::{say, test_binary, work_dir};

const USAGE: &str = "usage: cargo xtask stress [--minutes N] [--processes N] [--seed N] [--store-on dir|tmpfs|loop|flaky]... [--size MIB]";
/// Sizes of the small disk, in MiB: from one that holds the base and a few steps to one that is nearly large enough.
const SMALL_DISKS: [u64; 3] = [28, 48, 96];
const FLAKY_MIB: u64 = 1024;

/// Runs on each medium in turn.
pub(crate) fn stress(args: &[String]) -> Result<()> {
    let (mut minutes, mut n_processes, mut seed, mut names, mut size) = (10.0, 20, None, Vec::new(), None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} takes a value\n{USAGE}"));
        match arg.as_str() {
            "--minutes" => minutes = value()?.parse()?,
            "--processes" => n_processes = value()?.parse()?,
            "--seed" => seed = Some(value()?.parse()?),
            "--store-on" => names.push(value()?.clone()),
            "--size" => size = Some(value()?.parse::<u64>()?),
            _ => bail!("{USAGE}"),
        }
    }
    if names.is_empty() {
        names = ["dir", "tmpfs", "loop", "flaky"].map(str::to_owned).to_vec();
    }
    let mut media = Vec::new();
    for name in &names {
        match (name.as_str(), size) {
            ("dir", _) => media.push(Medium::Directory),
            ("tmpfs", _) => media.push(Medium::Tmpfs),
            ("loop", Some(mebibytes)) => media.push(Medium::SmallDisk { mebibytes }),
            ("loop", None) => media.extend(SMALL_DISKS.map(|mebibytes| Medium::SmallDisk { mebibytes })),
            ("flaky", _) => media.push(Medium::PowerCut { mebibytes: size.unwrap_or(FLAKY_MIB) }),
            _ => bail!("no medium is called `{name}`\n{USAGE}"),
        }
    }
    let rbuild = std::env::var_os("RBUILD_BIN").map_or_else(test_binary, |bin| Ok(bin.into()))?;
    for medium in media {
        if let Some(lacking) = medium.lacking() {
            bail!("{}: {lacking}", medium.name());
        }
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        let work = work_dir().join(format!("stress-{}", medium.name()));
        drop(std::fs::remove_dir_all(&work));
        let time = Duration::from_secs_f64(minutes * 60.0);
        say(&format!("stress on {medium:?}, seed {seed}, {n_processes} processes, {minutes} minutes"));
        let busybox = PathBuf::from("/bin/busybox");
        let plan = Plan { rbuild: rbuild.clone(), busybox, work: work.clone(), n_processes, time, seed, medium };
        let figures = run(&plan, &|line| say(&format!("  {line}"))).map_err(|error| anyhow!("{error}"))?;
        say(&format!("  {figures:?}"));
        drop(std::fs::remove_dir_all(&work));
    }
    Ok(())
}
