//! The ignore file of the main context, as far as a plan looks at it. Spec: `spec/dockerfile.md` §5, §7.1 (CopyIgnoredFile).

use parser::pattern::Patterns;

use super::error::PlanError;
use super::paths;
use super::request::IgnoreFile;

/// Which sources of COPY an ignore file hides for certain.
#[derive(Debug)]
pub(super) struct Ignored {
    patterns: Patterns,
    hides_everything: bool,
}

impl Ignored {
    /// `None` when nothing can be said: with exceptions, a directory that is hidden may still have visible files.
    ///
    /// # Errors
    /// A malformed pattern.
    pub(super) fn read(file: &IgnoreFile) -> Result<Option<Self>, PlanError> {
        let patterns = Patterns::parse_ignore_file(&file.text).map_err(|error| {
            let line = match &error {
                parser::pattern::PatternError::EmptyException { line_1based } => line_1based,
                parser::pattern::PatternError::Syntax { line_1based, .. } => line_1based,
            };
            PlanError::input(error.to_string()).help(format!("see line {line} of {}", file.name))
        })?;
        let is_everything = |text: &str| matches!(text, "*" | "**" | "**/*");
        let hides_everything = patterns.patterns().iter().any(|pattern| is_everything(&pattern.text));
        Ok((!patterns.has_exclusions()).then_some(Self { patterns, hides_everything }))
    }

    /// Whether a source as written is hidden, by itself or with a parent.
    pub(super) fn hides(&self, source: &str) -> bool {
        match paths::clean(source).strip_prefix('/') {
            Some("") | None => self.hides_everything,
            Some(path) => self.patterns.matches_or_parent_matches(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_hidden_for_certain_counts() {
        let read = |text: &str| {
            let file = IgnoreFile { name: ".dockerignore".to_owned(), text: text.as_bytes().to_vec() };
            Ignored::read(&file).expect("well formed")
        };
        let some = read("a.txt\nsub\n").expect("no exceptions");
        for (source, hidden) in [("a.txt", true), ("/sub/b", true), ("keep", false), (".", false), ("*.txt", false)] {
            assert_eq!(some.hides(source), hidden, "{source}");
        }
        let all = read("**\n").expect("no exceptions");
        assert!(all.hides(".") && all.hides("/") && all.hides("x"));
        assert!(read("*\n!keep\n").is_none());
    }

    #[test]
    fn malformed_patterns_name_their_line() {
        let file = IgnoreFile { name: "x.dockerignore".to_owned(), text: b"ok\n[\n".to_vec() };
        let fault = Ignored::read(&file).expect_err("malformed");
        assert_eq!(fault.message, "syntax error in pattern");
        assert_eq!(fault.help, ["see line 2 of x.dockerignore"]);
    }
}
