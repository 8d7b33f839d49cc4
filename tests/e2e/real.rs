//! Real applications: every folder of `testdata/real` is built, and its image is run.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::harness::{Need, Space, note, workspace};
use crate::need;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[expect(dead_code, reason = "for the reader of the case")]
    about: String,
    #[expect(dead_code, reason = "`cargo xtask bases` makes all of them")]
    bases: Vec<String>,
    needs: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Texts that must be nowhere in layers, config, history, logs and the store's own files.
    #[serde(default)]
    absent: Vec<String>,
    /// A listing that the last step made of what it sees; the flattened image must agree with it.
    flattened: Option<String>,
    serve: Option<String>,
    #[serde(default)]
    check: Vec<Check>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Check {
    entrypoint: Option<String>,
    run: Option<Vec<String>>,
    stdout: Option<String>,
    http: Option<Http>,
    config: BTreeMap<String, String>,
    /// All files of the image, as paths without a leading slash.
    files: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Http {
    port: u16,
    path: String,
    contains: String,
}

/// One test a folder keeps the output readable and lets them run at once.
macro_rules! cases {
    ($($name:ident => $folder:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            case($folder);
        })+

        #[test]
        fn every_folder_has_a_test() {
            let known = [$($folder),+];
            for entry in std::fs::read_dir(workspace().join("testdata/real")).expect("cases") {
                let name = entry.expect("entry").file_name().into_string().expect("utf-8");
                assert!(known.contains(&name.as_str()), "testdata/real/{name} is not listed in tests/e2e/real.rs");
            }
        }
    };
}

cases! {
    flask => "flask",
    flask_two_stage => "flask-two-stage",
    django => "django",
    ml_api => "ml-api",
    node => "node",
    go => "go",
    go_distroless => "go-distroless",
    secret => "secret",
    ssh => "ssh",
    thirty_steps => "thirty-steps",
}

fn case(folder: &str) {
    need!(Need::Root, Need::Bases);
    let source = workspace().join("testdata/real").join(folder);
    let text = std::fs::read_to_string(source.join("case.toml")).expect("case.toml");
    let case: Case = toml::from_str(&text).expect("case.toml");
    if case.needs.iter().any(|need| need == "sshd") {
        need!(Need::Program("sshd"), Need::Program("git"));
    }
    let space = Space::shared();
    let image = format!("e2e-{folder}:test");
    let context = space.path("context");
    copy(&source, &context);

    let served = case.serve.as_deref().map(|_| crate::harness::Sshd::start(&space));
    let mut build = space.command(["--progress=plain", "-t", &image, "context"]);
    build.args(&case.args).envs(&case.env);
    if let Some(sshd) = &served {
        build.envs(sshd.environment()).args(sshd.build_args());
    }
    let output = build.output().expect("rbuild starts");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");

    for text in &case.absent {
        assert!(!log.contains(text.as_str()), "`{text}` is in the log");
        assert_absent(&space, &image, text);
    }
    if let Some(listing) = &case.flattened {
        assert_flattened(&space, &image, listing);
    }
    for check in &case.check {
        assert_check(&space, &image, check);
    }
    space.rbuild(["rmi", &image]).success();
}

fn assert_check(space: &Space, image: &str, check: &Check) {
    if let Some(args) = &check.run {
        let mut run = vec!["run".to_owned(), "--rm".to_owned()];
        if let Some(entrypoint) = &check.entrypoint {
            run.extend(["--entrypoint".to_owned(), entrypoint.clone()]);
        }
        run.push(image.to_owned());
        run.extend(args.iter().cloned());
        let stdout = space.rbuild(&run).success();
        if let Some(expected) = &check.stdout {
            assert_eq!(&stdout, expected, "{args:?}");
        }
    }
    if let Some(http) = &check.http {
        let _server = Server::start(space, image);
        let answer = get(http);
        assert!(answer.contains(&http.contains), "{answer}");
    }
    if !check.config.is_empty() {
        let config = &space.inspect(image)["Config"];
        for (key, expected) in &check.config {
            let expected: serde_json::Value = serde_json::from_str(expected).expect("JSON in case.toml");
            assert_eq!(config[key], expected, "{key}");
        }
    }
    if let Some(files) = &check.files {
        assert_eq!(&exported_files(space, image), files);
    }
}

/// The application of an image, running.
struct Server(Child);

impl Server {
    fn start(space: &Space, image: &str) -> Self {
        let mut run = space.command(["run", "--rm", image]);
        Self(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rbuild run"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let terminated = Command::new("kill").arg(self.0.id().to_string()).status();
        drop(terminated);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Fetches a page over loopback, waiting for the server to come up.
fn get(http: &Http) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut answer = String::new();
        let fetched = TcpStream::connect(("127.0.0.1", http.port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", http.path)?;
            stream.read_to_string(&mut answer)
        });
        if fetched.is_ok() && !answer.is_empty() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no answer on port {}", http.port);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn exported_files(space: &Space, image: &str) -> Vec<String> {
    let tar = export(space, image);
    let mut archive = tar::Archive::new(std::fs::File::open(tar).expect("tar"));
    let entries = archive.entries().expect("entries").map(|entry| entry.expect("entry"));
    entries.map(|entry| entry.path().expect("path").display().to_string()).collect()
}

/// The files of an image, as a tar.
fn export(space: &Space, image: &str) -> std::path::PathBuf {
    let tar = space.path("export.tar");
    space.write("export/Dockerfile", format!("FROM {image}\n"));
    space.rbuild(["-q", "-o", &format!("type=tar,dest={}", tar.display()), "export"]).success();
    tar
}

/// A text is in no layer, no config, no history, and in no record of the store.
/// Neither the layers of an image nor the files of the store hold `text`.
pub(crate) fn assert_absent(space: &Space, image: &str, text: &str) {
    let archive = space.path("absent.tar");
    space.write("absent/Dockerfile", format!("FROM {image}\n"));
    let output = format!("type=oci,compression=uncompressed,dest={}", archive.display());
    space.rbuild(["-q", "-o", &output, "absent"]).success();
    assert!(!contains(&archive, text), "`{text}` is in the image");
    for entry in std::fs::read_dir(space.store()).expect("store") {
        let path = entry.expect("entry").path();
        assert!(!path.is_file() || !contains(&path, text), "`{text}` is in {}", path.display());
    }
}

fn contains(file: &Path, text: &str) -> bool {
    let bytes = std::fs::read(file).expect("file");
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The image unpacked by GNU tar shows the same entries as the last step saw.
fn assert_flattened(space: &Space, image: &str, listing: &str) {
    let root = space.path("flattened");
    std::fs::create_dir_all(&root).expect("directory");
    let args = ["--extract", "--same-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"];
    let status = Command::new("tar").args(args).arg(export(space, image)).arg("--directory").arg(&root).status();
    assert!(status.expect("tar").success());
    let script = "find srv home/worker -printf '/%p %y %m %U %G %s %l\\n' | grep -v ' d ' | LC_ALL=C sort; getcap -r srv | sed 's|^|/|'";
    let output = Command::new("sh").args(["-c", script]).current_dir(&root).output().expect("sh");
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = std::fs::read_to_string(root.join(listing.trim_start_matches('/'))).expect("listing");
    if seen != expected {
        note(&format!("--- in the step\n{expected}--- in the image\n{seen}"));
    }
    assert_eq!(seen, expected);
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
    std::fs::remove_file(to.join("case.toml")).expect("case.toml");
}
