//! Random graphs against a sequential reference. A failing case prints its seed and its smallest form.

use std::collections::BTreeSet;

use cache::ContentDigest;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::graph::{Graph, Input, ResultRef};

use super::toy::{Bench, compute, contents, run};

/// One vertex: its command, and from where among the earlier ones its root and its mounts are taken.
#[derive(Clone, Debug)]
struct Plan {
    command: &'static str,
    tag: u8,
    root: Option<prop::sample::Index>,
    mounts: Vec<prop::sample::Index>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let index = any::<prop::sample::Index>;
    // Few tags, so that different vertices come to the same key.
    let command = prop_oneof![3 => Just("make"), 1 => Just("same")];
    (command, 0..4u8, proptest::option::of(index()), vec(index(), 0..3)).prop_map(|(command, tag, root, mounts)| Plan {
        command,
        tag,
        root,
        mounts,
    })
}

/// The graph, and for every vertex what the layers of its result must contain.
fn build(plans: &[Plan]) -> (Graph, Vec<Input>, Vec<Vec<ContentDigest>>) {
    let mut graph = Graph::default();
    let mut vertices: Vec<Input> = Vec::new();
    let mut results: Vec<Vec<ContentDigest>> = Vec::new();
    for plan in plans {
        let pick = |index: &prop::sample::Index| match vertices.len() {
            0 => (Input::Scratch, Vec::new()),
            n => (vertices[index.index(n)], results[index.index(n)].clone()),
        };
        let (root, below) = plan.root.as_ref().map_or((Input::Scratch, Vec::new()), pick);
        let mounted: Vec<_> = plan.mounts.iter().map(pick).collect();
        let args = format!("{} {}", plan.command, plan.tag);
        let words: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let inputs: Vec<_> =
            [below.clone()].into_iter().chain(mounted.iter().map(|(_, result)| result.clone())).collect();
        let mounts: Vec<_> = mounted.iter().map(|(input, _)| (*input, "/")).collect();
        vertices.push(run(&mut graph, &args, root, &mounts));
        results.push(below.into_iter().chain([compute(&words, &inputs)]).collect());
    }
    (graph, vertices, results)
}

fn needed(graph: &Graph, target: Input, seen: &mut BTreeSet<usize>) {
    if let Input::Vertex(id) = target
        && seen.insert(id.index())
    {
        graph.vertex(id).inputs.iter().for_each(|&input| needed(graph, input, seen));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_graph_gives_what_a_sequential_run_gives(
        plans in vec(plan(), 1..24),
        wanted in vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let (graph, vertices, expected) = build(&plans);
        let wanted: Vec<usize> = wanted.iter().map(|index| index.index(vertices.len())).collect();
        let targets: Vec<Input> = wanted.iter().map(|&idx| vertices[idx]).collect();
        let mut shown = BTreeSet::new();
        targets.iter().for_each(|&target| needed(&graph, target, &mut shown));

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let bench = Bench::new();
        let mut n_calls = None;
        for _ in 0..2 {
            let solved = runtime.block_on(bench.solve(&graph, &targets));
            let results = solved.result.expect("toys do not fail");
            for (result, &idx) in results.iter().zip(&wanted) {
                let ResultRef::Root(chain) = result else { panic!("toys make roots") };
                prop_assert_eq!(&contents(chain), &expected[idx]);
            }
            prop_assert_eq!(solved.outcomes.len(), shown.len(), "each needed vertex is shown once");
            prop_assert!(bench.toy.most_calls() <= 1, "nothing is performed twice");
            // The second round finds everything.
            prop_assert_eq!(bench.toy.n_calls(), *n_calls.get_or_insert(bench.toy.n_calls()));
        }
    }

    #[test]
    fn any_graph_is_performed_once_by_all_processes_together(plans in vec(plan(), 1..16)) {
        let (graph, vertices, expected) = build(&plans);
        let targets = [*vertices.last().unwrap()];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let (alone, ours) = (Bench::new(), Bench::new());
        let theirs = ours.neighbour();
        runtime.block_on(alone.solve(&graph, &targets));
        let (a, b) = runtime.block_on(async { tokio::join!(ours.solve(&graph, &targets), theirs.solve(&graph, &targets)) });
        prop_assert_eq!(&a.contents(), expected.last().unwrap());
        prop_assert_eq!(a.contents(), b.contents());
        prop_assert_eq!(ours.toy.n_calls() + theirs.toy.n_calls(), alone.toy.n_calls());
    }
}
