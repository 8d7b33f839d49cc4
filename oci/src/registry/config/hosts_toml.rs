//! containerd's `hosts.toml`: one file a registry, in a directory of its name.
//!
//! Spec: containerd, "Registry Configuration" (docs/hosts.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Extras, Host, Reach, Serves, Settings, broken, split_scheme, text_of};
use crate::registry::error::RegistryError;

/// The directory that is for all registries without one of their own.
const DEFAULT_DIR: &str = "_default";

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    of_server: Table,
    /// In the order of the file, which is that in which hosts are tried.
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
}

/// What is said of one host. Unknown keys are for others.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: OneOrMany,
    client: Clients,
    skip_verify: Option<bool>,
    override_path: bool,
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// One file with certificate and key, several, or pairs of a certificate and a key.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Clients {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

impl OneOrMany {
    fn list(&self) -> Vec<&str> {
        match self {
            Self::None => Vec::new(),
            Self::One(text) => vec![text],
            Self::Many(list) => list.iter().map(String::as_str).collect(),
        }
    }
}

/// What the registry's own file says.
pub(super) fn of(dirs: &[PathBuf], registry: &str) -> Result<Option<Settings>, RegistryError> {
    // On file systems without colons in names the port is set off by underscores.
    let other = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    for dir in dirs {
        for name in other.iter().map(String::as_str).chain([registry]) {
            if let Some(settings) = read(&dir.join(name).join("hosts.toml"), registry)? {
                return Ok(Some(settings));
            }
        }
    }
    Ok(None)
}

/// What the file for all registries says.
pub(super) fn default_of(dirs: &[PathBuf], registry: &str) -> Result<Option<Settings>, RegistryError> {
    for dir in dirs {
        if let Some(settings) = read(&dir.join(DEFAULT_DIR).join("hosts.toml"), registry)? {
            return Ok(Some(settings));
        }
    }
    Ok(None)
}

fn read(path: &Path, registry: &str) -> Result<Option<Settings>, RegistryError> {
    let Some(text) = text_of(path)? else { return Ok(None) };
    let settings = parse(&text, registry, path.parent().unwrap_or(Path::new("/")));
    settings
        .map(|hosts| Some(Settings { source: path.display().to_string(), is_blocked: false, hosts }))
        .map_err(|reason| broken(path, &reason))
}

/// The hosts of a file that lies in `dir`; the reason if it is broken.
fn parse(text: &str, registry: &str, dir: &Path) -> Result<Vec<Host>, String> {
    let mut file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut tables: Vec<(Spanned<String>, Table)> = std::mem::take(&mut file.host).into_iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    let mut hosts = Vec::with_capacity(tables.len() + 1);
    for (name, table) in tables {
        hosts.push(host(name.as_ref(), &table, dir, true)?);
    }
    let server = match &file.server {
        Some(server) => host(server, &file.of_server, dir, false)?,
        None => {
            let own = Host::registry(registry);
            host(&own.name, &file.of_server, dir, false)?
        }
    };
    hosts.push(server);
    for host in &mut hosts {
        host.wants_namespace = host.name != Host::registry(registry).name;
    }
    Ok(hosts)
}

/// A host by its URL: `[scheme://]host[:port][/path]`.
fn host(url: &str, table: &Table, dir: &Path, is_mirror: bool) -> Result<Host, String> {
    let (reach, rest) = split_scheme(url.trim());
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() || rest.contains("://") {
        return Err(format!("`{url}` is no URL of a host: https://HOST[:PORT][/PATH]"));
    }
    let reach = match (reach, table.skip_verify) {
        (Reach::Http, _) => Reach::Http,
        (_, Some(true)) => Reach::Https(false),
        (reach, _) => reach,
    };
    Ok(Host {
        reach,
        api_root: api_root(path, table.override_path),
        serves: serves(table.capabilities.as_deref())?,
        is_mirror,
        extras: extras(table, dir)?,
        ..Host::registry(name)
    })
}

/// A path is the API's own if the file says so; else the API is below it.
fn api_root(path: &str, is_own: bool) -> String {
    let path = path.trim_matches('/');
    match (path, is_own) {
        ("", true) => String::new(),
        ("", false) => "/v2".to_owned(),
        (path, true) => format!("/{path}"),
        (path, false) if path == "v2" || path.ends_with("/v2") => format!("/{path}"),
        (path, false) => format!("/{path}/v2"),
    }
}

fn serves(capabilities: Option<&[String]>) -> Result<Serves, String> {
    let Some(capabilities) = capabilities else { return Ok(Serves::EVERYTHING) };
    let mut serves = Serves { tags: false, digests: false, pushes: false, pinned: true };
    for capability in capabilities {
        match capability.to_ascii_lowercase().as_str() {
            "pull" => serves.digests = true,
            "resolve" => serves.tags = true,
            "push" => serves.pushes = true,
            "referrers" => {}
            _ => return Err(format!("`{capability}` is no capability: pull, resolve or push")),
        }
    }
    Ok(serves)
}

fn extras(table: &Table, dir: &Path) -> Result<Extras, String> {
    let at = |name: &str| dir.join(name);
    let identities = match &table.client {
        Clients::None => Vec::new(),
        Clients::One(file) => vec![(at(file), at(file))],
        Clients::Many(files) => files.iter().map(|file| (at(file), at(file))).collect(),
        Clients::Pairs(pairs) => {
            let pair = |files: &Vec<String>| match files.as_slice() {
                [both] => Ok((at(both), at(both))),
                [certificate, key] if key.is_empty() => Ok((at(certificate), at(certificate))),
                [certificate, key] => Ok((at(certificate), at(key))),
                _ => Err("an entry of `client` is a certificate and a key".to_owned()),
            };
            pairs.iter().map(pair).collect::<Result<_, _>>()?
        }
    };
    let headers = table.header.iter().flat_map(|(name, values)| {
        values.list().into_iter().map(move |value| (name.to_ascii_lowercase(), value.to_owned()))
    });
    Ok(Extras {
        ca_files: table.ca.list().into_iter().map(at).collect(),
        identities,
        certs_dirs: Vec::new(),
        headers: headers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::shown;
    use super::*;

    fn check(text: &str, registry: &str, expected: &str) {
        let hosts = parse(text, registry, Path::new("/certs/dir")).expect("hosts");
        assert_eq!(shown(&Settings { source: String::new(), is_blocked: false, hosts }), expected, "{text}");
    }

    #[test]
    fn hosts_are_tried_in_the_order_of_the_file() {
        let text = r#"
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
[host."http://a.example:5000"]
  capabilities = ["pull"]
[host."https://b.example"]
  skip_verify = true
"#;
        let expected = "https z.example no pushes, http a.example:5000 no tags no pushes, unverified b.example, \
                        https registry-1.docker.io";
        check(text, "docker.io", expected);
    }

    #[test]
    fn paths_hold_the_api_or_are_it() {
        check("[host.\"https://m/proxy\"]\n", "r", "https m at /proxy/v2, r");
        check("[host.\"https://m/proxy/v2\"]\n", "r", "https m at /proxy/v2, r");
        check("[host.\"https://m/v2/proxy\"]\noverride_path = true\n", "r", "https m at /v2/proxy, r");
        check("server = \"http://r:80/\"\n", "r", "http r:80");
        check("skip_verify = true\n", "docker.io", "unverified registry-1.docker.io");
    }

    #[test]
    fn certificates_are_relative_to_the_file_and_headers_are_kept_back() {
        let text = r#"
ca = "/etc/ca.pem"
[host."https://m"]
  ca = ["a.pem", "/b.pem"]
  client = [["c.pem", "c.key"], ["both.pem", ""]]
  [host."https://m".header]
    Authorization = "Basic c2VjcmV0"
    x-two = ["1", "2"]
[host."https://n"]
  client = "one.pem"
"#;
        let hosts = parse(text, "r", Path::new("/d")).expect("hosts");
        let extras = &hosts[0].extras;
        assert_eq!(extras.ca_files, [Path::new("/d/a.pem"), Path::new("/b.pem")]);
        assert_eq!(extras.identities[0], ("/d/c.pem".into(), "/d/c.key".into()));
        assert_eq!(extras.identities[1], ("/d/both.pem".into(), "/d/both.pem".into()));
        assert_eq!(extras.headers.len(), 3);
        assert!(!format!("{extras:?}").contains("c2VjcmV0"));
        assert_eq!(hosts[1].extras.identities[0].0, Path::new("/d/one.pem"));
        assert_eq!(hosts[2].extras.ca_files, [Path::new("/etc/ca.pem")]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)(server|ca|client|\\[host\\.\"|https?://|header|capabilities|[\\[\\]=\",{}/:a-z\n ]){0,24}") {
            drop(parse(&text, "r.example:5000", Path::new("/")));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in
            ["server = 1\n", "[host.\"\"]\n", "[host.\"ftp://x\"]\n", "[host.\"https://x\"]\ncapabilities = [\"x\"]\n"]
        {
            assert!(parse(text, "r", Path::new("/")).is_err(), "{text}");
        }
    }
}
