//! Layers between their forms: tree → tar, tar → tree, tar → blobs, and
//! the digest of a tree's content.
//!
//! A *tree* is a directory in overlayfs' own format. Everything here works relative to directory handles, one path
//! component at a time, because trees and tars may come from strangers. Knows nothing of steps or sandboxes. What lies
//! below a layer is asked through [`LowerView`].

pub mod lower;

pub use lower::{LowerMeta, LowerView, NothingBelow};
