//! Programs of this machine that a device needs run before the command starts: hooks of the OCI runtime specification.
//!
//! An OCI runtime is told about them and runs them itself. Without one, those of the moments before the root is entered
//! are run here, one after the other: the root with all of its mounts lies where the bundle says, and the process that the
//! state names is the thread that has the container's namespaces. Those of later moments are refused.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::control::Control;
use super::error::SandboxError;
use super::host::serial;

/// A program that is run on the way to a command. Spec: OCI runtime specification 1.0.2, "POSIX-platform Hooks".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When.
    pub moment: HookMoment,
    /// The program: an absolute path of this machine (of the root for [`HookMoment::StartContainer`]).
    pub path: PathBuf,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// When a hook is run, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookMoment {
    /// Namespaces and root are there; runtimes want the next one used instead.
    Prestart,
    /// The same.
    CreateRuntime,
    /// The same, in the container's mount namespace.
    CreateContainer,
    /// In the container, before the command.
    StartContainer,
    /// The command has begun.
    Poststart,
    /// The command has ended.
    Poststop,
}

impl HookMoment {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// As the specification has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Whether the root is still seen from outside then.
    fn is_before_entering(self) -> bool {
        self <= Self::CreateContainer
    }
}

/// Time between looks at a hook that runs.
const PAUSE: Duration = Duration::from_millis(5);

/// Refuses what [`run`] cannot do.
pub(super) fn check(hooks: &[Hook]) -> Result<(), SandboxError> {
    match hooks.iter().find(|hook| !hook.moment.is_before_entering()) {
        None => Ok(()),
        Some(hook) => Err(SandboxError::HookMoment { hook: hook.path.clone(), moment: hook.moment.name() }),
    }
}

/// Runs hooks for the root at `root`, with `bundle` as their bundle: a directory that is ours alone.
///
/// The calling thread has the namespaces of the command, and its root is the machine's.
pub(super) fn run(hooks: &[Hook], root: &Path, bundle: &Path, control: &Control) -> Result<(), SandboxError> {
    let config = bundle.join("config.json");
    let text = json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "process": { "cwd": "/", "user": { "uid": 0, "gid": 0 }, "args": [], "env": [] },
        "mounts": [],
        "linux": { "namespaces": [] },
    });
    fs::write(&config, text.to_string()).map_err(SandboxError::io("write", &config))?;
    let state = json!({
        "ociVersion": "1.0.2",
        "id": format!("rbuild-{}-{}", std::process::id(), serial()),
        "status": "creating",
        "pid": rustix::thread::gettid().as_raw_nonzero(),
        "bundle": bundle,
        "annotations": {},
    });
    let (log, state_file) = (bundle.join("hook.log"), bundle.join("state.json"));
    fs::write(&state_file, state.to_string()).map_err(SandboxError::io("write", &state_file))?;
    let mut in_order: Vec<&Hook> = hooks.iter().collect();
    in_order.sort_by_key(|hook| hook.moment);
    for hook in in_order {
        let ended = start(hook, bundle, &state_file, &log).and_then(|child| wait(child, hook, control));
        let failed = |reason: String| SandboxError::Hook {
            hook: hook.path.clone(),
            moment: hook.moment.name(),
            reason,
            output: last_line(&log),
        };
        match ended.map_err(|error| failed(error.to_string()))? {
            Ended::Itself(status) if status.success() => {}
            Ended::Itself(status) => return Err(failed(status.to_string())),
            Ended::TooLate => return Err(failed("it takes longer than it may".to_owned())),
            Ended::Cancelled => return Err(SandboxError::Cancelled),
        }
    }
    Ok(())
}

fn start(hook: &Hook, bundle: &Path, state: &Path, log: &Path) -> io::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    let mut output = File::create(log)?;
    output.flush()?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().map(|(name, value)| (name, value))).current_dir(bundle);
    command.stdin(File::open(state)?).stdout(output.try_clone()?).stderr(Stdio::from(output)).spawn()
}

/// How a hook came to its end.
enum Ended {
    Itself(ExitStatus),
    TooLate,
    Cancelled,
}

fn wait(mut child: Child, hook: &Hook, control: &Control) -> io::Result<Ended> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended::Itself(status));
        }
        let is_late = hook.timeout.is_some_and(|most| began.elapsed() > most);
        if is_late || control.is_cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(if is_late { Ended::TooLate } else { Ended::Cancelled });
        }
        std::thread::sleep(PAUSE);
    }
}

/// What a program has said last.
fn last_line(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(moment: HookMoment, script: &str) -> Hook {
        Hook {
            moment,
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("WHERE".to_owned(), "here".to_owned())],
            timeout: Some(Duration::from_secs(20)),
        }
    }

    fn run_all(hooks: &[Hook]) -> (tempfile::TempDir, Result<(), SandboxError>) {
        let bundle = tempfile::tempdir().unwrap();
        let result = run(hooks, Path::new("/the/root"), bundle.path(), &Control::new().unwrap());
        (bundle, result)
    }

    #[test]
    fn hooks_run_in_order_with_the_state_and_the_bundle() {
        let later = hook(HookMoment::CreateContainer, "echo second $WHERE $HOME >> order; cat > state");
        let first = hook(HookMoment::Prestart, "echo first >> order");
        let (bundle, result) = run_all(&[later, first]);
        result.unwrap();
        assert_eq!(fs::read_to_string(bundle.path().join("order")).unwrap(), "first\nsecond here\n");
        let state: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(bundle.path().join("state")).unwrap()).unwrap();
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(bundle.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(config["root"]["path"], "/the/root");
    }

    #[test]
    fn a_hook_that_fails_says_so_in_its_own_words() {
        let (_bundle, result) = run_all(&[hook(HookMoment::CreateRuntime, "echo no driver >&2; exit 3")]);
        let message = result.unwrap_err().to_string();
        assert_eq!(message, "the createRuntime hook `/bin/sh` of a device failed: exit status: 3: no driver");
        let slow = Hook { timeout: Some(Duration::from_millis(30)), ..hook(HookMoment::Prestart, "sleep 100") };
        let message = run_all(&[slow]).1.unwrap_err().to_string();
        assert!(message.contains("longer than it may"), "{message}");
        let missing = Hook { path: "/there/is/none".into(), ..hook(HookMoment::Prestart, "") };
        assert!(run_all(&[missing]).1.is_err());
    }

    #[test]
    fn hooks_inside_of_the_container_are_refused() {
        for moment in HookMoment::ALL {
            assert_eq!(check(&[hook(moment, "")]).is_ok(), moment.is_before_entering(), "{}", moment.name());
        }
    }
}
