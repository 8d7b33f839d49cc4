use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[track_caller]
fn check(escape: char, variables: &[(&str, &str)], table: &[(&str, Result<&str, &str>)]) {
    let env = env(variables);
    for (word, want) in table {
        let got = Expander::new(escape).process_word(word, &env);
        let got = got.map(|expanded| expanded.text).map_err(|error| error.fault.to_string());
        assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{word}");
    }
}

const SINGLE: &str = "unexpected end of statement while looking for matching single-quote";
const DOUBLE: &str = "unexpected end of statement while looking for matching double-quote";
const BRACE: &str = "syntax error: missing '}'";
const BAD: &str = "syntax error: bad substitution";

#[test]
fn quoting() {
    check(
        '\\',
        &[("PWD", "/home"), ("SHELL", "bash"), ("A", "1")],
        &[
            ("he'll'o", Ok("hello")),
            ("he'llo", Err(SINGLE)),
            (r"he\'llo", Ok("he'llo")),
            (r"he\\'llo", Err(SINGLE)),
            (r"abc\tdef", Ok("abctdef")),
            (r#""abc\tdef""#, Ok(r"abc\tdef")),
            (r#""abc\\tdef""#, Ok(r"abc\tdef")),
            (r"hello\", Ok("hello")),
            (r#""hello\""#, Err(DOUBLE)),
            (r#""hello\"#, Err(DOUBLE)),
            (r"'hello\'", Ok(r"hello\")),
            (r#""hello\\""#, Ok(r"hello\")),
            (r"he\$PWD", Ok("he$PWD")),
            (r"he\\$PWD", Ok(r"he\/home")),
            (r"\${}aaa", Ok("${}aaa")),
            (r#""a'b'c""#, Ok("a'b'c")),
            (r#"'a"b"c'"#, Ok(r#"a"b"c"#)),
            (r#""a\"b\"c""#, Ok(r#"a"b"c"#)),
            (r"a\ b", Ok("a b")),
            (r#""""#, Ok("")),
            ("''", Ok("")),
            (r#"x"y"'z'"#, Ok("xyz")),
            (r#""$PWD"'$PWD'$PWD"#, Ok("/home$PWD/home")),
            (r#""a\$b\\c\d""#, Ok(r"a$b\c\d")),
            (r#""it's $A""#, Ok("it's 1")),
            (r"\'$A\'", Ok("'1'")),
            ("  blanks  stay ", Ok("  blanks  stay ")),
            ("größe-☃", Ok("größe-☃")),
            ("", Ok("")),
        ],
    );
}

#[test]
fn another_escape() {
    check(
        '`',
        &[("DIR", "C:\\tools")],
        &[
            (r"C:\tools", Ok(r"C:\tools")),
            ("a` b", Ok("a b")),
            (r#""x`"y\z""#, Ok(r#"x"y\z"#)),
            ("`$DIR", Ok("$DIR")),
            (r#""\path\$DIR""#, Ok(r"\path\C:\tools")),
        ],
    );
}

#[test]
fn names() {
    check(
        '\\',
        &[("_x", "under"), ("x1", "digit"), ("größe", "umlaut")],
        &[
            ("$1x", Ok("x")),
            ("$999aaa", Ok("aaa")),
            ("$@@@", Ok("@@")),
            ("$*", Ok("")),
            ("$#a", Ok("a")),
            ("$?b", Ok("b")),
            ("$-c", Ok("c")),
            ("$$d", Ok("d")),
            ("$!e", Ok("e")),
            ("$0f", Ok("f")),
            ("$.", Ok("$.")),
            ("a$", Ok("a$")),
            ("$_x", Ok("under")),
            ("$x1y", Ok("")),
            ("${x1}y", Ok("digity")),
            ("\"$\"", Ok("$")),
            ("$/", Ok("$/")),
            ("$%", Ok("$%")),
            ("$größe!", Ok("umlaut!")),
            ("${@}", Ok("")),
        ],
    );
}

#[test]
fn defaults() {
    check(
        '\\',
        &[("PWD", "/home"), ("SET", "v"), ("NULL", "")],
        &[
            ("${SET-w}", Ok("v")),
            ("${SET:-w}", Ok("v")),
            ("${NULL-w}", Ok("")),
            ("${NULL:-w}", Ok("w")),
            ("${UN-w}", Ok("w")),
            ("${UN:-w}", Ok("w")),
            ("${SET+w}", Ok("w")),
            ("${SET:+w}", Ok("w")),
            ("${NULL+w}", Ok("w")),
            ("${NULL:+w}", Ok("")),
            ("${UN+w}", Ok("")),
            ("${UN:+w}", Ok("")),
            ("${SET?w}", Ok("v")),
            ("${SET:?w}", Ok("v")),
            ("${NULL?}", Ok("")),
            ("${NULL:?}", Err("NULL: is not allowed to be empty")),
            ("${NULL:?need $PWD}", Err("NULL: need /home")),
            ("${UN?}", Err("UN: is not allowed to be unset")),
            ("${UN:?}", Err("UN: is not allowed to be unset")),
            ("${UN?must be given}", Err("UN: must be given")),
            ("he${XXX:-${PWD:-yyy}}xx", Ok("he/homexx")),
            ("he${PWD:+${PWD}:}xx", Ok("he/home:xx")),
            (r"he${XXX:-\$PWD:}xx", Ok("he$PWD:xx")),
            (r"he${XXX:-\${PWD}z}xx", Ok("he${PWDz}xx")),
            ("${aaa}}", Ok("}")),
            ("${aaa:-bbb {foo}", Ok("bbb {foo")),
            ("${1:-bbb}", Ok("bbb")),
            ("${XXX:-\"a b\"}", Ok("a b")),
            ("${XXX:-'$PWD'}", Ok("$PWD")),
            ("\"${XXX:-'$PWD'}\"", Ok("$PWD")),
            (r"${XXX:-a\}b}", Ok("a}b")),
        ],
    );
}

#[test]
fn faults() {
    check(
        '\\',
        &[("P", "/p")],
        &[
            ("${P//ww}", Err("syntax error: missing '/' in ${}")),
            ("${P/w}", Err("syntax error: missing '/' in ${}")),
            ("${P/w/x", Err(BRACE)),
            ("${P:=x}", Err("unsupported modifier (:=) in substitution")),
            ("${P=x}", Err("unsupported modifier (=) in substitution")),
            ("${P:x}", Err("unsupported modifier (:x) in substitution")),
            ("${P:#x}", Err("unsupported modifier (:#) in substitution")),
            ("${P:%x}", Err("unsupported modifier (:%) in substitution")),
            ("${UN:YYY}", Err("unsupported modifier (:Y) in substitution")),
            ("a${P.}", Err("unsupported modifier (.) in substitution")),
            ("${P^}", Err("unsupported modifier (^) in substitution")),
            ("he${.}", Err("unsupported modifier (.) in substitution")),
            ("${P", Err("unsupported modifier (\u{fffd}) in substitution")),
            ("${P:", Err(BRACE)),
            ("${P:-x", Err(BRACE)),
            ("${P:-'x}", Err(BRACE)),
            ("${", Err(BRACE)),
            ("${}", Err(BAD)),
            ("${{x}", Err(BAD)),
            ("${:x}", Err(BAD)),
            (r"${P/\./x}", Err(r"invalid pattern (\.) in substitution: invalid escape '\.'")),
            (r"${P#a\", Err(BRACE)),
            ("'", Err(SINGLE)),
            ("/a\"b", Err(DOUBLE)),
        ],
    );
}

#[test]
fn errors_name_the_word() {
    let error = Expander::new('\\').process_word("\"${UN?must be given}\"", &NoVariables).unwrap_err();
    assert_eq!(error.to_string(), r#"failed to process "\"${UN?must be given}\"": UN: must be given"#);
    let error = Expander::new('\\').process_heredoc(b"first\n${PATH^}\n", &NoVariables).unwrap_err();
    assert_eq!(error.to_string(), r#"failed to process "first\n${PATH^}\n": unsupported modifier (^) in substitution"#);
}

#[test]
fn prefixes_and_suffixes() {
    check(
        '\\',
        &[
            ("P", "/a/b/c.tar.gz"),
            ("S", "a***yy*"),
            ("Q", "???y"),
            ("X", "xxyy"),
            ("GLOB", "*"),
            ("ML", "a\nb\nc"),
            ("BS", r"a\tb"),
        ],
        &[
            ("${P#/}", Ok("a/b/c.tar.gz")),
            ("${P#*/}", Ok("a/b/c.tar.gz")),
            ("${P##*/}", Ok("c.tar.gz")),
            ("${P%.*}", Ok("/a/b/c.tar")),
            ("${P%%.*}", Ok("/a/b/c")),
            ("${P%/*}", Ok("/a/b")),
            ("${P%%/*}", Ok("")),
            (r"${S%%\**\*}", Ok("a")),
            (r"${Q#?\?}", Ok("?y")),
            ("${X#*x*y}", Ok("y")),
            ("${X##*x}", Ok("yy")),
            ("${X#*}", Ok("xxyy")),
            ("${X##*}", Ok("")),
            ("${X%*}", Ok("xxyy")),
            ("${X%%*}", Ok("")),
            ("${X#}", Ok("xxyy")),
            ("${X%}", Ok("xxyy")),
            ("${X##}", Ok("xxyy")),
            ("${P##$GLOB}", Ok("")),
            ("${P%\"$GLOB\"z}", Ok("/a/b/c.tar.g")),
            ("${P#*.}", Ok("tar.gz")),
            ("${P#[/]}", Ok("/a/b/c.tar.gz")),
            ("${P%z}", Ok("/a/b/c.tar.g")),
            ("${UN%x}", Ok("")),
            ("${ML##*\n}", Ok("c")),
            ("${BS#\"a\\t\"}", Ok("b")),
        ],
    );
}

#[test]
fn replacing() {
    check(
        '\\',
        &[("P", "/tmp/foo.txt"), ("D", "a.b.c"), ("B", "a}b"), ("FROMPAT", ".?"), ("TO", "<$D>"), ("R", "aXbXXc")],
        &[
            ("${P/o/0}", Ok("/tmp/f0o.txt")),
            ("${P//o/0}", Ok("/tmp/f00.txt")),
            (r"${P//\//\/}", Ok(r"\/tmp\/foo.txt")),
            (r"${P//\//_}", Ok("_tmp_foo.txt")),
            ("${D/./-}", Ok("a-b.c")),
            ("${D//./-}", Ok("a-b-c")),
            ("${D//?/z}", Ok("zzzzz")),
            ("${D/*/z}", Ok("z")),
            ("${D//*/z}", Ok("z")),
            ("${P/t*o/-}", Ok("/-.txt")),
            ("${D/a/}", Ok(".b.c")),
            ("${D//b/}", Ok("a..c")),
            ("${UN/a/b}", Ok("")),
            ("${P//[a-z]/X}", Ok("/tmp/foo.txt")),
            ("${D/$FROMPAT/$TO}", Ok("a<$D>.c")),
            ("${D//$FROMPAT/-}", Ok("a--")),
            ("${D//a.b/\"q q\"}", Ok("q q.c")),
            ("${D//b/${P}}", Ok("a./tmp/foo.txt.c")),
            ("${D///x}", Ok("xax.xbx.xcx")),
            ("${D//x}", Err("syntax error: missing '/' in ${}")),
            (r"${D//a/\.}", Ok(r"\..b.c")),
            ("${D/#a/z}", Ok("a.b.c")),
            (r"${B/\}/-}", Ok("a-b")),
            ("${R/X*b/_}", Ok("a_XXc")),
            ("${R//X*X/_}", Ok("a_c")),
            ("${R/b*X/_}", Ok("aX_c")),
            ("${R/c*X/_}", Ok("aXbXXc")),
        ],
    );
}

#[test]
fn words_split_at_blanks() {
    let env = env(&[("P", "3000 4000/udp"), ("Q", ""), ("S", " a ")]);
    let table: &[(&str, &[&str])] = &[
        ("$P", &["3000", "4000/udp"]),
        ("\"$P\"", &["3000 4000/udp"]),
        ("$Q", &[]),
        ("1${Q}2", &["12"]),
        (" x  y\t", &["x", "y"]),
        (r"x\ y 'a b'c", &["x y", "a bc"]),
        ("x${S}y", &["x", "a", "y"]),
        ("''", &[]),
    ];
    for (word, want) in table {
        assert_eq!(Expander::new('\\').process_words(word, &env).unwrap().words, *want, "{word}");
    }
}

#[test]
fn heredoc_bodies() {
    let env = env(&[("A", "1"), ("E", "env $A")]);
    let table = [
        ("\\$A \\\\ \\x \\\" a\\\nb \\\\$A\n", "$A \\ x \" a\nb \\1\n"),
        ("\\$A \\\\ `$A\n", "$A \\ `1\n"),
        (
            "$A ${E} \"quoted $A\" '$A' ${M:-none} ${A}end $ $. 100%\n",
            "1 env $A \"quoted 1\" '1' none 1end $ $. 100%\n",
        ),
        ("${M:-\"dq\"} [$M]\n", "\"dq\" []\n"),
    ];
    for (body, want) in table {
        assert_eq!(Expander::new('`').process_heredoc(body.as_bytes(), &env).unwrap().text, want);
    }
    assert_eq!(Expander::new('\\').process_heredoc(b"\xff$A", &env).unwrap().text, "\u{fffd}1");
}

#[test]
fn names_are_reported_once_and_in_order() {
    let env = env(&[("SET", "v")]);
    let got = Expander::new('\\').process_word("$b$SET${a:-$c}$b${SET:+$d}", &env).unwrap();
    assert_eq!(got.unset, ["b", "c", "a", "d"]);
    assert_eq!(got.used, ["SET"]);
}

#[test]
fn the_last_pair_counts() {
    let pairs = vec![("a", "1"), ("a", "2")];
    assert_eq!(Expander::new('\\').process_word("$a", &pairs).unwrap().text, "2");
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "${a:-".repeat(100_000);
    let error = Expander::new('\\').process_word(&deep, &NoVariables).unwrap_err();
    assert_eq!(error.fault, ExpandFault::TooDeep);
    let fine = format!("{}x{}", "${a:-".repeat(50), "}".repeat(50));
    assert_eq!(Expander::new('\\').process_word(&fine, &NoVariables).unwrap().text, "x");
}

/// The fault of `word`, whatever the escape.
fn fault_of(word: &str, env: &dyn Lookup) -> Option<ExpandFault> {
    Expander::new('\\').process_word(word, env).err().map(|error| error.fault)
}

#[test]
fn texts_that_would_take_all_memory_are_refused() {
    let env = vec![("x", "a".repeat(30_000))];
    assert_eq!(fault_of(&"$x".repeat(100), &env), None);
    for word in ["$x".repeat(200), "${x:+}".repeat(200), format!("${{x//a/{}}}", "b".repeat(30_000))] {
        assert_eq!(fault_of(&word, &env), Some(ExpandFault::TooLong));
        assert_eq!(fault_of(&format!("${{y:-{word}}}"), &env), Some(ExpandFault::TooLong));
    }
}

#[test]
fn patterns_that_would_take_seconds_are_refused() {
    let env = vec![("x", "a".repeat(30_000))];
    let pattern = |length: usize| "a".repeat(length) + "b";
    for operator in ["#", "##", "%", "%%", "/", "//"] {
        let tail = if operator.starts_with('/') { "/" } else { "" };
        assert_eq!(fault_of(&format!("${{x{operator}{}{tail}}}", pattern(1_000)), &env), None);
        let long = format!("${{x{operator}{}{tail}}}", pattern(10_000));
        assert_eq!(fault_of(&long, &env), Some(ExpandFault::PatternTooLong));
    }
    let many = format!("${{x#{}}}", pattern(100)).repeat(30);
    assert_eq!(fault_of(&many, &env), Some(ExpandFault::PatternTooLong));
}

#[test]
fn ten_thousand_names_are_listed_once_each() {
    let word: String = (0..20_000).map(|number| format!("$n{}", number % 10_000)).collect();
    let expanded = Expander::new('\\').process_word(&word, &NoVariables).unwrap();
    assert_eq!((expanded.unset.len(), expanded.used.len()), (10_000, 0));
    assert!(expanded.unset.iter().zip(0..).all(|(name, number)| *name == format!("n{number}")));
}

proptest! {
    #[test]
    fn any_text_ends(word in "[a${}:#%/*?\\\\'\"+\\- <`.é]{0,60}") {
        let env = env(&[("a", "xaa*b"), ("é", "")]);
        for escape in ['\\', '`'] {
            drop(Expander::new(escape).process_word(&word, &env));
            drop(Expander::new(escape).process_words(&word, &env));
        }
        drop(Expander::new('\\').process_heredoc(word.as_bytes(), &env));
        drop(heredoc_candidates(&word));
        drop(heredoc_delimiter(&word));
    }

    #[test]
    fn literal_replacement_agrees_with_std(value in "[ab/]{0,12}", needle in "[ab/]{1,3}") {
        let env = env(&[("V", &value)]);
        let escaped = needle.replace('/', "\\/");
        let got = Expander::new('\\').process_word(&format!("${{V//{escaped}/-}}"), &env).unwrap();
        prop_assert_eq!(got.text, value.replace(&needle, "-"));
    }
}

#[test]
fn for_display_quotes_and_unset_variables_stay() {
    let env = env(&[("SET", "v"), ("TOKEN", "****")]);
    let table = [
        (r#"RUN echo $TOKEN ${SET} "$SET" '$SET' $NOT"#, r#"RUN echo **** v "v" '$SET' $NOT"#),
        ("RUN a   b ${NOT:-x}", "RUN a   b ${NOT:-x}"),
    ];
    for (text, want) in table {
        assert_eq!(Expander::new('\\').process_display(text, &env).unwrap().text, want);
    }
}
