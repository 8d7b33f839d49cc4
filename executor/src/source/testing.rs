//! What the tests of sources share: a store, an HTTP server on loopback, steps whose events can be read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use cache::Store;
use solver::{Event, Progress, Step};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// An empty store in a directory of its own.
pub(super) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Says why a test has nothing to do here.
#[expect(clippy::print_stderr, reason = "whoever runs the tests has to see what was left out")]
pub(super) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// A step, and what it reports.
pub(super) fn step() -> (Step, Receiver<Event>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(10_000);
    (Progress::new(sender).start("test"), receiver)
}

/// A step that nobody looks at.
pub(super) fn silent() -> Step {
    Progress::silent().start("test")
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server that answers by path, and 404 for the rest. Stops when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    /// The last answer of a path is given again and again, those before it once.
    routes: Mutex<BTreeMap<String, Vec<Reply>>>,
    /// `METHOD /path`, with the value of an `authorization` header behind it.
    seen: Mutex<Vec<String>>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serving = state.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, serving.clone()));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn route(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.state.routes.lock().unwrap().insert(path.to_owned(), replies.into_iter().collect());
    }

    /// What has been asked since the last call.
    pub(super) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        let (mut authorization, mut n_body) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            match line.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    authorization = format!(" {value}");
                }
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => n_body = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; n_body];
        reader.read_exact(&mut body).await.unwrap();
        let words: Vec<&str> = request.split_whitespace().collect();
        let (method, path) = (words[0], words[1]);
        state.seen.lock().unwrap().push(format!("{method} {path}{authorization}"));
        let reply = match state.routes.lock().unwrap().get_mut(path) {
            None => Reply::status(404),
            Some(replies) if replies.len() > 1 && method != "HEAD" => replies.remove(0),
            Some(replies) => replies[0].clone(),
        };
        let mut text = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
        reply.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        let mut bytes = (text + "\r\n").into_bytes();
        if method != "HEAD" {
            bytes.extend(&reply.body);
        }
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
