//! The wording of failures and warnings, on standard error (`spec/cli.md` §2.3, §3.5, §3.8).

use std::fmt::Write as _;
use std::io::Write as _;

use solver::{Location, Tier};

use crate::failure::{Failure, Report, Source};
use crate::ui;

/// Prints why the program ends.
pub(crate) fn failure(failure: &Failure) {
    let text = match failure {
        Failure::Usage { message, help } => {
            let mut text = format!("ERROR: {message}\n");
            push_help(&mut text, help);
            text.push_str("\nUsage:  rbuild [OPTIONS] PATH|URL|-\n\nRun 'rbuild --help' for more information\n");
            text
        }
        Failure::Failed(report) => render(report),
        Failure::Exit(_) => return,
    };
    ui::stderr(|out| out.write_all(text.as_bytes()));
}

/// Prints why a Dockerfile that was checked cannot be built: the lines stand behind the message, as with warnings.
pub(crate) fn fault_of_check(report: &Report) {
    let mut text = format!("ERROR: {}\n{}", report.message, excerpts(report));
    push_help(&mut text, &report.help);
    ui::stderr(|out| out.write_all(text.as_bytes()));
}

fn excerpts(report: &Report) -> String {
    let Some(source) = &report.source else { return String::new() };
    merged(&report.locations).iter().map(|location| excerpt(source, location)).collect()
}

fn render(report: &Report) -> String {
    let mut text = excerpts(report);
    let introduction = if report.of_build { "failed to build: failed to solve: " } else { "" };
    match report.tier {
        Tier::Internal => {
            let _ = writeln!(text, "ERROR: {introduction}internal error: {}", report.message);
            text.push_str("help: this is a bug in rbuild; please report it with the Dockerfile and the output of `rbuild --debug`\n");
        }
        Tier::Cancelled => {
            let _ = writeln!(text, "ERROR: {introduction}{}", report.message);
        }
        Tier::Input | Tier::Environment => {
            let _ = writeln!(text, "ERROR: {introduction}{}", report.message);
        }
    }
    push_help(&mut text, &report.help);
    if report.help.is_empty()
        && let Some(advice) = os_advice(&report.message)
    {
        push_help(&mut text, &[advice.to_owned()]);
    }
    text
}

/// The next step for what the operating system refuses, told by the number or the words at the end of its text.
fn os_advice(message: &str) -> Option<&'static str> {
    let is = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    // Here, "no space" and "not permitted" are about settings of the kernel.
    if is(&["cannot make namespaces"]) {
        return Some(
            "the kernel allows no namespaces: look at /proc/sys/user/max_*_namespaces, and run rbuild as root",
        );
    }
    if is(&["(os error 28)", "(os error 122)", "database or disk is full"]) {
        return Some("free space with `rbuild prune`, or use a store on another disk with --store DIR");
    }
    if is(&["(os error 30)", "readonly database"]) {
        return Some("the store must be writable: mount it so, or name another with --store DIR");
    }
    if is(&["(os error 24)"]) {
        return Some("let rbuild open more files: `ulimit -n 65536`");
    }
    None
}

fn push_help(text: &mut String, help: &[String]) {
    for line in help {
        let _ = writeln!(text, "help: {line}");
    }
}

/// The excerpt of `spec/dockerfile.md` §1.12: two lines of context around a single line, one around several.
pub(crate) fn excerpt(source: &Source, location: &Location) -> String {
    let lines: Vec<&str> = source.text.split('\n').collect();
    let (first, last) = (location.start_line.max(1) as usize, location.end_line.max(location.start_line) as usize);
    if first > lines.len() {
        return String::new();
    }
    let context = if first == last { 2 } else { 1 };
    let from = first.saturating_sub(context).max(1);
    let to = (last + context).min(lines.len());
    let mut text = format!("{}:{first}\n--------------------\n", source.name);
    for number in from..=to {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let line = lines[number - 1].strip_suffix('\r').unwrap_or(lines[number - 1]);
        let _ = writeln!(text, " {number:3} | {mark} {line}");
    }
    text.push_str("--------------------\n");
    text
}

/// Adjoining and equal ranges become one.
pub(crate) fn merged(locations: &[Location]) -> Vec<Location> {
    let mut sorted = locations.to_vec();
    sorted.sort_by_key(|location| location.start_line);
    let mut merged: Vec<Location> = Vec::new();
    for location in sorted {
        match merged.last_mut() {
            Some(last) if location.start_line <= last.end_line + 1 => {
                last.end_line = last.end_line.max(location.end_line)
            }
            _ => merged.push(location),
        }
    }
    merged
}

/// One warning of a build check.
pub(crate) struct CheckWarning {
    /// Name of the rule.
    pub(crate) rule: String,
    /// What is wrong.
    pub(crate) message: String,
    /// Page of the rule.
    pub(crate) url: String,
    /// Where.
    pub(crate) location: Option<Location>,
}

/// The summary after the display: one line a warning, or everything with `--debug`.
pub(crate) fn warnings(warnings: &[CheckWarning], source: &Source, debug: bool, colours: bool) {
    if warnings.is_empty() {
        return;
    }
    let (yellow, reset) = if colours { ("\x1b[33m", "\x1b[0m") } else { ("", "") };
    let plural = if warnings.len() == 1 { "warning" } else { "warnings" };
    let hint = if debug { "" } else { " (use rbuild --debug to expand)" };
    let mut text = format!("\n{yellow} {} {plural} found{hint}:{reset}\n", warnings.len());
    for warning in warnings {
        let line = warning.location.as_ref().map(|at| format!(" (line {})", at.start_line)).unwrap_or_default();
        let _ = writeln!(text, "{yellow} - {}: {}{line}{reset}", warning.rule, warning.message);
        if debug {
            if !warning.url.is_empty() {
                let _ = writeln!(text, "More info: {}", warning.url);
            }
            if let Some(location) = &warning.location {
                text.push_str(&excerpt(source, location));
            }
            text.push('\n');
        }
    }
    ui::stderr(|out| out.write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_marks_its_lines_and_is_clipped_at_the_edges() {
        let source = Source { name: "Dockerfile".into(), text: "FROM busybox\n\nRUN false\n".into() };
        let text = excerpt(&source, &Location { start_line: 3, end_line: 3 });
        let expected = "Dockerfile:3\n--------------------\n   1 |     FROM busybox\n   2 |     \n   3 | >>> RUN false\n   \
                        4 |     \n--------------------\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn several_lines_have_one_line_of_context() {
        let source = Source { name: "D".into(), text: "1\n2\n3\n4\n5\n6".into() };
        let text = excerpt(&source, &Location { start_line: 3, end_line: 4 });
        assert_eq!(
            text,
            "D:3\n--------------------\n   2 |     2\n   3 | >>> 3\n   4 | >>> 4\n   5 |     5\n--------------------\n"
        );
    }
}
