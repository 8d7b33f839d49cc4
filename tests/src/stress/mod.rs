//! Stress: many builds on one store at once, with pruning, kills, full disks and power cuts, compared with what each build
//! gives alone.
//!
//! Read [`Plan`] first. [`recipe`] generates Dockerfiles that share steps, [`medium`] is what the store stands on, [`program`]
//! runs rbuild under a deadline, [`chaos`] does all at once. Whatever goes wrong ends in one text that says what was run, what
//! came out and how to do it again.

mod chaos;
mod medium;
mod program;
mod recipe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use chaos::Figures;
pub use medium::Medium;

use self::medium::Mounted;
use self::program::{Ended, Program};
use self::recipe::Recipe;

/// What came of it, or one text about what went wrong.
pub type Result<T> = std::result::Result<T, String>;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program.
    pub rbuild: PathBuf,
    /// A static busybox for the base image.
    pub busybox: PathBuf,
    /// A directory for everything, on a file system that overlayfs can stand on; must be empty or missing.
    pub work: PathBuf,
    /// How many builds run at once.
    pub n_processes: usize,
    /// How long.
    pub time: Duration,
    /// The same seed, the same Dockerfiles and (apart from what processes do to each other) the same course of events.
    pub seed: u64,
    /// What the store stands on.
    pub medium: Medium,
}

/// A small generator (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n.max(1)
    }

    /// Whether something with a chance of one in `n` happens.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Runs the whole plan. `say` gets a line about each part.
pub fn run(plan: &Plan, say: &(dyn Fn(&str) + Sync)) -> Result<Figures> {
    std::fs::create_dir_all(&plan.work).map_err(|error| format!("cannot create {}: {error}", plan.work.display()))?;
    let program = Program::new(plan)?;
    let recipes = recipe::write_all(plan)?;
    let expected = alone(plan, &program, &recipes)?;
    say(&format!("{} Dockerfiles built alone", recipes.len()));
    let with_seed = |error: String| format!("seed {}, on {}: {error}", plan.seed, plan.medium.name());
    let once = together(plan, &program, &recipes, &expected).map_err(with_seed)?;
    say(&format!("{} builds at once: each of {} shared steps ran once", once.n_builds, once.n_steps));
    let mounted = plan.medium.mount(&plan.work.join("medium"))?;
    let mut figures = match plan.medium {
        Medium::PowerCut { .. } => chaos::power_cuts(plan, &program, &recipes, &expected, &mounted, say),
        _ => chaos::one_store(plan, &program, &recipes, &expected, &mounted, say),
    }
    .map_err(with_seed)?;
    figures.n_steps_run_once = once.n_steps;
    mounted.unmount()?;
    Ok(figures)
}

/// What each Dockerfile gives, by name.
type Expected = BTreeMap<String, String>;

/// Builds everything alone, one after the other.
fn alone(plan: &Plan, program: &Program, recipes: &[Recipe]) -> Result<Expected> {
    let store = plan.work.join("alone");
    program.make_base(&store)?;
    let mut expected = Expected::new();
    for recipe in recipes {
        let id = program.build(&store, recipe, &[]).success()?;
        let again = program.build(&store, recipe, &["--no-cache"]).success()?;
        if id != again {
            return Err(format!("{} is not reproducible: {id}, then {again}", recipe.name));
        }
        expected.insert(recipe.name.clone(), id);
    }
    Ok(expected)
}

/// What [`together`] did.
struct Once {
    n_builds: usize,
    n_steps: usize,
}

/// Builds everything at the same time in an empty store: every step that several builds share runs once.
fn together(plan: &Plan, program: &Program, recipes: &[Recipe], expected: &Expected) -> Result<Once> {
    let store = plan.work.join("together");
    program.make_base(&store)?;
    let n_builds = plan.n_processes.max(recipes.len());
    let running: Vec<_> = (0..n_builds)
        .map(|number| {
            let recipe = &recipes[number % recipes.len()];
            program.start_build(&store, recipe, &[]).map(|running| (recipe, running))
        })
        .collect::<Result<_>>()?;
    for (recipe, running) in running {
        check_id(recipe, expected, &running.wait().success()?)?;
    }
    let counts = recipe::counts(&store);
    let steps: std::collections::BTreeSet<&str> = recipes.iter().flat_map(Recipe::steps).collect();
    for step in &steps {
        match counts.get(*step) {
            Some(1) => {}
            n_runs => return Err(format!("step {step} ran {} times instead of once", n_runs.unwrap_or(&0))),
        }
    }
    Ok(Once { n_builds, n_steps: steps.len() })
}

fn check_id(recipe: &Recipe, expected: &Expected, id: &str) -> Result<()> {
    match expected.get(&recipe.name) {
        Some(alone) if alone == id => Ok(()),
        alone => Err(format!("{} gave {id}, and alone it gives {}", recipe.name, alone.map_or("nothing", |id| id))),
    }
}

/// What `du -s` says of a directory, in bytes.
fn du(dir: &Path) -> Result<u64> {
    let output = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(dir).output();
    let text = output.map_err(|error| format!("du: {error}"))?.stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| format!("du said {text:?}"))
}

/// Whatever happened, the store verifies (after a repair), its size is what `du` says, and it gives right results.
fn verify(
    program: &Program,
    store: &Path,
    recipes: &[Recipe],
    expected: &Expected,
    mounted: &Mounted,
) -> Result<Ended> {
    let repaired = program.run(store, &["store", "check", "--repair", "--format=json"]);
    if repaired.code > 1 {
        return Err(format!("the store cannot be repaired:\n{}", repaired.text()));
    }
    let torn = [
        "\"kind\": \"corrupt-blob\"",
        "\"kind\": \"corrupt-tree\"",
        "\"kind\": \"index\"",
        "\"kind\": \"incomplete-image\"",
    ];
    if let Some(kind) = torn.iter().find(|kind| repaired.stdout.contains(**kind)) {
        return Err(format!("the store was torn ({kind}):\n{}", repaired.text()));
    }
    let checked = program.run(store, &["store", "check"]);
    if checked.code != 0 {
        return Err(format!("the store is not sound after a repair:\n{}", checked.text()));
    }
    for recipe in recipes {
        let ended = program.build(store, recipe, &[]);
        // A command fails in its own words, and what was collected beside it may have made room since.
        if ended.code != 0 && mounted.may_be_full() && (ended.is_full() || ended.is_command()) {
            program.make_room(store)?;
            check_id(recipe, expected, &program.build(store, recipe, &[]).success()?)?;
        } else {
            check_id(recipe, expected, &ended.success()?)?;
        }
    }
    let listed = program.run(store, &["du", "--format={{.Type}}"]).success()?;
    if listed.is_empty() {
        return Err("du lists nothing".to_owned());
    }
    Ok(repaired)
}
