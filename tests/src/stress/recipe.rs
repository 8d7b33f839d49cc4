//! Dockerfiles that share steps: the same base, then branches, each of which several of them go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Plan, Random, Result};

/// How many Dockerfiles there are.
const N_RECIPES: u64 = 12;
/// How many ways there are to go at each fork: few at first, so that what is shared is much.
const FORKS: [u64; 5] = [1, 2, 3, 4, N_RECIPES];
/// Where steps note that they run; a cache mount, so that it is no part of the image and lies outside of what is built.
const COUNT_DIR: &str = "/count";

/// One Dockerfile.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// Its name, which is also that of its directory.
    pub(super) name: String,
    /// The context.
    pub(super) dir: PathBuf,
    steps: Vec<String>,
}

impl Recipe {
    /// Names of the steps that note that they run; equal names are equal steps on equal parents.
    pub(super) fn steps(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(String::as_str)
    }
}

/// Writes all Dockerfiles with their contexts.
pub(super) fn write_all(plan: &Plan) -> Result<Vec<Recipe>> {
    (0..N_RECIPES).map(|number| write(plan, number)).collect()
}

fn write(plan: &Plan, number: u64) -> Result<Recipe> {
    let name = format!("r{number}");
    let dir = plan.work.join("contexts").join(&name);
    let mut steps = Vec::new();
    let mut text = String::new();
    let helper = number % 3;
    let _ = writeln!(text, "FROM busybox AS helper");
    run(&mut text, &mut steps, plan, format!("h{helper}"));
    let _ = writeln!(text, "FROM busybox");
    let mut path = "m".to_owned();
    for (fork, n_ways) in FORKS.into_iter().enumerate() {
        let _ = write!(path, ".{}", number % n_ways);
        run(&mut text, &mut steps, plan, path.clone());
        if fork == 1 {
            let _ = writeln!(text, "COPY files/ /files/");
        }
        if fork == 3 {
            let _ = writeln!(text, "COPY --from=helper /s/h{helper} /helper/");
            path.push_str(&format!("h{helper}"));
        }
    }
    let io = |error: std::io::Error| format!("cannot write {}: {error}", dir.display());
    std::fs::create_dir_all(dir.join("files")).map_err(io)?;
    std::fs::write(dir.join("Dockerfile"), text).map_err(io)?;
    let mut random = Random::new(plan.seed ^ 77);
    for file in 0..20 {
        let bytes: Vec<u8> = (0..random.below(20_000)).map(|_| random.below(256) as u8).collect();
        std::fs::write(dir.join("files").join(format!("f{file}")), bytes).map_err(io)?;
    }
    // Times of the files are in the image.
    let mut touch = std::process::Command::new("sh");
    touch.args(["-c", "find \"$1\" -exec touch -d @1000000000 {} +", "sh"]).arg(dir.join("files"));
    touch.status().map_err(io)?;
    Ok(Recipe { name, dir, steps })
}

/// A step that writes some files with times of their own, and notes outside that it ran.
fn run(text: &mut String, steps: &mut Vec<String>, plan: &Plan, name: String) {
    let mut random =
        Random::new(plan.seed ^ name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
    // Most are small; some would fill a small disk soon.
    let size = if random.one_in(4) { 1_000_000 + random.below(3_000_000) } else { random.below(40_000) };
    let _ = writeln!(
        text,
        "RUN --mount=type=cache,id=stress-count,target={COUNT_DIR} set -e; echo x >> {COUNT_DIR}/{name}; mkdir -p /s/{name}; \
         yes {name} | head -c {size} > /s/{name}/big; for i in 1 2 3 4 5 6; do echo $i {name} > /s/{name}/$i; done; \
         find /s -exec touch -d @1000000000 {{}} +"
    );
    steps.push(name);
}

/// How often each step ran, as the cache mounts of the store say. Nothing may be at work in the store.
pub(super) fn counts(store: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for slot in std::fs::read_dir(store.join("mounts-v1")).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(slot.path().join("data")).into_iter().flatten().flatten() {
            let n_lines = std::fs::read_to_string(file.path()).map_or(0, |text| text.lines().count());
            *counts.entry(file.file_name().to_string_lossy().into_owned()).or_default() += n_lines;
        }
    }
    counts
}
