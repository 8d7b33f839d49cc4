//! `rbuild doctor`: what this machine offers, what was found of it, and what each missing thing would need.
//!
//! [`machine`], [`surroundings`] and, for one image, [`registry`] look and word; this prints.

mod machine;
mod registry;
mod surroundings;

use executor::sandbox::Isolation;
use serde_json::json;

use super::table::Table;
use crate::args::{DoctorArgs, Global};
use crate::failure::Failure;
use crate::ui;

/// One line: something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What would have to be done; only where something is not as it could be.
    need: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    /// Builds work, with less than there could be.
    Warn,
    /// It is not there.
    Missing,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Missing => "MISSING",
        }
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), need: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, need: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), need: Some(need.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, need: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, found: found.into(), need: Some(need.into()) }
    }
}

/// What comes of all checks.
struct Diagnosis {
    checks: Vec<Check>,
    /// Why steps cannot be run; `None` when they can.
    obstacle: Option<String>,
}

/// Looks at everything, or at the registry of one image, and says it.
///
/// # Errors
/// A failure of the environment when builds with RUN cannot work, or the image cannot be asked for.
pub(crate) fn doctor(global: &Global, args: &DoctorArgs) -> Result<(), Failure> {
    if let Some(reference) = &args.reference {
        let (checks, failure) = registry::examine(reference)?;
        let text = match args.format.as_str() {
            "json" => format!("{:#}\n", json!({ "answers": failure.is_none(), "checks": list(&checks) })),
            _ => table(&checks),
        };
        ui::stdout(&text)?;
        return failure.map_or(Ok(()), Err);
    }
    let diagnosis = diagnose(global);
    let text = match args.format.as_str() {
        "json" => as_json(&diagnosis),
        _ => table(&diagnosis.checks),
    };
    ui::stdout(&text)?;
    match diagnosis.obstacle {
        None => Ok(()),
        Some(reason) => Err(Failure::environment(format!("RUN steps do not work here: {reason}"))
            .help("the lines that say MISSING name what is needed; COPY, ADD and everything about images work")),
    }
}

fn diagnose(global: &Global) -> Diagnosis {
    let confinement = &global.confinement;
    let mut checks = machine::isolation(confinement, &global.tiers);
    let (kernel, no_kernel) = machine::kernel();
    checks.extend(kernel);
    let (layers, no_layers) = surroundings::layers(global.store.as_deref(), confinement.isolation);
    checks.push(layers);
    checks.extend(machine::control_groups());
    checks.extend(machine::network());
    checks.extend(machine::emulators());
    checks.push(machine::runtimes());
    checks.push(surroundings::devices(&global.devices()));
    checks.extend(surroundings::programs());
    checks.extend(surroundings::store(global.store.as_deref(), confinement.isolation));
    checks.extend(surroundings::environment());
    checks.extend(machine::limits());
    let nothing = (confinement.isolation == Isolation::Nothing).then(|| Isolation::Nothing.describe().to_owned());
    Diagnosis { checks, obstacle: nothing.or(no_kernel).or(no_layers) }
}

fn table(checks: &[Check]) -> String {
    let mut table = Table::new(&["STATUS", "WHAT", "FOUND"]);
    for check in checks {
        let found = match &check.need {
            Some(need) => format!("{}; {need}", check.found),
            None => check.found.clone(),
        };
        table.row(vec![check.status.word().to_owned(), check.name.to_owned(), found]);
    }
    table.render()
}

fn as_json(diagnosis: &Diagnosis) -> String {
    let whole = json!({
        "run_steps_work": diagnosis.obstacle.is_none(),
        "obstacle": diagnosis.obstacle,
        "checks": list(&diagnosis.checks),
    });
    format!("{whole:#}\n")
}

fn list(checks: &[Check]) -> Vec<serde_json::Value> {
    let one = |check: &Check| {
        json!({
            "what": check.name,
            "status": check.status.word(),
            "found": check.found,
            "need": check.need,
        })
    };
    checks.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_needs_follow() {
        let checks = [Check::ok("git", "/usr/bin/git"), Check::missing("pasta", "not on PATH", "install passt")];
        assert_eq!(
            table(&checks),
            "STATUS    WHAT    FOUND\n\
             OK        git     /usr/bin/git\n\
             MISSING   pasta   not on PATH; install passt\n"
        );
    }

    #[test]
    fn the_json_form_has_every_fact() {
        let diagnosis =
            Diagnosis { checks: vec![Check::warn("store", "full", "prune")], obstacle: Some("no".to_owned()) };
        let json: serde_json::Value = serde_json::from_str(&as_json(&diagnosis)).expect("JSON");
        assert_eq!(json["run_steps_work"], false);
        assert_eq!(json["checks"][0]["status"], "WARN");
        assert_eq!(json["checks"][0]["need"], "prune");
    }
}
