//! Ssh agents for commands: a socket that lets them list keys and sign with them, and nothing else.
//!
//! Behind it is an agent of the user, or keys that this process holds. The keys stay here: a command gets signatures.

mod key;
mod key_file;
mod openssh_key;
mod protocol;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use solver::OpError;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

pub use key::{KeyError, PrivateKey};

use crate::owners;
use wire::{read_message, write_message};

/// What an empty id means.
pub const DEFAULT_AGENT: &str = "default";

/// The most bytes of a key file (`spec/cli.md` §1.6).
pub const MOST_KEY_FILE_BYTES: u64 = 100 * 1024;

/// The longest path of a socket that an address has room for.
const MOST_SOCKET_PATH_BYTES: usize = 107;

/// Who answers requests for signatures. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Agent {
    /// The agent that listens on this socket.
    Socket(PathBuf),
    /// We, with these keys.
    Keys(Arc<[PrivateKey]>),
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "`{}`", path.display()),
            Self::Keys(_) => f.write_str("of the keys given"),
        }
    }
}

/// Agents by id.
#[derive(Clone, Debug, Default)]
pub struct AgentStore {
    agents: BTreeMap<String, Agent>,
}

impl AgentStore {
    /// Adds an agent.
    #[must_use]
    pub fn with(mut self, id: &str, agent: Agent) -> Self {
        self.agents.insert(id.to_owned(), agent);
        self
    }

    /// The agent of this id, if there is one.
    pub fn get(&self, id: &str) -> Option<&Agent> {
        self.agents.get(id)
    }

    /// The agent for an id as written; `None` when there is none and it is not required.
    pub(super) fn find(&self, id: &str, required: bool) -> Result<Option<&Agent>, OpError> {
        let wanted = if id.is_empty() { DEFAULT_AGENT } else { id };
        match self.get(wanted) {
            Some(agent) => Ok(Some(agent)),
            None if required => Err(OpError::input(format!("no SSH key \"{id}\" forwarded from the client"))
                .help(format!("pass it with `--ssh {wanted}`"))),
            None => Ok(None),
        }
    }
}

/// Who may use a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketOwner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

/// Sockets of one command. Dropping closes every connection and removes them.
#[derive(Default)]
pub(super) struct Forwards {
    directory: Option<SocketDirectory>,
    tasks: JoinSet<()>,
    count: usize,
}

impl Forwards {
    /// Opens a socket in a directory of its own below `scratch` that leads to `agent`.
    pub(super) fn open(&mut self, scratch: &Path, agent: &Agent, owner: SocketOwner) -> io::Result<PathBuf> {
        let directory = match &self.directory {
            Some(directory) => directory,
            None => self.directory.insert(SocketDirectory::new(scratch)?),
        };
        let name = format!("agent-{}", self.count);
        self.count += 1;
        let path = directory.path.path().join(&name);
        let listener = UnixListener::bind(directory.short("self").join(&name))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(owner.mode))?;
        owners::chown(&path, owner.uid, owner.gid)?;
        self.tasks.spawn(serve(listener, agent.clone()));
        Ok(path)
    }
}

/// A directory for sockets, and a way to it that is short wherever the store lies.
struct SocketDirectory {
    path: TempDir,
    handle: OwnedFd,
}

impl SocketDirectory {
    fn new(scratch: &Path) -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix("ssh-").tempdir_in(scratch)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path.path(), flags, Mode::empty())?;
        Ok(Self { path, handle })
    }

    /// The way over the descriptor of `process`, which is this one: `self`, or its number for others.
    fn short(&self, process: &str) -> PathBuf {
        format!("/proc/{process}/fd/{}", self.handle.as_raw_fd()).into()
    }
}

/// An agent as a socket that programs of this user can be pointed at, outside of any sandbox. Dropping closes it.
pub(crate) struct AgentSocket {
    path: PathBuf,
    _forwards: Forwards,
    _scratch: Option<TempDir>,
}

impl AgentSocket {
    /// The agent's own socket where it has one; for keys a new one, in a directory of `scratch` and for this user alone.
    /// Needs a runtime.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(agent: &Agent, scratch: impl FnOnce() -> Result<TempDir, OpError>) -> Result<Self, OpError> {
        let mut forwards = Forwards::default();
        if let Agent::Socket(path) = agent {
            return Ok(Self { path: path.clone(), _forwards: forwards, _scratch: None });
        }
        let scratch = scratch()?;
        let owner = SocketOwner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: 0o600,
        };
        let mut path = forwards
            .open(scratch.path(), agent, owner)
            .map_err(|error| OpError::environment(format!("cannot open a socket for the ssh agent: {error}")))?;
        if path.as_os_str().len() > MOST_SOCKET_PATH_BYTES
            && let (Some(directory), Some(name)) = (&forwards.directory, path.file_name())
        {
            path = directory.short(&std::process::id().to_string()).join(name);
        }
        Ok(Self { path, _forwards: forwards, _scratch: Some(scratch) })
    }

    /// What `SSH_AUTH_SOCK` has to be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Accepts connections until dropped; connections end with it.
async fn serve(listener: UnixListener, agent: Agent) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let agent = agent.clone();
                    connections.spawn(async move {
                        if let Err(error) = converse(client, &agent).await {
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

/// Answers requests, one at a time as the protocol has it.
async fn converse(mut client: UnixStream, agent: &Agent) -> io::Result<()> {
    let mut server = match agent {
        Agent::Socket(path) => Some(UnixStream::connect(path).await?),
        Agent::Keys(_) => None,
    };
    while let Some(request) = read_message(&mut client).await? {
        let answer = match (agent, &mut server) {
            _ if !protocol::is_permitted(&request) => vec![protocol::FAILURE],
            (Agent::Keys(keys), _) => answer(keys.clone(), request).await?,
            (Agent::Socket(_), Some(server)) => {
                write_message(server, &request).await?;
                read_message(server).await?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            (Agent::Socket(_), None) => return Err(io::ErrorKind::NotConnected.into()),
        };
        write_message(&mut client, &answer).await?;
    }
    Ok(())
}

/// Our own answer, made off the runtime's threads: signing takes its time.
async fn answer(keys: Arc<[PrivateKey]>, request: Vec<u8>) -> io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || protocol::answer(&request, &keys)).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn owner() -> SocketOwner {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        SocketOwner { uid, gid, mode: 0o600 }
    }

    fn keys() -> Agent {
        Agent::Keys([key::testing::ed25519()].into())
    }

    #[test]
    fn agents_are_found_by_id() {
        let socket = |path: &str| Agent::Socket(path.into());
        let agents = AgentStore::default().with("default", socket("/a")).with("git", socket("/b"));
        let found = |id: &str| agents.find(id, true).unwrap().unwrap().to_string();
        assert_eq!((found(""), found("git")), ("`/a`".to_owned(), "`/b`".to_owned()));
        assert!(agents.find("x", false).unwrap().is_none());
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
                write_message(&mut stream, &[message[0] + 100]).await.unwrap();
            }
        });
        let mut forwards = Forwards::default();
        let socket = forwards.open(directory.path(), &Agent::Socket(agent), owner()).unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

        let mut client = UnixStream::connect(&socket).await.unwrap();
        // List, remove all, sign with a payload, add, an extension.
        for (kind, answer) in [(11, 111), (19, 5), (13, 113), (17, 5), (27, 5)] {
            write_message(&mut client, &[kind, 1, 2]).await.unwrap();
            let got = read_message(&mut client).await.unwrap().unwrap();
            assert_eq!(got, [answer], "request {kind}");
        }
        // Garbage ends the connection, and dropping the rest.
        client.write_all(&[0xff; 8]).await.unwrap();
        assert!(read_message(&mut client).await.unwrap_or(None).is_none());
        server.join_next().await.unwrap().unwrap();
        drop(forwards);
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn keys_are_served_on_several_connections() {
        let directory = tempfile::tempdir().unwrap();
        let mut forwards = Forwards::default();
        let agent = keys();
        let socket = forwards.open(directory.path(), &agent, owner()).unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(UnixStream::connect(&socket).await.unwrap());
        }
        for client in clients.iter_mut().rev() {
            write_message(client, &[protocol::REQUEST_IDENTITIES]).await.unwrap();
            let listed = read_message(client).await.unwrap().unwrap();
            assert_eq!(listed[..5], [protocol::IDENTITIES_ANSWER, 0, 0, 0, 1]);
            write_message(client, &[19]).await.unwrap();
            assert_eq!(read_message(client).await.unwrap().unwrap(), [protocol::FAILURE]);
        }
    }

    #[tokio::test]
    async fn programs_outside_reach_keys_wherever_the_store_lies() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        for scratch in [directory.path(), &deep] {
            std::fs::create_dir_all(scratch).unwrap();
            let socket = AgentSocket::open(&keys(), || Ok(TempDir::new_in(scratch).unwrap())).unwrap();
            assert!(socket.path().as_os_str().len() <= MOST_SOCKET_PATH_BYTES);
            let mut client = UnixStream::connect(socket.path()).await.unwrap();
            write_message(&mut client, &[protocol::REQUEST_IDENTITIES]).await.unwrap();
            assert!(read_message(&mut client).await.unwrap().is_some());
            drop(socket);
            assert_eq!(
                std::fs::read_dir(scratch).unwrap().filter(|entry| entry.as_ref().unwrap().path() != deep).count(),
                0
            );
        }
        let own = AgentSocket::open(&Agent::Socket("/a".into()), || unreachable!("it has a socket")).unwrap();
        assert_eq!(own.path(), Path::new("/a"));
    }
}
