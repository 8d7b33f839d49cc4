//! A token server of the tests' own: it signs what `docker-registry` checks. Tokens live for a few seconds.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::harness::{Space, succeed};

/// A running server; ends with the program.
pub(crate) struct TokenServer {
    host: String,
    dir: PathBuf,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
}

impl TokenServer {
    /// `user:password` that it knows, in Base64.
    pub(crate) const BASIC: &str = "YnVpbGRlcjpodW50ZXIy";
    /// The identity token that it knows.
    pub(crate) const IDENTITY: &str = "identity-of-builder";

    /// Starts one, with a key of its own.
    pub(crate) fn start(space: &Space) -> Self {
        let dir = space.path("tokens");
        std::fs::create_dir_all(&dir).expect("a directory");
        let script =
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=tokens 2>&1
            openssl x509 -in cert.pem -outform DER | base64 -w0 > cert.b64";
        succeed(Command::new("sh").args(["-ec", script]).current_dir(&dir));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, files) = (asked.clone(), dir.clone());
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                serve(client, &files, &log);
            }
        });
        Self { host, dir, asked }
    }

    /// What a registry is told that wants its tokens.
    pub(crate) fn registry_settings(&self) -> String {
        format!(
            "auth: {{token: {{realm: 'http://{}/token', service: test, issuer: tests, rootcertbundle: '{}'}}}}",
            self.host,
            self.dir.join("cert.pem").display()
        )
    }

    /// The scopes of each question.
    pub(crate) fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn serve(client: TcpStream, dir: &Path, log: &Mutex<Vec<Vec<String>>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut client = client;
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().expect("digits"),
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let target = line.split(' ').nth(1)?;
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let text = if line.starts_with("POST") { String::from_utf8_lossy(&body).into_owned() } else { query.to_owned() };
    let form: Vec<(String, String)> = text
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    let values = |wanted: &str| {
        form.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let scopes: Vec<String> = values("scope").iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect();
    let is_known = authorization == format!("Basic {}", TokenServer::BASIC)
        || values("refresh_token") == [TokenServer::IDENTITY]
        || values("password") == ["hunter2"];
    let is_wrong = !is_known && (!authorization.is_empty() || line.starts_with("POST"));
    log.lock().expect("no panic").push(scopes.clone());
    let (status, answer) = match is_wrong {
        true => (401, r#"{"details":"who are you"}"#.to_owned()),
        false => {
            let token = token(dir, if is_known { &scopes } else { &[] });
            (200, format!(r#"{{"token":"{token}","expires_in":2}}"#))
        }
    };
    let length = answer.len();
    write!(client, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}").ok()
}

fn decoded(text: &str) -> String {
    text.replace('+', " ").replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")
}

/// A JSON web token for the scopes, signed by `openssl`.
fn token(dir: &Path, scopes: &[String]) -> String {
    let access: Vec<_> = scopes
        .iter()
        .filter_map(|scope| {
            let (resource, actions) = scope.rsplit_once(':')?;
            let (kind, name) = resource.split_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(serde_json::json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let certificate = std::fs::read_to_string(dir.join("cert.b64")).expect("a certificate");
    let header = serde_json::json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
    let claims = serde_json::json!({
        "iss": "tests", "sub": "builder", "aud": "test", "exp": now + 60, "nbf": now - 60, "iat": now, "jti": "1", "access": access,
    });
    let signed = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(dir.join("key.pem"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    openssl.stdin.take().expect("a pipe").write_all(signed.as_bytes()).expect("written");
    let signature = openssl.wait_with_output().expect("an end").stdout;
    format!("{signed}.{}", base64(&signature))
}

/// Base64 for URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().chain([0; 2].iter()).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for n in 0..=three.len() {
            text.push(char::from(LETTERS[(bits >> (18 - 6 * n) & 63) as usize]));
        }
    }
    text
}
