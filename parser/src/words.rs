//! Splitting the rest of a line into words.

/// What separates the words of a command line: less than what Unicode calls white space.
fn is_separator(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// The first word and what follows the blanks behind it.
pub(crate) fn split_keyword(text: &str) -> (&str, &str) {
    match text.split_once(is_separator) {
        Some((keyword, rest)) => (keyword, rest.trim_start_matches(is_separator)),
        None => (text, ""),
    }
}

/// Splits at blanks, without quoting.
pub(crate) fn split_blanks(text: &str) -> Vec<String> {
    text.split(is_separator).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Splits at blanks that are neither quoted nor escaped. Quotes and escapes stay in the words, for the expansion engine
/// to remove; an escape at the very end is dropped. A quote that is not closed reaches to the end. Spec: §2.4.
pub(crate) fn split_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                words.extend(start.take().map(|start| text[start..at].to_owned()));
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') && chars.next().is_none() {
            let word = &text[start.unwrap_or(at)..at];
            if !word.is_empty() {
                words.push(word.to_owned());
            }
            return words;
        }
        start = start.or(Some(at));
    }
    words.extend(start.map(|start| text[start..].to_owned()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords() {
        let table = [
            ("RUN a  b", ("RUN", "a  b")),
            ("RUN\t \x0b a", ("RUN", "a")),
            ("RUN", ("RUN", "")),
            ("RUN\u{a0}a", ("RUN\u{a0}a", "")),
            ("", ("", "")),
        ];
        for (text, want) in table {
            assert_eq!(split_keyword(text), want, "{text:?}");
        }
    }

    #[test]
    fn words_keep_quotes_and_escapes() {
        let table: &[(&str, &[&str])] = &[
            ("a=1 b=2", &["a=1", "b=2"]),
            ("a=\"b c\" d=e\\ f", &["a=\"b c\"", "d=e\\ f"]),
            ("a=${x:-b c}", &["a=${x:-b", "c}"]),
            ("a='x\\' b", &["a='x\\'", "b"]),
            ("a=\"x\\\" y\" b", &["a=\"x\\\" y\"", "b"]),
            ("a='open b", &["a='open b"]),
            ("a\\", &["a"]),
            ("a=\"b\\", &["a=\"b"]),
            ("'' x", &["''", "x"]),
            ("a\u{a0}b", &["a", "b"]),
            ("", &[]),
        ];
        for (text, want) in table {
            assert_eq!(split_words(text, '\\'), *want, "{text}");
        }
        assert_eq!(split_words("a=x` y b=\\ c", '`'), ["a=x` y", "b=\\", "c"]);
    }
}
