//! A small HTTP/1.1 server on loopback that can misbehave on request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request that arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The values of a query parameter, percent-decoded as far as digests and scopes need it.
    pub(super) fn query(&self, name: &str) -> Vec<String> {
        parameters(self.target.split_once('?').map_or("", |(_, query)| query), name)
    }

    /// The values of a parameter of a form in the body.
    pub(super) fn form(&self, name: &str) -> Vec<String> {
        parameters(std::str::from_utf8(&self.body).unwrap_or_default(), name)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn parameters(text: &str, name: &str) -> Vec<String> {
    let decode = |text: &str| {
        text.replace('+', " ").replace("%3A", ":").replace("%2F", "/").replace("%2C", ",").replace("%40", "@")
    };
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| decode(value))
        .collect()
}

/// What goes back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Send so many bytes of the body only, then close.
    pub(super) cut_at: Option<usize>,
    /// Close without any answer.
    pub(super) close: bool,
    /// Send the head, and then nothing more, without closing.
    pub(super) hang: bool,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut_at: None, close: false, hang: false }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

pub(super) struct Server {
    /// `127.0.0.1:PORT`.
    pub(super) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// The server ends with the value.
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1", handler).await
    }

    /// Another loopback address is another host.
    pub(super) async fn start_on(address: &str, handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a free port");
        let host = listener.local_addr().expect("an address").to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler) = (seen.clone(), Arc::new(handler));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, handler.clone(), log.clone()));
            }
        });
        Self { host, seen, _tasks: tasks }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// `METHOD path` of every request so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path())).collect()
    }

    pub(super) fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }
}

async fn serve(
    stream: TcpStream,
    handler: Arc<impl Fn(&Seen) -> Answer + Send + Sync>,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Option<()> {
    let mut stream = BufStream::new(stream);
    loop {
        let seen = read_request(&mut stream).await?;
        log.lock().expect("no panic").push(seen.clone());
        let answer = handler(&seen);
        if answer.close {
            return None;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        let has_length = answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !has_length {
            head += &format!("Content-Length: {}\r\n", answer.body.len());
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
        if seen.method != "HEAD" {
            let len = answer.cut_at.unwrap_or(answer.body.len()).min(answer.body.len());
            stream.write_all(&answer.body[..len]).await.ok()?;
        }
        stream.flush().await.ok()?;
        if answer.hang {
            std::future::pending::<()>().await;
        }
        if answer.cut_at.is_some() {
            return None;
        }
    }
}

async fn read_request(stream: &mut BufStream<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |text| text.parse().expect("digits"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen { method, target, headers, body })
}
