//! What can be wrong with a layer tar or its blob.

use std::io;

/// A fault of a layer tar.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading or writing a stream failed.
    #[error("cannot {operation}{}: {source}", of_path(path))]
    Io {
        /// What was tried, as a verb phrase: `read the layer`, `write the content of`.
        operation: &'static str,
        /// The entry that was at hand; empty when there was none.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The archive breaks the rules of the tar format.
    #[error("malformed layer tar after byte {offset_bytes}: {reason}")]
    Malformed {
        /// Bytes of the archive before the fault.
        offset_bytes: u64,
        /// The rule that is broken.
        reason: String,
    },
    /// The archive ends in the middle of an entry.
    #[error("layer tar is cut off after byte {offset_bytes}")]
    CutOff {
        /// Bytes of the archive that were there.
        offset_bytes: u64,
    },
    /// An entry is of a type that no layer may hold.
    #[error("entry `{path}` of the layer tar has the unsupported type {type_flag:#04x}")]
    UnsupportedType {
        /// The entry.
        path: String,
        /// Its type flag.
        type_flag: u8,
    },
    /// The archive holds more than the caller allows.
    #[error("layer tar has more than {limit} {what}")]
    LimitExceeded {
        /// Of what: `entries`, `bytes`.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The content that was to be written is not as long as its entry says.
    #[error("content of `{path}` ended after {got_bytes} bytes: expected {expected_bytes}")]
    ShortContent {
        /// The entry.
        path: String,
        /// What its header says.
        expected_bytes: u64,
        /// What there was.
        got_bytes: u64,
    },
    /// An entry cannot be expressed as PAX.
    #[error("entry `{path}` cannot be stored in a tar: {reason}")]
    Unwritable {
        /// The entry.
        path: String,
        /// Why.
        reason: &'static str,
    },
}

impl LayerError {
    pub(crate) fn io(operation: &'static str, path: &[u8], source: io::Error) -> Self {
        Self::Io { operation, path: lossy(path), source }
    }
}

/// Bytes of a path as text for a message.
pub(crate) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn of_path(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" `{path}`") }
}
