//! Bad input: every failure says what is wrong, where, why and what to do, has its exit code, and leaves a store that
//! builds.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::{LoopDisk, Need, Ran, Space, free_port, rbuild_bin};
use crate::need;

/// Exit codes.
const INPUT: i32 = 1;
const USAGE: i32 = 2;
const ENVIRONMENT: i32 = 3;

/// A Dockerfile that must not build, and what must be said about it.
struct Bad {
    dockerfile: &'static str,
    args: &'static [&'static str],
    /// Lines that are marked in the excerpt; none where no line is at fault.
    marked: &'static [u32],
    /// The end of the line that begins with `ERROR: `.
    message: &'static str,
    /// The lines of help, of which `help: ` is left out; those with `…` are compared up to there.
    help: &'static [&'static str],
}

/// Most cases need no flags.
const BAD: Bad = Bad { dockerfile: "", args: &[], marked: &[], message: "", help: &[] };

impl Bad {
    #[track_caller]
    fn check(&self, space: &Space) {
        let ran = space.build_fails(self.dockerfile, self.args);
        assert_eq!(ran.code, INPUT, "{}\n{}", self.dockerfile, ran.stderr);
        let report = Report::of(&ran);
        let shown = format!("{}\n---\n{}", self.dockerfile, ran.stderr);
        assert_eq!(report.marked, self.marked, "{shown}");
        assert_eq!(report.message, format!("failed to build: failed to solve: {}", self.message), "{shown}");
        report.check_help(self.help, &shown);
        report.check_length(&shown);
    }
}

/// What stands behind the progress.
struct Report {
    marked: Vec<u32>,
    message: String,
    help: Vec<String>,
    /// Without the excerpt of the Dockerfile.
    n_lines: usize,
}

impl Report {
    fn of(ran: &Ran) -> Self {
        let mut report = Self { marked: Vec::new(), message: String::new(), help: Vec::new(), n_lines: 0 };
        for line in ran.stderr.lines() {
            let numbered = line.trim_start().split_once(" | >>> ");
            if let Some(number) = numbered.and_then(|(number, _)| number.parse().ok()) {
                report.marked.push(number);
            } else if let Some(message) = line.strip_prefix("ERROR: ") {
                report.message = message.to_owned();
                report.n_lines = 1;
            } else if let Some(help) = line.strip_prefix("help: ") {
                report.help.push(help.to_owned());
                report.n_lines += 1;
            } else if report.n_lines > 0 && !line.is_empty() {
                report.n_lines += 1;
            }
        }
        report
    }

    #[track_caller]
    fn check_help(&self, expected: &[&str], shown: &str) {
        let is_like = |(got, expected): (&String, &&str)| match expected.split_once('…') {
            Some((start, end)) => got.starts_with(start) && got.ends_with(end),
            None => got == expected,
        };
        assert_eq!(self.help.len(), expected.len(), "{:?}\n{shown}", self.help);
        assert!(self.help.iter().zip(expected).all(is_like), "{:?}\n{expected:?}\n{shown}", self.help);
    }

    #[track_caller]
    fn check_length(&self, shown: &str) {
        assert!((1..=4).contains(&self.n_lines), "{shown}");
    }
}

/// A mistake on the command line: exit code 2, nothing built.
#[track_caller]
fn check_usage(space: &Space, args: &[&str], message: &str, help: &[&str]) {
    let ran = space.rbuild(args);
    let shown = format!("{args:?}\n{}", ran.stderr);
    assert_eq!(ran.code, USAGE, "{shown}");
    assert_eq!(ran.stdout, "", "{shown}");
    let report = Report::of(&ran);
    assert_eq!(report.message, message, "{shown}");
    report.check_help(help, &shown);
    assert!(!ran.stderr.contains("#0 "), "{shown}");
}

/// The store is as good as before.
#[track_caller]
fn still_builds(space: &Space) {
    space.build("FROM busybox\nRUN echo fine > /fine\n", &[]);
}

#[test]
fn syntax() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    const FROM: &str = "begin with the image to build on: `FROM debian`, or `FROM scratch` for an empty one";
    let cases = [
        Bad { message: "the Dockerfile cannot be empty", help: &[FROM], ..BAD },
        Bad { dockerfile: "# nothing", marked: &[1], message: "file with no instructions", help: &[FROM], ..BAD },
        Bad { dockerfile: "RUN x", marked: &[1], message: "no build stage in current context", help: &[FROM], ..BAD },
        Bad {
            dockerfile: "FROM busybox\nCPOY a b\n",
            marked: &[2],
            message: "dockerfile parse error on line 2: unknown instruction: CPOY (did you mean COPY?)",
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nCOPY --form=x a b\n",
            marked: &[2],
            message: "dockerfile parse error on line 2: unknown flag: --form (did you mean from?)",
            help: &["`COPY` takes --from, --chown, --chmod, --link, --parents, --exclude"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nENV a\n",
            marked: &[2],
            message: "ENV must have two arguments",
            help: &["write `ENV a=value`"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN <<EOF\nfoo\n",
            marked: &[2, 3],
            message: "unterminated heredoc",
            help: &["end the heredoc with a line that is just `EOF`"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN --mount=type=cache,tagret=/x true\n",
            marked: &[2],
            message: "unexpected key 'tagret' in 'tagret=/x' (did you mean target?)",
            help: &["the keys are type, …, env"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN --mount=type=cahce,target=/x true\n",
            marked: &[2],
            message: "unsupported mount type \"cahce\" (did you mean cache?)",
            help: &["the types are bind, cache, tmpfs, secret, ssh"],
            ..BAD
        },
        Bad {
            dockerfile: "ARG X\nFROM $X\n",
            marked: &[2],
            message: "base name ($X) should not be blank",
            help: &["`X` has no value: write `ARG X=VALUE` before the first FROM, or pass --build-arg X=VALUE"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM alpine:$VER\n",
            marked: &[1],
            message: "failed to parse stage name \"alpine:\": invalid reference format",
            help: &["`VER` has no value: write `ARG VER=VALUE` before the first FROM, or pass --build-arg VER=VALUE"],
            ..BAD
        },
    ];
    cases.iter().for_each(|case| case.check(&space));
    still_builds(&space);
}

#[test]
fn stages() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let cases = [
        Bad {
            dockerfile: "FROM busybox AS build\nFROM busybox\n",
            args: &["--target", "biuld"],
            message: "target stage \"biuld\" could not be found (did you mean build?)",
            help: &["the stages are `build`"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox AS a\nCOPY --from=b x y\nFROM busybox AS b\nCOPY --from=a x y\n",
            marked: &[2, 4],
            message: "circular dependency detected on stage: a",
            help: &["let only one of the stages take files from the other"],
            ..BAD
        },
    ];
    cases.iter().for_each(|case| case.check(&space));
    // A stage that does not exist is an image, which nobody has. The registry is loopback, where nobody listens.
    let dockerfile = "FROM busybox AS build\nFROM busybox\nCOPY --from=biuld /x /\n";
    space.write("docker/config.json", "{}");
    space.write("Dockerfile", dockerfile);
    let mut command = space.command(["--progress=plain", "."]);
    command.env("HTTPS_PROXY", format!("http://127.0.0.1:{}", free_port())).env("NO_PROXY", "");
    let ran = Ran::of(command.output().expect("rbuild starts"));
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert_eq!(report.marked, [3]);
    assert!(report.message.ends_with(" (did you mean build?)"), "{}", report.message);
    report.check_help(&["tried the local store (no image of that name), the registry docker.io (…)"], &ran.stderr);
    still_builds(&space);
}

#[test]
fn files_of_the_context() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("app.conf", "x");
    space.write("debug.log", "y");
    space.write("sub/deep/file.txt", "z");
    space.write(".dockerignore", "# comment\n*.log\n");
    let cases = [
        Bad {
            dockerfile: "FROM busybox\nCOPY app.cnof /\n",
            marked: &[2],
            message: "failed to compute cache key: failed to calculate checksum of ref context: \"/app.cnof\": not found",
            help: &["looked for `…/app.cnof`", "did you mean `app.conf`?"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN true\nCOPY sub/deeep/file.txt /\n",
            marked: &[3],
            message: "failed to compute cache key: failed to calculate checksum of ref context: \"/sub/deeep/file.txt\": not found",
            help: &["looked for `…/sub/deeep/file.txt`", "did you mean `sub/deep/file.txt`?"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nCOPY debug.log /\n",
            marked: &[2],
            message: "failed to compute cache key: failed to calculate checksum of ref context: \"/debug.log\": not found",
            help: &["`debug.log` exists, but `*.log` in .dockerignore:2 hides it"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox AS one\nRUN echo > /result\nFROM busybox\nCOPY --from=one /reslut /\n",
            marked: &[4],
            message: "failed to compute cache key: failed to calculate checksum of ref root: \"/reslut\": not found",
            help: &["did you mean `result`?"],
            ..BAD
        },
    ];
    cases.iter().for_each(|case| case.check(&space));
    still_builds(&space);
}

#[test]
fn commands() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let cases = [
        Bad {
            dockerfile: "FROM busybox\nRUN pyhton x.py\n",
            marked: &[2],
            message: "process \"/bin/sh -c pyhton x.py\" did not complete successfully: exit code: 127",
            help: &["exit code 127: a program was not found; is it installed in an earlier step, and in PATH?"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN [\"pyhton\", \"x.py\"]\n",
            marked: &[2],
            message: "process \"pyhton x.py\" did not complete successfully: exit code: 1",
            help: &["is `pyhton` installed in an earlier step?"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM scratch\nRUN echo hi\n",
            marked: &[2],
            message: "process \"/bin/sh -c echo hi\" did not complete successfully: exit code: 1",
            help: &["the root has no working `/bin/sh`: …"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nUSER app\nRUN id\n",
            marked: &[3],
            message: "process \"/bin/sh -c id\" did not complete successfully: unable to find user app: no matching entries in passwd file",
            help: &["make `app` in an earlier step (`RUN adduser app`), or give a number"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok,required=true true\n",
            marked: &[2],
            message: "secret tok: not found",
            help: &["pass it with `--secret id=tok,src=FILE` or `--secret id=tok,env=VARIABLE`"],
            ..BAD
        },
        Bad {
            dockerfile: "FROM busybox\nRUN --mount=type=ssh,required true\n",
            marked: &[2],
            message: "no SSH key \"\" forwarded from the client",
            help: &["pass it with `--ssh default`"],
            ..BAD
        },
    ];
    cases.iter().for_each(|case| case.check(&space));
    still_builds(&space);
}

#[test]
fn dockerfiles_that_cannot_be_read() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    std::fs::create_dir_all(space.path("empty")).expect("directory");
    std::fs::create_dir_all(space.path("dir/Dockerfile")).expect("directory");
    space.write("near/Dockerfil", "FROM busybox\n");
    space.write("other/Containerfile", "FROM busybox\n");
    let missing = "failed to read dockerfile: open Dockerfile: no such file or directory";
    let cases: [(&[&str], &str, &[&str]); 8] = [
        (&["empty"], missing, &["looked for …/empty/Dockerfile; name another file with -f"]),
        (&["near"], missing, &["looked for …/near/Dockerfile", "did you mean `-f …/near/Dockerfil`?"]),
        (&["other"], missing, &["looked for …/other/Dockerfile", "did you mean `-f …/other/Containerfile`?"]),
        (
            &["dir"],
            "failed to read dockerfile: open Dockerfile: is a directory",
            &["looked at …/dir/Dockerfile; name a file with -f"],
        ),
        (
            &["-f", "near/Dockerfile", "near"],
            missing,
            &["looked for near/Dockerfile", "did you mean `-f near/Dockerfil`?"],
        ),
        (
            &["nowhere"],
            "unable to prepare context: path \"nowhere\" not found",
            &["the context is the directory that holds the files of the build"],
        ),
        (
            &["imagse"],
            "unable to prepare context: path \"imagse\" not found",
            &["did you mean the command `rbuild images`?"],
        ),
        (
            &["near/Dockerfil"],
            "unable to prepare context: path \"near/Dockerfil\" is not a directory",
            &["to build with that Dockerfile: `rbuild -f near/Dockerfil .`"],
        ),
    ];
    for (args, message, help) in cases {
        let ran = space.rbuild(args);
        assert_eq!(ran.code, INPUT, "{}", ran.stderr);
        let report = Report::of(&ran);
        assert_eq!(report.message, format!("failed to build: failed to solve: {message}"));
        report.check_help(help, &ran.stderr);
        report.check_length(&ran.stderr);
    }
    still_builds(&space);
}

#[test]
fn a_dockerfile_of_somebody_else() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("setpriv"));
    let space = Space::with_busybox();
    space.write("secret/Dockerfile", "FROM scratch\n");
    let file = space.path("secret/Dockerfile");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
    let store = space.open_dir("store-of-nobody");
    let ran = space.as_nobody(&["--store", &store, "secret"]);
    assert_eq!(ran.code, INPUT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert!(
        report.message.ends_with("failed to read dockerfile: open Dockerfile: permission denied"),
        "{}",
        ran.stderr
    );
    report.check_help(&["let this user read it: chmod a+r …/secret/Dockerfile"], &ran.stderr);
    still_builds(&space);
}

#[test]
fn flags() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\n");
    let secret = "write --secret id=NAME,src=FILE or --secret id=NAME,env=VARIABLE";
    let output = "write `-o type=oci,dest=FILE`; types are image, registry, oci, docker, local, tar and cacheonly";
    let cases: [(&[&str], &str, &[&str]); 19] = [
        (&["--tga", "x", "."], "unknown flag: --tga", &["did you mean --tag?"]),
        (&["--bulid-arg", "A=1", "."], "unknown flag: --bulid-arg", &["did you mean --build-arg?"]),
        (&["images", "--fromat", "json"], "unknown flag: --fromat", &["did you mean --format?"]),
        (&["-t", "x"], "the build context is missing", &["name a directory, for instance this one: `rbuild .`"]),
        (
            &["-t", "A:b", "."],
            "invalid tag \"A:b\": invalid reference format: repository name (library/A) must be lowercase",
            &[],
        ),
        (
            &["--progress=plian", "."],
            "invalid progress mode `plian`: expected auto, none, plain, quiet, rawjson or tty",
            &[],
        ),
        (&["--secret", "foo", "."], "--secret foo: invalid field 'foo' must be a key=value pair", &[secret]),
        (&["--secret", "idd=foo", "."], "--secret idd=foo: unexpected key 'idd' in 'idd=foo'", &[secret]),
        (&["--secret", "src=foo", "."], "--secret src=foo: secret missing ID", &[secret]),
        (&["-o", "type=ocii,dest=x", "."], "exporter \"ocii\" could not be found", &["rbuild knows …"]),
        (&["-o", "dest=x", "."], "--output dest=x: type is required for output", &[output]),
        (&["-o", "type=oci,x", "."], "--output type=oci,x: invalid value x", &[output]),
        (&["-o", "type=oci,dset=x", "."], "the oci exporter has no attribute `dset`", &["did you mean `dest`?"]),
        (
            &["-o", "type=local", "."],
            "dest is required for local exporter",
            &["name a directory: `-o type=local,dest=out`"],
        ),
        (
            &["-o", "type=local,dest=Dockerfile", "."],
            "destination directory Dockerfile is a file",
            &["remove it, or name another directory"],
        ),
        (
            &["-o", "type=oci,dest=x,compression=lzma", "."],
            "unsupported compression type lzma",
            &["compression is gzip, zstd, estargz or uncompressed"],
        ),
        (
            &["--allow", "network", "."],
            "--allow network: unknown entitlement",
            &["--allow takes network.host, security.insecure, device"],
        ),
        (
            &["--platform", "linux/nosuch/x/y", "."],
            "invalid value `linux/nosuch/x/y` for --platform: \"linux/nosuch/x/y\": cannot parse platform specifier: invalid argument",
            &["platforms look like …"],
        ),
        (&["-q", "--progress=plain", "."], "progress=plain and quiet cannot be used together", &[]),
    ];
    for (args, message, help) in cases {
        check_usage(&space, args, message, help);
    }
    let ran = space.rbuild(["--secret", "id=foo,src=nope", "."]);
    assert_eq!(ran.code, INPUT);
    assert!(ran.stderr.contains("ERROR: --secret id=foo,src=nope: failed to stat nope: "), "{}", ran.stderr);
    assert_eq!(space.rbuild(["--help"]).code, 0);
    assert_eq!(space.rbuild(["--version"]).code, 0);
    still_builds(&space);
}

#[test]
fn a_registry_that_is_down() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::with_busybox();
    let host = format!("127.0.0.1:{}", free_port());
    let ran = space.build_fails(&format!("FROM busybox AS a\nFROM {host}/app:1\n"), &[]);
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    let message = format!(
        "failed to build: failed to solve: {host}/app:1: failed to resolve source metadata for {host}/app:1: \
         cannot reach {host}: Connection refused (os error 111)"
    );
    assert_eq!(report.message, message);
    assert_eq!(report.marked, [2]);
    let tried = format!(
        "tried the local store (no image of that name), the registry {host} (it cannot be reached), what the registry \
         said last (it was never asked)"
    );
    report.check_help(&[&tried], &ran.stderr);
    still_builds(&space);
}

#[test]
fn a_full_disk() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("mkfs.ext4"), Need::LoopDevices);
    let space = Space::with_busybox();
    let disk = LoopDisk::new(&space, 20);
    let store = disk.path().join("store");
    let store = store.to_str().expect("UTF-8");
    let out = ["-q", "--store", store];
    space.rbuild(out.iter().chain(&["-t", "busybox", "busybox"])).success();
    space.write("big/big", vec![7; 30 << 20]);
    space.write("big/Dockerfile", "FROM scratch\nCOPY big /\n");
    let ran = space.rbuild(["--store", store, "big"]);
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert!(report.message.ends_with("No space left on device (os error 28)"), "{}", report.message);
    let advice = "free space with `rbuild prune`, or use a store on another disk with --store DIR";
    report.check_help(&[advice, "the disk of the store `…"], &ran.stderr);
    space.write("step/Dockerfile", "FROM busybox\nRUN head -c 40000000 /dev/zero > /big\n");
    let ran = space.rbuild(["--store", store, "step"]);
    assert_eq!(ran.code, INPUT, "{}", ran.stderr);
    let advice = "the disk with the store is full: free space with `rbuild prune`, or use --store DIR on another";
    Report::of(&ran).check_help(&[advice, "the disk of the store `…"], &ran.stderr);
    // Nothing of the failures is left in the way.
    space.write("step/Dockerfile", "FROM busybox\nRUN echo fine > /fine\n");
    space.rbuild(out.iter().chain(&["-t", "fine", "step"])).success();
    // What is there can be used, but nothing can be added, when nothing can be written.
    disk.remount("ro");
    let ran = space.rbuild(["--store", store, "step"]);
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert!(report.message.ends_with("Read-only file system (os error 30)"), "{}", report.message);
    report.check_help(&["the store must be writable: mount it so, or name another with --store DIR"], &ran.stderr);
    disk.remount("rw");
    space.rbuild(out.iter().chain(&["step"])).success();
}

#[test]
fn a_store_of_somebody_else() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("setpriv"));
    let space = Space::with_busybox();
    space.write("Dockerfile", "FROM busybox\n");
    let ran = space.as_nobody(&["."]);
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert!(report.message.contains("Permission denied"), "{}", report.message);
    report
        .check_help(&["name another directory with --store DIR, or with RBUILD_STORE in the environment"], &ran.stderr);
    still_builds(&space);
}

#[test]
fn a_store_that_is_no_directory() {
    need!(Need::Program("busybox"));
    let space = Space::new();
    space.write("Dockerfile", "FROM scratch\n");
    for (store, reason) in [("/dev/null", "exist"), ("/proc/nosuch/store", "No such file or directory")] {
        let ran = space.rbuild(["--store", store, "."]);
        assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
        let report = Report::of(&ran);
        assert!(report.message.contains(store) && report.message.contains(reason), "{}", report.message);
        report.check_help(
            &["name another directory with --store DIR, or with RBUILD_STORE in the environment"],
            &ran.stderr,
        );
    }
}

#[test]
fn a_kernel_that_makes_no_namespaces() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("unshare"));
    let space = Space::with_busybox();
    space.write("step/Dockerfile", "FROM scratch\nRUN true\n");
    // The limit holds below the user namespace in which it is set.
    let script = "echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]).arg(rbuild_bin());
    command.current_dir(space.path("")).arg("--store").arg(space.path("own-store")).arg("step").env("NO_COLOR", "1");
    let ran = Ran::of(command.output().expect("unshare starts"));
    assert_eq!(ran.code, ENVIRONMENT, "{}", ran.stderr);
    let report = Report::of(&ran);
    assert_eq!(report.marked, [2]);
    assert!(report.message.contains("cannot make namespaces"), "{}", report.message);
    report.check_help(&["the kernel allows no namespaces: …"], &ran.stderr);
    still_builds(&space);
}
