//! Which container engine `--load` and `type=docker` mean: what docker's client would take, then what else is on this machine.
//!
//! | asked in this order | |
//! |---|---|
//! | `context=` of the output | a docker context, an address, or `docker`, `podman`, `containerd` |
//! | `DOCKER_HOST`, with `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` | as docker's client reads them |
//! | `DOCKER_CONTEXT`, `currentContext` of docker's `config.json` | a docker context |
//! | docker's sockets | `/var/run/docker.sock`, `$XDG_RUNTIME_DIR/docker.sock` |
//! | podman | `CONTAINER_HOST`, its sockets, `podman load` |
//! | containerd | `nerdctl load`, `ctr images import -` |
//!
//! What somebody has named has to answer; of the rest, the first that does is taken.

use std::path::{Path, PathBuf};

use executor::load::{ContainerEngine, EnginePlace, TlsFiles};
use executor::sandbox::Isolation;
use oci::Digest;
use serde::Deserialize;
use solver::{OpError, Progress};

use crate::env;
use crate::failure::Failure;

/// Places where an engine may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Candidates {
    /// The one that was named, and by what.
    Named(EnginePlace, &'static str),
    /// Those that may be there, most likely first.
    Usual(Vec<EnginePlace>),
}

/// Where containerd listens.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// An engine that answers. `None`, with a warning, where none was named and there is none.
///
/// # Errors
/// The one that was named does not answer.
pub(crate) async fn connect(
    context: Option<&str>,
    isolation: Isolation,
    progress: &Progress,
) -> Result<Option<ContainerEngine>, Failure> {
    oci::registry::install_crypto_provider();
    let usual = match candidates(context, isolation)? {
        Candidates::Named(place, named_by) => {
            let engine = ContainerEngine::connect(&place).await;
            return engine.map(Some).map_err(|error| error.help(format!("{place} comes from {named_by}")).into());
        }
        Candidates::Usual(usual) => usual,
    };
    let mut silent = Vec::new();
    for place in usual {
        match ContainerEngine::connect(&place).await {
            Ok(engine) => return Ok(Some(engine)),
            Err(error) => silent.push(error),
        }
    }
    if let Some(kind) = context {
        let none = OpError::environment(format!("there is no {kind} on this machine that could take the image"));
        let with_reasons = silent.into_iter().fold(none, |error, other| error.help(other.message));
        return Err(with_reasons.help("or write an archive for it: `-o type=docker,dest=FILE`").into());
    }
    let reasons: Vec<String> = silent.into_iter().map(|error| error.message).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    progress.warn(format!("no container engine answers{reasons}: the image stays in rbuild's own store"));
    Ok(None)
}

/// Where to look for an engine. `context` is that of the output.
fn candidates(context: Option<&str>, isolation: Isolation) -> Result<Candidates, Failure> {
    let (place, named_by) = match context {
        Some("podman") => return Ok(Candidates::Usual(podman(isolation))),
        Some("containerd") => return Ok(Candidates::Usual(containerd(isolation))),
        Some("docker" | "default") => return Ok(Candidates::Usual(docker())),
        Some(address) if address.contains("://") || address.starts_with('/') => (parse(address, None)?, "context="),
        Some(name) => (docker_context(name, "context=")?, "context="),
        None => match named_by_environment()? {
            Some(named) => named,
            None => {
                let all = [docker(), podman(isolation), containerd(isolation)];
                return Ok(Candidates::Usual(all.concat()));
            }
        },
    };
    Ok(Candidates::Named(place, named_by))
}

fn parse(address: &str, tls: Option<TlsFiles>) -> Result<EnginePlace, Failure> {
    EnginePlace::parse(address, tls).map_err(|error| Failure::usage(error.to_string()))
}

fn named_by_environment() -> Result<Option<(EnginePlace, &'static str)>, Failure> {
    if let Some(address) = env::non_empty("DOCKER_HOST") {
        let certificates = env::non_empty("DOCKER_CERT_PATH").map(PathBuf::from).or_else(env::docker_config_dir);
        let tls = env::non_empty("DOCKER_TLS_VERIFY").and(certificates).map(|dir| TlsFiles::in_dir(&dir));
        return Ok(Some((parse(&address, tls)?, "DOCKER_HOST")));
    }
    let named = match env::non_empty("DOCKER_CONTEXT") {
        Some(name) => Some((name, "DOCKER_CONTEXT")),
        None => current_context().map(|name| (name, "currentContext of docker's config.json")),
    };
    match named {
        Some((name, named_by)) if name != "default" => Ok(Some((docker_context(&name, named_by)?, named_by))),
        _ => Ok(None),
    }
}

/// `currentContext` of docker's configuration. One that cannot be read names none.
fn current_context() -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        current_context: Option<String>,
    }
    let bytes = std::fs::read(env::docker_config_dir()?.join("config.json")).ok()?;
    let config: Config = serde_json::from_slice(&bytes).ok()?;
    config.current_context.filter(|name| !name.is_empty())
}

/// A context as `docker context create` stores it.
fn docker_context(name: &str, named_by: &str) -> Result<EnginePlace, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        endpoints: std::collections::BTreeMap<String, Endpoint>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Endpoint {
        #[serde(default)]
        host: String,
        #[serde(default, rename = "SkipTLSVerify")]
        skip_tls_verify: bool,
    }
    let contexts = env::docker_config_dir().unwrap_or_default().join("contexts");
    let id = Digest::of(name.as_bytes());
    let file = contexts.join("meta").join(id.hex()).join("meta.json");
    let unknown = |reason: String| {
        Failure::usage(format!("there is no docker context \"{name}\" ({named_by}): {reason}"))
            .help("`docker context ls` lists them; an address will do, too: unix://PATH, tcp://HOST:PORT, ssh://HOST")
    };
    let bytes = std::fs::read(&file).map_err(|error| unknown(format!("cannot read {}: {error}", file.display())))?;
    let meta: Meta = serde_json::from_slice(&bytes).map_err(|error| unknown(format!("{}: {error}", file.display())))?;
    let endpoint = meta.endpoints.get("docker").ok_or_else(|| unknown("it has no endpoint for docker".to_owned()))?;
    let certificates = contexts.join("tls").join(id.hex()).join("docker");
    let tls = (certificates.is_dir() || endpoint.skip_tls_verify)
        .then(|| TlsFiles { skip_verify: endpoint.skip_tls_verify, ..TlsFiles::in_dir(&certificates) });
    parse(&endpoint.host, tls)
}

fn docker() -> Vec<EnginePlace> {
    let rootless = env::non_empty("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("docker.sock"));
    sockets([Some("/var/run/docker.sock".into()), rootless])
}

fn podman(isolation: Isolation) -> Vec<EnginePlace> {
    let named = env::non_empty("CONTAINER_HOST").and_then(|address| EnginePlace::parse(&address, None).ok());
    let rootless = env::non_empty("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("podman/podman.sock"));
    let own = if rustix::process::getuid().is_root() { Some("/run/podman/podman.sock".into()) } else { None };
    let program = program("podman", &["load", "--quiet"], isolation);
    named.into_iter().chain(sockets([rootless, own])).chain(program).collect()
}

fn containerd(isolation: Isolation) -> Vec<EnginePlace> {
    if !Path::new(CONTAINERD_SOCKET).exists() && env::non_empty("CONTAINERD_ADDRESS").is_none() {
        return Vec::new();
    }
    let nerdctl = program("nerdctl", &["load", "--quiet"], isolation);
    nerdctl.into_iter().chain(program("ctr", &["images", "import", "-"], isolation)).collect()
}

fn sockets(paths: [Option<PathBuf>; 2]) -> Vec<EnginePlace> {
    paths.into_iter().flatten().filter(|path| path.exists()).map(EnginePlace::Socket).collect()
}

/// A program of this machine. In a user namespace of ours it would take itself for root, and its images for others'.
fn program(name: &str, args: &[&str], isolation: Isolation) -> Option<EnginePlace> {
    if matches!(isolation, Isolation::UserNamespace | Isolation::SingleId) {
        return None;
    }
    let program = executor::sandbox::find_program(name, &env::var("PATH").unwrap_or_default())?;
    Some(EnginePlace::Program { program, args: args.iter().map(|arg| (*arg).to_owned()).collect() })
}
