//! Every unsafe kernel call of the project, one thin function each.
//!
//! A function is named after its call, takes typed flags and owned or borrowed descriptors, and says from which kernel
//! on it works. Calls that a safe wrapper crate offers are not repeated here. [`spawn`] is the exception in size: what
//! happens between the start of a child and its `execve` has to be in one place, because it may neither allocate nor
//! take a lock.
#![expect(unsafe_code, reason = "the one place for kernel calls that have no safe wrapper")]

pub mod bpf;
pub mod handlers;
pub mod mount;
pub mod namespace;
pub mod net;
pub mod notify;
pub mod release;
pub mod spawn;
pub mod xattr;
