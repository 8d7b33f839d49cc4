//! Every environment variable that rbuild reads. The rest of the program sees values, never the environment.
//!
//! | variable | effect |
//! |---|---|
//! | `RBUILD_STORE` | directory of the store |
//! | `RBUILD_ISOLATION` | `--isolation` when it is not given |
//! | `RBUILD_CDI_SPEC_DIRS` | directories of `--cdi-spec-dir`, with `:` between, when it is not given |
//! | `RBUILD_MAX_SIZE`, `RBUILD_MIN_FREE` | `--max-size` and `--min-free` when they are not given |
//! | `RBUILD_GC` | `false`: builds without such limits collect no garbage |
//! | `XDG_DATA_HOME`, `HOME` | where the store lies by default for ordinary users |
//! | `BUILDKIT_PROGRESS` | progress mode when `--progress` is not given |
//! | `NO_COLOR` | no colours when not empty |
//! | `DOCKER_CONFIG` | directory of docker's `config.json` (registry credentials, proxies of RUN) |
//! | `DOCKER_AUTH_CONFIG` | credentials, in the form of `config.json`, before all files |
//! | `REGISTRY_AUTH_FILE`, `XDG_RUNTIME_DIR`, `XDG_CONFIG_HOME` | Podman's `auth.json` |
//! | `CONTAINERS_REGISTRIES_CONF`, `REGISTRIES_CONFIG_PATH` | `registries.conf` instead of all others |
//! | `XDG_CONFIG_HOME` | the user's `registries.conf`, `certs.d`, `buildkitd.toml`, `daemon.json` (`docs/registries.md`) |
//! | `KANIKO_REGISTRY_MIRROR`, `KANIKO_REGISTRY_MAP` | mirrors of docker.io, and of any registry |
//! | `RBUILD_REGISTRY_TIMEOUT` | seconds after which a registry that says nothing is asked again (120) |
//! | `DOCKER_HOST`, `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH`, `DOCKER_CONTEXT`, `CONTAINER_HOST`, `CONTAINERD_ADDRESS` | the container engine of `--load` |
//! | `DOCKER_DEFAULT_PLATFORM` | `--platform` when it is not given |
//! | `SOURCE_DATE_EPOCH` | passed on as a build argument |
//! | `SSH_AUTH_SOCK` | `--ssh default` |
//! | `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, `ALL_PROXY`, in either case | proxies of the registry client and of git |
//! | `SSL_CERT_FILE`, `SSL_CERT_DIR` | CAs instead of the system's; the first also for `--host-ca` |
//! | `PATH` | where git, ssh, pasta, emulators and OCI runtimes are looked for |
//! | `RBUILD_QEMU_DIR` | where emulators are looked for, instead of PATH |
//! | `RBUILD_LOG` | what is traced on standard error, as `tracing` directives |
//! | any | `--build-arg K`, `--secret id=…,env=K`, `rbuild run --env K` |

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

/// The value of a variable; `None` when it is unset or not UTF-8.
#[expect(clippy::disallowed_methods, reason = "this module is the fence")]
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The raw bytes of a variable, for secrets.
#[expect(clippy::disallowed_methods, reason = "this module is the fence")]
pub(crate) fn var_os(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The value of a variable; `None` when it is empty.
pub(crate) fn non_empty(name: &str) -> Option<String> {
    var(name).filter(|value| !value.is_empty())
}

/// The store that the environment names.
pub(crate) fn named_store() -> Option<PathBuf> {
    non_empty("RBUILD_STORE").map(PathBuf::from)
}

/// Whether builds without limits collect garbage.
pub(crate) fn collects() -> bool {
    non_empty("RBUILD_GC").is_none_or(|text| crate::args::boolean(&text) != Ok(false))
}

/// Where the store lies when nobody names one.
pub(crate) fn default_store(is_root: bool) -> Option<PathBuf> {
    if is_root {
        return Some("/var/lib/rbuild".into());
    }
    let data = non_empty("XDG_DATA_HOME").map(PathBuf::from);
    data.or_else(|| Some(home()?.join(".local/share"))).map(|dir| dir.join("rbuild"))
}

/// The user's home directory.
pub(crate) fn home() -> Option<PathBuf> {
    non_empty("HOME").map(PathBuf::from)
}

/// Where the ssh agent listens.
pub(crate) fn ssh_agent() -> Option<PathBuf> {
    non_empty("SSH_AUTH_SOCK").map(PathBuf::from)
}

/// The certificates that the environment names in place of the system's, and the variable.
pub(crate) fn named_certificates() -> Option<(&'static str, PathBuf)> {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find_map(|name| Some((name, PathBuf::from(non_empty(name)?))))
}

/// Whether colours are wanted: on a terminal, unless somebody has said no.
pub(crate) fn colours() -> bool {
    std::io::stderr().is_terminal() && non_empty("NO_COLOR").is_none()
}

/// Directory of docker's `config.json`.
pub(crate) fn docker_config_dir() -> Option<PathBuf> {
    non_empty("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home()?.join(".docker")))
}

/// Credentials in the form of docker's `config.json`, and the variable.
pub(crate) fn auth_config() -> Option<(&'static str, String)> {
    const NAME: &str = "DOCKER_AUTH_CONFIG";
    Some((NAME, non_empty(NAME)?))
}

/// Podman's credential files, most important first.
pub(crate) fn auth_files() -> Vec<PathBuf> {
    let named = non_empty("REGISTRY_AUTH_FILE").map(PathBuf::from);
    let runtime = match non_empty("XDG_RUNTIME_DIR") {
        Some(dir) => Some(PathBuf::from(dir).join("containers/auth.json")),
        // In a user namespace the number is not that of the user; what is somebody else's is not asked.
        None => {
            let uid = rustix::process::getuid().as_raw();
            Some(PathBuf::from(format!("/run/containers/{uid}/auth.json"))).filter(|path| path.exists())
        }
    };
    let config = config_home().map(|dir| dir.join("containers/auth.json"));
    [named, runtime, config].into_iter().flatten().collect()
}

/// Where the user's configuration lies.
pub(crate) fn config_home() -> Option<PathBuf> {
    non_empty("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".config")))
}

/// The `registries.conf` that takes the place of all others.
pub(crate) fn named_registries_conf() -> Option<PathBuf> {
    ["CONTAINERS_REGISTRIES_CONF", "REGISTRIES_CONFIG_PATH"].into_iter().find_map(non_empty).map(PathBuf::from)
}

/// Mirrors by registry, in kaniko's variables: `mirror;mirror` of docker.io, and `registry=mirror;registry=mirror`.
pub(crate) fn named_mirrors() -> Vec<(String, String)> {
    let parts =
        |name| non_empty(name).unwrap_or_default().split([';', ',']).map(str::trim).map(str::to_owned).collect();
    let of_docker: Vec<String> = parts("KANIKO_REGISTRY_MIRROR");
    let of_all: Vec<String> = parts("KANIKO_REGISTRY_MAP");
    let of_docker = of_docker.into_iter().map(|mirror| ("docker.io".to_owned(), mirror));
    let of_all = of_all.iter().filter_map(|pair| {
        let (registry, mirror) = pair.split_once('=')?;
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        Some((registry.to_owned(), mirror.to_owned()))
    });
    of_docker.chain(of_all).filter(|(_, mirror)| !mirror.is_empty()).collect()
}

/// How long a silent registry is waited for.
pub(crate) fn registry_timeout() -> Option<Duration> {
    let seconds: u64 = non_empty("RBUILD_REGISTRY_TIMEOUT")?.parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// A variable that is written in lower or upper case.
pub(crate) fn either_case(name: &str) -> Option<String> {
    non_empty(name).or_else(|| non_empty(&name.to_ascii_uppercase()))
}

/// Where emulators are looked for: in one directory that was named for it, else in those of `PATH` and of distributions.
pub(crate) fn emulator_dirs() -> Vec<PathBuf> {
    if let Some(dir) = non_empty("RBUILD_QEMU_DIR") {
        return vec![dir.into()];
    }
    let path = var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/local/bin".into()]) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// The proxy variables that are set, as they are.
pub(crate) fn proxies() -> Vec<(String, String)> {
    const NAMES: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];
    let both = NAMES.iter().flat_map(|name| [(*name).to_owned(), name.to_ascii_uppercase()]);
    both.filter_map(|name| Some((name.clone(), non_empty(&name)?))).collect()
}
