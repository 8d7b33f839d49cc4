//! The wording of failures and warnings, on standard error (`spec/cli.md` §2.3, §3.5, §3.8).

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;

use parser::{LineRange, SourceSpan};
use solver::plan::Culprit;
use solver::{Location, Tier};
use unicode_width::UnicodeWidthChar;

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

/// An instruction of more lines than this is not shown as a whole.
const MAX_MARKED: usize = 4;

/// The place of a failure: a header for programs that open files, the line at fault between its neighbours, and carets
/// under the word. What has several lines, or places, is shown without neighbours.
fn excerpts(report: &Report) -> String {
    let Some(source) = &report.source else { return String::new() };
    // The parser does not count the byte-order mark either.
    let source_text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let lines: Vec<&str> = source_text.lines().collect();
    let places: Vec<RangeInclusive<usize>> =
        merged(&report.locations).iter().filter_map(|location| marked_lines(location, lines.len())).collect();
    let Some(first) = places.first().map(|place| *place.start()) else { return String::new() };
    let span = culprit(report, source_text);
    let mut text = match span {
        Some(span) => format!("{}:{}:{}\n", source.name, span.line, span.column),
        None => format!("{}:{first}\n", source.name),
    };
    let is_at_fault = |number: usize| span.is_some_and(|span| span.line as usize == number);
    let has_neighbours = places.len() == 1 && places[0].start() == places[0].end();
    for place in &places {
        let shown = match has_neighbours {
            true => place.start() - 1..=place.end() + 1,
            false => place.clone(),
        };
        let is_long = shown.clone().count() > MAX_MARKED;
        let mut is_cut = false;
        for number in shown.filter(|number| (1..=lines.len()).contains(number)) {
            if is_long && number != *place.start() && !is_at_fault(number) {
                text.push_str(if is_cut { "" } else { "     | …\n" });
                is_cut = true;
                continue;
            }
            is_cut = false;
            text += &line_of_excerpt(number, place.contains(&number), lines[number - 1]);
            if let Some(span) = span.filter(|_| is_at_fault(number)) {
                let _ = writeln!(text, "     |     {}", under(lines[number - 1], span));
            }
        }
    }
    text
}

/// Where the word at fault stands.
fn culprit(report: &Report, text: &str) -> Option<SourceSpan> {
    let word = match report.culprit.as_ref()? {
        Culprit::At(span) => return Some(*span),
        Culprit::Word(word) => word,
    };
    let find_in = |at: &Location| SourceSpan::find(text, LineRange { start: at.start_line, end: at.end_line }, word);
    report.locations.iter().find_map(find_in)
}

/// The lines of a place that are in the file; `None` when there are none.
fn marked_lines(location: &Location, n_lines: usize) -> Option<RangeInclusive<usize>> {
    let first = location.start_line.max(1) as usize;
    let last = (location.end_line as usize).clamp(first, n_lines.max(first));
    (first <= n_lines).then_some(first..=last)
}

fn line_of_excerpt(number: usize, is_marked: bool, line: &str) -> String {
    let mark = if is_marked { ">>>" } else { "   " };
    format!(" {number:3} | {mark} {line}").trim_end().to_owned() + "\n"
}

/// Carets under a word. Tabs stay tabs, so that they are as wide as above; other characters have the width of theirs.
fn under(line: &str, span: SourceSpan) -> String {
    let mut chars = line.chars();
    let before: Vec<char> = chars.by_ref().take((span.column as usize).saturating_sub(1)).collect();
    let blank = |c: &char| if *c == '\t' { "\t".to_owned() } else { " ".repeat(c.width().unwrap_or(0)) };
    let width: usize = chars.take(span.length as usize).map(|c| c.width().unwrap_or(0)).sum();
    before.iter().map(blank).collect::<String>() + &"^".repeat(width.max(1))
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

/// How the operating system and the database say that there is no room.
const FULL: [&str; 3] = ["(os error 28)", "(os error 122)", "database or disk is full"];
const ADVICE_ON_ROOM: &str = "free space with `rbuild prune`, or use a store on another disk with --store DIR";

/// The next step when the message says that a disk is full.
pub(crate) fn advice_on_room(message: &str) -> Option<&'static str> {
    os_advice(message).filter(|advice| *advice == ADVICE_ON_ROOM)
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
    if is(&FULL) {
        return Some(ADVICE_ON_ROOM);
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

/// The excerpt of a warning (`spec/dockerfile.md` §1.12): two lines of context around a single line, one around several.
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

/// Prints one thing that the user should know of.
pub(crate) fn warning(message: &str) {
    ui::stderr(|out| writeln!(out, "WARNING: {message}"));
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
        let rule = if warning.rule.is_empty() { String::new() } else { format!("{}: ", warning.rule) };
        let _ = writeln!(text, "{yellow} - {rule}{}{line}{reset}", warning.message);
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

    fn place(text: &str, locations: &[(u32, u32)], word: &str) -> String {
        let locations = locations.iter().map(|&(start_line, end_line)| Location { start_line, end_line }).collect();
        let Failure::Failed(report) = Failure::input("m") else { unreachable!("an input is wrong") };
        let source = Some(Source { name: "D".into(), text: text.into() });
        excerpts(&Report { locations, source, culprit: Some(Culprit::Word(word.to_owned())), ..*report })
    }

    #[test]
    fn a_failure_has_a_caret_under_its_word() {
        let text = "FROM a\n\tCOPY\tx /y\n\nRUN x \\\n  äö z\n";
        assert_eq!(
            place(text, &[(2, 2)], "/y"),
            "D:2:9\n   1 |     FROM a\n   2 | >>> \tCOPY\tx /y\n     |     \t    \t  ^^\n   3 |\n"
        );
        assert_eq!(place(text, &[(4, 5)], "z"), "D:5:6\n   4 | >>> RUN x \\\n   5 | >>>   äö z\n     |          ^\n");
        assert_eq!(place("\u{feff}RUN\n", &[(1, 1)], "RUN"), "D:1:1\n   1 | >>> RUN\n     |     ^^^\n");
        assert_eq!(place("FROM a\r\nRUN\r\n", &[(2, 2)], "?"), "D:2\n   1 |     FROM a\n   2 | >>> RUN\n");
        assert_eq!(place("\n", &[(7, 9)], "x"), "");
    }

    #[test]
    fn several_places_stand_together_and_long_ones_are_cut() {
        assert_eq!(place("a\nb\nc\nd\n", &[(4, 4), (2, 2)], "b"), "D:2:1\n   2 | >>> b\n     |     ^\n   4 | >>> d\n");
        let long: String = (1..=20).map(|number| format!("l{number}\n")).collect();
        assert_eq!(
            place(&long, &[(2, 19)], "l9"),
            "D:9:1\n   2 | >>> l2\n     | …\n   9 | >>> l9\n     |     ^^\n     | …\n"
        );
    }
}
