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
        self.apply(std::slice::from_ref(filter), dry_run)
    }

    /// Applies policies in order, unless another process is at it or did so within `interval`.
    ///
    /// For the end of a build, and for a hard cap during one ([`PruneFilter::hard_cap`]): cheap while no limit is
    /// exceeded.
    pub fn collect(&self, policies: &[PruneFilter], interval: Duration) -> Result<Vec<UsageRecord>> {
        let Some(_lock) = self.try_lock("collect")? else { return Ok(Vec::new()) };
        if !self.is_due(interval)? {
            return Ok(Vec::new());
        }
        self.remove_leftovers(&|| false)?;
        let total_bytes = survey::quick_total_bytes(&self.inner)?;
        let disk = self.disk_space()?;
        if policies.iter().all(|policy| policy.target_bytes(total_bytes, disk).is_none()) {
            return Ok(Vec::new());
        }
        self.apply(policies, false)
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

    fn apply(&self, policies: &[PruneFilter], dry_run: bool) -> Result<Vec<UsageRecord>> {
        if !dry_run {
            reserve::spend_when_full(&self.inner.layout);
        }
        let removed = self.apply_to_survey(policies, dry_run);
        if !dry_run {
            reserve::lay_in(&self.inner.layout);
            self.inner.index.tidy();
        }
        removed
    }

    fn apply_to_survey(&self, policies: &[PruneFilter], dry_run: bool) -> Result<Vec<UsageRecord>> {
        let mut survey = survey::survey(&self.inner)?;
        if survey.is_frozen {
            tracing::info!("a build that started before the index was rebuilt still runs; nothing can be removed");
            return Ok(Vec::new());
        }
        let mut remover = Remover::new(&self.inner, dry_run);
        let mut removed = Vec::new();
        for policy in policies {
            for unit in choose(&mut survey, policy, self.disk_space()?) {
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
        let is_leftover = matches!(unit.target, Target::DeadSession(_) | Target::SupersededIndex(_));
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
