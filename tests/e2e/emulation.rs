//! Steps for other machines: emulated with everything they start, marked, and paid for in one line at the end.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Need, Ran, Registry, Space, find_program, note, succeed};
use crate::need;

/// An emulator for another machine than this one, and the machine.
const FOREIGN: (&str, &str) =
    if cfg!(target_arch = "x86_64") { ("qemu-aarch64-static", "arm64") } else { ("qemu-x86_64-static", "amd64") };

/// The machine with the emulator for [`FOREIGN`] has Linux 6.7, or knows that machine's programs anyway.
macro_rules! need_emulation {
    ($($need:expr),* $(,)?) => {
        need!(Need::Root, Need::Program("busybox"), Need::Program(FOREIGN.0) $(, $need)*);
        if !knows_private_handlers() {
            note(&format!("skipped {}: needs Linux 6.7", module_path!()));
            return;
        }
    };
}

fn knows_private_handlers() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("proc");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7)
        && std::fs::read_to_string("/proc/filesystems").expect("proc").contains("binfmt_misc")
}

/// Text that a program prints.
const HELLO: &[u8] = b"hello from elsewhere\n";

/// The smallest program for `architecture` that prints [`HELLO`].
fn hello(architecture: &str) -> Vec<u8> {
    let (class, machine, mut code): (u8, u16, Vec<u8>) = match architecture {
        "arm64" => {
            // adr x1,text; mov x0,#1; mov x2,#length; mov x8,#64; svc #0; mov x0,#0; mov x8,#93; svc #0
            let length = 0xd280_0002 | (HELLO.len() as u32) << 5;
            let words =
                [0x1000_0101, 0xd280_0020, length, 0xd280_0808, 0xd400_0001, 0xd280_0000, 0xd280_0ba8, 0xd400_0001_u32];
            (2, 183, words.iter().flat_map(|word| word.to_le_bytes()).collect())
        }
        "386" => {
            // mov $4,%eax; mov $1,%ebx; mov $text,%ecx; mov $length,%edx; int $0x80; mov $1,%eax; xor %ebx,%ebx; int $0x80
            let mut code = vec![0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9];
            code.extend((0x1_0000_u32 + 84 + 31).to_le_bytes());
            code.extend([0xba, HELLO.len() as u8, 0, 0, 0, 0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80]);
            (1, 3, code)
        }
        "amd64" => {
            // mov $1,%eax; mov $1,%edi; lea text(%rip),%rsi; mov $length,%edx; syscall; mov $60,%eax; xor %edi,%edi; syscall
            let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0x8d, 0x35, 16, 0, 0, 0];
            code.extend([0xba, HELLO.len() as u8, 0, 0, 0, 0x0f, 0x05, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
            (2, 62, code)
        }
        other => panic!("{other}"),
    };
    code.extend(HELLO);
    let header = if class == 2 { 120 } else { 84 };
    let size = header + code.len() as u64;
    let word =
        |value: u64| if class == 2 { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() };
    let mut program = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    program.extend(machine.to_le_bytes());
    program.extend([1, 0, 0, 0]);
    let (own, segment) = if class == 2 { (64_u16, 56_u16) } else { (52, 32) };
    for value in [0x1_0000 + header, own.into(), 0] {
        program.extend(word(value));
    }
    program.extend([0; 4]);
    program.extend([own, segment, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    program.extend([1, 0, 0, 0]);
    let flags = [5, 0, 0, 0];
    program.extend(flags.iter().filter(|_| class == 2));
    for value in [0, 0x1_0000, 0x1_0000, size, size] {
        program.extend(word(value));
    }
    program.extend(flags.iter().filter(|_| class == 1));
    program.extend(word(0x1_0000));
    program.extend(code);
    program
}

fn space(architecture: &str) -> Space {
    let space = Space::with_busybox();
    space.write("hello", hello(architecture));
    space
}

fn build(space: &Space, dockerfile: &str, args: &[&str]) -> Ran {
    space.write("Dockerfile", dockerfile);
    let ran = space.rbuild(["--progress=plain", "."].iter().chain(args));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran
}

/// Handlers of the machine, which must be the same before and after.
fn handlers() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_foreign_command_and_its_children_are_emulated() {
    need_emulation!();
    let (_, architecture) = FOREIGN;
    let space = space(architecture);
    let platform = format!("linux/{architecture}");
    let before = handlers();
    let dockerfile = "FROM scratch\nCOPY --chmod=755 hello /hello\nRUN [\"/hello\"]\n";
    let ran = build(&space, dockerfile, &["--platform", &platform, "-t", "foreign"]);
    assert!(ran.stderr.contains("hello from elsewhere"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches(&format!(" EMULATED {platform}\n")).count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("\nEMULATED: 1 step for {platform} in ")), "{}", ran.stderr);
    assert!(ran.stderr.contains("FROM --platform=$BUILDPLATFORM"), "{}", ran.stderr);
    assert_eq!(handlers(), before, "the machine has other handlers now");
    let run = space.rbuild(["run", "--rm", "foreign"]);
    assert_ne!(run.code, 0, "there is no command");
    assert_eq!(space.run_in("foreign", &["/hello"]), "hello from elsewhere\n");

    // What the cache has costs nothing.
    let again = build(&space, dockerfile, &["--platform", &platform]);
    assert!(!again.stderr.contains("EMULATED"), "{}", again.stderr);

    // A shell of this machine in an image that says it were for another: only what it starts is emulated, and the
    // step's user is whoever it should be.
    let dockerfile = "FROM scratch\nCOPY --from=busybox / /\nCOPY --chmod=755 hello /hello\nUSER 7:8\n\
                      RUN /hello; echo /hello | sh; id; exec /hello\n";
    let ran = build(&space, dockerfile, &["--platform", &platform]);
    assert_eq!(ran.stderr.matches(" hello from elsewhere\n").count(), 3, "{}", ran.stderr);
    assert!(ran.stderr.contains(" uid=7 gid=8"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("EMULATED"), "{}", ran.stderr);
}

#[test]
fn an_emulated_step_is_as_confined_as_others() {
    need_emulation!();
    let (emulator, architecture) = FOREIGN;
    let space = space(architecture);
    let platform = format!("linux/{architecture}");
    // The emulator is the host's file. It can be reached while it runs, and must not be changed.
    let emulator = find_program(emulator).expect("asked for with need!");
    let before = succeed(Command::new("sha256sum").arg(&emulator));
    let dockerfile = "FROM scratch\nCOPY --from=busybox / /\nCOPY --chmod=755 hello /hello\n\
         RUN mkfifo /p; (sleep 1 > /p) & /hello < /p & sleep 0.2; \
         for exe in /proc/[0-9]*/exe; do exec 3< $exe; (echo x >> /proc/self/fd/3) 2>&1; (echo x >> $exe) 2>&1; done; \
         grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status; /hello; \
         mount -t tmpfs x /mnt 2>&1; mknod /n b 7 0; cat /n 2>&1; (echo 1 > /proc/sys/kernel/core_pattern) 2>&1; \
         hostname x 2>&1; true\n";
    let ran = build(&space, dockerfile, &["--platform", &platform]);
    assert_eq!(succeed(Command::new("sha256sum").arg(&emulator)), before);
    for expected in [
        "hello from elsewhere",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        "core_pattern: Read-only file system",
    ] {
        assert!(ran.stderr.contains(expected), "{expected}\n{}", ran.stderr);
    }
    assert!(ran.stderr.contains("mount: ") && ran.stderr.contains("hostname: "), "{}", ran.stderr);
}

#[test]
fn an_ordinary_user_needs_no_more() {
    need_emulation!(Need::Program("setpriv"));
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur", "true"];
    if !Command::new("setpriv").args(args).output().is_ok_and(|output| output.status.success()) {
        return note("skipped emulation: users may not make user namespaces here");
    }
    let (_, architecture) = FOREIGN;
    let space = space(architecture);
    let store = format!("{}/store", space.open_dir("theirs"));
    let platform = format!("linux/{architecture}");
    space.write("Dockerfile", "FROM scratch\nCOPY --chmod=755 hello /hello\nRUN [\"/hello\"]\n");
    let ran = space.as_nobody(&["--store", &store, "build", "--progress=plain", "--platform", &platform, "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(" hello from elsewhere\n"), "{}", ran.stderr);
}

#[test]
fn what_cannot_run_is_said_before_and_after() {
    need!(Need::Root, Need::Program("busybox"));
    let (emulator, architecture) = FOREIGN;
    if !handlers().is_empty() {
        return note("skipped emulation: this machine has handlers");
    }
    let space = space(architecture);
    let empty = space.open_dir("empty");
    let platform = format!("linux/{architecture}");
    space.write("Dockerfile", "FROM scratch\nCOPY --chmod=755 hello /hello\nRUN [\"/hello\"]\n");
    let fails = || {
        let mut command = space.command(["--progress=plain", "--platform", &platform, "."]);
        let ran = Ran::of(command.env("RBUILD_QEMU_DIR", &empty).output().expect("rbuild starts"));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        ran.stderr
    };
    let said = fails();
    for expected in [
        format!("WARN: nothing on this machine runs the programs of a RUN step for {platform}: no `{emulator}`"),
        "exec /hello: exec format error".to_owned(),
        format!("the program is for {platform}: no `{emulator}`"),
        "apt-get install qemu-user-static".to_owned(),
        format!("docker run --privileged --rm tonistiigi/binfmt --install {architecture}"),
    ] {
        assert!(said.contains(&expected), "{expected}\n{said}");
    }
    let warned = said.find("WARN: nothing").expect("a warning");
    assert!(warned < said.find("COPY --chmod").expect("a step"), "the warning comes late:\n{said}");
    // A dynamic one needs libraries that are not in the image.
    std::fs::copy("/bin/sh", Path::new(&empty).join(emulator)).expect("copy");
    assert!(fails().contains("is linked dynamically"));
}

#[test]
fn thirty_two_bit_programs_run_on_the_processor() {
    need!(Need::Root, Need::Program("busybox"));
    if !cfg!(target_arch = "x86_64") {
        return note("skipped emulation: only tried on x86_64");
    }
    let space = space("386");
    let try_it = Command::new("sh").args(["-c", "chmod 755 hello; ./hello"]).current_dir(space.path("")).output();
    if !try_it.expect("sh").status.success() {
        return note("skipped emulation: the kernel runs no 32-bit programs");
    }
    let dockerfile = "FROM scratch\nCOPY --chmod=755 hello /hello\nRUN [\"/hello\"]\n";
    let ran = build(&space, dockerfile, &["--platform=linux/386"]);
    assert!(ran.stderr.contains("hello from elsewhere"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("EMULATED") && !ran.stderr.contains("WARN"), "{}", ran.stderr);
}

#[test]
fn rawjson_marks_what_is_emulated() {
    need_emulation!();
    let (_, architecture) = FOREIGN;
    let space = space(architecture);
    space.write("Dockerfile", "FROM scratch\nCOPY --chmod=755 hello /hello\nRUN [\"/hello\"]\n");
    let platform = format!("linux/{architecture}");
    let ran = space.rbuild(["--progress=rawjson", "--platform", &platform, "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines = ran.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let marked: Vec<Value> = lines
        .map(|line| line["vertexes"][0].clone())
        .filter(|vertex| vertex["emulated"] == platform.as_str())
        .collect();
    assert!(marked.iter().all(|vertex| vertex["name"].as_str().expect("name").contains("RUN")), "{marked:?}");
    assert!(marked.iter().any(|vertex| vertex["completed"].is_string()), "{marked:?}");
}

/// A space with Debian for this machine and for arm64; `None` after saying why there is none.
fn space_with_debians() -> Option<Space> {
    if FOREIGN.1 != "arm64" {
        note("skipped emulation: arm64 is native here");
        return None;
    }
    let space = Space::shared();
    if space.rbuild(["inspect", "debian:bookworm-arm64"]).code != 0 {
        note("skipped emulation: needs debian:bookworm-arm64 of `cargo xtask bases`");
        return None;
    }
    Some(space)
}

/// A distribution for another machine: its package manager, compiler and what they start, all emulated.
#[test]
fn a_debian_for_arm64_installs_compiles_and_runs() {
    need!(Need::Bases);
    need_emulation!();
    let Some(space) = space_with_debians() else { return };
    space.write("hello.c", "#include <stdio.h>\nint main(void) { puts(\"compiled for \" ARCH); return 0; }\n");
    // What takes minutes may be in the store from an earlier run of the tests.
    let dockerfile = "FROM debian:bookworm-arm64 AS tools\n\
        RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev > /log\n\
        FROM tools AS build\nCOPY hello.c /\n\
        RUN gcc -O1 -static -DARCH=\"\\\"$(uname -m)\\\"\" -o /hello /hello.c && /hello && [ \"$(dpkg --print-architecture)\" = arm64 ]\n\
        FROM scratch\nCOPY --from=build /hello /hello\nCMD [\"/hello\"]\n";
    let ran =
        build(&space, dockerfile, &["--platform=linux/arm64", "-t", "e2e-emulated:test", "--no-cache-filter=build"]);
    assert!(ran.stderr.contains("compiled for aarch64"), "{}", ran.stderr);
    let cost = ran.stderr.lines().find(|line| line.starts_with("EMULATED: ")).unwrap_or_default();
    assert!(cost.contains(" for linux/arm64 in "), "{}", ran.stderr);
    assert_eq!(space.run_in("e2e-emulated:test", &[]), "compiled for aarch64\n");
    space.rbuild(["rmi", "e2e-emulated:test"]).success();
}

/// One name for the bases of two machines, so that one Dockerfile is built natively for one and emulated for the other.
#[test]
fn emulated_for_one_of_two_platforms_and_pushed() {
    need!(Need::Bases, Need::Program("docker-registry"), Need::Program("skopeo"));
    need_emulation!();
    let Some(space) = space_with_debians() else { return };
    let registry = Registry::start(&space);
    space.rbuild(["merge", "-t", "e2e-debian:both", "debian:bookworm", "debian:bookworm-arm64"]).success();
    let dockerfile = "FROM e2e-debian:both AS build\n\
        RUN echo \"$(uname -m) $(dpkg --print-architecture) $(readlink /proc/self/exe > /dev/null && echo runs)\" > /arch\n\
        FROM scratch\nCOPY --from=build /arch /arch\n";
    let name = format!("{}/emulated:1", registry.host());
    let platforms = "--platform=linux/amd64,linux/arm64";
    let ran = build(&space, dockerfile, &[platforms, "-t", &name, "--push", "--no-cache-filter=build"]);
    assert_eq!(ran.stderr.matches("EMULATED: 1 step for linux/arm64 in ").count(), 1, "{}", ran.stderr);
    for (architecture, said) in [("amd64", "x86_64 amd64 runs\n"), ("arm64", "aarch64 arm64 runs\n")] {
        let copy = space.path(architecture);
        pull_for(&name, architecture, &copy);
        assert_eq!(String::from_utf8(only_file(&copy, "arch")).expect("text"), said, "{architecture}");
    }
    space.rbuild(["rmi", "e2e-debian:both"]).success();
}

/// Has skopeo fetch the image of one platform into a directory.
fn pull_for(name: &str, architecture: &str, to: &Path) {
    let (from, copy) = (format!("docker://{name}"), format!("dir:{}", to.display()));
    let args = ["--insecure-policy", "--override-arch", architecture, "copy", "-q", "--src-tls-verify=false"];
    succeed(Command::new("skopeo").args(args).args([&from, &copy]));
    let config = succeed(Command::new("skopeo").args(["--insecure-policy", "inspect", "--config", &copy]));
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["architecture"], architecture);
}

/// A file of the first layer of an image that skopeo has fetched.
fn only_file(image: &Path, file: &str) -> Vec<u8> {
    let manifest = std::fs::read_to_string(image.join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let layer = manifest["layers"][0]["digest"].as_str().expect("digest").trim_start_matches("sha256:");
    Command::new("tar").arg("-xzOf").arg(image.join(layer)).arg(file).output().expect("tar").stdout
}

/// The same image for two machines, compiled by this one: nothing is emulated but what is run in the end.
#[test]
fn cross_compiled_for_two_platforms_and_pushed() {
    need!(Need::Root, Need::Bases, Need::Program("docker-registry"), Need::Program("skopeo"));
    let space = Space::shared();
    let registry = Registry::start(&space);
    space.write("main.go", "package main\n\nimport \"runtime\"\n\nfunc main() { println(runtime.GOARCH) }\n");
    let dockerfile = "FROM --platform=$BUILDPLATFORM golang:1.19 AS build\nWORKDIR /src\nCOPY main.go .\n\
        ARG TARGETOS TARGETARCH\n\
        RUN CGO_ENABLED=0 GOFLAGS=-trimpath GOOS=$TARGETOS GOARCH=$TARGETARCH go build -o /app main.go\n\
        FROM scratch\nCOPY --from=build /app /app\nENTRYPOINT [\"/app\"]\n";
    let name = format!("{}/cross:1", registry.host());
    let ran = build(&space, dockerfile, &["--platform=linux/amd64,linux/arm64", "-t", &name, "--push"]);
    assert!(!ran.stderr.contains("EMULATED"), "{}", ran.stderr);
    for (architecture, machine) in [("amd64", 62), ("arm64", 183)] {
        let copy = space.path(architecture);
        pull_for(&name, architecture, &copy);
        assert_eq!(only_file(&copy, "app")[18..20], u16::to_le_bytes(machine), "{architecture}");
    }
    // Pulled back, it runs here.
    space.rbuild(["pull", &name]).success();
    let native = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(space.rbuild(["run", "--rm", "--platform", native, &name]).stderr, format!("{native}\n"));
    space.rbuild(["rmi", &name]).success();
}
