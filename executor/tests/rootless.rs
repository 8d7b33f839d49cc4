//! Commands run by somebody without privileges. Started by root, who gives up everything in a second process.
//!
//! A program of its own without a harness, because entering a user namespace needs a process with one thread.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test program says what it does and learns by a variable which half it is"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use executor::sandbox::{
    GivenDevices, HostNetwork, Isolation, IsolationMode, MountSource, Resources, Sandbox, SandboxMount, SandboxSpec,
    Stdio, confine,
};
use solver::{NetworkMode, SecurityMode, Stream};
use tokio_util::sync::CancellationToken;

/// Where the second process works.
const DIRECTORY: &str = "RBUILD_TEST_ROOTLESS";

/// Nobody in particular: without subordinate ids.
const USER: u32 = 65_534;

fn main() {
    match std::env::var_os(DIRECTORY).map(PathBuf::from) {
        Some(directory) => without_privileges(&directory),
        None => prepare(),
    }
}

fn prepare() {
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: needs root to become somebody else, and a static /bin/busybox");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("set mode");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join("base").join(name)).expect("make directory");
    }
    fs::copy("/bin/busybox", root.join("base/bin/busybox")).expect("copy busybox");
    for applet in ["sh", "id", "touch", "rm", "head", "wc", "ls", "grep", "cut"] {
        symlink("busybox", root.join("base/bin").join(applet)).expect("make link");
    }
    fs::write(root.join("base/etc/group"), "root:x:0:\n").expect("write");
    give_away(root);
    let program = root.join("program");
    fs::copy("/proc/self/exe", &program).expect("copy this program");
    let status = Command::new(program).uid(USER).gid(USER).env(DIRECTORY, root).current_dir("/").status();
    assert!(status.expect("start the second process").success());
}

fn give_away(path: &Path) {
    lchown(path, Some(USER), Some(USER)).expect("change owner");
    if path.symlink_metadata().expect("stat").is_dir() {
        fs::read_dir(path).expect("list").for_each(|entry| give_away(&entry.expect("entry").path()));
    }
}

fn without_privileges(directory: &Path) {
    let confinement = match confine(&IsolationMode::Auto, "") {
        Ok(confinement) if confinement.isolation == Isolation::SingleId => confinement,
        other => {
            println!("skipped: {other:?}");
            return;
        }
    };
    let scratch = tempfile::tempdir_in(directory).expect("a scratch directory");
    let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &confinement).expect("a sandbox");
    let script = "id -u; echo $$; touch /made /tmp/x; rm /etc/group; (echo x > /etc/hosts) 2>/dev/null || echo ro; \
                  echo x > /dev/null; head -c 2 /dev/zero | wc -c; ls /t; \
                  grep -E 'CapEff|Seccomp:' /proc/self/status | cut -f2";
    for network in [NetworkMode::Default, NetworkMode::None] {
        let draft = tempfile::tempdir_in(directory).expect("a draft").keep();
        let output = run(&sandbox, spec(directory, &draft, script, network));
        assert_eq!(output, "0\n1\nro\n2\nin\n00000000a80425fb\n2\n");
        let mut names: Vec<_> =
            fs::read_dir(draft.join("upper")).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["etc", "made", "tmp"]);
    }
    println!("ok: commands run in a user namespace with one id");
}

fn spec(directory: &Path, draft: &Path, script: &str, network: NetworkMode) -> SandboxSpec {
    let (upper, work) = (draft.join("upper"), draft.join("work"));
    fs::create_dir(&upper).expect("make directory");
    fs::create_dir(&work).expect("make directory");
    let tmpfs = |target: &str| SandboxMount {
        target: target.to_owned(),
        source: MountSource::Tmpfs { size_bytes: None },
        read_only: false,
    };
    SandboxSpec {
        lower: vec![directory.join("base")],
        upper,
        work,
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        cwd: "/".to_owned(),
        user: String::new(),
        hostname: "buildkitsandbox".to_owned(),
        extra_hosts: Vec::new(),
        network,
        security: SecurityMode::Sandbox,
        handlers: None,
        shm_size_bytes: None,
        ulimits: Vec::new(),
        resources: Resources::default(),
        mounts: vec![tmpfs("/t/in"), tmpfs("/t")],
        given: GivenDevices::default(),
        stdio: Stdio::Piped,
    }
}

fn run(sandbox: &Sandbox, spec: SandboxSpec) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut output = Vec::new();
    let mut log = |_: Stream, bytes: &[u8]| output.extend_from_slice(bytes);
    let exit = runtime
        .block_on(sandbox.run(spec, &mut log, Box::new(|_| {}), &CancellationToken::new()))
        .expect("a command that runs");
    let output = String::from_utf8(output).expect("text");
    assert_eq!(exit.code, 0, "{output}");
    output
}
