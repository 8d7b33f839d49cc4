//! `cargo xtask compare`: the same builds by rbuild and by the BuildKit of Debian's docker engine, and every difference
//! between the images.
//!
//! A case is a folder (`e2e::case`): those of `testdata/compare`; with `--all` those of `testdata/real` and the golden
//! cases too. Differences on purpose are in `testdata/compare/known.toml`.

mod builders;
mod cases;
mod differences;
mod known;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use e2e::case::Case;
use e2e::engine::Engine;

use self::builders::Builders;
use self::differences::Difference;
use self::known::Known;
use crate::process::{is_root, say, test_binary, work_dir};
use crate::{bases, packages};

/// Builds wait for disks and for the engine; a few at once keep two processors busy.
const THREADS: usize = 3;
/// Cases whose images leave the engine together.
const BATCH: usize = 8;

/// What is compared.
#[derive(Default)]
struct Selection {
    /// Texts, one of which the name of a case holds; none for all cases.
    names: Vec<String>,
    /// The slow ones too.
    all: bool,
    /// What was built stays on disk.
    keep: bool,
}

/// How one case ended.
pub(crate) enum Verdict {
    /// Both builders built it, or one did not.
    Compared(Vec<Difference>),
    /// The machine lacks what the case needs.
    Skipped(String),
}

/// The command.
pub(crate) fn compare(args: &[String]) -> Result<()> {
    let mut selection = Selection::default();
    for arg in args {
        match arg.as_str() {
            "--all" => selection.all = true,
            "--keep" => selection.keep = true,
            flag if flag.starts_with('-') => bail!("usage: cargo xtask compare [CASE]... [--all] [--keep]"),
            name => selection.names.push(name.to_owned()),
        }
    }
    if !is_root() {
        bail!("the engine and `RUN` need root");
    }
    packages::ensure(packages::ENGINE)?;
    let rbuild = test_binary()?;
    bases::ensure(&rbuild, &bases::store_dir(), &bases::names())?;
    let scratch = fresh_scratch()?;
    let engine = Engine::start(&scratch.join("engine")).map_err(anyhow::Error::msg)?;
    let done = run(&selection, engine, &rbuild, &scratch);
    if !selection.keep {
        drop(std::fs::remove_dir_all(&scratch));
    }
    done
}

/// The cases of `testdata/compare`, as a part of `cargo xtask test`; says why when it cannot be.
pub(crate) fn test(rbuild: &Path) -> Result<()> {
    if !is_root() {
        say("skipped: the comparison with docker needs root");
        return Ok(());
    }
    let scratch = fresh_scratch()?;
    let done = match Engine::start(&scratch.join("engine")) {
        Ok(engine) => run(&Selection::default(), engine, rbuild, &scratch),
        Err(reason) => {
            say(&format!("skipped: the comparison with docker: {reason}"));
            Ok(())
        }
    };
    drop(std::fs::remove_dir_all(&scratch));
    done
}

/// An empty directory beside the build products: overlayfs cannot stand on overlayfs.
fn fresh_scratch() -> Result<PathBuf> {
    let scratch = work_dir().join("compare");
    drop(std::fs::remove_dir_all(&scratch));
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    Ok(scratch)
}

fn run(selection: &Selection, engine: Engine, rbuild: &Path, scratch: &Path) -> Result<()> {
    let version = engine.version();
    say(&format!("comparing with the BuildKit of docker engine {version}"));
    let all = cases::discover(true)?;
    let mut known = Known::read(&version)?;
    known.check_cases(&all)?;
    let chosen = choose(selection)?;
    let begin = Instant::now();
    let builders = Builders::new(rbuild, engine, scratch)?;
    let tally = run_all(selection, &chosen, &builders, &mut known);
    let idle = known.idle(&all, &chosen);
    idle.iter().for_each(|entry| say(&format!("known.toml: {entry}: no longer occurs")));
    if selection.keep {
        say(&format!("contexts and archives are in {}", scratch.display()));
    }
    let Tally { agree, as_known, skipped, differ, differences } = tally;
    say(&format!(
        "{} cases: {agree} agree, {as_known} differ as known.toml says, {skipped} skipped, {differ} differ otherwise \
         ({differences} differences), in {} s",
        chosen.len(),
        begin.elapsed().as_secs()
    ));
    if differ + idle.len() > 0 {
        bail!("the images are not as known.toml says");
    }
    Ok(())
}

fn choose(selection: &Selection) -> Result<Vec<Case>> {
    let mut cases = cases::discover(selection.all)?;
    cases.retain(|case| selection.names.is_empty() || selection.names.iter().any(|name| case.name.contains(name)));
    if cases.is_empty() {
        bail!("no case has such a name; those that take long need --all");
    }
    Ok(cases)
}

/// Compares all, some at once.
fn run_all(selection: &Selection, chosen: &[Case], builders: &Builders, known: &mut Known) -> Tally {
    let report = Mutex::new(Report { known, pending: BTreeMap::new(), next: 0, tally: Tally::default() });
    let batches = Mutex::new(chosen.chunks(BATCH).enumerate());
    let take = || batches.lock().expect("no thread panics").next();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((index, cases)) = take() {
                    let dir = builders.dir(index);
                    let verdicts = builders.compare(cases, &dir);
                    if !selection.keep {
                        drop(std::fs::remove_dir_all(&dir));
                    }
                    report.lock().expect("no thread panics").add(index, cases, verdicts);
                }
            });
        }
    });
    report.into_inner().expect("no thread panics").tally
}

/// How many cases ended how.
#[derive(Default)]
struct Tally {
    agree: usize,
    as_known: usize,
    skipped: usize,
    differ: usize,
    /// Those of the cases that differ otherwise.
    differences: usize,
}

/// Tells the verdicts in the order of the cases.
struct Report<'a> {
    known: &'a mut Known,
    /// Verdicts of batches that ended before an earlier one.
    pending: BTreeMap<usize, Vec<(String, Verdict)>>,
    next: usize,
    tally: Tally,
}

impl Report<'_> {
    fn add(&mut self, index: usize, cases: &[Case], verdicts: Vec<Verdict>) {
        self.pending.insert(index, cases.iter().map(|case| case.name.clone()).zip(verdicts).collect());
        while let Some(verdicts) = self.pending.remove(&self.next) {
            verdicts.into_iter().for_each(|(name, verdict)| self.tell(&name, verdict));
            self.next += 1;
        }
    }

    fn tell(&mut self, name: &str, verdict: Verdict) {
        let differences = match verdict {
            Verdict::Skipped(why) => {
                self.tally.skipped += 1;
                return say(&format!("{name}: skipped: {why}"));
            }
            Verdict::Compared(differences) => differences,
        };
        let total = differences.len();
        let rest: Vec<Difference> =
            differences.into_iter().filter(|difference| !self.known.explains(name, difference)).collect();
        let n_known = total - rest.len();
        match (rest.len(), n_known) {
            (0, 0) => {
                self.tally.agree += 1;
                say(&format!("{name}: agrees"));
            }
            (0, _) => {
                self.tally.as_known += 1;
                say(&format!("{name}: agrees but for {n_known} known differences"));
            }
            _ => {
                self.tally.differ += 1;
                self.tally.differences += rest.len();
            }
        }
        for Difference { place, ours, theirs } in &rest {
            say(&format!("{name}: {place}: ours {ours}, theirs {theirs}"));
        }
    }
}
