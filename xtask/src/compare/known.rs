//! `testdata/compare/known.toml`: the differences that stay, each with its reason.

use anyhow::{Context, Result, bail};
use e2e::case::Case;
use serde::Deserialize;

use super::differences::Difference;
use crate::process::workspace;

/// The list.
pub(crate) struct Known {
    entries: Vec<Entry>,
}

/// Differences with one reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The cases' name; in this and the next three, `*` stands for any text.
    case: String,
    /// Where in the image.
    at: String,
    /// What rbuild's image has there.
    #[serde(default = "anything")]
    ours: String,
    /// What the engine's image has there.
    #[serde(default = "anything")]
    theirs: String,
    /// Why it stays.
    reason: String,
    /// Beginnings of the versions of engines that differ; none for all engines.
    #[serde(default)]
    engines: Vec<String>,
    /// Whether the difference need not be there each time.
    #[serde(default)]
    sometimes: bool,
    #[serde(skip)]
    is_used: bool,
}

fn anything() -> String {
    "*".to_owned()
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    known: Vec<Entry>,
}

impl Known {
    /// The entries for the engine of this version.
    pub(crate) fn read(version: &str) -> Result<Self> {
        let path = workspace().join("testdata/compare/known.toml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut entries = toml::from_str::<Document>(&text).with_context(|| path.display().to_string())?.known;
        if let Some(entry) = entries.iter().find(|entry| entry.reason.trim().is_empty()) {
            bail!("{}: {} at {} has no reason", path.display(), entry.case, entry.at);
        }
        entries
            .retain(|entry| entry.engines.is_empty() || entry.engines.iter().any(|start| version.starts_with(start)));
        Ok(Self { entries })
    }

    /// Fails for an entry that is about no case. The golden cases need not be there.
    pub(crate) fn check_cases(&self, cases: &[Case]) -> Result<()> {
        let has_goldens = cases.iter().any(|case| case.name.starts_with("goldens/"));
        for entry in self.entries.iter().filter(|entry| has_goldens || !entry.case.starts_with("goldens/")) {
            if !cases.iter().any(|case| matches(&entry.case, &case.name)) {
                bail!("known.toml lists {}, but there is no such case", entry.case);
            }
        }
        Ok(())
    }

    /// Whether the list has this difference.
    pub(crate) fn explains(&mut self, case: &str, difference: &Difference) -> bool {
        let matching = self.entries.iter_mut().filter(|entry| {
            matches(&entry.case, case)
                && matches(&entry.at, &difference.place)
                && matches(&entry.ours, &difference.ours)
                && matches(&entry.theirs, &difference.theirs)
        });
        matching.map(|entry| entry.is_used = true).count() > 0
    }

    /// The entries that explained nothing, though every case they are about was among those that `ran`.
    pub(crate) fn idle(&self, all: &[Case], ran: &[Case]) -> Vec<String> {
        let is_judged = |entry: &Entry| {
            let mut about = all.iter().filter(|case| matches(&entry.case, &case.name));
            about.all(|case| ran.iter().any(|ran| ran.name == case.name))
        };
        let idle = self.entries.iter().filter(|entry| !entry.is_used && !entry.sometimes && is_judged(entry));
        idle.map(|entry| format!("{} at {}", entry.case, entry.at)).collect()
    }
}

/// Whether `text` is as `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*a", "a", false),
            ("/*/x mode", "/b/c/x mode", true),
            ("*b*b*", "ab", false),
            ("*b*b*", "abcb", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
