//! Steps that try to get out: each attempt is refused, and the host is as it was.
//!
//! The attempts are a program, `escape/attempts.c`, that a step runs. There is one test a tier of isolation: what
//! they have in common takes the flags that choose the tier.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Need, Ran, Space, note, succeed, wait_for, workspace};
use crate::need;

/// A tier of isolation.
struct Tier {
    /// Flags that choose it.
    flags: &'static [&'static str],
    /// Whether the builder has no rights on this machine.
    is_for_nobody: bool,
    /// Where its store lies, if its layers are not those of the usual one.
    store: Option<&'static str>,
    /// Attempts that the tier cannot refuse.
    open: &'static [Open],
    /// Users that steps can have.
    users: &'static [&'static str],
    /// Whether steps can be without network.
    has_networks: bool,
}

/// Something that a tier does not protect from, and says so.
struct Open {
    attempt: &'static str,
    /// Who can do it.
    users: &'static [&'static str],
    /// Why: words of docs/isolation.md.
    words: &'static str,
}

const BOTH: &[&str] = &["0:0", "1000:1000"];
const ROOT_ALONE: &[&str] = &["0:0"];

/// All namespaces, native overlayfs.
const ROOT: Tier = Tier {
    flags: &["--isolation=root"],
    is_for_nobody: false,
    store: None,
    open: &[],
    users: BOTH,
    has_networks: true,
};

/// A user namespace with a single id.
const SINGLE_ID: Tier = Tier {
    flags: &["--isolation=userns-single"],
    is_for_nobody: true,
    store: Some("theirs/store"),
    users: ROOT_ALONE,
    ..ROOT
};

/// The same as at the root tier, by the hand of others.
const CRUN: Tier = Tier { flags: &["--isolation=oci:crun"], ..ROOT };
const RUNC: Tier = Tier { flags: &["--isolation=oci:runc"], ..ROOT };

/// A directory: what a step can do to processes and sockets around it, nobody keeps it from.
const CHROOT: Tier = Tier {
    flags: &["--isolation=chroot"],
    store: Some("copied/store"),
    has_networks: false,
    open: &[
        Open { attempt: "kill_host", users: ROOT_ALONE, words: "can signal those of the same user" },
        Open { attempt: "signal_everybody", users: BOTH, words: "sees the processes" },
        Open { attempt: "pidfd_of_host", users: BOTH, words: "sees the processes" },
        Open { attempt: "reach_abstract_socket", users: BOTH, words: "abstract sockets" },
    ],
    ..ROOT
};

impl Tier {
    fn open_to(&self, user: &str) -> Vec<&'static str> {
        self.open.iter().filter(|open| open.users.contains(&user)).map(|open| open.attempt).collect()
    }
}

/// What a step must neither reach nor see.
struct Host {
    canary: PathBuf,
    process: Child,
    socket_name: String,
    _socket: UnixListener,
    before: BTreeMap<&'static str, String>,
}

/// Settings that attempts would change.
const SETTINGS: [&str; 4] =
    ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/proc/swaps"];

impl Host {
    fn new(space: &Space) -> Self {
        space.write("outside/canary", "alive\n");
        let socket_name = format!("rbuild-canary-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&socket_name).expect("a name");
        Self {
            canary: space.path("outside/canary"),
            process: Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep"),
            socket_name,
            _socket: UnixListener::bind_addr(&address).expect("a socket"),
            before: settings(),
        }
    }

    /// Arguments of the program of attempts.
    fn arguments(&self) -> Vec<String> {
        let disk = std::fs::metadata(&self.canary).expect("canary").dev();
        let (major, minor) = ((disk >> 8) & 0xfff, (disk & 0xff) | ((disk >> 12) & 0xfff00));
        let canary = self.canary.to_str().expect("UTF-8").to_owned();
        vec![canary, self.process.id().to_string(), major.to_string(), minor.to_string(), self.socket_name.clone()]
    }

    /// Nothing has happened to it but what was to be expected.
    #[track_caller]
    fn assert_unharmed(&mut self, open: &[&str]) {
        assert_eq!(std::fs::read_to_string(&self.canary).expect("canary"), "alive\n");
        let names = std::fs::read_dir(self.canary.parent().expect("a directory")).expect("directory").count();
        assert_eq!(names, 1, "something was put beside the canary");
        let is_alive = self.process.try_wait().expect("wait").is_none();
        assert!(is_alive || open.contains(&"kill_host"), "the host's process is dead");
        assert_eq!(settings(), self.before);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn settings() -> BTreeMap<&'static str, String> {
    SETTINGS.map(|path| (path, std::fs::read_to_string(path).unwrap_or_default())).into()
}

/// A space with the program of attempts in its context, and a store that knows `busybox`.
fn space(tier: &Tier) -> Space {
    let space = Space::with_busybox();
    if tier.is_for_nobody {
        std::fs::set_permissions(space.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        space.open_dir("theirs");
    }
    if tier.store.is_some() {
        Ran::of(builder(&space, tier, &["-q", "-t", "busybox", "busybox"]).output().expect("starts")).success();
    }
    let source = workspace().join("tests/e2e/escape/attempts.c");
    succeed(
        Command::new("cc").args(["-static", "-O1", "-Wall", "-Werror", "-o"]).arg(space.path("attempts")).arg(source),
    );
    space
}

/// The program in a tier, not yet started.
fn builder(space: &Space, tier: &Tier, args: &[&str]) -> Command {
    let mut ordinary = space.command(tier.flags.iter().chain(args));
    if let Some(store) = tier.store {
        ordinary.env("RBUILD_STORE", space.path(store));
    }
    if !tier.is_for_nobody {
        return ordinary;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(ordinary.get_program());
    command.args(ordinary.get_args()).current_dir(space.path("")).stdin(Stdio::null()).env("NO_COLOR", "1");
    if let Some(store) = tier.store {
        command.env("RBUILD_STORE", space.path(store));
    }
    command
}

/// Builds with a step that tries everything; returns what it says.
fn try_everything(space: &Space, tier: &Tier, user: &str, arguments: &[String]) -> Ran {
    let network = if tier.has_networks { "--network=none" } else { "" };
    let dockerfile = format!(
        "FROM busybox\nCOPY attempts /attempts\nUSER {user}\nRUN {network} /attempts {}\n",
        arguments.join(" ")
    );
    space.write("Dockerfile", dockerfile);
    let mut build = builder(space, tier, &["build", "--progress=plain", "--no-cache", "-t", "tried", "."]);
    Ran::of(build.env("HOST_CANARY", "alive").output().expect("rbuild starts"))
}

/// Names of the attempts that worked, and of those that were refused.
fn outcomes(ran: &Ran) -> (Vec<&str>, Vec<&str>) {
    let after = |word| ran.stderr.lines().filter_map(move |line| Some(line.split_once(word)?.1));
    let refused = after(" refused ").filter_map(|rest| Some(rest.split_once(':')?.0)).collect();
    (after(" WORKED ").collect(), refused)
}

fn processes_of(program: &str) -> Vec<String> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path().join("cmdline"));
    let lines =
        pids.filter_map(|path| std::fs::read(path).ok()).map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter(|line| line.starts_with(program)).collect()
}

fn attempts_are_refused(tier: &Tier) {
    need!(Need::Root, Need::Program("busybox"), Need::Program("cc"));
    let space = space(tier);
    for user in tier.users {
        let (mut host, open) = (Host::new(&space), tier.open_to(user));
        let ran = try_everything(&space, tier, user, &host.arguments());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let (worked, refused) = outcomes(&ran);
        assert_eq!(worked, open, "{} as {user}: {}", tier.flags[0], ran.stderr);
        assert!(worked.len() + refused.len() > 70, "the program ended early:\n{}", ran.stderr);
        assert_eq!(processes_of("/attempts"), Vec::<String>::new(), "somebody outlived the step");
        host.assert_unharmed(&open);
    }
}

#[test]
fn attempts_are_refused_in_a_user_namespace() {
    if !can_be_nobody() {
        return note("skipped escape: users may not make user namespaces here");
    }
    attempts_are_refused(&SINGLE_ID);
}

#[test]
fn attempts_are_refused_by_runtimes() {
    for (tier, program) in [(&CRUN, "crun"), (&RUNC, "runc")] {
        match Need::Program(program).lacking() {
            Some(reason) => note(&format!("skipped {program} in escape: {reason}")),
            None => attempts_are_refused(tier),
        }
    }
}

#[test]
fn a_directory_refuses_all_attempts_but_those_it_says() {
    attempts_are_refused(&CHROOT);
}

/// What a tier does not protect from is in the manual.
#[test]
fn the_manual_says_what_is_open() {
    let manual = std::fs::read_to_string(workspace().join("docs/isolation.md")).expect("the manual");
    let chapter = manual.split("\n## ").find(|chapter| chapter.starts_with("Tier `chroot`")).expect("a chapter");
    let chapter = chapter.split_whitespace().collect::<Vec<_>>().join(" ");
    for open in CHROOT.open {
        assert!(chapter.contains(open.words), "{}: \"{}\" is not in docs/isolation.md", open.attempt, open.words);
    }
}

fn can_be_nobody() -> bool {
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur", "true"];
    Command::new("setpriv").args(args).output().is_ok_and(|output| output.status.success())
}

#[test]
fn attempts_are_refused_at_the_root_tier() {
    attempts_are_refused(&ROOT);
}

/// What Docker allows is allowed.
#[test]
fn a_step_may_do_what_docker_lets_it_do() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    // Nodes can be made; the harmless ones work.
    space.build(
        "FROM busybox\nRUN mknod /null c 1 3 && mknod /disk b 8 0 && mkfifo /fifo && chown 7:8 /fifo && chmod 4755 /fifo\n\
         RUN echo x > /dev/null && head -c 1 /dev/zero > /zero && [ -c /null ] && [ -b /disk ]\n\
         RUN ! cat /disk 2> /error && cat /error && grep -q 'Operation not permitted\\|Permission denied' /error\n",
        &[],
    );
}

/// Every file below a directory: contents, modes, owners and times.
fn state_of(directory: &Path) -> String {
    let script = "find . -printf '%p %y %m %U %G %s %T@ %l\\n' | LC_ALL=C sort; \
                  find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    succeed(Command::new("sh").args(["-c", script]).current_dir(directory))
}

#[test]
fn lower_layers_stay_as_they_are() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.build(
        "FROM busybox\nRUN mkdir /d && echo one > /d/one && ln /d/one /d/two && mkfifo /d/pipe\n",
        &["-t", "base"],
    );
    let trees = space.store().join("trees-v1");
    let names = || -> Vec<PathBuf> {
        std::fs::read_dir(&trees).expect("trees").map(|entry| entry.expect("entry").path()).collect()
    };
    let before: Vec<(PathBuf, String)> = names().into_iter().map(|tree| (tree.clone(), state_of(&tree))).collect();
    assert!(before.len() >= 2);
    space.build(
        "FROM base\nRUN echo two >> /d/one; : > /d/two; touch -d 1999-01-01 /d /d/one /bin/busybox; chmod 777 /d /bin; \
         chown 5:5 /d/pipe; mv /d /e; ln /bin/busybox /bin/again; \
         exec 3<> /e/one; echo three >&3; rm -rf /home\n",
        &["-t", "changed"],
    );
    for (tree, state) in before {
        assert_eq!(state_of(&tree), state, "{}", tree.display());
    }
    assert_eq!(space.run_in("base", &["cat", "/d/one"]), "one\n");
}

#[test]
fn another_builds_secrets_and_caches_are_not_seen() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("secret", "the-secret-of-the-other");
    space.write(
        "one/Dockerfile",
        "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=cache,id=theirs,target=/c \
         echo cached-by-the-other > /c/x; : > /c/ready; cat /run/secrets/s > /dev/null; sleep 1000\n",
    );
    let mut other = space.command(["-q", "--secret=id=s,src=secret", "one"]).spawn().expect("rbuild starts");
    let slots = space.store().join("mounts-v1");
    wait_for(|| succeed(Command::new("find").arg(&slots).args(["-name", "ready"])).contains("ready"));
    space.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=cache,id=mine,target=/c \
         if grep -rsl 'the-secret-of-the-othe[r]\\|cached-by-the-othe[r]' /bin /c /dev/shm /etc /home /root /run /tmp /var \
         || ls /run/secrets/* || cat /proc/*/environ | grep -q the-secre[t]; then exit 1; fi; find / -xdev -name ready | grep . && exit 2; true\n",
    );
    let ran = space.rbuild(["--progress=plain", "."]);
    drop(other.kill());
    drop(other.wait());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Not on the disk either.
    let found =
        Command::new("grep").args(["-rl", "the-secret-of-the-other"]).arg(space.store()).output().expect("grep");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

/// Steps with everything at hand for outliving their command, in every way there is.
#[test]
fn nobody_outlives_a_step() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mark = format!("6{:06}", std::process::id() % 1_000_000);
    space.build(
        &format!(
            "FROM busybox\nRUN (setsid sh -c '(trap \"\" HUP TERM INT; exec sleep {mark}1) & exec sleep {mark}2' &) ; \
             sh -c 'kill -STOP $$; exec sleep {mark}3' & sleep {mark}4 & nohup sleep {mark}5 > /dev/null 2>&1 & sleep 0.2; ps > /ps\n\
             RUN ps > /ps; [ $(wc -l < /ps) -lt 5 ] || {{ cat /ps; exit 1; }}\n"
        ),
        &[],
    );
    assert_eq!(processes_of("sleep").iter().filter(|line| line.contains(&mark)).count(), 0);
}

/// The same in a directory, for another user than root, by a builder that may not look at what others do.
#[test]
fn nobody_outlives_a_step_in_a_directory() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("setpriv"));
    let space = space(&CHROOT);
    let mark = format!("7{:06}", std::process::id() % 1_000_000);
    // The shell goes first; its children find another parent.
    space.write(
        "Dockerfile",
        format!(
            "FROM busybox\nUSER 1000\n\
             RUN (setsid sh -c '(trap \"\" HUP TERM INT; exec sleep {mark}1) & exec sleep {mark}2' &); (sleep {mark}3 &); echo made\n\
             USER 0\nRUN (sleep {mark}4 &); (setsid sleep {mark}5 &); echo more\n"
        ),
    );
    let ordinary = builder(&space, &CHROOT, &["build", "--progress=plain", "--no-cache", "."]);
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-sys_admin,-sys_ptrace").arg(ordinary.get_program()).args(ordinary.get_args());
    command
        .current_dir(space.path(""))
        .stdin(Stdio::null())
        .env("NO_COLOR", "1")
        .env("RBUILD_STORE", space.path("copied/store"));
    let ran = Ran::of(command.output().expect("setpriv starts"));
    let left: Vec<String> = processes_of("sleep").into_iter().filter(|line| line.contains(&mark)).collect();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(left, Vec::<String>::new(), "{}", ran.stderr);
}
