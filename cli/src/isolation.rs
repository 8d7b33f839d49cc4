//! What steps are kept apart by: chosen and entered before anything else, because a user namespace can only be entered
//! by a program with one thread.

use executor::sandbox::{Confinement, EnterError, IsolationMode, TreeStyle, confine, probe};

use crate::args::{Cli, Command};
use crate::env;
use crate::failure::Failure;

/// Gives this process what `--isolation` asks for, and notes it together with the store that goes with it.
///
/// Owners and marks in a store are as the tier has them, so one that is not the user's usual one has another default.
pub(crate) fn enter(cli: &mut Cli) -> Result<(), Failure> {
    if !needs_store(&cli.command) {
        return Ok(());
    }
    let global = &mut cli.global;
    let mode = IsolationMode::parse(&global.isolation).ok_or_else(|| {
        Failure::usage(format!("--isolation: there is no `{}`", global.isolation))
            .help(format!("the modes are {}", IsolationMode::NAMES))
    })?;
    let is_root = rustix::process::geteuid().is_root();
    let is_doctor = matches!(cli.command, Command::Doctor(_));
    if is_doctor {
        global.tiers = probe::tiers();
    }
    global.confinement = match confine(&mode, &env::var("PATH").unwrap_or_default()) {
        // It is asked why.
        Err(error) if is_doctor => Confinement { reasons: vec![error.to_string()], ..Confinement::default() },
        confinement => confinement.map_err(failure)?,
    };
    let style = global.confinement.isolation.tree_style();
    tracing::debug!(isolation = ?global.confinement.isolation, reasons = ?global.confinement.reasons, "isolation");
    if global.store.is_none() {
        global.store = env::named_store();
    }
    if global.store.is_none() {
        let mut dir = env::default_store(is_root).ok_or_else(|| {
            Failure::usage("cannot tell where the store lies: HOME is not set")
                .help("name a directory with --store DIR")
        })?;
        let usual = if is_root { TreeStyle::Trusted } else { TreeStyle::User };
        if style != usual
            && let Some(name) = dir.file_name()
        {
            let name = format!("{}-{}", name.to_string_lossy(), style.name());
            dir.set_file_name(name);
        }
        global.store = Some(dir);
    }
    Ok(())
}

/// Whether a command works with a store; the others need nothing of all this.
fn needs_store(command: &Command) -> bool {
    !matches!(command, Command::Login(_) | Command::Logout(_) | Command::Completion { .. } | Command::Man { .. })
}

fn failure(error: EnterError) -> Failure {
    let failure = Failure::environment(error.to_string());
    match error {
        EnterError::Refused { .. } => failure.help("`--isolation=auto` takes what there is; `rbuild doctor` says what is missing"),
        EnterError::NoSubordinateIds { .. } => {
            failure.help("`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` gives some; uidmap has the programs")
        }
        EnterError::NoRuntime(_) => failure.help("install it, or give its path: --isolation=oci:/usr/bin/crun"),
        EnterError::Missing { .. } => failure.help("`--isolation=auto` takes what there is"),
        EnterError::Helper { .. } | EnterError::Map { .. } => failure,
    }
}
