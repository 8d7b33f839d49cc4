//! Triggers: instructions that a base leaves for its children. Spec: `spec/dockerfile.md` §4.5.

use oci::Platform;
use parser::instruction::InstructionKind;

use super::error::PlanError;
use super::resolve::{Origin, Origins, Wanted};
use super::stages::{Base, Source, StageIdx, Stages, Step, check_name};

impl Stages {
    /// Puts the triggers of its base before the instructions of a stage. Returns whether there were any; then the
    /// stage may need more than was known.
    ///
    /// The base's image must have been found. Does nothing the second time.
    ///
    /// # Errors
    /// A trigger that is no instruction, or that names nothing that could be copied from, at the line of FROM.
    pub(super) fn add_triggers(
        &mut self,
        index: StageIdx,
        origins: &Origins,
        target: &Platform,
    ) -> Result<bool, PlanError> {
        let stage = &self.list[index];
        if stage.triggers_known || stage.replaced_by.is_some() {
            return Ok(false);
        }
        let lines = stage.lines;
        let triggers = self.triggers_of_base(index, origins, target);
        let steps = triggers.iter().map(|text| self.trigger(index, text)).collect::<Result<Vec<Step>, _>>();
        let steps = steps.map_err(|mut fault| {
            fault.locations.clear();
            fault.at(lines)
        })?;
        let stage = &mut self.list[index];
        stage.triggers_known = true;
        let found = !steps.is_empty();
        stage.steps.splice(0..0, steps);
        Ok(found)
    }

    /// From the image's config; or, when the base is a stage, the ONBUILD lines of that stage itself.
    fn triggers_of_base(&self, index: StageIdx, origins: &Origins, target: &Platform) -> Vec<String> {
        let of_image = |name: &str, platform: &Option<Platform>| {
            let platform = platform.clone().unwrap_or_else(|| target.clone());
            match origins.get(&Wanted { name: name.to_owned(), platform }) {
                Some(Origin::Image(image)) => image.resolved.config.config.on_build.clone(),
                _ => Vec::new(),
            }
        };
        let stage = &self.list[index];
        match &stage.base {
            Base::Outside(name) => of_image(name, &stage.platform),
            Base::Stage(base) => {
                let base = &self.list[*base];
                if let (Some(_), Some(name)) = (&base.replaced_by, &base.name) {
                    return of_image(name, &base.platform);
                }
                let texts = base.steps.iter().filter_map(|step| match &step.instruction.kind {
                    InstructionKind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                });
                texts.collect()
            }
        }
    }

    fn trigger(&self, index: StageIdx, text: &str) -> Result<Step, PlanError> {
        let lines = self.list[index].lines;
        let mut instruction = parser::parse_onbuild_trigger(text)?;
        // Whatever is said about a trigger is said at the FROM that brought it.
        instruction.lines = lines;
        instruction.warnings.iter_mut().for_each(|warning| warning.lines = lines);
        let sources = self.sources_of(&instruction, index)?;
        for source in &sources {
            if let Source::Outside(name) = source {
                check_name(name, lines)?;
            }
        }
        Ok(Step { instruction, sources, is_trigger: true })
    }
}
