//! Builds that are stopped: nothing is left of them, and the next one works.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Need, Space, wait_for};
use crate::need;

/// So long may it take until nothing is left.
const SOON: Duration = Duration::from_secs(2);

/// Processes that [`stubborn`] has in the end, whose shell has become the last.
const N_STUBBORN: usize = 6;

/// A step with everything that can be left behind: children, one that ignores signals, one in a session of its own, one
/// whose parents are gone, one that is stopped, and a cache mount.
fn stubborn(mark: &str) -> String {
    format!(
        "FROM busybox\nRUN --mount=type=cache,target=/c : > /c/x; sleep {mark}1 & (trap '' TERM INT HUP; sleep {mark}2) & \
         setsid sleep {mark}3 & (setsid sh -c 'sleep {mark}5 & exit' &); sleep {mark}6 & kill -STOP $!; \
         head -c 3000000 /dev/urandom > /big; sleep {mark}4\n"
    )
}

/// A build in the middle of a step.
struct Running {
    build: Child,
    /// In the arguments of every process of the step.
    mark: String,
}

impl Running {
    fn start(space: &Space) -> Self {
        // Tells the processes of this test from those of others.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("8{:06}", std::process::id() % 100_000 * 10 + NEXT.fetch_add(1, Ordering::Relaxed));
        space.write("Dockerfile", stubborn(&mark));
        let build = space.command(["-q", "."]).stderr(std::process::Stdio::piped()).spawn().expect("rbuild starts");
        let running = Self { build, mark };
        let last = format!("sleep {}4", running.mark);
        wait_for(|| {
            let processes = running.processes();
            processes.len() >= N_STUBBORN && processes.iter().any(|line| line.starts_with(&last))
        });
        running
    }

    /// Processes of the step that live.
    fn processes(&self) -> Vec<String> {
        command_lines().filter(|line| line.contains(&self.mark)).collect()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.build.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for the end; returns the exit code, 128 + n for signal n, and what was said.
    fn end(&mut self) -> (i32, String) {
        let mut said = String::new();
        let stderr = self.build.stderr.as_mut().expect("piped");
        std::io::Read::read_to_string(stderr, &mut said).expect("read");
        let status = self.build.wait().expect("wait");
        let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
        (status.code().unwrap_or(128 + signal), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed must leave nothing behind either.
        drop(self.build.kill());
        drop(self.build.wait());
    }
}

fn processes_with(mark: &str) -> Vec<String> {
    command_lines().filter(|line| line.starts_with("sleep ") && line.contains(mark)).collect()
}

/// Programs with their arguments, of all processes there are.
fn command_lines() -> impl Iterator<Item = String> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path().join("cmdline"));
    let lines = pids.filter_map(|path| std::fs::read(path).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
}

/// Mounts of this machine that lie in the space, or show its store.
fn mounts(space: &Space) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let dir = space.path("").display().to_string();
    table.lines().filter(|line| line.contains(dir.trim_end_matches('/'))).map(str::to_owned).collect()
}

/// Control groups that were made by a process.
fn groups(maker: u32) -> Vec<String> {
    let mine = [format!("rbuild-{maker}-*"), format!("rbuild-devices-{maker}-*")];
    let args = ["/sys/fs/cgroup", "-type", "d", "(", "-name", &mine[0], "-o", "-name", &mine[1], ")"];
    let output = Command::new("find").args(args).output().expect("find");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// All network namespaces in which there are processes.
fn network_namespaces() -> BTreeSet<String> {
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let links = processes.filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Names in the store's bucket of temporary things.
fn temporary(space: &Space) -> Vec<String> {
    let entries = std::fs::read_dir(space.store().join("tmp-v1")).expect("bucket").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn is_empty_soon(since: Instant, left: impl Fn() -> Vec<String>) {
    while !left().is_empty() {
        assert!(since.elapsed() < SOON, "left behind: {:?}", left());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The store holds nothing of the stopped step, and is whole.
fn works_again(space: &Space) {
    let layers = |space: &Space| std::fs::read_dir(space.store().join("trees-v1")).expect("bucket").count();
    let before = layers(space);
    space.build("FROM busybox\nRUN --mount=type=cache,target=/c echo fine > /fine\n", &["-t", "fine"]);
    assert_eq!(space.run_in("fine", &["cat", "/fine"]), "fine\n");
    assert!(layers(space) <= before + 1, "the stopped step left a layer");
    assert!(space.rbuild(["du"]).success().contains("Total:"));
}

fn stopped_by(signal: &str) {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mut running = Running::start(&space);
    let since = Instant::now();
    running.signal(signal);
    let (code, said) = running.end();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(code, 130, "{said}");
    assert!(said.contains("ERROR: failed to build: failed to solve: context canceled"), "{said}");
    assert_eq!(running.processes(), Vec::<String>::new());
    assert_eq!(mounts(&space), Vec::<String>::new());
    assert_eq!(temporary(&space), Vec::<String>::new());
    assert_eq!(groups(running.build.id()), Vec::<String>::new());
    works_again(&space);
}

#[test]
fn by_interrupt() {
    stopped_by("INT");
}

#[test]
fn by_termination() {
    stopped_by("TERM");
}

#[test]
fn by_kill() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mut running = Running::start(&space);
    let since = Instant::now();
    running.signal("KILL");
    assert_eq!(running.end().0, 137);
    is_empty_soon(since, || running.processes());
    is_empty_soon(since, || mounts(&space));
    assert!(!temporary(&space).is_empty(), "nothing to clean up: this test tests nothing");
    // The next invocation finds out and cleans up, whatever it is for, and does not talk about it.
    let next = space.rbuild(["-q", "busybox"]);
    assert_eq!((next.code, next.stderr.as_str()), (0, ""));
    assert_eq!(temporary(&space), Vec::<String>::new());
    assert_eq!(groups(running.build.id()), Vec::<String>::new());
    works_again(&space);
}

/// Unless somebody asks for it.
#[test]
fn what_a_killed_build_left_is_mentioned_to_those_who_debug() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mut running = Running::start(&space);
    running.signal("KILL");
    assert_eq!(running.end().0, 137);
    is_empty_soon(Instant::now(), || running.processes());
    let next = space.command(["-q", "busybox"]).env("RBUILD_LOG", "debug").output().expect("rbuild starts");
    let said = String::from_utf8_lossy(&next.stderr);
    assert!(said.contains("a killed process left"), "{said}");
}

/// A step with a network namespace of its own, killed with its builder: the namespace goes, too.
#[test]
fn a_private_network_goes_with_its_step() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mark = format!("5{:06}", std::process::id() % 1_000_000);
    space.write("Dockerfile", format!("FROM busybox\nRUN --network=none sleep {mark}\n"));
    for signal in ["-INT", "-KILL"] {
        let mut build = space.command(["-q", "."]).stderr(std::process::Stdio::null()).spawn().expect("rbuild starts");
        wait_for(|| !processes_with(&mark).is_empty());
        let of_step = namespace_of(&mark);
        assert!(network_namespaces().contains(&of_step));
        assert!(Command::new("kill").args([signal, &build.id().to_string()]).status().expect("kill").success());
        let since = Instant::now();
        drop(build.wait());
        is_empty_soon(since, || network_namespaces().into_iter().filter(|namespace| *namespace == of_step).collect());
    }
}

/// The network namespace of the process with `mark` in its arguments.
fn namespace_of(mark: &str) -> String {
    let processes = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path());
    let mut ours = processes.filter(|process| {
        std::fs::read(process.join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).starts_with(&format!("sleep\0{mark}")))
    });
    let process = ours.next().expect("the step");
    std::fs::read_link(process.join("ns/net")).expect("a namespace").display().to_string()
}

#[test]
fn several_steps_at_once() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let mark = format!("7{:06}", std::process::id() % 1_000_000);
    let stages: String = (1..=4).map(|n| format!("FROM busybox AS s{n}\nRUN sleep {mark}{n}; : > /o{n}\n")).collect();
    let copies: String = (1..=4).map(|n| format!("COPY --from=s{n} /o{n} /\n")).collect();
    space.write("Dockerfile", format!("{stages}FROM scratch\n{copies}"));
    let mut build = space.command(["-q", "--jobs=4", "."]).spawn().expect("rbuild starts");
    wait_for(|| processes_with(&mark).len() >= 4);
    let since = Instant::now();
    assert!(Command::new("kill").args(["-INT", &build.id().to_string()]).status().expect("kill").success());
    assert_eq!(build.wait().expect("wait").code(), Some(130));
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(processes_with(&mark), Vec::<String>::new());
    assert_eq!(temporary(&space), Vec::<String>::new());
    works_again(&space);
}

#[test]
fn a_killed_build_lets_those_who_wait_for_its_step_go_on() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let flag = "/c/second";
    let dockerfile = format!(
        "FROM busybox\nRUN --mount=type=cache,target=/c if [ ! -e {flag} ]; then : > {flag}; sleep 1000; fi; : > /done\n"
    );
    space.write("Dockerfile", dockerfile);
    let mut first = space.command(["-q", "."]).spawn().expect("rbuild starts");
    let slots = space.store().join("mounts-v1");
    wait_for(|| has_file(&slots, "second"));
    let mut second = space.command(["-q", "."]).spawn().expect("rbuild starts");
    std::thread::sleep(Duration::from_millis(200));
    assert!(second.try_wait().expect("wait").is_none(), "the second build runs the step, too");
    first.kill().expect("kill");
    drop(first.wait());
    let since = Instant::now();
    while second.try_wait().expect("wait").is_none() {
        assert!(since.elapsed() < 5 * SOON, "the second build waits for a dead one");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(second.wait().expect("wait").success());
}

fn has_file(dir: &Path, name: &str) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries = entries.map(|entry| entry.path());
    entries.any(|path| path.file_name().is_some_and(|found| found == name) || (path.is_dir() && has_file(&path, name)))
}
