//! The machine: tiers of isolation, kernel, control groups, network, emulators, runtimes, limits.

use std::path::Path;

use executor::sandbox::probe::{self, CgroupLayout, TierFact};
use executor::sandbox::{Confinement, Isolation};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::{Check, Status};
use crate::commands::doctor::surroundings::program;

/// The tier that steps get, then every tier.
pub(super) fn isolation(confinement: &Confinement, tiers: &[TierFact]) -> Vec<Check> {
    let tier = confinement.isolation;
    let runtime = confinement.runtime.as_ref().map(|path| format!(", started by {}", path.display()));
    let found = format!("{} ({}){}", tier.name(), tier.describe(), runtime.unwrap_or_default());
    let status = match tier {
        Isolation::Root | Isolation::UserNamespace => Status::Ok,
        Isolation::SingleId | Isolation::Chroot => Status::Warn,
        Isolation::Nothing => Status::Missing,
    };
    let reasons = confinement.reasons.join("; ");
    let need = (status != Status::Ok).then_some(reasons).filter(|reasons| !reasons.is_empty());
    let chosen = Check { name: "isolation", status, found, need };
    [chosen].into_iter().chain(tiers.iter().map(|fact| one_tier(fact, tier))).collect()
}

fn one_tier(fact: &TierFact, chosen: Isolation) -> Check {
    let name = match fact.tier {
        Isolation::Root => "tier root",
        Isolation::UserNamespace => "tier userns",
        Isolation::SingleId => "tier userns-single",
        Isolation::Chroot | Isolation::Nothing => "tier chroot",
    };
    if fact.tier == chosen {
        return Check::ok(name, "chosen");
    }
    if fact.obstacles.is_empty() {
        return Check::ok(name, "possible");
    }
    let advice = match fact.tier {
        Isolation::Root => "run as root, or in a container with these capabilities",
        Isolation::UserNamespace => {
            "allow user namespaces; for ids: install uidmap, and `usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 USER`"
        }
        Isolation::SingleId => "allow user namespaces for this user",
        Isolation::Chroot | Isolation::Nothing => "run as root of a container with the usual capabilities",
    };
    Check::missing(name, fact.obstacles.join(", "), advice)
}

/// The kernel with what is used of it, and why steps cannot be run on it.
pub(super) fn kernel() -> (Vec<Check>, Option<String>) {
    let facts = probe::kernel_facts();
    let mut checks = vec![Check::ok("kernel", format!("Linux {}", facts.release))];
    let mut obstacle = None;
    for feature in facts.features {
        let name = match feature.name {
            "openat2" => "openat2",
            "mount_setattr" => "mount_setattr",
            "seccomp filters" => "seccomp",
            "user namespaces" => "user namespaces",
            _ => "clone3",
        };
        if feature.present {
            checks.push(Check::ok(name, format!("works (new in Linux {})", feature.since)));
            continue;
        }
        let need = format!("a kernel or container that allows it (Linux {})", feature.since);
        checks.push(Check::missing(name, format!("without {}: {}", feature.name, feature.otherwise), need));
        if feature.otherwise == "no step can be run" {
            obstacle = Some(format!("the kernel has no {}, or a filter hides it", feature.name));
        }
    }
    (checks, obstacle)
}

/// Control groups.
pub(super) fn control_groups() -> Vec<Check> {
    let facts = probe::cgroup_facts();
    let layout = match facts.layout {
        CgroupLayout::None => {
            return vec![Check::warn(
                "control groups",
                "none",
                "without /sys/fs/cgroup, limits of memory and processors have no effect",
            )];
        }
        CgroupLayout::Unified => "version 2",
        CgroupLayout::Legacy => "version 1",
        CgroupLayout::Hybrid => "version 1, with version 2 beside it",
    };
    let controllers = if facts.controllers.is_empty() { "none".to_owned() } else { facts.controllers.join(" ") };
    let found = format!("{layout}; controllers: {controllers}");
    let check = if facts.writable {
        Check::ok("control groups", format!("{found}; writable"))
    } else {
        let at = facts.directory.map_or(String::new(), |path| format!(" at {}", path.display()));
        Check::warn(
            "control groups",
            format!("{found}; not writable{at}"),
            "limits have no effect: delegate a group (`systemd-run --user --scope -p Delegate=yes rbuild …`), or be root",
        )
    };
    vec![check]
}

/// What a network of their own takes for steps.
pub(super) fn network() -> Vec<Check> {
    let pasta = match program("pasta") {
        Some(path) => Check::ok("pasta", path.display().to_string()),
        None => Check::warn("pasta", "not on PATH", "install passt: without it steps use this machine's network"),
    };
    let device = Path::new("/dev/net/tun");
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(device);
    let tun = match opened {
        Ok(_) => Check::ok("/dev/net/tun", "usable"),
        Err(error) => Check::warn(
            "/dev/net/tun",
            error.to_string(),
            "user-mode networks need it: `modprobe tun`, or add the device",
        ),
    };
    vec![pasta, tun]
}

/// Emulators for steps of other platforms.
pub(super) fn emulators() -> Vec<Check> {
    const STATIC: [&str; 7] = ["aarch64", "arm", "riscv64", "s390x", "ppc64le", "x86_64", "i386"];
    let registered = probe::emulators();
    let usable: Vec<&str> =
        registered.iter().filter(|one| one.enabled && one.fixed).map(|one| one.name.as_str()).collect();
    let need = "install qemu-user-static (with binfmt-support), for builds of other platforms only";
    let kernel = if usable.is_empty() && probe::own_handlers_are_possible() {
        Check::ok("binfmt_misc", "no handlers of the machine; a build makes its own of the emulators".to_owned())
    } else if usable.is_empty() {
        let off = registered.iter().map(|one| format!(" ({} is off, or lacks the flag F)", one.name));
        Check::warn("binfmt_misc", format!("no emulators{}", off.collect::<String>()), need)
    } else {
        Check::ok("binfmt_misc", usable.join(" "))
    };
    let programs: Vec<String> =
        STATIC.iter().map(|machine| format!("qemu-{machine}-static")).filter(|name| program(name).is_some()).collect();
    let programs = match programs.is_empty() {
        true => Check::warn("emulators", "no qemu-*-static on PATH", need),
        false => Check::ok("emulators", programs.join(" ")),
    };
    vec![kernel, programs]
}

/// OCI runtimes for `--isolation=oci:RUNTIME`.
pub(super) fn runtimes() -> Check {
    let found: Vec<String> = ["crun", "runc", "runsc", "youki"]
        .iter()
        .filter_map(|name| program(name))
        .map(|path| path.display().to_string())
        .collect();
    match found.is_empty() {
        true => Check::ok("OCI runtimes", "none (only --isolation=oci:RUNTIME needs one)"),
        false => Check::ok("OCI runtimes", found.join(" ")),
    }
}

/// Limits of this process.
pub(super) fn limits() -> Vec<Check> {
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let in_namespace = Isolation::of_this_process() != Isolation::Root;
    let may_raise = held.contains(CapabilitySet::SYS_RESOURCE) && !in_namespace;
    let raise = match may_raise {
        true => Check::ok("ulimits", "may be raised (CAP_SYS_RESOURCE)"),
        false => Check::warn("ulimits", "may not be raised", "--ulimit above the hard limits needs root"),
    };
    let files = rustix::process::getrlimit(Resource::Nofile);
    let show = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
    let found = format!("{} (hard limit {})", show(files.current), show(files.maximum));
    let files = if files.maximum.is_some_and(|most| most < 1024) {
        Check::warn("open files", found, "`ulimit -n 65536` is a good number")
    } else {
        Check::ok("open files", found)
    };
    vec![raise, files]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_that_cannot_be_had_says_why_and_what_to_do() {
        let fact = TierFact { tier: Isolation::SingleId, obstacles: vec!["user.max_user_namespaces is 0".to_owned()] };
        let check = one_tier(&fact, Isolation::Nothing);
        assert_eq!((check.status, check.found.as_str()), (Status::Missing, "user.max_user_namespaces is 0"));
        assert!(check.need.is_some());
        let possible = one_tier(&TierFact { tier: Isolation::Chroot, obstacles: Vec::new() }, Isolation::Root);
        assert_eq!((possible.status, possible.found.as_str()), (Status::Ok, "possible"));
    }

    #[test]
    fn the_chosen_tier_comes_with_the_reasons_for_no_better_one() {
        let confinement =
            Confinement { isolation: Isolation::SingleId, runtime: None, reasons: vec!["no ids".to_owned()] };
        let checks = isolation(&confinement, &[]);
        assert_eq!((checks[0].status, checks[0].need.as_deref()), (Status::Warn, Some("no ids")));
    }
}
