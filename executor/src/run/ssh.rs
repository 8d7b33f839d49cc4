//! Forwarded ssh agents: a socket for the command that lets it list keys and sign with them, and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use solver::OpError;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// What an empty id means.
pub const DEFAULT_AGENT: &str = "default";

/// Sockets of agents by id.
#[derive(Clone, Debug, Default)]
pub struct AgentStore {
    sockets: BTreeMap<String, PathBuf>,
}

impl AgentStore {
    /// Adds the agent that listens on `socket`.
    #[must_use]
    pub fn with_socket(mut self, id: &str, socket: PathBuf) -> Self {
        self.sockets.insert(id.to_owned(), socket);
        self
    }

    /// The socket for an id as written; `None` when there is none and it is not required.
    pub(super) fn find(&self, id: &str, required: bool) -> Result<Option<&Path>, OpError> {
        let wanted = if id.is_empty() { DEFAULT_AGENT } else { id };
        match self.sockets.get(wanted) {
            Some(socket) => Ok(Some(socket)),
            None if required => Err(OpError::input(format!("no SSH key \"{id}\" forwarded from the client"))
                .help(format!("pass it with `--ssh {wanted}`"))),
            None => Ok(None),
        }
    }
}

/// Requests that only use keys (draft-miller-ssh-agent, §5.1).
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// The answer to everything else: a message of one byte, `SSH_AGENT_FAILURE`.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// Longer messages end the connection; OpenSSH's agent draws the same line.
const MOST_MESSAGE_BYTES: u32 = 256 * 1024;

/// Sockets of one command. Dropping closes every connection and removes them.
#[derive(Default)]
pub(super) struct Forwards {
    directory: Option<TempDir>,
    tasks: JoinSet<()>,
    count: usize,
}

impl Forwards {
    /// Opens a socket that leads to `agent` and belongs to `uid`, `gid` with `mode`.
    pub(super) fn open(
        &mut self,
        scratch: &Path,
        agent: &Path,
        (uid, gid, mode): (u32, u32, u32),
    ) -> io::Result<PathBuf> {
        let directory = match &self.directory {
            Some(directory) => directory.path(),
            None => self.directory.insert(tempfile::Builder::new().prefix("ssh-").tempdir_in(scratch)?).path(),
        };
        let name = format!("agent-{}", self.count);
        self.count += 1;
        let path = directory.join(&name);
        // An address has room for 107 bytes only; the way over the descriptor is short, wherever the store lies.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(directory, flags, Mode::empty())?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        chown(&path, Some(uid), Some(gid))?;
        self.tasks.spawn(serve(listener, agent.to_owned()));
        Ok(path)
    }
}

/// Accepts connections until dropped; connections end with it.
async fn serve(listener: UnixListener, agent: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let agent = agent.clone();
                    connections.spawn(async move {
                        if let Err(error) = relay(client, &agent).await {
                            tracing::debug!(%error, "ssh agent connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the ssh agent");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Passes permitted requests on, one at a time as the protocol has it.
async fn relay(mut client: UnixStream, agent: &Path) -> io::Result<()> {
    let mut server = UnixStream::connect(agent).await?;
    while let Some(request) = read_message(&mut client).await? {
        if !matches!(request.get(4), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST))) {
            client.write_all(&FAILURE).await?;
            continue;
        }
        server.write_all(&request).await?;
        match read_message(&mut server).await? {
            Some(answer) => client.write_all(&answer).await?,
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(())
}

/// A message with its length in front; `None` at the end of the stream.
async fn read_message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let size = u32::from_be_bytes(length);
    if size == 0 || size > MOST_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("agent message of {size} bytes")));
    }
    let mut message = length.to_vec();
    message.resize(4 + size as usize, 0);
    stream.read_exact(&mut message[4..]).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_found_by_id() {
        let agents = AgentStore::default().with_socket("default", "/a".into()).with_socket("git", "/b".into());
        assert_eq!(agents.find("", true).unwrap(), Some(Path::new("/a")));
        assert_eq!(agents.find("git", true).unwrap(), Some(Path::new("/b")));
        assert_eq!(agents.find("x", false).unwrap(), None);
        let error = AgentStore::default().find("", true).unwrap_err();
        assert_eq!(error.message, "no SSH key \"\" forwarded from the client");
    }

    #[tokio::test]
    async fn only_listing_and_signing_get_through() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        let listener = UnixListener::bind(&agent).unwrap();
        // An agent that answers every request with the request's type plus 100.
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Some(message) = read_message(&mut stream).await.unwrap() {
                stream.write_all(&[0, 0, 0, 1, message[4] + 100]).await.unwrap();
            }
        });
        let mut forwards = Forwards::default();
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let socket = forwards.open(directory.path(), &agent, (owner.0, owner.1, 0o600)).unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

        let mut client = UnixStream::connect(&socket).await.unwrap();
        // List, remove all, sign with a payload, add, an extension.
        for (kind, answer) in [(11, 111), (19, 5), (13, 113), (17, 5), (27, 5)] {
            client.write_all(&[0, 0, 0, 3, kind, 1, 2]).await.unwrap();
            let got = read_message(&mut client).await.unwrap().unwrap();
            assert_eq!(got, [0, 0, 0, 1, answer], "request {kind}");
        }
        // Garbage ends the connection, and dropping the rest.
        client.write_all(&[0xff; 8]).await.unwrap();
        assert!(read_message(&mut client).await.unwrap_or(None).is_none());
        server.join_next().await.unwrap().unwrap();
        drop(forwards);
        assert!(!socket.exists());
    }
}
