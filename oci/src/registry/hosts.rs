//! From a registry's name to the URLs that may serve it: mirrors first, then the registry itself.
//!
//! Spec: `spec/engine.md` §4.2, "Hosts".

use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;

use super::options::ClientOptions;
use crate::reference::DEFAULT_REGISTRY;

/// The host that serves `docker.io`.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// The key of `docker.io` in Docker's `config.json`.
pub(super) const DEFAULT_REGISTRY_AUTH_KEY: &str = "https://index.docker.io/v1/";

/// What the requests are for. Mirrors serve pulls only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reading.
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
    /// In front of the repository, with a slash at its end, or empty.
    pub(super) path_prefix: String,
    /// Told to mirrors that serve several registries (`?ns=`).
    pub(super) namespace: Option<String>,
    /// Whether the server's certificate must be valid.
    pub(super) verify: bool,
    /// Whether another server stands in for the registry.
    pub(super) is_mirror: bool,
}

impl Endpoint {
    /// The repository as this endpoint calls it.
    pub(super) fn repository(&self, repository: &str) -> String {
        format!("{}{repository}", self.path_prefix)
    }

    /// `scheme://host/v2/REPOSITORY/REST`, with `ns` where it is needed. `None` if the host makes no URL.
    pub(super) fn url(&self, repository: &str, rest: &str) -> Option<Url> {
        let text = format!("{}://{}/v2/{}{repository}/{rest}", self.scheme, self.host, self.path_prefix);
        let mut url = Url::parse(&text).ok()?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Some(url)
    }

    /// `scheme://host/v2/`, which says whether we are let in. `None` if the host makes no URL.
    pub(super) fn root_url(&self) -> Option<Url> {
        Url::parse(&format!("{}://{}/v2/", self.scheme, self.host)).ok()
    }

    /// Whether a URL leads to this very endpoint, so that what is meant for it may go there.
    pub(super) fn is_home_of(&self, url: &Url) -> bool {
        let own = Url::parse(&format!("{}://{}/", self.scheme, self.host));
        own.is_ok_and(|own| own.origin() == url.origin())
    }

    /// The names under which credential files may keep this host, the one to ask helpers with first.
    pub(super) fn credential_keys(&self) -> Vec<&str> {
        if self.host == DEFAULT_REGISTRY_HOST {
            return vec![DEFAULT_REGISTRY_AUTH_KEY, DEFAULT_REGISTRY, "index.docker.io", DEFAULT_REGISTRY_HOST];
        }
        vec![&self.host]
    }
}

/// The endpoints of a registry, in the order in which they are tried. Never empty.
pub(super) fn endpoints(registry: &str, purpose: Purpose, options: &ClientOptions) -> Vec<Endpoint> {
    let mirrors = options.mirrors.get(registry).filter(|_| purpose == Purpose::Pull);
    let mut list = Vec::new();
    for mirror in mirrors.into_iter().flatten() {
        let mirror = mirror.trim_end_matches('/');
        let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
        let path_prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        list.extend(schemes(host, options).into_iter().map(|(scheme, verify)| Endpoint {
            scheme,
            host: host.to_owned(),
            path_prefix: path_prefix.clone(),
            namespace: Some(registry.to_owned()),
            verify,
            is_mirror: true,
        }));
    }
    let host = if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { registry };
    list.extend(schemes(host, options).into_iter().map(|(scheme, verify)| Endpoint {
        scheme,
        host: host.to_owned(),
        path_prefix: String::new(),
        namespace: None,
        verify,
        is_mirror: false,
    }));
    list
}

/// (scheme, verify) pairs for a host, in the order in which they are tried.
fn schemes(host: &str, options: &ClientOptions) -> Vec<(&'static str, bool)> {
    if options.plain_http.contains(host) {
        vec![("http", true)]
    } else if options.insecure.contains(host) {
        vec![("https", false), ("http", true)]
    } else if !is_this_machine(host) {
        vec![("https", true)]
    } else if !certificate_directories(host, options).is_empty() {
        vec![("https", true), ("http", true)]
    } else {
        vec![("http", true)]
    }
}

/// The existing certificate directories of a host.
pub(super) fn certificate_directories(host: &str, options: &ClientOptions) -> Vec<PathBuf> {
    options.certs_dirs.iter().map(|dir| dir.join(host)).filter(|dir| dir.is_dir()).collect()
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

    fn urls(registry: &str, purpose: Purpose, options: &ClientOptions) -> Vec<String> {
        let url = |endpoint: &Endpoint| endpoint.url("a/b", "manifests/1").expect("a URL").to_string();
        endpoints(registry, purpose, options).iter().map(url).collect()
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
        let endpoint = |host: &str| endpoints(host, Purpose::Push, &ClientOptions::default()).remove(0);
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
        let options = ClientOptions { certs_dirs: vec![dir.path().to_owned()], ..ClientOptions::default() };
        let schemes = |host| schemes(host, &options).iter().map(|(scheme, _)| *scheme).collect::<Vec<_>>();
        assert_eq!(schemes("localhost:5000"), ["https", "http"]);
        assert_eq!(schemes("localhost:5001"), ["http"]);
    }
}
