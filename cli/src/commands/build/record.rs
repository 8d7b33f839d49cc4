//! Writes the record of a build into the store, so that the next one and people know what it did.

use std::time::Instant;

use cache::{BuildName, Store};
use solver::Notes;
use solver::plan::PlanRequest;
use solver::record::{BuildRecord, Status, VERSION};
use tokio::task::JoinHandle;

use super::Built;
use crate::failure::Failure;
use crate::request::BuildRequest;

/// A build under way.
pub(super) struct Recorder {
    store: Store,
    name: BuildName,
    began: Instant,
    record: BuildRecord,
    notes: Notes,
}

/// The steps of a record, which are put together beside the export.
pub(super) struct Steps(JoinHandle<Vec<solver::record::StepRecord>>);

impl Recorder {
    /// Begins to record what `plan` asks for.
    pub(super) fn new(store: &Store, request: &BuildRequest, plan: &PlanRequest, began: Instant) -> Self {
        let subject = &plan.dockerfile_identity;
        let ignored_by = if request.no_cache { "--no-cache" } else { "--no-cache-filter" };
        let name = BuildName::new(subject);
        let record = BuildRecord {
            version: VERSION,
            subject: subject.clone(),
            dockerfile: plan.dockerfile.name.clone(),
            target: plan.target.clone(),
            platforms: plan.platforms.iter().map(ToString::to_string).collect(),
            began_at_ms: name.began_at_ms,
            ..BuildRecord::default()
        };
        Self { store: store.clone(), name, began, record, notes: Notes::new(store, subject, ignored_by) }
    }

    /// What the solver tells of its steps.
    pub(super) fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Puts the steps together, which are known by now, while other things are done.
    pub(super) fn gather(&self) -> Steps {
        let (notes, store) = (self.notes.clone(), self.store.clone());
        Steps(tokio::task::spawn_blocking(move || notes.steps(&store)))
    }

    /// Writes how the build ended. Not to be able to is no failure of the build.
    pub(super) async fn finish(self, steps: Steps, result: &Result<Built, Failure>) {
        let Self { store, name, began, mut record, .. } = self;
        record.steps = steps.0.await.unwrap_or_default();
        record.ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(built) => {
                record.tags.clone_from(&built.finished.names);
                record.image = built.finished.image_id().map(ToString::to_string);
            }
            Err(Failure::Failed(report)) if report.tier == solver::Tier::Cancelled => record.status = Status::Canceled,
            Err(Failure::Failed(report)) => {
                (record.status, record.error) = (Status::Failed, Some(report.message.clone()));
            }
            Err(_) => record.status = Status::Failed,
        }
        if let Err(error) = store.put_build(&name, &record.to_json()) {
            tracing::debug!(%error, "the record of the build is not kept");
        }
    }
}
