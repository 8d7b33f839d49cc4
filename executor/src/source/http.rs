//! ADD of a URL: a layer with one file.
//!
//! A key needs to know what a URL stands for without fetching it: a strong ETag does, so one `HEAD` request is enough
//! for a file that has not changed. Where there is none, the file is fetched for the key already, and kept for the
//! case that the step is performed.
//!
//! Spec: `spec/engine.md` §4.6, `spec/dockerfile.md` §2.22.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use cache::{LayerInfo, Store, TreeDraft};
use oci::{Digest, Sha256};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED};
use reqwest::{Client, Method, Response, StatusCode};
use solver::{HttpOp, OpError, Step};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use super::{SecretLookup, blocking, commit, io_error, url};

#[cfg(test)]
mod tests;

/// Times that a transfer is begun before it counts as failed, and the pause before the second one (doubled each time).
const ATTEMPTS: u32 = 5;
/// The same for a server that cannot be reached, where it is known what it said last.
const ATTEMPTS_WITH_ANSWER: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest silence of a server.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Progress is reported once in so many bytes.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Mode of the file. Spec: `spec/dockerfile.md` §2.22.
const FILE_MODE: u32 = 0o600;

/// Fetches files behind URLs.
pub struct HttpSource {
    /// Made when first needed: reading the system's certificates takes longer than most builds' first step.
    client: LazyClient,
    store: Store,
    secrets: SecretLookup,
    /// Files that were fetched for a key, until the step is performed.
    fetched: Mutex<HashMap<Place, Fetched>>,
    /// What probes have said in this build: a URL stands for one file until its end.
    probed: Mutex<HashMap<Place, String>>,
}

/// A URL, and the name of its file.
type Place = (String, String);

type LazyClient = LazyLock<Result<Client, String>, Box<dyn FnOnce() -> Result<Client, String> + Send>>;

/// A file in a future layer.
struct Fetched {
    draft: TreeDraft,
    digest: Digest,
    last_modified: i64,
}

/// Why one attempt did not work.
enum Trouble {
    /// The server cannot be reached; it may be worth trying again.
    Unreachable(String),
    /// It is worth trying again.
    Passing(String),
    /// It is not.
    Lasting(OpError),
}

impl From<OpError> for Trouble {
    fn from(error: OpError) -> Self {
        Self::Lasting(error)
    }
}

impl From<Trouble> for OpError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreachable(reason) | Trouble::Passing(reason) => {
                Self::environment(format!("failed to load cache key: {reason}"))
            }
            Trouble::Lasting(error) => error,
        }
    }
}

impl HttpSource {
    /// A source that asks through what `client` makes, whose TLS settings, proxies and `User-Agent` are used as they are.
    pub fn new(
        client: impl FnOnce() -> reqwest::Result<Client> + Send + 'static,
        store: Store,
        secrets: SecretLookup,
    ) -> Self {
        let client = LazyClient::new(Box::new(move || client().map_err(chain)));
        Self { client, store, secrets, fetched: Mutex::default(), probed: Mutex::default() }
    }

    /// Something that changes when the file does: its ETag, else its digest; with `Last-Modified`, which becomes the
    /// time of the file. For a server that cannot be reached it is what it was last, with a warning.
    ///
    /// # Errors
    /// `failed to load cache key: invalid response status 404`, or what the network says.
    pub async fn probe(&self, op: &HttpOp, step: &Step) -> Result<String, OpError> {
        let place = (op.url.clone(), op.filename.clone());
        let known = self.probed.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some(probe) = known {
            return Ok(probe);
        }
        let question = format!("url {} {}", op.filename, op.url);
        let last = self.last_answer(&question).await?;
        let probe = match (self.ask(op, step, last.is_some()).await, last) {
            (Ok(probe), last) => {
                if last.as_ref() != Some(&probe) {
                    let (store, answer) = (self.store.clone(), probe.clone());
                    blocking(move || store.remember_answer(&question, &answer)).await?;
                }
                probe
            }
            (Err(Trouble::Unreachable(reason)), Some(last)) => {
                step.warn(format!("using {} as seen last: {reason}", url::redacted(&op.url)));
                last
            }
            (Err(trouble), _) => return Err(trouble.into()),
        };
        self.probed.lock().unwrap_or_else(PoisonError::into_inner).insert(place, probe.clone());
        Ok(probe)
    }

    /// Fetches the file and makes it a layer: mode 0600, owner root, time `Last-Modified` or the epoch.
    ///
    /// # Errors
    /// As for [`HttpSource::probe`]; `digest mismatch GOT: WANTED` when it is not what `checksum` says.
    pub async fn fetch(&self, op: &HttpOp, step: &Step, cancel: &CancellationToken) -> Result<LayerInfo, OpError> {
        let place = (op.url.clone(), op.filename.clone());
        let known = self.fetched.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
        let fetched = match known {
            Some(fetched) => fetched,
            None => match cancel.run_until_cancelled(self.download(op, step, false)).await {
                Some(result) => result.map_err(OpError::from)?,
                None => return Err(OpError::cancelled()),
            },
        };
        if let Some(wanted) = op.checksum.as_ref().filter(|wanted| **wanted != fetched.digest) {
            let error = OpError::input(format!("digest mismatch {}: {wanted}", fetched.digest));
            return Err(error.help("the server has another file than `--checksum` says: find out which one is right"));
        }
        let path = fetched.draft.tree().join(&op.filename);
        let last_modified = fetched.last_modified;
        blocking(move || set_mtime(&path, last_modified)).await?;
        commit(&self.store, fetched.draft).await
    }

    async fn last_answer(&self, question: &str) -> Result<Option<String>, OpError> {
        let (store, question) = (self.store.clone(), question.to_owned());
        Ok(blocking(move || store.last_answer(&question)).await?)
    }

    /// What the server says now. What had to be fetched for that is kept.
    async fn ask(&self, op: &HttpOp, step: &Step, has_answer: bool) -> Result<String, Trouble> {
        if let Some(validator) = self.validator(op).await? {
            return Ok(validator);
        }
        let fetched = self.download(op, step, has_answer).await?;
        let probe = format!("{} {}", fetched.digest, fetched.last_modified);
        let place = (op.url.clone(), op.filename.clone());
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).insert(place, fetched);
        Ok(probe)
    }

    fn client(&self) -> Result<&Client, OpError> {
        let made = self.client.as_ref();
        made.map_err(|reason| OpError::environment(format!("cannot make an HTTP client: {reason}")))
    }

    /// The strong ETag of the file with its time, if the server tells.
    async fn validator(&self, op: &HttpOp) -> Result<Option<String>, OpError> {
        // A server that cannot be asked this way is asked for the file, and its answer to that is what counts.
        let request = self.client()?.request(Method::HEAD, &op.url).headers(self.authorization(&op.url)?);
        let Ok(Ok(response)) = tokio::time::timeout(STALL_TIMEOUT, request.send()).await else { return Ok(None) };
        if !response.status().is_success() {
            return Ok(None);
        }
        let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
        let strong = etag.filter(|etag| !etag.starts_with("W/") && !etag.is_empty());
        Ok(strong.map(|etag| format!("etag {etag} {}", last_modified(&response))))
    }

    /// Fetches the file; gives up sooner where `has_answer`, an earlier one, can be used instead.
    async fn download(&self, op: &HttpOp, step: &Step, has_answer: bool) -> Result<Fetched, Trouble> {
        if op.filename.is_empty() || op.filename.contains(['/', '\0']) || matches!(op.filename.as_str(), "." | "..") {
            return Err(OpError::internal(format!("`{}` cannot be a file name", op.filename)).into());
        }
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let trouble = match self.attempt(op, step).await {
                Ok(fetched) => return Ok(fetched),
                Err(trouble) => trouble,
            };
            let (reason, most) = match &trouble {
                Trouble::Lasting(_) => return Err(trouble),
                Trouble::Unreachable(reason) if has_answer => (reason, ATTEMPTS_WITH_ANSWER),
                Trouble::Unreachable(reason) | Trouble::Passing(reason) => (reason, ATTEMPTS),
            };
            if attempt >= most {
                return Err(trouble);
            }
            step.log(solver::Stream::Stderr, format!("error: {reason}\nretrying in {pause:?}\n").into_bytes());
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    async fn attempt(&self, op: &HttpOp, step: &Step) -> Result<Fetched, Trouble> {
        let shown = url::redacted(&op.url);
        let request = self.client()?.get(&op.url).headers(self.authorization(&op.url)?);
        let mut response = match tokio::time::timeout(STALL_TIMEOUT, request.send()).await {
            Err(_) => return Err(Trouble::Unreachable(format!("no answer from {shown}"))),
            Ok(Err(error)) if error.is_builder() || error.is_redirect() => {
                return Err(Trouble::Lasting(OpError::input(format!("failed to load cache key: {}", chain(error)))));
            }
            Ok(Err(error)) => return Err(Trouble::Unreachable(format!("cannot reach {shown}: {}", chain(error)))),
            Ok(Ok(response)) => response,
        };
        check_status(response.status())?;
        let last_modified = last_modified(&response);
        let is_gzip = response.headers().get(CONTENT_ENCODING).is_some_and(|value| value.as_bytes() == b"gzip");

        let draft = self.new_tree().await?;
        let path = draft.tree().join(&op.filename);
        let digest = receive(&mut response, &path, &shown, step).await?;
        let digest = if is_gzip { gunzip(&path, &draft.work().join("compressed")).await? } else { digest };
        Ok(Fetched { draft, digest, last_modified })
    }

    async fn new_tree(&self) -> Result<TreeDraft, OpError> {
        let store = self.store.clone();
        Ok(blocking(move || store.new_tree()).await?)
    }

    /// The `Authorization` header that a secret gives for the host of `url`.
    fn authorization(&self, url: &str) -> Result<HeaderMap, OpError> {
        let Some(host) = url::host(url) else { return Ok(HeaderMap::new()) };
        let find = |prefix: &str| {
            [host.as_str(), url::without_port(&host)].iter().find_map(|host| (self.secrets)(&format!("{prefix}{host}")))
        };
        let value = find("HTTP_AUTH_HEADER_")
            .or_else(|| find("HTTP_AUTH_TOKEN_").map(|token| [b"Bearer ".as_slice(), &token].concat()));
        let Some(value) = value else { return Ok(HeaderMap::new()) };
        let mut value = HeaderValue::from_bytes(value.trim_ascii())
            .map_err(|_| OpError::input(format!("the secret for `{host}` is not a valid header")))?;
        value.set_sensitive(true);
        Ok(HeaderMap::from_iter([(AUTHORIZATION as HeaderName, value)]))
    }
}

/// The file's time: `Last-Modified`, else the epoch.
fn last_modified(response: &Response) -> i64 {
    let header = response.headers().get(LAST_MODIFIED).and_then(|value| value.to_str().ok());
    header.and_then(oci::time::parse_http_date).unwrap_or(0)
}

fn check_status(status: StatusCode) -> Result<(), Trouble> {
    let message = format!("invalid response status {}", status.as_u16());
    match status.as_u16() {
        200..=399 => Ok(()),
        408 | 429 | 500 | 502 | 503 | 504 => Err(Trouble::Passing(message)),
        _ => Err(Trouble::Lasting(OpError::input(format!("failed to load cache key: {message}")))),
    }
}

/// Writes the body to a new file and returns its digest.
async fn receive(response: &mut Response, path: &Path, shown: &str, step: &Step) -> Result<Digest, Trouble> {
    let file = create(path)?;
    let mut file = tokio::io::BufWriter::with_capacity(256 << 10, tokio::fs::File::from_std(file));
    let total_bytes = response.content_length().unwrap_or(0);
    let (mut n_bytes, mut n_reported) = (0, 0);
    let mut hasher = Sha256::new();
    loop {
        let chunk = match tokio::time::timeout(STALL_TIMEOUT, response.chunk()).await {
            Err(_) => return Err(Trouble::Passing(format!("{shown} has stopped sending after {n_bytes} bytes"))),
            Ok(Err(error)) => {
                return Err(Trouble::Passing(format!("{shown} broke off after {n_bytes} bytes: {}", chain(error))));
            }
            Ok(Ok(None)) => break,
            Ok(Ok(Some(chunk))) => chunk,
        };
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(io_error("write", path))?;
        n_bytes += chunk.len() as u64;
        if n_bytes - n_reported >= PROGRESS_BYTES {
            n_reported = n_bytes;
            step.status(shown, n_bytes, total_bytes, false);
        }
    }
    file.flush().await.map_err(io_error("write", path))?;
    step.status(shown, n_bytes, n_bytes, true);
    Ok(hasher.finish())
}

/// Decodes a body that the server has compressed for the transfer: the file is what was compressed.
async fn gunzip(path: &Path, compressed: &Path) -> Result<Digest, OpError> {
    let (path, compressed) = (path.to_owned(), compressed.to_owned());
    blocking(move || {
        std::fs::rename(&path, &compressed).map_err(io_error("rename", &path))?;
        let source = File::open(&compressed).map_err(io_error("open", &compressed))?;
        let (_, mut reader) = oci::layer::decompress(source).map_err(io_error("decompress", &compressed))?;
        let mut file = create(&path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n_read = reader.read(&mut buffer).map_err(io_error("decompress", &compressed))?;
            if n_read == 0 {
                break;
            }
            hasher.update(&buffer[..n_read]);
            std::io::Write::write_all(&mut file, &buffer[..n_read]).map_err(io_error("write", &path))?;
        }
        std::fs::remove_file(&compressed).map_err(io_error("remove", &compressed))?;
        Ok(hasher.finish())
    })
    .await
}

fn create(path: &Path) -> Result<File, OpError> {
    let options = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).to_owned();
    options.open(path).map_err(io_error("create", path))
}

fn set_mtime(path: &Path, seconds: i64) -> Result<(), OpError> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
    let file = File::options().write(true).open(path).map_err(io_error("open", path))?;
    file.set_modified(time).map_err(io_error("set the time of", path))
}

/// An error with its causes, because the outermost one only says that something has failed. Without the URL, which may
/// hold a password.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
