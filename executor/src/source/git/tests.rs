//! Against repositories made here with the git program. Without one, the tests say so and pass.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use crate::source::testing::{Reply, Server, silent, skip, step, store};

use super::*;

struct Remote {
    dir: tempfile::TempDir,
}

impl Remote {
    /// Two commits on `main` (the first tagged `v1`, the second with an annotated tag `v2`) and a branch `side`.
    fn new() -> Option<Self> {
        if Command::new("git").arg("--version").output().is_err() {
            skip("there is no git program");
            return None;
        }
        let remote = Self { dir: tempfile::tempdir().unwrap() };
        remote.git(&["init", "-q", "-b", "main"]);
        remote.write("f", "one\n");
        remote.write("sub/dir/g", "deep\n");
        remote.write("run.sh", "run\n");
        std::fs::set_permissions(remote.path().join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("f", remote.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/", remote.path().join("out")).unwrap();
        remote.commit("one");
        remote.git(&["tag", "v1"]);
        remote.git(&["checkout", "-q", "-b", "side"]);
        remote.write("f", "side\n");
        remote.commit("side");
        remote.git(&["checkout", "-q", "main"]);
        remote.write("f", "two\n");
        remote.commit("two");
        remote.git(&["tag", "-a", "-m", "second", "v2"]);
        Some(remote)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", message]);
    }

    fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always"])
            .args(args)
            .current_dir(self.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000")
            .env("GIT_AUTHOR_DATE", "1700000000 +0000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn op(&self, reference: Option<&str>) -> GitOp {
        GitOp {
            remote: self.path().to_str().unwrap().to_owned(),
            reference: reference.map(str::to_owned),
            subdir: None,
            checksum: None,
            keep_git_dir: false,
            submodules: true,
            commit_times: false,
        }
    }
}

fn source(store: &Store) -> GitSource {
    let options = GitOptions {
        program: "git".into(),
        search_path: "/usr/local/bin:/usr/bin:/bin".to_owned(),
        proxy_env: Vec::new(),
        ssh_agent: None,
        known_hosts: None,
    };
    GitSource::new(options, store.clone(), Arc::new(|_| None))
}

async fn fetch(store: &Store, op: &GitOp) -> Result<PathBuf, OpError> {
    let layer = source(store).fetch(op, &silent(), &CancellationToken::new()).await?;
    Ok(layer.tree.expect("a git layer has a tree"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_remote_that_is_away_is_taken_for_unchanged() {
    if Command::new("git").arg("--version").output().is_err() {
        return skip("there is no git program");
    }
    const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let (server, (_dir, store)) = (Server::start().await, store());
    // What a server of files alone says.
    server.route("/r.git/info/refs?service=git-upload-pack", [Reply::ok(format!("{COMMIT}\trefs/heads/main\n"))]);
    server.route("/r.git/HEAD", [Reply::ok("ref: refs/heads/main\n")]);
    let op = |reference: &str| GitOp {
        remote: server.url("/r.git"),
        reference: Some(reference.to_owned()),
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
        commit_times: false,
    };
    let (main, other) = (op("main"), op("other"));
    assert_eq!(source(&store).probe(&main, &silent()).await.unwrap(), COMMIT);
    assert!(source(&store).probe(&other, &silent()).await.is_err());
    drop(server);
    let (step, events) = step();
    assert_eq!(source(&store).probe(&main, &step).await.unwrap(), COMMIT);
    let said = format!("at {COMMIT} as seen last: fatal: unable to access ");
    assert!(events.try_iter().any(|event| format!("{event:?}").contains(&said)));
    assert!(source(&store).probe(&other, &silent()).await.is_err());
}

#[tokio::test]
async fn a_tree_without_its_repository() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let tree = fetch(&store, &remote.op(None)).await.unwrap();
    assert_eq!(names(&tree), ["f", "link", "out", "run.sh", "sub"]);
    assert_eq!(std::fs::read_to_string(tree.join("f")).unwrap(), "two\n");
    let mode = |path: &str| tree.join(path).symlink_metadata().unwrap().mode() & 0o7777;
    assert_eq!([mode("f"), mode("run.sh"), mode("sub"), mode("sub/dir/g")], [0o644, 0o755, 0o755, 0o644]);
    assert_eq!(tree.join("link").read_link().unwrap(), Path::new("f"));
}

#[tokio::test]
async fn refs_of_every_kind_lead_to_their_commit() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let first = remote.git(&["rev-parse", "v1"]);
    for (reference, text) in [
        (Some("v1"), "one\n"),
        (Some("refs/tags/v1"), "one\n"),
        (Some(first.as_str()), "one\n"),
        (Some("side"), "side\n"),
        (Some("refs/heads/side"), "side\n"),
        (Some("v2"), "two\n"),
        (None, "two\n"),
    ] {
        let op = remote.op(reference);
        let tree = fetch(&store, &op).await.unwrap();
        assert_eq!(std::fs::read_to_string(tree.join("f")).unwrap(), text, "{reference:?}");
        let peeled = remote.git(&["rev-parse", &format!("{}^{{commit}}", reference.unwrap_or("main"))]);
        assert_eq!(source(&store).probe(&op, &silent()).await.unwrap(), peeled);
    }
}

#[tokio::test]
async fn an_unknown_ref_and_a_wrong_checksum_have_the_words_people_know() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let error = source(&store).probe(&remote.op(Some("nowhere")), &silent()).await.unwrap_err();
    let expected = "failed to load cache key: repository does not contain ref nowhere, output: \"\"";
    assert_eq!(error.message, expected);
    let commit = remote.git(&["rev-parse", "v1"]);
    for (checksum, expected) in [
        ("0123456789", format!("expected checksum to match 0123456789, got {commit}")),
        ("xyz", "invalid checksum xyz for Git URL, expected hex commit hash".to_owned()),
    ] {
        let op = GitOp { checksum: Some(checksum.to_owned()), ..remote.op(Some("v1")) };
        let error = source(&store).probe(&op, &silent()).await.unwrap_err();
        assert_eq!(error.message, format!("failed to load cache key: {expected}"));
    }
    let op = GitOp { checksum: Some(commit[..8].to_owned()), ..remote.op(Some("v1")) };
    assert_eq!(source(&store).probe(&op, &silent()).await.unwrap(), commit);
}

#[tokio::test]
async fn a_part_of_the_tree() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let with = |subdir: &str| GitOp { subdir: Some(subdir.to_owned()), keep_git_dir: true, ..remote.op(Some("v1")) };
    let tree = fetch(&store, &with("sub")).await.unwrap();
    assert_eq!(names(&tree), ["dir"]);
    let error = fetch(&store, &with("nowhere")).await.unwrap_err();
    let expected = "invalid subdir nowhere: failed to lstat \"nowhere\": statat nowhere: no such file or directory";
    assert_eq!(error.message, expected);
    for subdir in ["out", "out/etc", "../x", "f", ".git"] {
        assert!(fetch(&store, &with(subdir)).await.is_err(), "{subdir}");
    }
}

#[tokio::test]
async fn a_kept_repository_works_and_tells_nothing_of_this_machine() {
    let Some(remote) = Remote::new() else { return };
    let (dir, store) = store();
    let op = GitOp { keep_git_dir: true, ..remote.op(Some("v1")) };
    let tree = fetch(&store, &op).await.unwrap();
    let git = |args: &[&str]| {
        let output = Command::new("git").args(["-c", "safe.directory=*"]).args(args).current_dir(&tree).output();
        String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(git(&["rev-parse", "HEAD"]), remote.git(&["rev-parse", "v1"]));
    assert_eq!(git(&["describe", "--tags"]), "v1");
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(git(&["remote", "get-url", "origin"]), remote.path().to_str().unwrap());
    assert!(!tree.join(".git/FETCH_HEAD").exists());
    let store_path = dir.path().to_str().unwrap();
    for entry in ["config", "HEAD", "packed-refs", "shallow", "objects/info/alternates"] {
        let text = std::fs::read_to_string(tree.join(".git").join(entry)).unwrap_or_default();
        assert!(!text.contains(store_path), "{entry}: {text}");
    }
}

#[tokio::test]
async fn what_has_been_fetched_is_not_fetched_again() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let commit = remote.git(&["rev-parse", "main"]);
    fetch(&store, &remote.op(None)).await.unwrap();
    // The remote is gone, but a commit needs no asking.
    let op = remote.op(Some(&commit));
    std::fs::remove_dir_all(remote.path().join(".git")).unwrap();
    fetch(&store, &op).await.unwrap();
}

#[tokio::test]
async fn a_ref_means_one_commit_during_a_build() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let source = source(&store);
    let op = remote.op(Some("main"));
    let before = source.probe(&op, &silent()).await.unwrap();
    remote.write("f", "three\n");
    remote.commit("three");
    assert_eq!(source.probe(&op, &silent()).await.unwrap(), before);
    let layer = source.fetch(&op, &silent(), &CancellationToken::new()).await.unwrap();
    assert_eq!(std::fs::read_to_string(layer.tree.unwrap().join("f")).unwrap(), "two\n");
}

#[tokio::test]
async fn the_time_of_the_commit_on_request() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let tree = fetch(&store, &GitOp { commit_times: true, ..remote.op(None) }).await.unwrap();
    for path in ["f", "link", "sub", "sub/dir/g"] {
        assert_eq!(tree.join(path).symlink_metadata().unwrap().mtime(), 1_700_000_000, "{path}");
    }
}

#[tokio::test]
async fn submodules_may_not_reach_into_this_machine() {
    let (Some(remote), Some(inner)) = (Remote::new(), Remote::new()) else { return };
    let (_dir, store) = store();
    remote.git(&["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "inner"]);
    remote.commit("submodule");
    let error = fetch(&store, &remote.op(None)).await.unwrap_err();
    assert!(error.message.contains("submodules"), "{}", error.message);
    let without = GitOp { submodules: false, ..remote.op(None) };
    let tree = fetch(&store, &without).await.unwrap();
    assert_eq!(names(&tree.join("inner")), [""; 0]);
}

/// Serves repositories by git's own protocol. Stops when dropped.
struct Daemon(std::process::Child, u16);

impl Daemon {
    fn start(base: &Path) -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Not through `git`, which would leave the daemon behind when it is killed.
        let helpers = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let program = Path::new(std::str::from_utf8(&helpers).unwrap().trim()).join("git-daemon");
        let mut command = Command::new(&program);
        command.args(["--export-all", "--reuseaddr", "--listen=127.0.0.1"]);
        command.args([format!("--port={port}"), format!("--base-path={}", base.display())]);
        let child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
        let Ok(child) = child else {
            skip(&format!("there is no `{}`", program.display()));
            return None;
        };
        let mut daemon = Self(child, port);
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(daemon);
            }
            if daemon.0.try_wait().unwrap().is_some() {
                skip("the git daemon does not start");
                return None;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn submodules_of_the_network_are_checked_out() {
    let (Some(remote), Some(inner)) = (Remote::new(), Remote::new()) else { return };
    let base = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(remote.path(), base.path().join("outer")).unwrap();
    std::os::unix::fs::symlink(inner.path(), base.path().join("inner")).unwrap();
    let Some(daemon) = Daemon::start(base.path()) else { return };
    remote.git(&["submodule", "--quiet", "add", inner.path().to_str().unwrap(), "sub/inner"]);
    // Relative to the remote.
    remote.git(&["config", "-f", ".gitmodules", "submodule.sub/inner.url", "../inner"]);
    remote.commit("submodule");
    let (_dir, store) = store();
    let op = GitOp { remote: format!("git://127.0.0.1:{}/outer", daemon.1), ..remote.op(None) };
    let tree = fetch(&store, &op).await.unwrap();
    assert_eq!(names(&tree.join("sub/inner")), ["f", "link", "out", "run.sh", "sub"]);
    let part = fetch(&store, &GitOp { subdir: Some("sub/inner".to_owned()), ..op.clone() }).await.unwrap();
    assert_eq!(names(&part), ["f", "link", "out", "run.sh", "sub"]);
    let kept = fetch(&store, &GitOp { keep_git_dir: true, ..op }).await.unwrap();
    assert_eq!(names(&kept.join("sub/inner")), [".git", "f", "link", "out", "run.sh", "sub"]);
}

#[tokio::test]
async fn a_broken_repository_of_ours_is_made_anew() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    fetch(&store, &remote.op(Some("v1"))).await.unwrap();
    let mount = source(&store).repository(&remote.op(None), &CancellationToken::new()).await.unwrap();
    std::fs::remove_file(mount.path.join("HEAD")).unwrap();
    std::fs::write(mount.path.join("shallow.lock"), "").unwrap();
    drop(mount);
    fetch(&store, &remote.op(Some("side"))).await.unwrap();
    let mount = source(&store).repository(&remote.op(None), &CancellationToken::new()).await.unwrap();
    std::fs::write(mount.path.join("shallow.lock"), "").unwrap();
    drop(mount);
    fetch(&store, &remote.op(Some("v2"))).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_fetch_ends() {
    let Some(remote) = Remote::new() else { return };
    let (_dir, store) = store();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = source(&store).fetch(&remote.op(None), &silent(), &cancel).await.unwrap_err();
    assert_eq!(error.tier, solver::Tier::Cancelled);
}

#[test]
fn tokens_become_headers_for_the_host_that_they_are_for() {
    let (_dir, store) = store();
    let with = |secrets: &'static [(&'static str, &'static str)]| {
        let lookup: SecretLookup = Arc::new(move |id| {
            secrets.iter().find(|(name, _)| *name == id).map(|(_, value)| value.as_bytes().to_vec())
        });
        GitSource { secrets: lookup, ..source(&store) }.authorization("https://h.example/r.git").unwrap()
    };
    assert_eq!(with(&[("GIT_AUTH_TOKEN.other", "t")]), None);
    assert_eq!(with(&[("GIT_AUTH_TOKEN", "t\n")]).unwrap(), "basic eC1hY2Nlc3MtdG9rZW46dA==");
    assert_eq!(with(&[("GIT_AUTH_TOKEN", "t"), ("GIT_AUTH_HEADER.h.example", "basic x")]).unwrap(), "basic x");
    assert_eq!(source(&store).authorization("ssh://git@h/r").unwrap(), None);
}
