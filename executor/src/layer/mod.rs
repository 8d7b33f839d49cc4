//! Layers between their forms: tree → tar ([`write_tree`]), tar → blobs ([`LayerSink`]), tar → tree ([`unpack()`]), and
//! the digest of what a layer contains ([`content_digest`]).
//!
//! A *tree* is a directory in overlayfs' own format: a character device 0/0 deletes the name below it, and a directory whose
//! `trusted.overlay.opaque` (or `user.overlay.opaque`) is `y` hides the directory below. Everything here works relative to
//! directory handles, one path component at a time, because trees and tars may come from strangers. What lies below a layer
//! is asked through [`LowerView`]. Knows nothing of steps or sandboxes.

mod content;
mod dir;
mod error;
pub(crate) mod estargz;
mod fix_up;
pub mod lower;
mod pack;
#[cfg(test)]
pub(crate) mod testing;
mod tree_tar;
mod unchanged;
mod unpack;
mod untouched;
mod verify;
mod walk;

pub use content::{CONTEXT as CONTENT_DOMAIN, ContentFacts, ContentHasher, content_digest};
pub use error::{Result, TreeError};
pub use fix_up::fix_up;
pub use lower::{LowerMeta, LowerView, NothingBelow};
pub use pack::{LayerSink, Onlooker, Onlookers, PackOptions, Packed, media_type_of};
pub use tree_tar::write_tree;
pub use unchanged::drop_unchanged;
pub(crate) use unchanged::is_same;
pub use unpack::{DeferredLink, OverlayFlavour, UnpackOptions, Unpacked, unpack};
pub use verify::diff_id_of_tree;
