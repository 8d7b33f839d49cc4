//! The docker API, as far as loading an image needs it; podman has the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cache::Store;
use oci::{DiffId, Digest};
use reqwest::{Client, ClientBuilder, Response};
use serde::Deserialize;
use solver::{OpError, Step};

use super::place::{EnginePlace, TlsFiles};
use super::ssh::Bridge;
use super::stream;
use crate::export::Archive;

/// For a question to the engine; an image may take as long as it takes.
const ANSWER: Duration = Duration::from_secs(30);

/// Images that are asked for their layers, at most: the newest first.
const MOST_IMAGES: usize = 100;

/// An API that has answered.
pub(super) struct Api {
    client: Client,
    /// What paths are appended to: scheme, host, and the version of the API.
    base: String,
    place: String,
    product: String,
    is_remote: bool,
    _bridge: Option<Bridge>,
}

/// `GET /info`, as far as we look.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    driver_status: Option<Vec<Vec<String>>>,
}

/// An entry of `GET /images/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedImage {
    id: String,
    #[serde(default)]
    created: i64,
}

/// `GET /images/ID/json`, as far as we look.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedImage {
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    #[serde(default)]
    layers: Option<Vec<DiffId>>,
}

/// A line of the answer to a load, or an error.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    stream: Option<String>,
    error: Option<String>,
    /// The API's form of errors that are the whole answer.
    message: Option<String>,
    /// Podman's.
    cause: Option<String>,
}

impl Api {
    /// Asks for a sign of life.
    pub(super) async fn connect(place: &EnginePlace) -> Result<Self, OpError> {
        let builder = Client::builder().connect_timeout(ANSWER).user_agent("rbuild");
        let mut bridge = None;
        let (builder, base) = match place {
            EnginePlace::Socket(path) => (builder.unix_socket(path.clone()), "http://engine".to_owned()),
            EnginePlace::Tcp { address, tls: None } => (builder, format!("http://{address}")),
            EnginePlace::Tcp { address, tls: Some(files) } => (with_tls(builder, files)?, format!("https://{address}")),
            EnginePlace::Ssh { destination, port } => {
                let opened = Bridge::open(destination, *port)
                    .map_err(|error| OpError::environment(format!("cannot make a socket for ssh: {error}")))?;
                let socket = opened.socket();
                bridge = Some(opened);
                (builder.unix_socket(socket), "http://engine".to_owned())
            }
            EnginePlace::Program { .. } => return Err(OpError::internal("a program has no API")),
        };
        let client = builder
            .build()
            .map_err(|error| OpError::environment(format!("cannot talk to {place}: {}", chain(&error))))?;
        let mut api = Self {
            client,
            base,
            place: place.to_string(),
            product: "docker".to_owned(),
            is_remote: matches!(place, EnginePlace::Tcp { .. } | EnginePlace::Ssh { .. }),
            _bridge: bridge,
        };
        api.greet().await?;
        Ok(api)
    }

    /// `docker` or `podman`.
    pub(super) fn product(&self) -> &str {
        &self.product
    }

    /// Whether it is on another machine, as far as its address says.
    pub(super) fn is_remote(&self) -> bool {
        self.is_remote
    }

    async fn greet(&mut self) -> Result<(), OpError> {
        let response = self.get("/_ping").await?;
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        if header("Libpod-API-Version").is_some() {
            self.product = "podman".to_owned();
        }
        // Paths without a version mean whatever the engine likes.
        let version = header("Api-Version");
        let version = version.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
        if let Some(version) = version {
            self.base = format!("{}/v{version}", self.base);
        }
        Ok(())
    }

    /// How many of the lowest of these layers the engine has, in this order from the ground. Engines that find layers by
    /// their chain alone do not open the files of those; others want all files, and have 0.
    pub(super) async fn known_layers(&self, layers: &[DiffId]) -> usize {
        if self.product != "docker" || layers.is_empty() || !self.finds_layers_by_chain().await {
            return 0;
        }
        // What cannot be found out is sent.
        self.longest_known_chain(layers).await.unwrap_or(0)
    }

    /// Whether the engine keeps layers in its own store and not in containerd's.
    async fn finds_layers_by_chain(&self) -> bool {
        let Ok(response) = self.get("/info").await else { return false };
        let Ok(info) = response.json::<Info>().await else { return false };
        let is_containerd = |pair: &Vec<String>| pair.iter().any(|text| text.starts_with("io.containerd.snapshotter"));
        !info.driver_status.unwrap_or_default().iter().any(is_containerd)
    }

    async fn longest_known_chain(&self, layers: &[DiffId]) -> Result<usize, OpError> {
        let mut images: Vec<ListedImage> = self.json("/images/json").await?;
        images.sort_by_key(|image| std::cmp::Reverse(image.created));
        let mut longest = 0;
        for image in images.iter().take(MOST_IMAGES) {
            let image: InspectedImage = self.json(&format!("/images/{}/json", image.id)).await?;
            let theirs = image.root_fs.layers.unwrap_or_default();
            longest = longest.max(layers.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count());
            if longest == layers.len() {
                break;
            }
        }
        Ok(longest)
    }

    /// Sends an archive without some of its layers.
    pub(super) async fn load(
        &self,
        archive: Archive,
        omitted: BTreeSet<Digest>,
        store: &Store,
        step: &Step,
    ) -> Result<(), OpError> {
        let (pieces, writer) = stream::write(archive, omitted, store, step);
        let next = async |mut pieces: tokio::sync::mpsc::Receiver<Bytes>| {
            let piece = pieces.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), pieces))
        };
        let body = reqwest::Body::wrap_stream(futures_util::stream::unfold(pieces, next));
        let request = self.client.post(format!("{}/images/load?quiet=1", self.base));
        let sent = request.header("Content-Type", "application/x-tar").body(body).send().await;
        let outcome = match sent {
            Ok(response) => self.read_answer(response).await,
            Err(error) => Err(self.broken(&error)),
        };
        // A writer that failed has cut the archive short, which the engine then complains about.
        match (writer.await, outcome) {
            (Ok(Err(error)), Err(_)) if !stream::is_broken_pipe(&error) => Err(error),
            (_, outcome) => outcome,
        }
    }

    async fn read_answer(&self, response: Response) -> Result<(), OpError> {
        let status = response.status();
        let text = response.text().await.map_err(|error| self.broken(&error))?;
        let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let refusal = lines.iter().find_map(|line| line.error.as_ref().or(line.cause.as_ref()));
        if status.is_success() && refusal.is_none() {
            for line in lines.iter().filter_map(|line| line.stream.as_deref()) {
                tracing::debug!(line = line.trim(), "the engine says");
            }
            return Ok(());
        }
        let message = refusal.or_else(|| lines.iter().find_map(|line| line.message.as_ref()));
        let reason = message.map_or_else(|| status.to_string(), Clone::clone);
        Err(OpError::environment(format!("{} at {} refuses the image: {}", self.product, self.place, reason.trim())))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, OpError> {
        self.get(path).await?.json().await.map_err(|error| self.broken(&error))
    }

    async fn get(&self, path: &str) -> Result<Response, OpError> {
        let response = self.client.get(format!("{}{path}", self.base)).timeout(ANSWER).send().await;
        let response = response.map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let message = format!("{} answers {} to GET {path}", self.place, response.status());
        Err(OpError::environment(message).help("is this the address of a docker or podman API?"))
    }

    fn broken(&self, error: &reqwest::Error) -> OpError {
        let reason = chain(error);
        let failure = OpError::environment(format!("cannot talk to the container engine at {}: {reason}", self.place));
        match reason.contains("ermission denied") {
            true => {
                failure.help("its socket is for others: become a member of its group, or use an engine of your own")
            }
            false => failure,
        }
    }
}

/// An error with what has caused it: the outer ones name addresses only.
fn chain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn with_tls(builder: ClientBuilder, files: &TlsFiles) -> Result<ClientBuilder, OpError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| OpError::environment(format!("cannot read {}: {error}", path.display())))
    };
    let wrong = |path: &PathBuf, error: reqwest::Error| {
        OpError::environment(format!("{} is not as PEM files are: {}", path.display(), chain(&error)))
    };
    let mut builder = builder.tls_danger_accept_invalid_certs(files.skip_verify);
    if let Some(ca) = &files.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(ca)?).map_err(|error| wrong(ca, error))?;
        builder = builder.tls_certs_only(certificates);
    }
    if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
        let both = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&both).map_err(|error| wrong(cert, error))?);
    }
    Ok(builder)
}
