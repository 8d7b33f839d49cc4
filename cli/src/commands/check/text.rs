//! The answers for people, in the reference's shape (`spec/dockerfile.md` §7.3–7.6).

use std::fmt::Write as _;

use solver::plan::{Asked, Outline, TargetInfo, Warning};

use super::Findings;
use super::json::{SUBREQUESTS, VERSION};
use crate::failure::Source;
use crate::report;

/// Of `check`: a headline, then each warning with its lines. A fault is reported elsewhere.
pub(super) fn findings(findings: &Findings, source: &Source) -> String {
    let mut text = match (findings.warnings.len(), &findings.fault) {
        (0, Some(_)) => return String::new(),
        (0, None) => return "Check complete, no warnings found.\n".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (n, _) => format!("Check complete, {n} warnings have been found!\n"),
    };
    let mut sorted: Vec<&Warning> = findings.warnings.iter().collect();
    sorted.sort_by_key(|warning| match &warning.location {
        Some(at) => (at.start_line, ""),
        None => (0, warning.rule),
    });
    for warning in sorted {
        let page = if warning.url.is_empty() { String::new() } else { format!(" - {}", warning.url) };
        let _ = writeln!(text, "\nWARNING: {}{page}\n{}", warning.rule, warning.message);
        if let Some(location) = &warning.location {
            text.push_str(&report::excerpt(source, location));
        }
    }
    if findings.fault.is_some() {
        text.push('\n');
    }
    text
}

/// Of `outline`: a table for each kind of thing that there is.
pub(super) fn outline(outline: &Outline) -> String {
    let mut text = String::new();
    if let Some(name) = &outline.name {
        let mut rows = vec![["TARGET:", name]];
        rows.extend(outline.description.as_deref().map(|description| ["DESCRIPTION:", description]));
        text.push_str(&table(&rows, 1));
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let row = |arg: &'_ solver::plan::OutlineArg| {
            [arg.name.clone(), arg.value.clone().unwrap_or_default(), arg.description.clone().unwrap_or_default()]
        };
        let heading = ["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned);
        let rows: Vec<[String; 3]> = std::iter::once(heading).chain(outline.args.iter().map(row)).collect();
        text.push_str(&table(&rows, 3));
        text.push('\n');
    }
    text.push_str(&asked("SECRET", &outline.secrets));
    text.push_str(&asked("SSH", &outline.agents));
    if !outline.caches.is_empty() {
        let rows = std::iter::once(["CACHE MOUNT"]).chain(outline.caches.iter().map(|cache| [cache.id.as_str()]));
        text.push_str(&table(&rows.collect::<Vec<_>>(), 3));
        text.push('\n');
    }
    text
}

fn asked(heading: &str, list: &[Asked]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let row = |asked: &'_ Asked| [asked.id.clone(), String::from(if asked.required { "true" } else { "" })];
    let heading = [heading.to_owned(), "REQUIRED".to_owned()];
    let rows: Vec<[String; 2]> = std::iter::once(heading).chain(list.iter().map(row)).collect();
    table(&rows, 3) + "\n"
}

/// Of `targets`, in the order of the file.
pub(super) fn targets(targets: &[TargetInfo]) -> String {
    let row = |target: &'_ TargetInfo| {
        let name = match (&target.name, target.is_default) {
            (Some(name), true) => format!("{name} (default)"),
            (Some(name), false) => name.clone(),
            (None, true) => "(default)".to_owned(),
            (None, false) => String::new(),
        };
        [name, target.description.clone().unwrap_or_default()]
    };
    let heading = ["TARGET", "DESCRIPTION"].map(str::to_owned);
    let rows: Vec<[String; 2]> = std::iter::once(heading).chain(targets.iter().map(row)).collect();
    table(&rows, 1)
}

/// Of `subrequests.describe`.
pub(super) fn describe() -> String {
    let rows = SUBREQUESTS.map(|(name, description)| [name, VERSION, description]);
    let rows: Vec<[&str; 3]> = std::iter::once(["NAME", "VERSION", "DESCRIPTION"]).chain(rows).collect();
    table(&rows, 1)
}

/// Rows whose cells are padded to the widest of their column and `gap` blanks more; the last one of a row is not.
///
/// Unlike [`crate::commands::table`], blanks at the ends of lines stay: this is how Go's tabwriter does it.
fn table<T: AsRef<str>, const N: usize>(rows: &[[T; N]], gap: usize) -> String {
    let width_of = |cell: &T| cell.as_ref().chars().count();
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| width_of(&row[column])).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell.as_ref());
            if column + 1 < N {
                text.extend(std::iter::repeat_n(' ', widths[column] + gap - width_of(cell)));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use solver::Location;

    use super::*;

    #[test]
    fn warnings_without_lines_come_first() {
        let warning = |rule, line| Warning {
            rule,
            description: "",
            url: "",
            message: "m".to_owned(),
            location: (line > 0).then_some(Location { start_line: line, end_line: line }),
        };
        let list = vec![warning("D", 2), warning("C", 1), warning("B", 0), warning("A", 0)];
        let source = Source { name: "D".to_owned(), text: "x\ny".to_owned() };
        let text = findings(&Findings { warnings: list, fault: None }, &source);
        let rules: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("WARNING: ")).collect();
        assert_eq!(rules, ["A", "B", "C", "D"]);
        assert!(
            text.starts_with("Check complete, 4 warnings have been found!\n\nWARNING: A\nm\n\nWARNING: B\n"),
            "{text}"
        );
    }

    #[test]
    fn caches_have_a_table_of_their_own() {
        let cache = solver::plan::CacheMount { id: "/c".to_owned(), location: Location { start_line: 1, end_line: 1 } };
        let text = outline(&Outline { name: Some("a".to_owned()), caches: vec![cache], ..Outline::default() });
        assert_eq!(text, "TARGET: a\n\nCACHE MOUNT\n/c\n\n");
    }
}
