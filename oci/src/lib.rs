//! OCI in bytes and documents: references, digests, descriptors, configs, manifests; the layer codec; the registry client.
//!
//! Knows nothing of Dockerfiles, build graphs or sandboxes. Read [`image`] first, then [`layer`].
#![forbid(unsafe_code)]

pub mod attestation;
pub mod combine;
pub mod digest;
pub mod image;
pub mod layer;
pub mod layout;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod time;

pub use digest::{ChainId, DiffId, Digest, Sha256};
pub use image::{ContainerConfig, Descriptor, Healthcheck, HistoryEntry, ImageConfig, Index, Manifest, RootFs};
pub use platform::{Platform, PlatformError};
pub use reference::{ImageRef, ReferenceError};
