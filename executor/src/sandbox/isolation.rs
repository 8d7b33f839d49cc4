//! How well a command can be kept apart on this machine.

use std::fs;

use rustix::thread::CapabilitySet;

/// The tiers of isolation, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Root of the machine, or of a container that may mount: all namespaces, native overlayfs.
    Root,
    /// Root of a user namespace with a range of ids.
    UserNamespace,
    /// Root of a user namespace with nothing but one id: no other users, no groups.
    SingleId,
}

impl Isolation {
    /// Looks at the id mapping of this process.
    pub fn of_this_process() -> Self {
        Self::from_uid_map(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
    }

    fn from_uid_map(map: &str) -> Self {
        let ranges = map.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let (first, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
            Some((first, outside, count))
        });
        let ranges: Vec<_> = ranges.collect();
        match &ranges[..] {
            // Ids are not translated: this is the machine's own user namespace.
            [] | [(0, 0, 4_294_967_295)] => Self::Root,
            [(_, _, 1)] => Self::SingleId,
            _ => Self::UserNamespace,
        }
    }

    /// In one sentence, for `doctor`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Root => "root: all namespaces, native overlayfs",
            Self::UserNamespace => "user namespace with subordinate ids, native overlayfs",
            Self::SingleId => "user namespace with a single id: steps can only be root, owners are lost",
        }
    }

    /// Whether overlayfs must keep its marks in `user.` attributes.
    pub(super) fn needs_user_xattrs(self) -> bool {
        self != Self::Root
    }

    /// Whether device nodes can be made, not only bound.
    pub(super) fn may_make_devices(self) -> bool {
        self == Self::Root
    }

    /// Whether group 5 exists, for the terminals' owner.
    pub(super) fn has_tty_group(self) -> bool {
        self != Self::SingleId
    }

    /// Whether `setgroups` is allowed.
    pub(super) fn may_set_groups(self) -> bool {
        self != Self::SingleId
    }
}

/// What is missing for running commands at all; empty when all is well.
pub fn missing_privileges() -> Vec<&'static str> {
    let needed = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN (mounts and namespaces)"),
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT (changing the root)"),
        (CapabilitySet::SETUID, "CAP_SETUID (running steps as other users)"),
        (CapabilitySet::SETGID, "CAP_SETGID (running steps as other groups)"),
    ];
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    needed.iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, text)| *text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_map_tells_the_tier() {
        let cases = [
            ("         0          0 4294967295\n", Isolation::Root),
            ("0 1000 1\n", Isolation::SingleId),
            ("0 1000 1\n1 100000 65536\n", Isolation::UserNamespace),
            ("0 100000 65536\n", Isolation::UserNamespace),
            ("", Isolation::Root),
        ];
        for (map, want) in cases {
            assert_eq!(Isolation::from_uid_map(map), want, "{map:?}");
        }
    }
}
