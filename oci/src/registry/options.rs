//! Everything that a client is told from outside. It reads no environment variable and no home directory by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use super::config::ConfigFiles;
use super::credentials::AuthConfig;
use super::login::Login;

/// Pause before the first reconnection.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// How a [`Client`](super::Client) reaches registries. Hosts are written as in references: `host[:port]`.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Sent with every request.
    pub user_agent: String,
    /// Directory of Docker's `config.json`.
    pub docker_config_dir: Option<PathBuf>,
    /// Credentials in the same format that are in no file, asked before all files.
    pub auth_config: Option<AuthConfig>,
    /// Credential files in the same format (podman's `auth.json`), asked in order before `config.json`.
    pub auth_files: Vec<PathBuf>,
    /// Registry → what to log in with there, before any file is asked.
    pub logins: BTreeMap<String, Login>,
    /// Directories with one directory `HOST[:PORT]` a registry: `*.crt` are CAs, `X.cert` pairs with `X.key`.
    /// All that exist are read.
    pub certs_dirs: Vec<PathBuf>,
    /// A PEM file of CAs instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files of CAs instead of the system's.
    pub ca_dir: Option<PathBuf>,
    /// Hosts asked by HTTPS without verification, then by plain HTTP.
    pub insecure: BTreeSet<String>,
    /// Hosts asked by plain HTTP only.
    pub plain_http: BTreeSet<String>,
    /// Registry → mirrors, best first: `[http[s]://]host[:port][/path prefix]`. Only pulls use them. What is said here
    /// counts instead of what files say.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Files with settings of registries, read when a registry is first used.
    pub files: ConfigFiles,
    /// Proxies; requests to this machine never use them.
    pub proxies: Proxies,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Transfers in flight for one host, in each direction; one small request more may always be sent.
    pub max_requests_per_host: usize,
    /// Longer blobs are sent in chunks of so many bytes, so that not everything is lost when one breaks off.
    pub upload_chunk_bytes: u64,
}

/// URLs of proxies, as in the usual environment variables. `Debug` shows none, because they may hold passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://`.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// Comma-separated hosts, domains and networks that are asked directly.
    pub no_proxy: Option<String>,
}

/// When and how often a request that failed for a passing reason is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Times that one request is sent; a transfer that got further starts to count anew. At least 1.
    pub attempts: u32,
    /// Pause before the second try; doubled each time. After a broken connection a short one comes first.
    pub first_delay: Duration,
    /// The longest pause between tries.
    pub max_delay: Duration,
    /// The longest pause that a server may ask for (`Retry-After`) before that counts as a failure.
    pub max_retry_after: Duration,
    /// The longest silence in the middle of an answer or of an upload.
    pub stall_timeout: Duration,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(8),
            max_retry_after: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    /// The pause after the `failures`-th failure in a row (1 is the first).
    pub(super) fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.first_delay.saturating_mul(1 << doublings).min(self.max_delay)
    }

    /// The pause after the `failures`-th broken connection in a row: most are mended at once.
    pub(super) fn reconnect_delay(&self, failures: u32) -> Duration {
        if failures <= 1 { self.first_delay.min(RECONNECT_DELAY) } else { self.delay(failures - 1) }
    }
}

/// A pause that is up to a quarter longer, so that those who failed together do not come back together.
pub(super) fn jittered(delay: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1024;
    delay.mul_f64(1.0 + random as f64 / 4096.0)
}

impl Default for ClientOptions {
    /// No credentials, the system's CAs, no mirrors, no proxies, four requests a host.
    fn default() -> Self {
        Self {
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
            docker_config_dir: None,
            auth_config: None,
            auth_files: Vec::new(),
            logins: BTreeMap::new(),
            certs_dirs: Vec::new(),
            ca_file: None,
            ca_dir: None,
            insecure: BTreeSet::new(),
            plain_http: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            files: ConfigFiles::default(),
            proxies: Proxies::default(),
            retry: RetryPolicy::default(),
            max_requests_per_host: 4,
            upload_chunk_bytes: 64 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let millis: Vec<u128> = (1..=7).map(|failures| policy.delay(failures).as_millis()).collect();
        assert_eq!(millis, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(policy.delay(u32::MAX), policy.max_delay);
        let millis: Vec<u128> = (1..=4).map(|failures| policy.reconnect_delay(failures).as_millis()).collect();
        assert_eq!(millis, [50, 250, 500, 1000]);
    }

    #[test]
    fn pauses_differ() {
        let delay = Duration::from_secs(8);
        let pauses: BTreeSet<Duration> = (0..100).map(|_| jittered(delay)).collect();
        assert!(pauses.len() > 50, "{pauses:?}");
        assert!(pauses.iter().all(|pause| (delay..=delay * 5 / 4).contains(pause)));
    }
}
