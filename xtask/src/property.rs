//! `cargo xtask property`: random edits of random builds, with a warm store and a cold one.

use anyhow::{Context, Result, bail};

use e2e::property::{Summary, run};

use crate::process::{release_binary, say, work_dir};

const ROUNDS: usize = 1000;

/// Builds `--rounds` times, from the numbers that `--seed` gives, with `$RBUILD_BIN` or a release build.
///
/// # Errors
///
/// An argument is not understood, there is no static busybox, or a round showed a fault.
pub(crate) fn property(args: &[String]) -> Result<()> {
    let (mut rounds, mut seed) = (ROUNDS, 1);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("`{arg}` needs a number"))?;
        let number: u64 = value.parse().with_context(|| format!("`{arg} {value}` is no number"))?;
        match arg.as_str() {
            "--rounds" => rounds = usize::try_from(number)?,
            "--seed" => seed = number,
            _ => bail!("unknown argument `{arg}`"),
        }
    }
    let dir = work_dir().join("property");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let busybox = e2e::find_program("busybox").context("needs busybox-static")?;
    let rbuild = e2e::setting("RBUILD_BIN").map_or_else(release_binary, |bin| Ok(bin.into()))?;
    let outcome = run(&rbuild, &busybox, &dir, seed, rounds);
    let Summary { rounds, failing, cached, ran, cut_off } = outcome.map_err(anyhow::Error::msg)?;
    say(&format!(
        "{rounds} rounds (seed {seed}), no difference: {failing} builds failed alike; {cached} steps from the cache, \
         {cut_off} of them by early cutoff, {ran} ran, each for a reason"
    ));
    Ok(())
}
