//! Secrets and ssh agents as flags name them, given to those who use them.

use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cache::Store;
use executor::emulation::Emulation;
use executor::run::{Agent, AgentStore, KeyError, MOST_KEY_FILE_BYTES, PrivateKey, RunOptions, Runner, Secret};
use executor::sandbox::{PastaNetwork, Sandbox};
use executor::source::SecretLookup;

use crate::args::Global;
use crate::env;
use crate::failure::Failure;
use crate::request::{BuildRequest, SecretArg, SecretSource, SshArg};

/// Reads a secret when it is asked for. One that cannot be read is none: whoever requires it says so.
pub(crate) fn lookup(secrets: &[SecretArg]) -> SecretLookup {
    let secrets: Vec<(String, Reader)> =
        secrets.iter().map(|secret| (secret.id.clone(), Reader::of(&secret.source))).collect();
    Arc::new(move |id| secrets.iter().find(|(known, _)| known == id).and_then(|(_, reader)| reader.read()))
}

/// What runs commands: the sandbox, with the secrets, agents and limits of this build.
pub(crate) fn runner(
    store: &Store,
    request: &BuildRequest,
    agents: AgentStore,
    global: &Global,
) -> Result<Runner, Failure> {
    let (resources, host_ca) = (request.resources.clone(), request.host_ca.clone());
    let emulation = Some(Emulation::new(store.clone(), env::emulator_dirs()));
    let devices = global.devices();
    let mut options = RunOptions { agents, resources, host_ca, emulation, devices, ..RunOptions::default() };
    for secret in &request.secrets {
        options.secrets = match &secret.source {
            SecretSource::File(path) => options.secrets.with_file(&secret.id, path.clone()),
            // An unset variable is an empty secret (`spec/cli.md` §1.5).
            SecretSource::Env(name) => {
                let value = env::var_os(name).map(OsStringExt::into_vec).unwrap_or_default();
                options.secrets.with_value(&secret.id, Secret::new(value))
            }
        };
    }
    let network = PastaNetwork::new(env::var("PATH").unwrap_or_default());
    let sandbox = Sandbox::new(store.scratch_dir()?, Arc::new(network), &global.confinement)
        .map_err(|error| Failure::environment(error.to_string()))?;
    Ok(Runner::new(sandbox, store.clone(), options))
}

/// The agents of a build: sockets where they lead, keys read and checked.
pub(crate) fn agents(ssh: &[SshArg]) -> Result<AgentStore, Failure> {
    ssh.iter().try_fold(AgentStore::default(), |agents, arg| Ok(agents.with(&arg.id, agent(&arg.paths)?)))
}

/// One socket, or keys (`spec/cli.md` §1.6).
fn agent(paths: &[PathBuf]) -> Result<Agent, Failure> {
    let mut socket = None;
    let mut keys = Vec::new();
    for path in paths {
        if socket.is_some() {
            return Err(Failure::input("only single socket allowed")
                .help("give each agent an ID of its own: --ssh default=SOCKET --ssh other=SOCKET"));
        }
        let meta = std::fs::metadata(path).map_err(|error| {
            Failure::input(format!("--ssh: failed to stat {}: {error}", path.display()))
                .help("name a private key, the socket of an agent, or `--ssh default` for the one of SSH_AUTH_SOCK")
        })?;
        if meta.file_type().is_socket() {
            socket = Some(path.clone());
        } else {
            keys.push(private_key(path)?);
        }
    }
    match socket {
        Some(_) if !keys.is_empty() => Err(Failure::input("invalid combination of keys and sockets")
            .help("add the keys to the agent with ssh-add, or give them an ID of their own")),
        Some(path) => Ok(Agent::Socket(path)),
        None => Ok(Agent::Keys(keys.into())),
    }
}

/// The key in a file. It stays in this process.
fn private_key(path: &Path) -> Result<PrivateKey, Failure> {
    let shown = path.display();
    let unreadable = |error| Failure::input(format!("--ssh: failed to read {shown}: {error}"));
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MOST_KEY_FILE_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MOST_KEY_FILE_BYTES {
        return Err(Failure::input(format!("failed to parse {shown}: it is larger than 100KiB"))
            .help("--ssh takes private keys and sockets of agents"));
    }
    PrivateKey::parse(&text).map_err(|error| {
        let failure = Failure::input(format!("failed to parse {shown}: {error}"));
        match error {
            KeyError::Encrypted => failure
                .help(format!("give it to an agent, which asks once: ssh-add {shown}; then --ssh default"))
                .help("or use a copy without a passphrase: ssh-keygen -p -f COPY"),
            KeyError::Unsupported(_) => {
                failure.help(format!("give it to an agent: ssh-add {shown}; then --ssh default"))
            }
            KeyError::NotAKey if text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-") => {
                failure.help("that is a public key: name the private one beside it, without .pub")
            }
            KeyError::NotAKey | KeyError::Broken(_) => {
                failure.help("private keys are files of OpenSSH (`BEGIN OPENSSH PRIVATE KEY`) or PEM files")
            }
        }
    })
}

enum Reader {
    File(PathBuf),
    /// Read once, at the start: the environment does not change.
    Value(Vec<u8>),
}

impl Reader {
    fn of(source: &SecretSource) -> Self {
        match source {
            SecretSource::File(path) => Self::File(path.clone()),
            // An unset variable is an empty secret (`spec/cli.md` §1.5).
            SecretSource::Env(name) => Self::Value(env::var_os(name).map(OsStringExt::into_vec).unwrap_or_default()),
        }
    }

    fn read(&self) -> Option<Vec<u8>> {
        match self {
            Self::File(path) => std::fs::read(path).ok(),
            Self::Value(bytes) => Some(bytes.clone()),
        }
    }
}
