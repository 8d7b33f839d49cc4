//! What is around a build: programs, the store with its disk, proxies, certificates.

use std::path::{Path, PathBuf};

use cache::{Store, UsageKind};
use executor::cdi::Catalog;
use executor::sandbox::probe::try_overlay;
use executor::sandbox::{Isolation, find_program};

use super::Check;
use crate::env;
use crate::ui::format::size_short;

/// A program on the path, or where administrators have theirs.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    find_program(name, &format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
}

/// Git and the ssh agent.
pub(super) fn programs() -> Vec<Check> {
    let git = match program("git") {
        Some(path) => Check::ok("git", path.display().to_string()),
        None => Check::warn("git", "not on PATH", "install git: contexts and ADD from repositories need it"),
    };
    let agent = match env::ssh_agent() {
        None => Check::ok("ssh agent", "none (SSH_AUTH_SOCK is not set; only --ssh default needs one)"),
        Some(path) => match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => Check::ok("ssh agent", path.display().to_string()),
            Err(error) => {
                Check::warn("ssh agent", format!("{}: {error}", path.display()), "start one, or unset SSH_AUTH_SOCK")
            }
        },
    };
    vec![git, agent]
}

/// Whether layers can be merged where the store lies, and why steps cannot be run if not.
pub(super) fn layers(store: Option<&Path>, isolation: Isolation) -> (Check, Option<String>) {
    const NAME: &str = "overlayfs";
    if matches!(isolation, Isolation::Chroot | Isolation::Nothing) {
        return (Check::ok(NAME, format!("not tried: the tier {} has no mounts", isolation.name())), None);
    }
    let Some(directory) = store.and_then(existing) else {
        return (Check::warn(NAME, "not tried", "name a store with --store DIR"), None);
    };
    match try_overlay(&directory, isolation) {
        Ok(facts) if facts.one_by_one => {
            (Check::ok(NAME, format!("works in {}, any number of layers", directory.display())), None)
        }
        Ok(_) => {
            let found = format!("works in {}, as many layers as one option can name", directory.display());
            (Check::warn(NAME, found, "Linux 6.5 takes any number"), None)
        }
        Err(error) => {
            let need = match file_system(&directory) {
                "overlayfs" => "an overlay cannot lie on another: put the store on a volume with --store DIR",
                "nfs" | "cifs" | "fuse" => "put the store on a local file system with --store DIR",
                _ => "a store on ext4, xfs or btrfs (--store DIR), and Linux 5.11 for users other than root",
            };
            let obstacle = format!("layers cannot be merged in {}: {error}", directory.display());
            (Check::missing(NAME, error.to_string(), need), Some(obstacle))
        }
    }
}

/// The store, its disk, and what is in it.
pub(super) fn store(path: Option<&Path>, isolation: Isolation) -> Vec<Check> {
    let Some(path) = path else {
        return vec![Check::missing("store", "nobody says where it lies", "name a directory with --store DIR")];
    };
    let mut checks = Vec::new();
    match existing(path) {
        Some(directory) => checks.push(disk(&directory)),
        None => checks.push(Check::missing("disk", "no such place", "name a directory with --store DIR")),
    }
    if !path.join("index-v1").exists() {
        let found = format!("{} (made by the first build)", path.display());
        checks.insert(0, Check::ok("store", found));
        return checks;
    }
    checks.insert(0, contents(path, isolation));
    checks
}

fn contents(path: &Path, isolation: Isolation) -> Check {
    let look = || -> Result<(Option<String>, usize, u64), cache::StoreError> {
        let store = Store::open(path)?;
        let usage = store.usage()?;
        let layers = usage.iter().filter(|record| record.kind == UsageKind::Regular).count();
        Ok((store.style()?, layers, usage.iter().map(|record| record.size_bytes).sum()))
    };
    match look() {
        Err(error) => Check::missing("store", error.to_string(), "name another with --store DIR"),
        Ok((style, layers, bytes)) => {
            let wanted = isolation.tree_style().name();
            let style = style.unwrap_or_else(|| wanted.to_owned());
            let found = format!("{}: {layers} layers and blobs, {}, style {style}", path.display(), size_short(bytes));
            if style == wanted {
                Check::ok("store", found)
            } else {
                let need = format!("the tier {} needs style {wanted}: name another with --store DIR", isolation.name());
                Check::missing("store", found, need)
            }
        }
    }
}

/// Less than this is soon used up by one build.
const LITTLE_SPACE_BYTES: u64 = 2 << 30;

fn disk(directory: &Path) -> Check {
    match rustix::fs::statvfs(directory) {
        Err(errno) => Check::missing("disk", errno.to_string(), "name another directory with --store DIR"),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{}, {} free", file_system(directory), size_short(free));
            if rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_err() {
                return Check::missing("disk", format!("{found}, not writable"), "name another with --store DIR");
            }
            match free < LITTLE_SPACE_BYTES {
                true => Check::warn("disk", found, "`rbuild prune` makes room"),
                false => Check::ok("disk", found),
            }
        }
    }
}

/// The nearest directory that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|ancestor| ancestor.is_dir()).map(Path::to_owned)
}

/// Name of a file system by its magic number, linux/magic.h.
fn file_system(directory: &Path) -> &'static str {
    const NAMES: [(u32, &str); 12] = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlayfs"),
        (0x6969, "nfs"),
        (0xff53_4d42, "cifs"),
        (0x6573_5546, "fuse"),
        (0x2fc1_2fc1, "zfs"),
        (0xf2f5_2010, "f2fs"),
        (0xca45_1a4e, "bcachefs"),
        (0x0102_1997, "9p"),
    ];
    let magic = rustix::fs::statfs(directory).map_or(0, |stat| stat.f_type as u32);
    NAMES.iter().find(|(number, _)| *number == magic).map_or("another file system", |(_, name)| name)
}

/// Proxies and certificates, which registries and sources are reached with.
pub(super) fn environment() -> Vec<Check> {
    let names: Vec<String> = env::proxies().into_iter().map(|(name, _)| name).collect();
    let proxies = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    vec![Check::ok("proxies", proxies), certificates()]
}

fn certificates() -> Check {
    const NAME: &str = "certificates";
    const USUAL: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
        "/etc/ssl/ca-bundle.pem",
    ];
    if let Some((variable, path)) = env::named_certificates() {
        let found = format!("{} ({variable})", path.display());
        return match path.exists() {
            true => Check::ok(NAME, found),
            false => Check::missing(NAME, format!("{found} does not exist"), format!("correct or unset {variable}")),
        };
    }
    match USUAL.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Check::ok(NAME, *path),
        None => Check::warn(NAME, "only those built in", "install ca-certificates to trust what this machine trusts"),
    }
}

/// Devices that `RUN --device` can ask for.
pub(super) fn devices(catalog: &Catalog) -> Check {
    const SHOWN: usize = 8;
    let names: Vec<&str> = catalog.names().collect();
    let more = names.len().saturating_sub(SHOWN);
    let mut found = match names.as_slice() {
        [] => "none (only RUN --device needs them)".to_owned(),
        names => names[..names.len() - more].join(" "),
    };
    if more > 0 {
        found.push_str(&format!(" and {more} more"));
    }
    let faults: Vec<String> =
        catalog.faults().iter().map(|fault| format!("{}: {}", fault.path.display(), fault.reason)).collect();
    match faults.is_empty() {
        true => Check::ok("CDI devices", found),
        false => Check::warn("CDI devices", found, faults.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_to_be_is_looked_for_above() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("a/b");
        assert_eq!(existing(&path).as_deref(), Some(directory.path()));
        assert_ne!(file_system(directory.path()), "");
        let checks = store(Some(&path), Isolation::Root);
        assert_eq!((checks[0].name, checks[1].name), ("store", "disk"));
        assert!(!path.exists());
    }
}
