//! The golden cases: small builds recorded with the reference builder, compared field by field.
//!
//! The cases lie beside the workspace in `shared/goldens`, or where `$RBUILD_GOLDENS` says; their `README.md` tells how
//! they are run and compared. `$RBUILD_GOLDEN` runs only the cases whose name holds that text. What differs is listed in
//! `known.toml` with a reason; a case that differs and is not listed fails the test, and so does one that is listed and
//! agrees.

mod bases;
mod causes;
mod compare;
mod rbuild;
mod run;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::case::{self, Case};
use e2e::note;
use e2e::web::Web;

use crate::rbuild::Rbuild;
use crate::run::Bench;

/// Builds wait for disks and child processes; a few at once keep two processors busy.
const THREADS: usize = 3;

/// How one golden build ended.
enum Verdict {
    Agrees,
    Differs(Vec<String>),
    /// The machine lacks what the case needs.
    Skipped(String),
}

#[test]
fn golden_cases() {
    let Some(goldens) = e2e::goldens() else { return note("skipped: no golden cases beside the workspace") };
    if !e2e::is_root_with_overlayfs() {
        return note("skipped: needs root and overlayfs");
    }
    if e2e::find_program("busybox").is_none() {
        return note("skipped: needs the program busybox (busybox-static)");
    }
    let filter = e2e::setting("RBUILD_GOLDEN").map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let mut cases = case::discover(&goldens.join("cases")).expect("golden cases");
    for case in &mut cases {
        case.retain(|golden| golden.name.contains(&filter));
    }
    cases.retain(|case| !case.is_empty());
    let known = known();
    let verdicts = run_all(&goldens, &cases);
    let problems = report(&verdicts, &known, filter.is_empty());
    assert_eq!(problems, 0, "{problems} golden builds are not as known.toml says");
}

/// What differs, by decision or until it is mended: name → reason.
fn known() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/known.toml");
    let text = std::fs::read_to_string(path).expect("known.toml");
    let known: BTreeMap<String, BTreeMap<String, String>> = toml::from_str(&text).expect("known.toml");
    known.into_values().flatten().collect()
}

fn run_all(goldens: &Path, cases: &[Vec<Case>]) -> BTreeMap<String, Verdict> {
    let scratch = tempfile::Builder::new().prefix("goldens-").tempdir_in(e2e::scratch_root()).expect("scratch");
    let rbuild = Rbuild { store: scratch.path().join("store"), home: scratch.path().join("home") };
    std::fs::create_dir(&rbuild.home).expect("home");
    let web = Web::start().expect("web server");
    make_busybox(&rbuild, &web, goldens, scratch.path()).expect("the base image");
    let (next, verdicts) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let dir = scratch.path().join(format!("thread-{thread}"));
            let (next, verdicts, rbuild, web) = (&next, &verdicts, &rbuild, &web);
            scope.spawn(move || {
                let bench = Bench::new(rbuild, web, &dir).expect("the base image");
                // The builds of a case share names of images and caches: one after the other.
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for golden in case {
                        let verdict = judge(&bench, golden, &dir.join("build"));
                        verdicts.lock().expect("no thread panics").insert(golden.name.clone(), verdict);
                    }
                }
            });
        }
    });
    verdicts.into_inner().expect("no thread panics")
}

/// Pulls the base image from the server and names it.
fn make_busybox(rbuild: &Rbuild, web: &Web, goldens: &Path, scratch: &Path) -> Result<(), String> {
    let registry = web.serve("v2", bases::busybox_repository(goldens, scratch)?);
    let reference = registry.trim_start_matches("http://").replace("/v2", "/busybox");
    let dir = scratch.join("busybox");
    std::fs::create_dir(&dir).map_err(|error| error.to_string())?;
    std::fs::write(dir.join("Dockerfile"), format!("FROM {reference}\n")).map_err(|error| error.to_string())?;
    let printed = rbuild.build(&dir, ["--progress=plain", "-t", "busybox", "."])?;
    if printed.code == 0 { Ok(()) } else { Err(printed.stderr) }
}

fn judge(bench: &Bench<'_>, golden: &Case, dir: &Path) -> Verdict {
    let lacking = golden.spec.needs.iter().find(|need| *need != "root" && e2e::find_program(need).is_none());
    if let Some(program) = lacking {
        return Verdict::Skipped(format!("needs the program {program}"));
    }
    let differences = match bench.run(golden, dir) {
        Ok(actual) => compare::differences(&golden.expected, &actual),
        Err(error) => vec![error],
    };
    // What is left behind is found by the next build's copy.
    if let Err(error) = std::fs::remove_dir_all(dir) {
        note(&format!("{}: {error}", dir.display()));
    }
    if differences.is_empty() { Verdict::Agrees } else { Verdict::Differs(differences) }
}

/// Prints a line for each build that is not as `known` says, and a table by area. Returns how many there are.
fn report(verdicts: &BTreeMap<String, Verdict>, known: &BTreeMap<String, String>, is_whole: bool) -> usize {
    let mut text = String::new();
    let mut problems = 0;
    let mut areas: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for (name, verdict) in verdicts {
        let area = areas.entry(name.split('-').next().unwrap_or_default()).or_default();
        let (column, line) = match (verdict, known.get(name)) {
            (Verdict::Agrees, None) => (0, None),
            (Verdict::Agrees, Some(_)) => (3, Some("agrees: take it off known.toml".to_owned())),
            (Verdict::Differs(_), Some(_)) => (1, None),
            (Verdict::Differs(differences), None) => (3, Some(differences.join(" | "))),
            (Verdict::Skipped(why), _) => {
                let _ = writeln!(text, "{name}: skipped: {why}");
                (2, None)
            }
        };
        area[column] += 1;
        if let Some(line) = line {
            problems += 1;
            let _ = writeln!(text, "{name}: {line}");
        }
    }
    for name in known.keys().filter(|name| is_whole && !verdicts.contains_key(*name)) {
        problems += 1;
        let _ = writeln!(text, "{name}: known.toml lists it, but there is no such case");
    }
    let _ = writeln!(text, "\n{:12} agree known skipped problems", "area");
    let mut sums = [0; 4];
    for (area, counts) in areas {
        let _ = writeln!(text, "{area:12} {:5} {:5} {:7} {:8}", counts[0], counts[1], counts[2], counts[3]);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let _ = writeln!(text, "{:12} {:5} {:5} {:7} {:8}", "all", sums[0], sums[1], sums[2], sums[3]);
    note(&text);
    problems
}
