//! Every miss has a named cause: the golden cases are built, edited in one place each, and built again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::case::{self, Case, Work};
use e2e::note;
use e2e::web::Web;

use crate::rbuild::Rbuild;

/// What is said when nothing is known, or not as much as could be. After an edit, no step is new.
const FALLBACKS: [&str; 6] = [
    "another version of rbuild",
    "that has no name",
    "cannot be read",
    "files of ",
    "first build of this step",
    "has gone from the store",
];

#[test]
fn every_miss_after_an_edit_has_a_named_cause() {
    let Some(goldens) = e2e::goldens() else { return note("skipped: no golden cases beside the workspace") };
    if !e2e::is_root_with_overlayfs() {
        return note("skipped: needs root and overlayfs");
    }
    if e2e::find_program("busybox").is_none() {
        return note("skipped: needs the program busybox (busybox-static)");
    }
    let filter = e2e::setting("RBUILD_GOLDEN").map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let cases = case::discover(&goldens.join("cases")).expect("golden cases");
    let is_meant = |golden: &Case| {
        let spec = &golden.spec;
        golden.name.contains(&filter) && golden.expected["ok"] == true && !spec.args.iter().any(|arg| arg == "--call")
    };
    // Cases that several builds make share names of images: one after the other.
    let cases: Vec<Vec<Case>> =
        cases.into_iter().map(|case| case.into_iter().filter(|golden| is_meant(golden)).collect()).collect();
    let scratch = tempfile::Builder::new().prefix("causes-").tempdir_in(e2e::scratch_root()).expect("scratch");
    let rbuild = Rbuild { store: scratch.path().join("store"), home: scratch.path().join("home") };
    fs::create_dir(&rbuild.home).expect("home");
    let web = Web::start().expect("web server");
    crate::make_busybox(&rbuild, &web, &goldens, scratch.path()).expect("the base image");
    let (next, told) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..crate::THREADS {
            let dir = scratch.path().join(format!("thread-{thread}"));
            let (next, told, rbuild, web, cases) = (&next, &told, &rbuild, &web, &cases);
            scope.spawn(move || {
                let mut number = next.fetch_add(1, Ordering::Relaxed);
                while let Some(case) = cases.get(number) {
                    for (variant, golden) in case.iter().enumerate() {
                        let edit = Edit::ALL[(number + variant) % Edit::ALL.len()];
                        let work = dir.join(format!("{number}-{variant}"));
                        let misses = misses(rbuild, web, golden, edit, &work);
                        told.lock().expect("no thread panics").push((golden.name.clone(), misses));
                        drop(fs::remove_dir_all(&work));
                    }
                    number = next.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    judge(&told.into_inner().expect("no thread panics"), filter.is_empty());
}

/// Fails when a reason is a fallback, or the cases were not built.
fn judge(told: &[(String, Result<Vec<String>, String>)], is_whole: bool) {
    let is_fallback = |reason: &String| FALLBACKS.iter().any(|fallback| reason.contains(fallback));
    let mut problems = Vec::new();
    let mut n_misses = 0;
    for (name, result) in told {
        match result {
            Ok(misses) => {
                n_misses += misses.len();
                problems.extend(misses.iter().filter(|it| is_fallback(it)).map(|it| format!("{name}: {it}")));
            }
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    note(&format!("{n_misses} misses of {} golden builds", told.len()));
    assert!(problems.is_empty(), "{} misses without a named cause:\n{}", problems.len(), problems.join("\n"));
    // Not everything that is edited is used.
    assert!(!is_whole || 2 * n_misses > told.len(), "the edits changed nothing: {n_misses} misses");
}

/// Something that a person changes between two builds.
#[derive(Clone, Copy)]
enum Edit {
    /// The content of a file of the context.
    Content,
    /// The mode of one.
    Mode,
    /// A command, or where there is none, a variable.
    Dockerfile,
}

impl Edit {
    const ALL: [Self; 3] = [Self::Content, Self::Mode, Self::Dockerfile];

    /// Makes the edit; another one where there is nothing for it.
    fn make(self, work: &Work, dockerfile: &Path) -> std::io::Result<()> {
        let mut files = Vec::new();
        regular_files(&work.files, &mut files)?;
        files.retain(|file| file != dockerfile && !file.to_string_lossy().ends_with("ignore"));
        match (self, files.first()) {
            (Self::Content, Some(file)) => {
                let mut bytes = fs::read(file)?;
                bytes.extend_from_slice(b"edited\n");
                fs::write(file, bytes)
            }
            (Self::Mode, Some(file)) => {
                let mode = fs::metadata(file)?.permissions().mode();
                fs::set_permissions(file, fs::Permissions::from_mode(mode ^ 0o110))
            }
            _ => edit_dockerfile(dockerfile),
        }
    }
}

/// Gives every command in shell form another text; where there is none, the first stage another variable.
fn edit_dockerfile(path: &Path) -> std::io::Result<()> {
    if !path.exists() {
        // It lies elsewhere.
        return Ok(());
    }
    let text = fs::read_to_string(path)?;
    let is_plain = |line: &str| {
        line.strip_prefix("RUN ").is_some_and(|rest| !rest.starts_with(['-', '[', '<']) && !rest.contains("<<"))
    };
    let edited: Vec<String> = match text.lines().any(is_plain) {
        true => {
            let edit = |line: &str| match line.strip_prefix("RUN ") {
                Some(rest) if is_plain(line) => format!("RUN : edited; {rest}"),
                _ => line.to_owned(),
            };
            text.lines().map(edit).collect()
        }
        false => text
            .lines()
            .map(|line| match line.to_uppercase().starts_with("FROM ") && !line.ends_with('\\') {
                true => format!("{line}\nENV EDITED=1"),
                false => line.to_owned(),
            })
            .collect(),
    };
    fs::write(path, edited.join("\n") + "\n")
}

fn regular_files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != ".git" {
            regular_files(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Builds, edits, builds again; the reasons of the second build's misses. An edit after which nothing can be built has none.
fn misses(rbuild: &Rbuild, web: &Web, golden: &Case, edit: Edit, dir: &Path) -> Result<Vec<String>, String> {
    let lacking = golden.spec.needs.iter().any(|need| need != "root" && e2e::find_program(need).is_none());
    if lacking {
        return Ok(Vec::new());
    }
    let work = Work::prepare(golden, dir.to_owned(), "context", web)?;
    if let Some(name) = &golden.spec.base {
        rbuild.build(&work.dir.join("base"), ["--progress=plain", "-t", name, "-o", "type=image", "."])?;
    }
    let flags = flags(&work);
    let first = rbuild.build(&work.dir, &flags)?;
    if first.code != 0 {
        return Err(format!("the first build failed:\n{}", first.stderr));
    }
    let named = flags.iter().position(|flag| flag == "--file").and_then(|at| flags.get(at + 1));
    let dockerfile = work.dir.join(named.map_or("Dockerfile", String::as_str));
    edit.make(&work, &dockerfile).map_err(|error| format!("{}: {error}", dockerfile.display()))?;
    let second = rbuild.build(&work.dir, &flags)?;
    let reasons =
        second.stderr.lines().filter(|line| line.starts_with('#')).filter_map(|line| line.split_once(" MISS: "));
    Ok(reasons.map(|(_, reason)| reason.to_owned()).collect())
}

/// The flags of the case, without its outputs.
fn flags(work: &Work) -> Vec<String> {
    let mut flags = vec!["--progress=plain".to_owned(), "--output".to_owned(), "type=cacheonly".to_owned()];
    flags.extend(work.dockerfile_flags(&work.args));
    let mut rest = work.args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--output" => drop(rest.next()),
            "--no-cache" => {}
            arg => flags.push(arg.to_owned()),
        }
    }
    flags.push(work.context.clone());
    flags
}
