//! What can go wrong with a context.

use std::path::{Path, PathBuf};

use solver::OpError;
use solver::plan::quote;

use super::RuleAt;
use super::source::{Source, SourceDir};
use crate::view::{ViewError, normal_components};

/// Why a context (or another source of a copy) could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A directory, link or file could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file was written to while the build read it.
    #[error("`{}` changed while it was read", path.display())]
    Changed {
        /// The path in the context.
        path: PathBuf,
    },
    /// A source without wildcards does not exist.
    #[error("failed to compute cache key: failed to calculate checksum of ref {label}: {}: not found", quote(path))]
    NotFound {
        /// What was searched: the name of a context, or `root`.
        label: String,
        /// Absolute cleaned path.
        path: String,
        /// What may help.
        help: Vec<String>,
    },
    /// A wildcard source that is no pattern, in the words of BuildKit's context transfer.
    #[error("rpc error: code = Unknown desc = invalid includepatterns: [{pattern}]: syntax error in pattern")]
    BadPattern {
        /// The pattern without its leading slash.
        pattern: String,
    },
    /// `--exclude` or `--parents` with something that is no pattern.
    #[error("invalid pattern `{pattern}`: {reason}")]
    BadFilter {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
}

impl From<ContextError> for OpError {
    fn from(error: ContextError) -> Self {
        let message = error.to_string();
        match error {
            ContextError::View(error) => error.into(),
            ContextError::Changed { .. } => {
                Self::input(message).help("let nothing write to the context while it is built, or ignore the file")
            }
            ContextError::NotFound { help, path, .. } => {
                let error = Self::input(message).about(path.trim_start_matches('/'));
                help.into_iter().fold(error, Self::help)
            }
            ContextError::BadPattern { .. } | ContextError::BadFilter { .. } => Self::input(message),
        }
    }
}

/// The error of a literal path without anything there, with whatever explains it.
///
/// Spec: `spec/dockerfile.md` §2.15 ("Existence").
pub(super) fn not_found(source: &Source, path: &str) -> ContextError {
    // Hints are best effort: a second error while explaining the first would only hide it.
    let help = hints(source, Path::new(path)).unwrap_or_default();
    ContextError::NotFound { label: source.label().to_owned(), path: path.to_owned(), help }
}

fn hints(source: &Source, path: &Path) -> super::Result<Vec<String>> {
    let mut help = Vec::new();
    if let Source::Context(context) = source {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let looked_for = context.root_path().join(relative);
        if let Some(RuleAt { pattern, file, line_1based, hides: true }) = context.rules().decided_by(relative)
            && looked_for.symlink_metadata().is_ok()
        {
            let name = relative.display();
            help.push(format!("`{name}` exists, but `{pattern}` in {file}:{line_1based} hides it"));
            return Ok(help);
        }
        help.push(format!("looked for `{}`", looked_for.display()));
    }
    let Some(root) = source.root()? else {
        help.push("nothing is there to copy from: a Dockerfile on standard input comes without files".to_owned());
        help.push("`rbuild -f - DIR` takes the Dockerfile from standard input and files from DIR".to_owned());
        return Ok(help);
    };
    if let Some(near) = nearest(root, path)? {
        help.push(format!("did you mean `{}`?", near.display()));
    }
    Ok(help)
}

/// The name nearest to the first missing component, as a path; `None` when none is near.
fn nearest(root: SourceDir, path: &Path) -> super::Result<Option<PathBuf>> {
    let mut dir = root;
    let names = normal_components(path);
    for (idx, name) in names.iter().enumerate() {
        if let Some(child) = dir.child_dir(name)? {
            dir = child;
            continue;
        }
        let wanted = name.to_string_lossy();
        let candidates = dir.entries()?;
        let best = candidates
            .iter()
            .map(|entry| (strsim::osa_distance(&wanted, &entry.name.to_string_lossy()), &entry.name))
            .filter(|(distance, _)| (1..=(wanted.chars().count() / 3).clamp(1, 3)).contains(distance))
            .min();
        let Some((_, best)) = best else { return Ok(None) };
        return Ok(Some(names[..idx].iter().chain([best]).chain(&names[idx + 1..]).collect()));
    }
    Ok(None)
}
