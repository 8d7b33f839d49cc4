//! Settings of registries in the files of others: which hosts serve a registry, and how they are reached.
//!
//! [`Settings::of`] is the one to read first: it asks the files in one order, and the first that knows the registry decides
//! alone, so that a person can say which file was at work. Certificates in `certs.d` directories and credentials are not
//! found here; they are looked up by host, whoever named it.
//!
//! Reads files and no environment: [`ConfigFiles`] comes from outside.

mod engines;
mod hosts_toml;
mod registries_conf;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::RegistryError;
use super::hosts::upstream_host;

/// Larger files are not configuration.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Where settings of registries are looked for. Files that are not there are no error; broken ones are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFiles {
    /// Directories with one directory `HOST[:PORT]` a registry that may hold containerd's `hosts.toml`.
    pub hosts_dirs: Vec<PathBuf>,
    /// Files in the form of containers-registries.conf(5); the first that exists counts.
    pub registries_conf: Vec<PathBuf>,
    /// Directories with `*.conf` of the same form, whose entries take the place of earlier ones.
    pub registries_conf_dirs: Vec<PathBuf>,
    /// BuildKit's `buildkitd.toml`; the first that exists counts.
    pub buildkitd: Vec<PathBuf>,
    /// Docker's `daemon.json`; the first that exists counts.
    pub docker_daemon: Vec<PathBuf>,
}

/// What a file says of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The file, and the part of it.
    pub(super) source: String,
    /// Whether the registry must not be used.
    pub(super) is_blocked: bool,
    /// The hosts in the order in which they are tried: mirrors, then the registry itself.
    pub(super) hosts: Vec<Host>,
}

/// A host that serves a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// `host[:port]`.
    pub(super) name: String,
    /// How it is reached.
    pub(super) reach: Reach,
    /// Path of its API, with a slash in front and none at its end: `/v2`.
    pub(super) api_root: String,
    /// What a repository loses in front, a path without slashes at its ends.
    pub(super) strip: String,
    /// What a repository gets in front, a path without slashes at its ends.
    pub(super) path_prefix: String,
    /// Whether it is told which registry it stands for (`?ns=`).
    pub(super) wants_namespace: bool,
    /// What it is asked for.
    pub(super) serves: Serves,
    /// Whether it stands in for the registry.
    pub(super) is_mirror: bool,
    /// What its connections need.
    pub(super) extras: Extras,
}

/// How a host is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// As hosts are of which nobody says anything.
    Usual,
    /// By HTTPS; `false` if its certificate need not be valid.
    Https(bool),
    /// By plain HTTP.
    Http,
    /// By HTTPS without verification, then by plain HTTP.
    Insecure,
}

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serves {
    /// What a tag names.
    pub(super) tags: bool,
    /// What has a digest.
    pub(super) digests: bool,
    /// Taking things.
    pub(super) pushes: bool,
    /// Images that the user names by digest.
    pub(super) pinned: bool,
}

/// What the connections to a host need beyond what is known of its name. `Debug` shows no value of a header.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Extras {
    /// PEM files with CAs.
    pub(super) ca_files: Vec<PathBuf>,
    /// PEM files with a client certificate, and with its key. The first counts.
    pub(super) identities: Vec<(PathBuf, PathBuf)>,
    /// Directories in the form of `certs.d/HOST`.
    pub(super) certs_dirs: Vec<PathBuf>,
    /// Headers that go to this host with every request.
    pub(super) headers: Vec<(String, String)>,
}

impl Settings {
    /// The source of what the caller said.
    pub(super) const TOLD: &str = "the command line or the environment";
    /// The source of what nobody said.
    pub(super) const NOBODY: &str = "no file";

    /// What the files say of the repository of a registry; `None` if they know nothing of it.
    ///
    /// The order: `hosts.toml` of the registry, `registries.conf`, `buildkitd.toml`, `daemon.json`, `hosts.toml` of
    /// `_default`.
    ///
    /// # Errors
    /// [`RegistryError::Configuration`] when a file cannot be read or understood.
    pub(super) fn of(files: &ConfigFiles, registry: &str, repository: &str) -> Result<Option<Self>, RegistryError> {
        if let Some(settings) = hosts_toml::of(&files.hosts_dirs, registry)? {
            return Ok(Some(settings));
        }
        if let Some(settings) = registries_conf::of(files, registry, repository)? {
            return Ok(Some(settings));
        }
        if let Some(settings) = engines::of_buildkitd(&files.buildkitd, registry)? {
            return Ok(Some(settings));
        }
        if let Some(settings) = engines::of_docker(&files.docker_daemon, registry)? {
            return Ok(Some(settings));
        }
        hosts_toml::default_of(&files.hosts_dirs, registry)
    }
}

impl Host {
    /// The registry itself, as if nobody said anything of it.
    pub(super) fn registry(name: &str) -> Self {
        Self {
            name: upstream_host(name).to_owned(),
            reach: Reach::Usual,
            api_root: "/v2".to_owned(),
            strip: String::new(),
            path_prefix: String::new(),
            wants_namespace: false,
            serves: Serves::EVERYTHING,
            is_mirror: false,
            extras: Extras::default(),
        }
    }

    /// A mirror as Docker and BuildKit write it: `[http[s]://]host[:port][/path]`.
    pub(super) fn mirror(text: &str) -> Self {
        let (reach, rest) = split_scheme(text);
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        Self {
            reach,
            path_prefix: path.trim_matches('/').to_owned(),
            wants_namespace: true,
            serves: Serves { pushes: false, ..Serves::EVERYTHING },
            is_mirror: true,
            ..Self::registry(name)
        }
    }
}

impl Serves {
    /// Everything.
    const EVERYTHING: Self = Self { tags: true, digests: true, pushes: true, pinned: true };
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extras")
            .field("ca_files", &self.ca_files)
            .field("identities", &self.identities)
            .field("certs_dirs", &self.certs_dirs)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .finish()
    }
}

/// Takes `http://` or `https://` off a text; without either, the host is reached as usual.
fn split_scheme(text: &str) -> (Reach, &str) {
    if let Some(rest) = text.strip_prefix("https://") {
        return (Reach::Https(true), rest);
    }
    match text.strip_prefix("http://") {
        Some(rest) => (Reach::Http, rest),
        None => (Reach::Usual, text),
    }
}

/// The text of the first file that exists.
fn first_text(paths: &[PathBuf]) -> Result<Option<(&Path, String)>, RegistryError> {
    for path in paths {
        if let Some(text) = text_of(path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// The text of a file; `None` if it is not there.
fn text_of(path: &Path) -> Result<Option<String>, RegistryError> {
    let absent = |error: &io::Error| {
        // A directory of somebody else's that may not be looked into is none of ours.
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
    };
    match std::fs::metadata(path) {
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(broken(path, &error)),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(broken(path, &"it is too large")),
        Ok(metadata) if !metadata.is_file() => return Err(broken(path, &"it is not a file")),
        Ok(_) => {}
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(broken(path, &error)),
    }
}

/// A file that cannot be used.
fn broken(path: &Path, reason: &dyn fmt::Display) -> RegistryError {
    // TOML's own texts end with a picture over several lines; the first says what and where.
    let reason = reason.to_string();
    let lines: Vec<&str> = reason.lines().collect();
    let reason = match (lines.first(), lines.last()) {
        (Some(place), Some(what)) if lines.len() > 1 => format!("{place}: {what}"),
        _ => reason,
    };
    RegistryError::Configuration { path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `source: host …, host …`, shortened to what differs from the usual.
    pub(super) fn shown(settings: &Settings) -> String {
        let hosts: Vec<String> = settings.hosts.iter().map(shown_host).collect();
        format!("{}{}", if settings.is_blocked { "blocked " } else { "" }, hosts.join(", "))
    }

    fn shown_host(host: &Host) -> String {
        let mut text = match host.reach {
            Reach::Usual => host.name.clone(),
            Reach::Https(true) => format!("https {}", host.name),
            Reach::Https(false) => format!("unverified {}", host.name),
            Reach::Http => format!("http {}", host.name),
            Reach::Insecure => format!("insecure {}", host.name),
        };
        if host.api_root != "/v2" {
            text += &format!(" at {}", host.api_root);
        }
        if !host.strip.is_empty() || !host.path_prefix.is_empty() {
            text += &format!(" {}->{}", host.strip, host.path_prefix);
        }
        let Serves { tags, digests, pushes, pinned } = host.serves;
        for (served, word) in [(tags, "tags"), (digests, "digests"), (pushes, "pushes"), (pinned, "pinned")] {
            if !served {
                text += &format!(" no {word}");
            }
        }
        text
    }

    #[test]
    fn the_first_file_that_knows_the_registry_decides() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(path(name).parent().expect("a parent")).expect("a directory");
            std::fs::write(path(name), text).expect("a file");
        };
        let files = ConfigFiles {
            hosts_dirs: vec![path("absent"), path("hosts")],
            registries_conf: vec![path("registries.conf")],
            registries_conf_dirs: vec![path("registries.conf.d")],
            buildkitd: vec![path("buildkitd.toml")],
            docker_daemon: vec![path("daemon.json")],
        };
        let of = |registry: &str| {
            let settings = Settings::of(&files, registry, "a/b").expect("settings");
            settings.map(|settings| {
                let file = settings.source.strip_prefix(&dir.path().display().to_string()).expect("a file").to_owned();
                file[1..].split([' ', ',']).next().expect("a word").to_owned()
            })
        };
        assert_eq!(of("docker.io"), None);
        write("hosts/_default/hosts.toml", "server = \"https://everything.example\"\n");
        assert_eq!(of("docker.io").as_deref(), Some("hosts/_default/hosts.toml"));
        write("daemon.json", r#"{"registry-mirrors":["https://m.example"],"insecure-registries":["r.example"]}"#);
        assert_eq!(of("docker.io").as_deref(), Some("daemon.json"));
        assert_eq!(of("r.example").as_deref(), Some("daemon.json"));
        assert_eq!(of("s.example").as_deref(), Some("hosts/_default/hosts.toml"));
        write("buildkitd.toml", "[registry.\"docker.io\"]\nmirrors = [\"m\"]\n");
        assert_eq!(of("docker.io").as_deref(), Some("buildkitd.toml"));
        assert_eq!(of("r.example").as_deref(), Some("daemon.json"));
        write("registries.conf", "[[registry]]\nlocation = \"docker.io\"\n");
        assert_eq!(of("docker.io").as_deref(), Some("registries.conf"));
        write("registries.conf.d/1.conf", "[[registry]]\nlocation = \"docker.io\"\ninsecure = true\n");
        assert_eq!(of("docker.io").as_deref(), Some("registries.conf.d/1.conf"));
        write("hosts/docker.io/hosts.toml", "server = \"https://m.example\"\n");
        assert_eq!(of("docker.io").as_deref(), Some("hosts/docker.io/hosts.toml"));
    }

    #[test]
    fn broken_files_are_named_with_the_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("registries.conf");
        std::fs::write(&path, "a = 1\nunqualified-search-registries = [\"x\"\n[[registry]\n").expect("a file");
        let files = ConfigFiles { registries_conf: vec![path.clone()], ..ConfigFiles::default() };
        let error = Settings::of(&files, "r.example", "a").expect_err("broken").to_string();
        assert!(error.starts_with(&format!("cannot use `{}`: TOML parse error at line", path.display())), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
