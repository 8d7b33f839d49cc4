//! The mistakes that people make most, each with the whole report that `rbuild` gives.
//!
//! A file of this folder is a case; a new file is a new case. It consists of sections, which begin with `-- NAME --` on a
//! line of its own:
//!
//! ```text
//! # What the mistake is.
//! -- args --
//! --target biuld .
//! -- Dockerfile --
//! FROM scratch AS build
//! -- exit 1 --
//! ERROR: failed to build: …
//! ```
//!
//! `args` are the words behind `rbuild build`, `.` unless given. `exit N` ends the file: the exit code, and what is printed
//! on standard error, in which `[DIR]` stands for the directory of the build. Every other section is a file in there, and
//! the one called `stdin` is standard input, too; behind a name, `(crlf)` and `(bom)` say how it is written.
//!
//! No case needs root, a base image or a network. Progress is not shown, and with `--progress=plain` among the arguments,
//! which shows warnings, it is left out; so what is left is the report. It has at most
//! [`MAX_LINES`] lines, unless a line that begins with `# long: ` says why it needs more.
//!
//! `RBUILD_BLESS=1` writes what was printed into the files.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::{note, rbuild_bin, scratch_root, setting, workspace};

/// Lines of a report that people read to the end.
const MAX_LINES: usize = 8;

/// One file of the folder.
struct Case {
    path: PathBuf,
    /// All that stands before `exit`.
    input: String,
    args: Vec<String>,
    /// Name and bytes.
    files: Vec<(String, Vec<u8>)>,
    /// The section `exit`, with its heading; empty in a new case.
    expected: String,
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).expect("a case is UTF-8");
        assert!(text.starts_with("# "), "{}: the first line says what the mistake is", path.display());
        let mut case =
            Self { path, input: String::new(), args: vec![".".to_owned()], files: Vec::new(), expected: String::new() };
        let mut sections: Vec<(&str, String)> = Vec::new();
        for line in text.split_inclusive('\n') {
            let heading = line.trim_end().strip_prefix("-- ").and_then(|line| line.strip_suffix(" --"));
            let ends = |section: &(&str, String)| section.0.starts_with("exit ");
            if let Some(name) = heading.filter(|_| !sections.last().is_some_and(ends)) {
                sections.push((name, String::new()));
            } else if let Some((_, content)) = sections.last_mut() {
                content.push_str(line);
            }
            let part = if sections.last().is_some_and(ends) { &mut case.expected } else { &mut case.input };
            part.push_str(line);
        }
        for (name, content) in sections {
            match name {
                "args" => case.args = content.split_whitespace().map(str::to_owned).collect(),
                name if name.starts_with("exit ") => {}
                name => case.files.push(file(name, content)),
            }
        }
        case
    }

    /// Builds it in a fresh directory; returns the section `exit` as it should be.
    fn run(&self, store: &Path) -> String {
        let dir = tempfile::tempdir_in(scratch_root()).expect("temp dir");
        for (name, content) in &self.files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("directories");
            fs::write(path, content).expect("file");
        }
        let mut command = Command::new(rbuild_bin());
        // Settings of this machine do not count. Nobody listens on the port of the proxy.
        command.env_clear().env("HOME", dir.path()).env("NO_COLOR", "1").env("HTTPS_PROXY", "http://127.0.0.1:9");
        command.arg("--store").arg(store).arg("build").args(&self.args);
        if !self.args.iter().any(|arg| arg.starts_with("--progress")) {
            command.arg("--progress=quiet");
        }
        let stdin = fs::File::open(dir.path().join("stdin")).map_or_else(|_| Stdio::null(), Stdio::from);
        let output = command.current_dir(dir.path()).stdin(stdin).output().expect("rbuild starts");
        let printed = String::from_utf8_lossy(&output.stderr).replace(&dir.path().display().to_string(), "[DIR]");
        let is_report = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
        let report: String = printed.split_inclusive('\n').filter(is_report).collect();
        format!("-- exit {} --\n{report}", output.status.code().expect("no signal ends it"))
    }

    /// What is wrong with the report of this case; empty when nothing is.
    fn problems(&self, got: &str, bless: bool) -> String {
        let name = self.path.file_stem().unwrap_or_default().display();
        let mut problems = String::new();
        if got != self.expected && bless {
            fs::write(&self.path, self.input.clone() + got).expect("write");
        } else if got != self.expected {
            let _ =
                writeln!(problems, "{name}: the report differs (- expected, + printed)\n{}", diff(&self.expected, got));
        }
        let n_lines = got.lines().count() - 1;
        if n_lines > MAX_LINES && !self.input.contains("\n# long: ") {
            let _ = writeln!(problems, "{name}: {n_lines} lines are too many; shorten them or say why in `# long: `");
        }
        problems
    }
}

/// A file of the build by the heading of its section.
fn file(heading: &str, content: String) -> (String, Vec<u8>) {
    if let Some(name) = heading.strip_suffix(" (crlf)") {
        (name.to_owned(), content.replace('\n', "\r\n").into_bytes())
    } else if let Some(name) = heading.strip_suffix(" (bom)") {
        (name.to_owned(), format!("\u{feff}{content}").into_bytes())
    } else {
        (heading.to_owned(), content.into_bytes())
    }
}

/// Lines of both texts, those of only one of them marked.
fn diff(expected: &str, got: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), got.lines().collect());
    // Length of the longest common subsequence of what begins at each pair of lines.
    let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            common[i][j] = if a == b { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let (mark, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            (' ', old[i - 1])
        } else if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
            i += 1;
            ('-', old[i - 1])
        } else {
            j += 1;
            ('+', new[j - 1])
        };
        let _ = writeln!(text, "  {mark} {line}");
    }
    text
}

#[test]
fn reports_of_mistakes() {
    let bless = setting("RBUILD_BLESS").is_some_and(|value| value == "1");
    let entries = fs::read_dir(workspace().join("tests/errors")).expect("the folder of the cases");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|it| it == "txt")).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are cases");
    let store = tempfile::tempdir_in(scratch_root()).expect("temp dir");
    let cases: Vec<Case> = paths.into_iter().map(Case::read).collect();
    let problems: Vec<String> = cases.iter().map(|case| case.problems(&case.run(store.path()), bless)).collect();
    let n_wrong = problems.iter().filter(|problem| !problem.is_empty()).count();
    note(&problems.concat());
    assert_eq!(n_wrong, 0, "of {} reports; RBUILD_BLESS=1 accepts what was printed", cases.len());
}

#[test]
fn a_diff_shows_what_is_in_one_text_only() {
    assert_eq!(diff("a\nb\nc\n", "a\nx\nc\nd\n"), "    a\n  - b\n  + x\n    c\n  + d\n");
}
