//! Ignore files and globs against paths: the text of an ignore file, NUL, and paths, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parser::pattern::{Glob, PatternError, Patterns, clean, glob_match};

fuzz_target!(|data: &[u8]| fuzz::run(data, check));

/// Paths of one input that are looked at.
const MAX_PATHS: usize = 8;

/// Longer paths do not exist: PATH_MAX.
const MAX_PATH_BYTES: usize = 4096;

fn check(data: &[u8]) {
    let [text, paths] = fuzz::parts(data);
    let paths: Vec<String> =
        paths.split('\n').take(MAX_PATHS).filter(|path| path.len() <= MAX_PATH_BYTES).filter_map(relative).collect();
    text.split('\n').take(MAX_PATHS).for_each(|pattern| globs(pattern, &paths));

    let n_lines = text.split('\n').count();
    let in_file = |line_1based: u32| (1..=n_lines).contains(&(line_1based as usize));
    match Patterns::parse_ignore_file(text.as_bytes()) {
        Err(PatternError::EmptyException { line_1based } | PatternError::Syntax { line_1based, .. }) => {
            assert!(in_file(line_1based), "line {line_1based} of {n_lines}");
        }
        Ok(patterns) => {
            let list = patterns.patterns();
            assert!(list.iter().all(|pattern| in_file(pattern.line_1based)));
            assert!(list.is_sorted_by(|a, b| a.line_1based < b.line_1based));
            assert!(list.iter().all(|pattern| pattern.is_exception == pattern.text.starts_with('!')));
            assert_eq!(patterns.has_exclusions(), list.iter().any(|pattern| pattern.is_exception));
            assert_eq!(patterns.is_empty(), list.is_empty());
            as_a_list_they_decide_alike(&patterns, &paths);
            paths.iter().for_each(|path| verdicts(&patterns, path));
        }
    }
}

/// A path as those who walk over a tree have it: relative, without empty elements, `.` or `..`.
fn relative(path: &str) -> Option<String> {
    let elements: Vec<&str> = path.split('/').filter(|element| !matches!(*element, "" | "." | "..")).collect();
    let path = elements.join("/");
    assert!(path.is_empty() || clean(&path) == path);
    (!path.is_empty()).then_some(path)
}

fn as_a_list_they_decide_alike(patterns: &Patterns, paths: &[String]) {
    let again = Patterns::new(patterns.patterns().iter().map(|pattern| &pattern.text)).expect("it was fine before");
    assert_eq!(again.patterns().len(), patterns.patterns().len());
    assert!(paths.iter().all(|path| again.decide(path) == patterns.decide(path)));
}

fn verdicts(patterns: &Patterns, path: &str) {
    let verdict = patterns.decide(path);
    assert_eq!(verdict.is_excluded(), patterns.matches_or_parent_matches(path));
    // The definition: every pattern against the path and all of its parents, the last match wins.
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
    let decides = |index: &usize| ends.iter().any(|end| patterns.patterns()[*index].matches(&path[..*end]));
    let last = (0..patterns.patterns().len()).rev().find(decides);
    assert_eq!(verdict.decided_by(), last);
    assert_eq!(verdict.is_excluded(), last.is_some_and(|index| !patterns.patterns()[index].is_exception));
    // What a walk does not enter has nothing in it that is wanted.
    for end in &ends[..ends.len() - 1] {
        let dir = &path[..*end];
        if patterns.excludes_all_below(patterns.decide(dir), dir) {
            assert!(verdict.is_excluded(), "{path:?} is wanted, but {dir:?} is skipped");
        }
    }
}

fn globs(pattern: &str, paths: &[String]) {
    let cleaned = clean(pattern);
    assert_eq!(clean(&cleaned), cleaned);
    let Ok(glob) = Glob::compile(pattern) else {
        assert!(paths.iter().all(|path| glob_match(pattern, path).is_err()));
        return;
    };
    assert!(paths.iter().all(|path| glob_match(pattern, path) == Ok(glob.matches(path))));
    if !pattern.contains(['*', '?', '[', '\\']) {
        assert!(glob.matches(pattern));
        assert!(paths.iter().all(|path| glob.matches(path) == (path == pattern)));
    }
    // Without `**` an ignore pattern is a glob. But where a class takes a slash, Go's globs do not look again for another
    // place of the part before it, and moby's patterns do.
    let is_comparable = !pattern.contains("**") && cleaned == pattern && !pattern.starts_with(['/', '!']);
    if is_comparable && pattern.trim() == pattern && !pattern.is_empty() {
        let list = Patterns::new([pattern]).expect("well formed as a glob");
        for path in paths.iter().filter(|path| !(pattern.contains('[') && path.contains('/'))) {
            assert_eq!(list.matches(path), glob.matches(path), "{pattern:?} {path:?}");
        }
    }
}
