//! Engines of other machines: a socket of our own, behind which every connection is an `ssh` that talks to the engine.
//!
//! What docker's client does: `docker system dial-stdio` on the other machine joins its standard streams with its engine.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Forwards connections until it is dropped.
pub(super) struct Bridge {
    dir: TempDir,
    _listener: JoinSet<()>,
}

const SOCKET: &str = "engine.sock";

impl Bridge {
    /// Begins to listen.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(super) fn open(destination: &str, port: Option<u16>) -> std::io::Result<Self> {
        // Nobody else may enter: the directory is ours alone.
        let dir = tempfile::Builder::new().prefix("rbuild-ssh-").tempdir()?;
        let listener = UnixListener::bind(dir.path().join(SOCKET))?;
        let mut args: Vec<String> = ["-o", "ConnectTimeout=30", "-T"].map(str::to_owned).to_vec();
        args.extend(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        args.extend(["--", destination, "docker", "system", "dial-stdio"].map(str::to_owned));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(forward(stream, args.clone()));
            }
        });
        Ok(Self { dir, _listener: task })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }
}

async fn forward(stream: UnixStream, args: Vec<String>) {
    // Its complaints and questions go to the terminal, as with docker's client.
    let child = Command::new("ssh").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return tracing::warn!(%error, "cannot start ssh"),
    };
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else { return };
    let (mut from, mut to) = stream.into_split();
    let there = async {
        drop(tokio::io::copy(&mut from, &mut stdin).await);
        drop(stdin);
    };
    let back = tokio::io::copy(&mut stdout, &mut to);
    drop(tokio::join!(there, back));
    drop(child.wait().await);
}
