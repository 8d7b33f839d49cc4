//! Logging in: asking a registry whether it knows us, and keeping what it knows us by where `docker` keeps it.
//!
//! Spec: `spec/engine.md` §4.2, "`config.json`"; `spec/cli.md` §6.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::client::{Client, Slot};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{DEFAULT_REGISTRY_AUTH_KEY, Purpose};
use super::scopes::Scopes;
use super::transport::{Request, protocol};
use crate::reference::{DEFAULT_REGISTRY, ImageRef};

/// A user name with its password or access key. `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password or access key.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

/// Where a login has been kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptLogin {
    /// By the program `docker-credential-NAME`.
    Helper(String),
    /// In this file, readable for whoever reads the file.
    File(PathBuf),
}

/// A login that cannot be kept or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// A file operation failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What is there is no configuration of docker's.
    #[error("`{}` is no JSON object of docker's: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The helper program failed.
    #[error("credential helper `docker-credential-{helper}` failed: {reason}")]
    Helper {
        /// Name without the common prefix.
        helper: String,
        /// What it said.
        reason: String,
    },
}

impl Client {
    /// Asks the registry whether it lets us in with the credentials that the client has for it.
    ///
    /// # Errors
    /// [`RegistryError::Unauthorized`] when it does not; every other error when it cannot be asked.
    pub async fn check_login(&self, registry: &str) -> Result<(), RegistryError> {
        // Settings are those of the registry as a whole.
        let any = ImageRef::new(registry, "x/x").map_err(|_| RegistryError::Configuration {
            path: registry.to_owned(),
            reason: "it is not a host name with an optional port".to_owned(),
        })?;
        let (mut endpoint, mut others) = self.endpoints(&any, Purpose::Push)?;
        loop {
            let attempt = Attempt {
                operation: Operation::LogIn,
                host: endpoint.host.clone(),
                repository: registry.to_owned(),
                object: String::new(),
            }
            .into();
            let request = Request {
                endpoint: &endpoint,
                attempt: &attempt,
                repository: "",
                scopes: &Scopes::default(),
                slot: Slot::Small,
                method: Method::GET,
                url: endpoint.root_url().ok_or_else(|| protocol(&attempt, "its name makes no URL"))?,
                headers: HeaderMap::new(),
                body: bytes::Bytes::new(),
            };
            let error = match self.send(request.clone()).await {
                Ok(reply) if reply.status() == StatusCode::OK => return Ok(()),
                Ok(reply) => self.status_error(&request, reply).await,
                Err(error) => error,
            };
            endpoint = self.fall_back(&endpoint, &mut others, error)?;
        }
    }
}

/// Keeps a login in `config.json` of `dir`, or with the helper that is named there. What else is in the file stays.
///
/// # Errors
/// [`LoginError`]; then what was kept before is still there.
pub fn keep_login(dir: &Path, registry: &str, login: &Login) -> Result<KeptLogin, LoginError> {
    let mut config = Config::read(dir)?;
    let key = key_of(registry);
    if let Some(helper) = config.helper(registry, key) {
        let secret = json!({ "ServerURL": key, "Username": login.username, "Secret": login.password }).to_string();
        run_helper(&helper, "store", &secret)?;
        // As docker does: the entry says that there is a login, the helper what it is.
        config.auths().insert(key.to_owned(), json!({}));
        config.write()?;
        return Ok(KeptLogin::Helper(helper));
    }
    let auth = STANDARD.encode(format!("{}:{}", login.username, login.password));
    config.auths().insert(key.to_owned(), json!({ "auth": auth }));
    config.write().map(KeptLogin::File)
}

/// Forgets a login. `false` when there was none.
///
/// # Errors
/// [`LoginError`].
pub fn forget_login(dir: &Path, registry: &str) -> Result<bool, LoginError> {
    let mut config = Config::read(dir)?;
    let key = key_of(registry);
    let was_there = config.auths().remove(key).is_some();
    if let Some(helper) = config.helper(registry, key) {
        match run_helper(&helper, "erase", key) {
            Err(LoginError::Helper { reason, .. }) if reason.contains("credentials not found") => {}
            other => other?,
        }
    }
    if was_there {
        config.write()?;
    }
    Ok(was_there)
}

/// The name under which docker keeps a registry's login.
fn key_of(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_AUTH_KEY } else { registry }
}

/// Docker's `config.json`, as far as it is nobody's business but docker's.
struct Config {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Config {
    fn read(dir: &Path) -> Result<Self, LoginError> {
        let path = dir.join("config.json");
        // People keep the file elsewhere, behind a link; it stays one.
        let path = path.canonicalize().unwrap_or(path);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(LoginError::File { operation: "read", path, source }),
        };
        if bytes.trim_ascii().is_empty() {
            return Ok(Self { path, content: Map::new() });
        }
        match serde_json::from_slice::<Map<String, Value>>(&bytes) {
            Ok(content) if content.get("auths").is_none_or(Value::is_object) => Ok(Self { path, content }),
            Ok(_) => Err(LoginError::Config { path, reason: "`auths` is no object".to_owned() }),
            Err(error) => Err(LoginError::Config { path, reason: error.to_string() }),
        }
    }

    /// The helper for the registry.
    fn helper(&self, registry: &str, key: &str) -> Option<String> {
        let own = self.content.get("credHelpers");
        let own = own.and_then(|helpers| helpers.get(registry).or_else(|| helpers.get(key)));
        let name = own.or_else(|| self.content.get("credsStore"))?.as_str()?;
        Some(name.to_owned()).filter(|name| !name.is_empty())
    }

    fn auths(&mut self) -> &mut Map<String, Value> {
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        auths.as_object_mut().expect("what is read or made is an object")
    }

    /// Replaces the file as a whole; nobody but its owner may read it.
    fn write(&self) -> Result<PathBuf, LoginError> {
        let fault = |operation| move |source| LoginError::File { operation, path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(fault("create the directory of"))?;
        let mut file = tempfile::Builder::new()
            .prefix(".config-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)
            .map_err(fault("write"))?;
        let text = serde_json::to_string_pretty(&self.content).expect("keys are strings");
        file.write_all(text.as_bytes()).map_err(fault("write"))?;
        file.persist(&self.path).map_err(|error| fault("write")(error.error))?;
        Ok(self.path.clone())
    }
}

/// Runs `docker-credential-HELPER VERB` with `input` on its standard input.
fn run_helper(helper: &str, verb: &str, input: &str) -> Result<(), LoginError> {
    let fault = |reason: String| LoginError::Helper { helper: helper.to_owned(), reason };
    let mut command = Command::new(format!("docker-credential-{helper}"));
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| fault(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says why at its end.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(|error| fault(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    let said = said.into_iter().find(|text| !text.is_empty());
    Err(fault(said.unwrap_or_else(|| output.status.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(username: &str) -> Login {
        Login { username: username.to_owned(), password: "p:w".to_owned() }
    }

    fn config(dir: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn a_login_is_kept_as_docker_keeps_it_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("new/.docker");
        let kept = keep_login(&home, "docker.io", &login("ann")).unwrap();
        assert_eq!(kept, KeptLogin::File(home.join("config.json")));
        assert_eq!(config(&home), json!({"auths": {"https://index.docker.io/v1/": {"auth": "YW5uOnA6dw=="}}}));
        let mode = std::fs::metadata(home.join("config.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(home.join("config.json"), r#"{"auths":{"a.io":{"auth":"x"}},"detachKeys":"ctrl-e"}"#).unwrap();
        keep_login(&home, "b.io:5000", &login("bob")).unwrap();
        assert_eq!(config(&home)["detachKeys"], "ctrl-e");
        assert!(forget_login(&home, "b.io:5000").unwrap());
        assert!(!forget_login(&home, "b.io:5000").unwrap());
        assert_eq!(config(&home)["auths"], json!({"a.io": {"auth": "x"}}));
    }

    #[test]
    fn a_file_behind_a_link_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("real"), "{}").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("config.json")).unwrap();
        keep_login(dir.path(), "a.io", &login("ann")).unwrap();
        assert!(std::fs::symlink_metadata(dir.path().join("config.json")).unwrap().is_symlink());
        assert!(config(dir.path())["auths"]["a.io"].is_object());
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["{", "[]", r#"{"auths":[]}"#] {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            let error = keep_login(dir.path(), "a.io", &login("ann")).unwrap_err();
            assert!(matches!(error, LoginError::Config { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(dir.path().join("config.json")).unwrap(), text);
        }
    }

    #[test]
    fn a_helper_that_is_not_there_is_an_error_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"credHelpers":{"a.io":"rbuild-has-no-such-helper"}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = keep_login(dir.path(), "a.io", &login("ann")).unwrap_err();
        assert!(
            error.to_string().starts_with("credential helper `docker-credential-rbuild-has-no-such-helper` failed")
        );
        assert_eq!(std::fs::read_to_string(dir.path().join("config.json")).unwrap(), text);
    }
}
