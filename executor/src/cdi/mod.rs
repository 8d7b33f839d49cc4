//! Devices of this machine as their vendors describe them: the Container Device Interface (CDI).
//!
//! Files in a few directories say what a container needs for a device: nodes, libraries, variables. This module reads
//! them and finds the devices that a name means; [`crate::run`] gives them to steps. Read [`Catalog`] first. Knows
//! nothing of steps, and asks for no permission. Spec: `spec/engine.md` §5.5; CDI 1.1.

mod document;
mod names;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use document::{ContainerEdits, DeviceNode, HOOKS, Hook, Mount};

use document::Document;
use solver::{Device, FoundDevice, OpError};

/// Directories that are read when no others are named; what is in a later one wins.
pub const DIRECTORIES: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];

/// A device with this annotation needs no `--allow`.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Devices with the same value of this annotation can be asked for together.
const CLASS: &str = "org.mobyproject.buildkit.device.class";

/// Larger files are no descriptions of devices.
const MOST_FILE_BYTES: u64 = 16 << 20;

/// The devices of this machine. Cheap to clone; files are read when something is first asked.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    directories: Arc<[PathBuf]>,
    found: Arc<OnceLock<Found>>,
}

/// Everything that the directories hold.
#[derive(Debug, Default)]
struct Found {
    documents: Vec<(PathBuf, Document)>,
    /// Where a device is described, by its whole name: the document, and the device in it.
    devices: BTreeMap<String, (usize, usize)>,
    /// Devices that two files of one directory describe.
    conflicts: BTreeMap<String, [PathBuf; 2]>,
    faults: Vec<Fault>,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub path: PathBuf,
    /// Why, as a sentence.
    pub reason: String,
}

/// What a step gets for its devices, in the order of its request.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Whole names.
    pub names: Vec<String>,
    /// Edits of each file once, before those of its first device, with what they belong to.
    pub edits: Vec<ContainerEdits>,
}

impl Catalog {
    /// Devices that files in `directories` describe; what is in a later one wins. A directory that is missing is empty.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories: directories.into(), found: Arc::default() }
    }

    /// Whole names of all devices, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.found().devices.keys().map(String::as_str)
    }

    /// Files that cannot be used, and devices that are described twice.
    pub fn faults(&self) -> Vec<Fault> {
        let conflicts = self.found().conflicts.iter().map(|(name, [one, other])| Fault {
            path: other.clone(),
            reason: format!("it describes {name}, as {} does", one.display()),
        });
        self.found().faults.iter().cloned().chain(conflicts).collect()
    }

    /// The devices that a request means, in order, each once: the named one; with `vendor/class=*` all of that kind, with
    /// `vendor/class` the first one; else those whose class, by their annotation, has that name.
    ///
    /// # Errors
    /// There is none although one is required; a name that cannot be one; a device that two files describe.
    pub fn find(&self, wanted: &Device) -> Result<Vec<FoundDevice>, OpError> {
        let names = self.matching(&wanted.name)?;
        if names.is_empty() && wanted.required {
            let message = format!("required device \"{}\" is not registered", wanted.name);
            let error = OpError::input(message).help(self.where_to_look());
            return Err(self.unused().fold(error, OpError::help));
        }
        let found = names.into_iter().map(|name| FoundDevice {
            name: name.to_owned(),
            is_auto_allowed: self.annotation(name, AUTO_ALLOW).is_some_and(is_true),
        });
        Ok(found.collect())
    }

    /// What a step gets that asks for `devices`, and those of them that are not there and need not be.
    ///
    /// # Errors
    /// As [`Catalog::find`], and for devices that need what no step can have.
    pub fn choose(&self, devices: &[Device]) -> Result<(Chosen, Vec<String>), OpError> {
        let (mut chosen, mut missing) = (Chosen::default(), Vec::new());
        for device in devices {
            let found = self.find(device)?;
            if found.is_empty() {
                missing.push(device.name.clone());
            }
            for FoundDevice { name, .. } in found {
                if !chosen.names.contains(&name) {
                    chosen.names.push(name);
                }
            }
        }
        let mut seen = HashSet::new();
        let found = self.found();
        for name in &chosen.names {
            let Some(&(document, device)) = found.devices.get(name) else { continue };
            let (path, document_text) = &found.documents[document];
            let common = seen.insert(document).then_some(&document_text.container_edits);
            for edits in common.into_iter().chain([&document_text.devices[device].container_edits]) {
                if let Some(field) = edits.beyond_us() {
                    let message = format!("device {name} needs `{field}`, which no RUN step can have");
                    return Err(OpError::environment(message).help(format!("it is described in {}", path.display())));
                }
                chosen.edits.push(edits.clone());
            }
        }
        Ok((chosen, missing))
    }

    /// What to say about a device that is not there and need not be.
    pub fn absence(&self, name: &str) -> String {
        let unused: Vec<String> = self.unused().collect();
        let separator = if unused.is_empty() { "" } else { "; " };
        format!("optional device \"{name}\" is not registered{separator}{}", unused.join("; "))
    }

    /// Files that cannot be used: any of them may describe what is not found.
    fn unused(&self) -> impl Iterator<Item = String> {
        self.faults().into_iter().map(|Fault { path, reason }| format!("{} is not used: {reason}", path.display()))
    }

    fn where_to_look(&self) -> String {
        let all: Vec<&str> = self.names().collect();
        if !all.is_empty() {
            return format!("there are {}", all.join(", "));
        }
        let directories: Vec<String> = self.directories.iter().map(|path| path.display().to_string()).collect();
        match directories.as_slice() {
            [] => "no directory with descriptions of devices is read".to_owned(),
            _ => format!("devices are described by .json and .yaml files in {}", directories.join(", ")),
        }
    }

    fn matching(&self, wanted: &str) -> Result<Vec<&str>, OpError> {
        let found = self.found();
        let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
        let of_class = |class: &str, kind: Option<&str>| -> Vec<&str> {
            let is_of_kind = |name: &&str| kind.is_none_or(|kind| kind_of(name) == kind);
            let is_of_class = |name: &&str| self.annotation(name, CLASS) == Some(class);
            self.names().filter(is_of_kind).filter(is_of_class).collect()
        };
        if !kind.contains('/') && name.is_empty() {
            return Ok(of_class(kind, None));
        }
        if let Some(fault) = names::fault_of_kind(kind) {
            return Err(OpError::input(format!("invalid device {wanted:?}: {fault}")).about(wanted));
        }
        let is_meant = |device: &str| match name {
            "" | "*" => kind_of(device) == kind,
            _ => device == wanted,
        };
        if let Some((device, [one, other])) = found.conflicts.iter().find(|(device, _)| is_meant(device)) {
            let message = format!(
                "device {device} is described by {} and by {}: one of them has to go",
                one.display(),
                other.display()
            );
            return Err(OpError::environment(message).help("of files in several directories the last one wins"));
        }
        let mut all = self.names().filter(|device| is_meant(device));
        Ok(match name {
            "" => all.next().into_iter().collect(),
            "*" => all.collect(),
            class => match all.next() {
                Some(device) => vec![device],
                None => of_class(class, Some(kind)),
            },
        })
    }

    /// An annotation of a device: its own, else that of its file.
    fn annotation(&self, name: &str, key: &str) -> Option<&str> {
        let found = self.found();
        let &(document, device) = found.devices.get(name)?;
        let document = &found.documents[document].1;
        let own = document.devices[device].annotations.get(key);
        own.or_else(|| document.annotations.get(key)).map(String::as_str)
    }

    fn found(&self) -> &Found {
        self.found.get_or_init(|| {
            let mut found = Found::default();
            self.directories.iter().for_each(|directory| found.read_directory(directory));
            found
        })
    }
}

fn kind_of(device: &str) -> &str {
    device.split_once('=').map_or(device, |(kind, _)| kind)
}

/// As Go reads booleans.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

impl Found {
    /// Adds what one directory holds; it wins over what is there.
    fn read_directory(&mut self, directory: &Path) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.fault(directory, format!("it cannot be read: {error}")),
        };
        let is_description =
            |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json" || ending == "yaml");
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_description).collect();
        paths.sort();
        let mut here: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for path in paths.into_iter().filter(|path| !path.is_dir()) {
            let document = match read_file(&path).and_then(|text| Document::parse(&text)) {
                Ok(document) => document,
                Err(reason) => {
                    self.fault(&path, reason);
                    continue;
                }
            };
            let number = self.documents.len();
            for (index, device) in document.devices.iter().enumerate() {
                let name = format!("{}={}", document.kind, device.name);
                // What earlier directories have to say about it does not count any more.
                self.conflicts.remove(&name);
                match here.get(&name) {
                    Some(&(other, _)) => {
                        let first = self.documents[other].0.clone();
                        self.conflicts.insert(name, [first, path.clone()]);
                    }
                    None => drop(here.insert(name, (number, index))),
                }
            }
            self.documents.push((path, document));
        }
        self.devices.extend(here);
        let conflicts = &self.conflicts;
        self.devices.retain(|name, _| !conflicts.contains_key(name));
    }

    fn fault(&mut self, path: &Path, reason: String) {
        self.faults.push(Fault { path: path.to_owned(), reason });
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("it cannot be read: {error}");
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_file() || found.len() > MOST_FILE_BYTES {
        return Err(format!("it is no file of at most {} MiB", MOST_FILE_BYTES >> 20));
    }
    let bytes = fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests;
