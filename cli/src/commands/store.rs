//! `rbuild store check`: whether everything in the store is what it should be.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cache::{CheckMode, CheckOptions, CheckPart, CheckReport, Finding, Store};
use executor::layer::diff_id_of_tree;
use serde_json::json;

use crate::args::StoreCheckArgs;
use crate::failure::Failure;
use crate::ui;
use crate::ui::format::size_short;

/// Exit code when something is wrong and stays so.
const UNSOUND: u8 = 1;
/// How often the line about progress is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// Verifies the store, and repairs it when that is wanted.
pub(crate) fn check(store: &Store, args: &StoreCheckArgs) -> Result<(), Failure> {
    let line = ProgressLine::start();
    let options = CheckOptions {
        mode: if args.repair { CheckMode::Repair } else { CheckMode::Look },
        progress: &|part, done, total| line.show(part, done, total),
        tree_digest: Some(&tree_digest),
    };
    let report = store.check(&options);
    line.end();
    let report = report?;
    ui::stdout(&match args.format.as_str() {
        "json" => format!("{:#}\n", as_json(&report)),
        _ => text(store, &report, args.repair),
    })?;
    if report.is_sound() { Ok(()) } else { Err(Failure::Exit(UNSOUND)) }
}

/// A tree that cannot be read is as bad as one that was changed; one that has gone meanwhile is nobody's fault.
fn tree_digest(tree: &Path, below: &[PathBuf]) -> Option<oci::DiffId> {
    match diff_id_of_tree(tree, below) {
        Ok(diff_id) => Some(diff_id),
        Err(_) if !tree.is_dir() || !below.iter().all(|tree| tree.is_dir()) => None,
        Err(error) => {
            tracing::warn!(tree = %tree.display(), %error, "a tree cannot be read");
            Some(oci::DiffId::of_uncompressed(oci::Digest::of(b"")))
        }
    }
}

fn text(store: &Store, report: &CheckReport, repair: bool) -> String {
    let mut text: String = report.findings.iter().map(|finding| format!("{}\n", sentence(finding, repair))).collect();
    text.push_str(&format!(
        "{} blobs ({}), {} trees ({} compared with their diff IDs), {} records, {} images\n",
        report.n_blobs,
        size_short(report.blob_bytes),
        report.n_trees,
        report.n_trees_hashed,
        report.n_records,
        report.n_images,
    ));
    let n_left = report.findings.iter().filter(|finding| !finding.is_repaired).count();
    let n_repaired = report.findings.len() - n_left;
    let problems = |n: usize| if n == 1 { "1 problem".to_owned() } else { format!("{n} problems") };
    let root = store.root().display();
    text + &match (n_left, n_repaired) {
        (0, 0) => format!("the store `{root}` is in order\n"),
        (0, _) => format!("the store `{root}` is in order now: {} repaired\n", problems(n_repaired)),
        (_, 0) => format!("the store `{root}` has {}\n", problems(n_left)),
        _ => format!("the store `{root}` has {}; {} repaired\n", problems(n_left), problems(n_repaired)),
    }
}

fn sentence(finding: &Finding, repair: bool) -> String {
    let problem = &finding.problem;
    match (problem.remedy(), finding.is_repaired) {
        (Some(remedy), true) => format!("{problem}; {remedy}"),
        (Some(_), false) if !repair => format!("{problem} (can be repaired: --repair)"),
        (Some(_), false) => format!("{problem}; it cannot be removed"),
        (None, _) => format!("{problem}; build or pull it again, or remove it with `rbuild rmi`"),
    }
}

fn as_json(report: &CheckReport) -> serde_json::Value {
    let problem = |finding: &Finding| {
        json!({
            "kind": finding.problem.kind(),
            "problem": finding.problem.to_string(),
            "repairable": finding.problem.remedy().is_some(),
            "repaired": finding.is_repaired,
        })
    };
    json!({
        "sound": report.is_sound(),
        "blobs": report.n_blobs,
        "blobBytes": report.blob_bytes,
        "trees": report.n_trees,
        "treesHashed": report.n_trees_hashed,
        "records": report.n_records,
        "images": report.n_images,
        "problems": report.findings.iter().map(problem).collect::<Vec<_>>(),
    })
}

/// One line on a terminal that says how far a check is; nothing elsewhere.
struct ProgressLine {
    drawn_at: Option<Mutex<Option<Instant>>>,
}

impl ProgressLine {
    fn start() -> Self {
        Self { drawn_at: std::io::stderr().is_terminal().then(Mutex::default) }
    }

    /// Called by any thread; whoever comes too early draws nothing.
    fn show(&self, part: CheckPart, done: u64, total: u64) {
        let Some(mut drawn_at) = self.drawn_at.as_ref().and_then(|drawn_at| drawn_at.try_lock().ok()) else { return };
        let (now, _) = super::clock();
        if drawn_at.is_some_and(|at| now.duration_since(at) < REDRAW) {
            return;
        }
        *drawn_at = Some(now);
        let line = match part {
            CheckPart::Blobs => format!("blobs: {} of {}", size_short(done), size_short(total)),
            CheckPart::Trees => format!("trees: {done} of {total}"),
        };
        ui::stderr(|out| write!(out, "\r\x1b[K{line}"));
    }

    fn end(&self) {
        if self.drawn_at.is_some() {
            ui::stderr(|out| write!(out, "\r\x1b[K"));
        }
    }
}
