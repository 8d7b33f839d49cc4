//! Performs operations: the sandbox, file operations, sources and exporters.
//!
//! Implements the traits that `solver` declares. Knows nothing of flags or of the wording of messages.
#![deny(unsafe_code)]

pub mod caches;
pub mod cdi;
pub mod compare;
pub mod context;
pub mod copy_out;
pub mod copy_path;
pub mod emulation;
pub mod engine;
pub mod export;
pub mod fetched;
pub mod files;
pub mod import;
pub mod layer;
pub mod load;
mod owners;
pub mod packer;
pub mod push;
pub mod relay;
pub mod run;
pub mod sandbox;
pub mod seed;
pub mod source;
pub mod sys;
pub mod view;
mod whiteout;
pub mod workers;
