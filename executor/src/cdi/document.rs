//! One file that describes devices, as its vendor has written it: read, then checked as a whole.
//!
//! JSON is read as the YAML that it is. What a file says more than the specification knows makes it invalid, and so does
//! what the version that it names did not have yet. Spec: CDI 1.1, "CDI JSON Specification".

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::names;

/// Newest version of the format that is read; its number of mends does not count.
const NEWEST: (u32, u32) = (1, 1);

/// Oldest version.
const OLDEST: (u32, u32) = (0, 3);

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    cdi_version: String,
    /// `vendor.com/class`.
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Entry>,
    /// What any of the devices brings with it.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ContainerEdits {
    /// `NAME=value`, in order.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    /// Files, directories and file systems.
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    /// Programs of this machine that help to make the container.
    #[serde(deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    /// Groups that the process is in.
    #[serde(alias = "additionalGIDs", deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
    /// Shares of the processor's cache.
    pub(super) intel_rdt: Option<IgnoredAny>,
    /// Network interfaces of this machine.
    #[serde(deserialize_with = "or_default")]
    pub(super) net_devices: Vec<IgnoredAny>,
}

/// A device node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DeviceNode {
    /// Where it is in the container.
    pub path: String,
    /// Where it is on this machine; `None` is the same path.
    #[serde(default)]
    pub host_path: Option<String>,
    /// `b`, `c` or `u` (unbuffered: `c` as well), `p`; as on this machine when missing.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Major number; zero stands for none.
    #[serde(default)]
    pub major: u32,
    /// Minor number; counts if `major` does.
    #[serde(default)]
    pub minor: u32,
    /// Permission bits.
    #[serde(default)]
    pub file_mode: Option<u32>,
    /// Letters of `rwm`; all when missing, none for `none`.
    #[serde(default)]
    pub permissions: Option<String>,
    /// Owner; the process's user when missing.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group; the process's when missing.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    /// What is mounted: a path of this machine.
    pub host_path: String,
    /// Where it is mounted.
    pub container_path: String,
    /// As for `mount(8)`, in order.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// File system; a bind when missing.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

/// A program of this machine that is run on the way to a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// When: one of [`HOOKS`].
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its arguments, its own name first.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Seconds that it may take.
    #[serde(default)]
    pub timeout: Option<u32>,
}

/// The moments at which a hook can be run, by the names of the OCI runtime specification.
pub const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// `null` is as good as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Document {
    /// Reads a file and checks everything that does not depend on the machine.
    ///
    /// # Errors
    /// What is wrong, as a sentence for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // The specification's own reader takes `0666` for octal, and people write modes so.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        let document: Self = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        document.check().map_or(Ok(document), Err)
    }

    fn check(&self) -> Option<String> {
        names::fault_of_kind(&self.kind)
            .or_else(|| self.fault_of_version())
            .or_else(|| self.container_edits.fault())
            .or_else(|| self.devices.is_empty().then(|| "it has no devices".to_owned()))
            .or_else(|| self.devices.iter().enumerate().find_map(|(index, entry)| self.fault_of_entry(index, entry)))
    }

    fn fault_of_entry(&self, index: usize, entry: &Entry) -> Option<String> {
        let name = &entry.name;
        if let Some(fault) = names::fault_of_device(name) {
            return Some(fault);
        }
        if self.devices[..index].iter().any(|earlier| earlier.name == *name) {
            return Some(format!("it has two devices named `{name}`"));
        }
        let fault = if entry.container_edits.is_empty() {
            Some("it brings nothing: `containerEdits` is empty".to_owned())
        } else {
            entry.container_edits.fault()
        };
        fault.map(|fault| format!("device `{name}`: {fault}"))
    }

    /// Whether the version is one that we know, and had what the file uses.
    fn fault_of_version(&self) -> Option<String> {
        let text = &self.cdi_version;
        let Some(version) = parse_version(text) else {
            return Some(format!("`{text}` is no version: `cdiVersion` looks like `0.6.0`"));
        };
        if !(OLDEST..=NEWEST).contains(&version) {
            let (oldest, newest) = (shown(OLDEST), shown(NEWEST));
            return Some(format!("its version {text} is not known: `cdiVersion` is between {oldest} and {newest}"));
        }
        let (needed, why) = self.needs();
        (version < needed)
            .then(|| format!("its `cdiVersion` must be at least {} for {why}; it is {text}", shown(needed)))
    }

    /// The version that brought what the file uses, and what that is.
    fn needs(&self) -> ((u32, u32), &'static str) {
        let edits = || self.devices.iter().map(|entry| &entry.container_edits).chain([&self.container_edits]);
        let has_annotations =
            !self.annotations.is_empty() || self.devices.iter().any(|entry| !entry.annotations.is_empty());
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let begins_oddly = |entry: &Entry| !entry.name.starts_with(|c: char| c.is_ascii_alphabetic());
        let uses = [
            ((1, 1), "`netDevices`", edits().any(|edits| !edits.net_devices.is_empty())),
            ((0, 7), "`additionalGids`", edits().any(|edits| !edits.additional_gids.is_empty())),
            ((0, 7), "`intelRdt`", edits().any(|edits| edits.intel_rdt.is_some())),
            ((0, 6), "`annotations`", has_annotations),
            ((0, 6), "a class with a dot", class.contains('.')),
            ((0, 5), "`hostPath`", edits().flat_map(|edits| &edits.device_nodes).any(|node| node.host_path.is_some())),
            ((0, 5), "a device whose name begins with a digit", self.devices.iter().any(begins_oddly)),
            ((0, 4), "`type` of a mount", edits().flat_map(|edits| &edits.mounts).any(|mount| mount.kind.is_some())),
        ];
        let used = uses.into_iter().find(|(.., is_used)| *is_used);
        used.map_or((OLDEST, "anything"), |(version, what, _)| (version, what))
    }
}

/// Major and minor number of a version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.').map(|number| number.parse::<u32>().ok());
    let version = (numbers.next()??, numbers.next()??);
    numbers.next()??;
    numbers.next().is_none().then_some(version)
}

fn shown((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}.0")
}

impl ContainerEdits {
    /// Whether nothing is asked for.
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.mounts.is_empty()
            && self.hooks.is_empty()
            && self.additional_gids.is_empty()
            && self.intel_rdt.is_none()
            && self.net_devices.is_empty()
    }

    /// What is wrong with them; `None` when nothing is.
    fn fault(&self) -> Option<String> {
        let is_variable = |text: &&String| text.find('=').is_none_or(|at| at == 0);
        if let Some(text) = self.env.iter().find(is_variable) {
            return Some(format!("`{text}` is no environment variable: write `NAME=value`"));
        }
        let nodes = || self.device_nodes.iter().find_map(DeviceNode::fault);
        let mounts = || self.mounts.iter().find_map(Mount::fault);
        let hooks = || self.hooks.iter().find_map(Hook::fault);
        nodes().or_else(mounts).or_else(hooks)
    }

    /// Fields that are asked for and that no step can have, whatever runs it.
    pub(super) fn beyond_us(&self) -> Option<&'static str> {
        let rdt = self.intel_rdt.map(|_| "intelRdt");
        rdt.or_else(|| (!self.net_devices.is_empty()).then_some("netDevices"))
    }
}

impl DeviceNode {
    fn fault(&self) -> Option<String> {
        let path = &self.path;
        let has_kind = |kind: &str| ["", "b", "c", "u", "p"].contains(&kind);
        if !path.starts_with('/') {
            return Some(format!("the `path` of a device node is absolute: `{path}`"));
        }
        if let Some(kind) = self.kind.as_deref().filter(|kind| !has_kind(kind)) {
            return Some(format!("device node `{path}`: its `type` is one of b, c, u and p: `{kind}`"));
        }
        let permissions = self.permissions.as_deref().unwrap_or_default();
        let is_known = permissions == "none" || permissions.chars().all(|letter| "rwm".contains(letter));
        (!is_known).then(|| format!("device node `{path}`: its `permissions` are letters of `rwm`: `{permissions}`"))
    }
}

impl Mount {
    fn fault(&self) -> Option<String> {
        let Self { host_path, container_path, .. } = self;
        if host_path.is_empty() {
            return Some(format!("the mount at `{container_path}` has no `hostPath`"));
        }
        (!container_path.starts_with('/'))
            .then(|| format!("the `containerPath` of a mount is absolute: `{container_path}`"))
    }
}

impl Hook {
    fn fault(&self) -> Option<String> {
        let Self { hook_name, path, env, .. } = self;
        if !HOOKS.contains(&hook_name.as_str()) {
            return Some(format!("there is no hook `{hook_name}`: it is one of {}", HOOKS.join(", ")));
        }
        if !path.starts_with('/') {
            return Some(format!("the `path` of a hook is absolute: `{path}`"));
        }
        let wrong = env.iter().find(|text| text.find('=').is_none_or(|at| at == 0));
        wrong.map(|text| format!("hook `{path}`: `{text}` is no environment variable: write `NAME=value`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
cdiVersion: 1.0.0
kind: vendor.com/gpu
annotations:
  org.mobyproject.buildkit.device.autoallow: true
containerEdits:
  env: [COMMON=1]
devices:
  - name: "0"
    annotations: { a: b }
    containerEdits:
      env: ["A=b=c"]
      deviceNodes:
        - { path: /dev/gpu0, hostPath: /dev/zero, type: c, major: 1, minor: 5, fileMode: 0660, permissions: rw, uid: 1, gid: 2 }
        - path: /dev/null
      mounts:
        - { hostPath: /usr/lib/x, containerPath: /usr/lib/y, options: [ro, nosuid, bind] }
      hooks:
        - { hookName: createContainer, path: /bin/true, args: [true, x], env: [K=v], timeout: 3 }
      additionalGids: [44]
"#;

    #[test]
    fn a_whole_file_is_read() {
        let document = Document::parse(WHOLE).unwrap();
        let edits = &document.devices[0].container_edits;
        let node = &edits.device_nodes[0];
        assert_eq!((node.path.as_str(), node.host_path.as_deref()), ("/dev/gpu0", Some("/dev/zero")));
        assert_eq!((node.major, node.minor, node.file_mode), (1, 5, Some(0o660)));
        assert_eq!((node.uid, node.gid, node.permissions.as_deref()), (Some(1), Some(2), Some("rw")));
        assert_eq!(edits.device_nodes[1].host_path, None);
        assert_eq!(edits.mounts[0].options, ["ro", "nosuid", "bind"]);
        assert_eq!((edits.hooks[0].args.len(), edits.hooks[0].timeout), (2, Some(3)));
        assert_eq!(edits.additional_gids, [44]);
        assert_eq!(document.container_edits.env, ["COMMON=1"]);
        assert_eq!(document.annotations["org.mobyproject.buildkit.device.autoallow"], "true");
    }

    #[test]
    fn json_is_read_too() {
        let text = r#"{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [{"name": "d",
            "containerEdits": {"env": ["A=b"], "mounts": null,
            "deviceNodes": [{"path": "/dev/x", "fileMode": 438, "hostPath": "/dev/zero"}]}}]}"#;
        let document = Document::parse(text).unwrap();
        assert_eq!(document.devices[0].container_edits.device_nodes[0].file_mode, Some(0o666));
    }

    /// A file with one device whose edits are given, and everything that comes before.
    fn file(version: &str, kind: &str, device: &str, edits: &str) -> String {
        format!("cdiVersion: {version}\nkind: {kind}\ndevices:\n- name: {device}\n  containerEdits: {{ {edits} }}\n")
    }

    #[test]
    fn faults_are_told() {
        let good = "env: [A=b]";
        let cases = [
            (file("0.6", "v.com/c", "d", good), "`0.6` is no version"),
            (file("0.2.0", "v.com/c", "d", good), "its version 0.2.0 is not known"),
            (file("1.2.0", "v.com/c", "d", good), "between 0.3.0 and 1.1.0"),
            (file("0.6.0", "v.com", "d", good), "`v.com` is no kind of devices"),
            (file("0.6.0", "v.com/c", "'-'", good), "`-` is no name of a device"),
            (file("0.6.0", "v.com/c", "d", ""), "device `d`: it brings nothing"),
            (file("0.6.0", "v.com/c", "d", "env: [A]"), "`A` is no environment variable"),
            (file("0.6.0", "v.com/c", "d", "envs: [A=b]"), "unknown field `envs`"),
            (file("0.6.0", "v.com/c", "d", "deviceNodes: [{path: dev/x}]"), "is absolute: `dev/x`"),
            (file("0.6.0", "v.com/c", "d", "deviceNodes: [{path: /x, type: q}]"), "one of b, c, u and p: `q`"),
            (file("0.6.0", "v.com/c", "d", "deviceNodes: [{path: /x, permissions: rx}]"), "letters of `rwm`: `rx`"),
            (file("0.6.0", "v.com/c", "d", "deviceNodes: [{path: /x, major: -1}]"), "invalid"),
            (file("0.6.0", "v.com/c", "d", "mounts: [{hostPath: '', containerPath: /x}]"), "has no `hostPath`"),
            (file("0.6.0", "v.com/c", "d", "mounts: [{hostPath: /x, containerPath: x}]"), "is absolute: `x`"),
            (file("0.6.0", "v.com/c", "d", "hooks: [{hookName: late, path: /x}]"), "there is no hook `late`"),
            (file("0.6.0", "v.com/c", "d", "hooks: [{hookName: prestart, path: x}]"), "is absolute: `x`"),
            (
                file("0.3.0", "v.com/c", "d", "mounts: [{hostPath: /x, containerPath: /x, type: bind}]"),
                "at least 0.4.0",
            ),
            (file("0.4.0", "v.com/c", "0", good), "at least 0.5.0"),
            (file("0.5.0", "v.com/c.d", "d", good), "at least 0.6.0"),
            (file("0.6.0", "v.com/c", "d", "additionalGids: [1]"), "at least 0.7.0 for `additionalGids`"),
            (file("1.0.0", "v.com/c", "d", "netDevices: [{hostInterfaceName: a, name: b}]"), "at least 1.1.0"),
            ("cdiVersion: 0.6.0\nkind: v.com/c\ndevices: []\n".to_owned(), "it has no devices"),
            ("cdiVersion: [".to_owned(), "line 1"),
            (String::new(), "unexpected end of input"),
        ];
        for (text, want) in cases {
            let fault = Document::parse(&text).err().unwrap_or_default();
            assert!(fault.contains(want), "{text}: {fault}");
        }
        let twice = file("0.6.0", "v.com/c", "d", good) + "- name: d\n  containerEdits: { env: [A=b] }\n";
        assert_eq!(Document::parse(&twice).unwrap_err(), "it has two devices named `d`");
    }

    #[test]
    fn what_nobody_can_give_is_found() {
        let document = Document::parse(&file("1.1.0", "v.com/c", "d", "intelRdt: {closID: x}")).unwrap();
        assert_eq!(document.devices[0].container_edits.beyond_us(), Some("intelRdt"));
        let document = Document::parse(&file("1.1.0", "v.com/c", "d", "netDevices: [{name: x}]")).unwrap();
        assert_eq!(document.devices[0].container_edits.beyond_us(), Some("netDevices"));
    }
}
