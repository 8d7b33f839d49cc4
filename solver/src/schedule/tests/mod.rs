//! Toy operations, call counters and meeting points; never a sleep, never a measured time.

mod elsewhere;
mod random;
mod toy;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use crate::error::{OpError, Tier};
use crate::graph::{Graph, Input, Location, ResultRef, VertexMeta};
use crate::op::{HttpOp, Op};
use crate::progress::Progress;
use crate::schedule::solve;

use toy::{Bench, contents, copy, image, local, meta, plain, run, run_with};

/// A chain of steps on nothing, one for each word.
fn chain(graph: &mut Graph, words: &[&str]) -> Input {
    words.iter().fold(Input::Scratch, |below, word| run(graph, &format!("make {word}"), below, &[]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_solve_executes_nothing() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let target = chain(&mut graph, &["a", "b", "c"]);
    let first = bench.solve(&graph, &[target]).await;
    assert_eq!(first.contents().len(), 3);
    assert_eq!(first.outcome("make c"), "DONE");
    assert_eq!(first.misses["make c"], "first build of this step");
    let second = bench.solve(&graph, &[target]).await;
    assert_eq!(second.contents(), first.contents());
    assert_eq!(second.outcome("make c"), "CACHED");
    assert!(second.misses.is_empty());
    assert_eq!(bench.toy.n_calls(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_needed_is_looked_at() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let wanted = chain(&mut graph, &["a"]);
    run(&mut graph, "fail unwanted", wanted, &[]);
    let solved = bench.solve(&graph, &[wanted, Input::Scratch]).await;
    let results = solved.result.as_ref().expect("the unwanted step is not run");
    assert!(matches!(&results[1], ResultRef::Root(nothing) if nothing.layers().is_empty()));
    assert_eq!(solved.outcomes, [("make a".to_owned(), "DONE".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn independent_steps_run_at_once() {
    let bench = Bench::with_meeting(4);
    let mut graph = Graph::default();
    let targets: Vec<_> = (0..4).map(|n| run(&mut graph, &format!("meet {n}"), Input::Scratch, &[])).collect();
    let solved = bench.solve(&graph, &targets).await;
    assert_eq!(solved.result.expect("all four meet").len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_performed_at_once_than_allowed() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let targets: Vec<_> = (0..12).map(|n| run(&mut graph, &format!("make {n}"), Input::Scratch, &[])).collect();
    let mut context = bench.context(Progress::silent(), &CancellationToken::new());
    context.parallelism = 2;
    solve(&graph, &targets, context).await.expect("nothing fails");
    assert!(bench.toy.most_running() <= 2);
    assert_eq!(bench.toy.n_calls(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_keys_of_different_vertices_are_performed_once() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    // The same bytes on two ways, then the same command on both.
    let (left, right) = ("same x left", "same x right");
    let left = run(&mut graph, left, Input::Scratch, &[]);
    let right = run(&mut graph, right, Input::Scratch, &[]);
    let left = Input::Vertex(run_with(&mut graph, "make y", left, &[], meta("left")));
    let right = Input::Vertex(run_with(&mut graph, "make y", right, &[], meta("right")));
    let solved = bench.solve(&graph, &[left, right]).await;
    let results = solved.result.as_ref().expect("nothing fails");
    let [ResultRef::Root(a), ResultRef::Root(b)] = &results[..] else { panic!("two roots") };
    assert_eq!(contents(a), contents(b));
    assert_eq!(bench.toy.n_calls(), 3);
    let mut ends = [solved.outcome("left"), solved.outcome("right")];
    ends.sort_unstable();
    assert_eq!(ends, ["CACHED", "DONE"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_stop_the_invalidation() {
    let bench = Bench::new();
    let build = |tag: &str| {
        let mut graph = Graph::default();
        let base = run_with(&mut graph, &format!("same x {tag}"), Input::Scratch, &[], meta("base"));
        (run(&mut graph, "make top", Input::Vertex(base), &[]), graph)
    };
    let (target, graph) = build("first");
    bench.solve(&graph, &[target]).await;
    let (target, graph) = build("second");
    let solved = bench.solve(&graph, &[target]).await;
    assert_eq!(solved.outcome("base"), "DONE");
    assert_eq!(solved.misses["base"], "command same x first → same x second");
    assert_eq!(solved.outcome("make top"), "CACHED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_another_stage_count_by_content_when_its_layers_have_changed() {
    let bench = Bench::new();
    let build = |tag: &str, path: &str| {
        let mut graph = Graph::default();
        let stage = chain(&mut graph, &["base", tag]);
        (copy(&mut graph, "COPY", Input::Scratch, stage, path), graph)
    };
    let (target, graph) = build("one", "/base");
    bench.solve(&graph, &[target]).await;
    assert_eq!(bench.toy.n_digests.load(Ordering::SeqCst), 1);
    // Nothing changed: the definition key hits, and no file is read.
    let again = bench.solve(&graph, &[target]).await;
    assert_eq!(again.outcome("COPY"), "CACHED");
    assert_eq!(bench.toy.n_digests.load(Ordering::SeqCst), 1);
    // The stage changed, the copied path did not: the content key hits, and is remembered by definition.
    let (target, graph) = build("two", "/base");
    for _ in 0..2 {
        assert_eq!(bench.solve(&graph, &[target]).await.outcome("COPY"), "CACHED");
        assert_eq!(bench.toy.n_digests.load(Ordering::SeqCst), 2);
    }
    // The copied path has changed too.
    let (target, graph) = build("one", "/all");
    bench.solve(&graph, &[target]).await;
    let (target, graph) = build("two", "/all");
    let changed = bench.solve(&graph, &[target]).await;
    assert_eq!(changed.outcome("COPY"), "DONE");
    assert!(changed.misses["COPY"].starts_with("files of /all changed"), "{}", changed.misses["COPY"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_client_always_count_by_content() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let context = local(&mut graph);
    let target = copy(&mut graph, "COPY", Input::Scratch, context, "/src");
    for (content, outcome) in [(1, "DONE"), (1, "CACHED"), (2, "DONE"), (1, "CACHED")] {
        *bench.toy.context.lock().unwrap() = content;
        assert_eq!(bench.solve(&graph, &[target]).await.outcome("COPY"), outcome);
    }
    assert_eq!(bench.toy.n_calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_made_before_its_key_where_no_key_can_be_found() {
    let bench = Bench::new();
    let graph_of = |name: &str| {
        let mut graph = Graph::default();
        let context = local(&mut graph);
        let target = copy(&mut graph, name, Input::Scratch, context, "/src");
        (graph, target)
    };
    let (graph, target) = graph_of("COPY");
    let first = bench.solve(&graph, &[target]).await;
    assert_eq!((first.outcome("COPY"), first.misses["COPY"].as_str()), ("DONE", "first build of this step"));
    assert_eq!(bench.toy.take_order(), ["perform", "digest"]);
    assert_eq!(bench.solve(&graph, &[target]).await.outcome("COPY"), "CACHED");
    assert_eq!(bench.toy.take_order(), ["digest"]);

    // The same files in another place of another Dockerfile, and then others: a look-up may succeed.
    let (elsewhere, copied) = graph_of("COPY elsewhere");
    assert_eq!(bench.solve(&elsewhere, &[copied]).await.outcome("COPY elsewhere"), "CACHED");
    assert_eq!(bench.toy.take_order(), ["digest"]);
    *bench.toy.context.lock().unwrap() = 2;
    assert_eq!(bench.solve(&elsewhere, &[copied]).await.outcome("COPY elsewhere"), "DONE");
    assert_eq!(bench.toy.take_order(), ["digest", "perform"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_looked_into_is_made_after_its_key() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let context = local(&mut graph);
    let target = copy(&mut graph, "COPY", Input::Scratch, context, "/src");
    bench.solve_to_read(&graph, &[target]).await;
    assert_eq!(bench.toy.take_order(), ["digest", "perform"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_copy_before_the_key_do_so_once() {
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let mut graph = Graph::default();
    let context = local(&mut graph);
    let targets = [copy(&mut graph, "COPY", Input::Scratch, context, "/src")];
    let (ours, theirs) = tokio::join!(bench.solve(&graph, &targets), neighbour.solve(&graph, &targets));
    assert_eq!(ours.contents(), theirs.contents());
    assert_eq!(bench.toy.n_calls() + neighbour.toy.n_calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_are_asked_whether_they_have_changed_unless_their_bytes_are_known() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let http = HttpOp { url: "https://example.com/x".to_owned(), filename: "x".to_owned(), checksum: None };
    let target = plain(&mut graph, "ADD", Op::Http(http.clone()), &[]);
    for (probe, outcome) in [("1", "DONE"), ("1", "CACHED"), ("2", "DONE")] {
        *bench.toy.probe.lock().unwrap() = probe.to_owned();
        assert_eq!(bench.solve(&graph, &[target]).await.outcome("ADD"), outcome);
    }
    assert_eq!(bench.toy.n_probes.load(Ordering::SeqCst), 3);
    let known = HttpOp { checksum: Some(oci::Digest::of(b"x")), ..http };
    let target = plain(&mut graph, "ADD --checksum", Op::Http(known), &[]);
    assert_eq!(bench.solve(&graph, &[target]).await.outcome("ADD --checksum"), "DONE");
    assert_eq!(bench.solve(&graph, &[target]).await.outcome("ADD --checksum"), "CACHED");
    assert_eq!(bench.toy.n_probes.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignoring_the_cache_performs_again_and_remembers() {
    let bench = Bench::new();
    let build = |ignore_cache: bool| {
        let mut graph = Graph::default();
        let meta = VertexMeta { ignore_cache, ..meta("a") };
        let base = Input::Vertex(run_with(&mut graph, "make a", Input::Scratch, &[], meta));
        (run(&mut graph, "make b", base, &[]), graph)
    };
    let (usual, usual_graph) = build(false);
    let (ignoring, ignoring_graph) = build(true);
    bench.solve(&usual_graph, &[usual]).await;
    let solved = bench.solve(&ignoring_graph, &[ignoring]).await;
    assert_eq!(solved.outcome("a"), "DONE");
    assert_eq!(solved.misses["a"], "the cache is ignored");
    assert_eq!(solved.outcome("make b"), "CACHED", "equal bytes stop the invalidation here too");
    assert_eq!(bench.solve(&usual_graph, &[usual]).await.outcome("a"), "CACHED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decoration_never_counts() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let first = run_with(&mut graph, "make a", Input::Scratch, &[], meta("a"));
    bench.solve(&graph, &[Input::Vertex(first)]).await;
    let decorations = [
        VertexMeta { name: "other".to_owned(), ..meta("a") },
        VertexMeta { location: Some(Location { start_line: 1, end_line: 1 }), ..meta("a") },
        VertexMeta { slot: "other".to_owned(), ..meta("a") },
        VertexMeta { platform: Some(oci::Platform::new("linux", "arm64", None)), ..meta("a") },
    ];
    for decoration in decorations {
        let mut graph = Graph::default();
        let target = run_with(&mut graph, "make a", Input::Scratch, &[], decoration);
        bench.solve(&graph, &[Input::Vertex(target)]).await;
        assert_eq!(bench.toy.n_calls(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vertices_without_a_name_are_not_shown() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let target = Input::Vertex(run_with(&mut graph, "fail x", Input::Scratch, &[], VertexMeta::default()));
    let solved = bench.solve(&graph, &[target]).await;
    assert!(solved.outcomes.is_empty());
    let error = solved.result.expect_err("it fails");
    assert_eq!((error.step, error.error), (None, OpError::input("it failed")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_cancels_its_siblings_and_says_where() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let hanging: Vec<_> = (0..3).map(|n| run(&mut graph, &format!("hang {n}"), Input::Scratch, &[])).collect();
    let gate = run(&mut graph, "make gate", Input::Scratch, &[]);
    let failing = run(&mut graph, "fail x", gate, &[]);
    let after = run(&mut graph, "make after", failing, &[]);
    let targets: Vec<_> = hanging.into_iter().chain([after]).collect();
    let solved = bench.solve(&graph, &targets).await;
    let error = solved.result.as_ref().expect_err("it fails");
    assert_eq!(error.error, OpError::input("it failed"));
    assert_eq!(Some(error.name.as_str()), Some("fail x"));
    assert_eq!(error.location, Some(Location { start_line: 7, end_line: 8 }));
    assert!(matches!(failing, Input::Vertex(id) if error.vertex == Some(id)));
    assert_eq!(solved.outcome("fail x"), "it failed");
    assert_eq!(solved.outcome("hang 0"), "CANCELED");
    assert!(solved.outcomes.iter().all(|(name, _)| name != "make after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_made_fails_the_build() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let context = local(&mut graph);
    let target = copy(&mut graph, "COPY missing /", Input::Scratch, context, "/missing");
    let solved = bench.solve(&graph, &[target]).await;
    assert_eq!(solved.outcome("COPY missing /"), "\"/missing\": not found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_leaves_nothing_running_and_nothing_recorded() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let hang = run(&mut graph, "hang x", Input::Scratch, &[]);
    let other = run(&mut graph, "hang y", Input::Scratch, &[]);
    let after = run(&mut graph, "make z", hang, &[(other, "/")]);
    for round in 1..=2 {
        let cancel = CancellationToken::new();
        let stop = async {
            // Both have begun to hang.
            bench.toy.hanging.acquire_many(2).await.expect("never closed").forget();
            cancel.cancel();
        };
        let targets = [after];
        let (solved, ()) = tokio::join!(bench.solve_until(&graph, &targets, &cancel), stop);
        let error = solved.result.as_ref().expect_err("it was cancelled");
        assert_eq!((error.error.tier, error.vertex), (Tier::Cancelled, None));
        assert_eq!([solved.outcome("hang x"), solved.outcome("hang y")], ["CANCELED"; 2]);
        assert_eq!(bench.toy.n_calls(), 2 * round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_store_perform_a_shared_step_once() {
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let mut graph = Graph::default();
    let target = chain(&mut graph, &["a", "b", "c", "d", "e", "f"]);
    let targets = [target];
    let (ours, theirs) = tokio::join!(bench.solve(&graph, &targets), neighbour.solve(&graph, &targets));
    assert_eq!(ours.contents(), theirs.contents());
    assert_eq!(bench.toy.n_calls() + neighbour.toy.n_calls(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_another_process_can_be_cancelled() {
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let mut graph = Graph::default();
    let target = [run(&mut graph, "hang x", Input::Scratch, &[])];
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let stop = async {
        bench.toy.hanging.acquire().await.expect("never closed").forget();
        let (waiting, ()) = tokio::join!(neighbour.solve_until(&graph, &target, &second), async { second.cancel() });
        assert_eq!(waiting.result.expect_err("it was cancelled").error.tier, Tier::Cancelled);
        first.cancel();
    };
    let (solved, ()) = tokio::join!(bench.solve_until(&graph, &target, &first), stop);
    assert_eq!(solved.outcome("hang x"), "CANCELED");
    assert_eq!(neighbour.toy.n_calls(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_and_images_move_nothing() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let base = image(&mut graph, "ab");
    let upper = run(&mut graph, "make upper", Input::Scratch, &[]);
    let target = plain(&mut graph, "LINK", Op::Merge, &[base, upper]);
    let top = run(&mut graph, "make top", target, &[]);
    let solved = bench.solve(&graph, &[top]).await;
    assert_eq!(solved.contents().len(), 4);
    assert_eq!(solved.outcome("FROM base"), "CACHED");
    assert_eq!(solved.outcome("LINK"), "DONE");
    assert_eq!(bench.solve(&graph, &[top]).await.outcome("LINK"), "CACHED");
    assert_eq!(bench.toy.n_calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_base_is_named_as_such() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let base = image(&mut graph, "ab");
    let target = run(&mut graph, "make a", base, &[]);
    bench.solve(&graph, &[target]).await;
    let mut graph = Graph::default();
    let base = image(&mut graph, "ac");
    let target = run(&mut graph, "make a", base, &[]);
    let solved = bench.solve(&graph, &[target]).await;
    assert!(solved.misses["make a"].starts_with("base image "), "{}", solved.misses["make a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_on_the_exported_path_are_announced_cached_or_not() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let base = image(&mut graph, "a");
    let tool = run(&mut graph, "make tool", base, &[]);
    let middle = run(&mut graph, "make middle", base, &[(tool, "/")]);
    let target = run(&mut graph, "make top", middle, &[]);
    for round in 1..=2 {
        bench.solve(&graph, &[target]).await;
        let finals = bench.toy.finals();
        let heights: Vec<_> = finals.iter().map(|chain| chain.layers().len()).collect();
        assert_eq!(heights, [2, 3].repeat(round));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_are_asked_for_where_somebody_looks() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let below_run = run(&mut graph, "make below-run", Input::Scratch, &[]);
    let mounted = run(&mut graph, "make mounted", Input::Scratch, &[]);
    let copied_base = run(&mut graph, "make copied-base", Input::Scratch, &[]);
    let copied = run(&mut graph, "make copied", copied_base, &[]);
    let upper = run(&mut graph, "make upper", Input::Scratch, &[]);
    let merged = plain(&mut graph, "merge", Op::Merge, &[below_run, upper]);
    let top = run(&mut graph, "make top", merged, &[(mounted, "/")]);
    let target = copy(&mut graph, "COPY", top, copied, "/x");
    let exported = run(&mut graph, "make exported", Input::Scratch, &[]);
    bench.solve(&graph, &[target, exported]).await;
    for tag in ["below-run", "mounted", "copied", "copied-base", "upper", "top"] {
        assert!(bench.toy.needed_tree(&format!("make {tag}")), "{tag}");
    }
    for args in ["make file", "make exported"] {
        assert!(!bench.toy.needed_tree(args), "{args}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_has_a_tree_and_does_not_leave() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let below = run(&mut graph, "make below", Input::Scratch, &[]);
    let target = run(&mut graph, "make target", below, &[]);
    bench.solve_to_read(&graph, &[target]).await;
    assert!(bench.toy.needed_tree("make below") && bench.toy.needed_tree("make target"));
    assert!(bench.toy.finals().is_empty());
    // What was made for reading is found by the build.
    assert_eq!(bench.solve(&graph, &[target]).await.outcome("make target"), "CACHED");
    assert_eq!(bench.toy.finals().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_the_client_is_no_root() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let context = local(&mut graph);
    let target = run(&mut graph, "make x", context, &[]);
    let error = bench.solve(&graph, &[target]).await.result.expect_err("it cannot work");
    assert_eq!(error.error.tier, Tier::Internal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_solve_stops_its_work() {
    let bench = Bench::new();
    let mut graph = Graph::default();
    let target = [run(&mut graph, "hang x", Input::Scratch, &[])];
    let toy = Arc::clone(&bench.toy);
    tokio::select! {
        _ = bench.solve(&graph, &target) => panic!("it hangs"),
        permit = toy.hanging.acquire() => permit.expect("never closed").forget(),
    }
    // The lock of its key is free again as soon as the aborted task is gone.
    let neighbour = bench.neighbour();
    let cancel = CancellationToken::new();
    let stop = async {
        neighbour.toy.hanging.acquire().await.expect("never closed").forget();
        cancel.cancel();
    };
    let (solved, ()) = tokio::join!(neighbour.solve_until(&graph, &target, &cancel), stop);
    assert_eq!(solved.outcome("hang x"), "CANCELED");
}
