//! Which units go: filters, limits, the order of worth, and the default policies. Spec: `spec/engine.md` §3.9.

use std::time::Duration;

use crate::error::{IoContext, Result};
use crate::filter::{FilterError, UsageFilter, parse_duration};
use crate::removal::Remover;
use crate::store::{Store, now};
use crate::survey::{self, Survey, Target, Unit};
use crate::usage::{UsageKind, UsageRecord};
use crate::{reserve, schema};

const GIB: u64 = 1 << 30;
/// How long things count as used just now; also keeps the age from being a divisor of zero.
const FRESH_SECONDS: f64 = 600.0;
/// Weighs like this many bytes even when empty, and this many milliseconds even when free.
const LEAST_BYTES: f64 = 4096.0;
const LEAST_COST_MS: f64 = 1.0;
const HOUR: Duration = Duration::from_secs(3600);

/// What may go, and how much of it.
///
/// Nothing goes that a running build or an image needs.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Also `internal` and `frontend` records.
    pub all: bool,
    /// A record goes if it matches any of these; an empty list matches everything.
    pub filters: Vec<UsageFilter>,
    /// Spares what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Never go below this total (`--reserved-space`, formerly `--keep-storage`).
    pub reserved_space: Option<u64>,
    /// Go down to this total.
    pub max_used_space: Option<u64>,
    /// Go on until the file system has this much free.
    pub min_free_space: Option<u64>,
}

/// Room on the store's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total_bytes: u64,
    /// What this user can still write.
    pub free_bytes: u64,
}

impl PruneFilter {
    /// Reads `--filter` flags, which must all hold; `until` (or `unused-for`) sets the duration.
    pub fn from_flags(flags: &[impl AsRef<str>]) -> Result<Self, FilterError> {
        let mut prune = Self::default();
        let mut filter = UsageFilter::default();
        for flag in flags.iter().map(AsRef::as_ref) {
            match flag.strip_prefix("until=").or_else(|| flag.strip_prefix("unused-for=")) {
                Some(duration) => prune.keep_duration = Some(parse_duration(duration)?),
                None => filter.and_flag(flag)?,
            }
        }
        prune.filters.push(filter);
        Ok(prune)
    }

    /// A hard cap, for use while a build runs: whatever is worth least goes until both limits hold.
    pub fn hard_cap(max_used_space: Option<u64>, min_free_space: Option<u64>) -> Self {
        Self { all: true, max_used_space, min_free_space, ..Self::default() }
    }

    /// BuildKit's policies for a disk of that size, in the order in which they are tried.
    pub fn default_policies(disk: DiskSpace) -> Vec<Self> {
        let share = |percent: u64| (disk.total_bytes / 100 * percent).div_ceil(GIB) * GIB;
        let limits = Self {
            reserved_space: Some(share(10).min(10 * GIB)),
            max_used_space: Some(share(80).min(100 * GIB)),
            min_free_space: Some(share(20)),
            ..Self::default()
        };
        let cheap = [UsageKind::SourceLocal, UsageKind::CacheMount, UsageKind::SourceGitCheckout];
        vec![
            Self {
                filters: cheap.iter().map(|kind| UsageFilter::of_type(*kind)).collect(),
                keep_duration: Some(48 * HOUR),
                max_used_space: Some(GIB / 2),
                ..Self::default()
            },
            Self { keep_duration: Some(60 * 24 * HOUR), ..limits.clone() },
            limits.clone(),
            Self { all: true, ..limits },
        ]
    }

    /// Whether the record is one that this filter is about, and was unused for long enough.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        let is_meant = self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(record));
        let age = Duration::from_secs(now().saturating_sub(record.last_used_at).max(0).cast_unsigned());
        is_meant && self.keep_duration.is_none_or(|keep| age >= keep)
    }

    fn may_take(&self, record: &UsageRecord) -> bool {
        let is_internal = matches!(record.kind, UsageKind::Internal | UsageKind::Frontend);
        !record.in_use && !record.shared && (self.all || !is_internal) && self.matches(record)
    }

    /// The total to go down to, 0 for everything; `None` when there is no need to remove anything.
    fn target_bytes(&self, total_bytes: u64, disk: DiskSpace) -> Option<u64> {
        // As in BuildKit, a limit of zero is no limit.
        let limit = |limit: Option<u64>| limit.filter(|&bytes| bytes > 0);
        let (cap, min_free) = (limit(self.max_used_space), limit(self.min_free_space));
        let shortage = min_free.map_or(0, |min_free| min_free.saturating_sub(disk.free_bytes));
        let target = match (cap, min_free) {
            (None, None) => 0,
            (None, Some(_)) if shortage == 0 => return None,
            (cap, _) if shortage > 0 => cap.unwrap_or(u64::MAX).min(total_bytes.saturating_sub(shortage)),
            (cap, _) => cap.unwrap_or(0),
        };
        let target = target.max(self.reserved_space.unwrap_or(0));
        (target == 0 || total_bytes > target).then_some(target)
    }
}

impl Store {
    /// Room on the store's file system.
    pub fn disk_space(&self) -> Result<DiskSpace> {
        let stat = rustix::fs::statvfs(self.root()).during("inspect the file system of", self.root())?;
        Ok(DiskSpace { total_bytes: stat.f_blocks * stat.f_frsize, free_bytes: stat.f_bavail * stat.f_frsize })
    }

    /// Removes what the filter allows, least worth first, and returns what was removed. With `dry_run` nothing goes,
    /// and the answer is what would.
    ///
    /// Leftovers of dead processes, and what nothing leads to any more, go first and whatever the limits.
    pub fn prune(&self, filter: &PruneFilter, dry_run: bool) -> Result<Vec<UsageRecord>> {
        self.apply(std::slice::from_ref(filter), dry_run, &|| false)
    }

    /// Applies policies in order, unless another process is at it or did so within `interval`.
    ///
    /// For the time beside a build: cheap while no limit is exceeded. `stop` is asked before each removal; what is left
    /// then goes another time.
    pub fn collect(
        &self,
        policies: &[PruneFilter],
        interval: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<UsageRecord>> {
        let Some(_lock) = self.try_lock("collect")? else { return Ok(Vec::new()) };
        if !self.is_due(interval)? {
            return Ok(Vec::new());
        }
        self.remove_leftovers(stop)?;
        let total_bytes = survey::quick_total_bytes(&self.inner)?;
        let disk = self.disk_space()?;
        if policies.iter().all(|policy| policy.target_bytes(total_bytes, disk).is_none()) {
            return Ok(Vec::new());
        }
        self.apply(policies, false, stop)
    }

    /// Whether the last collection is long enough ago; if so, this is the next one.
    fn is_due(&self, interval: Duration) -> Result<bool> {
        self.inner.index.write("note a collection", |tx| {
            let at = now();
            let age = Duration::from_secs(at.saturating_sub(schema::meta(tx, "collected_at")?).max(0).cast_unsigned());
            if age < interval {
                return Ok(false);
            }
            tx.execute("INSERT OR REPLACE INTO meta(name, value) VALUES ('collected_at', ?1)", [at])?;
            Ok(true)
        })
    }

    fn apply(&self, policies: &[PruneFilter], dry_run: bool, stop: &dyn Fn() -> bool) -> Result<Vec<UsageRecord>> {
        if !dry_run {
            reserve::spend_when_full(&self.inner.layout);
        }
        let removed = self.apply_to_survey(policies, dry_run, stop);
        if !dry_run {
            reserve::lay_in(&self.inner.layout);
            self.inner.index.tidy();
        }
        removed
    }

    fn apply_to_survey(
        &self,
        policies: &[PruneFilter],
        dry_run: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<UsageRecord>> {
        let mut survey = survey::survey(&self.inner)?;
        if survey.is_frozen {
            tracing::info!("a build that started before the index was rebuilt still runs; nothing can be removed");
            return Ok(Vec::new());
        }
        let mut remover = Remover::new(&self.inner, dry_run);
        let mut removed = Vec::new();
        for policy in policies {
            for unit in choose(&mut survey, policy, self.disk_space()?) {
                if stop() {
                    break;
                }
                if remover.remove(&unit)? {
                    removed.push(unit.record);
                }
            }
        }
        remover.finish()?;
        Ok(removed)
    }
}

/// Takes the units that go out of the survey, in order: first what nothing leads to, then down to the target by worth.
fn choose(survey: &mut Survey, filter: &PruneFilter, disk: DiskSpace) -> Vec<Unit> {
    let is_garbage = |unit: &mut Unit| {
        let is_leftover = matches!(unit.target, Target::DeadSession { .. } | Target::SupersededIndex(_));
        let is_meant = filter.filters.is_empty() || filter.filters.iter().any(|filter| filter.matches(&unit.record));
        unit.is_garbage && !unit.record.in_use && (is_leftover || is_meant)
    };
    let target_bytes = filter.target_bytes(survey.total_bytes(), disk);
    let mut chosen: Vec<_> = survey.units.extract_if(.., is_garbage).collect();
    let Some(target_bytes) = target_bytes else { return chosen };
    let mut total_bytes = survey.total_bytes();
    let mut candidates: Vec<_> = survey.units.extract_if(.., |unit| filter.may_take(&unit.record)).collect();
    let at = now();
    candidates.sort_by(|a, b| worth(a, at).total_cmp(&worth(b, at)).then_with(|| a.record.id.cmp(&b.record.id)));
    let mut spared = Vec::new();
    for unit in candidates {
        if target_bytes > 0 && total_bytes <= target_bytes {
            spared.push(unit);
        } else {
            total_bytes = total_bytes.saturating_sub(unit.record.size_bytes);
            chosen.push(unit);
        }
    }
    survey.units.extend(spared);
    chosen
}

/// Cost to have it again × how recently it was used ÷ the room it takes.
fn worth(unit: &Unit, at: i64) -> f64 {
    let age = at.saturating_sub(unit.record.last_used_at).max(0) as f64;
    (unit.cost_ms as f64 + LEAST_COST_MS) / (age + FRESH_SECONDS) / (unit.record.size_bytes as f64 + LEAST_BYTES)
}

#[cfg(test)]
mod tests {
    use oci::{Descriptor, media_type};

    use super::*;
    use crate::error::Result;
    use crate::id::{Key, Layer};
    use crate::mounts::Sharing;
    use crate::testing::{check, content, diff_id, du, image, record, reference, store, tree_with};
    use crate::variants::Codec;

    const EVERYTHING: PruneFilter = PruneFilter {
        all: true,
        filters: Vec::new(),
        keep_duration: None,
        reserved_space: None,
        max_used_space: None,
        min_free_space: None,
    };

    /// A layer with a record of that cost, whose tree has one file of that many KiB.
    fn layer(store: &Store, seed: u8, kib: usize, cost: Duration) -> Layer {
        let draft = store.new_tree().unwrap();
        std::fs::write(draft.tree().join("file"), vec![seed; kib << 10]).unwrap();
        let layer = store.commit_tree(draft, content(seed)).unwrap().layer;
        store.put_record(&crate::NewRecord { cost, ..record(seed, &layer.id, "slot") }).unwrap();
        layer
    }

    fn ids(records: Result<Vec<UsageRecord>>) -> Vec<String> {
        let mut ids: Vec<_> = records.unwrap().into_iter().map(|record| record.id).collect();
        ids.sort();
        ids
    }

    /// As if everything had last been used that long ago.
    fn age(store: &Store, age: Duration) {
        store
            .inner
            .index
            .write("age", |tx| {
                let at = now() - age.as_secs().cast_signed();
                for table in ["layer", "record", "blob", "mount"] {
                    tx.execute(&format!("UPDATE {table} SET used_at = ?1"), [at])?;
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn usage_agrees_with_du() {
        let (_dir, store) = store();
        for seed in 1..20 {
            layer(&store, seed, 40, Duration::from_secs(1));
            store.put_blob(&vec![seed; 50_000]).unwrap();
        }
        let layer = layer(&store, 20, 400, Duration::from_secs(1));
        store.set_diff_id(&layer.id, &diff_id(20), 1).unwrap();
        store.tag(&reference("app"), &image(&store, 20)).unwrap();
        let mount = store.cache_mount("go", Sharing::Shared).unwrap();
        std::fs::write(mount.path.join("f"), vec![1; 300_000]).unwrap();
        let _open = store.new_tree().unwrap();
        std::fs::create_dir(store.root().join("blobs-v9")).unwrap();
        std::fs::write(store.root().join("blobs-v9/x"), vec![1; 70_000]).unwrap();
        let listed: u64 = store.usage().unwrap().iter().map(|record| record.size_bytes).sum();
        let real = du(store.root());
        assert!(listed.abs_diff(real) * 100 <= real, "listed {listed}, du says {real}");
    }

    #[test]
    fn what_a_lease_or_an_image_needs_stays_and_the_rest_goes() {
        let (dir, builder) = store();
        let collector = Store::open(&dir.path().join("store")).unwrap();
        let old = layer(&builder, 1, 1, Duration::from_secs(1));
        let used = layer(&builder, 2, 1, Duration::from_secs(1));
        let imaged = layer(&builder, 3, 1, Duration::from_secs(1));
        builder.set_diff_id(&imaged.id, &diff_id(3), 1).unwrap();
        builder.tag(&reference("app"), &image(&builder, 3)).unwrap();
        let loose = builder.put_blob(b"loose").unwrap();

        let lease = builder.lease().unwrap();
        assert!(builder.find_record(&Key([2; 32])).unwrap().is_some());
        let fresh = builder.commit_tree(tree_with(&builder, "fresh"), content(9)).unwrap().layer;
        let mount = builder.cache_mount("go", Sharing::Shared).unwrap();
        assert_eq!(ids(collector.prune(&EVERYTHING, true)), ids(collector.prune(&EVERYTHING, false)));
        check(&collector);
        assert!(builder.layer(&old.id).unwrap().is_none());
        assert!(builder.blob_path(&loose).is_none());
        for kept in [&used, &imaged, &fresh] {
            assert!(builder.layer(&kept.id).unwrap().unwrap().tree.unwrap().is_dir());
        }
        assert!(mount.path.is_dir());
        drop((lease, mount));

        collector.prune(&EVERYTHING, false).unwrap();
        for (layer, is_there) in [(&used, false), (&fresh, false), (&imaged, true)] {
            assert_eq!(builder.layer(&layer.id).unwrap().is_some(), is_there);
        }
        builder.untag(&reference("app")).unwrap();
        collector.prune(&EVERYTHING, false).unwrap();
        check(&collector);
        let left: Vec<_> = collector.usage().unwrap().into_iter().filter(|record| !record.in_use).collect();
        assert_eq!(left, []);
    }

    #[test]
    fn nested_leases_protect_until_the_last_one_ends() {
        let (dir, builder) = store();
        let collector = Store::open(&dir.path().join("store")).unwrap();
        let outer = builder.lease().unwrap();
        let inner = builder.lease().unwrap();
        let layer = layer(&builder, 1, 1, Duration::from_secs(1));
        drop(outer);
        collector.prune(&EVERYTHING, false).unwrap();
        assert!(collector.layer(&layer.id).unwrap().is_some());
        drop(inner);
        collector.prune(&EVERYTHING, false).unwrap();
        assert!(collector.layer(&layer.id).unwrap().is_none());
    }

    #[test]
    fn the_least_worth_goes_first_and_only_down_to_the_limit() {
        let (_dir, store) = store();
        let cheap = layer(&store, 1, 400, Duration::from_millis(1));
        let dear = layer(&store, 2, 400, Duration::from_secs(100));
        let small = layer(&store, 3, 1, Duration::from_millis(1));
        let total: u64 = store.usage().unwrap().iter().map(|record| record.size_bytes).sum();
        let cap = |bytes| PruneFilter::hard_cap(Some(bytes), None);
        assert_eq!(ids(store.prune(&cap(total), false)), [] as [String; 0]);
        assert_eq!(ids(store.prune(&cap(total - 1), true)), [cheap.id.to_string()]);
        assert_eq!(ids(store.prune(&cap(total - (420 << 10)), false)), {
            let mut expected = [cheap.id.to_string(), small.id.to_string()];
            expected.sort();
            expected
        });
        assert!(store.layer(&dear.id).unwrap().is_some());
        check(&store);
    }

    #[test]
    fn what_a_step_cost_is_known_whichever_of_its_records_is_the_newest() {
        let (_dir, store) = store();
        let dear = layer(&store, 1, 400, Duration::from_secs(100));
        let other = crate::NewRecord { cost: Duration::ZERO, name: String::new(), ..record(11, &dear.id, "") };
        store.put_record(&other).unwrap();
        let cheap = layer(&store, 2, 400, Duration::from_secs(1));
        let records = store.usage().unwrap();
        assert!(records.iter().any(|record| record.id == dear.id.as_str() && record.description == "RUN step 1"));
        let total: u64 = records.iter().map(|record| record.size_bytes).sum();
        assert_eq!(ids(store.prune(&PruneFilter::hard_cap(Some(total - 1), None), false)), [cheap.id.to_string()]);
    }

    #[test]
    fn keep_duration_filters_and_internal_records_are_respected() {
        let (_dir, store) = store();
        let layer = layer(&store, 1, 1, Duration::from_secs(1));
        drop(store.cache_mount("go", Sharing::Shared).unwrap());
        let document = store.put_blob(b"{}").unwrap();
        let flags = |flags: &[&str]| PruneFilter::from_flags(flags).unwrap();
        assert_eq!(ids(store.prune(&flags(&["until=1h"]), false)), [] as [String; 0]);
        age(&store, Duration::from_secs(7200));
        let mounts = store.prune(&flags(&["until=1h", "type=exec.cachemount"]), false).unwrap();
        assert!(matches!(&mounts[..], [mount] if mount.kind == UsageKind::CacheMount && mount.description == "go"));
        assert_eq!(ids(store.prune(&flags(&["immutable"]), false)), [layer.id.to_string()]);
        assert!(store.blob_path(&document).is_some(), "internal records only go with `all`");
        assert_eq!(ids(store.prune(&EVERYTHING, false)), [document.to_string()]);
        check(&store);
    }

    #[test]
    fn a_result_that_no_record_leads_to_is_garbage_whatever_the_limits() {
        let (_dir, store) = store();
        let first = layer(&store, 1, 1, Duration::from_secs(1));
        let second = store.commit_tree(tree_with(&store, "again"), content(2)).unwrap().layer;
        store.put_record(&record(1, &second.id, "slot")).unwrap();
        let huge = PruneFilter::hard_cap(Some(u64::MAX), None);
        assert_eq!(ids(store.prune(&huge, false)), [first.id.to_string()]);
        assert!(store.find_record(&Key([1; 32])).unwrap().is_some());
    }

    #[test]
    fn a_layer_without_a_tree_takes_its_blobs_along_and_one_with_a_tree_does_not() {
        let (_dir, store) = store();
        let mut layers = Vec::new();
        for seed in [1, 2] {
            let digest = store.put_blob(&[seed; 10]).unwrap();
            let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, digest.clone(), 10);
            store.remember_blob(&diff_id(seed), Codec::Gzip { level: 4 }, &descriptor).unwrap();
            let layer = if seed == 1 {
                store.commit_tar(&diff_id(seed), 10, content(seed)).unwrap().layer
            } else {
                let layer = store.commit_tree(tree_with(&store, "x"), content(seed)).unwrap().layer;
                store.set_diff_id(&layer.id, &diff_id(seed), 10).unwrap();
                layer
            };
            store.put_record(&record(seed, &layer.id, "slot")).unwrap();
            layers.push((layer.id.to_string(), digest));
        }
        let [(tar_layer, tar_blob), (_, tree_blob)] = &layers[..] else { unreachable!() };
        let only = |id: &str| UsageFilter::parse(&format!("id=={id}")).unwrap();
        let prune = |id: &str| store.prune(&PruneFilter { filters: vec![only(id)], ..EVERYTHING }, false);
        assert_eq!(ids(prune(tar_layer)), std::slice::from_ref(tar_layer));
        assert!(store.blob_path(tar_blob).is_none());
        assert_eq!(ids(prune(&tree_blob.to_string())), [tree_blob.to_string()]);
        assert!(store.find_record(&Key([2; 32])).unwrap().is_some());
        check(&store);
    }

    #[test]
    fn collecting_is_rare_and_cheap_below_the_limits() {
        let (_dir, store) = store();
        layer(&store, 1, 1, Duration::from_secs(1));
        let all = [EVERYTHING];
        let minute = Duration::from_secs(60);
        assert_eq!(
            store.collect(&[PruneFilter::hard_cap(Some(u64::MAX), Some(1))], Duration::ZERO, &|| false).unwrap(),
            []
        );
        assert_eq!(store.collect(&all, minute, &|| false).unwrap(), [], "another collection was just now");
        assert_eq!(store.collect(&all, Duration::ZERO, &|| true).unwrap(), [], "stopped");
        assert_eq!(store.collect(&all, Duration::ZERO, &|| false).unwrap().len(), 1);
    }

    #[test]
    fn limits_combine_as_in_buildkit() {
        let disk = DiskSpace { total_bytes: 1000, free_bytes: 100 };
        let filter = |reserved_space, max_used_space, min_free_space| PruneFilter {
            reserved_space,
            max_used_space,
            min_free_space,
            ..PruneFilter::default()
        };
        for (filter, expected) in [
            (filter(None, None, None), Some(0)),
            (filter(Some(0), Some(0), Some(0)), Some(0)),
            (filter(None, Some(400), None), Some(400)),
            (filter(None, Some(600), None), None),
            (filter(Some(300), None, None), Some(300)),
            (filter(Some(600), None, None), None),
            (filter(None, None, Some(50)), None),
            (filter(None, None, Some(150)), Some(450)),
            (filter(None, Some(480), Some(150)), Some(450)),
            (filter(None, Some(420), Some(150)), Some(420)),
            (filter(Some(470), Some(420), Some(150)), Some(470)),
            (filter(None, None, Some(900)), Some(0)),
        ] {
            assert_eq!(filter.target_bytes(500, disk), expected, "{filter:?}");
        }
        let defaults = PruneFilter::default_policies(DiskSpace { total_bytes: 1 << 40, free_bytes: 0 });
        assert_eq!(defaults.len(), 4);
        assert_eq!(defaults[2].reserved_space, Some(10 * GIB));
        assert_eq!(defaults[2].max_used_space, Some(100 * GIB));
        assert_eq!(defaults[2].min_free_space, Some(205 * GIB));
    }

    #[test]
    fn a_build_that_outlives_the_index_is_waited_for() {
        let (dir, builder) = store();
        let lease = builder.lease().unwrap();
        let layer = layer(&builder, 1, 1, Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(20));
        std::fs::remove_dir_all(builder.root().join("index-v1")).unwrap();
        std::fs::create_dir(builder.root().join("index-v1")).unwrap();
        // The loss of a *corrupt* index leaves its file behind.
        std::fs::write(builder.root().join("index-v1/00000001.sqlite"), vec![0xa5; 8192]).unwrap();
        let collector = Store::open(&dir.path().join("store")).unwrap();
        assert_eq!(collector.prune(&EVERYTHING, false).unwrap(), []);
        assert!(collector.layer(&layer.id).unwrap().is_some());
        drop(lease);
        drop(builder);
        assert!(collector.prune(&EVERYTHING, false).unwrap().iter().any(|record| record.id == layer.id.to_string()));
        check(&collector);
    }
}
