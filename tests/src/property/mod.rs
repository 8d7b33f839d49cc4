//! A warm cache never shows: random edits of random builds, each built with a store that has seen all before and with none
//! of its results, must give the same image; and no step runs again of which nothing has changed.

mod disk;
mod model;
mod rng;
mod world;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use disk::Disk;
use model::Place;
use rng::Rng;
use world::World;

/// What files are dated that are younger, so that images can be compared.
const EPOCH: &str = "1000000000";
/// How many states one can go back to.
const HISTORY: usize = 20;
/// Rounds with edits of one world, before there is a new one.
const LIFE: usize = 60;
/// Exit codes that are no fault of the program: success, and a fault of the Dockerfile.
const FAIR_EXITS: [i32; 2] = [0, 1];

/// What the rounds were like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Builds with a warm store.
    pub rounds: usize,
    /// Those that failed, as they did with a cold one.
    pub failing: usize,
    /// Steps that came from the cache.
    pub cached: usize,
    /// Steps that ran.
    pub ran: usize,
    /// Steps that came from the cache although the model knew of no result.
    pub cut_off: usize,
}

/// Builds with the program `rbuild` in the empty directory `dir`, `rounds` times; `busybox` is a static one.
///
/// # Errors
/// The first round in which something was wrong, with the seed and the round, the edits that led there, and the
/// Dockerfile. The directory then holds both stores and the context.
pub fn run(rbuild: &Path, busybox: &Path, dir: &Path, seed: u64, rounds: usize) -> Result<Summary, String> {
    let bench = Bench { rbuild: rbuild.to_owned(), dir: dir.to_owned() };
    bench.make_bases(busybox)?;
    let mut rng = Rng::new(seed);
    let mut summary = Summary::default();
    let mut seen = HashSet::new();
    let mut disk = Disk::new(&dir.join("context"))?;
    while summary.rounds < rounds {
        let mut world = World::new(&mut rng);
        let mut history = vec![world.clone()];
        let mut edits = Vec::new();
        for _ in 0..LIFE.min(rounds - summary.rounds) {
            let outcome = bench.round(&world, &mut disk, &mut rng, &mut edits, &mut seen, &mut summary);
            outcome.map_err(|fault| {
                let last = edits[edits.len().saturating_sub(12)..].join("\n  ");
                let (round, dockerfile) = (summary.rounds, world.dockerfile());
                format!("seed {seed}, round {round}: {fault}\nlast edits:\n  {last}\nDockerfile:\n{dockerfile}")
            })?;
            summary.rounds += 1;
            history.push(world.clone());
            if history.len() > HISTORY {
                history.remove(0);
            }
            if rng.one_in(8) {
                world = rng.pick(&history).clone();
                edits.push("go back".to_owned());
            } else {
                for _ in 0..1 + rng.below(2) {
                    let edit = world.edit(&mut rng, &mut disk.touches);
                    edits.push(edit);
                }
            }
        }
        bench.tidy()?;
    }
    Ok(summary)
}

/// A directory with two stores.
struct Bench {
    rbuild: PathBuf,
    dir: PathBuf,
}

/// How a build ended.
struct Built {
    /// The image's ID; `None` after a failure.
    image: Option<String>,
    /// Whether a vertex came from the cache, for those that were finished.
    vertices: BTreeMap<Place, (String, bool)>,
    stderr: String,
}

impl Bench {
    fn round(
        &self,
        world: &World,
        disk: &mut Disk,
        rng: &mut Rng,
        edits: &mut Vec<String>,
        seen: &mut HashSet<u64>,
        summary: &mut Summary,
    ) -> Result<(), String> {
        disk.bring(world, rng, edits)?;
        for store in ["warm", "cold"] {
            self.succeed(store, &["tag", &format!("base-{}", world.base), "base"])?;
        }
        let args: Vec<String> =
            world.build_args.iter().map(|(variable, value)| format!("--build-arg=V{variable}={value}")).collect();
        let cold = self.start("cold", &args, true)?;
        let warm = self.finish("warm", self.start("warm", &args, false)?)?;
        let cold = self.finish("cold", cold)?;
        if warm.image != cold.image {
            let (warm_log, cold_log) = (&warm.stderr, &cold.stderr);
            return Err(format!(
                "with a warm store {:?}, with a cold one {:?}\n{warm_log}\n{cold_log}",
                warm.image, cold.image
            ));
        }
        summary.failing += usize::from(warm.image.is_none());
        let keys = model::keys(world);
        for (place, (name, is_cached)) in &warm.vertices {
            let Some(key) = keys.get(place) else { continue };
            if !is_cached && seen.contains(key) {
                return Err(format!("`{name}` ran again, and nothing of it had changed\n{}", warm.stderr));
            }
            summary.cached += usize::from(*is_cached);
            summary.ran += usize::from(!is_cached);
            summary.cut_off += usize::from(*is_cached && !seen.contains(key));
        }
        seen.extend(warm.vertices.keys().filter_map(|place| keys.get(place)));
        Ok(())
    }

    /// Two images that can be the base, the same ones in both stores.
    fn make_bases(&self, busybox: &Path) -> Result<(), String> {
        let root = self.dir.join("base/rootfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/bases/busybox/rootfs.sh");
        let made = Command::new("sh").arg("-eu").arg(script).arg(&root).arg(busybox).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err(format!("cannot make a root from {}", busybox.display()));
        }
        let write = |path: &str, text: &str| {
            fs::write(self.dir.join(path), text).map_err(|error| format!("write {path}: {error}"))
        };
        fs::create_dir(root.join("w")).map_err(|error| format!("mkdir w: {error}"))?;
        for number in 0..2 {
            write("base/rootfs/marker", &number.to_string())?;
            write("base/Dockerfile", "FROM scratch\nCOPY rootfs/ /\nENV PATH=/bin\n")?;
            self.succeed("warm", &["-q", "-t", &format!("base-{number}"), "base"])?;
        }
        self.succeed("warm", &["save", "-o", "bases.tar", "base-0", "base-1"])?;
        self.succeed("cold", &["load", "-i", "bases.tar"])
    }

    /// Images without names are of no use any more.
    fn tidy(&self) -> Result<(), String> {
        ["warm", "cold"].iter().try_for_each(|store| self.succeed(store, &["image", "prune", "-f"]))
    }

    fn command(&self, store: &str) -> Command {
        let mut command = Command::new(&self.rbuild);
        command.current_dir(&self.dir).env("RBUILD_STORE", self.dir.join(store)).env("SOURCE_DATE_EPOCH", EPOCH);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn succeed(&self, store: &str, args: &[&str]) -> Result<(), String> {
        let output = self.command(store).args(args).output();
        let Output { status, stderr, .. } = output.map_err(|error| format!("start rbuild: {error}"))?;
        let stderr = String::from_utf8_lossy(&stderr);
        if status.success() { Ok(()) } else { Err(format!("rbuild {}: {status}: {stderr}", args.join(" "))) }
    }

    fn start(&self, store: &str, args: &[String], no_cache: bool) -> Result<Child, String> {
        let mut command = self.command(store);
        command.args(["--progress=rawjson", "--network=none", "-o", "type=image,name=app,rewrite-timestamp=true"]);
        command.arg(format!("--iidfile={store}.iid")).args(no_cache.then_some("--no-cache")).args(args).arg("context");
        // What an earlier build left there is not this one's.
        drop(fs::remove_file(self.dir.join(format!("{store}.iid"))));
        command.spawn().map_err(|error| format!("start rbuild: {error}"))
    }

    fn finish(&self, store: &str, child: Child) -> Result<Built, String> {
        let output = child.wait_with_output().map_err(|error| format!("wait for rbuild: {error}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.code().is_some_and(|code| FAIR_EXITS.contains(&code)) {
            return Err(format!("rbuild ended with {}:\n{stderr}", output.status));
        }
        let image = fs::read_to_string(self.dir.join(format!("{store}.iid"))).ok();
        if image.is_some() != output.status.success() {
            return Err(format!("rbuild ended with {}, image {image:?}:\n{stderr}", output.status));
        }
        Ok(Built { image, vertices: vertices(&stderr), stderr })
    }
}

/// The finished vertices of the Dockerfile: `[s1 2/3] RUN …`, or `[2/3] RUN …` where there is one stage.
fn vertices(progress: &str) -> BTreeMap<Place, (String, bool)> {
    let lines = progress.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let all = lines.flat_map(|line| line["vertexes"].as_array().cloned().unwrap_or_default());
    let finished = all.filter(|vertex| vertex["completed"].is_string() && vertex["error"].is_null());
    finished
        .filter_map(|vertex| {
            let name = vertex["name"].as_str()?;
            let (number, _) = name.strip_prefix('[')?.split_once('/')?;
            let (stage, number) = number.split_once(' ').unwrap_or(("s0", number));
            let place = (stage.strip_prefix('s')?.parse().ok()?, number.parse().ok()?);
            Some((place, (name.to_owned(), vertex["cached"] == true)))
        })
        .collect()
}
