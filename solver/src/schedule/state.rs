//! The states of vertices, and the one function that changes them.

use crate::graph::VertexId;

/// What is known about a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: results of its inputs are missing.
    Initial,
    /// The results of its inputs are known, hence its definition key, which is being looked up.
    CacheFast,
    /// Its definition key led nowhere, or there is none (files of the client, sources that can change). What it takes
    /// is being read or asked for, and its content key looked up; or, where no look-up can succeed, it is performed
    /// before that key is made ([`super::ahead`]).
    CacheSlow,
    /// No key led to a record. It is being performed, or waits for an equal step that is.
    Performing,
    /// Its result is known.
    Complete,
}

impl State {
    const COUNT: usize = 5;

    fn can_precede(self, next: Self) -> bool {
        use State::{CacheFast, CacheSlow, Complete, Initial, Performing};
        match (self, next) {
            (Initial, CacheFast | CacheSlow) => true,
            (CacheFast, CacheSlow | Performing | Complete) => true,
            (CacheSlow, Performing | Complete) => true,
            (Performing, Complete) => true,
            (Initial, Initial | Performing | Complete) => false,
            (CacheFast, Initial | CacheFast) => false,
            (CacheSlow, Initial | CacheFast | CacheSlow) => false,
            (Performing, Initial | CacheFast | CacheSlow | Performing) => false,
            (Complete, _) => false,
        }
    }
}

/// The state of every vertex of a graph, with tallies.
#[derive(Debug)]
pub(super) struct States {
    of: Vec<State>,
    tally: [usize; State::COUNT],
}

impl States {
    /// `n_vertices` vertices about which nothing is known.
    pub(super) fn new(n_vertices: usize) -> Self {
        let mut tally = [0; State::COUNT];
        tally[State::Initial as usize] = n_vertices;
        Self { of: vec![State::Initial; n_vertices], tally }
    }

    /// The state of a vertex.
    pub(super) fn of(&self, id: VertexId) -> State {
        self.of[id.index()]
    }

    /// How many vertices are in `state`.
    #[cfg(test)]
    pub(super) fn count(&self, state: State) -> usize {
        self.tally[state as usize]
    }

    /// Every change of a vertex's state passes here, so the tallies cannot disagree with it.
    pub(super) fn advance(&mut self, id: VertexId, to: State) {
        let from = self.of[id.index()];
        debug_assert!(from.can_precede(to), "{id:?}: {from:?} -> {to:?}");
        self.of[id.index()] = to;
        self.tally[from as usize] -= 1;
        self.tally[to as usize] += 1;
    }

    /// Panics when the tallies and the states disagree.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let mut tally = [0; State::COUNT];
        self.of.iter().for_each(|&state| tally[state as usize] += 1);
        assert_eq!(tally, self.tally);
    }
}
