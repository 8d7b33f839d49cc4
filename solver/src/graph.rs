//! The build graph and what its vertices yield.

use std::sync::Arc;

use cache::Layer;
use oci::Platform;
use petgraph::stable_graph::StableDiGraph;

use crate::op::Op;

/// Index of a vertex in its [`Graph`].
pub type VertexId = petgraph::stable_graph::NodeIndex<u32>;

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// An empty root.
    Scratch,
    /// The result of a vertex.
    Vertex(VertexId),
}

/// An operation with its ordered inputs.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What is done. Counts for the key.
    pub op: Arc<Op>,
    /// Ordered; their *results* count for the key.
    pub inputs: Vec<Input>,
    /// Decoration: never counts for the key (a test edits every field and the key stays).
    pub meta: VertexMeta,
}

/// Decoration of a vertex, outside its identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VertexMeta {
    /// As shown, for instance `[builder 2/4] RUN make`.
    pub name: String,
    /// Where in the Dockerfile it comes from.
    pub location: Option<Location>,
    /// Same step of the same Dockerfile in another build, for explanations: file, stage and instruction number.
    pub slot: String,
    /// Target platform, in multi-platform builds.
    pub platform: Option<Platform>,
    /// `--no-cache` or `--no-cache-filter` applies: do not look the key up (the result is still stored).
    pub ignore_cache: bool,
}

/// Lines of a source file, 1-based and inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// First line of the instruction.
    pub start_line: u32,
    /// Last line, heredoc bodies included.
    pub end_line: u32,
}

/// The build graph: edges lead from a vertex to each of its inputs (parallel edges are possible).
#[derive(Clone, Debug, Default)]
pub struct Graph {
    inner: StableDiGraph<Vertex, (), u32>,
}

impl Graph {
    /// Adds a vertex; an equal one (same op, same inputs, same `ignore_cache`) is shared instead.
    pub fn add(&mut self, vertex: Vertex) -> VertexId {
        let twin = self.inner.node_indices().find(|&id| {
            let other = &self.inner[id];
            other.inputs == vertex.inputs
                && other.op == vertex.op
                && other.meta.ignore_cache == vertex.meta.ignore_cache
        });
        if let Some(id) = twin {
            return id;
        }
        let inputs = vertex.inputs.clone();
        let id = self.inner.add_node(vertex);
        for input in inputs {
            if let Input::Vertex(source) = input {
                self.inner.add_edge(id, source, ());
            }
        }
        id
    }

    /// The vertex behind an id of this graph.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.inner[id]
    }

    /// All ids, in the order in which they were added (inputs before users).
    pub fn ids(&self) -> impl Iterator<Item = VertexId> + '_ {
        self.inner.node_indices()
    }

    /// The petgraph behind it, for walks.
    pub fn inner(&self) -> &StableDiGraph<Vertex, (), u32> {
        &self.inner
    }
}

/// A stack of layers, base layer first. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain(Arc<[Layer]>);

impl Chain {
    /// No layers: an empty root.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A stack; base layer first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self(layers.into())
    }

    /// Base layer first.
    pub fn layers(&self) -> &[Layer] {
        &self.0
    }

    /// This stack with one more layer on top.
    pub fn with(&self, layer: Layer) -> Self {
        Self(self.0.iter().cloned().chain([layer]).collect())
    }

    /// This stack with all layers of `upper` on top.
    pub fn merged(&self, upper: &Self) -> Self {
        Self(self.0.iter().chain(upper.0.iter()).cloned().collect())
    }
}

/// What a vertex yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultRef {
    /// A root file system.
    Root(Chain),
    /// A directory of the client, by the name of its context. Its content counts only as far as it is selected.
    Context(String),
}
