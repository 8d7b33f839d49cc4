//! The build graph and what its vertices yield.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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
    /// Variables of its environment that are build arguments, for explanations.
    pub build_args: Arc<[String]>,
    /// Of an image: which one it is, for explanations: `debian:12@sha256:…`.
    pub base: Option<String>,
    /// What to say besides when it fails through the user's input: facts that only the plan knows.
    pub help: Vec<String>,
}

/// Lines of a source file, 1-based and inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Vertices by a hash of what makes them equal. Only a shortcut: candidates are compared. Never leaves the process.
    twins: HashMap<u64, Vec<VertexId>>,
}

impl Graph {
    /// Adds a vertex; an equal one (same op, same inputs, same `ignore_cache`) is shared instead.
    ///
    /// Costs one hash of the op, whatever the size of the graph.
    pub fn add(&mut self, vertex: Vertex) -> VertexId {
        let candidates = self.twins.entry(identity_hash(&vertex)).or_default();
        let twin = candidates.iter().copied().find(|&id| same_work(&self.inner[id], &vertex));
        if let Some(id) = twin {
            return id;
        }
        let inputs = vertex.inputs.clone();
        let id = self.inner.add_node(vertex);
        candidates.push(id);
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

/// Whether two vertices are one: what [`identity_hash`] hashes, compared.
fn same_work(a: &Vertex, b: &Vertex) -> bool {
    a.inputs == b.inputs && a.op == b.op && a.meta.ignore_cache == b.meta.ignore_cache
}

fn identity_hash(vertex: &Vertex) -> u64 {
    let mut hasher = DefaultHasher::new();
    vertex.op.hash(&mut hasher);
    vertex.inputs.hash(&mut hasher);
    vertex.meta.ignore_cache.hash(&mut hasher);
    hasher.finish()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::LocalOp;

    fn local(name: &str, inputs: &[Input], ignore_cache: bool) -> Vertex {
        Vertex {
            op: Arc::new(Op::Local(LocalOp { name: name.to_owned() })),
            inputs: inputs.to_vec(),
            meta: VertexMeta { ignore_cache, ..VertexMeta::default() },
        }
    }

    #[test]
    fn equal_vertices_are_shared_and_different_ones_are_not() {
        let mut graph = Graph::default();
        let first = graph.add(local("a", &[], false));
        assert_eq!(graph.add(local("a", &[], false)), first);
        let others = [
            graph.add(local("b", &[], false)),
            graph.add(local("a", &[Input::Scratch], false)),
            graph.add(local("a", &[Input::Vertex(first)], false)),
            graph.add(local("a", &[], true)),
        ];
        let distinct: std::collections::BTreeSet<_> = others.into_iter().chain([first]).collect();
        assert_eq!(distinct.len(), 5);
        assert_eq!(graph.ids().count(), 5);
    }

    #[test]
    fn decoration_does_not_tell_vertices_apart() {
        let mut graph = Graph::default();
        let first = graph.add(local("a", &[], false));
        let mut named = local("a", &[], false);
        named.meta.name = "another name".to_owned();
        named.meta.slot = "another slot".to_owned();
        assert_eq!(graph.add(named), first);
    }
}
