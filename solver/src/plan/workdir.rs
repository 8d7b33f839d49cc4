//! WORKDIR: the directory of later instructions, made at once. Spec: `spec/dockerfile.md` §2.9.

use parser::lint;

use super::error::PlanError;
use super::history::PlannedHistory;
use super::ownership::{self, Accounts};
use super::paths;
use super::stage::StageBuilder;
use crate::graph::Input;
use crate::op::{FileAction, FileOp, MakeDirAction, Op, Owner};

/// Mode of directories that WORKDIR makes.
const MODE: u32 = 0o755;

impl StageBuilder<'_> {
    pub(super) fn workdir(&mut self, text: &str) -> Result<(), PlanError> {
        let path = self.expand(text)?;
        let is_first = !std::mem::replace(&mut self.state.workdir_is_set, true);
        if is_first && !path.starts_with('/') {
            let (lines, checks) = (self.here.lines, self.here.checks.clone());
            self.findings.raise(lint::Warning::workdir_relative_path(&path, lines, &checks));
        }
        let directory = paths::workdir(&self.state.config.config.working_dir, &path);
        let created_by = format!("WORKDIR {directory}");
        self.state.config.config.working_dir = directory.clone();
        if directory == "/" {
            self.state.history.push(PlannedHistory::metadata(created_by));
            return Ok(());
        }
        let action = MakeDirAction {
            path: paths::clean(&directory),
            mode: MODE,
            owner: self.directory_owner()?,
            mtime: self.target.epoch.seconds,
        };
        let op = Op::File(FileOp { actions: vec![FileAction::MakeDir(action)] });
        let text = self.shown_instruction();
        let name = self.step_name(&text);
        let vertex = self.add_vertex(op, vec![self.state.root], name, "");
        self.state.root = Input::Vertex(vertex);
        self.state.history.push(PlannedHistory::layer(created_by, vertex));
        Ok(())
    }

    /// USER owns what WORKDIR makes; `None` is root.
    fn directory_owner(&self) -> Result<Option<Owner>, PlanError> {
        let user = &self.state.config.config.user;
        if user.is_empty() {
            return Ok(None);
        }
        let accounts = if self.state.root == Input::Scratch { Accounts::None } else { Accounts::OfRoot };
        ownership::owner(user, accounts).map(Some).map_err(PlanError::input)
    }
}
