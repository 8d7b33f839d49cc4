//! An executor for tests: arithmetic on contents, with call counters and meeting points.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cache::{ContentDigest, LayerInfo, Store};
use oci::{DiffId, Digest, ImageRef, Platform};
use tokio::sync::{Barrier, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::error::OpError;
use crate::graph::{Chain, Graph, Input, Location, ResultRef, Vertex, VertexId, VertexMeta};
use crate::notes::Notes;
use crate::op::*;
use crate::progress::{Event, Outcome, Progress, Step};
use crate::schedule::{SolveContext, SolveError, TargetUse, solve};
use crate::traits::{Executor, Selection, Work};

/// A store in a directory of its own, and an executor on it.
pub(super) struct Bench {
    pub(super) store: Store,
    pub(super) toy: Arc<Toy>,
    _dir: Arc<tempfile::TempDir>,
}

/// Performs RUNs by their first argument:
/// - `make TAG`: content from all arguments and inputs;
/// - `same TAG`: content from TAG alone (a step that gives the same bytes again);
/// - `meet TAG`: as `make`, but ends only when as many as agreed are under way at once;
/// - `fail TAG`: fails;
/// - `hang TAG`: ends when cancelled.
///
/// The content of a path is that of the lowest layer for `/base`, of the whole chain for others.
pub(super) struct Toy {
    store: Store,
    /// How often each argument list was performed on the same inputs.
    calls: Mutex<BTreeMap<String, usize>>,
    finals: Mutex<Vec<Chain>>,
    /// `digest` and `perform`, in the order in which they began.
    order: Mutex<Vec<&'static str>>,
    needs_tree: Mutex<BTreeMap<String, bool>>,
    pub(super) n_digests: AtomicUsize,
    pub(super) n_probes: AtomicUsize,
    /// Operations being performed now, and the most there have been.
    running: AtomicUsize,
    most_running: AtomicUsize,
    pub(super) meeting: Barrier,
    /// One permit for each `hang` that has begun.
    pub(super) hanging: Semaphore,
    /// What [`Executor::probe_source`] says.
    pub(super) probe: Mutex<String>,
    /// Content of the client's directory.
    pub(super) context: Mutex<u8>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_meeting(1)
    }

    /// `n_meeting` operations named `meet` have to be under way at once.
    pub(super) fn with_meeting(n_meeting: usize) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory for the store"));
        Self::on(dir, n_meeting)
    }

    /// Another process on the same store, as far as a test can tell.
    pub(super) fn neighbour(&self) -> Self {
        Self::on(self._dir.clone(), 1)
    }

    fn on(dir: Arc<tempfile::TempDir>, n_meeting: usize) -> Self {
        let store = Store::open(dir.path()).expect("a store");
        let toy = Toy {
            store: store.clone(),
            calls: Mutex::default(),
            finals: Mutex::default(),
            order: Mutex::default(),
            needs_tree: Mutex::default(),
            n_digests: AtomicUsize::new(0),
            n_probes: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            meeting: Barrier::new(n_meeting),
            hanging: Semaphore::new(0),
            probe: Mutex::new("1".to_owned()),
            context: Mutex::new(1),
        };
        Self { store, toy: Arc::new(toy), _dir: dir }
    }

    /// Solves for somebody who looks into the result.
    pub(super) async fn solve_to_read(&self, graph: &Graph, targets: &[Input]) -> Vec<ResultRef> {
        let context = self.context(Progress::silent(), &CancellationToken::new());
        solve(graph, targets, SolveContext { targets: TargetUse::Read, ..context }).await.expect("it is solved")
    }

    pub(super) fn context(&self, progress: Progress, cancel: &CancellationToken) -> SolveContext {
        let executor: Arc<dyn Executor> = self.toy.clone();
        let (store, cancel) = (self.store.clone(), cancel.clone());
        SolveContext {
            store,
            executor,
            progress,
            cancel,
            targets: TargetUse::Export,
            shown: HashSet::new(),
            notes: Notes::default(),
            ended: Arc::default(),
            parallelism: 8,
            remote: None,
        }
    }

    /// Solves and tells how every step ended: its name, and `CACHED`, `DONE`, `ERROR`, `CANCELED` or a miss's reason.
    pub(super) async fn solve(&self, graph: &Graph, targets: &[Input]) -> Solved {
        self.solve_until(graph, targets, &CancellationToken::new()).await
    }

    pub(super) async fn solve_until(&self, graph: &Graph, targets: &[Input], cancel: &CancellationToken) -> Solved {
        let (sender, receiver) = sync_channel(10_000);
        let result = solve(graph, targets, self.context(Progress::new(sender), cancel)).await;
        let (outcomes, misses) = collect(&receiver);
        assert_eq!(self.toy.running.load(Ordering::SeqCst), 0, "something is still running");
        Solved { result, outcomes, misses }
    }
}

/// What a solve gave, and what was shown of it.
pub(super) struct Solved {
    pub(super) result: Result<Vec<ResultRef>, SolveError>,
    /// By name of the step, in the order of the ends: `CACHED`, `DONE`, `CANCELED` or the failure's message.
    pub(super) outcomes: Vec<(String, String)>,
    /// Reasons of misses by name of the step.
    pub(super) misses: BTreeMap<String, String>,
}

impl Solved {
    /// The contents of the layers of the only target.
    #[track_caller]
    pub(super) fn contents(&self) -> Vec<ContentDigest> {
        match self.result.as_deref() {
            Ok([ResultRef::Root(chain)]) => contents(chain),
            other => panic!("expected one root, got {other:?}"),
        }
    }

    /// How the step of that name ended.
    #[track_caller]
    pub(super) fn outcome(&self, name: &str) -> &str {
        let mut ends = self.outcomes.iter().filter(|(step, _)| step == name);
        let (_, outcome) = ends.next().unwrap_or_else(|| panic!("`{name}` has not ended: {:?}", self.outcomes));
        assert_eq!(ends.next(), None, "`{name}` has ended twice");
        outcome
    }
}

fn collect(receiver: &Receiver<Event>) -> (Vec<(String, String)>, BTreeMap<String, String>) {
    let (mut names, mut outcomes, mut misses) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for event in receiver.try_iter() {
        match event {
            Event::Started { step, name, .. } => drop(names.insert(step, name)),
            Event::Miss { step, reason } => drop(misses.insert(names[&step].clone(), reason)),
            Event::Finished { step, outcome, .. } => {
                let name = names.get(&step).expect("a step starts before it ends").clone();
                let outcome = match outcome {
                    Outcome::Done => "DONE".to_owned(),
                    Outcome::Cached => "CACHED".to_owned(),
                    Outcome::Canceled => "CANCELED".to_owned(),
                    Outcome::Failed(message) => message,
                };
                outcomes.push((name, outcome));
            }
            _ => {}
        }
    }
    assert_eq!(outcomes.len(), names.len(), "every step that starts ends: {names:?} {outcomes:?}");
    (outcomes, misses)
}

pub(super) fn contents(chain: &Chain) -> Vec<ContentDigest> {
    chain.layers().iter().map(|layer| layer.content).collect()
}

/// The arithmetic: what a RUN with `args` makes of its root and of what it mounts.
pub(super) fn compute(args: &[String], inputs: &[Vec<ContentDigest>]) -> ContentDigest {
    let mut hasher = blake3::Hasher::new();
    if args[0] == "same" {
        hasher.update(args[1].as_bytes());
        return ContentDigest(*hasher.finalize().as_bytes());
    }
    hasher.update(args.join(" ").as_bytes());
    for input in inputs {
        hasher.update(&[0xff]);
        input.iter().for_each(|content| {
            hasher.update(&content.0);
        });
    }
    ContentDigest(*hasher.finalize().as_bytes())
}

impl Toy {
    /// Calls in all.
    pub(super) fn n_calls(&self) -> usize {
        self.calls.lock().unwrap().values().sum()
    }

    /// The most calls for one argument list and the same inputs.
    pub(super) fn most_calls(&self) -> usize {
        self.calls.lock().unwrap().values().copied().max().unwrap_or(0)
    }

    pub(super) fn most_running(&self) -> usize {
        self.most_running.load(Ordering::SeqCst)
    }

    pub(super) fn needed_tree(&self, args: &str) -> bool {
        self.needs_tree.lock().unwrap()[args]
    }

    /// What was asked since the last call, in order.
    pub(super) fn take_order(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.order.lock().unwrap())
    }

    pub(super) fn finals(&self) -> Vec<Chain> {
        self.finals.lock().unwrap().clone()
    }

    fn commit(&self, content: ContentDigest) -> Result<LayerInfo, OpError> {
        Ok(self.store.commit_tree(self.store.new_tree()?, content)?)
    }
}

struct Running<'a>(&'a Toy);

impl<'a> Running<'a> {
    fn begin(toy: &'a Toy) -> Self {
        let now = toy.running.fetch_add(1, Ordering::SeqCst) + 1;
        toy.most_running.fetch_max(now, Ordering::SeqCst);
        Self(toy)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Executor for Toy {
    async fn digest(
        &self,
        source: &ResultRef,
        selection: Selection<'_>,
        _step: &Step,
    ) -> Result<ContentDigest, OpError> {
        self.n_digests.fetch_add(1, Ordering::SeqCst);
        self.order.lock().unwrap().push("digest");
        let path = match selection {
            Selection::Path(path) => path,
            Selection::Copy(copy) => &copy.source,
        };
        match (source, path) {
            (_, "/missing") => Err(OpError::input("\"/missing\": not found")),
            (ResultRef::Context(_), _) => Ok(ContentDigest([*self.context.lock().unwrap(); 32])),
            (ResultRef::Root(chain), "/base") => Ok(contents(chain)[0]),
            (ResultRef::Root(chain), _) => Ok(compute(&["digest".to_owned()], &[contents(chain)])),
        }
    }

    async fn image_chain(&self, image: &ImageOp, _step: &Step) -> Result<Chain, OpError> {
        let layers = image.diff_ids.iter().map(|diff_id| Ok(self.store.layer_for_diff_id(diff_id)?.layer));
        Ok(Chain::new(layers.collect::<Result<_, OpError>>()?))
    }

    async fn perform(&self, work: Work) -> Result<LayerInfo, OpError> {
        let _running = Running::begin(self);
        self.order.lock().unwrap().push("perform");
        let args = match &*work.op {
            Op::Run(run) => run.args.clone(),
            Op::File(_) => vec!["make".to_owned(), "file".to_owned()],
            Op::Http(http) => vec!["make".to_owned(), http.url.clone(), self.probe.lock().unwrap().clone()],
            other => return Err(OpError::internal(format!("the toy cannot perform {other:?}"))),
        };
        let inputs: Vec<_> = work
            .inputs
            .iter()
            .map(|input| match input {
                ResultRef::Root(chain) => contents(chain),
                ResultRef::Context(_) => vec![ContentDigest([*self.context.lock().unwrap(); 32])],
            })
            .collect();
        *self.calls.lock().unwrap().entry(format!("{args:?} {inputs:?}")).or_default() += 1;
        self.needs_tree.lock().unwrap().insert(args.join(" "), work.needs_tree);
        match args[0].as_str() {
            "fail" => return Err(OpError::input("it failed")),
            "hang" => {
                self.hanging.add_permits(1);
                work.cancel.cancelled().await;
                return Err(OpError::cancelled());
            }
            "meet" => {
                self.meeting.wait().await;
            }
            _ => tokio::task::yield_now().await,
        }
        self.commit(compute(&args, &inputs))
    }

    async fn probe_source(&self, _op: &Op, _step: &Step) -> Result<String, OpError> {
        self.n_probes.fetch_add(1, Ordering::SeqCst);
        Ok(self.probe.lock().unwrap().clone())
    }

    fn layer_is_final(&self, chain: &Chain) {
        self.finals.lock().unwrap().push(chain.clone());
    }
}

// Vertices.

pub(super) fn meta(name: &str) -> VertexMeta {
    VertexMeta {
        name: name.to_owned(),
        location: Some(Location { start_line: 7, end_line: 8 }),
        slot: format!("slot of {name}"),
        ..VertexMeta::default()
    }
}

/// `RUN args` on `root`, named after its arguments; `mounts` are bound by path.
pub(super) fn run(graph: &mut Graph, args: &str, root: Input, mounts: &[(Input, &str)]) -> Input {
    Input::Vertex(run_with(graph, args, root, mounts, meta(args)))
}

pub(super) fn run_with(
    graph: &mut Graph,
    args: &str,
    root: Input,
    mounts: &[(Input, &str)],
    meta: VertexMeta,
) -> VertexId {
    let bind = |(idx, (_, path)): (usize, &(Input, &str))| Mount {
        target: format!("/mnt/{idx}"),
        kind: MountKind::Bind { input: Some(idx + 1), source: (*path).to_owned(), read_only: true },
    };
    let op = RunOp {
        args: args.split(' ').map(str::to_owned).collect(),
        env: Vec::new(),
        proxy_env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
        network: NetworkMode::Default,
        security: SecurityMode::Sandbox,
        hostname: "buildkitsandbox".to_owned(),
        extra_hosts: Vec::new(),
        shm_size_bytes: None,
        ulimits: Vec::new(),
        cgroup_parent: None,
        mounts: mounts.iter().enumerate().map(bind).collect(),
        scripts: Vec::new(),
        devices: Vec::new(),
        platform: Platform::new("linux", "amd64", None),
    };
    let inputs = [root].into_iter().chain(mounts.iter().map(|(input, _)| *input)).collect();
    graph.add(Vertex { op: Arc::new(Op::Run(Box::new(op))), inputs, meta })
}

/// `COPY source /dest/` onto `root`.
pub(super) fn copy(graph: &mut Graph, name: &str, root: Input, source: Input, path: &str) -> Input {
    let action = CopyAction {
        input: Some(1),
        selection: CopySelection { source: path.to_owned(), wildcard: false, excludes: Vec::new(), parents_base: None },
        dest: "/dest/".to_owned(),
        owner: None,
        mode: None,
        unpack: Unpack::Never,
        keep_source_metadata: false,
    };
    let op = Op::File(FileOp { actions: vec![FileAction::Copy(action)] });
    Input::Vertex(graph.add(Vertex { op: Arc::new(op), inputs: vec![root, source], meta: meta(name) }))
}

pub(super) fn plain(graph: &mut Graph, name: &str, op: Op, inputs: &[Input]) -> Input {
    Input::Vertex(graph.add(Vertex { op: Arc::new(op), inputs: inputs.to_vec(), meta: meta(name) }))
}

pub(super) fn local(graph: &mut Graph) -> Input {
    plain(graph, "context", Op::Local(LocalOp { name: "context".to_owned() }), &[])
}

/// An image with as many layers as bytes in `layers`.
pub(super) fn image(graph: &mut Graph, layers: &str) -> Input {
    let op = ImageOp {
        reference: ImageRef::parse_normalized("base").expect("a good name"),
        platform: Platform::new("linux", "amd64", None),
        manifest: Digest::of(layers.as_bytes()),
        diff_ids: layers.bytes().map(|layer| DiffId::of_uncompressed(Digest::of(&[layer]))).collect(),
    };
    plain(graph, "FROM base", Op::Image(op), &[])
}
