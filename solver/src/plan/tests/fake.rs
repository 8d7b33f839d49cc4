//! A resolver with a few images, and requests that need nothing else.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use oci::image::RootFs;
use oci::{ContainerConfig, DiffId, Digest, HistoryEntry, ImageConfig, ImageRef, Platform};

use crate::error::OpError;
use crate::graph::{Graph, Input};
use crate::op::{Device, ExtraHost, NetworkMode, Op, Ulimit};
use crate::plan::{NamedContext, NoCache, Plan, PlanError, PlanRequest, PlannedImage, Purpose, SourceText, plan};
use crate::progress::{Event, Progress, Step};
use crate::traits::{FoundDevice, ResolvedImage, Resolver};

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Images by their normalised name with tag. Counts what it is asked.
pub(super) struct Images {
    configs: BTreeMap<String, ImageConfig>,
    pub(super) asked: Mutex<Vec<String>>,
    /// Whose times were asked for: all vertices of the graph. Every time is [`TIME`].
    pub(super) timed: Mutex<Vec<Op>>,
}

/// The time of every remote source.
pub(super) const TIME: i64 = 1_500_000_000;

impl Images {
    /// `busybox`, for linux/amd64.
    pub(super) fn new() -> Self {
        let mut images = Self { configs: BTreeMap::new(), asked: Mutex::default(), timed: Mutex::default() };
        images.add("busybox", busybox());
        images
    }

    pub(super) fn add(&mut self, name: &str, config: ImageConfig) {
        let reference = ImageRef::parse_normalized(name).unwrap().with_default_tag();
        self.configs.insert(reference.to_string(), config);
    }

    /// Adds the image of a plan, as it would be found after it was built.
    pub(super) fn add_built(&mut self, name: &str, image: &PlannedImage) {
        let mut config = image.config.clone();
        config.history = image.history.iter().map(|planned| planned.entry.clone()).collect();
        let n_layers = config.history.iter().filter(|entry| !entry.empty_layer).count();
        config.rootfs.diff_ids = (0..n_layers).map(|index| layer(&format!("{name} {index}"))).collect();
        self.add(name, config);
    }
}

fn layer(text: &str) -> DiffId {
    DiffId::of_uncompressed(Digest::of(text.as_bytes()))
}

/// A config with one layer, for linux/amd64.
pub(super) fn busybox() -> ImageConfig {
    ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: ContainerConfig {
            env: vec![PATH.to_owned()],
            cmd: Some(vec!["sh".to_owned()]),
            ..ContainerConfig::default()
        },
        history: vec![HistoryEntry { created_by: "rootfs".to_owned(), ..HistoryEntry::default() }],
        rootfs: RootFs { diff_ids: vec![layer("busybox")], ..RootFs::default() },
        ..ImageConfig::default()
    }
}

#[async_trait]
impl Resolver for Images {
    async fn resolve_image(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        _: &Step,
    ) -> Result<ResolvedImage, OpError> {
        self.asked.lock().unwrap().push(format!("{reference} {platform}"));
        let Some(config) = self.configs.get(&reference.to_string()) else {
            return Err(OpError::input(format!(
                "failed to resolve source metadata for {reference}: {reference}: not found"
            )));
        };
        let digest = Digest::of(&config.to_json());
        Ok(ResolvedImage {
            reference: reference.clone(),
            top_digest: digest.clone(),
            manifest: digest,
            platform: config.platform(),
            config: config.clone(),
        })
    }

    fn find_devices(&self, device: &Device) -> Result<Vec<FoundDevice>, OpError> {
        let all = [("vendor.test/class", "dev", false), ("vendor.test/free", "dev", true)];
        let found =
            all.iter().filter(|(kind, name, _)| device.name == *kind || device.name == format!("{kind}={name}"));
        let found: Vec<_> = found
            .map(|(kind, name, is_auto_allowed)| FoundDevice {
                name: format!("{kind}={name}"),
                is_auto_allowed: *is_auto_allowed,
            })
            .collect();
        if found.is_empty() && device.required {
            return Err(OpError::input(format!("required device {:?} is not registered", device.name)));
        }
        Ok(found)
    }

    async fn newest_time(&self, graph: &Graph, _: Input) -> Result<Option<i64>, OpError> {
        self.timed.lock().unwrap().extend(graph.ids().map(|id| (*graph.vertex(id).op).clone()));
        Ok(Some(TIME))
    }
}

pub(super) fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

pub(super) fn request(dockerfile: &str) -> PlanRequest {
    let source = SourceText { name: "Dockerfile".to_owned(), text: dockerfile.as_bytes().to_vec() };
    let mut request = PlanRequest::new(source, amd64());
    request.main_context = crate::plan::ContextKind::Local("context".to_owned());
    request
}

/// Plans and returns the names of the steps that were shown on the way.
pub(super) fn run(request: &PlanRequest, images: &Images) -> (Result<Plan, PlanError>, Vec<String>) {
    let (sender, events) = std::sync::mpsc::sync_channel(1024);
    let progress = Progress::new(sender);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let result = runtime.block_on(plan(request, images, &progress));
    drop(progress);
    let started = events.iter().filter_map(|event| match event {
        Event::Started { name, .. } => Some(name),
        _ => None,
    });
    (result, started.collect())
}

/// The same image for another platform.
pub(super) fn for_platform(config: ImageConfig, platform: &Platform) -> ImageConfig {
    ImageConfig { os: platform.os.clone(), architecture: platform.architecture.clone(), ..config }
}

/// Options of the command line, in buildx spelling.
pub(super) fn apply(request: &mut PlanRequest, args: &[String]) {
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        if flag == "--no-cache" {
            request.no_cache = NoCache::All;
            continue;
        }
        let value = args.next().unwrap();
        let (key, text) = value.split_once('=').unwrap_or((value, ""));
        match flag.as_str() {
            "--build-arg" => drop(request.build_args.insert(key.to_owned(), text.to_owned())),
            "--label" => request.labels.push((key.to_owned(), text.to_owned())),
            "--build-context" => {
                let context = match text.contains("://") {
                    true => NamedContext::parse(key, text),
                    false => NamedContext::Local(key.to_owned()),
                };
                request.named_contexts.insert(key.to_owned(), context);
            }
            "--no-cache-filter" => request.no_cache = NoCache::Stages(value.split(',').map(str::to_owned).collect()),
            "--add-host" => {
                let (name, address) = value.split_once(':').unwrap();
                request.add_hosts.push(ExtraHost { name: name.to_lowercase(), address: address.to_owned() });
            }
            "--network" if value == "none" => request.network = NetworkMode::None,
            "--target" => request.target = Some(value.clone()),
            "--platform" => {
                let platforms = value.split(',').map(|text| Platform::parse(text, &amd64()).unwrap());
                request.platforms = platforms.collect();
            }
            "--shm-size" => request.shm_size_bytes = Some(value.parse().unwrap()),
            "--ulimit" => request.ulimits.push(Ulimit { name: key.to_owned(), soft: 100, hard: 200 }),
            "--allow" => request.entitlements.push(value.clone()),
            "--call" => request.purpose = Purpose::Check,
            "--file" | "--output" | "--secret" | "--ssh" | "--network" => {}
            other => panic!("no test knows {other}"),
        }
    }
}

/// A setting of the test run.
#[expect(clippy::disallowed_methods, reason = "tests have no other way to be told something")]
pub(super) fn setting(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}
