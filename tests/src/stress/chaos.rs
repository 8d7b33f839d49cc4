//! Everything at once: builds, kills and pruning on one store until the time is up, or until the power is cut.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::medium::Mounted;
use super::program::Program;
use super::recipe::Recipe;
use super::{Expected, Plan, Random, Result, check_id, du, verify};

/// How much what the store says of its size may differ from what `du` says.
const DU_TOLERANCE_PERCENT: u64 = 2;

/// What was done, and how it ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Steps that several builds share, each of which ran once when nothing disturbed it.
    pub n_steps_run_once: usize,
    /// Builds that gave the right result.
    pub n_builds: usize,
    /// Builds that were killed.
    pub n_killed: usize,
    /// Builds that failed because the disk was full, and said so.
    pub n_full: usize,
    /// Prunings and other commands beside the builds.
    pub n_others: usize,
    /// Power cuts.
    pub n_cuts: usize,
    /// Images that were named before a power cut and found after it.
    pub n_durable: usize,
}

/// What all threads share.
struct Chaos<'a> {
    plan: &'a Plan,
    program: &'a Program,
    recipes: &'a [Recipe],
    expected: &'a Expected,
    store: std::path::PathBuf,
    may_be_full: bool,
    /// The store is gone: what fails now fails for that.
    is_cut: AtomicBool,
    is_over: AtomicBool,
    failure: Mutex<Option<String>>,
    tallies: [AtomicUsize; 4],
    /// Names given by builds that ended before the cut, and what they stand for.
    named: Mutex<Vec<(String, String)>>,
}

#[derive(Clone, Copy)]
enum Tally {
    Built,
    Killed,
    Full,
    Other,
}

/// One store, for the whole time.
pub(super) fn one_store(
    plan: &Plan,
    program: &Program,
    recipes: &[Recipe],
    expected: &Expected,
    mounted: &Mounted,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Figures> {
    let store = mounted.store();
    program.make_base(&store)?;
    let chaos = Chaos::new(plan, program, recipes, expected, mounted);
    chaos.run(plan.time, 0, || Ok(()))?;
    let figures = chaos.figures();
    say(&format!(
        "{} builds were right, {} killed, {} found the disk full, {} other commands",
        figures.n_builds, figures.n_killed, figures.n_full, figures.n_others
    ));
    verify(program, &store, recipes, expected, mounted)?;
    compare_sizes(program, &store)?;
    say("the store is sound and gives what builds give alone");
    Ok(figures)
}

/// Again and again: builds, a power cut, a restart.
pub(super) fn power_cuts(
    plan: &Plan,
    program: &Program,
    recipes: &[Recipe],
    expected: &Expected,
    mounted: &Mounted,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Figures> {
    let store = mounted.store();
    program.make_base(&store)?;
    let mut random = Random::new(plan.seed ^ 0xc07);
    let mut sum = Figures::default();
    let since = Instant::now();
    while sum.n_cuts == 0 || since.elapsed() < plan.time {
        let chaos = Chaos::new(plan, program, recipes, expected, mounted);
        let time = Duration::from_millis(300 + random.below(5_000));
        chaos.run(time, sum.n_cuts as u64 + 1, || {
            chaos.is_cut.store(true, Ordering::SeqCst);
            mounted.cut()
        })?;
        mounted.restart()?;
        program.next_boot()?;
        let repaired = verify(program, &store, recipes, expected, mounted)?;
        let named = chaos.named.lock().map_err(|_| "a thread panicked".to_owned())?.clone();
        for (name, id) in &named {
            let found = program.run(&store, &["image", "inspect", "--format={{.Id}}", name]).success()?;
            if found != *id {
                return Err(format!("after a power cut {name} is {found} instead of {id}"));
            }
            program.run(&store, &["rmi", name]).success()?;
        }
        let figures = chaos.figures();
        sum.n_builds += figures.n_builds;
        sum.n_killed += figures.n_killed;
        sum.n_others += figures.n_others;
        sum.n_durable += named.len();
        sum.n_cuts += 1;
        let n_problems = repaired.stdout.matches("\"kind\"").count();
        say(&format!(
            "power cut {} after {} ms and {} builds: {} named images are there, {n_problems} things put in order",
            sum.n_cuts,
            time.as_millis(),
            figures.n_builds,
            named.len()
        ));
    }
    compare_sizes(program, &store)?;
    Ok(sum)
}

/// What `rbuild du` says is what `du -s` says.
fn compare_sizes(program: &Program, store: &Path) -> Result<()> {
    let text = program.run(store, &["du", "--format={{.SizeBytes}}"]).success()?;
    let listed: u64 = text.lines().filter_map(|line| line.parse::<u64>().ok()).sum();
    let real = du(store)?;
    if listed.abs_diff(real) * 100 > real * DU_TOLERANCE_PERCENT {
        return Err(format!("`rbuild du` says {listed} bytes, and `du -s` {real}"));
    }
    Ok(())
}

impl<'a> Chaos<'a> {
    fn new(
        plan: &'a Plan,
        program: &'a Program,
        recipes: &'a [Recipe],
        expected: &'a Expected,
        mounted: &Mounted,
    ) -> Self {
        Self {
            plan,
            program,
            recipes,
            expected,
            store: mounted.store(),
            may_be_full: mounted.may_be_full(),
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            failure: Mutex::new(None),
            tallies: Default::default(),
            named: Mutex::default(),
        }
    }

    fn figures(&self) -> Figures {
        let of = |tally: Tally| self.tallies[tally as usize].load(Ordering::Relaxed);
        Figures {
            n_builds: of(Tally::Built),
            n_killed: of(Tally::Killed),
            n_full: of(Tally::Full),
            n_others: of(Tally::Other),
            ..Figures::default()
        }
    }

    fn count(&self, tally: Tally) {
        self.tallies[tally as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Builds and prunes for `time`, then does `end`, and waits for everybody.
    fn run(&self, time: Duration, round: u64, end: impl FnOnce() -> Result<()>) -> Result<()> {
        let ended = std::thread::scope(|scope| {
            for worker in 0..self.plan.n_processes as u64 {
                scope.spawn(move || {
                    self.keep_at_it(worker + 1000 * round, |random, n| self.build(random, worker, round, n))
                });
            }
            scope.spawn(|| self.keep_at_it(900 + 1000 * round, |random, _| self.disturb(random)));
            let until = Instant::now() + time;
            while Instant::now() < until && !self.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let ended = end();
            self.is_over.store(true, Ordering::SeqCst);
            ended
        });
        match self.failure.lock().map_err(|_| "a thread panicked".to_owned())?.take() {
            Some(failure) => Err(failure),
            None => ended,
        }
    }

    /// Does something again and again until it is over; the first failure ends it for all.
    fn keep_at_it(&self, seed: u64, mut work: impl FnMut(&mut Random, u64) -> Result<()>) {
        let mut random = Random::new(self.plan.seed ^ (seed << 20));
        let mut n = 0;
        while !self.is_over.load(Ordering::SeqCst) && !self.is_cut.load(Ordering::SeqCst) {
            n += 1;
            if let Err(error) = work(&mut random, n) {
                self.is_over.store(true, Ordering::SeqCst);
                if let Ok(mut failure) = self.failure.lock() {
                    failure.get_or_insert(error);
                }
            }
        }
    }

    /// One build, which may be killed.
    fn build(&self, random: &mut Random, worker: u64, round: u64, n: u64) -> Result<()> {
        let recipe = &self.recipes[random.below(self.recipes.len() as u64) as usize];
        let name = format!("stress{worker}:r{round}n{n}");
        let archive = self.plan.work.join(format!("archive{worker}.tar"));
        let archive = format!("type=oci,dest={}", archive.display());
        let flags: &[&str] = match random.below(5) {
            0 => &["--tag", &name],
            1 => &["--output", &archive],
            2 => &["--tag", "stress:shared"],
            _ => &[],
        };
        let mut running = self.program.start_build(&self.store, recipe, flags)?;
        let is_killed = random.one_in(6);
        if is_killed {
            std::thread::sleep(Duration::from_millis(random.below(1200)));
            running.kill();
        }
        let ended = running.wait();
        if ended.code == 0 {
            check_id(recipe, self.expected, ended.stdout.trim())?;
            self.count(Tally::Built);
            let is_before_cut = !self.is_cut.load(Ordering::SeqCst);
            if let (["--tag", own], true) = (flags, is_before_cut && flags.get(1) == Some(&name.as_str())) {
                let mut named = self.named.lock().map_err(|_| "a thread panicked".to_owned())?;
                named.push(((*own).to_owned(), ended.stdout.trim().to_owned()));
            }
            return Ok(());
        }
        if is_killed && ended.code == 137 && !ended.is_stuck {
            self.count(Tally::Killed);
            return Ok(());
        }
        // A command that met a full disk fails in its own words; by the time it has ended, there may be room again.
        if self.may_be_full && (ended.is_full() || ended.is_command()) {
            self.count(Tally::Full);
            return self.program.make_room(&self.store);
        }
        if self.is_cut.load(Ordering::SeqCst) && !ended.is_stuck {
            return Ok(());
        }
        Err(ended.text())
    }

    /// Something that goes on beside the builds.
    fn disturb(&self, random: &mut Random) -> Result<()> {
        std::thread::sleep(Duration::from_millis(random.below(600)));
        let args: &[&str] = match random.below(12) {
            0 | 1 => &["prune", "-f"],
            2 | 3 => &["prune", "-af"],
            4 => &["prune", "-f", "--max-used-space=8m"],
            5 => &["prune", "-f", "--filter=type=exec.cachemount"],
            6 => &["du"],
            7 => &["image", "prune", "-f"],
            8 => &["images"],
            9 => &["store", "check", "--repair"],
            // Keeps the names of power cuts, which are looked for afterwards.
            10 => &["rmi", "stress:shared"],
            _ => &["prune", "-af", "--max-used-space=3m"],
        };
        let mut running = self.program.start(&self.store, args)?;
        if random.one_in(5) {
            std::thread::sleep(Duration::from_millis(random.below(200)));
            running.kill();
        }
        let ended = running.wait();
        self.count(Tally::Other);
        let is_fine = match ended.code {
            0 | 137 => true,
            // There may be no such image.
            1 => args[0] == "rmi",
            _ => self.may_be_full && ended.is_full(),
        };
        if (is_fine || self.is_cut.load(Ordering::SeqCst)) && !ended.is_stuck { Ok(()) } else { Err(ended.text()) }
    }
}
