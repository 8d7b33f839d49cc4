//! The registry client: pulls and pushes by the OCI distribution protocol.
//!
//! [`Client`] is the one to read first. It resolves references, reads and writes manifests and blobs, and takes care of
//! tokens, mirrors, redirects, limits and passing failures. It knows nothing of layers or of what is in a blob, keeps
//! nothing on disk, and reads no environment: everything comes in by [`ClientOptions`].
//!
//! [`keep_login`] is for people who log in: it writes docker's `config.json`, which the client only reads.
//!
//! **Invariant:** bytes are never reported as read before their digest has been verified.
//! **Invariant:** credentials and tokens go to the host that asked for them and to its token server, nowhere else; no
//! error, log line or `Debug` output holds one.
//!
//! Spec: `spec/engine.md` §4.2 and §4.3; OCI distribution-spec 1.1.

mod ahead;
mod auth;
mod blob;
mod challenge;
mod client;
mod config;
mod credentials;
mod error;
mod examine;
mod hosts;
mod login;
mod manifest;
mod options;
mod part;
mod push;
mod scopes;
mod select;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod transport;
mod upload;

pub use ahead::Ahead;
pub use blob::{BlobSink, ChannelSink};
pub use client::{Client, Notice, Observer};
pub use config::ConfigFiles;
pub use credentials::AuthConfig;
pub use error::{Attempt, Operation, RegistryError};
pub use examine::{CredentialFacts, Explanation, HostFacts, Ping};
pub use login::{KeptLogin, Login, LoginError, forget_login, keep_login};
pub use manifest::{MAX_MANIFEST_SIZE, Resolved};
pub use options::{ClientOptions, Proxies, RetryPolicy};
pub use push::{BlobReader, Pushed};
pub use select::{image_platforms, select_platform};
pub use tls::install_crypto_provider;
