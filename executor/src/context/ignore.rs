//! The ignore rules of a context: a `.dockerignore` and where it stands.

use std::path::Path;

use solver::plan::patterns::{Patterns, Verdict};

/// Patterns that hide files of a context. Spec: `spec/dockerfile.md` §5.
#[derive(Clone, Debug, Default)]
pub struct IgnoreRules {
    /// In the order of the file; relative to the context.
    pub patterns: Patterns,
    /// What messages call the file, for instance `.dockerignore`.
    pub file: String,
}

/// A rule that decides about a path, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleAt {
    /// As written.
    pub pattern: String,
    /// The file it is in.
    pub file: String,
    /// Its line.
    pub line_1based: u32,
    /// Whether it hides; else it shows again what an earlier one hides.
    pub hides: bool,
}

impl IgnoreRules {
    /// The verdict on `path`, given that on the directory it is in.
    ///
    /// Patterns are text; a name that is none is compared with what it looks like when it is shown.
    pub(super) fn descend(&self, parent: Verdict, path: &Path) -> Verdict {
        self.patterns.descend(parent, &path.to_string_lossy())
    }

    /// Whether something below the hidden directory `path`, whose verdict is given, may be visible.
    pub(super) fn may_show_below(&self, verdict: Verdict, path: &Path) -> bool {
        !self.patterns.excludes_all_below(verdict, &path.to_string_lossy())
    }

    /// The rule that decides about `path` or a directory around it; `None` when no rule matches.
    pub fn decided_by(&self, path: &Path) -> Option<RuleAt> {
        let verdict = self.patterns.decide(&path.to_string_lossy());
        let pattern = self.patterns.patterns().get(verdict.decided_by()?)?;
        Some(RuleAt {
            pattern: pattern.text.clone(),
            file: self.file.clone(),
            line_1based: pattern.line_1based,
            hides: verdict.is_excluded(),
        })
    }
}
