//! Word expansion: a word and the values of two variables, separated by NUL, with both escape characters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parser::expand::{Expander, NoVariables};

/// Names and values.
type Variables<'a> = Vec<(&'a str, &'a str)>;

fuzz_target!(|data: &[u8]| fuzz::run(data, check));

fn check(data: &[u8]) {
    let [word, x, y] = fuzz::parts(data);
    let env = vec![("x", x.as_str()), ("empty", ""), ("y", y.as_str()), ("1", "one")];
    for escape in ['\\', '`'] {
        let expander = Expander::new(escape);
        texts_and_words_agree(expander, &word, &env);
        plain_text_is_the_identity(expander, &word);
        quoting_protects(expander, &x, &env);
        if is_plain_pattern(&y) {
            trimming_follows_the_definition(expander, &x, &y);
        }
    }
    let body = Expander::new('\\').process_heredoc(word.as_bytes(), &env);
    if !word.contains(['$', '\\']) {
        assert_eq!(body.map(|expanded| expanded.text).as_deref(), Ok(word.as_str()));
    }
}

/// Both ways to expand a word differ in blanks alone, and name the same variables.
fn texts_and_words_agree(expander: Expander, word: &str, env: &Variables<'_>) {
    let text = expander.process_word(word, env);
    assert_eq!(text, expander.process_word(word, env), "expanded twice with two results");
    let words = expander.process_words(word, env);
    match (&text, &words) {
        (Ok(text), Ok(words)) => {
            assert_eq!((&text.used, &text.unset), (&words.used, &words.unset));
            assert!(words.words.iter().all(|word| !word.is_empty()));
            let without_blanks = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(without_blanks(&text.text), without_blanks(&words.words.concat()));
            for (names, is_set) in [(&text.used, true), (&text.unset, false)] {
                let distinct: std::collections::HashSet<&String> = names.iter().collect();
                assert_eq!(distinct.len(), names.len(), "a name comes twice");
                assert!(names.iter().all(|name| env.iter().any(|(key, _)| key == name) == is_set));
            }
        }
        (text, words) => assert_eq!(text.as_ref().err(), words.as_ref().err()),
    }
    if let Err(error) = text {
        assert_eq!(error.word, word);
        assert!(!error.to_string().is_empty());
    }
    drop(expander.process_display(word, env));
}

fn plain_text_is_the_identity(expander: Expander, word: &str) {
    if word.contains(['$', '\'', '"', expander.escape]) {
        return;
    }
    assert_eq!(expander.process_word(word, &NoVariables).map(|expanded| expanded.text).as_deref(), Ok(word));
    assert_eq!(expander.process_display(word, &NoVariables).map(|expanded| expanded.text).as_deref(), Ok(word));
    let words = expander.process_words(word, &NoVariables).map(|expanded| expanded.words);
    assert_eq!(words, Ok(word.split_whitespace().map(str::to_owned).collect()));
}

/// Quoted, escaped or out of a variable: any text comes back as it was.
fn quoting_protects(expander: Expander, text: &str, env: &Variables<'_>) {
    let escaped: String = text.chars().flat_map(|c| [expander.escape, c]).collect();
    let mut forms = vec![escaped, "$x".to_owned(), "${x}".to_owned(), "\"$x\"".to_owned(), "${x:-}".to_owned()];
    if !text.contains('\'') {
        forms.push(format!("'{text}'"));
    }
    for form in &forms {
        let expanded = expander.process_word(form, env).map(|expanded| expanded.text);
        assert_eq!(expanded.as_deref(), Ok(text), "{form}");
    }
}

/// Whether `${x#pattern}` and `${x/pattern/}` take `pattern` as it is, and whether the definition is quick enough to check against.
fn is_plain_pattern(pattern: &str) -> bool {
    (1..=100).contains(&pattern.len()) && !pattern.contains(['$', '\'', '"', '\\', '`', '{', '}', '/', '#', '%'])
}

fn trimming_follows_the_definition(expander: Expander, value: &str, pattern: &str) {
    let chars: Vec<char> = value.chars().take(100).collect();
    let atoms: Vec<char> = pattern.chars().collect();
    let env = vec![("v", chars.iter().collect::<String>())];
    let expand = |word: String| expander.process_word(&word, &env).map(|expanded| expanded.text);
    let from_start = |end: &usize| matches(&atoms, &chars[..*end]);
    let to_end = |start: &usize| matches(&atoms, &chars[*start..]);
    let behind = |end: Option<usize>| chars[end.unwrap_or(0)..].iter().collect::<String>();
    let before = |start: Option<usize>| chars[..start.unwrap_or(chars.len())].iter().collect::<String>();
    let positions = || 0..=chars.len();
    assert_eq!(expand(format!("${{v#{pattern}}}")), Ok(behind(positions().find(from_start))));
    assert_eq!(expand(format!("${{v##{pattern}}}")), Ok(behind(positions().rev().find(from_start))));
    assert_eq!(expand(format!("${{v%{pattern}}}")), Ok(before(positions().rev().find(to_end))));
    assert_eq!(expand(format!("${{v%%{pattern}}}")), Ok(before(positions().find(to_end))));
    // The leftmost and there the longest match is replaced.
    let first = positions().find_map(|start| {
        let end = (start..=chars.len()).rev().find(|end| matches(&atoms, &chars[start..*end]))?;
        Some(before(Some(start)) + "<>" + &behind(Some(end)))
    });
    assert_eq!(expand(format!("${{v/{pattern}/<>}}")), Ok(first.unwrap_or_else(|| behind(None))));
}

/// The definition: whether all of `text` matches, `*` any text and `?` one character.
fn matches(atoms: &[char], text: &[char]) -> bool {
    // Whether the atoms so far match the first characters, by their number.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for atom in atoms {
        if *atom == '*' {
            let first = reached.iter().position(|is_reached| *is_reached).unwrap_or(reached.len());
            reached[first..].fill(true);
        } else {
            for at in (0..text.len()).rev() {
                reached[at + 1] = reached[at] && (*atom == '?' || *atom == text[at]);
            }
            reached[0] = false;
        }
    }
    reached[text.len()]
}
