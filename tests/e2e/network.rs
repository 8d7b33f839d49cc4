//! The network of RUN steps, their name server, what they trust, and what they may use.

use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Need, Space, note, rbuild_bin, succeed, wait_for};
use crate::need;

/// A service that says `hello` to everybody; returns its port. It lives as long as the tests.
fn service(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("an address of this machine");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop({ stream }.write_all(b"hello\n"));
        }
    });
    port
}

/// The network namespace of this process.
fn own_namespace() -> String {
    std::fs::read_link("/proc/self/ns/net").expect("namespace").display().to_string()
}

/// Helpers of a running build.
fn helpers(build: &Child) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path());
    let parent = format!("\nPPid:\t{}\n", build.id());
    let is_helper = |process: &PathBuf| {
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        // `pasta` is another name of `passt`.
        status.starts_with("Name:\tpas") && status.contains(&parent)
    };
    processes.filter(is_helper).collect()
}

/// A build in the middle of its second step; the first wrote its namespace to the log.
fn in_the_middle(space: &Space) -> (Child, PathBuf) {
    space.write("Dockerfile", "FROM busybox\nRUN true\nRUN sleep 600\n");
    let build = space.command(["-q", "."]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rbuild starts");
    wait_for(|| !helpers(&build).is_empty());
    std::thread::sleep(std::time::Duration::from_millis(300));
    let found = helpers(&build);
    assert_eq!(found.len(), 1, "one helper serves all steps");
    (build, found[0].clone())
}

#[test]
fn the_default_network_is_private_and_shared_by_the_steps_of_a_build() {
    need!(Need::Root, Need::Program("busybox"), Need::PrivateNetwork);
    let space = Space::with_busybox();
    let port = service("127.0.0.1");
    space.build(
        &format!(
            "FROM busybox\n\
             RUN readlink /proc/self/ns/net > /namespaces; nc -w 3 127.0.0.1 {port} < /dev/null > /default || true\n\
             RUN readlink /proc/self/ns/net >> /namespaces; ip -o -4 addr show > /addresses\n\
             RUN --network=host nc -w 3 127.0.0.1 {port} < /dev/null > /host\n\
             RUN --network=none ip -o link show > /none\n"
        ),
        &["--allow=network.host", "-t", "app"],
    );
    let read = |path: &str| space.run_in("app", &["cat", path]);
    let namespaces = read("/namespaces");
    let lines: Vec<&str> = namespaces.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1] && lines[0] != own_namespace(), "{namespaces}");
    assert_eq!((read("/default").as_str(), read("/host").as_str()), ("", "hello\n"));
    assert_eq!(read("/addresses").lines().filter(|line| !line.contains(" lo ")).count(), 1, "{}", read("/addresses"));
    let none = read("/none");
    assert!(none.lines().count() == 1 && none.contains("lo"), "{none}");
}

#[test]
fn a_host_with_that_name_is_the_machine_but_not_its_loopback_interface() {
    need!(Need::Root, Need::Program("busybox"), Need::PrivateNetwork);
    let space = Space::with_busybox();
    let (open, closed) = (service("0.0.0.0"), service("127.0.0.1"));
    // The other side closes first: an older pasta may lose its end if both close at once, and then nobody would end.
    let ask = |port: u16| format!("sleep 1 | nc -w 3 $(awk '$2 == \"gw\" {{ print $1 }}' /etc/hosts) {port}");
    let dockerfile = format!("FROM busybox\nRUN {} > /open\nRUN {} > /closed || true\n", ask(open), ask(closed));
    space.build(&dockerfile, &["--add-host=gw:host-gateway", "-t", "app"]);
    assert_eq!(space.run_in("app", &["cat", "/open"]), "hello\n");
    assert_eq!(space.run_in("app", &["cat", "/closed"]), "");
}

#[test]
fn packets_for_the_hosts_loopback_interface_do_not_leave_the_step() {
    need!(Need::Root, Need::Program("busybox"), Need::PrivateNetwork);
    let space = Space::with_busybox();
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("loopback");
    socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("timeout");
    // The first packet goes to the port after the one that is named, by the interface that is named.
    let port = socket.local_addr().expect("address").port() - 1;
    let probe = format!("busybox traceroute -n -i eth0 -f 30 -m 30 -q 1 -w 1 -p {port} 127.0.0.1");
    space.write("Dockerfile", format!("FROM busybox\nRUN {probe} || true\n"));
    let ran = space.rbuild(["--progress=plain", "."]);
    assert!(ran.stderr.contains("traceroute to 127.0.0.1"), "{}", ran.stderr);
    assert!(socket.recv(&mut [0; 64]).is_err(), "a packet has reached the host's loopback interface");
}

/// Answers every question with one address.
fn name_server(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind((address, 53))?;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let (id, question) = (&query[..2], &query[12..end]);
            let header = [0x81, 0x80, 0, 1, 0, u8::from(question.ends_with(&[0, 1, 0, 1])), 0, 0, 0, 0];
            let answer: &[u8] = match header[5] {
                1 => &[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7],
                _ => &[],
            };
            drop(socket.send_to(&[id, &header, question, answer].concat(), peer));
        }
    });
    Ok(())
}

#[test]
fn a_name_server_on_the_hosts_loopback_interface_is_asked() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("unshare"), Need::PrivateNetwork);
    let space = Space::with_busybox();
    if let Err(error) = name_server("127.0.0.77") {
        return note(&format!("skipped {}: no name server: {error}", module_path!()));
    }
    space.write("resolv.conf", "nameserver 127.0.0.77\noptions timeout:3\n");
    space.write("Dockerfile", "FROM busybox\nRUN cat /etc/resolv.conf; nslookup build.test > /answer\n");
    let script = "mount --bind resolv.conf /etc/resolv.conf && exec \"$0\" -q -t app .";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(rbuild_bin());
    succeed(command.current_dir(space.path("")).env("RBUILD_STORE", space.store()));
    let answer = space.run_in("app", &["cat", "/answer"]);
    assert!(answer.contains("10.9.8.7"), "{answer}");
}

#[test]
fn the_helper_ends_with_its_build_however_that_ends() {
    need!(Need::Root, Need::Program("busybox"), Need::PrivateNetwork);
    for signal in ["INT", "KILL"] {
        let space = Space::with_busybox();
        let (mut build, helper) = in_the_middle(&space);
        let status = Command::new("kill").args([&format!("-{signal}"), &build.id().to_string()]).status();
        assert!(status.expect("kill").success());
        build.wait().expect("wait");
        wait_for(|| !helper.exists());
    }
}

#[test]
fn without_the_helper_steps_share_the_hosts_network_and_a_warning_says_so_once() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\nRUN readlink /proc/self/ns/net\nRUN true\n");
    let command = ["--progress=plain", "."];
    let ran = space.command(command).env("PATH", space.path("empty")).output().expect("rbuild starts");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains(&own_namespace()), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("share the network")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("`pasta` is not installed") && warnings[0].contains("passt"), "{said}");
}

#[test]
fn proxies_of_dockers_configuration_reach_steps_and_nothing_else() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("docker/config.json", r#"{"proxies":{"default":{"httpProxy":"http://10.0.0.9:3128"}}}"#);
    space.write("Dockerfile", "FROM busybox\nRUN echo \"got $http_proxy $HTTP_PROXY\"\n");
    let command = ["--progress=plain", "-t", "app", "."];
    let ran = space.command(command).env("DOCKER_CONFIG", space.path("docker")).output().expect("rbuild starts");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("got http://10.0.0.9:3128 http://10.0.0.9:3128"), "{said}");
    assert!(!space.inspect("app").to_string().contains("3128"));
    assert!(!space.rbuild(["history", "--no-trunc", "app"]).success().contains("3128"));
    let again = space.rbuild(["--progress=plain", "."]);
    assert_eq!(again.count("CACHED"), 2, "a proxy is in no key: {}", again.stderr);
}

#[test]
fn a_proxy_on_loopback_is_warned_of() {
    need!(Need::Root, Need::Program("busybox"), Need::PrivateNetwork);
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\nRUN true\nRUN true 2\n");
    let ran = space.rbuild(["--progress=plain", "--build-arg=HTTPS_PROXY=http://me:secret@localhost:3128", "."]);
    assert_eq!(ran.stderr.matches("leads to the loopback interface").count(), 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

#[test]
fn the_hosts_authorities_are_trusted_and_stay_out_of_the_image() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("host.pem", "-----BEGIN CERTIFICATE-----\nhost\n-----END CERTIFICATE-----\n");
    space.write("image.pem", "image\n");
    let dockerfile = format!(
        "FROM busybox AS old\nCOPY image.pem {BUNDLE}\n\
         FROM old AS touched\nRUN grep -q host {BUNDLE} && grep -q image $SSL_CERT_FILE && grep -q host $PIP_CERT && chmod 600 {BUNDLE} && \
         echo added >> {BUNDLE}\n\
         FROM old AS replaced\nRUN echo new > /new && mv /new {BUNDLE} && grep -q host $CURL_CA_BUNDLE\n\
         FROM old AS untouched\nENV PIP_CERT=/mine\nRUN test $PIP_CERT = /mine && ls -la /etc/ssl/certs\n\
         FROM old\nCOPY --from=touched {BUNDLE} /touched\nCOPY --from=replaced {BUNDLE} /replaced\n\
         COPY --from=untouched {BUNDLE} /untouched\n"
    );
    space.build(&dockerfile, &["--host-ca=host.pem", "-o", "out"]);
    for (path, expected) in [("touched", "image\nadded\n"), ("replaced", "new\n"), ("untouched", "image\n")] {
        assert_eq!(space.read(&format!("out/{path}")), expected, "{path}");
    }
    let again = space.rbuild(["--progress=plain", "."]);
    assert_eq!(again.count("MISS:"), 0, "what is trusted is in no key: {}", again.stderr);
    let ran = space.build_fails("FROM busybox\n", &["--host-ca=missing.pem"]);
    assert!(ran.stderr.contains("--host-ca: cannot read missing.pem"), "{}", ran.stderr);
}

/// Whether limits cannot be set here, with a note.
fn is_unlimited(said: &str) -> bool {
    let unlimited = said.contains("limits that this machine does not enforce");
    if unlimited {
        note(&format!("skipped {}: control groups cannot be made here", module_path!()));
    }
    unlimited
}

#[test]
fn a_step_without_memory_left_says_so_with_its_limit() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let dockerfile = "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n";
    let ran = space.build_fails(dockerfile, &["--memory=32m", "--memory-swap=32m"]);
    if is_unlimited(&ran.stderr) {
        return;
    }
    assert!(ran.stderr.contains("did not complete successfully: cannot allocate memory"), "{}", ran.stderr);
    assert!(ran.stderr.contains("32 MiB") && ran.stderr.contains("--memory"), "{}", ran.stderr);
    assert_eq!(groups_of_builds(Path::new("/sys/fs/cgroup"), 3), 0);
}

/// Control groups of builds that are over, or still there.
fn groups_of_builds(below: &Path, depth: usize) -> usize {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| {
            let is_ours = entry.file_name().to_string_lossy().starts_with("rbuild-limits-");
            usize::from(is_ours) + if depth > 0 { groups_of_builds(&entry.path(), depth - 1) } else { 0 }
        })
        .sum()
}

#[test]
fn limits_reach_the_steps() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let before = std::fs::read_to_string("/proc/sys/kernel/pid_max").expect("pid_max");
    space.write(
        "Dockerfile",
        "FROM busybox\nRUN ulimit -n; df -k /dev/shm | tail -1; echo processes $(cat /proc/sys/kernel/pid_max)\n",
    );
    let ran = space.rbuild(["--progress=plain", "--ulimit=nofile=100:200", "--shm-size=2m", "."]);
    assert!(ran.stderr.contains(" 100\n") && ran.stderr.contains(" 2048 "), "{}", ran.stderr);
    // Linux ≥ 6.14 counts processes for each step.
    assert!(
        ran.stderr.contains("processes 8192\n") || ran.stderr.contains(&format!("processes {before}")),
        "{}",
        ran.stderr
    );
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/pid_max").expect("pid_max"), before);
    for (flag, message) in [
        ("--memory=1k", "must be 6m at least"),
        ("--cpus=x", "must be a number"),
        ("--resource=gpus=1", "unknown resource `gpus`"),
        ("--memory-swap=1g", "give --memory, too"),
    ] {
        let ran = space.rbuild([flag, "."]);
        assert!(ran.code == 2 && ran.stderr.contains(message), "{flag}: {}", ran.stderr);
    }
}
