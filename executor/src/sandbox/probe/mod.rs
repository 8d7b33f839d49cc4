//! What this machine offers for running commands: facts for `rbuild doctor`, found by trying where that is possible.
//!
//! Read [`tiers`] first: it has to be asked before [`super::confine`] changes what this process may do.

mod cgroups;
mod emulators;
mod kernel;
mod overlay;
mod tiers;

pub use cgroups::{CgroupFacts, CgroupLayout, cgroup_facts};
pub use emulators::{Emulator, emulators, own_handlers_are_possible};
pub use kernel::{Feature, KernelFacts, kernel_facts};
pub use overlay::{OverlayFacts, try_overlay};
pub use tiers::{TierFact, tiers};
