//! The docker engine of this machine's distribution: one of our own that ends with its handle, or the machine's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's client, even where another one lies before it on the path: it brings its own BuildKit along.
const DEBIANS_CLIENT: &str = "/usr/bin/docker";
/// An engine that takes longer does not start.
const START: Duration = Duration::from_secs(60);

/// An engine that answers.
pub struct Engine {
    /// `None` for the machine's.
    own: Option<Own>,
}

/// An engine with data, socket and processes of its own.
struct Own {
    daemon: Child,
    socket: PathBuf,
    dir: PathBuf,
}

impl Engine {
    /// Starts an engine whose files lie in `dir`, which overlayfs has to be able to stand on. It has no bridge: commands
    /// run in the host's network or in none. An error says why there is none on this machine.
    pub fn start(dir: &Path) -> Result<Self, String> {
        let dockerd = crate::find_program("dockerd").ok_or("needs the program dockerd (docker.io)")?;
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        // Paths of sockets are short.
        let socket = std::env::temp_dir().join(format!("rbuild-engine-{}.sock", std::process::id()));
        let mut command = Command::new(dockerd);
        for (flag, file) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(flag).arg(dir.join(file));
        }
        command.arg("-H").arg(format!("unix://{}", socket.display()));
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        let log = dir.join("log");
        let daemon = spawn(&mut command, &log)?;
        let mut engine = Self { own: Some(Own { daemon, socket, dir: dir.to_owned() }) };
        engine.wait(&log)?;
        Ok(engine)
    }

    /// The machine's engine, which is started when it does not answer and then goes on running.
    pub fn of_machine(log: &Path) -> Result<Self, String> {
        let mut engine = Self { own: None };
        if !engine.answers() {
            let dockerd = crate::find_program("dockerd").ok_or("needs the program dockerd (docker.io)")?;
            spawn(&mut Command::new(dockerd), log)?;
            engine.wait(log)?;
        }
        Ok(engine)
    }

    /// A client of this engine, without a command yet.
    pub fn client(&self) -> Command {
        let mut client = Command::new(program());
        if let Some(own) = &self.own {
            client.arg("-H").arg(format!("unix://{}", own.socket.display()));
        }
        client.stdin(Stdio::null());
        client
    }

    /// Where it listens, as in `DOCKER_HOST`.
    pub fn address(&self) -> String {
        let socket = self.own.as_ref().map_or_else(|| PathBuf::from("/var/run/docker.sock"), |own| own.socket.clone());
        format!("unix://{}", socket.display())
    }

    /// The engine's version, such as `20.10.24+dfsg1`.
    pub fn version(&self) -> String {
        let output = self.client().args(["version", "--format", "{{.Server.Version}}"]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        let status = self.client().arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn wait(&mut self, log: &Path) -> Result<(), String> {
        let deadline = Instant::now() + START;
        while !self.answers() {
            let ended = self.own.as_mut().is_some_and(|own| own.daemon.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > deadline {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("dockerd does not start: {}", text.lines().next_back().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It stops its containerd and unmounts, when asked kindly.
        drop(Command::new("kill").arg(self.daemon.id().to_string()).status());
        drop(self.daemon.wait());
        // Its network namespace for containers without a network of their own stays mounted.
        let namespace = self.dir.join("exec/netns/default");
        drop(Command::new("umount").arg("-l").arg(namespace).stderr(Stdio::null()).status());
        drop(std::fs::remove_file(&self.socket));
    }
}

/// The client that belongs to Debian's engine.
pub fn program() -> &'static str {
    if Path::new(DEBIANS_CLIENT).exists() { DEBIANS_CLIENT } else { "docker" }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child, String> {
    let file = |path: &Path| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
    let log = file(log)?;
    let copy = log.try_clone().map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(log).stderr(copy).spawn().map_err(|error| format!("dockerd: {error}"))
}
