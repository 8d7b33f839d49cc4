//! Operations in real containers: what `RUN --mount` promises. They need root and overlayfs, and a static busybox.

#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a skipped test says why, a measuring one what; RBUILD_TEST_DIR chooses the file system"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cache::{Sharing, Store};
use solver::plan::patterns::Patterns;
use solver::{Event, InlineScript, Mount, MountKind, Progress, SecurityMode};
use tempfile::TempDir;

use super::*;
use crate::context::IgnoreRules;
use crate::sandbox::{Confinement, HostNetwork, missing_privileges};

/// An operation as it comes from `RUN` in the exec form.
pub(super) fn op(args: &[&str]) -> RunOp {
    RunOp {
        args: args.iter().map(|text| (*text).to_owned()).collect(),
        env: Vec::new(),
        proxy_env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
        network: NetworkMode::Default,
        security: SecurityMode::Sandbox,
        hostname: "buildkitsandbox".to_owned(),
        extra_hosts: Vec::new(),
        shm_size_bytes: None,
        ulimits: Vec::new(),
        cgroup_parent: None,
        mounts: Vec::new(),
        scripts: Vec::new(),
        devices: Vec::new(),
        platform: oci::Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
            os_version: None,
            os_features: Vec::new(),
        },
    }
}

fn shell(script: &str) -> RunOp {
    op(&["/bin/sh", "-c", script])
}

fn with(mut op: RunOp, mounts: &[(&str, MountKind)]) -> RunOp {
    op.mounts =
        mounts.iter().map(|(target, kind)| Mount { target: (*target).to_owned(), kind: kind.clone() }).collect();
    op
}

fn cache_kind(id: &str, sharing: Sharing, (uid, gid, mode): (u32, u32, u32)) -> MountKind {
    let (id, source) = (id.to_owned(), "/".to_owned());
    MountKind::Cache { id, sharing, input: None, source, uid, gid, mode, read_only: false }
}

fn shared(id: &str) -> MountKind {
    cache_kind(id, Sharing::Shared, (0, 0, 0o755))
}

fn bind(input: usize, source: &str, read_only: bool) -> MountKind {
    MountKind::Bind { input: Some(input), source: source.to_owned(), read_only }
}

fn secret(id: &str, env: Option<&str>, required: bool) -> MountKind {
    let env = env.map(str::to_owned);
    MountKind::Secret { id: id.to_owned(), env, required, uid: 0, gid: 0, mode: 0o400 }
}

struct Fixture {
    directory: TempDir,
    base: PathBuf,
    store: Store,
    sandbox: Sandbox,
    runner: Runner,
    inputs: Vec<InputTree>,
}

impl Fixture {
    fn new(options: RunOptions) -> Option<Self> {
        if !rustix::process::geteuid().is_root()
            || !missing_privileges().is_empty()
            || !Path::new("/bin/busybox").exists()
        {
            eprintln!("skipped: needs root with CAP_SYS_ADMIN, and a static /bin/busybox");
            return None;
        }
        let parent = std::env::var_os("RBUILD_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = tempfile::tempdir_in(parent).unwrap();
        let base = directory.path().join("base");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "ls", "rm", "stat", "touch", "sleep", "cp", "echo", "mkdir", "env", "grep"] {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        let store = Store::open(&directory.path().join("store")).unwrap();
        let scratch = tempfile::tempdir_in(directory.path()).unwrap();
        let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &Confinement::of_this_process()).unwrap();
        let runner = Runner::new(sandbox.clone(), store.clone(), options);
        let inputs = vec![InputTree { identity: String::new(), source: InputSource::Layers(Vec::new()) }];
        let fixture = Self { directory, base, store, sandbox, runner, inputs };
        match fixture.run(&shell("true")) {
            Ok(_) => Some(fixture),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// Another build on the same store.
    fn next_build(&mut self, options: RunOptions) {
        self.runner = Runner::new(self.sandbox.clone(), self.store.clone(), options);
    }

    fn layer(&mut self, files: &[(&str, &str)]) -> usize {
        let root = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        for (path, content) in files {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), content).unwrap();
        }
        let identity = root.display().to_string();
        self.inputs.push(InputTree { identity, source: InputSource::Layers(vec![root]) });
        self.inputs.len() - 1
    }

    fn run(&self, op: &RunOp) -> Result<Ran, OpError> {
        self.run_with(op, false, &CancellationToken::new())
    }

    fn run_with(&self, op: &RunOp, ignore_cache: bool, cancel: &CancellationToken) -> Result<Ran, OpError> {
        let draft = tempfile::tempdir_in(self.directory.path()).unwrap();
        let (upper, work) = (draft.path().join("tree"), draft.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let (events, log) = mpsc::sync_channel(1000);
        let step = Progress::new(events).start("step");
        let request = RunRequest {
            op,
            root: vec![self.base.clone()],
            inputs: &self.inputs,
            upper: upper.clone(),
            work,
            ignore_cache,
            step: &step,
            cancel,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let result = runtime.block_on(self.runner.run(request, || Ok(())));
        drop(step);
        let output = log.iter().fold(Vec::new(), |mut all, event| {
            if let Event::Log { data, .. } = event {
                all.extend(data);
            }
            all
        });
        let upper =
            fs::read_dir(&upper).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        result.map(|()| Ran { output: String::from_utf8(output).unwrap(), upper })
    }

    fn output(&self, op: &RunOp) -> String {
        let ran = self.run(op).unwrap();
        assert_eq!(ran.upper, [""; 0], "{:?}", op.args);
        ran.output
    }
}

#[derive(Debug)]
struct Ran {
    output: String,
    /// Names at the top of the layer.
    upper: Vec<String>,
}

#[test]
fn privileged_failures_have_the_recorded_words() {
    let Some(fixture) = Fixture::new(RunOptions::default()) else { return };
    let ghost = RunOp { user: "ghost".to_owned(), ..shell("true") };
    let cases = [
        (shell("exit 3"), "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3"),
        (
            shell("no-such-command --now"),
            "process \"/bin/sh -c no-such-command --now\" did not complete successfully: exit code: 127",
        ),
        (op(&["no-such-program", "x"]), "process \"no-such-program x\" did not complete successfully: exit code: 1"),
        (
            ghost,
            "process \"/bin/sh -c true\" did not complete successfully: unable to find user ghost: no matching entries in passwd file",
        ),
        (with(shell("true"), &[("/s", secret("nope", None, true))]), "secret nope: not found"),
        (
            with(
                shell("true"),
                &[("/a", MountKind::Ssh { id: String::new(), required: true, uid: 0, gid: 0, mode: 0o600 })],
            ),
            "no SSH key \"\" forwarded from the client",
        ),
    ];
    for (op, message) in cases {
        assert_eq!(fixture.run(&op).unwrap_err().message, message);
    }
}

#[test]
fn privileged_environment_is_in_order() {
    let options = RunOptions {
        secrets: SecretStore::default().with_value("token", Secret::new(*b"s3cret")),
        ..RunOptions::default()
    };
    let Some(fixture) = Fixture::new(options) else { return };
    let mut op = op(&["/bin/env"]);
    op.env = vec![("B".to_owned(), "2".to_owned()), ("TOKEN".to_owned(), "from-env".to_owned())];
    op.proxy_env = vec![("http_proxy".to_owned(), "http://p".to_owned())];
    let ssh = MountKind::Ssh { id: String::new(), required: false, uid: 0, gid: 0, mode: 0o600 };
    let op = with(
        op,
        &[
            ("/run/buildkit/ssh_agent.0", ssh),
            ("", secret("token", Some("TOKEN"), false)),
            ("", secret("no", Some("NOPE"), false)),
        ],
    );
    assert_eq!(
        fixture.output(&op),
        format!(
            "B=2\nSSH_AUTH_SOCK=/run/buildkit/ssh_agent.0\nhttp_proxy=http://p\nPATH={DEFAULT_PATH}\n\
             TOKEN=s3cret\nNOPE=\nHOME=/\n"
        )
    );
}

#[test]
fn privileged_secrets_and_scripts_are_files_in_memory() {
    let options = RunOptions {
        secrets: SecretStore::default().with_value("token", Secret::new(*b"s3cret\n")),
        ..RunOptions::default()
    };
    let Some(fixture) = Fixture::new(options) else { return };
    let script = "cat /run/secrets/token; stat -c '%a %u:%g' /run/secrets/token; ls /run/secrets";
    let mounts = [("/run/secrets/token", secret("token", None, true)), ("/run/secrets/no", secret("no", None, false))];
    assert_eq!(fixture.output(&with(shell(script), &mounts)), "s3cret\n400 0:0\ntoken\n");
    let mut op = op(&["/dev/pipes/EOF"]);
    op.scripts =
        vec![InlineScript { name: "EOF".to_owned(), content: b"#!/bin/sh\necho \"$0\"; ls /dev/pipes\n".to_vec() }];
    assert_eq!(fixture.output(&op), "/dev/pipes/EOF\nEOF\n");
}

#[test]
fn privileged_caches_persist_and_know_their_beginnings() {
    let Some(mut fixture) = Fixture::new(RunOptions::default()) else { return };
    fixture.output(&with(shell("echo kept > /c/f"), &[("/c", shared("id"))]));
    let read = with(shell("ls /c; stat -c '%a %u:%g' /c"), &[("/c", shared("id"))]);
    assert_eq!(fixture.output(&read), "f\n755 0:0\n");
    // Another owner, another cache.
    let owned = cache_kind("id", Sharing::Shared, (12, 34, 0o770));
    assert_eq!(fixture.output(&with(shell("ls /c; stat -c '%a %u:%g' /c"), &[("/c", owned)])), "770 12:34\n");
    // Two targets of one id.
    let twice = with(shell("echo x > /a/t; cat /b/t"), &[("/a", shared("id")), ("/b", shared("id"))]);
    assert_eq!(fixture.output(&twice), "x\n");
    // A base, with its modes.
    let seed = fixture.layer(&[("d/sub/f", "seed\n")]);
    let InputSource::Layers(layers) = &fixture.inputs[seed].source else { panic!() };
    fs::set_permissions(layers[0].join("d/sub"), fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(layers[0].join("d/sub/f"), Some(7), Some(8)).unwrap();
    let from = MountKind::Cache {
        id: "id".to_owned(),
        sharing: Sharing::Locked,
        input: Some(seed),
        source: "/d/sub".to_owned(),
        uid: 0,
        gid: 0,
        mode: 0o755,
        read_only: false,
    };
    let script = "cat /c/f; stat -c '%a' /c; stat -c '%u:%g' /c/f; rm /c/f; touch /c/again";
    assert_eq!(fixture.output(&with(shell(script), &[("/c", from.clone())])), "seed\n711\n7:8\n");
    assert_eq!(fixture.output(&with(shell("ls /c"), &[("/c", from)])), "again\n");
    // `--no-cache` empties a cache once a build.
    fixture.next_build(RunOptions::default());
    let cancel = CancellationToken::new();
    let list = with(shell("ls /c; touch /c/new"), &[("/c", shared("id"))]);
    assert_eq!(fixture.run_with(&list, true, &cancel).unwrap().output, "");
    assert_eq!(fixture.run_with(&list, true, &cancel).unwrap().output, "new\n");
}

#[test]
fn privileged_locked_caches_are_used_one_after_the_other() {
    let Some(fixture) = Fixture::new(RunOptions::default()) else { return };
    let locked = |id: &str| cache_kind(id, Sharing::Locked, (0, 0, 0o755));
    let script = "[ ! -e /a/busy ] || echo two at once; touch /a/busy; sleep 0.3; rm /a/busy";
    // In both orders: neither may wait for the other for ever.
    let ops = [
        with(shell(script), &[("/a", locked("one")), ("/b", locked("two"))]),
        with(shell(script), &[("/b", locked("two")), ("/a", locked("one"))]),
    ];
    std::thread::scope(|scope| {
        let runs: Vec<_> = ops.iter().map(|op| scope.spawn(|| fixture.output(op))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), "");
        }
    });
    // A waiting step can be cancelled.
    let holder = with(shell("sleep 1000"), &[("/a", locked("one"))]);
    let waiter = with(shell("true"), &[("/a", locked("one"))]);
    let (stop_holder, stop_waiter) = (CancellationToken::new(), CancellationToken::new());
    std::thread::scope(|scope| {
        let held = scope.spawn(|| fixture.run_with(&holder, false, &stop_holder));
        std::thread::sleep(Duration::from_millis(300));
        let waited = scope.spawn(|| fixture.run_with(&waiter, false, &stop_waiter));
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        stop_waiter.cancel();
        assert_eq!(waited.join().unwrap().unwrap_err().tier, solver::Tier::Cancelled);
        stop_holder.cancel();
        assert_eq!(held.join().unwrap().unwrap_err().tier, solver::Tier::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn privileged_binds_of_layers_are_discarded() {
    let Some(mut fixture) = Fixture::new(RunOptions::default()) else { return };
    let input = fixture.layer(&[("d/e/f", "x\n"), ("g", "y\n")]);
    let script = "cat /m/e/f /file; echo changed > /rw/g; cat /rw/g; touch /file 2>/dev/null || echo ro";
    let mounts =
        [("/m", bind(input, "/d", true)), ("/file", bind(input, "/g", true)), ("/rw", bind(input, "/", false))];
    assert_eq!(fixture.output(&with(shell(script), &mounts)), "x\ny\nchanged\nro\n");
    let InputSource::Layers(layers) = &fixture.inputs[input].source else { panic!() };
    assert_eq!(fs::read_to_string(layers[0].join("g")).unwrap(), "y\n");
    let empty = MountKind::Bind { input: None, source: "/".to_owned(), read_only: true };
    assert_eq!(fixture.output(&with(shell("ls -A /m"), &[("/m", empty)])), "");
    let error = fixture.run(&with(shell("true"), &[("/m", bind(input, "/nope", true))])).unwrap_err();
    assert_eq!(error.message, "failed to compute cache key: \"/nope\": not found");
}

#[test]
fn privileged_binds_of_the_context_leave_it_alone() {
    let Some(mut fixture) = Fixture::new(RunOptions::default()) else { return };
    let root = fixture.directory.path().join("context");
    fs::create_dir_all(root.join("sub")).unwrap();
    for (path, text) in [("a.txt", "a\n"), ("sub/b.txt", "b\n")] {
        fs::write(root.join(path), text).unwrap();
    }
    let context = LocalContext::open("context", &root, IgnoreRules::default(), None).unwrap();
    fixture.inputs.push(InputTree { identity: String::new(), source: InputSource::Context(context) });
    let script = "cat /src/a.txt /file; (echo x > /src/new) 2>/dev/null || echo ro; echo c > /rw/a.txt; touch /rw/new; \
                  echo d > /one; cat /rw/a.txt /one; ls /rel";
    let mounts = [
        ("/src", bind(1, "/", true)),
        ("/file", bind(1, "/sub/b.txt", true)),
        ("/rw", bind(1, "/", false)),
        ("/one", bind(1, "/a.txt", false)),
        ("/rel", bind(1, "/sub", true)),
    ];
    assert_eq!(fixture.output(&with(shell(script), &mounts)), "a\nb\nro\nc\nd\nb.txt\n");
    assert_eq!(fs::read_to_string(root.join("a.txt")).unwrap(), "a\n");
    assert!(!root.join("new").exists());
}

#[test]
fn privileged_binds_of_the_context_hide_what_is_ignored() {
    let Some(mut fixture) = Fixture::new(RunOptions::default()) else { return };
    let root = fixture.directory.path().join("context");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::create_dir_all(root.join("secrets")).unwrap();
    for path in ["a.txt", "a.log", "sub/b.txt", "sub/b.log", "sub/deep/c.log", "secrets/key"] {
        fs::write(root.join(path), path).unwrap();
    }
    fs::set_permissions(root.join("sub"), fs::Permissions::from_mode(0o711)).unwrap();
    let patterns = Patterns::parse_ignore_file(b"**/*.log\n!sub/b.log\nsecrets\n").unwrap();
    let rules = IgnoreRules { patterns, file: ".dockerignore".into() };
    let context = LocalContext::open("context", &root, rules, None).unwrap();
    let changed = |path: &str| fs::metadata(root.join(path)).unwrap().ctime_nsec();
    let before = changed("sub/b.txt");
    fixture.inputs.push(InputTree { identity: String::new(), source: InputSource::Context(context) });
    let script = "cd /src && find . -type f | sort; stat -c %a sub; (echo x > /src/new) 2>/dev/null || echo ro; \
                  echo new > /rw/a.log; echo changed > /rw/sub/b.txt; cat /rw/a.log /rw/sub/b.txt; ls /rel";
    let mounts = [("/src", bind(1, "/", true)), ("/rw", bind(1, "/", false)), ("/rel", bind(1, "/sub/deep", true))];
    let expected = "./a.txt\n./sub/b.log\n./sub/b.txt\n711\nro\nnew\nchanged\n";
    assert_eq!(fixture.output(&with(shell(script), &mounts)), expected);
    assert_eq!(fs::read_to_string(root.join("a.log")).unwrap(), "a.log");
    assert_eq!(
        (fs::read_to_string(root.join("sub/b.txt")).unwrap(), changed("sub/b.txt")),
        ("sub/b.txt".into(), before)
    );
}

#[test]
fn privileged_agents_are_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let agent = directory.path().join("agent");
    let _listener = std::os::unix::net::UnixListener::bind(&agent).unwrap();
    let options =
        RunOptions { agents: AgentStore::default().with("default", Agent::Socket(agent)), ..RunOptions::default() };
    let Some(fixture) = Fixture::new(options) else { return };
    let ssh = MountKind::Ssh { id: String::new(), required: true, uid: 5, gid: 6, mode: 0o640 };
    let script = "echo $SSH_AUTH_SOCK; stat -c '%F %a %u:%g' $SSH_AUTH_SOCK";
    assert_eq!(
        fixture.output(&with(shell(script), &[("/run/buildkit/ssh_agent.0", ssh)])),
        "/run/buildkit/ssh_agent.0\nsocket 640 5:6\n"
    );
    assert_eq!(fs::metadata(&fixture.base).unwrap().mode() & 0o777, 0o755);
}

/// A description of `v.com/c=zero`, and a catalog of it.
fn described(directory: &Path) -> Catalog {
    let text = "cdiVersion: 0.7.0\nkind: v.com/c\ncontainerEdits: { env: [ALL=1, WHO=file] }\ndevices:\n- name: zero\n  \
                containerEdits:\n    env: [WHO=zero]\n    additionalGids: [44]\n    deviceNodes:\n    \
                - { path: /dev/sub/nothing, hostPath: /dev/zero, fileMode: 0640, uid: 3, gid: 4 }\n    \
                - { path: /odd, hostPath: /dev/full, permissions: r }\n    mounts:\n    \
                - { hostPath: LIB, containerPath: /usr/lib/dev, options: [ro, nosuid, bind] }\n";
    fs::create_dir_all(directory.join("lib")).unwrap();
    fs::write(directory.join("lib/so"), "library").unwrap();
    fs::create_dir_all(directory.join("cdi")).unwrap();
    let lib = directory.join("lib");
    fs::write(directory.join("cdi/v.yaml"), text.replace("LIB", lib.to_str().unwrap())).unwrap();
    Catalog::new(vec![directory.join("cdi")])
}

fn asking_for(op: RunOp, name: &str, required: bool) -> RunOp {
    RunOp { devices: vec![solver::Device { name: name.to_owned(), required }], ..op }
}

#[test]
fn privileged_devices_come_with_their_files_and_variables() {
    let directory = tempfile::tempdir().unwrap();
    let devices = described(directory.path());
    let Some(fixture) = Fixture::new(RunOptions { devices, ..RunOptions::default() }) else { return };
    let script = "stat -c '%F %a %u:%g %t:%T' /dev/sub/nothing /odd; cat /usr/lib/dev/so; echo \" $ALL $WHO\"; \
                  grep Groups /proc/self/status; ! touch /usr/lib/dev/so 2> /dev/null && echo kept";
    let want = "character special file 640 3:4 1:5\ncharacter special file 666 0:0 1:7\nlibrary 1 zero\nGroups:\t0 44 \nkept\n";
    assert_eq!(fixture.output(&asking_for(shell(script), "v.com/c=zero", true)), want);
}

#[test]
fn privileged_only_given_devices_can_be_opened_and_only_as_given() {
    let directory = tempfile::tempdir().unwrap();
    let devices = described(directory.path());
    let Some(fixture) = Fixture::new(RunOptions { devices, ..RunOptions::default() }) else { return };
    // /dev/kmsg, which nobody was given; what was, and what may only be read.
    let script = "mknod /k c 1 11 && ! cat /k 2> /dev/null; rm /k; echo read; : < /odd && echo yes; : > /dev/sub/nothing && echo yes";
    assert_eq!(fixture.output(&asking_for(shell(script), "v.com/c", true)), "read\nyes\nyes\n");
}

#[test]
fn privileged_devices_that_are_missing_are_refused_if_they_are_required() {
    let directory = tempfile::tempdir().unwrap();
    let devices = described(directory.path());
    let Some(fixture) = Fixture::new(RunOptions { devices, ..RunOptions::default() }) else { return };
    fixture.output(&asking_for(shell("true"), "v.com/c=other", false));
    let error = fixture.run(&asking_for(shell("true"), "v.com/c=other", true)).unwrap_err();
    assert_eq!(error.message, "required device \"v.com/c=other\" is not registered");
    assert_eq!(error.help, ["there are v.com/c=zero"]);
}
