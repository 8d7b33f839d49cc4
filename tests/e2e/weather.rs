//! A proxy in front of a registry in which requests fail: which ones and how is decided by a seed and the number of the
//! request. Each connection carries one request, so that nothing of a failure is left for the next.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that came, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body_bytes: usize,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The registry answers.
    Fair,
    /// It is answered so, and the registry does not hear of it.
    Status(u16),
    /// The connection ends; the registry has not heard of it.
    Lost,
    /// The registry answers, and the connection ends before, or behind so many percent of, the answer.
    AnswerLost,
    Truncated(u64),
    /// Nothing comes for so long.
    Stalled(Duration),
    /// The answer says that it begins elsewhere.
    WrongRange,
    /// It takes so long until the registry hears of it.
    Slow(Duration),
    /// The body of the answer comes byte by byte, each after so long.
    Trickling(Duration),
}

/// A running proxy; ends with the program.
pub(crate) struct Weather {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Weather {
    /// In front of the registry at `upstream`. `fate` is asked once for every request.
    pub(crate) fn start(upstream: &str, fate: impl Fn(u64, &Seen) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, fate, upstream) = (seen.clone(), Arc::new(fate), upstream.to_owned());
        let number = Arc::new(AtomicU64::new(0));
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let (log, fate, upstream, number) = (log.clone(), fate.clone(), upstream.clone(), number.clone());
                std::thread::spawn(move || {
                    serve(client, &upstream, &log, |seen| fate(number.fetch_add(1, Ordering::Relaxed), seen))
                });
            }
        });
        Self { host, seen }
    }

    /// Three requests in ten fail.
    pub(crate) fn stormy(upstream: &str, seed: u64) -> Self {
        Self::start(upstream, move |number, seen| fate_of(mix(seed << 32 | number), seen))
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// How many requests of uploads carried bytes of a blob.
    pub(crate) fn uploads(&self) -> usize {
        let is_upload = |seen: &&Seen| seen.target.contains("/blobs/uploads/") && seen.body_bytes > 0;
        self.seen().iter().filter(is_upload).count()
    }
}

/// A number for a number (splitmix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fate_of(dice: u64, seen: &Seen) -> Fate {
    if dice % 100 >= 30 {
        return Fate::Fair;
    }
    match mix(dice) % 10 {
        0 => Fate::Status(503),
        1 => Fate::Status(429),
        2 => Fate::Status(408),
        3 => Fate::Status(502),
        4 => Fate::Lost,
        5 => Fate::AnswerLost,
        6 => Fate::Truncated(0),
        7 => Fate::Truncated(60),
        8 if seen.headers.contains_key("range") => Fate::WrongRange,
        8 => Fate::Stalled(Duration::from_millis(1500)),
        _ if seen.target.contains("/blobs/uploads/") && seen.method != "POST" => Fate::Status(404),
        _ => Fate::Status(500),
    }
}

fn serve(client: TcpStream, upstream: &str, log: &Mutex<Vec<Seen>>, fate: impl Fn(&Seen) -> Fate) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut client = client;
    let (head, mut seen) = read_head(&mut reader)?;
    let length = seen.headers.get("content-length").map_or(0, |text| text.parse().expect("digits"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    seen.body_bytes = length;
    log.lock().expect("no panic").push(seen.clone());
    let fate = fate(&seen);
    match fate {
        Fate::Lost => return None,
        Fate::Status(status) => {
            let pause = if status == 429 { "Retry-After: 0\r\n" } else { "" };
            let answer = format!("HTTP/1.1 {status} X\r\n{pause}Content-Length: 0\r\nConnection: close\r\n\r\n");
            return client.write_all(answer.as_bytes()).ok();
        }
        Fate::Slow(time) => std::thread::sleep(time),
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).ok()?;
    server.write_all(head.as_bytes()).ok()?;
    server.write_all(&body).ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok()?;
    match fate {
        Fate::AnswerLost => return None,
        Fate::Truncated(percent) => {
            let head = head_bytes(&answer);
            answer.truncate(head + (answer.len() - head) * percent as usize / 100);
        }
        Fate::Stalled(time) => {
            let half = answer.len() / 2;
            client.write_all(&answer[..half]).ok()?;
            std::thread::sleep(time);
            return None;
        }
        Fate::Trickling(pause) => {
            let head = head_bytes(&answer);
            client.write_all(&answer[..head]).ok()?;
            for byte in &answer[head..] {
                std::thread::sleep(pause);
                client.write_all(&[*byte]).ok()?;
            }
            return Some(());
        }
        Fate::WrongRange => {
            let head = head_bytes(&answer);
            let text =
                String::from_utf8_lossy(&answer[..head]).replace("Content-Range: bytes ", "Content-Range: bytes 1");
            answer.splice(..head, text.into_bytes());
        }
        _ => {}
    }
    client.write_all(&answer).ok()?;
    client.shutdown(Shutdown::Write).ok()
}

/// Length of the head of an answer.
fn head_bytes(answer: &[u8]) -> usize {
    answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4)
}

/// The head as it goes on, asking for an end of the connection, and what it says.
fn read_head(reader: &mut impl BufRead) -> Option<(String, Seen)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut head = line.clone();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
        if !name.eq_ignore_ascii_case("connection") {
            head += &line;
        }
    }
    head += "Connection: close\r\n\r\n";
    Some((head, Seen { method, target, headers, body_bytes: 0 }))
}
