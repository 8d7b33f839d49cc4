//! A registry in memory: the distribution protocol without shortcuts, plus faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::server::{Answer, Seen, Server};
use crate::digest::Digest;
use crate::image::{Descriptor, Manifest};
use crate::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};

/// Who is let in.
#[derive(Clone, Default)]
pub(super) enum Door {
    #[default]
    Open,
    /// `user:password`.
    Basic(String),
    /// Tokens of the token server at this URL.
    Bearer { realm: String },
}

#[derive(Default)]
pub(super) struct State {
    pub(super) manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    pub(super) blobs: BTreeMap<(String, String), Vec<u8>>,
    pub(super) door: Door,
    /// Valid token → scopes.
    pub(super) tokens: BTreeMap<String, BTreeSet<String>>,
    pub(super) n_tokens: usize,
    /// Whether mounts are done (201) or only promised (202).
    pub(super) mounts: bool,
    /// Whether uploads are taken in chunks.
    pub(super) chunks: bool,
    uploads: usize,
    /// Unfinished uploads by path.
    pub(super) sessions: BTreeMap<String, Vec<u8>>,
    faults: Vec<Fault>,
}

struct Fault {
    method: &'static str,
    path_part: String,
    times: usize,
    change: Box<Change>,
}

type Change = dyn Fn(&Seen, Answer) -> Answer + Send;

/// A running registry; `state` may be changed at any time.
pub(super) struct Fake {
    pub(super) server: Server,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let state = Arc::new(Mutex::new(State { mounts: true, chunks: true, ..State::default() }));
        let shared = state.clone();
        let server = Server::start(move |seen| shared.lock().expect("no panic").answer(seen)).await;
        Self { server, state }
    }

    /// One that does with every request what `weather` makes of it: it is given the request, and may ask for the answer.
    pub(super) async fn in_weather(weather: impl Fn(&Seen, &mut State) -> Answer + Send + Sync + 'static) -> Self {
        let state = Arc::new(Mutex::new(State { mounts: true, chunks: true, ..State::default() }));
        let shared = state.clone();
        let server = Server::start(move |seen| weather(seen, &mut shared.lock().expect("no panic"))).await;
        Self { server, state }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub(super) fn host(&self) -> &str {
        &self.server.host
    }

    /// Changes the next `times` answers to requests of this method whose path contains `path_part`.
    pub(super) fn fault(
        &self,
        method: &'static str,
        path_part: &str,
        times: usize,
        change: impl Fn(&Seen, Answer) -> Answer + Send + 'static,
    ) {
        let fault = Fault { method, path_part: path_part.to_owned(), times, change: Box::new(change) };
        self.state().faults.push(fault);
    }

    pub(super) fn add_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Descriptor {
        let blob = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        self.state().blobs.insert((repository.to_owned(), blob.digest.to_string()), bytes.to_vec());
        blob
    }

    pub(super) fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Descriptor {
        let manifest = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        let entry = (media_type.to_owned(), bytes.to_vec());
        for reference in [tag.to_owned(), manifest.digest.to_string()] {
            self.state().manifests.insert((repository.to_owned(), reference), entry.clone());
        }
        manifest
    }

    /// An image with one layer.
    pub(super) fn add_image(&self, repository: &str, tag: &str, layer: &[u8]) -> (Descriptor, Manifest) {
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: self.add_blob(repository, OCI_CONFIG, b"{}"),
            layers: vec![self.add_blob(repository, OCI_LAYER, layer)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = crate::image::to_manifest_json(&manifest);
        (self.add_manifest(repository, tag, OCI_MANIFEST, &bytes), manifest)
    }
}

impl State {
    pub(super) fn answer(&mut self, seen: &Seen) -> Answer {
        let answer = match self.refuse(seen) {
            Some(refusal) => refusal,
            None => self.protocol(seen),
        };
        let hit = |fault: &&mut Fault| {
            fault.times > 0 && fault.method == seen.method && seen.path().contains(&fault.path_part)
        };
        match self.faults.iter_mut().find(hit) {
            Some(fault) => {
                fault.times -= 1;
                (fault.change)(seen, answer)
            }
            None => answer,
        }
    }

    fn refuse(&self, seen: &Seen) -> Option<Answer> {
        let header = seen.header("authorization");
        match &self.door {
            Door::Open => None,
            Door::Basic(pair) => {
                let expected = format!("Basic {}", STANDARD.encode(pair));
                let refusal = Answer::new(401).header("WWW-Authenticate", "Basic realm=\"test\"");
                (header != Some(&expected)).then_some(refusal)
            }
            Door::Bearer { realm } => {
                let needed = needed_scopes(seen);
                let held =
                    header.and_then(|header| header.strip_prefix("Bearer ")).and_then(|token| self.tokens.get(token));
                if held.is_some_and(|held| held.is_superset(&needed)) {
                    return None;
                }
                let scope = needed.into_iter().collect::<Vec<_>>().join(" ");
                let challenge = format!("Bearer realm=\"{realm}\",service=\"fake\",scope=\"{scope}\"");
                let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                Some(Answer::new(401).header("WWW-Authenticate", &challenge).body(body))
            }
        }
    }

    /// Makes a token; actions are flattened to `repository:NAME:ACTION`.
    pub(super) fn issue(&mut self, scopes: &[String]) -> String {
        self.n_tokens += 1;
        let token = format!("token-{}", self.n_tokens);
        let flat = scopes.iter().flat_map(|text| text.split(' ')).flat_map(|scope| {
            let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
            actions.split(',').map(move |action| format!("{resource}:{action}"))
        });
        self.tokens.insert(token.clone(), flat.collect());
        token
    }

    fn protocol(&mut self, seen: &Seen) -> Answer {
        let path = seen.path().trim_start_matches("/v2/").to_owned();
        if let Some((repository, _)) = path.split_once("/blobs/uploads/") {
            return self.upload(seen, repository);
        }
        if let Some((repository, digest)) = path.split_once("/blobs/") {
            return match self.blobs.get(&(repository.to_owned(), digest.to_owned())) {
                Some(bytes) => blob_answer(seen, bytes),
                None => missing("BLOB_UNKNOWN"),
            };
        }
        let Some((repository, reference)) = path.split_once("/manifests/") else {
            return Answer::new(200);
        };
        let key = (repository.to_owned(), reference.to_owned());
        if seen.method == "PUT" {
            let media_type = seen.header("content-type").unwrap_or_default().to_owned();
            let digest = Digest::of(&seen.body).to_string();
            for name in [reference.to_owned(), digest.clone()] {
                self.manifests.insert((repository.to_owned(), name), (media_type.clone(), seen.body.clone()));
            }
            return Answer::new(201).header("Docker-Content-Digest", &digest);
        }
        match self.manifests.get(&key) {
            Some((media_type, bytes)) => Answer::new(200)
                .header("Content-Type", media_type)
                .header("Docker-Content-Digest", &Digest::of(bytes).to_string())
                .body(bytes.clone()),
            None => missing("MANIFEST_UNKNOWN"),
        }
    }

    fn upload(&mut self, seen: &Seen, repository: &str) -> Answer {
        if seen.method == "POST" {
            if let ([digest], [from]) = (&seen.query("mount")[..], &seen.query("from")[..])
                && self.mounts
                && let Some(bytes) = self.blobs.get(&(from.clone(), digest.clone())).cloned()
            {
                self.blobs.insert((repository.to_owned(), digest.clone()), bytes);
                return Answer::new(201);
            }
            self.uploads += 1;
            let location = format!("/v2/{repository}/blobs/uploads/{}?state=a%2Bb", self.uploads);
            self.sessions.insert(location.split('?').next().expect("a path").to_owned(), Vec::new());
            return Answer::new(202).header("Location", &location);
        }
        if !self.chunks && seen.method == "PATCH" {
            return Answer::new(405).body(r#"{"errors":[{"code":"UNSUPPORTED","message":"no chunks"}]}"#);
        }
        if seen.query("state") != ["a%2Bb"] {
            return Answer::new(400).body(r#"{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"not the address"}]}"#);
        }
        let Some(session) = self.sessions.get_mut(seen.path()) else { return missing("BLOB_UPLOAD_UNKNOWN") };
        let location = seen.target.clone();
        let so_far = |session: &Vec<u8>, status| {
            let answer = Answer::new(status).header("Location", &location);
            answer.header("Range", &format!("0-{}", session.len().saturating_sub(1)))
        };
        match seen.method.as_str() {
            "GET" => return so_far(session, 204),
            "PATCH" => {
                let expected = format!("{}-{}", session.len(), session.len() + seen.body.len() - 1);
                if seen.header("content-range") != Some(&expected) {
                    return so_far(session, 416);
                }
                session.extend_from_slice(&seen.body);
                return so_far(session, 202);
            }
            "DELETE" => {
                self.sessions.remove(seen.path());
                return Answer::new(204);
            }
            _ => {}
        }
        let digest = seen.query("digest").concat();
        let mut bytes = self.sessions.remove(seen.path()).unwrap_or_default();
        bytes.extend_from_slice(&seen.body);
        if Digest::of(&bytes).to_string() != digest {
            return Answer::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"not the digest"}]}"#);
        }
        self.blobs.insert((repository.to_owned(), digest), bytes);
        Answer::new(201)
    }
}

fn needed_scopes(seen: &Seen) -> BTreeSet<String> {
    let path = seen.path().trim_start_matches("/v2/");
    let end = ["/blobs/", "/manifests/"].iter().find_map(|part| path.find(part)).unwrap_or(path.len());
    let resource = format!("repository:{}", &path[..end]);
    let mut needed = BTreeSet::from([format!("{resource}:pull")]);
    if !matches!(seen.method.as_str(), "GET" | "HEAD") {
        needed.insert(format!("{resource}:push"));
    }
    needed.extend(seen.query("from").iter().map(|from| format!("repository:{from}:pull")));
    needed
}

fn blob_answer(seen: &Seen, bytes: &[u8]) -> Answer {
    let start = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        Some(start) if start < bytes.len() => Answer::new(206)
            .header("Content-Range", &format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(&bytes[start..]),
        Some(_) => Answer::new(416),
        None => Answer::new(200).body(bytes),
    }
}

fn missing(code: &str) -> Answer {
    Answer::new(404).body(format!(r#"{{"errors":[{{"code":"{code}","message":"no such thing"}}]}}"#))
}
