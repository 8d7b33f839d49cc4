//! Results in other places: who is asked, what is remembered, who is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cache::{Key, Layer};
use tokio_util::sync::CancellationToken;

use super::chain;
use super::toy::{Bench, copy, local};
use crate::graph::{Graph, Input};
use crate::progress::Progress;
use crate::schedule::{SolveContext, solve};
use crate::traits::{Imported, Origin, RemoteCaches, SettledResult};

/// A place that has what it was told of before.
#[derive(Default)]
struct Place {
    has: Mutex<BTreeMap<Key, Layer>>,
    asked: Mutex<Vec<Key>>,
    told: Mutex<Vec<SettledResult>>,
}

#[async_trait]
impl RemoteCaches for Place {
    fn has_sources(&self) -> bool {
        true
    }

    async fn find(&self, key: &Key) -> Option<Imported> {
        self.asked.lock().unwrap().push(*key);
        let layer = self.has.lock().unwrap().get(key).cloned()?;
        Some(Imported { layer, cost: Duration::from_secs(3), from: "a place".to_owned() })
    }

    fn settled(&self, result: SettledResult) {
        self.told.lock().unwrap().push(result);
    }
}

impl Place {
    /// Layers of one store mean nothing in another: the same contents under names of `bench`.
    fn with_results_of(bench: &Bench, other: &Self) -> Arc<Self> {
        let place = Self::default();
        for result in other.told.lock().unwrap().iter() {
            let content = result.chain.layers().last().expect("a layer").content;
            let layer =
                bench.store.commit_tree(bench.store.new_tree().expect("a tree"), content).expect("a layer").layer;
            place.has.lock().unwrap().extend(result.keys.iter().map(|key| (*key, layer.clone())));
        }
        Arc::new(place)
    }

    fn origins(&self) -> Vec<Origin> {
        self.told.lock().unwrap().iter().map(|result| result.origin).collect()
    }
}

async fn solve_with(bench: &Bench, graph: &Graph, target: Input, place: &Arc<Place>) {
    let context = bench.context(Progress::silent(), &CancellationToken::new());
    let remote: Arc<dyn RemoteCaches> = place.clone();
    solve(graph, &[target], SolveContext { remote: Some(remote), ..context }).await.expect("nothing fails");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_elsewhere_is_not_performed_and_is_remembered() {
    let mut graph = Graph::default();
    let target = chain(&mut graph, &["a", "b", "c"]);
    let (warm, first) = (Bench::new(), Arc::new(Place::default()));
    solve_with(&warm, &graph, target, &first).await;
    assert_eq!(first.origins(), [Origin::Performed; 3]);
    assert!(first.told.lock().unwrap().iter().all(|result| result.is_exported && result.keys.len() == 1));

    let cold = Bench::new();
    let place = Place::with_results_of(&cold, &first);
    solve_with(&cold, &graph, target, &place).await;
    assert_eq!(cold.toy.n_calls(), 0);
    assert_eq!(place.origins(), [Origin::Imported; 3]);
    assert_eq!(place.asked.lock().unwrap().len(), 3);

    // From now on the store has them, with all that explanations need.
    let again = Arc::new(Place::default());
    solve_with(&cold, &graph, target, &again).await;
    assert_eq!(again.origins(), [Origin::Found; 3]);
    assert!(again.asked.lock().unwrap().is_empty());
    let record = cold.store.latest_of_slot("slot of make c").expect("the index works").expect("a record");
    let explanation = cold.store.explanation(&record.key).expect("the index works").expect("an explanation");
    assert!(explanation.ingredients.contains("make"), "{}", explanation.ingredients);
    assert_eq!((record.name.as_str(), record.cost), ("make c", Duration::from_secs(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_found_by_the_layers_of_its_source_before_any_file_is_read() {
    let mut graph = Graph::default();
    let tools = chain(&mut graph, &["tools"]);
    let target = copy(&mut graph, "copy", Input::Scratch, tools, "/base");
    let (warm, first) = (Bench::new(), Arc::new(Place::default()));
    solve_with(&warm, &graph, target, &first).await;
    let of_copy = first.told.lock().unwrap().last().cloned().expect("told");
    assert_eq!(of_copy.keys.len(), 2, "by content and by definition");
    assert!(!first.told.lock().unwrap()[0].is_exported, "the other stage is not in the result");

    let cold = Bench::new();
    let place = Place::with_results_of(&cold, &first);
    solve_with(&cold, &graph, target, &place).await;
    assert_eq!((cold.toy.n_calls(), cold.toy.n_digests.load(std::sync::atomic::Ordering::SeqCst)), (0, 0));

    // A store that found it by definition tells of both keys all the same, once it knows both.
    let again = Arc::new(Place::default());
    solve_with(&warm, &graph, target, &again).await;
    assert_eq!(again.told.lock().unwrap().last().map(|result| result.keys.len()), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_clients_files_is_asked_for_before_it_is_performed() {
    let mut graph = Graph::default();
    let files = local(&mut graph);
    let target = copy(&mut graph, "copy", Input::Scratch, files, "/x");
    let (warm, first) = (Bench::new(), Arc::new(Place::default()));
    solve_with(&warm, &graph, target, &first).await;
    let cold = Bench::new();
    let place = Place::with_results_of(&cold, &first);
    solve_with(&cold, &graph, target, &place).await;
    assert_eq!((cold.toy.n_calls(), place.origins()), (0, vec![Origin::Imported]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_for_a_step_that_ignores_the_cache() {
    let mut graph = Graph::default();
    let mut meta = super::meta("make a");
    meta.ignore_cache = true;
    let target = Input::Vertex(super::run_with(&mut graph, "make a", Input::Scratch, &[], meta));
    let (bench, place) = (Bench::new(), Arc::new(Place::default()));
    solve_with(&bench, &graph, target, &place).await;
    assert!(place.asked.lock().unwrap().is_empty());
    assert_eq!(place.origins(), [Origin::Performed], "others may have it");
}
