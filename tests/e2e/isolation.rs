//! The tiers of isolation: the same Dockerfile gives the same bytes on every one, and each is what it says that it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Need, Ran, Space, rbuild_bin, workspace};
use crate::need;

/// Somebody whom every machine knows, and who has no rights.
const NOBODY: &str = "65534";

/// A space with the Dockerfile of the tiers, its context, a busybox image that everybody can read, and a place where
/// everybody may write.
fn space() -> Space {
    let space = Space::with_busybox();
    space.write("empty/Dockerfile", "FROM busybox\n");
    space.rbuild(["-q", "-o", "type=oci,tar=false,dest=bb", "empty"]).success();
    let dockerfile = workspace().join("testdata/tiers/Dockerfile");
    space.write("context/Dockerfile", std::fs::read(dockerfile).expect("the tiers' Dockerfile"));
    space.write("context/files/a", "a\n");
    space.write("context/files/deep/b", "b\n");
    space.write("key", "secret\n");
    space.open_dir("out");
    let mut read = Command::new("chmod");
    read.args(["-R", "a+rX", ".", "bb", "context", "key"]).current_dir(space.path(""));
    assert!(read.status().expect("chmod").success());
    space
}

/// The words of a build whose layers are compared, with a store of its own.
fn words(space: &Space, name: &str, isolation: &str) -> Vec<String> {
    let path = |relative: &str| space.path(relative).display().to_string();
    [
        "--store".to_owned(),
        path(&format!("out/store-{name}")),
        format!("--isolation={isolation}"),
        "build".to_owned(),
        "--progress=plain".to_owned(),
        format!("--build-context=bb=oci-layout://{}", path("bb")),
        format!("--secret=id=key,src={}", path("key")),
        "--build-arg=SOURCE_DATE_EPOCH=1700000000".to_owned(),
        "--output".to_owned(),
        format!("type=oci,rewrite-timestamp=true,dest={}", path(&format!("out/{name}.tar"))),
        path("context"),
    ]
    .to_vec()
}

fn archive(space: &Space, name: &str) -> Vec<u8> {
    std::fs::read(space.path(&format!("out/{name}.tar"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Builds natively as root, and in the way of `run`, and compares.
fn compare(space: &Space, name: &str, ran: &Ran) {
    assert_eq!(ran.code, 0, "{name}:\n{}", ran.stderr);
    let root = words(space, "root", "root");
    if !space.path("out/root.tar").exists() {
        space.rbuild(&root).success();
    }
    assert!(archive(space, "root") == archive(space, name), "{name}: other bytes than as root; {}", list(space, name));
}

/// Where the layers differ, in words.
fn list(space: &Space, name: &str) -> String {
    let entries = |name: &str| {
        let script = "mkdir -p $1 && tar -xf $1.tar -C $1 && for blob in $1/blobs/sha256/*; do \
                      tar -tvzf $blob --numeric-owner 2>/dev/null; done | sort -k6";
        let ran = Command::new("sh").args(["-c", script, "sh", name]).current_dir(space.path("out")).output();
        String::from_utf8_lossy(&ran.expect("sh").stdout).into_owned()
    };
    let (root, other) = (entries("root"), entries(name));
    let only = |a: &str, b: &str| {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n")
    };
    format!("only as root:\n{}\nonly as {name}:\n{}", only(&root, &other), only(&other, &root))
}

/// Runs the program as nobody, who has these lines in `/etc/subuid` and `/etc/subgid`: for it alone, the machine's own
/// files are covered.
fn as_nobody(space: &Space, subordinate: &str, args: &[String]) -> Ran {
    space.write("out/subordinate", subordinate);
    let script = "mount --bind out/subordinate /etc/subuid && mount --bind out/subordinate /etc/subgid && \
                  exec setpriv --reuid=$0 --regid=$0 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, NOBODY]).arg(rbuild_bin()).args(args);
    command.current_dir(space.path("")).env("HOME", space.path("out")).env("NO_COLOR", "1").stdin(Stdio::null());
    Ran::of(command.output().expect("unshare starts"))
}

fn user_namespaces_are_refused(ran: &Ran) -> bool {
    ran.stderr.contains("may not make user namespaces")
}

#[test]
fn root_builds_the_same_in_a_user_namespace_and_in_a_directory() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    for isolation in ["userns", "userns-single", "chroot"] {
        let ran = space.rbuild(words(&space, isolation, isolation));
        if user_namespaces_are_refused(&ran) {
            crate::harness::note("skipped: no user namespaces");
            continue;
        }
        compare(&space, isolation, &ran);
    }
    // What is mounted in one way is not read in another.
    let mixed = space.rbuild(words(&space, "chroot", "root"));
    assert_eq!(mixed.code, 3, "{}", mixed.stderr);
    assert!(mixed.stderr.contains("has trees in the style `copied`, not `trusted`"), "{}", mixed.stderr);
}

#[test]
fn an_ordinary_user_builds_the_same_with_subordinate_ids() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("newuidmap"), Need::Program("setpriv"));
    let space = space();
    let ids = "nobody:200000:65536\n";
    let ran = as_nobody(&space, ids, &words(&space, "userns", "auto"));
    compare(&space, "userns", &ran);
    // The store holds files of those ids, so that it takes the same way to look into it.
    let store = space.path("out/store-userns").display().to_string();
    let du = as_nobody(&space, ids, &["--store".to_owned(), store.clone(), "du".to_owned()]);
    assert_eq!(du.code, 0, "{}", du.stderr);
    let prune = ["--store", &store, "prune", "--all", "--force"].map(str::to_owned);
    assert_eq!(as_nobody(&space, ids, &prune).code, 0);
    let left = std::fs::read_dir(space.path("out/store-userns/trees-v1")).expect("the store").count();
    assert_eq!(left, 0, "all trees are gone");
}

#[test]
fn an_ordinary_user_builds_the_same_with_one_id() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("setpriv"));
    let space = space();
    let ran = as_nobody(&space, "", &words(&space, "single", "auto"));
    if user_namespaces_are_refused(&ran) {
        return crate::harness::note("skipped: no user namespaces");
    }
    compare(&space, "single", &ran);
    let refused = as_nobody(&space, "", &words(&space, "none", "userns"));
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("has no subordinate ids: /etc/subuid has no line for it"), "{}", refused.stderr);
    assert!(refused.stderr.contains("usermod --add-subuids"), "{}", refused.stderr);
}

#[test]
fn an_ordinary_container_builds_the_same() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("runc"));
    let space = space();
    let ran = in_container(&space, 0, &words(&space, "container", "auto"));
    compare(&space, "container", &ran);
    let none = words(&space, "none", "root");
    let refused = in_container(&space, 0, &none);
    assert!(refused.stderr.contains("--isolation=root needs CAP_SYS_ADMIN"), "{}", refused.stderr);
}

#[test]
fn without_any_privilege_there_are_no_commands_and_all_the_rest() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("runc"));
    let space = space();
    let refused = in_container(&space, 65_534, &words(&space, "nothing", "auto"));
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("no RUN step can be kept apart from this machine"), "{}", refused.stderr);
    space.write("context/Dockerfile", "FROM bb\nCOPY --chown=7:8 --chmod=4750 files /copied\nWORKDIR /w\nENV a=b\n");
    let ran = in_container(&space, 65_534, &words(&space, "nothing", "auto"));
    compare(&space, "nothing", &ran);
}

#[test]
fn what_a_directory_cannot_promise_is_refused() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    space.write("context/Dockerfile", "FROM bb\nRUN --network=none true\n");
    let ran = space.rbuild(words(&space, "refused", "chroot"));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("a step without network is not to be had with --isolation=chroot"), "{}", ran.stderr);
}

#[test]
fn a_directory_is_left_by_nothing() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    // A daemon that has lost its parent, a secret, and a way out of a directory.
    space.write(
        "context/Dockerfile",
        "FROM bb\n\
         RUN --mount=type=secret,id=key (sleep 1000 > /dev/null 2>&1 &) && cp /run/secrets/key /copy && rm /copy\n\
         RUN mkdir /jail && ! chroot /jail /bin/true 2> /error; grep -i 'not permitted' /error\n\
         RUN test ! -e /run/secrets\n",
    );
    let args = words(&space, "left", "chroot");
    let ran = space.rbuild(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let store = space.path("out/store-left");
    let roots = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        std::fs::read_link(entry.ok()?.path().join("root")).ok().filter(|root| root.starts_with(&store))
    });
    assert_eq!(roots.collect::<Vec<PathBuf>>(), Vec::<PathBuf>::new(), "no process is left");
    let scratch = std::fs::read_dir(store.join("tmp-v1")).expect("scratch").count();
    assert_eq!(scratch, 0, "nor a directory");
}

/// Runs the program in a container that, as root, may do what Docker's may: its capabilities, and neither mounts nor
/// namespaces.
fn in_container(space: &Space, uid: u32, args: &[String]) -> Ran {
    let bundle = space.path("bundle");
    std::fs::create_dir_all(bundle.join("rootfs")).expect("bundle");
    std::fs::write(bundle.join("config.json"), container(space, uid, args).to_string()).expect("config.json");
    let name = format!("rbuild-test-{}", std::process::id());
    let mut command = Command::new("runc");
    command.args(["run", "--bundle"]).arg(&bundle).arg(name).stdin(Stdio::null());
    Ran::of(command.output().expect("runc starts"))
}

fn container(space: &Space, uid: u32, args: &[String]) -> Value {
    const CAPABILITIES: [&str; 14] = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    let bind = |path: &Path, access: &str| json!({"destination": path, "source": path, "type": "none", "options": ["rbind", access]});
    let system = ["/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc"].map(Path::new);
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}),
    ];
    mounts.extend(system.iter().filter(|path| path.exists()).map(|path| bind(path, "ro")));
    let program = rbuild_bin();
    mounts.push(bind(program.parent().expect("directory"), "ro"));
    mounts.push(bind(&space.path(""), "rw"));
    let mut words = vec![program.display().to_string()];
    words.extend_from_slice(args);
    // What Docker's profile refuses to those without CAP_SYS_ADMIN.
    let refused =
        ["unshare", "mount", "umount2", "setns", "pivot_root", "fsopen", "open_tree", "move_mount", "fsmount"];
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "container",
        "mounts": mounts,
        "process": {
            "args": words,
            "cwd": "/tmp",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NO_COLOR=1", "HOME=/tmp"],
            "user": {"uid": uid, "gid": uid},
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {
                        "names": ["clone"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                        // CLONE_NEWUSER
                        "args": [{"index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}],
                    },
                ],
            },
        },
    })
}
