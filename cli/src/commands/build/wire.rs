//! Wires the parts of a build: runtime, engine, registry client, signals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use executor::engine::{Engine, EngineParts, OfferedDir};
use executor::layer::{OverlayFlavour, UnpackOptions};
use executor::packer::Wanted;
use executor::run::DEFAULT_AGENT;
use executor::sandbox::{Confinement, TreeStyle};
use executor::source::git::GitOptions;
use executor::source::image::PullPolicy;
use executor::source::{GitSource, HttpSource, ImageSource};
use oci::registry::{AuthConfig, Client, ClientOptions, ConfigFiles, Proxies, RetryPolicy};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Build, secrets};
use crate::env;
use crate::failure::Failure;
use crate::output::Output;
use crate::request::BuildRequest;

/// Where registries' certificates are kept by others.
const CERTS_DIRS: [&str; 3] = ["/etc/docker/certs.d", "/etc/containers/certs.d", "/etc/containerd/certs.d"];

/// The longest silence of a cache in the middle of a transfer: a step is often performed in less.
const CACHE_STALL: Duration = Duration::from_secs(10);

/// The runtime that waits; CPU work is rayon's.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    executor::workers::set_up();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(executor::workers::STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::environment(format!("cannot start threads: {error}")))
}

/// Steps that run at once when nobody says: they wait for disks and networks as much as for processors.
pub(crate) fn default_parallelism() -> usize {
    2 * std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs to the end, or until the user or the system stops it; then everything is cancelled and waited for. A second
/// interrupt ends the program at once.
pub(crate) async fn until_interrupted<T>(cancel: CancellationToken, work: impl Future<Output = T>) -> T {
    let watch = async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
        interrupt.recv().await;
        leave_at_once();
    };
    tokio::select! {
        result = work => result,
        () = watch => unreachable!("the watch ends the program or waits for ever"),
    }
}

#[expect(clippy::exit, reason = "the second interrupt means: now")]
fn leave_at_once() {
    std::process::exit(130);
}

/// The engine of a build.
pub(crate) fn engine(
    build: &Build<'_>,
    contexts: BTreeMap<String, OfferedDir>,
    wanted: Vec<Wanted>,
) -> Result<Engine, Failure> {
    let store = build.store.clone();
    let mut options = client_options();
    options.insecure.extend(build.request.outputs.iter().flat_map(Output::insecure_registries));
    let client = Client::new(options);
    let hasty = cache_client(build.request, Patience::Little);
    let policy = if build.request.pull { PullPolicy::Always } else { PullPolicy::Missing };
    let lookup = secrets::lookup(&build.request.secrets);
    let agents = secrets::agents(&build.request.ssh)?;
    let git = GitOptions {
        program: PathBuf::from("git"),
        search_path: env::var("PATH").unwrap_or_default(),
        proxy_env: env::proxies(),
        ssh_agent: agents.get(DEFAULT_AGENT).cloned(),
        known_hosts: None,
    };
    let parts = EngineParts {
        images: Arc::new(
            ImageSource::new(store.clone(), client.clone(), policy, unpack_options(&build.global.confinement))
                .with_hasty_client(hasty),
        ),
        http: HttpSource::new(http_client, store.clone(), lookup.clone()),
        git: GitSource::new(git, store.clone(), lookup),
        runner: secrets::runner(&store, build.request, agents, build.global)?,
        store,
        contexts,
        wanted,
        progress: build.progress.clone(),
        cancel: build.cancel.clone(),
    };
    Ok(Engine::new(parts)?)
}

/// How long is tried what a build can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// A step waits, which could be performed instead.
    Little,
    /// Nothing waits until the build has ended.
    Some,
}

/// The client for what a build can do without: caches, and layers that can be made again.
pub(super) fn cache_client(request: &BuildRequest, patience: Patience) -> Client {
    let mut options = client_options();
    options.insecure.extend(request.outputs.iter().flat_map(Output::insecure_registries));
    options.insecure.extend(request.caches.insecure_registries());
    let stall_timeout = options.retry.stall_timeout.min(CACHE_STALL);
    options.retry = RetryPolicy {
        attempts: if patience == Patience::Little { 2 } else { 4 },
        max_delay: Duration::from_secs(1),
        max_retry_after: Duration::from_secs(5),
        stall_timeout,
        ..options.retry
    };
    Client::new(options)
}

/// The client for files behind URLs: the system's certificates, and proxies from the environment.
fn http_client() -> reqwest::Result<reqwest::Client> {
    oci::registry::install_crypto_provider();
    reqwest::Client::builder().user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION"))).build()
}

/// How layers are unpacked so that they can be mounted, or looked at, in this tier.
pub(crate) fn unpack_options(confinement: &Confinement) -> UnpackOptions {
    let flavour = match confinement.isolation.tree_style() {
        TreeStyle::Trusted => OverlayFlavour::Trusted,
        _ => OverlayFlavour::User,
    };
    UnpackOptions { flavour, ..UnpackOptions::default() }
}

/// Everything that the registry client is told from outside.
pub(crate) fn client_options() -> ClientOptions {
    let docker_config_dir = env::docker_config_dir();
    let mut options = ClientOptions {
        auth_config: env::auth_config().map(|(name, text)| AuthConfig { text, name: format!("${name}") }),
        auth_files: env::auth_files(),
        certs_dirs: certs_dirs(docker_config_dir.as_deref()),
        docker_config_dir,
        files: config_files(),
        ca_file: env::var("SSL_CERT_FILE").map(PathBuf::from),
        ca_dir: env::var("SSL_CERT_DIR").map(PathBuf::from),
        proxies: Proxies {
            http: env::either_case("http_proxy"),
            https: env::either_case("https_proxy"),
            no_proxy: env::either_case("no_proxy"),
        },
        ..ClientOptions::default()
    };
    for (registry, mirror) in env::named_mirrors() {
        options.mirrors.entry(registry).or_default().push(mirror);
    }
    if let Some(timeout) = env::registry_timeout() {
        options.retry.stall_timeout = timeout;
    }
    options
}

/// Directories of certificates by registry; the user's come first.
fn certs_dirs(docker_config_dir: Option<&Path>) -> Vec<PathBuf> {
    let own = docker_config_dir.map(|dir| dir.join("certs.d"));
    let of_user =
        ["docker", "containers", "containerd"].map(|engine| Some(env::config_home()?.join(engine).join("certs.d")));
    let of_system = CERTS_DIRS.map(|dir| Some(PathBuf::from(dir)));
    own.into_iter().chain(of_user.into_iter().chain(of_system).flatten()).collect()
}

/// Where others keep what they know of registries (`docs/registries.md`).
fn config_files() -> ConfigFiles {
    let both = |name: &str| -> Vec<PathBuf> {
        let of_user = env::config_home().map(|dir| dir.join(name));
        of_user.into_iter().chain([Path::new("/etc").join(name)]).collect()
    };
    let (registries_conf, registries_conf_dirs) = match env::named_registries_conf() {
        Some(path) => (vec![path], Vec::new()),
        None => {
            let mut drop_ins = both("containers/registries.conf.d");
            drop_ins.reverse();
            (both("containers/registries.conf"), drop_ins)
        }
    };
    ConfigFiles {
        hosts_dirs: both("containerd/certs.d").into_iter().chain(both("docker/certs.d")).collect(),
        registries_conf,
        registries_conf_dirs,
        buildkitd: both("buildkit/buildkitd.toml"),
        docker_daemon: both("docker/daemon.json"),
    }
}
