//! Steps that an OCI runtime starts (`--isolation=oci:RUNTIME`): the same as with our own sandbox, for every runtime
//! that is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::harness::{Need, Ran, Space, find_program, note, rbuild_bin, wait_for};
use crate::need;

const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// Everything that leaves traces elsewhere: mount points on paths that are there and that are not, accounts, modes,
/// deletions, a directory made by WORKDIR, one made for a mount, links, background processes.
const DOCKERFILE: &str = "FROM busybox\n\
    RUN mkdir -p /srv/d && echo kept > /srv/kept && echo gone > /srv/gone && chmod 4755 /srv/kept && ln -s kept /srv/link\n\
    RUN rm /srv/gone && chown 7:8 /srv/kept && rm -rf /tmp && mkfifo /srv/pipe\n\
    RUN --mount=type=cache,target=/var/cache/x --mount=type=tmpfs,target=/t/deep/er \
        --mount=type=bind,from=busybox,source=/bin,target=/b --mount=type=secret,id=s,target=/run/secrets/s \
        --mount=type=tmpfs,target=/dev/extra \
        echo a > /var/cache/x/a && echo b > /t/deep/er/b && test -x /b/sh && cat /run/secrets/s > /dev/null && echo c > /c\n\
    WORKDIR /made/here\n\
    USER 500:501\n\
    RUN id > /tmp-is-gone 2>/dev/null || id -u && (sleep 0.1 &) && umask\n\
    USER root\n\
    RUN --mount=type=secret,id=s,env=TOKEN --network=none test -n \"$TOKEN\" && hostname > /host && ulimit -n > /files\n\
    RUN --network=host rm -rf /etc/hosts; echo done > /done\n";

/// What a command sees of its confinement.
const LOOK: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; id; umask; hostname; pwd; echo $$; \
    ls /dev; ulimit -n -c; cat /proc/sys/kernel/hostname; (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo ro; \
    wc -c < /proc/kcore; ls /sys/firmware | wc -l; (mkdir /sys/fs/cgroup/x && rmdir /sys/fs/cgroup/x) 2>/dev/null || echo ro; \
    ls -ld /dev/shm /dev/pts /dev/null | cut -c1-10; env | sort; cat /etc/hosts; mknod /blk b 8 0; \
    (head -c1 /blk) 2>&1 | sed 's/.*: //'; mknod /dev/blk b 8 0; (head -c1 /dev/blk) 2>&1 | sed 's/.*: //'; \
    unshare -U true 2>&1 | sed 's/.*: //'; cat | wc -c";

/// The runtimes that are there; why each of the others is not looked at.
fn runtimes() -> Vec<&'static str> {
    let is_there = |name: &&'static str| {
        let reason = Need::Program(name).lacking();
        reason.iter().for_each(|reason| note(&format!("skipped {name} in {}: {reason}", module_path!())));
        reason.is_none()
    };
    RUNTIMES.into_iter().filter(is_there).collect()
}

fn isolated(runtime: &str, args: &[&str]) -> Vec<String> {
    let flag = if runtime == "native" { "auto".to_owned() } else { format!("oci:{runtime}") };
    ["--isolation".to_owned(), flag].into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect()
}

fn sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).expect("archive")).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn layers_are_the_same_bytes() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("Dockerfile", DOCKERFILE);
    space.write("secret", "a secret of nobody");
    let digest = |runtime: &str| {
        let output = format!("type=oci,rewrite-timestamp=true,dest={runtime}.tar");
        let args = isolated(
            runtime,
            &["--no-cache", "-q", "--allow=network.host", "--secret", "id=s,src=secret", "-o", &output, "."],
        );
        let ran = space.command(&args).env("SOURCE_DATE_EPOCH", "0").output().expect("rbuild starts");
        Ran::of(ran).success();
        sha256(&space.path(&format!("{runtime}.tar")))
    };
    let native = digest("native");
    for runtime in runtimes() {
        assert_eq!(digest(runtime), native, "{runtime}");
    }
}

#[test]
fn confinement_is_the_same() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let look = |runtime: &str, user: &str, extra: &str| {
        space.write("Dockerfile", format!("FROM busybox\nUSER {user}\nRUN {extra} exec 2>&1; {LOOK}\n"));
        let args = isolated(
            runtime,
            &["--no-cache", "--progress=rawjson", "--allow=security.insecure", "--ulimit=core=0", "."],
        );
        let ran = space.rbuild(&args);
        assert_eq!(ran.code, 0, "{runtime}: {}", ran.stderr);
        log(&ran.stderr)
    };
    for (user, extra) in [("root", ""), ("500:501", ""), ("root", "--security=insecure")] {
        let native = look("native", user, extra);
        assert!(native.contains("buildkitsandbox"), "{native}");
        for runtime in runtimes() {
            // Some runtimes add a link to kcore.
            let seen = look(runtime, user, extra).replace("core\n", "");
            assert_eq!(seen, native.replace("core\n", ""), "{runtime} as {user} {extra}");
        }
    }
}

/// The output of steps in a log of JSON lines.
fn log(text: &str) -> String {
    let documents = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pieces: Vec<Vec<u8>> = documents
        .flat_map(|document| document["logs"].as_array().cloned().unwrap_or_default())
        .filter_map(|log| base64(log["data"].as_str()?))
        .collect();
    String::from_utf8_lossy(&pieces.concat()).into_owned()
}

/// Decodes base64, as far as a test needs it.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|letter| *letter == byte)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[test]
fn failures_have_the_same_words() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("text", "no program at all\n");
    space.write("script", "#!/no/such/shell\n");
    let cases = [
        "RUN echo out; echo err >&2; exit 3\n",
        "RUN sh -c 'kill -9 $$'; exit $?\n",
        "RUN [\"no-such-program\"]\n",
        "RUN [\"/no/such\"]\n",
        "RUN [\"/etc/passwd\"]\n",
        "COPY --chmod=755 text /text\nRUN [\"/text\"]\n",
        "COPY --chmod=755 script /script\nRUN [\"/script\"]\n",
        "COPY --chmod=700 text /text\nUSER 7\nRUN [\"/text\"]\n",
        "USER nobody-knows\nRUN true\n",
        "RUN --mount=type=bind,source=missing,target=/m true\n",
        "RUN no-such-command\n",
    ];
    for case in cases {
        space.write("Dockerfile", format!("FROM busybox\n{case}"));
        let fail = |runtime: &str| {
            let ran = space.rbuild(isolated(runtime, &["--progress=plain", "."]));
            // Times differ, and so do the numbers of lines that a runtime adds.
            let said = ran.stderr.lines().skip_while(|line| !line.starts_with("------") && !line.starts_with("ERROR"));
            (
                ran.code,
                said.map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned()).collect::<Vec<_>>(),
            )
        };
        let native = fail("native");
        assert_eq!(native.0, 1, "{case}");
        for runtime in runtimes() {
            let (code, said) = fail(runtime);
            assert_eq!(code, native.0, "{runtime}: {case}\n{}", said.join("\n"));
            assert_eq!(said.last(), native.1.last(), "{runtime}: {case}");
        }
    }
}

#[test]
fn a_runtime_that_fails_is_a_fault_of_the_environment() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\nRUN true\n");
    space.write(
        "broken-crun",
        "#!/bin/sh\nwhile [ \"$1\" != --log ]; do shift; done\n\
        echo '{\"msg\":\"out of luck\",\"level\":\"error\"}' > \"$2\"\nexit 1\n",
    );
    std::fs::set_permissions(space.path("broken-crun"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let ran = space.rbuild(isolated("./broken-crun", &["."]));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("did not run the command: out of luck"), "{}", ran.stderr);
    let ran = space.rbuild(isolated("no-such-runtime", &["."]));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("no OCI runtime `no-such-runtime` can be found"), "{}", ran.stderr);
}

#[test]
fn nothing_is_left_of_a_build_that_is_stopped_or_killed() {
    need!(Need::Root, Need::Program("busybox"));
    for runtime in runtimes() {
        for signal in ["INT", "KILL"] {
            let space = Space::with_busybox();
            let mark = format!("9{:06}", std::process::id() % 1_000_000);
            space.write("Dockerfile", format!("FROM busybox\nRUN setsid sleep {mark}1 & sleep {mark}2\n"));
            let mut build = space.command(isolated(runtime, &["-q", "."]));
            let mut build = build.stderr(Stdio::null()).spawn().expect("rbuild starts");
            wait_for(|| processes_with(&mark).len() >= 2);
            let since = Instant::now();
            let status = Command::new("kill").args([&format!("-{signal}"), &build.id().to_string()]).status();
            assert!(status.expect("kill").success());
            drop(build.wait());
            while !processes_with(&mark).is_empty() {
                assert!(since.elapsed() < Duration::from_secs(2), "{runtime}: {:?}", processes_with(&mark));
                std::thread::sleep(Duration::from_millis(20));
            }
            let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
            assert!(!table.contains(space.path("").to_str().expect("UTF-8")), "{runtime} {signal}");
            assert!(signal == "KILL" || groups_of(build.id()).is_empty(), "{runtime}: {:?}", groups_of(build.id()));
            // The next one cleans up behind the killed one, and works.
            assert_eq!(space.run_in("busybox", &["echo", "fine"]), "fine\n");
            assert_eq!(groups_of(build.id()), Vec::<PathBuf>::new(), "{runtime}");
        }
    }
}

/// Control groups that were made for a build, or by a runtime for its containers, in every tree.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    fn collect(directory: &Path, depth: usize, mark: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if depth > 0 && path.is_dir() && !path.is_symlink() {
                if entry.file_name().to_string_lossy().contains(mark) {
                    found.push(path.clone());
                }
                collect(&path, depth - 1, mark, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(Path::new("/sys/fs/cgroup"), 4, &format!("-{pid}-"), &mut found);
    found
}

fn processes_with(mark: &str) -> Vec<String> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path().join("cmdline"));
    let lines = pids.filter_map(|path| std::fs::read(path).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.starts_with("sleep ") && line.contains(mark)).collect()
}

#[test]
fn a_person_gets_a_terminal() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("script"));
    let space = Space::with_busybox();
    for runtime in runtimes() {
        let line = format!(
            "{} --isolation=oci:{runtime} run --rm -t busybox sh -c 'tty; stty size; exit 5'",
            rbuild_bin().display()
        );
        let mut script = Command::new("script");
        script.args(["-qec", &format!("stty rows 31 cols 97; {line}"), "/dev/null"]);
        let ran = script.env("RBUILD_STORE", space.store()).stdin(Stdio::null()).output().expect("script starts");
        let ran = Ran::of(ran);
        assert!(ran.stdout.contains("/dev/pts/0") || ran.stdout.contains("/dev/console"), "{runtime}: {}", ran.stdout);
        assert!(ran.stdout.contains("31 97"), "{runtime}: {}", ran.stdout);
        assert_eq!(ran.code, 5, "{runtime}: {}", ran.stdout);
    }
}

#[test]
fn secrets_in_the_environment_reach_no_disk() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    for runtime in runtimes() {
        space.write("Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=s,env=TOKEN test \"$TOKEN\" && sleep 1\n");
        let mut build = space.command(isolated(runtime, &["-q", "--no-cache", "--secret", "id=s,env=SECRET", "."]));
        let mut build = build.env("SECRET", "only-in-memory-5309").spawn().expect("rbuild starts");
        while build.try_wait().expect("wait").is_none() {
            let found = Command::new("grep").args(["-rlaF", "only-in-memory-5309"]).arg(space.store()).output();
            assert_eq!(String::from_utf8_lossy(&found.expect("grep").stdout), "", "{runtime}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(build.wait().expect("wait").success(), "{runtime}");
    }
}

/// A user of this machine with subordinate ids, and the programs that map them.
fn user_with_ids() -> Option<String> {
    let subuid = std::fs::read_to_string("/etc/subuid").ok()?;
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let known = |name: &&str| *name != "root" && passwd.lines().any(|line| line.starts_with(&format!("{name}:")));
    let name = subuid.lines().filter_map(|line| line.split(':').next()).find(known)?.to_owned();
    find_program("newuidmap").map(|_| name)
}

/// The program as an ordinary user in a directory that is theirs.
fn as_user(user: &str, directory: &Path, args: &[String]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--init-groups"]).arg(rbuild_bin()).args(args);
    command.current_dir(directory).env("RBUILD_STORE", directory.join("store")).env("NO_COLOR", "1");
    command.env("SOURCE_DATE_EPOCH", "0").stdin(Stdio::null()).output().expect("setpriv starts")
}

#[test]
fn an_ordinary_user_gets_the_same_layers() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("setpriv"));
    let Some(user) = user_with_ids() else { return note("skipped: no user with subordinate ids") };
    let space = Space::with_busybox();
    let directory = PathBuf::from(space.open_dir("home"));
    std::fs::set_permissions(space.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let copy = Command::new("cp").args(["-a", "busybox"]).arg(&directory).current_dir(space.path("")).status();
    assert!(copy.expect("cp").success());
    std::fs::write(directory.join("Dockerfile"), DOCKERFILE).expect("write");
    std::fs::write(directory.join("secret"), "a secret of nobody").expect("write");
    let base = as_user(&user, &directory, &["-q", "-t", "busybox", "busybox"].map(str::to_owned));
    let base = Ran::of(base);
    if base.code == 3 {
        return note(&format!("skipped: {}", base.stderr));
    }
    base.success();
    let digest = |runtime: &str| {
        let output = format!("type=oci,rewrite-timestamp=true,dest={runtime}.tar");
        let args = isolated(
            runtime,
            &["--no-cache", "-q", "--allow=network.host", "--secret", "id=s,src=secret", "-o", &output, "."],
        );
        Ran::of(as_user(&user, &directory, &args)).success();
        sha256(&directory.join(format!("{runtime}.tar")))
    };
    let native = digest("native");
    for runtime in runtimes() {
        assert_eq!(digest(runtime), native, "{runtime}");
    }
}
