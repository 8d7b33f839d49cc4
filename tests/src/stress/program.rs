//! Running rbuild, under a deadline: what does not end is a deadlock.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::recipe::Recipe;
use super::{Plan, Result};

/// No build takes a tenth of this, however many run.
const DEADLINE: Duration = Duration::from_secs(240);

/// The program, and what it needs to be run.
pub(super) struct Program {
    rbuild: PathBuf,
    /// A directory for outputs of processes.
    logs: PathBuf,
    /// The context of the base image.
    base: PathBuf,
    /// What takes the place of the kernel's word about which boot this is.
    boot_file: PathBuf,
    n_started: AtomicU64,
    boot: AtomicU64,
}

/// A process at work.
pub(super) struct Running {
    child: Child,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
    since: Instant,
}

/// A process that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) what: String,
    /// 128 + n for signal n.
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Whether it had to be stopped.
    pub(super) is_stuck: bool,
}

impl Program {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let io = |error: std::io::Error| format!("cannot prepare {}: {error}", plan.work.display());
        let (logs, base) = (plan.work.join("logs"), plan.work.join("base"));
        std::fs::create_dir_all(&logs).map_err(io)?;
        std::fs::create_dir_all(&base).map_err(io)?;
        let bases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/bases/busybox");
        std::fs::copy(bases.join("Dockerfile"), base.join("Dockerfile")).map_err(io)?;
        let script = bases.join("rootfs.sh");
        let made = Command::new("sh").arg("-eu").arg(script).arg(base.join("rootfs")).arg(&plan.busybox).status();
        if !made.map_err(io)?.success() {
            return Err("cannot make the root of the base image".to_owned());
        }
        // What is tested does not change under way, whoever compiles meanwhile.
        let rbuild = plan.work.join("rbuild");
        std::fs::copy(&plan.rbuild, &rbuild).map_err(io)?;
        let boot_file = plan.work.join("boot_id");
        let program = Self { rbuild, logs, base, boot_file, n_started: AtomicU64::new(0), boot: AtomicU64::new(0) };
        program.next_boot()?;
        Ok(program)
    }

    /// From now on, processes believe that the machine was started anew.
    pub(super) fn next_boot(&self) -> Result<()> {
        let boot = self.boot.fetch_add(1, Ordering::Relaxed);
        let text = format!("{boot:08x}-0000-4000-8000-000000000000\n");
        std::fs::write(&self.boot_file, text).map_err(|error| format!("cannot write the boot's name: {error}"))
    }

    /// Makes a store that knows `busybox`.
    pub(super) fn make_base(&self, store: &Path) -> Result<()> {
        let base = self.base.to_string_lossy().into_owned();
        self.run(store, &["build", "-q", "-t", "busybox", &base]).success().map(drop)
    }

    /// Does as a build that found the disk full says, and gives up the images of other builds.
    pub(super) fn make_room(&self, store: &Path) -> Result<()> {
        let listed = self.run(store, &["images", "--format={{.Repository}}:{{.Tag}}"]).success()?;
        for name in listed.lines().filter(|name| name.starts_with("stress")) {
            // Somebody else may have done so.
            self.run(store, &["rmi", name]);
        }
        for args in [["image", "prune", "-f"].as_slice(), &["prune", "-af"]] {
            let ended = self.run(store, args);
            if ended.code != 0 && !ended.is_full() {
                return Err(ended.text());
            }
        }
        Ok(())
    }

    /// Builds; the output is the image ID.
    pub(super) fn build(&self, store: &Path, recipe: &Recipe, flags: &[&str]) -> Ended {
        self.run(store, &build_args(recipe, flags).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(super) fn start_build(&self, store: &Path, recipe: &Recipe, flags: &[&str]) -> Result<Running> {
        self.start(store, &build_args(recipe, flags).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(super) fn run(&self, store: &Path, args: &[&str]) -> Ended {
        match self.start(store, args) {
            Ok(running) => running.wait(),
            Err(error) => {
                Ended { what: args.join(" "), code: 127, stdout: String::new(), stderr: error, is_stuck: false }
            }
        }
    }

    /// Starts the program in a mount namespace of its own, in which the kernel names the boot that we say.
    pub(super) fn start(&self, store: &Path, args: &[&str]) -> Result<Running> {
        let number = self.n_started.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) = (self.logs.join(format!("{number}.out")), self.logs.join(format!("{number}.err")));
        let what = format!("rbuild {}", args.join(" "));
        let io = |error: std::io::Error| format!("cannot start `{what}`: {error}");
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&self.boot_file).arg(&self.rbuild).args(args);
        command.env("RBUILD_STORE", store).env("NO_COLOR", "1").env("SOURCE_DATE_EPOCH", "1000000000");
        command.current_dir(&self.logs).stdin(Stdio::null());
        command.stdout(File::create(&stdout).map_err(io)?).stderr(File::create(&stderr).map_err(io)?);
        let child = command.spawn().map_err(io)?;
        Ok(Running { child, what, stdout, stderr, since: Instant::now() })
    }
}

fn build_args(recipe: &Recipe, flags: &[&str]) -> Vec<String> {
    let fixed = ["build".to_owned(), "-q".to_owned(), recipe.dir.to_string_lossy().into_owned()];
    fixed.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned())).collect()
}

impl Running {
    /// As by `kill -9`.
    pub(super) fn kill(&mut self) {
        // It may have ended.
        drop(self.child.kill());
    }

    pub(super) fn wait(mut self) -> Ended {
        let mut pause = Duration::from_millis(2);
        let (status, is_stuck) = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break (Some(status), false),
                Ok(None) if self.since.elapsed() > DEADLINE => {
                    self.kill();
                    break (self.child.wait().ok(), true);
                }
                Ok(None) => std::thread::sleep(pause),
                Err(_) => break (None, false),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let signal = status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status)).unwrap_or(0);
        let read = |path: &Path| {
            let text =
                std::fs::read(path).map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned());
            drop(std::fs::remove_file(path));
            text
        };
        Ended {
            what: self.what,
            code: status.and_then(|status| status.code()).unwrap_or(128 + signal),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            is_stuck,
        }
    }
}

impl Ended {
    /// Its output without the newline, if it succeeded.
    pub(super) fn success(self) -> Result<String> {
        if self.code == 0 && !self.is_stuck { Ok(self.stdout.trim().to_owned()) } else { Err(self.text()) }
    }

    /// Whether it failed because a disk was full, and said what to do about that.
    pub(super) fn is_full(&self) -> bool {
        let says = |text: &str| self.stderr.contains(text);
        self.code != 0
            && says("`rbuild prune`")
            && (says("os error 28") || says("disk is full") || says("No space left") || says("the store is full"))
    }

    /// Whether it failed because a command of a `RUN` did.
    pub(super) fn is_command(&self) -> bool {
        self.code == 1 && self.stderr.contains("did not complete successfully")
    }

    pub(super) fn text(&self) -> String {
        let stuck = if self.is_stuck { " (it did not end)" } else { "" };
        format!("`{}` ended with {}{stuck}\n{}{}", self.what, self.code, self.stdout, self.stderr)
    }
}
