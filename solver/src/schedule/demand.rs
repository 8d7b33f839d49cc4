//! What a set of targets asks of each vertex. Computed once, from the graph alone.

use crate::graph::{Graph, Input, VertexId};
use crate::op::Op;

use super::TargetUse;

/// What is asked of one vertex.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// A target depends on it. The other fields are false where this one is.
    pub(super) needed: bool,
    /// A later step looks into its layer: runs on it, copies or mounts from it, or writes files on top of it (which
    /// asks where paths lead; a tar that has to be unpacked for that had better been a tree at once).
    pub(super) tree: bool,
    /// Its layer is one of a target's.
    pub(super) exported: bool,
}

/// One [`Demand`] for every vertex, by index.
pub(super) fn demands(graph: &Graph, targets: &[Input], purpose: TargetUse) -> Vec<Demand> {
    let n_vertices = graph.ids().map(|id| id.index() + 1).max().unwrap_or(0);
    let mut demands = vec![Demand::default(); n_vertices];
    let wanted: Vec<VertexId> = targets.iter().copied().filter_map(vertex_of).collect();
    spread(graph, &wanted, &mut demands, |demand| &mut demand.needed, |graph, id| inputs(graph, id).collect());
    let mut looked_into: Vec<VertexId> =
        graph.ids().filter(|id| demands[id.index()].needed).flat_map(|id| looks_into(graph, id)).collect();
    match purpose {
        TargetUse::Export => spread(graph, &wanted, &mut demands, |demand| &mut demand.exported, below),
        TargetUse::Read => looked_into.extend(wanted),
    }
    spread(graph, &looked_into, &mut demands, |demand| &mut demand.tree, below);
    demands
}

/// The vertices whose results make up an input, as an iterator.
pub(super) fn inputs(graph: &Graph, id: VertexId) -> impl Iterator<Item = VertexId> {
    graph.vertex(id).inputs.iter().copied().filter_map(vertex_of)
}

fn vertex_of(input: Input) -> Option<VertexId> {
    match input {
        Input::Scratch => None,
        Input::Vertex(id) => Some(id),
    }
}

/// Marks `start` and everything that `next` leads to. Every vertex is visited once.
fn spread(
    graph: &Graph,
    start: &[VertexId],
    demands: &mut [Demand],
    mark: fn(&mut Demand) -> &mut bool,
    next: fn(&Graph, VertexId) -> Vec<VertexId>,
) {
    let mut todo = start.to_vec();
    while let Some(id) = todo.pop() {
        if !std::mem::replace(mark(&mut demands[id.index()]), true) {
            todo.extend(next(graph, id));
        }
    }
}

/// The vertices whose layers lie directly below (or, for a merge, make up) the result of `id`.
fn below(graph: &Graph, id: VertexId) -> Vec<VertexId> {
    let vertex = graph.vertex(id);
    match *vertex.op {
        Op::Run(_) | Op::File(_) => vertex.inputs.first().copied().and_then(vertex_of).into_iter().collect(),
        Op::Merge => inputs(graph, id).collect(),
        Op::Image(_) | Op::Local(_) | Op::Http(_) | Op::Git(_) => Vec::new(),
    }
}

/// The vertices whose results `id` looks into: all inputs of what runs or writes files.
fn looks_into(graph: &Graph, id: VertexId) -> Vec<VertexId> {
    match *graph.vertex(id).op {
        Op::Run(_) | Op::File(_) => inputs(graph, id).collect(),
        Op::Merge | Op::Image(_) | Op::Local(_) | Op::Http(_) | Op::Git(_) => Vec::new(),
    }
}
