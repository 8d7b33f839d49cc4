//! Commands in real containers. They need root and overlayfs, and a static busybox for a root; otherwise they say what
//! is missing and pass.

#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a skipped test says why, a measuring one what; RBUILD_TEST_DIR chooses the file system"
)]

mod given;
mod processes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use solver::{NetworkMode, SecurityMode, Ulimit};
use tempfile::TempDir;

use super::*;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A busybox root, a sandbox, and a place for layers.
struct Fixture {
    directory: TempDir,
    sandbox: Sandbox,
    base: PathBuf,
}

impl Fixture {
    /// `None` after saying why.
    fn new() -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("skipped: {why}");
            None
        };
        if !rustix::process::geteuid().is_root() || !missing_privileges().is_empty() {
            return skip("needs root with CAP_SYS_ADMIN");
        }
        if !Path::new("/bin/busybox").exists() {
            return skip("needs a static /bin/busybox");
        }
        let directory = tempfile::tempdir_in(scratch_parent()).unwrap();
        let base = directory.path().join("base");
        make_busybox(&base);
        fs::create_dir(directory.path().join("sandbox")).unwrap();
        let scratch = tempfile::tempdir_in(directory.path().join("sandbox")).unwrap();
        let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &Confinement::of_this_process()).unwrap();
        let fixture = Self { directory, sandbox, base };
        match fixture.sh("true") {
            Ok(_) => Some(fixture),
            Err(error) => skip(&format!("no overlayfs here: {error}")),
        }
    }

    fn spec(&self, args: &[&str]) -> SandboxSpec {
        let step = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        let (upper, work) = (step.join("upper"), step.join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        SandboxSpec {
            lower: vec![self.base.clone()],
            upper,
            work,
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            cwd: "/".to_owned(),
            user: String::new(),
            hostname: "buildkitsandbox".to_owned(),
            extra_hosts: Vec::new(),
            network: NetworkMode::Host,
            security: SecurityMode::Sandbox,
            handlers: None,
            shm_size_bytes: None,
            ulimits: Vec::new(),
            resources: Resources::default(),
            mounts: Vec::new(),
            given: GivenDevices::default(),
            stdio: Stdio::Piped,
        }
    }

    fn shell(&self, script: &str) -> SandboxSpec {
        self.spec(&["/bin/sh", "-c", script])
    }

    fn run(&self, spec: &SandboxSpec) -> Result<Outcome, SandboxError> {
        let mut output = String::new();
        let mut log = |_: Stream, bytes: &[u8]| output.push_str(&String::from_utf8_lossy(bytes));
        let cancel = CancellationToken::new();
        let exit = runtime().block_on(self.sandbox.run(spec.clone(), &mut log, Box::new(|_| {}), &cancel))?;
        Ok(Outcome { exit, output, upper: listing(&spec.upper) })
    }

    fn sh(&self, script: &str) -> Result<Outcome, SandboxError> {
        self.run(&self.shell(script))
    }

    /// The output of a script that must succeed and write nothing.
    fn clean(&self, script: &str) -> String {
        let outcome = self.sh(script).unwrap();
        assert_eq!((outcome.exit.code, &outcome.upper[..]), (0, &[][..]), "{script}: {}", outcome.output);
        outcome.output
    }

    /// A new directory with files.
    fn tree(&self, files: &[(&str, &str)]) -> PathBuf {
        let root = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }
}

struct Outcome {
    exit: Exit,
    output: String,
    /// Every path in the upper directory, sorted.
    upper: Vec<String>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A directory that overlayfs takes as an upper one.
fn scratch_parent() -> PathBuf {
    std::env::var_os("RBUILD_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

fn make_busybox(root: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n\
                  app:x:500:501::/srv/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\napp:x:501:\nops:x:600:app,root\n").unwrap();
}

fn listing(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            all.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path);
            }
        }
    }
    all.sort();
    all
}

fn mount(target: &str, source: MountSource, read_only: bool) -> SandboxMount {
    SandboxMount { target: target.to_owned(), source, read_only }
}

fn tmpfs(target: &str) -> SandboxMount {
    mount(target, MountSource::Tmpfs { size_bytes: None }, false)
}

/// Mounts and processes of the machine that have to do with us.
fn remains(fixture: &Fixture) -> (usize, usize) {
    let needle = fixture.directory.path().to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(needle)).count();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| fs::read_to_string(entry.path().join("mountinfo")).is_ok_and(|mounts| mounts.contains(needle)));
    (mounts, processes.count())
}

/// overlayfs takes 500 layers, and asks each of them for every name.
#[test]
fn privileged_layers_without_entries_are_not_mounted_and_still_give_the_root_its_mode() {
    let Some(fixture) = Fixture::new() else { return };
    let mut layers = vec![fixture.tree(&[("kept", "in the middle\n")])];
    layers.extend((0..600).map(|_| fixture.tree(&[])));
    fs::set_permissions(layers.last().unwrap(), fs::Permissions::from_mode(0o751)).unwrap();
    for _ in 0..2 {
        let mut spec = fixture.shell("stat -c %a / && cat /kept && ! cat /gone && touch /new");
        spec.lower.extend(layers.iter().cloned());
        let outcome = fixture.run(&spec).unwrap();
        assert_eq!(outcome.exit.code, 0, "{}", outcome.output);
        assert!(outcome.output.starts_with("751\nin the middle\n"), "{}", outcome.output);
        assert_eq!(outcome.upper, ["new"]);
    }
}

#[test]
fn privileged_identity_and_confinement() {
    let Some(fixture) = Fixture::new() else { return };
    let status = fixture.clean("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    let want = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
                CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    assert_eq!(status, want);
    let mut spec = fixture.shell("grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | tr '\\n' ' '");
    spec.user = "1000".to_owned();
    let zero = "0000000000000000";
    assert_eq!(fixture.run(&spec).unwrap().output, format!("{zero} {zero} {zero} 00000000a80425fb {zero} "));

    assert_eq!(
        fixture.clean("echo $$ /proc/[0-9]* /dev/mqueue/*; umask; hostname"),
        "1 /proc/1 /dev/mqueue/*\n0022\nbuildkitsandbox\n"
    );
    assert_eq!(fixture.clean("cat; tty; [ -t 1 ]; echo $?"), "not a tty\n1\n");
    // The filter: mounting, new namespaces and the like are refused, ordinary life goes on.
    for refused in ["mount -t tmpfs x /tmp", "unshare -m true", "unshare -U true", "hostname other", "umount /proc"] {
        let outcome = fixture.sh(&format!("{refused} 2>&1")).unwrap();
        assert_ne!(outcome.exit.code, 0, "{refused}");
        let words = ["not permitted", "permission denied"];
        assert!(words.iter().any(|words| outcome.output.contains(words)), "{refused}: {}", outcome.output);
    }
}

#[test]
fn privileged_every_user_gets_its_ids_and_home() {
    let Some(fixture) = Fixture::new() else { return };
    let cases = [
        ("", "0 0 0 600 /root"),
        ("root", "0 0 0 600 /root"),
        ("app", "500 501 501 600 /srv/app"),
        ("500", "500 501 501 600 /srv/app"),
        ("1234", "1234 0 0 /"),
        ("app:ops", "500 600 600 /srv/app"),
        ("500:601", "500 601 601 /srv/app"),
        ("app:0", "500 0 0 /srv/app"),
    ];
    for (user, want) in cases {
        let mut spec = fixture.shell("echo $(id -u; id -g; id -G; echo $HOME)");
        spec.user = user.to_owned();
        assert_eq!(fixture.run(&spec).unwrap().output, format!("{want}\n"), "{user:?}");
    }
    let mut spec = fixture.shell("true");
    spec.user = "ghost".to_owned();
    let error = fixture.run(&spec).err().unwrap().to_string();
    assert_eq!(error, "unable to find user ghost: no matching entries in passwd file");
    // A passwd file that leads out of the root, or is none, is not read.
    let hostile = fixture.tree(&[("etc/x", "")]);
    symlink("../../../../../../../../etc/passwd", hostile.join("etc/passwd")).unwrap();
    let mut spec = fixture.shell("true");
    spec.lower.push(hostile);
    spec.user = "daemon".to_owned();
    assert!(matches!(fixture.run(&spec), Err(SandboxError::User(_))));
}

#[test]
fn privileged_devices_and_mounts_are_as_specified() {
    let Some(fixture) = Fixture::new() else { return };
    let devices = fixture.clean("cd /dev; for f in *; do stat -c '%n %F %a' $f; done");
    let want = "fd symbolic link 777\nfull character special file 666\nmqueue directory 1777\n\
                null character special file 666\nptmx symbolic link 777\npts directory 755\n\
                random character special file 666\nshm directory 1777\nstderr symbolic link 777\n\
                stdin symbolic link 777\nstdout symbolic link 777\ntty character special file 666\n\
                urandom character special file 666\nzero character special file 666\n";
    assert_eq!(devices, want);
    let mounts = fixture.clean("cut -d' ' -f2,3,4 /proc/mounts");
    let mounts: BTreeMap<&str, &str> = mounts.lines().filter_map(|line| line.split_once(' ')).collect();
    let starts = [
        ("/", "overlay rw"),
        ("/proc", "proc rw,nosuid,nodev,noexec"),
        ("/dev", "tmpfs rw,nosuid,size=65536k,mode=755"),
        ("/dev/pts", "devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k"),
        ("/dev/mqueue", "mqueue rw,nosuid,nodev,noexec"),
        ("/sys", "sysfs ro,nosuid,nodev,noexec"),
        ("/proc/sys", "proc ro,nosuid,nodev,noexec"),
    ];
    for (target, start) in starts {
        assert!(mounts.get(target).is_some_and(|rest| rest.starts_with(start)), "{target}: {:?}", mounts.get(target));
    }
    for path in rootfs::MASKED.iter().filter(|path| Path::new(path).exists()) {
        let empty = fixture.clean(&format!("[ -d {path} ] && ls {path} | wc -l || wc -c < {path}"));
        assert_eq!(empty, "0\n", "{path}");
    }
    for path in rootfs::READ_ONLY.iter().filter(|path| Path::new(path).is_dir()) {
        let options = mounts.get(*path).unwrap();
        assert!(options.starts_with("proc ro,"), "{path}: {options}");
    }
    assert_eq!(
        fixture.clean("(echo 1 > /proc/sys/kernel/domainname) 2>&1; (mkdir /sys/x) 2>&1; true"),
        "/bin/sh: can't create /proc/sys/kernel/domainname: Read-only file system\n\
         mkdir: can't create directory '/sys/x': Read-only file system\n"
    );
}

#[test]
fn privileged_network_files_are_seen_and_leave_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell(
        "ls /etc | tr '\\n' ' '; cat /etc/hosts; for f in hosts resolv.conf; do (echo x >> /etc/$f) 2>/dev/null || echo ro; done",
    );
    spec.extra_hosts = vec![("db.test".to_owned(), "10.1.2.3".to_owned())];
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!(
        outcome.output,
        "group hosts passwd resolv.conf 127.0.0.1\tlocalhost buildkitsandbox\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb.test\nro\nro\n"
    );
    assert!(outcome.upper.is_empty(), "{:?}", outcome.upper);
    // Files of the image, also behind a symlink that leads nowhere yet, are hidden and stay as they are.
    let own = fixture.tree(&[("etc/hosts", "own\n")]);
    symlink("../run/resolve/stub.conf", own.join("etc/resolv.conf")).unwrap();
    let mut spec = fixture.shell("grep -c own /etc/hosts; readlink /etc/resolv.conf; ls /run/resolve");
    spec.lower.push(own.clone());
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!(outcome.output, "0\n../run/resolve/stub.conf\nstub.conf\n");
    assert!(outcome.upper.is_empty(), "{:?}", outcome.upper);
    assert_eq!(fs::read_to_string(own.join("etc/hosts")).unwrap(), "own\n");
}

#[test]
fn privileged_hidden_stubs_are_replaced_and_removed() {
    let Some(fixture) = Fixture::new() else { return };
    // A layer that has deleted hosts (a whiteout), and one whose /etc hides everything below (an opaque directory).
    let deleted = fixture.tree(&[("etc/other", "")]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        deleted.join("etc/hosts"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    let opaque = fixture.tree(&[("etc/only", "x")]);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(opaque.join("etc"), "trusted.overlay.opaque", b"y", flags).unwrap();
    for layer in [deleted, opaque] {
        let before = fs::metadata(layer.join("etc")).unwrap().mtime();
        let mut spec = fixture.shell("wc -l < /etc/hosts; touch /made");
        spec.lower.push(layer.clone());
        let outcome = fixture.run(&spec).unwrap();
        assert_eq!((outcome.output.as_str(), outcome.exit.code), ("2\n", 0));
        assert_eq!(outcome.upper, ["made"]);
        assert_eq!(fs::metadata(layer.join("etc")).unwrap().mtime(), before);
        // What the command writes beside it stays, with the time of that.
        let mut spec = fixture.shell("touch -d '2001-01-01 00:00:00' /etc/new; touch -d '2001-01-01 00:00:00' /etc");
        spec.lower.push(layer);
        let outcome = fixture.run(&spec).unwrap();
        assert_eq!(outcome.upper, ["etc", "etc/new"], "{}", outcome.output);
        assert_eq!(fs::metadata(spec.upper.join("etc")).unwrap().mtime(), 978_307_200);
    }
}

#[test]
fn privileged_mount_points_leave_no_trace() {
    let Some(fixture) = Fixture::new() else { return };
    let cases: [(&str, &str, &[&str]); 6] = [
        ("/t/u", "true", &[]),
        ("/p/q/r", "echo x > /p/q/file", &["p", "p/q", "p/q/file"]),
        ("/x/y", "mkdir /x/z", &["x", "x/z"]),
        ("/x/y", "chmod 700 /x", &[]),
        ("/etc/deep/er", "true", &[]),
        ("/lnk/t", "grep -q ' /root/t tmpfs' /proc/mounts", &[]),
    ];
    let links = fixture.tree(&[]);
    symlink("/root", links.join("lnk")).unwrap();
    for (target, script, upper) in cases {
        let mut spec = fixture.shell(script);
        spec.lower.push(links.clone());
        spec.mounts = vec![tmpfs(target)];
        let outcome = fixture.run(&spec).unwrap();
        assert_eq!(outcome.exit.code, 0, "{script}: {}", outcome.output);
        assert_eq!(outcome.upper, upper, "{script}");
    }
    // An empty root keeps the three kernel directories, and nothing else.
    let mut spec = fixture.spec(&["/bin/busybox", "touch", "/made"]);
    spec.lower.clear();
    let bin = MountSource::Layers { lower: vec![fixture.base.clone()], path: "/bin".to_owned() };
    spec.mounts = vec![mount("/bin", bin, true), tmpfs("/t/u")];
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!(outcome.upper, ["dev", "made", "proc", "sys"], "{}", outcome.output);
    assert_eq!(fs::metadata(spec.upper.join("proc")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn privileged_binds_caches_tmpfs_and_secrets() {
    let Some(fixture) = Fixture::new() else { return };
    let context = fixture.tree(&[("a.txt", "a\n"), ("sub/b.txt", "b\n")]);
    let cache = fixture.tree(&[]);
    let bind = |path: &str, writes| MountSource::Directory { root: context.clone(), path: path.to_owned(), writes };
    let mut spec = fixture.shell(
        "cat /src/a.txt /deep/er/file; (echo x > /src/new) 2>/dev/null || echo read-only; \
         echo changed > /rw/a.txt; cat /rw/a.txt; echo kept > /cache/f; ls /m",
    );
    spec.mounts = vec![
        mount("/src", bind("/", Writes::Vanish), true),
        mount("/deep/er/file", bind("/sub/b.txt", Writes::Vanish), true),
        mount("/rw", bind("/", Writes::Vanish), false),
        mount(
            "/cache",
            MountSource::Directory { root: cache.clone(), path: "/".to_owned(), writes: Writes::Stay },
            false,
        ),
        tmpfs("/m/in"),
        tmpfs("/m"),
    ];
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!(outcome.output, "a\nb\nread-only\nchanged\nin\n");
    assert!(outcome.upper.is_empty(), "{:?}", outcome.upper);
    assert_eq!(fs::read_to_string(context.join("a.txt")).unwrap(), "a\n");
    assert_eq!(fs::read_to_string(cache.join("f")).unwrap(), "kept\n");

    let secret = MemoryFile { content: b"s3cret\n"[..].into(), uid: 7, gid: 8, mode: 0o440 };
    let mut spec = fixture.shell(
        "cat /run/secrets/token; stat -c '%a %u:%g' /run/secrets/token; (echo x > /run/secrets/token) 2>/dev/null || echo ro; \
         grep /run/secrets /proc/mounts | cut -d' ' -f3,4",
    );
    spec.mounts = vec![mount("/run/secrets/token", MountSource::File(secret), true)];
    let outcome = fixture.run(&spec).unwrap();
    let (text, options) = outcome.output.rsplit_once("tmpfs ").unwrap();
    assert_eq!(text, "s3cret\n440 7:8\nro\n");
    assert!(options.starts_with("ro,nosuid,nodev,noexec"), "{options}");
    assert!(outcome.upper.is_empty(), "{:?}", outcome.upper);

    // Links in a source cannot lead out of it, and a missing source says so.
    symlink("../../../../../../../../../etc/hostname", context.join("out")).unwrap();
    for path in ["/out", "/nope"] {
        let mut spec = fixture.shell("true");
        spec.mounts = vec![mount("/m", bind(path, Writes::Vanish), true)];
        let error = fixture.run(&spec).err().unwrap().to_string();
        assert_eq!(error, format!("\"{path}\": not found"));
    }
    // Our own mounts give way, also below /proc and /sys.
    let mut spec = fixture.shell("cat /etc/hosts /sys/fs/b.txt; ls /proc/bus");
    spec.mounts = vec![
        mount("/etc/hosts", bind("/a.txt", Writes::Vanish), true),
        mount("/sys/fs", bind("/sub", Writes::Vanish), true),
        tmpfs("/proc/bus"),
    ];
    assert_eq!(fixture.run(&spec).unwrap().output, "a\nb\n");
}

#[test]
fn privileged_sizes_and_limits() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell("df -k /dev/shm /t | awk '{print $2}' | tail -n 2; ulimit -n; ulimit -Hn");
    spec.shm_size_bytes = Some(128 << 20);
    spec.mounts = vec![mount("/t", MountSource::Tmpfs { size_bytes: Some(2 << 20) }, false)];
    spec.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
    assert_eq!(fixture.run(&spec).unwrap().output, "131072\n2048\n100\n200\n");
}

#[test]
fn privileged_networks() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell("ls /sys/class/net; wc -l < /proc/net/route; ip -o addr show lo | grep -c 127.0.0.1");
    spec.network = NetworkMode::None;
    assert_eq!(fixture.run(&spec).unwrap().output, "lo\n1\n1\n");
    let mut spec = fixture.shell("readlink /proc/self/ns/net");
    spec.network = NetworkMode::Default;
    let ours = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(fixture.run(&spec).unwrap().output.trim(), ours.to_str().unwrap());
}

#[test]
fn privileged_endings() {
    let Some(fixture) = Fixture::new() else { return };
    let cases: [(&[&str], i32, &str); 9] = [
        (&["/bin/sh", "-c", "exit 3"], 3, ""),
        (&["/bin/sh", "-c", "(sh -c 'kill -9 $$'); exit $?"], 137, "Killed\n"),
        // The first process of a pid namespace does not hear its own signals.
        (&["/bin/sh", "-c", "kill -9 $$; kill -TERM $$; echo here"], 0, "here\n"),
        (&["no-such-program", "x"], 1, "exec: \"no-such-program\": executable file not found in $PATH\n"),
        (&["/no/such"], 1, "exec: \"/no/such\": stat /no/such: no such file or directory\n"),
        (&["/etc/passwd"], 1, "exec: \"/etc/passwd\": permission denied\n"),
        (&["sh", "-c", "echo out; echo err >&2"], 0, "out\nerr\n"),
        (&["/alien"], 1, "exec /alien: exec format error\n"),
        (&["/orphan"], 1, "exec /orphan: no such file or directory\n"),
    ];
    let odd = fixture.tree(&[("alien", "\x7fELF no program of this machine"), ("orphan", "#!/no/interpreter\n")]);
    for name in ["alien", "orphan"] {
        fs::set_permissions(odd.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (args, code, output) in cases {
        let mut spec = fixture.spec(args);
        spec.lower.push(odd.clone());
        let outcome = fixture.run(&spec).unwrap();
        let got: String = outcome.output;
        assert_eq!((outcome.exit.code, got.as_str()), (code, output), "{args:?}");
        assert_eq!(outcome.exit.not_started.is_some(), output.starts_with("exec"), "{args:?}");
        assert!(outcome.upper.is_empty());
    }
}

#[test]
fn privileged_32_bit_programs_run_under_the_filter() {
    let Some(fixture) = Fixture::new() else { return };
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("skipped: needs x86_64");
        return;
    }
    // `_exit(42)` by interrupt, and `unshare(CLONE_NEWNS)` whose result becomes the exit code.
    let exit_42: &[u8] = &[0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80];
    let unshare: &[u8] =
        &[0xb8, 0x36, 0x01, 0, 0, 0xbb, 0, 0, 2, 0, 0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80];
    for (code, want) in [(exit_42, 42), (unshare, libc::EPERM)] {
        let root = fixture.tree(&[]);
        fs::write(root.join("prog"), elf32(code)).unwrap();
        fs::set_permissions(root.join("prog"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut spec = fixture.spec(&["/prog"]);
        spec.lower.push(root);
        let exit = fixture.run(&spec).unwrap().exit;
        if exit.not_started == Some(NotStarted::WrongFormat) {
            eprintln!("skipped: this kernel runs no 32-bit programs");
            return;
        }
        assert_eq!(exit.code, want);
    }
}

/// A minimal static program for i386.
fn elf32(code: &[u8]) -> Vec<u8> {
    let base: u32 = 0x0804_8000;
    let size = 84 + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, base + 84, 52, 0, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, 0, base, base, size, size, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(code);
    file
}

#[test]
fn privileged_working_directory_is_made_for_the_user() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell("pwd && touch x");
    spec.user = "12".to_owned();
    spec.cwd = "/made/later".to_owned();
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!((outcome.output.as_str(), outcome.exit.code), ("/made/later\n", 0));
    assert_eq!(outcome.upper, ["made", "made/later", "made/later/x"]);
    for path in ["made", "made/later"] {
        let found = fs::metadata(spec.upper.join(path)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o755, 12, 0));
    }
}

#[test]
fn privileged_setuid_works_and_background_processes_die() {
    let Some(fixture) = Fixture::new() else { return };
    let suid = fixture.tree(&[]);
    fs::copy("/bin/busybox", suid.join("crontab")).unwrap();
    fs::set_permissions(suid.join("crontab"), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut spec = fixture.shell("/crontab -l 2>&1 | head -n 1; (sleep 5; touch /late) & echo started");
    spec.user = "nobody".to_owned();
    spec.lower.push(suid);
    let start = Instant::now();
    let outcome = fixture.run(&spec).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(!outcome.output.contains("must be suid"), "{}", outcome.output);
    assert!(outcome.output.ends_with("started\n"), "{}", outcome.output);
    assert_eq!(remains(&fixture), (0, 0));
}

#[test]
fn privileged_insecure_steps_have_everything() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell(
        "grep -E 'CapEff|Seccomp:' /proc/self/status | cut -f2 | tr '\\n' ' '; mkdir /m; mount -t tmpfs x /m && echo mounted; \
         umount /m; rmdir /m; [ -w /proc/sys/kernel/hostname ] && echo writable; umount /etc/hosts && rm /etc/hosts",
    );
    spec.security = SecurityMode::Insecure;
    let outcome = fixture.run(&spec).unwrap();
    let held = rustix::thread::capabilities(None).unwrap().permitted.bits();
    assert_eq!(outcome.output, format!("{held:016x} 0 mounted\nwritable\n"));
    // Its own doing; but the whiteout of a file that never was is gone.
    assert_eq!(outcome.upper, ["etc"]);
}

#[test]
fn privileged_120_layers() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell("cat /f119 /same; ls -d /f* | wc -l");
    for index in 0..120 {
        let layer = fixture.tree(&[(&format!("f{index}"), "x\n"), ("same", &format!("{index}\n"))]);
        spec.lower.push(layer);
    }
    assert_eq!(fixture.run(&spec).unwrap().output, "x\n119\n120\n");
}

#[test]
fn privileged_cancelled_and_dropped_commands_leave_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "trap '' TERM INT; (while :; do :; done) & sleep 1000 & echo started; sleep 1000";
    for by_token in [true, false] {
        let spec = fixture.shell(script);
        let start = Instant::now();
        runtime().block_on(async {
            let cancel = CancellationToken::new();
            let started = CancellationToken::new();
            let mut log = |_: Stream, _: &[u8]| started.cancel();
            let run = fixture.sandbox.run(spec, &mut log, Box::new(|_| {}), &cancel);
            tokio::pin!(run);
            tokio::select! {
                _ = &mut run => panic!("ended by itself"),
                () = started.cancelled() => {}
            }
            if by_token {
                cancel.cancel();
                assert!(matches!(run.await, Err(SandboxError::Cancelled)));
            }
        });
        assert_eq!(remains(&fixture), (0, 0));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn privileged_many_at_once() {
    let Some(fixture) = Fixture::new() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runs: Vec<_> = (0..24)
        .map(|index| {
            let (sandbox, spec) =
                (fixture.sandbox.clone(), fixture.shell(&format!("echo {index}; yes | head -c 300000 > /f")));
            runtime.spawn(async move {
                let mut output = Vec::new();
                let mut log = |_: Stream, bytes: &[u8]| output.extend_from_slice(bytes);
                let exit = sandbox.run(spec, &mut log, Box::new(|_| {}), &CancellationToken::new()).await.unwrap();
                (exit.code, output)
            })
        })
        .collect();
    for (index, run) in runs.into_iter().enumerate() {
        let (code, output) = runtime.block_on(run).unwrap();
        assert_eq!((code, String::from_utf8(output).unwrap()), (0, format!("{index}\n")));
    }
    assert_eq!(remains(&fixture), (0, 0));
}

#[test]
fn privileged_memory_limits_are_noticed() {
    let Some(fixture) = Fixture::new() else { return };
    let mut spec = fixture.shell("head -c 200m /dev/zero | tail -c 190m | wc -c; exit 9");
    spec.resources.memory_bytes = Some(16 << 20);
    spec.resources.memory_swap_bytes = Some(16 << 20);
    let outcome = fixture.run(&spec).unwrap();
    if !outcome.exit.warnings.is_empty() {
        eprintln!("skipped: {:?}", outcome.exit.warnings);
        return;
    }
    assert!(outcome.exit.out_of_memory, "{}", outcome.output);
}

#[test]
fn privileged_devices_of_the_machine_stay_closed() {
    let Some(fixture) = Fixture::new() else { return };
    let partitions = fs::read_to_string("/proc/partitions").unwrap();
    let disk = partitions.lines().skip(2).find_map(|line| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?))
    });
    let Some((major, minor)) = disk else {
        eprintln!("skipped: this machine has no disk");
        return;
    };
    // A root that brings a node along, and nodes made by the command everywhere it can write.
    let hostile = fixture.tree(&[]);
    let block = rustix::fs::FileType::BlockDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, hostile.join("disk"), block, mode, rustix::fs::makedev(major, minor)).unwrap();
    let script = format!(
        "for d in / /dev/ /t/ /tmp/ /c/; do mknod ${{d}}made b {major} {minor} || echo cannot make ${{d}}; done; \
         for f in /disk /made /dev/made /t/made /tmp/made /c/made; do head -c 1 $f >/dev/null 2>&1 && echo $f open; done; \
         echo x > /dev/null && head -c 1 /dev/zero | wc -c; rm /c/made; \
         mknod /null c 1 3 && (echo x > /null) 2>/dev/null && echo harmless node works"
    );
    let cache = fixture.tree(&[]);
    let mut spec = fixture.shell(&script);
    spec.lower.push(hostile);
    let source = MountSource::Directory { root: cache, path: "/".to_owned(), writes: Writes::Stay };
    spec.mounts = vec![tmpfs("/t"), mount("/c", source, false)];
    let filtered = fixture.sandbox.host.guard().policy(SecurityMode::Sandbox) == guard::DevicePolicy::Filtered;
    let harmless = if filtered { "harmless node works\n" } else { "" };
    assert_eq!(fixture.run(&spec).unwrap().output, format!("1\n{harmless}"));
    if !filtered {
        eprintln!("skipped: no filter on control groups here");
    }

    // The same without control groups.
    let scratch = tempfile::tempdir_in(fixture.directory.path()).unwrap();
    let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &Confinement::of_this_process()).unwrap();
    sandbox.host.guard.set(guard::DeviceGuard::Mounts).unwrap();
    let fixture = Fixture { sandbox, ..fixture };
    let again = fixture.shell("");
    let spec = SandboxSpec { upper: again.upper, work: again.work, ..spec };
    assert_eq!(fixture.run(&spec).unwrap().output, "1\n");
}

#[test]
fn privileged_our_own_program_is_not_executed() {
    let Some(fixture) = Fixture::new() else { return };
    let hostile = fixture.tree(&[("script", "#!/proc/self/exe --help\n"), ("outer", "#!/script\n")]);
    symlink("/proc/self/exe", hostile.join("link")).unwrap();
    for name in ["script", "outer"] {
        fs::set_permissions(hostile.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for program in ["/script", "/outer", "/link", "/proc/self/exe"] {
        let mut spec = fixture.spec(&[program]);
        spec.lower.push(hostile.clone());
        assert_eq!(fixture.run(&spec).unwrap().exit.not_started, Some(NotStarted::Denied), "{program}");
    }
}

#[test]
fn privileged_cost_of_a_step() {
    let Some(fixture) = Fixture::new() else { return };
    let runtime = runtime();
    for (name, network) in [("host network", NetworkMode::Host), ("own network", NetworkMode::None)] {
        // The machine does other things as well: the best of some batches says what a step costs.
        let best = (0..8).map(|_| batch(&fixture, &runtime, network)).fold(f64::INFINITY, f64::min);
        eprintln!("{name}: {best:.2} ms a step");
    }
}

/// Milliseconds a step.
fn batch(fixture: &Fixture, runtime: &tokio::runtime::Runtime, network: NetworkMode) -> f64 {
    const STEPS: u32 = 20;
    let specs: Vec<_> = (0..STEPS).map(|_| SandboxSpec { network, ..fixture.shell("true") }).collect();
    let start = Instant::now();
    for spec in specs {
        let mut log = |_: Stream, _: &[u8]| {};
        let exit =
            runtime.block_on(fixture.sandbox.run(spec, &mut log, Box::new(|_| {}), &CancellationToken::new())).unwrap();
        assert!(exit.success());
    }
    start.elapsed().as_secs_f64() * 1000.0 / f64::from(STEPS)
}
