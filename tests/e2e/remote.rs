//! Contexts that lie elsewhere: git repositories, archives behind URLs, and a tar on standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::harness::{Need, Ran, Space, Sshd};
use crate::need;

/// Files behind URLs, until this is dropped.
struct Server {
    url: String,
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
        let port = listener.local_addr().expect("address").port();
        let is_over = Arc::new(AtomicBool::new(false));
        let theirs = is_over.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !theirs.load(Ordering::Relaxed)) {
                drop(answer(stream, &root));
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), port, is_over, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It waits for somebody.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn answer(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split([' ', '?']);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match std::fs::read(root.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    if method == "GET" { stream.write_all(&body) } else { Ok(()) }
}

/// A repository and archives of it, served.
fn site(space: &Space) -> Server {
    space.write("repo/Dockerfile", "FROM scratch\nCOPY . /\n");
    space.write("repo/app/other.Dockerfile", "FROM scratch\nCOPY --from=extra /app/f /extra\nCOPY app/f /\n");
    space.write("repo/app/f", "one\n");
    let script = "cd repo && git init -q && git add . && git -c user.name=a -c user.email=a@example.com commit -qm one
        git tag v1 && mkdir ../www && git clone -q --bare . ../www/r.git && git -C ../www/r.git update-server-info
        tar -cf ../www/plain Dockerfile app && gzip -kn ../www/plain && cp Dockerfile ../www/alone.tar.gz";
    let status = Command::new("sh").args(["-ec", script]).current_dir(space.path("")).status();
    assert!(status.expect("sh").success());
    Server::start(space.path("www"))
}

#[test]
fn repositories_and_archives_are_contexts() {
    need!(Need::Program("git"));
    let space = Space::new();
    let site = site(&space);
    let url = &site.url;
    let build = |args: &[&str]| {
        let ran = space.rbuild(["--progress=plain", "-o", "out"].iter().chain(args));
        assert_eq!(ran.code, 0, "{args:?}\n{}", ran.stderr);
        ran
    };
    for context in ["r.git", "r.git#v1", "r.git?tag=v1", "plain", "plain.gz"] {
        drop(std::fs::remove_dir_all(space.path("out")));
        build(&[&format!("{url}/{context}")]);
        assert_eq!(space.read("out/app/f"), "one\n", "{context}");
        assert!(!space.path("out/.git").exists());
    }
    // What was fetched for the Dockerfile is what is copied, now and later.
    let again = build(&[&format!("{url}/r.git")]);
    assert_eq!((again.count("MISS:"), again.count("CACHED")), (0, 2), "{}", again.stderr);
    assert_eq!(again.stderr.matches("load git source").count(), 1, "a step is shown once: {}", again.stderr);

    let (git, archive) = (format!("{url}/r.git#v1"), format!("extra={url}/plain.gz"));
    build(&["-f", "app/other.Dockerfile", "--build-context", &archive, &git]);
    assert_eq!(space.read("out/extra"), "one\n");
    let named_git = format!("extra={git}");
    build(&["-f", "app/other.Dockerfile", "--build-context", &named_git, &format!("{url}/plain")]);

    // No archive: the Dockerfile, and the only file of its context.
    drop(std::fs::remove_dir_all(space.path("out")));
    build(&[&format!("{url}/alone.tar.gz")]);
    assert_eq!(space.read("out/context"), "FROM scratch\nCOPY . /\n");
    // A Dockerfile of this machine.
    space.write("here", "FROM scratch\nCOPY f /here\n");
    build(&["-f", &space.path("here").display().to_string(), &format!("{url}/r.git#:app")]);
    assert_eq!(space.read("out/here"), "one\n");
    // A Dockerfile elsewhere, for a directory of this machine and for a context elsewhere.
    for context in ["repo/app", &format!("{url}/r.git#:app")] {
        std::fs::write(space.path("www/there"), "FROM scratch\nCOPY f /there\n").expect("write");
        drop(std::fs::remove_dir_all(space.path("out")));
        let ran = build(&["-f", &format!("{url}/there?v=1"), context]);
        assert_eq!(space.read("out/there"), "one\n");
        assert_eq!(ran.stderr.matches("load build definition from http").count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn what_is_wrong_with_a_context_elsewhere_is_said() {
    need!(Need::Program("git"));
    let space = Space::new();
    let site = site(&space);
    let url = &site.url;
    space.write("here", "FROM scratch\n");
    for (args, message) in [
        (vec!["/nope"], "failed to read downloaded context: failed to load cache key: invalid response status 404"),
        (
            vec!["/r.git#nope"],
            "failed to read dockerfile: failed to load cache key: repository does not contain ref nope, output: \"\"",
        ),
        (vec!["/r.git#--upload-pack=x"], "failed to read dockerfile: invalid git ref `--upload-pack=x`"),
        (vec!["/r.git#:../x"], "failed to read dockerfile: invalid subdir ../x"),
        (
            vec!["/plain", "-f", "URL/nope"],
            "failed to read dockerfile: failed to load cache key: invalid response status 404",
        ),
        (vec!["/r.git", "-f", "here"], "failed to read dockerfile: open here: no such file or directory"),
        (vec!["/plain", "-f", "app"], "failed to read dockerfile: open app: is not a file"),
    ] {
        let context = format!("{url}{}", args[0]);
        let others: Vec<_> = args[1..].iter().map(|arg| arg.replace("URL", url)).collect();
        let ran = space.rbuild(["--progress=plain".to_owned(), context].iter().chain(&others));
        assert_ne!(ran.code, 0, "{args:?}");
        let expected = format!("ERROR: failed to build: failed to solve: {message}");
        assert!(ran.stderr.lines().any(|line| line == expected), "{args:?}: {}", ran.stderr);
    }
    let ran = space.rbuild([format!("{url}/r.git?what=1")]);
    assert!(ran.stderr.contains("r.git?what=1: unexpected query \"what\""), "{}", ran.stderr);
}

#[test]
fn a_repository_over_ssh_brings_the_agent_with_it() {
    need!(Need::Root, Need::Program("sshd"), Need::Program("git"), Need::Program("ssh"));
    let space = Space::new();
    let sshd = Sshd::start(&space);
    space.write("Dockerfile", "FROM scratch\nCOPY README /\n");
    let dockerfile = space.path("Dockerfile").display().to_string();
    let (key, url) = (format!("default={}", sshd.key().display()), sshd.url());
    let args = ["--progress=plain", "--no-cache", "-o", "out", "-f", &dockerfile, &url];
    let mut with_agent = space.command(args);
    let mut with_key = space.command(args.iter().chain(&["--ssh", &key]));
    for command in [with_agent.envs(sshd.environment()), with_key.env_remove("SSH_AUTH_SOCK")] {
        let ran = Ran::of(command.output().expect("rbuild starts"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(space.read("out/README"), "private package\n");
        // What has been fetched would need no key.
        std::fs::remove_dir_all(space.store()).expect("store");
    }
    let ran = Ran::of(space.command(args).env_remove("SSH_AUTH_SOCK").output().expect("rbuild starts"));
    assert!(ran.stderr.contains("Permission denied"), "{}", ran.stderr);
}

#[test]
fn an_archive_on_standard_input_is_a_context() {
    let space = Space::new();
    space.write("src/Dockerfile", "FROM scratch\nCOPY . /\n");
    space.write("src/sub/other", "FROM scratch\nCOPY sub /only\n");
    space.write("secret", "FROM scratch\n");
    std::os::unix::fs::symlink(space.path("secret"), space.path("src/link")).expect("link");
    let build = |tar: &str, args: &[&str]| {
        let script = format!("cd src && {tar}");
        let mut packer = Command::new("sh");
        packer.args(["-c", &script]).current_dir(space.path("")).stdout(Stdio::piped());
        let mut packer = packer.spawn().expect("sh starts");
        let mut command = space.command(["--progress=plain", "-o", "out", "-"].iter().chain(args));
        let ran = Ran::of(command.stdin(packer.stdout.take().expect("piped")).output().expect("rbuild starts"));
        drop(packer.wait());
        ran
    };
    for tar in ["tar -c .", "tar -cz .", "tar -cj .", "tar -cJ ."] {
        drop(std::fs::remove_dir_all(space.path("out")));
        build(tar, &[]).success();
        assert_eq!(space.read("out/sub/other"), "FROM scratch\nCOPY sub /only\n", "{tar}");
    }
    build("tar -c .", &["-f", "sub/other"]).success();
    assert!(space.path("out/only/other").exists());
    let ran = build("tar -c .", &["-f", "link"]);
    assert!(ran.stderr.contains("open link: no such file or directory"), "no link leads out: {}", ran.stderr);
}

#[test]
fn images_in_layouts_are_contexts() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let named = |output: &str| format!("type=oci,tar=false,dest=layout,{output}");
    space.write("base/Dockerfile", "FROM busybox\nENV KIND=layout\nRUN echo made > /made\n");
    space.rbuild(["-q", "-o", &named("name=app:1"), "base"]).success();
    space.write("multi/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY <<E /arch\n$TARGETARCH\nE\n");
    let platforms = "--platform=linux/amd64,linux/arm64";
    space.rbuild(["-q", platforms, "-o", &named("name=multi:2"), "multi"]).success();
    let index: serde_json::Value = serde_json::from_str(&space.read("layout/index.json")).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("digest").to_owned();

    // In another store, where nothing of it is known; and without the layout, once it has been read.
    let other = Space::new();
    other.write(
        "Dockerfile",
        "FROM lay AS base\nRUN echo $KIND > /kind\nFROM scratch\nCOPY --from=base /made /kind /\n",
    );
    let layout = space.path("layout").display().to_string();
    for value in [format!("{layout}:1"), format!("{layout}@{digest}"), format!("{layout}:none@{digest}")] {
        drop(std::fs::remove_dir_all(other.path("out")));
        let context = format!("lay=oci-layout://{value}");
        let ran = other.rbuild(["--progress=plain", "--build-context", &context, "-o", "out", "."]);
        assert_eq!(ran.code, 0, "{value}: {}", ran.stderr);
        assert_eq!((other.read("out/made"), other.read("out/kind")), ("made\n".to_owned(), "layout\n".to_owned()));
    }
    other.write("arch/Dockerfile", "FROM scratch\nCOPY --from=lay /arch /\n");
    let context = format!("lay=oci-layout://{layout}:2");
    let args = ["--build-context", &context, "--platform=linux/arm64", "-o", "out", "arch"];
    other.rbuild(args).success();
    assert_eq!(other.read("out/arch"), "arm64\n");

    for (value, message) in [
        (format!("{layout}:3"), "has no image `3`: it has docker.io/library/app:1, docker.io/library/multi:2"),
        (format!("{layout}-not"), "index.json`: No such file or directory"),
        (format!("{layout}@sha256:{}", "0".repeat(64)), "No such file or directory"),
    ] {
        let context = format!("lay=oci-layout://{value}");
        let ran = other.rbuild(["--build-context", &context, "-o", "out", "arch"]);
        assert_eq!(ran.code, 1, "{value}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{value}: {}", ran.stderr);
    }
    let args = ["--build-context", &context, "--platform=linux/s390x", "-o", "out", "arch"];
    let ran = other.rbuild(args);
    assert!(ran.stderr.contains("help: it has linux/amd64, linux/arm64"), "{}", ran.stderr);
    // Layers that have been tampered with.
    let layer = index["manifests"][0]["digest"].as_str().expect("digest").replace("sha256:", "layout/blobs/sha256/");
    let manifest: serde_json::Value = serde_json::from_str(&space.read(&layer)).expect("JSON");
    let last = manifest["layers"].as_array().expect("layers").last().expect("a layer")["digest"].clone();
    space.write(&last.as_str().expect("digest").replace("sha256:", "layout/blobs/sha256/"), "other bytes");
    let third = Space::new();
    third.write("Dockerfile", "FROM lay\nCOPY Dockerfile /\n");
    let context = format!("lay=oci-layout://{layout}:1");
    let ran = third.rbuild(["--build-context", &context, "-o", "out", "."]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("is not what its name says"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_reached_is_taken_as_seen_last() {
    need!(Need::Program("git"));
    let space = Space::new();
    let site = site(&space);
    let url = &site.url;
    let dockerfile = format!("FROM scratch\nADD {url}/plain /\nADD {url}/r.git /tree/\nCOPY f /\n");
    space.write("context/Dockerfile", dockerfile);
    space.write("context/f", "one");
    let build = |args: &[&str]| space.rbuild(["--progress=plain", "-o", "out"].iter().chain(args));
    let git = format!("{url}/r.git");
    for context in ["context", &git] {
        let ran = build(&[context]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let url = url.clone();
    drop(site);

    space.write("context/f", "two");
    let ran = build(&["context"]);
    assert_eq!((ran.code, ran.stderr.matches("MISS: f changed").count()), (0, 1), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches(" as seen last: ").count(), 2, "{}", ran.stderr);
    assert_eq!(space.read("out/f"), "two");
    // The commit is here, too.
    let ran = build(&[&git]);
    assert_eq!((ran.code, ran.count("CACHED")), (0, 2), "{}", ran.stderr);
    let ran = build(&["--no-cache", &git]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);

    space.write("context/Dockerfile", format!("FROM scratch\nADD {url}/r.git#v1 /\n"));
    let ran = build(&["context"]);
    assert!(ran.code != 0 && ran.stderr.contains("Failed to connect"), "{}", ran.stderr);
}
