//! From a registry's name to the URLs that may serve it: mirrors first, then the registry itself.
//!
//! Spec: `spec/engine.md` §4.2, "Hosts".

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;

use super::config::{Extras, Host, Reach, Serves, Settings};
use super::error::RegistryError;
use super::options::ClientOptions;
use crate::reference::{DEFAULT_REGISTRY, ImageRef};

/// The host that serves `docker.io`.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// The key of `docker.io` in Docker's `config.json`.
pub(super) const DEFAULT_REGISTRY_AUTH_KEY: &str = "https://index.docker.io/v1/";
/// Path of the API of a host of which nobody says anything else.
const API_ROOT: &str = "/v2";

/// What the requests are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Asking what a tag names.
    Resolve,
    /// Reading what has a digest.
    Pull,
    /// Writing, and the questions that belong to it.
    Push,
}

/// One base URL that may serve a registry's repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `https` or `http`.
    pub(super) scheme: &'static str,
    /// `host[:port]`.
    pub(super) host: String,
    /// Path of the API, with a slash in front and none at its end.
    pub(super) api_root: String,
    /// What a repository loses in front, a path without slashes at its ends.
    pub(super) strip: String,
    /// What a repository gets in front, a path without slashes at its ends.
    pub(super) path_prefix: String,
    /// Told to mirrors that serve several registries (`?ns=`).
    pub(super) namespace: Option<String>,
    /// Whether the server's certificate must be valid.
    pub(super) verify: bool,
    /// Whether another server stands in for the registry.
    pub(super) is_mirror: bool,
    /// What its connections need.
    pub(super) extras: Arc<Extras>,
}

impl Endpoint {
    /// The repository as this endpoint calls it.
    pub(super) fn repository(&self, repository: &str) -> String {
        let rest = match repository.strip_prefix(&self.strip) {
            Some(rest) if !self.strip.is_empty() && (rest.is_empty() || rest.starts_with('/')) => {
                &rest[rest.len().min(1)..]
            }
            _ => repository,
        };
        match (self.path_prefix.as_str(), rest) {
            ("", rest) => rest.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, rest) => format!("{prefix}/{rest}"),
        }
    }

    /// `scheme://host/v2/REPOSITORY/REST`, with `ns` where it is needed. `None` if the host makes no URL.
    pub(super) fn url(&self, repository: &str, rest: &str) -> Option<Url> {
        let repository = self.repository(repository);
        let text = format!("{}://{}{}/{repository}/{rest}", self.scheme, self.host, self.api_root);
        let mut url = Url::parse(&text).ok()?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Some(url)
    }

    /// `scheme://host/v2/`, which says whether we are let in. `None` if the host makes no URL.
    pub(super) fn root_url(&self) -> Option<Url> {
        Url::parse(&format!("{}://{}{}/", self.scheme, self.host, self.api_root)).ok()
    }

    /// Whether a URL leads to this very endpoint, so that what is meant for it may go there.
    pub(super) fn is_home_of(&self, url: &Url) -> bool {
        let own = Url::parse(&format!("{}://{}/", self.scheme, self.host));
        own.is_ok_and(|own| own.origin() == url.origin())
    }

    /// Whether an answer of this endpoint may lead to a URL: what began with verified TLS does not go on without.
    pub(super) fn may_lead_to(&self, url: &Url) -> bool {
        self.scheme == "http" || !self.verify || url.scheme() == "https"
    }

    /// The names under which credential files may keep this host, the one to ask helpers with first.
    pub(super) fn credential_keys(&self) -> Vec<&str> {
        if self.host == DEFAULT_REGISTRY_HOST {
            return vec![DEFAULT_REGISTRY_AUTH_KEY, DEFAULT_REGISTRY, "index.docker.io", DEFAULT_REGISTRY_HOST];
        }
        vec![&self.host]
    }
}

/// The host that serves a registry when nobody says otherwise.
pub(super) fn upstream_host(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { registry }
}

/// Which hosts serve a repository: by what the client was told, else by files, else the registry alone.
///
/// # Errors
/// [`RegistryError::Configuration`]: a file is broken, or blocks the registry.
pub(super) fn settings_of(
    registry: &str,
    repository: &str,
    options: &ClientOptions,
) -> Result<Settings, RegistryError> {
    if let Some(mirrors) = options.mirrors.get(registry) {
        let mut hosts: Vec<Host> = mirrors.iter().map(|text| Host::mirror(text)).collect();
        hosts.push(Host::registry(registry));
        return Ok(Settings { source: Settings::TOLD.to_owned(), is_blocked: false, hosts });
    }
    let settings = Settings::of(&options.files, registry, repository)?;
    let settings = settings.unwrap_or_else(|| Settings {
        source: Settings::NOBODY.to_owned(),
        is_blocked: false,
        hosts: vec![Host::registry(registry)],
    });
    if settings.is_blocked {
        let reason = format!("it blocks {registry}/{repository}");
        return Err(RegistryError::Configuration { path: settings.source, reason });
    }
    Ok(settings)
}

/// The endpoints that serve `purpose`, in the order in which they are tried.
pub(super) fn endpoints(
    reference: &ImageRef,
    purpose: Purpose,
    settings: &Settings,
    options: &ClientOptions,
) -> Vec<Endpoint> {
    let is_pinned = reference.digest().is_some();
    let serving = |host: &&Host| {
        let Serves { tags, digests, pushes, pinned } = host.serves;
        match purpose {
            Purpose::Resolve => {
                if is_pinned {
                    digests && pinned
                } else {
                    tags
                }
            }
            Purpose::Pull => digests && (pinned || !is_pinned),
            Purpose::Push => pushes,
        }
    };
    // What is pushed goes to one place.
    let most = if purpose == Purpose::Push { 1 } else { usize::MAX };
    let mut list = Vec::new();
    for host in settings.hosts.iter().filter(serving).take(most) {
        let extras = Arc::new(host.extras.clone());
        list.extend(schemes(host, options).into_iter().map(|(scheme, verify)| Endpoint {
            scheme,
            host: host.name.clone(),
            api_root: host.api_root.clone(),
            strip: host.strip.clone(),
            path_prefix: host.path_prefix.clone(),
            namespace: host.wants_namespace.then(|| reference.registry().to_owned()),
            verify,
            is_mirror: host.is_mirror,
            extras: extras.clone(),
        }));
    }
    list
}

/// (scheme, verify) pairs for a host, in the order in which they are tried.
fn schemes(host: &Host, options: &ClientOptions) -> Vec<(&'static str, bool)> {
    let name = &host.name;
    let reach = match host.reach {
        _ if options.plain_http.contains(name) => Reach::Http,
        Reach::Http => Reach::Http,
        _ if options.insecure.contains(name) => Reach::Insecure,
        reach => reach,
    };
    match reach {
        Reach::Http => vec![("http", true)],
        Reach::Insecure => vec![("https", false), ("http", true)],
        Reach::Https(verify) => vec![("https", verify)],
        Reach::Usual if !is_this_machine(name) => vec![("https", true)],
        Reach::Usual if !host.extras.ca_files.is_empty() || !certificate_directories(name, options).is_empty() => {
            vec![("https", true), ("http", true)]
        }
        Reach::Usual => vec![("http", true)],
    }
}

/// An endpoint that is at a URL and nowhere else.
pub(super) fn foreign_endpoint(scheme: &'static str, host: String) -> Endpoint {
    Endpoint {
        scheme,
        host,
        api_root: API_ROOT.to_owned(),
        strip: String::new(),
        path_prefix: String::new(),
        namespace: None,
        verify: true,
        is_mirror: true,
        extras: Arc::default(),
    }
}

/// The existing certificate directories of a host.
pub(super) fn certificate_directories(host: &str, options: &ClientOptions) -> Vec<PathBuf> {
    options.certs_dirs.iter().map(|dir| dir.join(host)).filter(|dir| has_certificates(dir)).collect()
}

/// A directory may also be there for other settings.
fn has_certificates(dir: &Path) -> bool {
    let is_certificate = |name: &str| name.ends_with(".crt") || name.ends_with(".cert");
    std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_certificate)))
    })
}

/// Whether `host[:port]` names this machine: `localhost`, 127.0.0.0/8 or ::1.
pub(super) fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(registry: &str, purpose: Purpose, options: &ClientOptions) -> Vec<Endpoint> {
        let reference = ImageRef::parse_normalized(&format!("{registry}/a/b:1")).expect("a reference");
        let settings = settings_of(registry, "a/b", options).expect("settings");
        endpoints(&reference, purpose, &settings, options)
    }

    fn urls(registry: &str, purpose: Purpose, options: &ClientOptions) -> Vec<String> {
        let url = |endpoint: &Endpoint| endpoint.url("a/b", "manifests/1").expect("a URL").to_string();
        of(registry, purpose, options).iter().map(url).collect()
    }

    #[test]
    fn registries_become_urls() {
        let mut options = ClientOptions::default();
        options.insecure.insert("bad.example".to_owned());
        options.plain_http.insert("plain.example:80".to_owned());
        let cases: [(&str, &[&str]); 9] = [
            ("docker.io", &["https://registry-1.docker.io/v2/a/b/manifests/1"]),
            ("ghcr.io", &["https://ghcr.io/v2/a/b/manifests/1"]),
            ("localhost", &["http://localhost/v2/a/b/manifests/1"]),
            ("localhost:5000", &["http://localhost:5000/v2/a/b/manifests/1"]),
            ("127.1.2.3:5000", &["http://127.1.2.3:5000/v2/a/b/manifests/1"]),
            ("[::1]:5000", &["http://[::1]:5000/v2/a/b/manifests/1"]),
            ("bad.example", &["https://bad.example/v2/a/b/manifests/1", "http://bad.example/v2/a/b/manifests/1"]),
            ("plain.example:80", &["http://plain.example/v2/a/b/manifests/1"]),
            ("10.0.0.1:5000", &["https://10.0.0.1:5000/v2/a/b/manifests/1"]),
        ];
        for (registry, expected) in cases {
            assert_eq!(urls(registry, Purpose::Pull, &options), expected, "{registry}");
        }
    }

    #[test]
    fn only_the_same_origin_is_home() {
        let endpoint = |host: &str| of(host, Purpose::Push, &ClientOptions::default()).remove(0);
        let cases = [
            ("r.example", "https://r.example/x", true),
            ("r.example:443", "https://r.example/x", true),
            ("R.Example", "https://r.example:443/x", true),
            ("r.example", "http://r.example/x", false),
            ("r.example", "https://r.example:444/x", false),
            ("r.example", "https://s.r.example/x", false),
            ("localhost:5000", "http://localhost:5000/x", true),
        ];
        for (host, url, expected) in cases {
            assert_eq!(endpoint(host).is_home_of(&Url::parse(url).expect("a URL")), expected, "{host} {url}");
        }
    }

    #[test]
    fn mirrors_serve_pulls_and_are_told_whom_they_stand_for() {
        let mut options = ClientOptions::default();
        let mirrors = vec!["m.example/proxy/".to_owned(), "localhost:1".to_owned()];
        options.mirrors.insert("docker.io".to_owned(), mirrors);
        let expected = [
            "https://m.example/v2/proxy/a/b/manifests/1?ns=docker.io",
            "http://localhost:1/v2/a/b/manifests/1?ns=docker.io",
            "https://registry-1.docker.io/v2/a/b/manifests/1",
        ];
        assert_eq!(urls("docker.io", Purpose::Pull, &options), expected);
        assert_eq!(urls("docker.io", Purpose::Push, &options), expected[2..]);
    }

    #[test]
    fn a_certificate_directory_makes_this_machine_speak_https_first() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("localhost:5000")).expect("a directory");
        std::fs::write(dir.path().join("localhost:5000/ca.crt"), "").expect("a file");
        std::fs::create_dir(dir.path().join("localhost:5002")).expect("a directory");
        let options = ClientOptions { certs_dirs: vec![dir.path().to_owned()], ..ClientOptions::default() };
        let schemes =
            |host| schemes(&Host::registry(host), &options).iter().map(|(scheme, _)| *scheme).collect::<Vec<_>>();
        assert_eq!(schemes("localhost:5000"), ["https", "http"]);
        assert_eq!(schemes("localhost:5001"), ["http"]);
        assert_eq!(schemes("localhost:5002"), ["http"], "there is nothing in it");
    }

    #[test]
    fn repositories_have_other_names_elsewhere() {
        let endpoint = |strip: &str, prefix: &str| Endpoint {
            strip: strip.to_owned(),
            path_prefix: prefix.to_owned(),
            ..foreign_endpoint("https", "r".to_owned())
        };
        let cases = [
            ("", "", "a/b", "a/b"),
            ("", "p/q", "a/b", "p/q/a/b"),
            ("a", "", "a/b", "b"),
            ("a", "p", "a/b", "p/b"),
            ("a/b", "p", "a/b", "p"),
            ("a", "p", "ab/c", "p/ab/c"),
        ];
        for (strip, prefix, repository, expected) in cases {
            assert_eq!(endpoint(strip, prefix).repository(repository), expected, "{strip} {prefix} {repository}");
        }
    }

    #[test]
    fn verified_tls_is_not_given_up() {
        let endpoint = |scheme, verify| Endpoint { verify, ..foreign_endpoint(scheme, "r".to_owned()) };
        let url = |text: &str| Url::parse(text).expect("a URL");
        assert!(!endpoint("https", true).may_lead_to(&url("http://r/")));
        assert!(endpoint("https", true).may_lead_to(&url("https://s/")));
        assert!(endpoint("https", false).may_lead_to(&url("http://r/")));
        assert!(endpoint("http", true).may_lead_to(&url("http://s/")));
    }
}
