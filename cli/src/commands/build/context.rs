//! The build context: where files come from, which Dockerfile is meant, which ignore file applies
//! (`spec/dockerfile.md` §5.1 and §6).

use std::io::{ErrorKind, IsTerminal, Read};
use std::path::{Path, PathBuf};

use executor::fetched::{FetchedFiles, Found};
use executor::source::archive;
use solver::plan::{ContextKind, IgnoreFile, redacted};
use tokio_util::sync::CancellationToken;

use super::MAIN_CONTEXT;
use crate::failure::Failure;
use crate::mistakes;
use crate::request::{ContextArg, DockerfileArg};

/// The most bytes of a Dockerfile from standard input.
const MAX_STDIN_DOCKERFILE: usize = 2_000_000;

/// No Dockerfile in a context that comes from elsewhere has so many bytes.
pub(crate) const MAX_REMOTE_DOCKERFILE: u64 = 16 << 20;

/// A context, as far as it can be known without fetching anything.
pub(crate) struct LoadedContext {
    /// The Dockerfile; `None` when it lies elsewhere.
    pub(crate) dockerfile: Option<Dockerfile>,
    /// Where the files are.
    pub(crate) files: ContextKind,
    /// The directory that [`ContextKind::Local`] means.
    pub(crate) dir: Option<PathBuf>,
    /// Name and bytes of the ignore file.
    pub(crate) ignore: Option<(String, Vec<u8>)>,
    /// Files that came on standard input live as long as the build.
    _unpacked: Option<tempfile::TempDir>,
}

/// A Dockerfile that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    /// As shown.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) text: Vec<u8>,
    /// Names it among builds.
    pub(crate) identity: String,
}

impl LoadedContext {
    /// The ignore file as the plan and the engine know it.
    pub(crate) fn ignore_file(&self) -> Option<IgnoreFile> {
        self.ignore.clone().map(|(name, text)| IgnoreFile { name, text })
    }
}

/// Whether the Dockerfile is on this machine. With a context elsewhere: on standard input, or at an absolute path.
pub(crate) fn is_here(context: &ContextArg, dockerfile: &DockerfileArg) -> bool {
    let is_context_here = !matches!(context, ContextArg::Remote { .. });
    match dockerfile {
        DockerfileArg::Stdin => true,
        DockerfileArg::Url(_) => false,
        DockerfileArg::File(file) => is_context_here || Path::new(file).is_absolute(),
        DockerfileArg::Default => is_context_here,
    }
}

/// Finds and reads what the request names. `scratch` makes a directory for files that come on standard input.
pub(crate) fn load(
    context: &ContextArg,
    dockerfile: &DockerfileArg,
    scratch: impl FnOnce() -> Result<tempfile::TempDir, Failure>,
) -> Result<LoadedContext, Failure> {
    match context {
        ContextArg::Dir(dir) => local(dir, dockerfile),
        ContextArg::Stdin => stdin(dockerfile, scratch),
        ContextArg::Remote { url, kind } => {
            let dockerfile = local_dockerfile(dockerfile, url)?;
            Ok(LoadedContext { dockerfile, files: kind.clone(), dir: None, ignore: None, _unpacked: None })
        }
    }
}

/// The Dockerfile for a context that lies elsewhere, if [`is_here`].
fn local_dockerfile(dockerfile: &DockerfileArg, url: &str) -> Result<Option<Dockerfile>, Failure> {
    let identity = |name: &str| format!("{} {name}", redacted(url));
    match dockerfile {
        DockerfileArg::Stdin => {
            let name = "Dockerfile".to_owned();
            Ok(Some(Dockerfile { text: read_stdin_dockerfile()?, identity: identity("-"), name }))
        }
        DockerfileArg::File(file) if Path::new(file).is_absolute() => {
            let (path, text) = read_dockerfile(Path::new(file))?;
            Ok(Some(Dockerfile { text, identity: identity(file), name: file_name(&path) }))
        }
        DockerfileArg::File(_) | DockerfileArg::Default | DockerfileArg::Url(_) => Ok(None),
    }
}

/// Reads the Dockerfile among files that came from elsewhere. `dockerfile` serves when `Dockerfile` is missing.
pub(crate) fn dockerfile_in(files: &FetchedFiles, named: &DockerfileArg, place: &str) -> Result<Dockerfile, Failure> {
    let wanted = match named {
        DockerfileArg::File(file) => file.as_str(),
        DockerfileArg::Default | DockerfileArg::Stdin | DockerfileArg::Url(_) => "Dockerfile",
    };
    let wanted = Path::new(wanted.trim_start_matches('/'));
    let lower = wanted.ends_with("Dockerfile").then(|| wanted.with_file_name("dockerfile"));
    let mut reason = "no such file or directory";
    for path in [Some(wanted), lower.as_deref()].into_iter().flatten() {
        match files.read(path, MAX_REMOTE_DOCKERFILE)? {
            Found::File(text) => {
                check_size(&text, path)?;
                let identity = format!("{place} {}", path.display());
                return Ok(Dockerfile { name: file_name(path), text, identity });
            }
            Found::NoFile => reason = "is not a file",
            Found::Nothing => {}
        }
    }
    let failure = Failure::input(format!("failed to read dockerfile: open {}: {reason}", wanted.display()))
        .help(format!("looked for it in {place}; -f names another file in there"));
    Err(if matches!(named, DockerfileArg::File(_)) && wanted.is_file() {
        failure.help("a file of this machine is named by its absolute path")
    } else {
        failure
    })
}

/// Refuses a Dockerfile that is not whole because it was larger than allowed.
pub(crate) fn check_size(text: &[u8], path: &Path) -> Result<(), Failure> {
    if (text.len() as u64) < MAX_REMOTE_DOCKERFILE {
        return Ok(());
    }
    let limit = MAX_REMOTE_DOCKERFILE >> 20;
    Err(Failure::input(format!("failed to read dockerfile: {} has {limit} MiB or more", path.display()))
        .help("a URL that is no archive is taken for a Dockerfile; in an archive, -f names it"))
}

fn local(dir: &Path, dockerfile: &DockerfileArg) -> Result<LoadedContext, Failure> {
    if !dir.is_dir() {
        let what = if dir.exists() { "is not a directory" } else { "not found" };
        let failure = Failure::input(format!("unable to prepare context: path \"{}\" {what}", dir.display()));
        return Err(match mistakes::nearest_command(&dir.to_string_lossy()) {
            Some(command) => failure.help(format!("did you mean the command `rbuild {command}`?")),
            None if dir.is_file() => {
                failure.help(format!("to build with that Dockerfile: `rbuild -f {} .`", dir.display()))
            }
            None => failure.help("the context is the directory that holds the files of the build"),
        });
    }
    let dir = dir.canonicalize().map_err(|error| {
        Failure::environment(format!("unable to prepare context: cannot resolve \"{}\": {error}", dir.display()))
    })?;
    let (path, found) = match dockerfile {
        DockerfileArg::Url(_) => (None, None),
        DockerfileArg::Stdin => (None, Some(("Dockerfile".to_owned(), read_stdin_dockerfile()?))),
        DockerfileArg::File(file) => {
            let (path, bytes) = read_dockerfile(Path::new(file))?;
            (Some(path), Some((file_name(Path::new(file)), bytes)))
        }
        DockerfileArg::Default => {
            let (path, bytes) = read_dockerfile(&dir.join("Dockerfile"))?;
            let name = file_name(&path);
            (Some(path), Some((name, bytes)))
        }
    };
    let ignore = ignore_file(path.as_deref(), &dir)?;
    // The same file in another directory is another one.
    let identity = std::path::absolute(path.as_deref().unwrap_or(&dir)).unwrap_or_else(|_| dir.clone());
    let identity = identity.to_string_lossy().into_owned();
    let dockerfile = found.map(|(name, text)| Dockerfile { name, text, identity });
    Ok(LoadedContext { dockerfile, files: here(), dir: Some(dir), ignore, _unpacked: None })
}

/// Standard input: a tar is the context, anything else is the Dockerfile of an empty one.
fn stdin(
    dockerfile: &DockerfileArg,
    scratch: impl FnOnce() -> Result<tempfile::TempDir, Failure>,
) -> Result<LoadedContext, Failure> {
    let mut input = std::io::stdin().lock();
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("the build context is standard input, and that is a terminal")
            .help("redirect a Dockerfile or a tar: `rbuild - < Dockerfile`"));
    }
    let fault = |error| Failure::environment(format!("cannot read standard input: {error}"));
    let mut start = vec![0; archive::HEAD_BYTES];
    let mut filled = 0;
    while filled < start.len() {
        match input.read(&mut start[filled..]).map_err(fault)? {
            0 => break,
            n => filled += n,
        }
    }
    start.truncate(filled);
    if !archive::is_archive(&start) {
        if let DockerfileArg::File(_) | DockerfileArg::Url(_) = dockerfile {
            return Err(Failure::usage("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"));
        }
        let mut text = start;
        input.take(MAX_STDIN_DOCKERFILE as u64).read_to_end(&mut text).map_err(fault)?;
        let dockerfile = Some(Dockerfile { name: "Dockerfile".to_owned(), text, identity: "-".to_owned() });
        let files = ContextKind::None;
        return Ok(LoadedContext { dockerfile, files, dir: None, ignore: None, _unpacked: None });
    }
    let unpacked = scratch()?;
    let received = std::io::Cursor::new(start).chain(input);
    let dir = archive::unpack_context(received, unpacked.path(), &CancellationToken::new())?;
    let dockerfile = match dockerfile {
        DockerfileArg::Url(_) => None,
        named => {
            let found = dockerfile_in(&FetchedFiles::of_dir(&dir)?, named, "the archive")?;
            Some(Dockerfile { identity: "-".to_owned(), ..found })
        }
    };
    Ok(LoadedContext { dockerfile, files: here(), dir: Some(dir), ignore: None, _unpacked: Some(unpacked) })
}

/// A directory of this machine as the plan knows it.
fn here() -> ContextKind {
    ContextKind::Local(MAIN_CONTEXT.to_owned())
}

/// Reads a Dockerfile; `dockerfile` serves when `Dockerfile` is missing.
fn read_dockerfile(path: &Path) -> Result<(PathBuf, Vec<u8>), Failure> {
    let fault = |error: std::io::Error, path: &Path| {
        let reason = match error.kind() {
            ErrorKind::NotFound => "no such file or directory".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            ErrorKind::IsADirectory => "is a directory".to_owned(),
            _ => error.to_string(),
        };
        let failure = Failure::input(format!("failed to read dockerfile: open {}: {reason}", file_name(path)));
        dockerfile_help(failure, path, error.kind())
    };
    match std::fs::read(path) {
        Ok(bytes) => Ok((path.to_owned(), bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound && path.ends_with("Dockerfile") => {
            let lower = path.with_file_name("dockerfile");
            match std::fs::read(&lower) {
                Ok(bytes) => Ok((lower, bytes)),
                Err(_) => Err(fault(error, path)),
            }
        }
        Err(error) => Err(fault(error, path)),
    }
}

/// What can be done about a Dockerfile that cannot be read.
fn dockerfile_help(failure: Failure, path: &Path, kind: ErrorKind) -> Failure {
    let shown = path.display();
    match kind {
        ErrorKind::PermissionDenied => failure.help(format!("let this user read it: chmod a+r {shown}")),
        ErrorKind::NotFound => match similar_file(path) {
            Some(similar) => {
                failure.help(format!("looked for {shown}")).help(format!("did you mean `-f {}`?", similar.display()))
            }
            None => failure.help(format!("looked for {shown}; name another file with -f")),
        },
        ErrorKind::IsADirectory if path.join("Dockerfile").is_file() => {
            failure.help(format!("did you mean `-f {}`?", path.join("Dockerfile").display()))
        }
        _ => failure.help(format!("looked at {shown}; name a file with -f")),
    }
}

/// A file beside `path` that is called nearly like it, or as other builders call theirs.
fn similar_file(path: &Path) -> Option<PathBuf> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let names = entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name());
    let names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let wanted = file_name(path);
    let known = |name: &&str| matches!(*name, "Containerfile" | "Dockerfile");
    let names = names.iter().map(String::as_str);
    let similar = mistakes::nearest(&wanted, names.clone()).or_else(|| names.clone().find(known));
    let similar = similar.or_else(|| names.filter(|name| name.starts_with("Dockerfile.")).min())?;
    Some(path.with_file_name(similar))
}

fn read_stdin_dockerfile() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_STDIN_DOCKERFILE as u64).read_to_end(&mut text);
    read.map_err(|error| Failure::environment(format!("cannot read standard input: {error}")))?;
    Ok(text)
}

/// `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` in the context; the first that exists.
pub(crate) fn ignore_file(dockerfile: Option<&Path>, context: &Path) -> Result<Option<(String, Vec<u8>)>, Failure> {
    let specific = dockerfile.map(|path| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".dockerignore");
        path.with_file_name(name)
    });
    for path in specific.into_iter().chain([context.join(".dockerignore")]) {
        match std::fs::read(&path) {
            Ok(bytes) => return Ok(Some((file_name(&path), bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::input(format!("cannot read {}: {error}", path.display()))),
        }
    }
    Ok(None)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_dir(dir: &Path, dockerfile: DockerfileArg) -> Result<LoadedContext, Failure> {
        load(&ContextArg::Dir(dir.to_owned()), &dockerfile, || unreachable!("a directory needs no scratch"))
    }

    #[test]
    fn the_specific_ignore_file_wins_and_lower_case_serves() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path();
        std::fs::write(dir.join("dockerfile"), "FROM a").expect("write");
        std::fs::write(dir.join("other.Dockerfile"), "FROM b").expect("write");
        std::fs::write(dir.join(".dockerignore"), "general").expect("write");
        std::fs::write(dir.join("other.Dockerfile.dockerignore"), "").expect("write");

        let default = load_dir(dir, DockerfileArg::Default).expect("default");
        let dockerfile = default.dockerfile.expect("it is here");
        assert_eq!((dockerfile.name.as_str(), dockerfile.text.as_slice()), ("dockerfile", &b"FROM a"[..]));
        assert_eq!(default.ignore, Some((".dockerignore".to_owned(), b"general".to_vec())));

        let path = dir.join("other.Dockerfile").display().to_string();
        let other = load_dir(dir, DockerfileArg::File(path)).expect("other");
        assert_eq!(other.ignore, Some(("other.Dockerfile.dockerignore".to_owned(), Vec::new())));
    }

    #[test]
    fn what_is_missing_is_said() {
        let temp = tempfile::tempdir().expect("temp dir");
        let message = |failure: Failure| match failure {
            Failure::Failed(report) => report.message,
            other => panic!("{other:?}"),
        };
        let missing = load_dir(&temp.path().join("nope"), DockerfileArg::Default).err().expect("missing directory");
        assert!(message(missing).starts_with("unable to prepare context: path "));
        let missing = load_dir(temp.path(), DockerfileArg::Default).err().expect("missing file");
        assert_eq!(message(missing), "failed to read dockerfile: open Dockerfile: no such file or directory");
    }

    #[test]
    fn dockerfiles_of_contexts_elsewhere_are_looked_for_in_there() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path();
        std::fs::create_dir(dir.join("sub")).expect("directory");
        std::fs::write(dir.join("sub/dockerfile"), "FROM a").expect("write");
        std::os::unix::fs::symlink("/etc/passwd", dir.join("Dockerfile")).expect("link");
        let files = FetchedFiles::of_dir(dir).expect("opens");
        let of = |path: &str| dockerfile_in(&files, &DockerfileArg::File(path.to_owned()), "https://h/r.git");
        for path in ["sub/Dockerfile", "/sub/dockerfile", "sub/../../sub/dockerfile"] {
            assert_eq!(of(path).expect(path).text, b"FROM a");
        }
        for (path, reason) in [("sub", "is not a file"), ("x", "no such file or directory")] {
            let Err(Failure::Failed(report)) = of(path) else { panic!("{path} is no Dockerfile") };
            assert_eq!(report.message, format!("failed to read dockerfile: open {path}: {reason}"));
        }
        assert!(dockerfile_in(&files, &DockerfileArg::Default, "x").is_err(), "no link leads out");
    }
}
