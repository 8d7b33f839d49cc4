//! How well a command can be kept apart on this machine.

use std::fs;
use std::path::PathBuf;

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
    /// Root that may neither mount nor make namespaces: commands are only kept in a directory.
    Chroot,
    /// An ordinary user who may do none of it: there are no commands, but layers can be made without them.
    Nothing,
}

/// What is asked for: the values of `--isolation`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum IsolationMode {
    /// The best that there is.
    #[default]
    Auto,
    /// This tier or none.
    Tier(Isolation),
    /// The best tier with namespaces; commands are started by this OCI runtime, a name or a path.
    Runtime(String),
}

/// How commands of this process are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The tier.
    pub isolation: Isolation,
    /// The OCI runtime that starts commands; `None` is our own sandbox.
    pub runtime: Option<PathBuf>,
    /// Why it is no better tier, one sentence each.
    pub reasons: Vec<String>,
}

impl Confinement {
    /// What this process has without doing anything for it: what [`super::confine`] gave it, or its maker.
    pub fn of_this_process() -> Self {
        let isolation = match missing_privileges().is_empty() {
            true => Isolation::of_this_process(),
            false if missing_for_chroot().is_empty() => Isolation::Chroot,
            false => Isolation::Nothing,
        };
        Self { isolation, runtime: None, reasons: Vec::new() }
    }
}

impl Default for Confinement {
    /// Nothing is allowed until somebody has looked.
    fn default() -> Self {
        Self { isolation: Isolation::Nothing, runtime: None, reasons: Vec::new() }
    }
}

/// How the trees of a store are written: what is mounted, or looked at, in one way is not right for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeStyle {
    /// Owners as they are, marks in `trusted.overlay.*`.
    Trusted,
    /// Owners as they are, marks in `user.overlay.*`.
    User,
    /// Owners noted in `user.rbuild.owner`, marks in `user.overlay.*`.
    Noted,
    /// As `User`, but never mounted: deletion marks may be sockets.
    Copied,
    /// As `Noted`, but never mounted: deletion marks may be sockets.
    NotedCopied,
}

impl TreeStyle {
    /// A name for files and directories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::User => "user",
            Self::Noted => "noted",
            Self::Copied => "copied",
            Self::NotedCopied => "noted-copied",
        }
    }
}

impl TreeStyle {
    /// Whether owners are noted.
    pub fn has_notes(self) -> bool {
        matches!(self, Self::Noted | Self::NotedCopied)
    }
}

impl Isolation {
    /// Looks at the id mapping of this process, which must have all that [`missing_privileges`] wants.
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

    /// As `--isolation` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespace => "userns",
            Self::SingleId => "userns-single",
            Self::Chroot => "chroot",
            Self::Nothing => "nothing",
        }
    }

    /// In one sentence, for `doctor`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Root => "all namespaces, native overlayfs",
            Self::UserNamespace => "a user namespace with a range of ids, native overlayfs",
            Self::SingleId => "a user namespace with one id, native overlayfs; owners are noted beside the files",
            Self::Chroot => "a directory is all that keeps steps: they see this machine's processes and network",
            Self::Nothing => "no RUN steps; COPY, ADD and everything about images work",
        }
    }

    /// How trees are written in this tier.
    pub fn tree_style(self) -> TreeStyle {
        match self {
            Self::Root => TreeStyle::Trusted,
            Self::UserNamespace => TreeStyle::User,
            Self::SingleId => TreeStyle::Noted,
            Self::Chroot => TreeStyle::Copied,
            Self::Nothing => TreeStyle::NotedCopied,
        }
    }

    /// Whether commands get namespaces of their own.
    pub(super) fn has_namespaces(self) -> bool {
        matches!(self, Self::Root | Self::UserNamespace | Self::SingleId)
    }

    /// Whether overlayfs must keep its marks in `user.` attributes.
    pub(super) fn needs_user_xattrs(self) -> bool {
        self.tree_style() != TreeStyle::Trusted
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

impl IsolationMode {
    /// Every value, for messages.
    pub const NAMES: &'static str = "auto, root, userns, userns-single, chroot or oci:RUNTIME";

    /// Reads a value of `--isolation`; `default` is what docker calls `auto`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" | "default" => Self::Auto,
            "root" => Self::Tier(Isolation::Root),
            "userns" => Self::Tier(Isolation::UserNamespace),
            "userns-single" => Self::Tier(Isolation::SingleId),
            "chroot" => Self::Tier(Isolation::Chroot),
            _ => Self::Runtime(text.strip_prefix("oci:").filter(|name| !name.is_empty())?.to_owned()),
        })
    }
}

/// What this process lacks for mounting and for making namespaces; empty when all is well.
pub fn missing_privileges() -> Vec<&'static str> {
    let needed = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN (mounts and namespaces)"),
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT (changing the root)"),
        (CapabilitySet::SETUID, "CAP_SETUID (running steps as other users)"),
        (CapabilitySet::SETGID, "CAP_SETGID (running steps as other groups)"),
    ];
    let held = effective();
    needed.iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, text)| *text).collect()
}

/// What this process lacks for the tier [`Isolation::Chroot`].
pub fn missing_for_chroot() -> Vec<&'static str> {
    let needed = [
        (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT (changing the root)"),
        (CapabilitySet::SETUID, "CAP_SETUID (running steps as other users)"),
        (CapabilitySet::SETGID, "CAP_SETGID (running steps as other groups)"),
        (CapabilitySet::CHOWN, "CAP_CHOWN (giving files to their owners)"),
        (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE (reading files of others)"),
        (CapabilitySet::FOWNER, "CAP_FOWNER (changing files of others)"),
    ];
    let held = effective();
    needed.iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, text)| *text).collect()
}

fn effective() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
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

    #[test]
    fn modes_have_names() {
        for tier in [Isolation::Root, Isolation::UserNamespace, Isolation::SingleId, Isolation::Chroot] {
            assert_eq!(IsolationMode::parse(tier.name()), Some(IsolationMode::Tier(tier)));
            assert!(IsolationMode::NAMES.contains(tier.name()));
        }
        assert_eq!(IsolationMode::parse("default"), Some(IsolationMode::Auto));
        assert_eq!(IsolationMode::parse("oci:crun"), Some(IsolationMode::Runtime("crun".to_owned())));
        for wrong in ["", "oci:", "process", "hyperv", "nothing"] {
            assert_eq!(IsolationMode::parse(wrong), None, "{wrong}");
        }
    }
}
