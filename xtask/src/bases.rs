//! Base images without any registry: Debian by debootstrap, busybox from Debian's static binary, and stand-ins for
//! well-known images that rbuild itself builds from `testdata/bases/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages;
use crate::process::{output, run, run_command, say, work_dir, workspace};

/// Name in the store and directory in `testdata/bases/`; each may stand on the ones before it.
const IMAGES: [(&str, &str); 6] = [
    ("busybox", "busybox"),
    ("debian:bookworm", "debian"),
    ("python:3.11-slim", "python"),
    ("node:20", "node"),
    ("golang:1.19", "golang"),
    ("distroless:static", "distroless"),
];

/// The base for another machine; only tests need it, and making it takes an emulator some minutes.
const FOREIGN: (&str, &str) = ("debian:bookworm-arm64", "debian-arm64");

/// The applets that busybox gets a link for are all that it has.
const BUSYBOX: &str = "/bin/busybox";

/// The store of the demo and the tests.
pub(crate) fn store_dir() -> PathBuf {
    work_dir().join("store")
}

/// Names of the base images for this machine.
pub(crate) fn names() -> [&'static str; 6] {
    IMAGES.map(|(name, _)| name)
}

/// Makes every base image that the store lacks.
pub(crate) fn ensure_all(rbuild: &Path, store: &Path) -> Result<()> {
    let all: Vec<&str> = names().into_iter().chain([FOREIGN.0]).collect();
    ensure(rbuild, store, &all)
}

/// Makes the named base images that the store lacks, with what they stand on.
pub(crate) fn ensure(rbuild: &Path, store: &Path, names: &[&str]) -> Result<()> {
    packages::ensure(packages::BASES)?;
    std::fs::create_dir_all(store).with_context(|| format!("cannot create {}", store.display()))?;
    let present = output(Command::new(rbuild).arg("--store").arg(store).args(["images", "--format=json"]))?;
    for (name, directory) in IMAGES.iter().chain([&FOREIGN]).filter(|(name, _)| names.contains(name)) {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let is_present = present.lines().any(|line| {
            serde_json::from_str::<serde_json::Value>(line)
                .is_ok_and(|image| image["Repository"] == repository && image["Tag"] == tag)
        });
        if is_present {
            continue;
        }
        say(&format!("making the base image {name}"));
        let context = match *name {
            "busybox" => busybox_context()?,
            "debian:bookworm" => debian_context("debian", &[])?,
            name if name == FOREIGN.0 => debian_context(directory, &["--arch=arm64", "--foreign"])?,
            _ => workspace().join("testdata/bases").join(directory),
        };
        let dockerfile = workspace().join("testdata/bases").join(directory).join("Dockerfile");
        let mut build = Command::new(rbuild);
        build.arg("--store").arg(store).args(["--progress=plain", "-t", name, "-f"]).arg(dockerfile).arg(context);
        if *name == FOREIGN.0 {
            build.arg("--platform=linux/arm64");
        }
        run_command(&mut build)?;
    }
    Ok(())
}

/// The root of a `debian:bookworm` as `rootfs.tar`; `--foreign` leaves the second half of the work to the Dockerfile.
fn debian_context(directory: &str, flags: &[&str]) -> Result<PathBuf> {
    let context = work_dir().join(directory);
    let tar = context.join("rootfs.tar");
    if tar.is_file() {
        return Ok(context);
    }
    let root = context.join("rootfs");
    drop(std::fs::remove_dir_all(&root));
    std::fs::create_dir_all(&context)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(flags).args(["--variant=minbase", "bookworm"]).arg(&root).stdout(std::io::stderr());
    run_command(&mut debootstrap).context("debootstrap needs root")?;
    // The second half needs what the first has fetched.
    let leftovers = ["var/cache/apt/archives", "var/lib/apt/lists", "var/log"];
    for leftover in leftovers.iter().filter(|_| !flags.contains(&"--foreign")) {
        let directory = root.join(leftover);
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory)?;
    }
    if std::fs::symlink_metadata(root.join("proc"))?.is_symlink() {
        // The first half leaves a link that leads to itself.
        std::fs::remove_file(root.join("proc"))?;
        std::fs::create_dir(root.join("proc"))?;
    }
    let partial = context.join("rootfs.tar.partial");
    let args = ["--create", "--numeric-owner", "--one-file-system", "--exclude=./dev/*", "--sort=name"];
    let mut pack = Command::new("tar");
    run_command(pack.args(args).arg("--file").arg(&partial).arg("--directory").arg(&root).arg("."))?;
    std::fs::rename(&partial, &tar)?;
    std::fs::remove_dir_all(&root)?;
    Ok(context)
}

/// The root of `busybox`, as the golden cases describe it.
fn busybox_context() -> Result<PathBuf> {
    let context = work_dir().join("busybox");
    let root = context.join("rootfs");
    drop(std::fs::remove_dir_all(&root));
    let script = workspace().join("testdata/bases/busybox/rootfs.sh");
    std::fs::create_dir_all(&context)?;
    run("sh", [Path::new("-eu"), &script, &root, Path::new(BUSYBOX)].map(Path::as_os_str))?;
    Ok(context)
}
