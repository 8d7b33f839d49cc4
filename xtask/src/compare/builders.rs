//! One build by both builders, from the same folder and the same base images.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use e2e::archive::{self, Image, Layer};
use e2e::case::{Case, Work};
use e2e::engine::Engine;
use e2e::web::Web;

use super::Verdict;
use super::differences::{Difference, differences};
use crate::bases;

/// A build that takes longer hangs.
const TIMEOUT_SECONDS: &str = "900";
/// The time of everything that the preparation of a context made: long ago, and not a whole second.
const PREPARED: &str = "2011-12-13 14:15:16.987654321 UTC";

/// Both builders.
pub(crate) struct Builders {
    rbuild: PathBuf,
    engine: Engine,
    web: Web,
    /// An empty home directory: nobody's settings count.
    home: PathBuf,
    /// The layers of the base images that the engine has been given, by name.
    bases: Mutex<BTreeMap<&'static str, Vec<Layer>>>,
    scratch: PathBuf,
    /// Numbers the engine's images.
    n_images: AtomicUsize,
}

impl Builders {
    /// Makes `scratch` ready.
    pub(crate) fn new(rbuild: &Path, engine: Engine, scratch: &Path) -> Result<Self> {
        let home = scratch.join("home");
        fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
        let web = Web::start().context("cannot listen on loopback")?;
        Ok(Self {
            rbuild: rbuild.to_owned(),
            engine,
            web,
            home,
            bases: Mutex::default(),
            scratch: scratch.to_owned(),
            n_images: AtomicUsize::new(0),
        })
    }

    /// The directory of a batch of cases.
    pub(crate) fn dir(&self, batch: usize) -> PathBuf {
        self.scratch.join(batch.to_string())
    }

    /// Builds some cases by both, in copies of their folders below `dir`. Their images leave the engine together: what they
    /// have in common is written once. A failure that is not a build's is a difference, too.
    pub(crate) fn compare(&self, cases: &[Case], dir: &Path) -> Vec<Verdict> {
        let build = |(index, case): (usize, &Case)| match lacking(case) {
            Some(what) => Outcome::Skipped(what),
            None => match self.build(case, &dir.join(index.to_string())) {
                Ok(built) => Outcome::Built(Box::new(built)),
                Err(error) => Outcome::Broken(format!("{error:#}")),
            },
        };
        let outcomes: Vec<Outcome> = cases.iter().enumerate().map(build).collect();
        let saved = self.save(&outcomes, dir);
        let verdict = |(case, outcome): (&Case, Outcome)| match (outcome, &saved) {
            (Outcome::Skipped(why), _) => Verdict::Skipped(why),
            (Outcome::Broken(error), _) => Verdict::Compared(vec![broken(error)]),
            (Outcome::Built(_), Err(error)) => Verdict::Compared(vec![broken(format!("{error:#}"))]),
            (Outcome::Built(built), Ok(saved)) => Verdict::Compared(built.differences(case, saved)),
        };
        cases.iter().zip(outcomes).map(verdict).collect()
    }

    fn build(&self, case: &Case, dir: &Path) -> Result<BuiltByBoth> {
        // A golden's empty context is empty; who drops a folder in means the folder.
        let default_context = if case.expected.is_null() { "." } else { "context" };
        let begin = SystemTime::now();
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let work = Work::prepare(case, dir.join("work"), default_context, &self.web).map_err(anyhow::Error::msg)?;
        set_times(&work.dir, begin)?;
        let mut known = self.provide_bases(&work)?;
        if let Some(name) = &case.spec.base {
            known.extend(self.build_base(name, &work.dir.join("base"), dir)?);
        }
        let begin = seconds(SystemTime::now());
        let build = Build { builders: self, case, work: &work };
        let ours = build.ours(&dir.join("ours.tar"), &known)?;
        let theirs = build.theirs(self.n_images.fetch_add(1, Ordering::Relaxed))?;
        Ok(BuiltByBoth { begin, known, ours, theirs })
    }

    /// The engine's images by name.
    fn save(&self, outcomes: &[Outcome], dir: &Path) -> Result<BTreeMap<String, Image>> {
        let built = || outcomes.iter().filter_map(Outcome::built);
        let names: Vec<&String> = built().filter_map(|built| built.theirs.as_ref().ok()).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let archive = dir.join("theirs.tar");
        succeeded(self.engine.client().args(["save", "--output"]).arg(&archive).args(names))?;
        let data = fs::read(&archive).with_context(|| archive.display().to_string())?;
        let known: Vec<Layer> = built().flat_map(|built| built.known.iter().cloned()).collect();
        archive::read_saved_images(&data, &known).map_err(anyhow::Error::msg)
    }

    /// Gives the engine the base images that the case stands on, as rbuild has them; returns their layers.
    fn provide_bases(&self, work: &Work) -> Result<Vec<Layer>> {
        let mut texts = work.args.join(" ");
        for file in ["Dockerfile", "context/Dockerfile", "base/Dockerfile"] {
            texts.push_str(&fs::read_to_string(work.dir.join(file)).unwrap_or_default());
        }
        let mut layers = Vec::new();
        let mut provided = self.bases.lock().expect("no thread panics");
        for name in bases::names() {
            // The tag may come from a variable.
            let repository = name.split_once(':').map_or(name, |(repository, _)| &name[..=repository.len()]);
            if !texts.contains(repository) {
                continue;
            }
            if !provided.contains_key(name) {
                provided.insert(name, self.load_base(name)?);
            }
            layers.extend(provided[name].iter().cloned());
        }
        Ok(layers)
    }

    fn load_base(&self, name: &str) -> Result<Vec<Layer>> {
        let dir = self.scratch.join("base");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        fs::write(dir.join("Dockerfile"), format!("FROM {name}\n")).context("cannot write a Dockerfile")?;
        let (oci, docker) = (self.scratch.join("base.oci.tar"), self.scratch.join("base.docker.tar"));
        let mut command = self.rbuild(&dir);
        command.arg("-o").arg(format!("type=docker,name={name},dest={}", docker.display()));
        command.arg("-o").arg(uncompressed(&oci)).arg(".");
        succeeded(&mut command)?;
        succeeded(self.engine.client().args(["load", "--quiet", "--input"]).arg(&docker))?;
        Ok(read_ours(&oci, &[])?.layers)
    }

    /// Builds the image that a case brings along to stand on, under its name.
    fn build_base(&self, name: &str, context: &Path, dir: &Path) -> Result<Vec<Layer>> {
        let docker = dir.join("base.docker.tar");
        let oci = dir.join("base.oci.tar");
        let mut command = self.rbuild(context);
        command.args(["--no-cache", "-t", name, "-o", "type=image", "-o"]);
        command.arg(format!("type=docker,name={name},dest={}", docker.display()));
        command.arg("-o").arg(uncompressed(&oci)).arg(".");
        succeeded(&mut command)?;
        succeeded(self.engine.client().args(["load", "--quiet", "--input"]).arg(&docker))?;
        Ok(read_ours(&oci, &[])?.layers)
    }

    fn rbuild(&self, dir: &Path) -> Command {
        let mut rbuild = Command::new(&self.rbuild);
        rbuild.arg("--store").arg(bases::store_dir()).args(["build", "--progress=plain"]);
        let mut command = self.limited(rbuild);
        command.current_dir(dir).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// `command` with a time limit and without the settings of whoever runs this.
    fn limited(&self, command: Command) -> Command {
        let mut limited = Command::new("timeout");
        limited.args(["--kill-after=5", TIMEOUT_SECONDS]).arg(command.get_program()).args(command.get_args());
        limited.env("HOME", &self.home).env_remove("SOURCE_DATE_EPOCH").env_remove("DOCKER_DEFAULT_PLATFORM");
        for proxy in ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"] {
            limited.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        limited.stdin(Stdio::null());
        limited
    }
}

/// What became of a case.
enum Outcome {
    /// The machine lacks this.
    Skipped(String),
    /// It could not even be tried.
    Broken(String),
    Built(Box<BuiltByBoth>),
}

impl Outcome {
    fn built(&self) -> Option<&BuiltByBoth> {
        match self {
            Self::Built(built) => Some(built),
            Self::Skipped(_) | Self::Broken(_) => None,
        }
    }
}

/// What both builders made of a case.
struct BuiltByBoth {
    /// When they began, in seconds.
    begin: u64,
    /// The layers of what it stands on.
    known: Vec<Layer>,
    /// The image, or why there is none.
    ours: std::result::Result<Image, String>,
    /// The image's name in the engine, or why there is none.
    theirs: std::result::Result<String, String>,
}

impl BuiltByBoth {
    fn differences(&self, case: &Case, saved: &BTreeMap<String, Image>) -> Vec<Difference> {
        match (&self.ours, &self.theirs) {
            (Ok(ours), Ok(theirs)) if !case.spec.fails => match saved.get(theirs) {
                Some(theirs) => differences(ours, theirs, self.begin),
                None => vec![broken(format!("the engine did not save {theirs}"))],
            },
            (Err(_), Err(_)) if case.spec.fails => Vec::new(),
            (ours, theirs) => {
                vec![Difference { place: "build".to_owned(), ours: ending(ours), theirs: ending(theirs) }]
            }
        }
    }
}

/// One build of a case.
struct Build<'a> {
    builders: &'a Builders,
    case: &'a Case,
    work: &'a Work,
}

impl Build<'_> {
    /// The context. A directory gets its whole path: the engine takes files of the same name, size and time for the same,
    /// if they come from a directory of the same name.
    fn context(&self) -> String {
        let dir = self.work.dir.join(&self.work.context);
        if dir.is_dir() { dir.display().to_string() } else { self.work.context.clone() }
    }

    fn ours(&self, archive: &Path, known: &[Layer]) -> Result<std::result::Result<Image, String>> {
        let mut command = self.builders.rbuild(&self.work.dir);
        command.args(["--no-cache", "--output"]).arg(uncompressed(archive));
        let output = self.run(command)?;
        if !output.status.success() {
            return Ok(Err(error_of(&output)));
        }
        read_ours(archive, known).map(Ok)
    }

    fn theirs(&self, number: usize) -> Result<std::result::Result<String, String>> {
        let name = format!("compared:{number}");
        let mut command = self.builders.limited(self.builders.engine.client());
        command.current_dir(&self.work.dir).env("DOCKER_BUILDKIT", "1");
        command.args(["build", "--progress=plain", "--no-cache", "--network=host", "--tag", &name]);
        let output = self.run(command)?;
        Ok(if output.status.success() { Ok(name) } else { Err(error_of(&output)) })
    }

    /// Runs a builder with the flags of the case, and its context at the end.
    fn run(&self, mut command: Command) -> Result<Output> {
        command.envs(&self.case.spec.env);
        command.args(self.work.dockerfile_flags(&self.work.args)).args(&self.work.args).arg(self.context());
        command.output().with_context(|| format!("cannot start {command:?}"))
    }
}

/// What the machine does not have that the case needs.
fn lacking(case: &Case) -> Option<String> {
    if let Some(server) = case.spec.foreign_server() {
        return Some(format!("needs the server {server}, which its own test starts"));
    }
    case.spec.needs.iter().find(|need| !is_there(need)).map(|need| format!("needs {need}"))
}

/// Words that `needs` has for powers that the command asks for anyway, or a program.
fn is_there(need: &str) -> bool {
    ["root", "overlayfs", "network"].contains(&need) || e2e::find_program(need).is_some()
}

fn uncompressed(archive: &Path) -> String {
    format!("type=oci,dest={},compression=uncompressed", archive.display())
}

fn read_ours(archive: &Path, known: &[Layer]) -> Result<Image> {
    let data = fs::read(archive).with_context(|| archive.display().to_string())?;
    let mut images = archive::read_images(&data, known).map_err(anyhow::Error::msg)?;
    images.pop().context("the archive has no image")
}

/// Gives all that the preparation made one old time: what a build copies can then be told from what it makes.
fn set_times(dir: &Path, begin: SystemTime) -> Result<()> {
    let begin = format!("@{}", seconds(begin) - 1);
    let mut find = Command::new("find");
    find.arg(dir).args([
        "-depth",
        "-newermt",
        &begin,
        "-exec",
        "touch",
        "--no-dereference",
        "--date",
        PREPARED,
        "{}",
        "+",
    ]);
    succeeded(&mut find)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn succeeded(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", error_of(&output));
    }
    Ok(())
}

/// A case that could not be compared.
fn broken(error: String) -> Difference {
    Difference { place: "comparison".to_owned(), ours: error, theirs: "unknown".to_owned() }
}

fn ending<T>(built: &std::result::Result<T, String>) -> String {
    match built {
        Ok(_) => "an image".to_owned(),
        Err(error) => format!("`{error}`"),
    }
}

/// The last line of what a program said that begins like an error, else the last.
fn error_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_error =
        |line: &&&str| ["error", "unknown flag", "failed"].iter().any(|word| line.to_lowercase().starts_with(word));
    let line = lines.iter().rev().find(is_error).or(lines.last());
    line.map_or_else(|| output.status.to_string(), |line| (*line).to_owned())
}
