//! Secrets: fetched when a step wants them, never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use solver::OpError;

/// Larger secrets are refused, as by every client.
pub const MOST_SECRET_BYTES: usize = 500 * 1024;

/// The bytes of a secret. Redacted in `Debug`; there is no `Display` and no serialised form.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Keeps `bytes` from being shown.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for those who pass them on.
    pub(super) fn reveal(&self) -> Arc<[u8]> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(****)")
    }
}

type Provider = Arc<dyn Fn() -> io::Result<Secret> + Send + Sync>;

/// Secrets by id. Cheap to clone.
#[derive(Clone, Default)]
pub struct SecretStore {
    providers: BTreeMap<String, Provider>,
}

impl SecretStore {
    /// Adds a secret that is known already.
    #[must_use]
    pub fn with_value(self, id: &str, secret: Secret) -> Self {
        self.with_provider(id, move || Ok(secret.clone()))
    }

    /// Adds a secret that is read from a file whenever a step wants it.
    #[must_use]
    pub fn with_file(self, id: &str, path: PathBuf) -> Self {
        self.with_provider(id, move || std::fs::read(&path).map(Secret::new))
    }

    /// Adds a secret that `provider` fetches whenever a step wants it; it may block.
    #[must_use]
    pub fn with_provider(
        mut self,
        id: &str,
        provider: impl Fn() -> io::Result<Secret> + Send + Sync + 'static,
    ) -> Self {
        self.providers.insert(id.to_owned(), Arc::new(provider));
        self
    }

    /// Fetches a secret; `None` when there is none of that id and it is not required. Blocks.
    pub(super) fn fetch(&self, id: &str, required: bool) -> Result<Option<Secret>, OpError> {
        let Some(provider) = self.providers.get(id) else {
            return match required {
                true => Err(OpError::input(format!("secret {id}: not found"))
                    .help(format!("pass it with `--secret id={id},src=FILE` or `--secret id={id},env=VARIABLE`"))),
                false => Ok(None),
            };
        };
        let secret = provider().map_err(|error| OpError::environment(format!("cannot read secret {id}: {error}")))?;
        if secret.0.len() > MOST_SECRET_BYTES {
            return Err(OpError::input(format!("secret {id} too big. max size 500KiB")));
        }
        Ok(Some(secret))
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.providers.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let store = SecretStore::default().with_value("token", Secret::new(*b"hunter2"));
        let secret = store.fetch("token", true).unwrap().unwrap();
        assert_eq!(&secret.reveal()[..], b"hunter2");
        let shown = format!("{secret:?} {store:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn missing_and_large_secrets() {
        let store = SecretStore::default().with_value("big", Secret::new(vec![0; MOST_SECRET_BYTES + 1]));
        assert!(store.fetch("nope", false).unwrap().is_none());
        assert_eq!(store.fetch("nope", true).unwrap_err().message, "secret nope: not found");
        assert_eq!(store.fetch("big", false).unwrap_err().message, "secret big too big. max size 500KiB");
    }
}
