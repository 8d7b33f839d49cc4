//! Debian packages that the demo, the tests and the benchmarks need.

use anyhow::{Result, bail};

use crate::process::{is_installed, is_root, run_command, say};

/// A program and the package it comes in.
pub(crate) type Need = (&'static str, &'static str);

/// What base images are made with.
pub(crate) const BASES: &[Need] = &[
    ("debootstrap", "debootstrap"),
    ("busybox", "busybox-static"),
    ("tar", "tar"),
    ("qemu-aarch64-static", "qemu-user-static"),
];

/// Readers of our images, servers, and what steps get their network from.
pub(crate) const REFEREES: &[Need] = &[
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("podman", "podman"),
    ("dockerd", "docker.io"),
    ("docker-registry", "docker-registry"),
    ("htpasswd", "apache2-utils"),
    ("sshd", "openssh-server"),
    ("git", "git"),
    ("getcap", "libcap2-bin"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("newuidmap", "uidmap"),
    ("strace", "strace"),
    ("zstd", "zstd"),
    ("newuidmap", "uidmap"),
    ("runc", "runc"),
    ("pasta", "passt"),
];

/// The other builder of `compare`; a client that does not bring BuildKit along needs docker-buildx as well.
pub(crate) const ENGINE: &[Need] = &[("dockerd", "docker.io"), ("docker", "docker.io")];

/// Installs what is missing, or says exactly what to install.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&str> =
        needs.iter().filter(|(program, _)| !is_anywhere(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() || !is_installed("apt-get") {
        bail!("missing programs; install them with: sudo apt-get install --no-install-recommends {list}");
    }
    say(&format!("installing {list}"));
    let apt = |args: &[&str]| {
        let mut command = std::process::Command::new("apt-get");
        run_command(
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
                .args(args)
                .stdout(std::io::stderr()),
        )
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(missing);
    apt(&install)
}

/// Daemons lie outside of an ordinary user's path.
fn is_anywhere(program: &str) -> bool {
    is_installed(program) || ["/usr/sbin", "/sbin"].iter().any(|dir| std::path::Path::new(dir).join(program).is_file())
}
