//! `cargo xtask bench store`: what a store that has grown large costs those who find everything in it.
//!
//! The same commands by turns on two stores that hold the same few images: one has nothing else, the other 100,000 records and
//! half a terabyte of layers (so the index says; on the disk they are empty).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::measure::{Sample, sample, summary};
use super::{Runner, inputs};
use crate::process::{cargo, run_command, say};

const N_LAYERS: usize = 50_000;
const RECORDS_A_LAYER: usize = 2;
const MIB_A_LAYER: usize = 10;

/// Makes both stores, measures by turns, and prints the table.
pub(super) fn table(runner: &Runner<'_>) -> Result<()> {
    let context = inputs::dockerfile(runner.work, "cached-steps", &inputs::steps())?;
    let mut stores = Vec::new();
    for is_large in [false, true] {
        runner.prepare_store()?;
        let store = runner.store();
        if is_large {
            say(&format!("filling a store with {} records", N_LAYERS * RECORDS_A_LAYER));
            fill(&store)?;
        }
        sample(&mut command(runner.rbuild, &store, &["build", "--progress=quiet", &context.display().to_string()]))?;
        stores.push(store);
    }
    let build = context.display().to_string();
    let rows: [(&str, Vec<&str>); 5] = [
        ("open and list images", vec!["images"]),
        ("a cached build of 50 steps", vec!["build", "--progress=quiet", "-q", &build]),
        ("the same, with a limit", vec!["build", "--progress=quiet", "-q", "--max-size=2t", &build]),
        ("du", vec!["du"]),
        ("what prune would remove", vec!["prune", "--all", "--dry-run"]),
    ];
    say("| command | small store ms | large store ms | more |");
    say("|---|---|---|---|");
    for (name, args) in &rows {
        let mut samples: [Vec<Sample>; 2] = Default::default();
        for _ in 0..runner.n_runs {
            for (store, samples) in stores.iter().zip(&mut samples) {
                samples.push(sample(&mut command(runner.rbuild, store, args))?);
            }
        }
        let ms = samples.map(|samples| summary(&samples).wall.as_secs_f64() * 1000.0);
        say(&format!("| {name} | {:.1} | {:.1} | {:.1} |", ms[0], ms[1], ms[1] - ms[0]));
    }
    Ok(())
}

fn command(rbuild: &Path, store: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(rbuild);
    // By the default policies, most of the large store would go.
    command.env("RBUILD_GC", "false").arg("--store").arg(store).args(args);
    command
}

/// The crate of the store has a program for it.
fn fill(store: &Path) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--package", "cache", "--example", "fill", "--"]).arg(store);
    cargo.args([N_LAYERS, RECORDS_A_LAYER, MIB_A_LAYER].map(|number| number.to_string()));
    run_command(&mut cargo).context("cannot fill the store")
}
