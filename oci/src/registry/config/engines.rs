//! Settings of engines: BuildKit's `buildkitd.toml` and Docker's `daemon.json`.
//!
//! Spec: BuildKit, "buildkitd.toml configuration"; Docker, "dockerd configuration file".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Extras, Host, Reach, Settings, broken, first_text};
use crate::reference::DEFAULT_REGISTRY;
use crate::registry::error::RegistryError;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Buildkitd {
    registry: BTreeMap<String, Registry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Registry {
    mirrors: Vec<String>,
    http: Option<bool>,
    insecure: Option<bool>,
    ca: Vec<PathBuf>,
    keypair: Vec<KeyPair>,
    tlsconfigdir: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct KeyPair {
    key: PathBuf,
    cert: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct DockerDaemon {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

/// What `buildkitd.toml` says of a registry.
pub(super) fn of_buildkitd(paths: &[PathBuf], registry: &str) -> Result<Option<Settings>, RegistryError> {
    let Some((path, text)) = first_text(paths)? else { return Ok(None) };
    let file: Buildkitd = toml::from_str(&text).map_err(|error| broken(path, &error))?;
    let Some(entry) = file.registry.get(registry) else { return Ok(None) };
    // A mirror may have a table of its own.
    let mirrors = entry.mirrors.iter().map(|text| {
        let host = Host::mirror(text);
        match file.registry.get(&host.name) {
            Some(own) => with(host, own),
            None => host,
        }
    });
    let hosts = mirrors.chain([with(Host::registry(registry), entry)]).collect();
    let source = format!("{}, [registry.\"{registry}\"]", path.display());
    Ok(Some(Settings { source, is_blocked: false, hosts }))
}

fn with(host: Host, entry: &Registry) -> Host {
    let reach = match (entry.http, entry.insecure) {
        (Some(true), Some(true)) => Reach::Insecure,
        (Some(true), _) => Reach::Http,
        (_, Some(true)) => Reach::Insecure,
        _ => host.reach,
    };
    let extras = Extras {
        ca_files: entry.ca.clone(),
        identities: entry.keypair.iter().map(|pair| (pair.cert.clone(), pair.key.clone())).collect(),
        certs_dirs: entry.tlsconfigdir.clone(),
        headers: Vec::new(),
    };
    Host { reach, extras, ..host }
}

/// What `daemon.json` says of a registry: mirrors of Docker's own, and which are insecure.
pub(super) fn of_docker(paths: &[PathBuf], registry: &str) -> Result<Option<Settings>, RegistryError> {
    let Some((path, text)) = first_text(paths)? else { return Ok(None) };
    let file: DockerDaemon = if text.trim().is_empty() {
        DockerDaemon::default()
    } else {
        serde_json::from_str(&text).map_err(|error| broken(path, &error))?
    };
    let is_insecure = |host: &str| file.insecure_registries.iter().any(|entry| covers(entry, host));
    let marked = |host: Host| {
        let reach = if is_insecure(&host.name) && host.reach != Reach::Http { Reach::Insecure } else { host.reach };
        Host { reach, ..host }
    };
    let mirrors = if registry == DEFAULT_REGISTRY { &file.registry_mirrors[..] } else { &[] };
    if mirrors.is_empty() && !is_insecure(registry) {
        return Ok(None);
    }
    let own = Host::registry(registry);
    let hosts = mirrors.iter().map(|text| Host::mirror(text)).chain([own]).map(marked).collect();
    let key = if mirrors.is_empty() { "insecure-registries" } else { "registry-mirrors" };
    Ok(Some(Settings { source: format!("{}, {key}", path.display()), is_blocked: false, hosts }))
}

/// Whether an entry of `insecure-registries` is the host itself, or a network that its address is in.
fn covers(entry: &str, host: &str) -> bool {
    let entry = entry.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
    if entry.eq_ignore_ascii_case(host) {
        return true;
    }
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let (Some((network, bits)), Ok(address)) = (entry.split_once('/'), name.parse::<IpAddr>()) else { return false };
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shown;
    use super::*;

    type Of = fn(&[PathBuf], &str) -> Result<Option<Settings>, RegistryError>;

    fn check(of: Of, text: &str, registry: &str) -> Option<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, text).expect("a file");
        of(&[path], registry).expect("settings").as_ref().map(shown)
    }

    #[test]
    fn buildkits_tables() {
        let text = r#"
debug = true
[registry."docker.io"]
  mirrors = ["m.example:5000", "https://n.example/hub"]
[registry."m.example:5000"]
  http = true
[registry."i.example"]
  insecure = true
  ca = ["/ca.pem"]
  [[registry."i.example".keypair]]
    key = "/key.pem"
    cert = "/cert.pem"
"#;
        let expected = "http m.example:5000 no pushes, https n.example ->hub no pushes, registry-1.docker.io";
        assert_eq!(check(of_buildkitd, text, "docker.io").as_deref(), Some(expected));
        assert_eq!(check(of_buildkitd, text, "i.example").as_deref(), Some("insecure i.example"));
        assert_eq!(check(of_buildkitd, text, "other"), None);
    }

    #[test]
    fn dockers_mirrors_and_networks() {
        let text =
            r#"{"registry-mirrors":["https://m.example/"],"insecure-registries":["r.example:5000","10.0.0.0/8"]}"#;
        let cases = [
            ("docker.io", Some("https m.example no pushes, registry-1.docker.io")),
            ("r.example:5000", Some("insecure r.example:5000")),
            ("r.example", None),
            ("10.1.2.3:80", Some("insecure 10.1.2.3:80")),
            ("11.1.2.3:80", None),
        ];
        for (registry, expected) in cases {
            assert_eq!(check(of_docker, text, registry).as_deref(), expected, "{registry}");
        }
        assert_eq!(check(of_docker, "", "docker.io"), None);
        assert!(
            covers("fd00::/8", "[fd00::1]:5000") && !covers("fd00::/8", "[fe80::1]") && covers("0.0.0.0/0", "1.2.3.4")
        );
    }
}
