//! `--ssh` with private key files: who gets signatures, and who gets to see the key.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::harness::{Need, Ran, Space, Sshd, workspace};
use crate::need;
use crate::real::assert_absent;

/// The program without the user's agent.
fn rbuild(space: &Space, args: &[&str]) -> Ran {
    let mut command = space.command(args);
    Ran::of(command.env_remove("SSH_AUTH_SOCK").output().expect("rbuild starts"))
}

fn keygen(path: &Path, args: &[&str]) {
    let status = Command::new("ssh-keygen").args(["-q", "-f"]).arg(path).args(args).status();
    assert!(status.expect("ssh-keygen starts").success());
}

/// A line from the middle of a key file, which is in no other file.
fn secret_line(key: &Path) -> String {
    let text = std::fs::read_to_string(key).expect("key");
    text.lines().nth(3).expect("a key has several lines").to_owned()
}

#[test]
fn a_key_file_serves_a_step_that_may_use_it_and_nothing_else() {
    need!(Need::Root, Need::Bases, Need::Program("sshd"), Need::Program("git"));
    let space = Space::shared();
    let sshd = Sshd::start(&space);
    let dockerfile = std::fs::read_to_string(workspace().join("testdata/real/ssh/Dockerfile")).expect("Dockerfile");
    // What the agent says of itself, and what it refuses.
    let more = "RUN --mount=type=ssh ssh-add -l | grep -c ED25519 > /listed && if ssh-add -D; then exit 1; fi\n\
                RUN test ! -e \"$SSH_AUTH_SOCK\" && env > /environment\n";
    space.write("context/Dockerfile", dockerfile + more);
    let ssh = format!("default={}", sshd.key().display());
    let [flag, port] = sshd.build_args();
    let image = "e2e-ssh-key:test";
    let args = ["--progress=plain", "-t", image, "--network=host", "--allow=network.host", "--ssh", &ssh, &flag, &port];
    let ran = rbuild(&space, &[&args[..], &["context"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(space.run_in(image, &["cat", "/src/package/README", "/listed"]), "private package\n1\n");
    let line = secret_line(sshd.key());
    assert!(!ran.stderr.contains(&line));
    assert!(!space.run_in(image, &["cat", "/environment"]).contains("SSH_AUTH_SOCK"));
    assert_absent(&space, image, &line);
    space.rbuild(["rmi", image]).success();
}

#[test]
fn a_key_file_serves_git() {
    need!(Need::Root, Need::Program("sshd"), Need::Program("git"), Need::Program("ssh"));
    let space = Space::new();
    let sshd = Sshd::start(&space);
    space.write("context/Dockerfile", format!("FROM scratch\nADD {} /\n", sshd.url()));
    let key = format!("default={}", sshd.key().display());
    let ran = rbuild(&space, &["--progress=plain", "--ssh", &key, "-o", "out", "context"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(space.read("out/README"), "private package\n");
    // A key that the server does not know.
    keygen(&space.path("other"), &["-N", "", "-t", "ecdsa"]);
    let ran = rbuild(&space, &["--progress=plain", "--ssh", "default=other", "--no-cache", "-o", "out", "context"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("Permission denied"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_an_agent_is_said() {
    need!(Need::Program("ssh-keygen"));
    let space = Space::new();
    space.write("Dockerfile", "FROM scratch\n");
    space.write("text", "hello\n");
    space.write("large", vec![b'x'; 100 * 1024 + 1]);
    keygen(&space.path("open"), &["-N", "", "-t", "ed25519"]);
    keygen(&space.path("locked"), &["-N", "secret", "-t", "ed25519"]);
    let _socket = UnixListener::bind(space.path("socket")).expect("socket");
    for (specs, message, help) in [
        (&["default=socket,socket"][..], "only single socket allowed", "an ID of its own"),
        (&["default=socket,open"], "only single socket allowed", "an ID of its own"),
        (&["default=open,socket"], "invalid combination of keys and sockets", "ssh-add"),
        (&["x=open", "x=open"], "duplicate agent ID \"x\"", ""),
        (&["default=locked"], "failed to parse locked: this private key is passphrase protected", "ssh-keygen -p"),
        (&["default=text"], "failed to parse text: no key found", "OPENSSH PRIVATE KEY"),
        (&["default=open.pub"], "failed to parse open.pub: no key found", "without .pub"),
        (&["default=large"], "failed to parse large: it is larger than 100KiB", ""),
        (&["default=nope"], "--ssh: failed to stat nope: No such file or directory (os error 2)", "private key"),
        (&["default"], "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set", "ssh-agent"),
    ] {
        let mut args = vec!["--progress=plain", "."];
        args.extend(specs.iter().flat_map(|spec| ["--ssh", spec]));
        let ran = rbuild(&space, &args);
        assert_ne!(ran.code, 0, "{specs:?}");
        assert!(ran.stderr.lines().any(|line| line == format!("ERROR: {message}")), "{specs:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(help), "{specs:?}: {}", ran.stderr);
    }
    rbuild(&space, &["-q", "--ssh", "default=open,open", "--ssh", "agent=socket", "-o", "out", "."]).success();
}
