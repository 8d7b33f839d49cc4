//! What can go wrong between this program and a registry, as facts.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;

/// What was being done when an error happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asking which manifest a tag names.
    ResolveManifest,
    /// Reading a manifest.
    FetchManifest,
    /// Reading a blob.
    FetchBlob,
    /// Asking whether a blob exists.
    CheckBlob,
    /// Sending a blob.
    UploadBlob,
    /// Sending a manifest.
    PutManifest,
    /// Asking whether we are let in.
    LogIn,
    /// Asking whether it is a registry.
    Ping,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResolveManifest => "resolve manifest",
            Self::FetchManifest => "fetch manifest",
            Self::FetchBlob => "fetch blob",
            Self::CheckBlob => "check blob",
            Self::UploadBlob => "upload blob",
            Self::PutManifest => "put manifest",
            Self::LogIn => "log in",
            Self::Ping => "ask the registry",
        })
    }
}

/// Who was asked for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What was tried.
    pub operation: Operation,
    /// The host that was asked, with port; a mirror's name if a mirror was asked.
    pub host: String,
    /// `registry/repository`, as the user knows it.
    pub repository: String,
    /// The tag or digest; empty when the registry as a whole was asked.
    pub object: String,
}

impl fmt::Display for Attempt {
    /// `docker.io/library/debian:12` or `docker.io/library/debian@sha256:…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object.as_str() {
            "" => f.write_str(&self.repository),
            digest if digest.contains(':') => write!(f, "{}@{digest}", self.repository),
            tag => write!(f, "{}:{tag}", self.repository),
        }
    }
}

/// An error of the registry client.
///
/// Cloneable, because several waiters may share one transfer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The registry does not have it.
    #[error("{attempt}: not found")]
    NotFound {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// The server's words, if it had any.
        message: Option<String>,
    },
    /// The registry, or its token server, does not let us.
    #[error("{}", unauthorized_text(attempt, *had_credentials, message.as_deref(), credentials_error.as_deref()))]
    Unauthorized {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// HTTP status: 401 or 403.
        status: u16,
        /// Whether credentials were sent.
        had_credentials: bool,
        /// The server's words, if it had any.
        message: Option<String>,
        /// Why configured credentials could not be used.
        credentials_error: Option<String>,
    },
    /// Any other status that is no success.
    #[error("{attempt}: cannot {}: {} answered {status}{}", attempt.operation, attempt.host, suffix(message.as_deref()))]
    Status {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// HTTP status.
        status: u16,
        /// The server's words, if it had any.
        message: Option<String>,
    },
    /// No connection could be made, or it broke before an answer came, repeatedly.
    #[error("{attempt}: cannot {}: cannot reach {}: {reason}", attempt.operation, attempt.host)]
    Unreachable {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// What the network said.
        reason: String,
    },
    /// The server's certificate is not trusted, or TLS failed otherwise.
    #[error("{attempt}: cannot {}: no trusted TLS connection to {}: {reason}", attempt.operation, attempt.host)]
    Tls {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// What the TLS library said.
        reason: String,
    },
    /// A transfer broke off, repeatedly and without getting further.
    #[error("{attempt}: transfer broke off after {transferred_bytes} of {total_bytes} bytes: {reason}")]
    Interrupted {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// Bytes that arrived or were sent.
        transferred_bytes: u64,
        /// Bytes of the whole blob.
        total_bytes: u64,
        /// What the network said last.
        reason: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{attempt}: {} sent other content: expected {expected}, got {actual}", attempt.host)]
    DigestMismatch {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The blob is longer or shorter than its descriptor says.
    #[error("{attempt}: {} sent {actual_bytes} bytes, expected {expected_bytes}", attempt.host)]
    SizeMismatch {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// Bytes according to the descriptor.
        expected_bytes: u64,
        /// Bytes that came, or at least came.
        actual_bytes: u64,
    },
    /// A document beyond the limit for its kind.
    #[error("{attempt}: document is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// The limit.
        limit_bytes: u64,
    },
    /// The server's answer breaks the protocol.
    #[error("{attempt}: cannot {}: unusable answer of {}: {reason}", attempt.operation, attempt.host)]
    Protocol {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// What is wrong with it.
        reason: String,
    },
    /// A schema 1 manifest.
    #[error(
        "{attempt}: image uses Docker schema 1, support for which has been removed; push it again with a newer builder"
    )]
    Schema1 {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
    },
    /// The token server's answer cannot be used.
    #[error("{attempt}: cannot get a token from {realm}: {reason}")]
    Token {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// URL of the token server.
        realm: String,
        /// HTTP status, if it was no success.
        status: Option<u16>,
        /// What went wrong.
        reason: String,
    },
    /// The token server could not be reached, repeatedly.
    #[error("{attempt}: cannot get a token: cannot reach {realm}: {reason}")]
    TokenServerUnreachable {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// URL of the token server.
        realm: String,
        /// What the network said.
        reason: String,
    },
    /// Bytes could not be handed on or read on this machine.
    #[error("{attempt}: cannot {} local data: {reason}", if matches!(attempt.operation, Operation::UploadBlob) { "read" } else { "write" })]
    Local {
        /// Who was asked for what.
        attempt: Arc<Attempt>,
        /// What the reader or writer said.
        reason: String,
    },
    /// A file of the configuration (certificate, key) cannot be used.
    #[error("cannot use `{path}`: {reason}")]
    Configuration {
        /// The file, or the setting.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl RegistryError {
    /// Whether the registry answered that it has no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether better credentials could help.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Unauthorized { .. })
    }

    /// Whether a manifest was refused because of blobs that it names (`MANIFEST_BLOB_UNKNOWN`, `BLOB_UNKNOWN`).
    pub(super) fn misses_blobs(&self) -> bool {
        let (Self::Status { attempt, message, .. } | Self::NotFound { attempt, message }) = self else { return false };
        attempt.operation == Operation::PutManifest
            && message.as_deref().is_some_and(|message| message.contains("blob_unknown"))
    }

    /// The text for those who have just said which reference it is about. A reference that was not found stays.
    pub fn without_reference(&self) -> String {
        match self {
            Self::Unreachable { attempt, reason } => format!("cannot reach {}: {reason}", attempt.host),
            Self::TokenServerUnreachable { realm, reason, .. } => {
                format!("cannot get a token: cannot reach {realm}: {reason}")
            }
            Self::Tls { attempt, reason } => format!("no trusted TLS connection to {}: {reason}", attempt.host),
            other => other.to_string(),
        }
    }

    /// Whether the registry could not be talked to at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Tls { .. } | Self::TokenServerUnreachable { .. })
    }

    /// Whether the registry is busy or broken and a later try could help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_transient_status(*status),
            Self::Token { status, .. } => status.is_some_and(is_transient_status),
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::TokenServerUnreachable { .. } => true,
            _ => false,
        }
    }
}

/// Statuses that promise that the same request can succeed later.
pub(super) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 520..=524)
}

fn suffix(message: Option<&str>) -> String {
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

/// For a pull without credentials, registries do not tell "absent" from "private"; neither can we.
fn unauthorized_text(
    attempt: &Attempt,
    had_credentials: bool,
    message: Option<&str>,
    credentials_error: Option<&str>,
) -> String {
    let is_push = matches!(attempt.operation, Operation::UploadBlob | Operation::PutManifest);
    let what = match (is_push, had_credentials) {
        (true, true) => "push access denied for these credentials".to_owned(),
        (true, false) => format!("push access denied, no credentials for {}", attempt.host),
        (false, _) => "pull access denied, repository does not exist or may require authorization".to_owned(),
    };
    let server = message.map(|message| format!(": server message: {message}")).unwrap_or_default();
    let credentials = credentials_error.map(|error| format!(" ({error})")).unwrap_or_default();
    format!("{attempt}: {what}{server}{credentials}")
}

/// Picks the words for people out of an error body: the distribution API's JSON, or short plain text.
pub(super) fn server_message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default, alias = "message", alias = "error_description", alias = "error")]
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    /// Longer texts are pages for browsers, not messages.
    const MAX_TEXT: usize = 200;
    if let Ok(body) = serde_json::from_slice::<Body>(body) {
        let entries: Vec<String> = body
            .errors
            .into_iter()
            .map(|entry| match (entry.code.is_empty(), entry.message.is_empty()) {
                (false, false) => format!("{}: {}", entry.code.to_lowercase(), entry.message),
                (false, true) => entry.code.to_lowercase(),
                _ => entry.message,
            })
            .filter(|text| !text.is_empty())
            .collect();
        return Some(entries.join(", ")).filter(|text| !text.is_empty()).or(body.details);
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let is_message =
        !text.is_empty() && text.len() <= MAX_TEXT && !text.starts_with('<') && !text.contains(char::is_control);
    is_message.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_found_in_any_body() {
        let cases: [(&str, Option<&str>); 8] = [
            (r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}"#, Some("denied: no, x")),
            (r#"{"errors":[{"message":"only words","detail":{"a":1}}]}"#, Some("only words")),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"error":"invalid_grant"}"#, Some("invalid_grant")),
            ("quota exceeded\n", Some("quota exceeded")),
            ("<html><body>502</body></html>", None),
            ("", None),
            ("{}", None),
        ];
        for (body, expected) in cases {
            assert_eq!(server_message(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn messages_name_the_reference() {
        let attempt = Arc::new(Attempt {
            operation: Operation::ResolveManifest,
            host: "r.example".to_owned(),
            repository: "r.example/a".to_owned(),
            object: "1".to_owned(),
        });
        let missing = RegistryError::NotFound { attempt: attempt.clone(), message: None };
        assert_eq!(missing.to_string(), "r.example/a:1: not found");
        assert!(missing.is_not_found() && !missing.is_transient());
        let denied = RegistryError::Unauthorized {
            attempt: attempt.clone(),
            status: 401,
            had_credentials: false,
            message: Some("insufficient_scope".to_owned()),
            credentials_error: None,
        };
        assert_eq!(
            denied.to_string(),
            "r.example/a:1: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope"
        );
        let busy = RegistryError::Status { attempt, status: 503, message: None };
        assert_eq!(busy.to_string(), "r.example/a:1: cannot resolve manifest: r.example answered 503");
        assert!(busy.is_transient() && !busy.is_unreachable());
    }
}
