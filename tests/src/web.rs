//! The web server of the cases that add files from URLs: their `www/` at `http://localhost:PORT/CASE/`.
//!
//! The first part of a path after the case's name may be a mode: `nodate` leaves `Last-Modified` out, `redirect` answers
//! 302, `named` adds a `Content-Disposition`. Below `v2` it is as much of a registry as a pull needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

/// The server. It serves until the program ends.
pub struct Web {
    port: u16,
    roots: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

/// One answer.
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Web {
    /// Listens on a free port of loopback.
    pub fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let web = Self { port: listener.local_addr()?.port(), roots: Arc::default() };
        let roots = web.roots.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let roots = roots.clone();
                std::thread::spawn(move || drop(answer(stream, &roots)));
            }
        });
        Ok(web)
    }

    /// Serves `root` for `case`; returns its URL.
    pub fn serve(&self, case: &str, root: PathBuf) -> String {
        self.roots.lock().expect("no server thread panics").insert(case.to_owned(), root);
        format!("http://localhost:{}/{case}", self.port)
    }
}

fn answer(stream: TcpStream, roots: &Mutex<BTreeMap<String, PathBuf>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (case, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let root = roots.lock().expect("no server thread panics").get(case).cloned();
    let answer = root.map_or_else(|| error("404 File not found"), |root| file(&root, case, path));
    let mut head = format!("HTTP/1.0 {}\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (key, value) in &answer.headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    if method == "GET" {
        stream.write_all(&answer.body)?;
    }
    stream.flush()
}

fn file(root: &Path, case: &str, path: &str) -> Answer {
    let (mode, rest) = match path.split_once('/') {
        Some((mode @ ("nodate" | "redirect" | "named"), rest)) => (mode, rest),
        _ => ("", path),
    };
    if mode == "redirect" {
        let location = ("Location", format!("/{case}/{rest}"));
        return Answer { status: "302 Found", headers: vec![location], body: Vec::new() };
    }
    let index = if rest.ends_with('/') { "index.html" } else { "" };
    let path = root.join(unescaped(&format!("{rest}{index}")));
    let outside = rest.split('/').any(|part| part == "..");
    let (Ok(body), Ok(meta)) = (std::fs::read(&path), std::fs::metadata(&path)) else {
        return error("404 File not found");
    };
    if outside {
        return error("404 File not found");
    }
    let modified = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut headers = vec![("Content-type", content_type(rest).to_owned())];
    if mode == "named" {
        headers.push(("Content-Disposition", "attachment; filename=\"other-name.txt\"".to_owned()));
    }
    if mode != "nodate" {
        headers.push(("Last-Modified", http_date(modified.as_secs())));
    }
    Answer { status: "200 OK", headers, body }
}

fn error(status: &'static str) -> Answer {
    Answer { status, headers: vec![("Content-Type", "text/html;charset=utf-8".to_owned())], body: status.into() }
}

fn content_type(path: &str) -> &'static str {
    if path.contains("/manifests/") {
        return "application/vnd.oci.image.manifest.v1+json";
    }
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "txt" => "text/plain",
        "tar" => "application/x-tar",
        "gz" => "application/gzip",
        "bz2" => "application/x-bzip2",
        "xz" => "application/x-xz",
        _ => "application/octet-stream",
    }
}

/// `path` with `%xx` replaced.
fn unescaped(path: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(seconds: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[month]);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", left + 1)
}

#[test]
fn dates_are_those_of_http() {
    assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(http_date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
}
