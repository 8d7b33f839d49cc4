//! `cargo xtask bench`: the workloads of the design's table, as ratios against a peer and a floor in one run; `bench step`: what
//! one step costs; `bench registry`: pulling and pushing; `bench store`: what a large store costs.

mod inputs;
mod measure;
mod peers;
mod registry;
mod step;
mod store;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::measure::{Sample, sample, summary};
use self::peers::{Peer, Product};
use crate::bases;
use crate::process::{output, release_binary, run_command, say, test_binary, work_dir};

/// One row of the table.
struct Workload {
    name: &'static str,
    context: PathBuf,
    product: Product,
    cache: Cache,
    /// What nobody can beat: a shell command that does only the unavoidable.
    floor: Option<String>,
}

/// What is left of an earlier build.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// Nothing but the base image.
    Cold,
    /// Everything, and one file is changed before each run.
    OneChanged,
    /// Everything.
    Warm,
}

/// Runs the named workloads, or all.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let (mut names, mut peer, mut n_runs, mut is_dev) = (Vec::new(), None, 5, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--peer" => peer = Some(args.next().context("--peer takes a name")?.as_str()),
            "--runs" => n_runs = args.next().context("--runs takes a number")?.parse()?,
            // Only ratios within one table are worth anything then.
            "--dev" => is_dev = true,
            "--help" | "-h" => bail!("usage: cargo xtask bench [WORKLOAD]... [--peer NAME] [--runs N] [--dev]"),
            name => names.push(name),
        }
    }
    let work = work_dir().join("bench");
    std::fs::create_dir_all(&work)?;
    let rbuild = if is_dev { test_binary()? } else { release_binary()? };
    bases::ensure(&rbuild, &bases::store_dir(), &["busybox"])?;
    let busybox_tar = work.join("busybox.tar");
    export_busybox(&rbuild, &busybox_tar)?;
    let peer = if peer == Some("none") { None } else { Some(peers::choose(peer, &busybox_tar, &work)?) };

    let workloads = workloads(&work)?;
    let runner = Runner { rbuild: &rbuild, work: &work, peer: peer.as_deref(), n_runs, n_stores: Cell::new(0) };
    let table = match names.as_slice() {
        ["step"] => Some(step::table as fn(&Runner<'_>) -> Result<()>),
        ["registry"] => Some(registry::table as fn(&Runner<'_>) -> Result<()>),
        ["store"] => Some(store::table as fn(&Runner<'_>) -> Result<()>),
        _ => None,
    };
    if let Some(table) = table {
        let outcome = table(&runner);
        drop(std::fs::remove_dir_all(runner.stores()));
        return outcome;
    }
    if let Some(unknown) = names.iter().find(|name| workloads.iter().all(|workload| workload.name != **name)) {
        let known: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
        bail!("no workload is called `{unknown}`: expected {}, or step, registry or store alone", known.join(", "));
    }
    say(&format!("peer: {}\n", peer.as_ref().map_or_else(|| "none".to_owned(), |peer| peer.name())));
    say("| workload | rbuild s | peak MiB | peer s | ratio | floor s |");
    say("|---|---|---|---|---|---|");
    drop(std::fs::remove_dir_all(runner.stores()));
    for workload in workloads.iter().filter(|workload| names.is_empty() || names.contains(&workload.name)) {
        say(&runner.row(workload)?);
    }
    drop(std::fs::remove_dir_all(runner.stores()));
    Ok(())
}

fn workloads(work: &Path) -> Result<Vec<Workload>> {
    let many = inputs::many_files(work)?;
    let big = inputs::big_files(work)?;
    let steps = inputs::dockerfile(work, "steps", &inputs::steps())?;
    let stages = inputs::dockerfile(work, "stages", &inputs::stages())?;
    let rewrite = inputs::dockerfile(work, "rewrite", &inputs::rewrite())?;
    let one = inputs::dockerfile(work, "one-step", "FROM busybox\nRUN echo x\n")?;
    let tar_floor = |context: &Path| Some(format!("tar c -C {} files | sha256sum", context.display()));
    let stat_floor = Some(format!("find {} -printf '%s %T@\\n' > /dev/null", many.display()));
    let row = |name, context: &PathBuf, product, cache, floor| Workload {
        name,
        context: context.clone(),
        product,
        cache,
        floor,
    };
    use Cache::{Cold, OneChanged, Warm};
    use Product::{Archive, LocalImage};
    Ok(vec![
        row("steps", &steps, LocalImage, Cold, Some(step_floor(work, 50))),
        row("copy-cold", &many, LocalImage, Cold, tar_floor(&many)),
        row("copy-one-changed", &many, LocalImage, OneChanged, tar_floor(&many)),
        row("copy-unchanged", &many, LocalImage, Warm, stat_floor),
        row("copy-archive", &many, Archive, Cold, tar_floor(&many)),
        row("big-archive", &big, Archive, Cold, tar_floor(&big)),
        row("stages", &stages, LocalImage, Cold, Some("sleep 2".to_owned())),
        row("rewrite-archive", &rewrite, Archive, Cold, None),
        row("warm-start", &one, LocalImage, Warm, Some("true".to_owned())),
    ])
}

/// Again and again: namespaces, an overlay mount, exec of a shell, by util-linux.
fn step_floor(work: &Path, n_steps: usize) -> String {
    let dir = work.join("floor");
    let dir = dir.display();
    format!(
        "rm -rf {dir}; mkdir -p {dir}; tar xf {}/busybox.tar -C {dir} --one-top-level=l; i=0; while [ $i -lt {n_steps} ]; do \
         mkdir -p {dir}/u$i {dir}/w$i {dir}/m; unshare -mpiu --fork --propagation slave sh -c \
         \"mount -t overlay o -o lowerdir={dir}/l,upperdir={dir}/u$i,workdir={dir}/w$i {dir}/m && exec chroot {dir}/m /bin/sh -c \
         'echo $i > /f'\"; i=$((i+1)); done",
        work.display()
    )
}

struct Runner<'a> {
    rbuild: &'a Path,
    work: &'a Path,
    peer: Option<&'a dyn Peer>,
    n_runs: usize,
    /// Counts the stores made.
    n_stores: Cell<usize>,
}

impl Runner<'_> {
    /// Measures a workload: rbuild, peer and floor by turns.
    fn row(&self, workload: &Workload) -> Result<String> {
        let peer = self.peer.filter(|peer| peer.lacks(workload.product).is_none());
        let (mut ours, mut theirs, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        let cold = workload.cache == Cache::Cold;
        if !cold {
            self.prepare_store()?;
            sample(&mut self.ours(workload))?;
            if let Some(peer) = peer {
                sample(&mut peer.build(&workload.context, workload.product, false))?;
            }
        }
        for run in 0..self.n_runs {
            if cold {
                self.prepare_store()?;
            }
            self.change_one(workload, 2 * run)?;
            ours.push(sample(&mut self.ours(workload))?);
            if let Some(peer) = peer {
                self.change_one(workload, 2 * run + 1)?;
                theirs.push(sample(&mut peer.build(&workload.context, workload.product, cold))?);
            }
            if let Some(floor) = &workload.floor {
                floors.push(sample(Command::new("sh").args(["-ec", floor]))?);
            }
        }
        let ours = summary(&ours);
        let seconds = |samples: &[Sample]| match samples {
            [] => "–".to_owned(),
            samples => format!("{:.3}", summary(samples).wall.as_secs_f64()),
        };
        let ratio = match theirs.as_slice() {
            [] => "–".to_owned(),
            theirs => format!("{:.1}×", summary(theirs).wall.as_secs_f64() / ours.wall.as_secs_f64()),
        };
        Ok(format!(
            "| {} | {:.3} | {} | {} | {ratio} | {} |",
            workload.name,
            ours.wall.as_secs_f64(),
            ours.peak_kib / 1024,
            seconds(&theirs),
            seconds(&floors)
        ))
    }

    fn ours(&self, workload: &Workload) -> Command {
        let mut command = Command::new(self.rbuild);
        command.arg("--store").arg(self.store()).arg("--progress=plain");
        match workload.product {
            Product::LocalImage => command.args(["-t", "bench"]),
            Product::Archive => {
                command.arg("-o").arg(format!("type=oci,dest={}", self.work.join("ours.tar").display()))
            }
        };
        command.arg(&workload.context);
        command
    }

    fn store(&self) -> PathBuf {
        self.stores().join(self.n_stores.get().to_string())
    }

    /// Stores of earlier runs stay until the end: ext4 passes over inodes that were freed a moment ago, one by one, and
    /// what comes next would pay for it.
    fn stores(&self) -> PathBuf {
        self.work.join("stores")
    }

    /// A store that knows busybox and nothing else.
    fn prepare_store(&self) -> Result<()> {
        self.n_stores.set(self.n_stores.get() + 1);
        let context = inputs::dockerfile(self.work, "busybox-base", "FROM scratch\nADD busybox.tar /\nCMD [\"sh\"]\n")?;
        let tar = context.join("busybox.tar");
        if !tar.exists() {
            std::fs::copy(self.work.join("busybox.tar"), tar)?;
        }
        let mut build = Command::new(self.rbuild);
        build.arg("--store").arg(self.store()).args(["-q", "-t", "busybox"]).arg(context);
        output(&mut build).map(drop)
    }

    fn change_one(&self, workload: &Workload, run: usize) -> Result<()> {
        if workload.cache == Cache::OneChanged {
            let file = workload.context.join("files/package-250/module-50.js");
            std::fs::write(file, format!("// changed for run {run} of process {}\n", std::process::id()))?;
        }
        Ok(())
    }
}

fn export_busybox(rbuild: &Path, tar: &Path) -> Result<()> {
    let context = tar.with_file_name("busybox-export");
    std::fs::create_dir_all(&context)?;
    std::fs::write(context.join("Dockerfile"), "FROM busybox\n")?;
    let mut build = Command::new(rbuild);
    build
        .arg("--store")
        .arg(bases::store_dir())
        .args(["-q", "-o"])
        .arg(format!("type=tar,dest={}", tar.display()))
        .arg(context);
    run_command(&mut build)
}
