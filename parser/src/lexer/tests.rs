use super::*;

/// Text, first and last line, comments, blank line inside, heredocs as (name, body).
type Seen = (String, (u32, u32), Vec<String>, Option<u32>, Vec<(String, String)>);

fn seen(text: &[u8]) -> Vec<Seen> {
    let lexed = lex(text).unwrap();
    let heredocs = |line: &LogicalLine| {
        line.heredocs
            .iter()
            .map(|heredoc| (heredoc.name.clone(), String::from_utf8_lossy(&heredoc.content).into_owned()))
            .collect()
    };
    lexed
        .lines
        .iter()
        .map(|line| {
            let lines = (line.lines.start, line.lines.end);
            (line.text.clone(), lines, line.comments.clone(), line.empty_continuation, heredocs(line))
        })
        .collect()
}

#[track_caller]
fn check(text: &str, want: &[(&str, (u32, u32))]) {
    let got = seen(text.as_bytes());
    let got: Vec<(&str, (u32, u32))> = got.iter().map(|line| (line.0.as_str(), line.1)).collect();
    assert_eq!(got, want, "{text:?}");
}

#[test]
fn continuations() {
    check("RUN a \\\n# dropped\n    && b \\\n\n    && c\n", &[("RUN a     && b     && c", (1, 5))]);
    check("RUN a \\\n  # also \\\n && b", &[("RUN a  && b", (1, 3))]);
    check("RUN one \\\\\nRUN two", &[("RUN one \\\\", (1, 1)), ("RUN two", (2, 2))]);
    check("RUN one \\\\\\\nRUN two", &[("RUN one \\\\\\", (1, 1)), ("RUN two", (2, 2))]);
    check("ENV A=1 \\  \t\n  B=2\n", &[("ENV A=1   B=2", (1, 2))]);
    check("LABEL a=1 \\\n\\\n b=2", &[("LABEL a=1  b=2", (1, 3))]);
    check("\\\nRUN a", &[("RUN a", (1, 2))]);
    check("RUN a\\\nb   \\\n    c", &[("RUN ab       c", (1, 3))]);
    check("RUN a \\", &[("RUN a ", (1, 1))]);
    check("RUN a \\\n", &[("RUN a ", (1, 1))]);
    check("ENV A=1 \\\r\n    B=2\r\nLABEL x=y\r\n", &[("ENV A=1     B=2", (1, 2)), ("LABEL x=y", (3, 3))]);
    check("# escape=`\nRUN a `\n b \\\n", &[("RUN a  b \\", (2, 3))]);
    check("\u{feff}FROM x", &[("FROM x", (1, 1))]);
    check("\t  FROM x  \n\n\n  RUN y\n", &[("FROM x  ", (1, 1)), ("RUN y", (4, 4))]);
    check("RUN echo a # b\n", &[("RUN echo a # b", (1, 1))]);
    check("", &[]);
    check("\n \n#\n", &[]);
}

#[test]
fn blank_lines_inside_are_noted() {
    let at = |text: &str| seen(text.as_bytes())[0].3;
    assert_eq!(at("RUN a \\\n\n b \\\n \t\n c\n"), Some(5));
    assert_eq!(at("RUN a \\\n# x\n b\n"), None);
    assert_eq!(at("RUN a <<E \\\n\n b\nx\nE\n"), Some(3), "the heredoc begins behind it");
}

#[test]
fn comments_attach_to_the_next_instruction() {
    let comments = |text: &str| seen(text.as_bytes()).into_iter().map(|line| line.2).collect::<Vec<_>>();
    assert_eq!(comments("# a\n  #  b  \nFROM x\nRUN y"), [vec!["a", "b"], vec![]]);
    assert_eq!(comments("# a\n\nFROM x"), [vec!["a"]], "a blank line does not detach");
    assert_eq!(comments("# a\n#\n# b\nFROM x"), [vec!["b"]]);
    assert_eq!(comments("# check=skip=all\n# a\nFROM x"), [vec!["a"]], "directives are none");
    assert_eq!(comments("RUN a \\\n# inside\n b\nRUN c"), [Vec::<String>::new(), vec![]]);
    assert_eq!(comments("# a \\\nFROM x"), [vec!["a \\"]]);
}

#[test]
fn escape_directive() {
    let escape = |text: &str| lex(text.as_bytes()).unwrap().escape;
    let table = [
        ("# escape=`\nFROM x", '`'),
        ("# escape=\\\nFROM x", '\\'),
        ("#   EsCaPe   =   `  \nFROM x", '`'),
        ("  # escape=`\nFROM x", '`'),
        ("\u{feff}# escape=`\nFROM x", '`'),
        ("# syntax=a\n# check=skip=all\n# escape=`\nFROM x", '`'),
        ("\n# escape=`\nFROM x", '\\'),
        ("# hello\n# escape=`\nFROM x", '\\'),
        ("# foo=bar\n# escape=`\nFROM x", '\\'),
        ("# syntax=\n# escape=`\nFROM x", '\\'),
        ("#!/usr/bin/env x\n# syntax=a\n# escape=`\n", '\\'),
        ("FROM x\n# escape=`", '\\'),
    ];
    for (text, want) in table {
        assert_eq!(escape(text), want, "{text:?}");
    }
}

#[track_caller]
fn fatal(text: &[u8]) -> (String, Vec<(u32, u32)>) {
    let error = lex(text).unwrap_err().pop().unwrap();
    (error.message, error.lines.iter().map(|lines| (lines.start, lines.end)).collect())
}

#[test]
fn fatal_faults() {
    let bad = "invalid escape token '^' does not match ` or \\";
    assert_eq!(fatal(b"# escape=^\nFROM x"), (bad.to_owned(), vec![(1, 1)]));
    let twice = "only one escape parser directive can be used";
    assert_eq!(fatal(b"# escape=`\n# check=skip=all\n# escape=\\\nFROM x"), (twice.to_owned(), vec![(2, 2)]));
    assert_eq!(fatal(b"FROM x\nCOPY <<EOF /x\nbody\nEOF2\n EOF\n"), ("unterminated heredoc".to_owned(), vec![(2, 5)]));
    assert_eq!(fatal(b"RUN echo $((1 << 4)) > /out\n"), ("unterminated heredoc".to_owned(), vec![(1, 1)]));
}

#[test]
fn physical_lines_have_a_limit_and_logical_ones_do_not() {
    let line = |length: usize| [b"FROM x\n#".to_vec(), vec![b'x'; length - 1], b"\n".to_vec()].concat();
    assert!(lex(&line(65_535)).is_ok());
    let message = "dockerfile line greater than max allowed size of 65535".to_owned();
    assert_eq!(fatal(&line(65_536)), (message.clone(), vec![(1, 1)]));
    assert_eq!(fatal(&[b'x'; 65_536]), (message, vec![(1, 1)]), "without a newline");
    let long = [b"RUN ".to_vec(), b"xxxxxxxx \\\n".repeat(20_000), b"y".to_vec()].concat();
    assert_eq!(lex(&long).unwrap().lines[0].text.len(), 4 + 9 * 20_000 + 1);
}

/// What is known about a heredoc: name, expand, strip, fd.
type Known<S> = (S, bool, bool, u32);

fn delimiters(line: &str) -> Vec<Known<String>> {
    let words = crate::expand::heredoc_candidates(line).unwrap_or_default();
    let found = words.iter().filter_map(|word| heredoc_word(word).unwrap());
    found.map(|heredoc| (heredoc.name, heredoc.expand, heredoc.strip_tabs, heredoc.fd)).collect()
}

#[test]
fn heredoc_words() {
    let table: &[(&str, Option<Known<&str>>)] = &[
        ("<<EOF", Some(("EOF", true, false, 0))),
        ("<<-EOF", Some(("EOF", true, true, 0))),
        ("<<'EOF'", Some(("EOF", false, false, 0))),
        ("<<\"EOF\"", Some(("EOF", false, false, 0))),
        ("<<E\"O\"F", Some(("EOF", false, false, 0))),
        ("<<-'EOF'", Some(("EOF", false, true, 0))),
        ("<<eo\\'f", Some(("eo'f", true, false, 0))),
        ("<<'one two'", Some(("one two", false, false, 0))),
        ("<<$EOF", Some(("$EOF", true, false, 0))),
        ("<<${EOF}", Some(("${EOF}", true, false, 0))),
        ("3<<EOF", Some(("EOF", true, false, 3))),
        ("<< EOF", Some(("EOF", true, false, 0))),
        ("<<   EOF", Some(("EOF", true, false, 0))),
        ("<< -EOF", Some(("-EOF", true, false, 0))),
        ("cat <<EOF", Some(("EOF", true, false, 0))),
        ("<<EOF bash", Some(("EOF", true, false, 0))),
        ("$((1 << 4))", Some(("4))", true, false, 0))),
        ("\"<<EOF\"", None),
        ("'<<EOF'", None),
        ("a\\<\\<EOF", None),
        ("<<<word", None),
        ("<<", None),
        ("<<-", None),
        ("<<- EOF", None),
        ("a<<EOF", None),
        ("$((1<<4))", None),
        ("<<'open", None),
        ("it's <<EOF", None),
    ];
    for (line, want) in table {
        let want: Vec<_> =
            want.iter().map(|(name, expand, strip, fd)| ((*name).to_owned(), *expand, *strip, *fd)).collect();
        assert_eq!(delimiters(line), want, "{line}");
    }
    let names: Vec<String> = delimiters("cat <<A - <<B").into_iter().map(|found| found.0).collect();
    assert_eq!(names, ["A", "B"]);
}

#[test]
fn heredoc_bodies() {
    let body = |text: &str| seen(text.as_bytes())[0].4.clone();
    let one = |name: &str, body: &str| vec![(name.to_owned(), body.to_owned())];
    assert_eq!(body("RUN <<EOF\na \\\n# b\nFROM x\n\nEOF\nRUN y"), one("EOF", "a \\\n# b\nFROM x\n\n"));
    assert_eq!(body("RUN <<EOF\nEOF\n"), one("EOF", ""));
    assert_eq!(body("RUN <<EOF\r\na\r\nEOF\r\n"), one("EOF", "a\r\n"));
    assert_eq!(body("RUN <<-EOF\n\t\ta\n\t EOF\n\tEOF\n"), one("EOF", "\t\ta\n\t EOF\n"));
    assert_eq!(body("RUN <<EOF\na\nEOF"), one("EOF", "a\n"), "no newline at the end of the file");
    assert_eq!(body("RUN cat <<A <<B\n1\nA\n2\nB\n"), [one("A", "1\n"), one("B", "2\n")].concat());
    assert_eq!(body("ONBUILD COPY <<EOF /x\na\nEOF\n"), one("EOF", "a\n"));
    assert_eq!(body("run <<eof\na\neof\n"), one("eof", "a\n"));
    assert_eq!(body("# escape=`\nRUN <<EOF `\n cat\na\nEOF"), one("EOF", "a\n"));
    for none in ["COPY [\"<<EOF\", \"/x\"]", "RUN [\"<<EOF\"]", "ENV A=<<EOF", "CMD cat <<EOF", "ONBUILD CMD <<EOF"] {
        assert_eq!(body(none), [], "{none}");
    }
    assert_eq!(seen(b"RUN <<EOF\na\nEOF\nRUN y\n")[0].1, (1, 3));
}

#[test]
fn tabs_are_stripped_from_every_line() {
    assert_eq!(strip_tabs(b"\t\tdeep\n\tone\ttab\n  blanks\n\t"), b"deep\none\ttab\n  blanks\n");
}

#[test]
fn words_are_located_in_the_source() {
    let text = "FROM x\n  RUN --a \\\n# c\n   --mönt=é && \\\n true\n";
    let lexed = lex(text.as_bytes()).unwrap();
    let line = &lexed.lines[1];
    let span = |line, column, length| Some(SourceSpan { line, column, length });
    assert_eq!(line.locate("--mönt"), span(4, 4, 6));
    assert_eq!(line.locate("RUN"), span(2, 3, 3));
    assert_eq!(line.locate("true"), span(5, 2, 4));
    assert_eq!(line.locate("nowhere"), None);
    assert_eq!(line.locate(""), None);
}
