//! User names, passwords and tokens, from Docker's `config.json` and files of the same form.
//!
//! Reading files and running helpers blocks; callers keep it off the runtime.
//!
//! Spec: `spec/engine.md` §4.2, "`config.json`".

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

/// What proves who we are. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// For Basic authentication and for token servers.
    Password {
        /// The user.
        username: String,
        /// The password or access key.
        password: String,
    },
    /// A refresh token for the token server.
    IdentityToken(String),
    /// A bearer token, sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

/// Credentials in the form of a `config.json`, from elsewhere than a file. `Debug` shows none.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// The JSON document.
    pub text: String,
    /// Where it is from, for people.
    pub name: String,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthConfig({})", self.name)
    }
}

/// A credential file or helper that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CredentialError {
    /// The file exists and cannot be read.
    #[error("cannot read credentials from `{path}`: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The helper program failed.
    #[error("credential helper `docker-credential-{helper}` failed for {server}: {reason}")]
    Helper {
        /// Name without the common prefix.
        helper: String,
        /// What it was asked for.
        server: String,
        /// What it said.
        reason: String,
    },
    /// The search for the credential gave no answer.
    #[error("no answer from the credential helper for {server}: {reason}")]
    Silent {
        /// What it was asked for.
        server: String,
        /// What happened instead.
        reason: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// A credential, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What proves who we are.
    pub(super) credential: Credential,
    /// File and part of it, or helper, in words.
    pub(super) origin: String,
}

/// Finds the credential for a repository.
///
/// `given` is asked first, then `files` in order; `keys` are the names of the host, the one to ask helpers with first. Inside a file:
/// the host's helper, the common store, the entries; of the entries the one with the longest matching path.
/// `None` if nobody knows the host.
pub(super) fn find_credential(
    given: Option<&AuthConfig>,
    files: &[PathBuf],
    keys: &[String],
    repository: &str,
) -> Result<Option<Found>, CredentialError> {
    if let Some(AuthConfig { text, name }) = given {
        let broken = |error: serde_json::Error| CredentialError::File { path: name.clone(), reason: error.to_string() };
        let file = serde_json::from_str(text).map_err(broken)?;
        if let Some(found) = find_in_file(&file, Path::new(name), keys, repository)? {
            return Ok(Some(found));
        }
    }
    for path in files {
        let Some(file) = read_file(path)? else {
            continue;
        };
        if let Some(found) = find_in_file(&file, path, keys, repository)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in_file(
    file: &ConfigFile,
    path: &Path,
    keys: &[String],
    repository: &str,
) -> Result<Option<Found>, CredentialError> {
    let shown = path.display();
    let own_helper = keys.iter().find_map(|key| file.cred_helpers.get(key)).map(|helper| (helper, "credHelpers"));
    let helper = own_helper.or(file.creds_store.as_ref().map(|helper| (helper, "credsStore")));
    if let Some((helper, part)) = helper.filter(|(helper, _)| !helper.is_empty())
        && let Some(server) = keys.first()
        && let Some(credential) = ask_helper(helper, server)?
    {
        let origin = format!("docker-credential-{helper} ({part} in {shown})");
        return Ok(Some(Found { credential, origin }));
    }
    let Some((key, entry)) = find_entry(&file.auths, keys, repository) else {
        return Ok(None);
    };
    let credential = entry.credential().map_err(|reason| CredentialError::File { path: shown.to_string(), reason })?;
    Ok(credential.map(|credential| Found { credential, origin: format!("auths of `{key}` in {shown}") }))
}

fn read_file(path: &Path) -> Result<Option<ConfigFile>, CredentialError> {
    let error = |reason: String| CredentialError::File { path: path.display().to_string(), reason };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|reason| error(reason.to_string())),
        Err(reason) if matches!(reason.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(reason) => Err(error(reason.to_string())),
    }
}

/// Runs `docker-credential-HELPER get`. `None` if the helper does not know the server.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credential>, CredentialError> {
    // The library picks helpers by its own rules; a file with a single entry leaves it only the call itself.
    let config = serde_json::json!({ "credHelpers": { server: helper } }).to_string();
    let error =
        |reason: String| CredentialError::Helper { helper: helper.to_owned(), server: server.to_owned(), reason };
    match docker_credential::get_credential_from_reader(config.as_bytes(), server) {
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::IdentityToken(token))),
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Some(Credential::Password { username, password }).filter(|credential| !credential.is_blank()))
        }
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(None)
        }
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. }) => {
            let said = [stderr.trim(), stdout.trim()].into_iter().find(|text| !text.is_empty());
            Err(error(said.unwrap_or("no message").to_owned()))
        }
        Err(reason) => Err(error(reason.to_string())),
    }
}

/// Picks the entry, with its key, for the longest prefix of `host/repository`; the bare host is the shortest.
///
/// Keys may also be URLs, with `/v1/` or `/v2/` behind the host, as `docker login` has written them over the years.
fn find_entry<'a>(
    auths: &'a BTreeMap<String, Entry>,
    keys: &[String],
    repository: &str,
) -> Option<(&'a str, &'a Entry)> {
    let find = |wanted: &str| {
        let found = auths.iter().find(|(key, _)| bare_key(key) == wanted);
        found.map(|(key, entry)| (key.as_str(), entry))
    };
    let hosts: Vec<&str> = keys.iter().map(|key| bare_key(key)).collect();
    let mut path = Some(repository);
    while let Some(prefix) = path {
        if let Some(found) = hosts.iter().find_map(|host| find(&format!("{host}/{prefix}"))) {
            return Some(found);
        }
        path = prefix.rsplit_once('/').map(|(parent, _)| parent);
    }
    hosts.iter().find_map(|host| find(host))
}

fn bare_key(key: &str) -> &str {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare)
}

impl Credential {
    fn is_blank(&self) -> bool {
        matches!(self, Self::Password { username, password } if username.is_empty() && password.is_empty())
    }
}

impl Entry {
    /// `None` for the empty entries that mark a login in a store.
    fn credential(&self) -> Result<Option<Credential>, String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let (username, password) = decode_auth(&auth)?;
            return Ok(Some(Credential::Password { username, password }).filter(|credential| !credential.is_blank()));
        }
        Ok(given(&self.username)
            .map(|username| Credential::Password { username, password: self.password.clone().unwrap_or_default() }))
    }
}

/// Decodes base64 of `user:password`; padding is optional, and old files end in NULs.
fn decode_auth(auth: &str) -> Result<(String, String), String> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&STANDARD, config)
        .decode(auth.trim())
        .map_err(|_| "an `auth` value is not base64".to_owned())?;
    let text = String::from_utf8(bytes).map_err(|_| "an `auth` value is not UTF-8 inside".to_owned())?;
    let (username, password) = text.split_once(':').ok_or_else(|| "an `auth` value has no colon inside".to_owned())?;
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(config: &str, keys: &[&str], repository: &str) -> Result<Option<Credential>, CredentialError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).expect("a file");
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let found = find_credential(None, &[dir.path().join("absent.json"), path], &keys, repository)?;
        Ok(found.map(|found| found.credential))
    }

    #[test]
    fn what_is_in_no_file_is_asked_first_and_origins_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"r.example":{"auth":"dTpw"},"https://s.example/v1/":{"auth":"dTpw"}}}"#)
            .expect("a file");
        let given =
            AuthConfig { text: r#"{"auths":{"r.example":{"auth":"dTpxOng="}}}"#.to_owned(), name: "$X".to_owned() };
        let find = |host: &str| {
            let found = find_credential(Some(&given), std::slice::from_ref(&path), &[host.to_owned()], "a/b");
            found.expect("no error").expect("a credential")
        };
        let found = find("r.example");
        assert_eq!(
            (Some(found.credential), found.origin.as_str()),
            (password("u", "q:x"), "auths of `r.example` in $X")
        );
        let origin = format!("auths of `https://s.example/v1/` in {}", path.display());
        assert_eq!(find("s.example").origin, origin);
        assert!(!format!("{given:?}").contains("dTpx"));
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { username: username.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn entries_are_found_under_every_spelling_of_the_host() {
        let hub = ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"];
        // dTpw is u:p, dTpxOng= is u:q:x
        let cases = [
            (r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#, &["r.example"][..], password("u", "p")),
            (r#"{"auths":{"https://r.example/v2/":{"auth":"dTpxOng="}}}"#, &["r.example"], password("u", "q:x")),
            (r#"{"auths":{"http://r.example/":{"auth":"dTpxOng"}}}"#, &["r.example"], password("u", "q:x")),
            (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#, &hub, password("u", "p")),
            (r#"{"auths":{"docker.io":{"auth":"dTpw"}}}"#, &hub, password("u", "p")),
            (r#"{"auths":{"r.example":{"username":"u","password":"p"}}}"#, &["r.example"], password("u", "p")),
            (r#"{"auths":{"r.example":{}}}"#, &["r.example"], None),
            (r#"{"auths":{"r.example:5000":{"auth":"dTpw"}}}"#, &["r.example"], None),
            (
                r#"{"auths":{"r.example":{"auth":"dTpw","identitytoken":"t"}}}"#,
                &["r.example"],
                Some(Credential::IdentityToken("t".to_owned())),
            ),
            (
                r#"{"auths":{"r.example":{"registrytoken":"t"}}}"#,
                &["r.example"],
                Some(Credential::RegistryToken("t".to_owned())),
            ),
            (r#"{}"#, &["r.example"], None),
        ];
        for (config, keys, expected) in cases {
            assert_eq!(lookup(config, keys, "a/b"), Ok(expected), "{config}");
        }
    }

    #[test]
    fn the_longest_path_wins() {
        let config = r#"{"auths":{"r.example":{"auth":"dTpw"},"r.example/a":{"username":"a"},"r.example/a/b":{"username":"ab"},"r.example/ax":{"username":"ax"}}}"#;
        let cases = [("a/b", "ab"), ("a/b/c", "ab"), ("a/c", "a"), ("ay", "u"), ("b/a", "u")];
        for (repository, username) in cases {
            match lookup(config, &["r.example"], repository) {
                Ok(Some(Credential::Password { username: found, .. })) => assert_eq!(found, username, "{repository}"),
                other => panic!("{repository}: {other:?}"),
            }
        }
    }

    #[test]
    fn broken_files_and_helpers_are_named() {
        let error = lookup("{", &["r"], "a").expect_err("broken JSON").to_string();
        assert!(error.contains("config.json"), "{error}");
        assert!(lookup(r#"{"auths":{"r":{"auth":"%"}}}"#, &["r"], "a").is_err());
        let error = lookup(r#"{"credsStore":"rbuild-test-absent"}"#, &["r"], "a").expect_err("no such helper");
        assert!(error.to_string().contains("docker-credential-rbuild-test-absent"), "{error}");
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let credential = Credential::Password { username: "u".to_owned(), password: "hunter2".to_owned() };
        let all =
            [credential, Credential::IdentityToken("hunter2".into()), Credential::RegistryToken("hunter2".into())];
        assert!(!format!("{all:?}").contains("hunter2"));
    }
}
