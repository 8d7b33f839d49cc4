use proptest::prelude::*;

use super::*;

/// The paths of a small tree, as the recordings of the reference use it.
const TREE: [&str; 12] = [
    "a.txt",
    "b.md",
    "docs",
    "docs/README.md",
    "docs/in",
    "docs/in/README.md",
    "docs/x.md",
    "sub",
    "sub/a.txt",
    "sub/c.log",
    "sub/deep",
    "sub/deep/a.txt",
];

#[track_caller]
fn check(ignore_file: &str, excluded: &[&str]) {
    let patterns = Patterns::parse_ignore_file(ignore_file.as_bytes()).unwrap();
    let got: Vec<&str> = TREE.into_iter().filter(|path| patterns.matches_or_parent_matches(path)).collect();
    assert_eq!(got, excluded, "{ignore_file:?}");
}

const ALL_DOCS: [&str; 5] = ["docs", "docs/README.md", "docs/in", "docs/in/README.md", "docs/x.md"];
const ALL_SUB: [&str; 5] = ["sub", "sub/a.txt", "sub/c.log", "sub/deep", "sub/deep/a.txt"];

#[test]
fn lists_decide_as_recorded() {
    check("", &[]);
    check("a.txt\n*/c.log\nb.??\n", &["a.txt", "b.md", "sub/c.log"]);
    check("**/a.txt\nsub/**\n", &["a.txt", "sub/a.txt", "sub/c.log", "sub/deep", "sub/deep/a.txt"]);
    check("**.txt\ndo**md\n", &["a.txt", "sub/a.txt", "sub/deep/a.txt"]);
    check("sub\n/docs/\n", &[&ALL_DOCS[..], &ALL_SUB[..]].concat());
    check(
        "docs\n!docs/README.md\nsub\n!sub/deep\n",
        &["docs", "docs/in", "docs/in/README.md", "docs/x.md", "sub", "sub/a.txt", "sub/c.log"],
    );
    check(
        "*.md\n!b.md\nsub/*\n!sub/deep\nsub/deep/a.txt\n!a.txt\na.txt\n",
        &["a.txt", "sub/a.txt", "sub/c.log", "sub/deep/a.txt"],
    );
    check(
        "*\n!sub\nsub/c.log\n!docs/*/README.md\n",
        &["a.txt", "b.md", "docs", "docs/README.md", "docs/in", "docs/x.md", "sub/c.log"],
    );
    check("!a.txt\na.txt\n", &["a.txt"]);
    check(
        "# a.txt\n\n   b.md   \n  # sub is kept\n./docs//in/../x.md\n/sub/./deep/\n! docs/x.md\n",
        &["b.md", "sub/deep", "sub/deep/a.txt"],
    );
    check(".\n./\n/\n", &[]);
    check("\u{feff}a.txt\r\n# x\r\nsub\r\n", &[&["a.txt"], &ALL_SUB[..]].concat());
    check("**\n", &TREE);
    check("**/*\n", &TREE);
    check("a\n!a/b\na\n", &[]);
    check("docs\n!docs/in\ndocs\n", &ALL_DOCS);
}

#[test]
fn single_patterns() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("**/x", &["x", "a/x", "a/b/x"], &["ax", "x/a", "a/xx"]),
        ("****x", &["x", "a/x", "a/b/x"], &["ax", "x/a", "a/xx"]),
        ("**/**/x", &["x", "a/x", "a/b/x"], &["ax", "x/a", "a/xx"]),
        ("***x", &["x", "ax", "a/bx"], &["x/a", "xa"]),
        ("a****", &["a", "ab", "a/b"], &["b", "b/a"]),
        ("a/**/**", &["a/b", "a/b/c"], &["a", "ab"]),
        ("a/**", &["a/b", "a/b/c"], &["a", "ab"]),
        ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["ab", "a/xb", "a/b/c"]),
        ("**.txt", &["x.txt", "a/x.txt", ".txt"], &["x.txtt"]),
        ("a**b", &["ab", "ax/b", "a/b", "ax/y/b"], &["axb"]),
        ("a**", &["a", "ab", "ab/c"], &["b"]),
        ("*", &["a", ".hidden"], &["a/b"]),
        ("*/*", &["a/b"], &["a", "a/b/c"]),
        ("a*b*c", &["abc", "axbxc", "abbc"], &["a/bc", "ab"]),
        ("?", &["a", "é"], &["/", "ab", ""]),
        ("[x-z].q", &["y.q"], &["a.q"]),
        ("[^x].w", &["a.w"], &["x.w"]),
        ("[\\]a]", &["]", "a"], &["b"]),
        ("st\\*r", &["st*r"], &["stxr"]),
        ("\\#hash", &["#hash"], &[]),
        ("\\!bang", &["!bang"], &[]),
        ("a.b", &["a.b"], &["axb"]),
        ("a+(b)|{c}^$", &["a+(b)|{c}^$"], &[]),
        ("**/a*/**/*.c", &["a/x.c", "ab/x/y.c", "z/a/x.c"], &["b/x.c", "x.c"]),
        ("**/*.tar.**", &["x.tar.gz", "a/x.tar.gz"], &["x.tar"]),
        ("**/\\*x", &["*x", "a/*x"], &["yx"]),
        ("\\a**", &["a", "ab/c"], &["b"]),
    ];
    for (pattern, matching, others) in table {
        let patterns = Patterns::new([pattern]).unwrap();
        for path in *matching {
            assert!(patterns.matches(path), "{pattern} matches {path}");
        }
        for path in *others {
            assert!(!patterns.matches(path), "{pattern} does not match {path}");
        }
    }
}

#[test]
fn faults() {
    let table = [
        ("a\n!\n", PatternError::EmptyException { line_1based: 2 }, "illegal exclusion pattern: \"!\""),
        ("! \n", PatternError::EmptyException { line_1based: 1 }, "illegal exclusion pattern: \"!\""),
        ("a[\n", PatternError::Syntax { pattern: "a[".to_owned(), line_1based: 1 }, "syntax error in pattern"),
        ("a\\\n", PatternError::Syntax { pattern: "a\\".to_owned(), line_1based: 1 }, "syntax error in pattern"),
        ("[]a]\n", PatternError::Syntax { pattern: "[]a]".to_owned(), line_1based: 1 }, "syntax error in pattern"),
        ("[a-]\n", PatternError::Syntax { pattern: "[a-]".to_owned(), line_1based: 1 }, "syntax error in pattern"),
    ];
    for (text, want, message) in table {
        let error = Patterns::parse_ignore_file(text.as_bytes()).unwrap_err();
        assert_eq!(error, want, "{text:?}");
        assert_eq!(error.to_string(), message);
    }
}

/// Each pair of stars once was a state of its own.
#[test]
fn a_line_of_stars_costs_no_more_than_two() {
    let path = "d/".repeat(2000) + "x";
    let patterns = Patterns::new([format!("{}x", "*".repeat(60_000)), format!("y{}", "*".repeat(60_000))]).unwrap();
    for _ in 0..100 {
        assert!(patterns.matches(&path));
    }
}

#[test]
fn the_deciding_pattern_is_known() {
    let patterns = Patterns::parse_ignore_file(b"# first\ndocs\n\n!docs/x.md\n").unwrap();
    assert!(patterns.has_exclusions());
    let by = |path: &str| patterns.decide(path).decided_by().map(|index| patterns.patterns()[index].line_1based);
    assert_eq!(by("docs/README.md"), Some(2));
    assert_eq!(by("docs/x.md"), Some(4));
    assert_eq!(by("sub"), None);
    assert_eq!(patterns.patterns()[1].text, "!docs/x.md");
}

#[test]
fn walks_may_skip_what_no_exception_can_reach() {
    let skips = |list: &[&str], dir: &str| {
        let patterns = Patterns::new(list).unwrap();
        patterns.excludes_all_below(patterns.decide(dir), dir)
    };
    assert!(skips(&["docs"], "docs"));
    assert!(!skips(&["sub"], "docs"), "not excluded");
    assert!(!skips(&["docs", "!docs/README.md"], "docs"));
    assert!(!skips(&["docs", "!docs/a/b/c"], "docs/a"));
    assert!(skips(&["docs", "!docs/a/b/c"], "docs/x"));
    assert!(skips(&["docs", "!docsx/README.md"], "docs"));
    assert!(!skips(&["docs", "!**/README.md"], "docs"));
    assert!(!skips(&["docs", "!*/README.md"], "docs"));
    assert!(!skips(&["docs", "!d*/README.md"], "docs"));
    assert!(skips(&["docs", "!e*/README.md"], "docs"));
    assert!(!skips(&["docs", "!docs/**"], "docs"));
    assert!(skips(&["!docs/README.md", "docs"], "docs"), "an earlier exception does not count");
}

#[test]
fn cleaning_is_gos() {
    let table = [
        ("a//b", "a/b"),
        ("./a", "a"),
        ("a/../b", "b"),
        ("a/", "a"),
        ("../a", "../a"),
        ("a/../../b", "../b"),
        ("/../a", "/a"),
        ("/", "/"),
        ("", "."),
        (".", "."),
        ("a/..", "."),
    ];
    for (path, want) in table {
        assert_eq!(clean(path), want, "{path}");
    }
}

#[test]
fn go_globs() {
    let table = [
        ("abc", "abc", Ok(true)),
        ("*", "abc", Ok(true)),
        ("*c", "abc", Ok(true)),
        ("a*", "ab/c", Ok(false)),
        ("a*/b", "abc/b", Ok(true)),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Ok(true)),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Ok(false)),
        ("a*b?c*x", "abxbbxdbxebxczzx", Ok(true)),
        ("a*b?c*x", "abxbbxdbxebxczzy", Ok(false)),
        ("ab[c]", "abc", Ok(true)),
        ("ab[b-d]", "abc", Ok(true)),
        ("ab[e-g]", "abc", Ok(false)),
        ("ab[^c]", "abc", Ok(false)),
        ("ab[^e-g]", "abc", Ok(true)),
        ("a\\*b", "a*b", Ok(true)),
        ("a\\*b", "ab", Ok(false)),
        ("a?b", "a☺b", Ok(true)),
        ("a[^a]b", "a☺b", Ok(true)),
        ("a???b", "a☺b", Ok(false)),
        ("[a-ζ]*", "α", Ok(true)),
        ("*[a-ζ]", "A", Ok(false)),
        ("a?b", "a/b", Ok(false)),
        ("a*b", "a/b", Ok(false)),
        ("[\\]a]", "]", Ok(true)),
        ("[\\-x]", "-", Ok(true)),
        ("[x\\-]", "z", Ok(false)),
        ("[]a]", "]", Err(BadPattern)),
        ("[-]", "-", Err(BadPattern)),
        ("[x-]", "x", Err(BadPattern)),
        ("[a-b-c]", "a", Err(BadPattern)),
        ("[", "a", Err(BadPattern)),
        ("[^", "a", Err(BadPattern)),
        ("a[", "x", Err(BadPattern)),
        ("a\\", "x", Err(BadPattern)),
        ("**", "ab", Ok(true)),
        ("**/b", "a/x/b", Ok(false)),
        ("*x", "xxx", Ok(true)),
        ("", "", Ok(true)),
        ("", "a", Ok(false)),
        ("*", "", Ok(true)),
        ("[[]", "[", Ok(true)),
    ];
    for (pattern, name, want) in table {
        assert_eq!(glob_match(pattern, name), want, "{pattern} {name}");
    }
}

/// The definition, without any cleverness: every pattern against the path and all of its parents, the last match wins.
fn decide_slowly(patterns: &Patterns, path: &str) -> bool {
    let mut excluded = false;
    for pattern in patterns.patterns() {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        if ends.into_iter().any(|end| pattern.matches(&path[..end])) {
            excluded = !pattern.is_exception;
        }
    }
    excluded
}

const PATTERN: &str = "!?[ab/*?.]{1,6}";
const PATH: &str = "[ab.]{1,3}(/[ab.]{1,3}){0,3}";

proptest! {
    #[test]
    fn verdicts_follow_the_definition(list in prop::collection::vec(PATTERN, 0..6), path in PATH) {
        let Ok(patterns) = Patterns::new(&list) else { return Ok(()) };
        prop_assert_eq!(patterns.matches_or_parent_matches(&path), decide_slowly(&patterns, &path));
    }

    #[test]
    fn nothing_below_a_skipped_directory_is_included(list in prop::collection::vec(PATTERN, 0..6), path in PATH) {
        let Ok(patterns) = Patterns::new(&list) else { return Ok(()) };
        for (at, _) in path.match_indices('/') {
            let dir = &path[..at];
            if patterns.excludes_all_below(patterns.decide(dir), dir) {
                prop_assert!(patterns.matches_or_parent_matches(&path), "{} in {}", path, dir);
            }
        }
    }

    #[test]
    fn without_stars_of_two_both_matchers_agree(pattern in "[ab/*?]{1,6}", path in PATH) {
        prop_assume!(!pattern.contains("**") && clean(&pattern) == pattern && !pattern.starts_with('/'));
        let list = Patterns::new([&pattern]).unwrap();
        prop_assert_eq!(list.matches(&path), glob_match(&pattern, &path).unwrap());
    }

    #[test]
    fn any_bytes_are_fine(text in prop::collection::vec(any::<u8>(), 0..60), path in "\\PC{0,12}") {
        if let Ok(patterns) = Patterns::parse_ignore_file(&text) {
            patterns.decide(&path);
            patterns.excludes_all_below(patterns.decide(&path), &path);
        }
        if let Ok(glob) = Glob::compile(&String::from_utf8_lossy(&text)) {
            glob.matches(&path);
        }
    }
}
