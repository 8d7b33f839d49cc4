//! Says in words why a step was not found in the cache: how the ingredients of two keys differ, and what else there is.
//!
//! Pure: lists of ingredients and of files come in, [`Change`]s and sentences come out. Who an earlier state is compared
//! with is decided by [`crate::schedule`].

mod between;
mod change;
mod files;
mod words;

pub(crate) use between::file_list;
pub use between::{StepPair, between};
pub use change::{Around, Change, What, changes, is_differing};
pub use files::{MOST_FILES, Place, file_changes};
pub use words::{ago, brief, full, sentence};

use serde::{Deserialize, Serialize};

/// Why a step was performed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Cause {
    /// No earlier build had the step.
    First,
    /// The user wants it performed.
    Ignored {
        /// The flag that says so.
        by: String,
    },
    /// The last build of the same step failed, and left no result.
    Failed,
    /// The last build of the same step was stopped.
    Stopped,
    /// Its result was removed from the store.
    Evicted {
        /// How long before the build.
        seconds_ago: u64,
    },
    /// The index of the store was lost, and what it knew with it.
    IndexLost {
        /// How long before the build.
        seconds_ago: u64,
    },
    /// Its result has gone from the store in some other way: files were deleted, or did not survive a power cut.
    Gone,
    /// Something is another than in the last build.
    Changed {
        /// What; the most telling ones first.
        changes: Vec<Change>,
    },
    /// Everything known is as it was, but keys are made in another way now.
    OtherVersion,
    /// The store cannot answer.
    Unreadable {
        /// What it says.
        reason: String,
    },
}

impl Cause {
    /// In half a line.
    pub fn brief(&self) -> String {
        match self {
            Self::First => "first build of this step".to_owned(),
            Self::Ignored { by } if by.is_empty() => "the cache is ignored".to_owned(),
            Self::Ignored { by } => format!("the cache is ignored ({by})"),
            Self::Failed => "it failed in the last build".to_owned(),
            Self::Stopped => "it was stopped in the last build".to_owned(),
            Self::Evicted { seconds_ago } => format!("evicted {}", ago(*seconds_ago)),
            Self::IndexLost { seconds_ago } => format!("the index of the store was lost {}", ago(*seconds_ago)),
            Self::Gone => "its result has gone from the store".to_owned(),
            Self::Changed { changes } => brief(changes),
            Self::OtherVersion => "its result was recorded by another version of rbuild".to_owned(),
            Self::Unreadable { reason } => format!("the cache cannot be read: {reason}"),
        }
    }

    /// What is behind it all, in half a line: of a step that follows from another, the reason of that one.
    pub fn root(&self) -> String {
        match self {
            Self::Changed { changes } => match changes.first() {
                Some(Change { because: Some(because), .. }) => because.clone(),
                _ => brief(changes),
            },
            other => other.brief(),
        }
    }

    /// In full, one fact a line without line ends.
    pub fn full(&self) -> Vec<String> {
        match self {
            Self::Changed { changes } => full(changes),
            other => vec![other.brief()],
        }
    }

    /// Whether it names what happened, and is not what is said when nothing is known.
    pub fn is_named(&self) -> bool {
        match self {
            Self::OtherVersion | Self::Unreadable { .. } => false,
            Self::Changed { changes } => changes.iter().any(|change| change.what != What::Unknown),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
