//! The golden cases on disk, and the copy of a case's folder that one build works in.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use toml::Table;

use crate::web::Web;

/// One build that is recorded: a case, or one variant of it.
pub(crate) struct Golden {
    /// `case` or `case/variant`.
    pub(crate) name: String,
    /// The case's folder.
    folder: PathBuf,
    /// What to do.
    pub(crate) spec: Spec,
    /// What was recorded.
    pub(crate) expected: Value,
}

/// `case.toml`, with the keys of one variant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// Flags, as `docker buildx build` spells them.
    pub(crate) args: Vec<String>,
    /// Name of the image that `base/` makes.
    pub(crate) base: Option<String>,
    /// A script that makes what git cannot keep.
    setup: Option<String>,
    /// Whether `www/` is served.
    serve: bool,
    /// A remote context; `WEB` is the server's URL.
    context: Option<String>,
    /// Programs and powers that the case cannot do without.
    pub(crate) needs: Vec<String>,
    /// Paths whose times are compared.
    pub(crate) times: Vec<String>,
    /// What is recorded beyond the usual.
    record: Vec<String>,
    /// Builds after the first.
    pub(crate) rebuild: Vec<Rebuild>,
    /// Files of the variant.
    files: BTreeMap<String, String>,
    /// The variant's Dockerfile.
    dockerfile: Option<String>,
}

/// One build after the first.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rebuild {
    /// What happens before it, in the context.
    pub(crate) change: Option<String>,
    /// Flags in place of the case's.
    pub(crate) args: Option<Vec<String>>,
}

impl Spec {
    /// Whether `what` is recorded.
    pub(crate) fn records(&self, what: &str) -> bool {
        self.record.iter().any(|recorded| recorded == what)
    }
}

/// The golden builds in `folder/cases`, by case, in the order of their names.
pub(crate) fn discover(folder: &Path) -> Vec<Vec<Golden>> {
    let entries = fs::read_dir(folder.join("cases")).expect("the goldens have a folder `cases`");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    folders.sort();
    folders.iter().map(|folder| read_case(folder)).collect()
}

fn read_case(folder: &Path) -> Vec<Golden> {
    let name = folder.file_name().expect("name").to_string_lossy().into_owned();
    let text = fs::read_to_string(folder.join("case.toml")).expect(&name);
    let mut table: Table = text.parse().expect(&name);
    let expected: Value =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).expect(&name)).expect("recordings are JSON");
    let golden = |name: String, table: Table, expected: Value| {
        let spec = table.try_into().expect(&name);
        Golden { name, folder: folder.to_owned(), spec, expected }
    };
    let Some(variants) = table.remove("variant") else { return vec![golden(name, table, expected)] };
    let variants: Vec<Table> = variants.try_into().expect(&name);
    let named = |variant: Table| {
        let own = variant["name"].as_str().expect("a variant has a name").to_owned();
        let mut merged = table.clone();
        merged.extend(variant);
        golden(format!("{name}/{own}"), merged, expected["variants"][own.as_str()].clone())
    };
    variants.into_iter().map(named).collect()
}

/// A copy of a case's folder, made ready.
pub(crate) struct Work {
    /// The copy.
    pub(crate) dir: PathBuf,
    /// The flags, with the server's URL.
    pub(crate) args: Vec<String>,
    /// The context as on the command line.
    pub(crate) context: String,
    /// URL of the server, when the case has one.
    pub(crate) web: Option<String>,
    is_remote: bool,
}

impl Work {
    /// Copies the folder to `dir`, writes the variant's files, runs the case's script.
    pub(crate) fn prepare(golden: &Golden, dir: PathBuf, web: &Web) -> Result<Self, String> {
        let spec = &golden.spec;
        copy_tree(&golden.folder, &dir)?;
        let dockerfile = spec.dockerfile.iter().map(|text| ("Dockerfile", text));
        for (path, text) in spec.files.iter().map(|(path, text)| (path.as_str(), text)).chain(dockerfile) {
            let path = dir.join(path);
            at(&path, fs::create_dir_all(path.parent().unwrap_or(&dir)))?;
            at(&path, fs::write(&path, text))?;
        }
        at(&dir, fs::create_dir_all(dir.join("context")))?;
        set_modes(&dir)?;
        let mut work =
            Self { args: spec.args.clone(), context: "context".to_owned(), web: None, is_remote: false, dir };
        if let Some(setup) = &spec.setup {
            let path = work.dir.join(setup);
            work.script(&at(&path, fs::read_to_string(&path))?)?;
        }
        if !spec.rebuild.is_empty() {
            let path = work.dir.join("context/nonce");
            at(&path, fs::write(&path, nonce()))?;
        }
        if spec.serve {
            let case = golden.name.split('/').next().unwrap_or_default();
            let url = web.serve(case, work.dir.join("www"));
            match &spec.context {
                Some(context) => {
                    work.is_remote = true;
                    work.context = context.replacen("WEB", &url, 1);
                }
                None => work.args.extend(["--build-arg".to_owned(), format!("WEB={url}")]),
            }
            work.web = Some(url);
        }
        Ok(work)
    }

    /// The flags for the Dockerfile, unless `args` name it.
    pub(crate) fn dockerfile_flags(&self, args: &[String]) -> Vec<String> {
        let path = if self.dir.join("Dockerfile").exists() { "Dockerfile" } else { "context/Dockerfile" };
        let is_named = args.iter().any(|arg| arg == "--file");
        if is_named || self.is_remote { Vec::new() } else { vec!["--file".to_owned(), path.to_owned()] }
    }

    /// Runs a script in the context.
    pub(crate) fn script(&self, text: &str) -> Result<(), String> {
        let mut command = Command::new("sh");
        command.args(["-euc", text]).current_dir(self.dir.join("context")).env_clear();
        command.env("PATH", e2e::setting("PATH").unwrap_or_default());
        command.env("HOME", &self.dir).env("LC_ALL", "C").env("TZ", "UTC");
        let output = command.output().map_err(|error| format!("sh: {error}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("script: {}: {complaint}", output.status)) }
    }
}

/// Text that no build has seen.
fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    at(to, fs::create_dir_all(to))?;
    for entry in at(from, fs::read_dir(from))? {
        let entry = at(from, entry)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = at(&source, entry.file_type())?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let link = at(&source, fs::read_link(&source))?;
            at(&target, std::os::unix::fs::symlink(link, &target))?;
        } else {
            at(&source, fs::copy(&source, &target))?;
            at(&target, fs::set_permissions(&target, Permissions::from_mode(mode_of(&source)?)))?;
        }
    }
    Ok(())
}

/// A checkout's umask must not matter.
fn set_modes(path: &Path) -> Result<(), String> {
    let meta = at(path, fs::symlink_metadata(path))?;
    if meta.is_symlink() {
        return Ok(());
    }
    at(path, fs::set_permissions(path, Permissions::from_mode(mode_of(path)?)))?;
    if meta.is_dir() {
        for entry in at(path, fs::read_dir(path))? {
            set_modes(&at(path, entry)?.path())?;
        }
    }
    Ok(())
}

fn mode_of(path: &Path) -> Result<u32, String> {
    let meta = at(path, fs::symlink_metadata(path))?;
    Ok(if meta.is_dir() || meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 })
}

/// Names the path in an error.
fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}
