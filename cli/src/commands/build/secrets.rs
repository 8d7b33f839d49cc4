//! Secrets and ssh agents as flags name them, given to those who use them.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cache::Store;
use executor::run::{RunOptions, Runner, Secret};
use executor::sandbox::{HostNetwork, Sandbox};
use executor::source::SecretLookup;

use crate::env;
use crate::failure::Failure;
use crate::request::{SecretArg, SecretSource, SshArg};

/// Reads a secret when it is asked for. One that cannot be read is none: whoever requires it says so.
pub(crate) fn lookup(secrets: &[SecretArg]) -> SecretLookup {
    let secrets: Vec<(String, Reader)> =
        secrets.iter().map(|secret| (secret.id.clone(), Reader::of(&secret.source))).collect();
    Arc::new(move |id| secrets.iter().find(|(known, _)| known == id).and_then(|(_, reader)| reader.read()))
}

/// What runs commands: the sandbox, with the secrets and agents of this build.
pub(crate) fn runner(store: &Store, secrets: &[SecretArg], ssh: &[SshArg]) -> Result<Runner, Failure> {
    let mut options = RunOptions::default();
    for secret in secrets {
        options.secrets = match &secret.source {
            SecretSource::File(path) => options.secrets.with_file(&secret.id, path.clone()),
            // An unset variable is an empty secret (`spec/cli.md` §1.5).
            SecretSource::Env(name) => {
                let value = env::var_os(name).map(OsStringExt::into_vec).unwrap_or_default();
                options.secrets.with_value(&secret.id, Secret::new(value))
            }
        };
    }
    for arg in ssh {
        for path in &arg.paths {
            options.agents = options.agents.with_socket(&arg.id, socket(path)?);
        }
    }
    let sandbox = Sandbox::new(store.scratch_dir()?, Arc::new(HostNetwork))
        .map_err(|error| Failure::environment(error.to_string()))?;
    Ok(Runner::new(sandbox, store.clone(), options))
}

/// The agent at `path`; keys are served by an agent, not by us.
fn socket(path: &Path) -> Result<PathBuf, Failure> {
    let meta = std::fs::metadata(path)
        .map_err(|error| Failure::input(format!("--ssh: failed to stat {}: {error}", path.display())))
        .map_err(|failure| {
            failure.help("name the socket of an agent, or `--ssh default` for the one of SSH_AUTH_SOCK")
        })?;
    if !meta.file_type().is_socket() {
        return Err(Failure::input(format!("--ssh: {} is not the socket of an agent", path.display())).help(format!(
            "give the key to an agent: eval $(ssh-agent); ssh-add {}; then --ssh default",
            path.display()
        )));
    }
    Ok(path.to_owned())
}

/// The socket of `--ssh default`, for git.
pub(crate) fn default_agent(ssh: &[SshArg]) -> Option<PathBuf> {
    let path = ssh.iter().find(|arg| arg.id == "default")?.paths.first()?;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()).then(|| path.clone())
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
