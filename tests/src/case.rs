//! Cases on disk, and the copy of a case's folder that one build works in.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use toml::Table;

use crate::web::Web;

/// One build: a case, or one variant of it.
pub struct Case {
    /// `case` or `case/variant`.
    pub name: String,
    /// The case's folder.
    pub folder: PathBuf,
    /// What to do.
    pub spec: Spec,
    /// What was recorded (`expected.json`); null where nothing is.
    pub expected: Value,
}

/// `case.toml`, with the keys of one variant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// Flags, as `docker buildx build` spells them.
    pub args: Vec<String>,
    /// Name of the image that `base/` makes.
    pub base: Option<String>,
    /// A script that makes what git cannot keep.
    setup: Option<String>,
    /// Who serves what during the build.
    serve: Option<Server>,
    /// Variables that the builder sees.
    pub env: BTreeMap<String, String>,
    /// A remote context; `WEB` is the server's URL.
    context: Option<String>,
    /// Programs and powers that the case cannot do without.
    pub needs: Vec<String>,
    /// Paths whose times are compared.
    pub times: Vec<String>,
    /// What is recorded beyond the usual.
    record: Vec<String>,
    /// Whether no builder may succeed.
    pub fails: bool,
    /// Builds after the first.
    pub rebuild: Vec<Rebuild>,
    /// Files of the variant.
    files: BTreeMap<String, String>,
    /// The variant's Dockerfile.
    dockerfile: Option<String>,
}

/// A server that a case cannot do without.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Server {
    /// Whether the case's `www/` is on the web.
    Www(bool),
    /// Another one, which tests of their own start.
    Named(String),
}

/// One build after the first.
#[derive(Clone, Debug, Deserialize)]
pub struct Rebuild {
    /// What happens before it, in the context.
    pub change: Option<String>,
    /// Flags in place of the case's.
    pub args: Option<Vec<String>>,
}

impl Spec {
    /// Whether `what` is recorded.
    pub fn records(&self, what: &str) -> bool {
        self.record.iter().any(|recorded| recorded == what)
    }

    /// The server that [`Work::prepare`] does not start.
    pub fn foreign_server(&self) -> Option<&str> {
        match &self.serve {
            Some(Server::Named(name)) => Some(name),
            _ => None,
        }
    }
}

/// The builds of the cases in `folder`, by case, in the order of their names. A case is a folder with a Dockerfile, a
/// `case.toml` or both.
pub fn discover(folder: &Path) -> Result<Vec<Vec<Case>>, String> {
    let mut folders = Vec::new();
    for entry in at(folder, fs::read_dir(folder))? {
        folders.push(at(folder, entry)?.path());
    }
    folders.retain(|folder| ["Dockerfile", "case.toml"].iter().any(|file| folder.join(file).is_file()));
    folders.sort();
    folders.iter().map(|folder| read(folder)).collect()
}

/// The builds of the case in `folder`.
fn read(folder: &Path) -> Result<Vec<Case>, String> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = folder.join("case.toml");
    let complaint = |error: toml::de::Error| format!("{}: {error}", path.display());
    let mut table: Table = optional(&path)?.unwrap_or_default().parse().map_err(complaint)?;
    let recording = folder.join("expected.json");
    let expected: Value = match optional(&recording)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| format!("{}: {error}", recording.display()))?,
        None => Value::Null,
    };
    let case = |name: String, table: Table, expected: Value| {
        let spec = table.try_into().map_err(complaint)?;
        Ok(Case { name, folder: folder.to_owned(), spec, expected })
    };
    let Some(variants) = table.remove("variant") else { return Ok(vec![case(name, table, expected)?]) };
    let variants: Vec<Table> = variants.try_into().map_err(complaint)?;
    let named = |variant: Table| {
        let own = variant.get("name").and_then(toml::Value::as_str);
        let own = own.ok_or_else(|| format!("{}: a variant has no name", path.display()))?.to_owned();
        let mut merged = table.clone();
        merged.extend(variant);
        case(format!("{name}/{own}"), merged, expected["variants"][own.as_str()].clone())
    };
    variants.into_iter().map(named).collect()
}

/// A file that need not be there.
fn optional(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => at(path, read).map(Some),
    }
}

/// A copy of a case's folder, made ready.
pub struct Work {
    /// The copy.
    pub dir: PathBuf,
    /// The directory in it that scripts run in; it is the context, unless that is remote.
    pub files: PathBuf,
    /// The flags, with the server's URL.
    pub args: Vec<String>,
    /// The context as on the command line.
    pub context: String,
    /// URL of the server, when the case has one.
    pub web: Option<String>,
    is_remote: bool,
}

impl Work {
    /// Copies the folder to `dir`, writes the variant's files, runs the case's script. The context of a folder that has
    /// none of its own is `default_context` in it, made when it is missing.
    pub fn prepare(case: &Case, dir: PathBuf, default_context: &str, web: &Web) -> Result<Self, String> {
        let spec = &case.spec;
        copy_tree(&case.folder, &dir)?;
        let dockerfile = spec.dockerfile.iter().map(|text| ("Dockerfile", text));
        for (path, text) in spec.files.iter().map(|(path, text)| (path.as_str(), text)).chain(dockerfile) {
            let path = dir.join(path);
            at(&path, fs::create_dir_all(path.parent().unwrap_or(&dir)))?;
            at(&path, fs::write(&path, text))?;
        }
        let context = if dir.join("context").is_dir() { "context" } else { default_context }.to_owned();
        let files = dir.join(&context);
        at(&files, fs::create_dir_all(&files))?;
        set_modes(&dir)?;
        let mut work = Self { args: spec.args.clone(), files, context, web: None, is_remote: false, dir };
        if let Some(setup) = &spec.setup {
            let path = work.dir.join(setup);
            work.script(&at(&path, fs::read_to_string(&path))?)?;
        }
        if !spec.rebuild.is_empty() {
            let path = work.files.join("nonce");
            at(&path, fs::write(&path, nonce()))?;
        }
        if let Some(Server::Www(true)) = spec.serve {
            let name = case.name.split('/').next().unwrap_or_default();
            let url = web.serve(name, work.dir.join("www"));
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
    pub fn dockerfile_flags(&self, args: &[String]) -> Vec<String> {
        let path = if self.dir.join("Dockerfile").exists() { "Dockerfile" } else { "context/Dockerfile" };
        let is_named = args.iter().any(|arg| arg == "--file");
        if is_named || self.is_remote { Vec::new() } else { vec!["--file".to_owned(), path.to_owned()] }
    }

    /// Runs a script in the context.
    pub fn script(&self, text: &str) -> Result<(), String> {
        let mut command = Command::new("sh");
        command.args(["-euc", text]).current_dir(&self.files).env_clear();
        command.env("PATH", crate::setting("PATH").unwrap_or_default());
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
