//! `cargo xtask bench step`: what one `RUN true` costs, by network and tier, against runtimes, a peer and a floor.
//!
//! Each way builds (or runs) two numbers of steps; what a step costs is the difference of their medians, divided. So what is
//! paid once a build does not count here; the table shows it in a column of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{Sample, sample, summary};
use super::peers::{Peer, Product};
use super::{Runner, inputs};
use crate::process::{is_installed, output, run_command, say};

/// The steps of the longer build that the shorter one does not have.
const FURTHER: usize = 50;

/// Layers below the first step of the deep build.
const DEEP: usize = 100;

/// A way to run steps.
struct Way<'a> {
    name: String,
    /// The command that runs that many steps.
    run: Box<dyn Fn(usize) -> Result<Command> + 'a>,
    /// The number of steps of the shorter run.
    few: usize,
}

/// Measures all ways by turns and prints their table.
pub(super) fn table(runner: &Runner<'_>) -> Result<()> {
    runner.prepare_store()?;
    let bundle = runner.work.join("bundle");
    let mut ways = own(runner);
    for runtime in ["crun", "runc"].into_iter().filter(|runtime| is_installed(runtime)) {
        make_bundle(runner.work, &bundle, runtime)?;
        ways.push(alone(runtime, &bundle));
    }
    if let Some(peer) = runner.peer {
        ways.push(of_peer(runner.work, peer));
    }
    ways.push(Way {
        name: "floor: util-linux, a shell, no `/proc`, `/sys` or `/dev`".to_owned(),
        run: Box::new(|n_steps| Ok(shell(&super::step_floor(runner.work, n_steps)))),
        few: 1,
    });
    let mut samples: Vec<[Vec<Sample>; 2]> = ways.iter().map(|_| Default::default()).collect();
    for way in &ways {
        // Nobody pays for what is cold.
        sample(&mut (way.run)(way.few)?)?;
    }
    for _ in 0..runner.n_runs {
        for (way, [few, many]) in ways.iter().zip(&mut samples) {
            few.push(sample(&mut (way.run)(way.few)?)?);
            many.push(sample(&mut (way.run)(way.few + FURTHER)?)?);
        }
    }
    say("| steps by | a step ms | best | the first build s |");
    say("|---|---|---|---|");
    for (way, [few, many]) in ways.iter().zip(&samples) {
        let a_step = |pick: fn(&[Sample]) -> Duration| {
            pick(many).saturating_sub(pick(few)).as_secs_f64() * 1000.0 / FURTHER as f64
        };
        let first = median(few).as_secs_f64();
        say(&format!("| {} | {:.1} | {:.1} | {first:.3} |", way.name, a_step(median), a_step(best)));
    }
    Ok(())
}

fn median(samples: &[Sample]) -> Duration {
    summary(samples).wall
}

fn best(samples: &[Sample]) -> Duration {
    samples.iter().map(|sample| sample.wall).min().unwrap_or_default()
}

/// rbuild itself: networks, runtimes, and a build whose first steps have many layers below.
fn own<'a>(runner: &'a Runner<'a>) -> Vec<Way<'a>> {
    let way = |name: &str, few: usize, flags: &'static [&'static str]| Way {
        name: name.to_owned(),
        few,
        run: Box::new(move |n_steps| {
            let context = dockerfile(runner.work, n_steps)?;
            let mut command = Command::new(runner.rbuild);
            command.arg("--store").arg(runner.store()).args(["--no-cache", "--progress=quiet", "-o", "type=cacheonly"]);
            command.args(flags).arg(context);
            Ok(command)
        }),
    };
    const HOST: &[&str] = &["--network=host", "--allow=network.host"];
    let mut ways = vec![
        way("rbuild, `--network=host`", 1, HOST),
        way("rbuild, private network", 1, &[]),
        way("rbuild, `--network=none`", 1, &["--network=none"]),
        way("rbuild, `--network=host`, over a hundred layers", DEEP, HOST),
    ];
    if is_installed("crun") {
        ways.push(way(
            "rbuild, `--network=host --isolation=oci:crun`",
            1,
            &["--network=host", "--allow=network.host", "--isolation=oci:crun"],
        ));
    }
    ways
}

fn of_peer<'a>(work: &'a Path, peer: &'a dyn Peer) -> Way<'a> {
    Way {
        name: peer.name(),
        few: 1,
        run: Box::new(move |n_steps| Ok(peer.build(&dockerfile(work, n_steps)?, Product::LocalImage, true))),
    }
}

/// A runtime by itself: a container after the other on one root, without an overlay of its own.
fn alone<'a>(runtime: &'static str, bundle: &Path) -> Way<'a> {
    let bundle = bundle.join(runtime);
    let flags = if runtime == "crun" { "--cgroup-manager=disabled" } else { "" };
    Way {
        name: format!("{runtime} alone, without control groups or an overlay"),
        few: 1,
        run: Box::new(move |n_steps| {
            let name = format!("rbuild-bench-{}", std::process::id());
            let bundle = bundle.display();
            // crun refuses to work where there are two kinds of control groups.
            Ok(shell(&format!(
                "exec unshare --mount sh -ec 'umount -l /sys/fs/cgroup/unified 2> /dev/null || true; i=0; \
                 while [ $i -lt {n_steps} ]; do {runtime} {flags} run -b {bundle} {name}-$i; i=$((i+1)); done'"
            )))
        }),
    }
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", text]);
    command
}

fn dockerfile(work: &Path, n_steps: usize) -> Result<std::path::PathBuf> {
    let steps: String = (0..n_steps).map(|step| format!("RUN true {step}\n")).collect();
    inputs::dockerfile(work, &format!("steps-{n_steps}"), &format!("FROM busybox\n{steps}"))
}

/// A bundle with the runtime's own idea of a container, that runs `true` in a shell.
fn make_bundle(work: &Path, bundles: &Path, runtime: &str) -> Result<()> {
    let bundle = bundles.join(runtime);
    drop(std::fs::remove_dir_all(&bundle));
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root)?;
    run_command(Command::new("tar").arg("xf").arg(work.join("busybox.tar")).arg("-C").arg(&root))?;
    output(Command::new(runtime).arg("spec").current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let process =
        config.get_mut("process").and_then(Value::as_object_mut).context("a runtime's config has a process")?;
    process.insert("terminal".to_owned(), json!(false));
    process.insert("args".to_owned(), json!(["/bin/sh", "-c", "true"]));
    // Raising a limit is not everybody's right, and control groups are not what is measured.
    process.remove("rlimits");
    let linux =
        config.get_mut("linux").and_then(Value::as_object_mut).context("a runtime's config has a part for Linux")?;
    linux.remove("resources");
    if let Some(namespaces) = linux.get_mut("namespaces").and_then(Value::as_array_mut) {
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
    }
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut).context("a runtime's config has mounts")?;
    mounts.retain(|mount| mount["type"] != "cgroup");
    std::fs::write(&file, serde_json::to_vec(&config)?).with_context(|| format!("cannot write {}", file.display()))
}
