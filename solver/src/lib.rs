//! Lowers Dockerfiles to a graph of operations and runs that graph: plan, keys, schedule, explanations.
//!
//! Knows nothing of tar, overlayfs, namespaces, HTTP or terminals. Read [`op`] first (the closed set of operations),
//! then [`graph`], then [`traits`] (what others must do for us).
#![forbid(unsafe_code)]

pub mod error;
pub mod explain;
pub mod graph;
pub mod key;
pub mod notes;
pub mod op;
pub mod plan;
pub mod progress;
pub mod record;
pub mod schedule;
pub mod traits;

pub use error::{OpError, Tier};
pub use graph::{Chain, Graph, Input, Location, ResultRef, Vertex, VertexId, VertexMeta};
pub use notes::Notes;
pub use op::*;
pub use progress::{Event, Outcome, Progress, Step, StepId, Stream};
pub use schedule::{SolveContext, SolveError, TargetUse, solve};
pub use traits::{
    Executor, FoundDevice, Imported, OciLayout, Origin, RemoteCaches, ResolvedImage, Resolver, SettledResult, Work,
};
