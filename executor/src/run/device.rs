//! `RUN --device`: what the descriptions of devices ([`crate::cdi`]) mean for one command.

use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FileType, major, minor};
use solver::{Device, OpError};

use crate::cdi::{Catalog, ContainerEdits, DeviceNode, Hook, Mount};
use crate::sandbox::{self, GivenDevices, GivenNode, HookMoment, MountSource, SandboxMount};
use crate::sys::bpf::DeviceAccess;
use crate::sys::mount::MountAttributes;

/// What a command gets for its devices.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) devices: GivenDevices,
    /// In order; they replace mounts of the step with the same target.
    pub(super) mounts: Vec<SandboxMount>,
    /// In order; they replace variables of the step.
    pub(super) variables: Vec<(String, String)>,
    /// Names of devices that are not there and need not be.
    pub(super) missing: Vec<String>,
}

/// Finds the devices that a step asks for, and everything that comes with them. Reads files.
///
/// # Errors
/// As [`Catalog::choose`]; a node that this machine does not have; mounts of a sort that steps cannot have.
pub(super) fn given(catalog: &Catalog, devices: &[Device]) -> Result<Given, OpError> {
    let (chosen, missing) = catalog.choose(devices)?;
    let mut given = Given { missing, ..Given::default() };
    for edits in &chosen.edits {
        let added = add(&mut given, edits);
        added.map_err(|fault| {
            OpError::environment(format!("cannot give the step {}: {fault}", chosen.names.join(", ")))
                .help("its description asks for it: see the directories of CDI files, docs/devices.md")
        })?;
    }
    Ok(given)
}

fn add(given: &mut Given, edits: &ContainerEdits) -> Result<(), String> {
    let pairs = edits.env.iter().filter_map(|text| text.split_once('='));
    given.variables.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for described in &edits.device_nodes {
        given.devices.nodes.push(node(described)?);
    }
    for described in &edits.mounts {
        given.mounts.push(mount(described)?);
    }
    // Zero stands for none.
    given.devices.groups.extend(edits.additional_gids.iter().copied().filter(|gid| *gid != 0));
    given.devices.hooks.extend(edits.hooks.iter().filter_map(hook));
    Ok(())
}

/// A node with everything that its description leaves to this machine.
fn node(described: &DeviceNode) -> Result<GivenNode, String> {
    let host_path = PathBuf::from(described.host_path.as_ref().unwrap_or(&described.path));
    let kind = described.kind.as_deref().filter(|kind| !kind.is_empty()).map(|kind| match kind {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    });
    let (kind, number) = match kind {
        Some(FileType::Fifo) => (FileType::Fifo, (0, 0)),
        Some(kind) if described.major != 0 => (kind, (described.major, described.minor)),
        wanted => {
            let found = rustix::fs::stat(&host_path)
                .map_err(|errno| format!("this machine has no device {}: {errno}", host_path.display()))?;
            let kind = FileType::from_raw_mode(found.st_mode);
            let is_node = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo);
            if !is_node || wanted.is_some_and(|wanted| wanted != kind) {
                return Err(format!("{} is no device, or one of another type", host_path.display()));
            }
            let own = (major(found.st_rdev), minor(found.st_rdev));
            (kind, if described.major == 0 { own } else { (described.major, described.minor) })
        }
    };
    Ok(GivenNode {
        path: described.path.clone(),
        host_path,
        kind,
        number,
        mode: described.file_mode,
        uid: described.uid,
        gid: described.gid,
        access: access(described.permissions.as_deref()),
    })
}

fn access(permissions: Option<&str>) -> DeviceAccess {
    match permissions {
        None | Some("") => DeviceAccess::ALL,
        Some("none") => DeviceAccess::NONE,
        Some(letters) => letters.chars().fold(DeviceAccess::NONE, |access, letter| {
            access.with(match letter {
                'r' => DeviceAccess::READ,
                'w' => DeviceAccess::WRITE,
                _ => DeviceAccess::MAKE,
            })
        }),
    }
}

fn mount(described: &Mount) -> Result<SandboxMount, String> {
    let Mount { host_path, container_path, options, kind } = described;
    let fault = |what: String| Err(format!("the mount of {host_path} at {container_path} {what}"));
    let (mut attributes, mut read_only) = (MountAttributes::NONE, false);
    let mut size_bytes = None;
    for option in options {
        match option.as_str() {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nosuid" => attributes = attributes.with(MountAttributes::NO_SUID),
            "nodev" => attributes = attributes.with(MountAttributes::NO_DEVICES),
            "noexec" => attributes = attributes.with(MountAttributes::NO_EXEC),
            // A step's mounts come from nowhere and go nowhere, and a bind brings what is mounted below.
            "bind" | "rbind" | "private" | "rprivate" | "slave" | "rslave" => {}
            "suid" | "dev" | "exec" | "relatime" | "noatime" | "strictatime" | "nodiratime" | "defaults" => {}
            other => match other.strip_prefix("size=").map(str::parse) {
                Some(Ok(bytes)) if kind.as_deref() == Some("tmpfs") => size_bytes = Some(bytes),
                _ => return fault(format!("has the option `{other}`, which steps cannot have")),
            },
        }
    }
    let source = match kind.as_deref() {
        None | Some("" | "bind" | "none") => {
            if let Err(error) = std::fs::metadata(host_path) {
                return fault(format!("cannot be had: {error}"));
            }
            MountSource::Host { path: PathBuf::from(host_path), attributes }
        }
        Some("tmpfs") => MountSource::Tmpfs { size_bytes },
        Some(kind) => return fault(format!("is a `{kind}`: steps can have binds and tmpfs")),
    };
    Ok(SandboxMount { target: container_path.clone(), source, read_only })
}

/// A hook; descriptions with moments that nobody knows have been refused.
fn hook(described: &Hook) -> Option<sandbox::Hook> {
    let moment = HookMoment::ALL.into_iter().find(|moment| moment.name() == described.hook_name)?;
    let pairs = described.env.iter().filter_map(|text| text.split_once('='));
    Some(sandbox::Hook {
        moment,
        path: PathBuf::from(&described.path),
        args: described.args.clone(),
        env: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        timeout: described.timeout.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(path: &str) -> DeviceNode {
        DeviceNode {
            path: path.to_owned(),
            host_path: None,
            kind: None,
            major: 0,
            minor: 0,
            file_mode: None,
            permissions: None,
            uid: None,
            gid: None,
        }
    }

    #[test]
    fn what_is_left_out_is_as_on_this_machine() {
        let zero = node(&described("/dev/zero")).unwrap();
        assert_eq!((zero.kind, zero.number, zero.access), (FileType::CharacterDevice, (1, 5), DeviceAccess::ALL));
        let other = node(&DeviceNode { host_path: Some("/dev/null".to_owned()), ..described("/dev/x") }).unwrap();
        assert_eq!((other.path.as_str(), other.number), ("/dev/x", (1, 3)));
        // Nothing is looked up that is said.
        let said = DeviceNode { kind: Some("b".to_owned()), major: 7, minor: 1, ..described("/dev/there/is/none") };
        let said = node(&DeviceNode { permissions: Some("r".to_owned()), ..said }).unwrap();
        assert_eq!((said.kind, said.number, said.access), (FileType::BlockDevice, (7, 1), DeviceAccess::READ));
        let pipe = DeviceNode { kind: Some("p".to_owned()), ..described("/dev/there/is/none") };
        assert_eq!(node(&pipe).unwrap().kind, FileType::Fifo);
    }

    #[test]
    fn what_this_machine_lacks_is_told() {
        let cases = [
            (described("/dev/there/is/none"), "this machine has no device /dev/there/is/none"),
            (described("/etc/passwd"), "/etc/passwd is no device"),
            (DeviceNode { kind: Some("b".to_owned()), ..described("/dev/zero") }, "of another type"),
        ];
        for (described, want) in cases {
            let fault = node(&described).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }

    #[test]
    fn mounts_are_binds_or_memory() {
        let of = |options: &[&str], kind: Option<&str>| {
            mount(&Mount {
                host_path: "/etc".to_owned(),
                container_path: "/x".to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
                kind: kind.map(str::to_owned),
            })
        };
        let bind = of(&["ro", "nosuid", "rbind", "rprivate"], None).unwrap();
        assert!(bind.read_only);
        assert!(matches!(bind.source, MountSource::Host { attributes: MountAttributes::NO_SUID, .. }));
        let memory = of(&["size=4096"], Some("tmpfs")).unwrap();
        assert!(matches!(memory.source, MountSource::Tmpfs { size_bytes: Some(4096) }));
        assert!(of(&["rshared"], None).unwrap_err().contains("the option `rshared`"));
        assert!(of(&[], Some("proc")).unwrap_err().contains("is a `proc`"));
    }
}
