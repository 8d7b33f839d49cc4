//! What each command does.

mod advice;
mod build;
mod builds;
mod check;
mod context;
mod cp;
mod diff;
mod doctor;
mod explain;
mod history;
mod image;
mod image_filter;
mod images;
mod imagetools;
mod inspect;
mod listing;
mod login;
mod man;
mod manifest;
mod merge;
mod remove;
mod repro;
pub(crate) mod room;
mod run;
mod save;
mod space;
mod store;
mod table;
mod transfer;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cache::{Bucket, Store};
use clap::CommandFactory;
use executor::sandbox::{Isolation, kill_lost};

use crate::args::{
    Cli, Command, ContextCommand, Global, ImageCommand, ImagetoolsCommand, ManifestCommand, StoreCommand,
};
use crate::failure::Failure;
use crate::request::BuildRequest;
use crate::ui;

/// Runs the command.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let dir = cli.global.store.clone();
    dispatch(cli).map_err(|failure| room::locate(failure, dir.as_deref()))
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Build(args) => {
            let request = BuildRequest::check(*args)?;
            match request.call {
                None => build::build(&request, &cli.global),
                Some(call) => check::run(&request, call, &cli.global),
            }
        }
        Command::Run(args) => {
            let store = open_store(&cli.global)?;
            let _leftovers = remove_leftovers(&store, cli.global.confinement.isolation);
            run::run(&store, args, &cli.global.confinement)
        }
        Command::Images(args) => images::images(&open_store(&cli.global)?, &args, now()),
        Command::Tag(args) => images::tag(&open_store(&cli.global)?, &args),
        Command::Rmi(args) => remove::rmi(&open_store(&cli.global)?, &args),
        Command::Inspect(args) => inspect::inspect(&open_store(&cli.global)?, &args),
        Command::History(args) => history::history(&open_store(&cli.global)?, &args, now()),
        Command::Image { command: ImageCommand::Prune(args) } => remove::prune(&open_store(&cli.global)?, &args, now()),
        Command::Image { command } => dispatch(Cli { command: by_its_own_name(command), global: cli.global }),
        Command::Save(args) => save::save(&open_store(&cli.global)?, &args, &cli.global.confinement),
        Command::Load(args) => save::load(&open_store(&cli.global)?, &args),
        Command::Cp(args) => cp::cp(&open_store(&cli.global)?, &args, &cli.global.confinement),
        Command::Manifest { command: ManifestCommand::Inspect(args) } => {
            manifest::inspect(&open_store(&cli.global)?, &args, &cli.global.confinement)
        }
        Command::Imagetools { command: ImagetoolsCommand::Inspect(args) } => {
            imagetools::inspect(&open_store(&cli.global)?, &args, &cli.global.confinement)
        }
        Command::Imagetools { command: ImagetoolsCommand::Create(args) } => {
            merge::create(&open_store(&cli.global)?, &args, &cli.global.confinement)
        }
        Command::Diff(args) => diff::diff(&open_store(&cli.global)?, &args, &cli.global.confinement),
        Command::Explain(args) => explain::explain(&open_store(&cli.global)?, &args, now()),
        Command::Builds(args) => builds::builds(&open_store(&cli.global)?, &args, now()),
        Command::Context { command: ContextCommand::Ls(args) } => context::ls(&args),
        Command::Repro(args) => repro::repro(args, &cli.global),
        Command::Merge(args) => merge::merge(&open_store(&cli.global)?, &args, &cli.global.confinement),
        Command::Push(args) => transfer::push(&open_store(&cli.global)?, &args, &cli.global.confinement),
        Command::Pull(args) => {
            let store = open_store(&cli.global)?;
            let _leftovers = remove_leftovers(&store, cli.global.confinement.isolation);
            transfer::pull(&store, &args, &cli.global.confinement)
        }
        Command::Login(args) => login::login(&args),
        Command::Logout(args) => login::logout(&args),
        Command::Du(args) => space::du(&open_store(&cli.global)?, &args, now()),
        Command::Prune(args) => space::prune(&open_store(&cli.global)?, &args, now()),
        Command::Store { command: StoreCommand::Check(args) } => store::check(&open_store(&cli.global)?, &args),
        Command::Doctor(args) => doctor::doctor(&cli.global, &args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rbuild", &mut script);
            Ok(ui::stdout(&String::from_utf8_lossy(&script))?)
        }
        Command::Man { dir } => man::man(&dir),
    }
}

/// A command of the group `image` as the command that it is. Pruning images has no other name.
fn by_its_own_name(command: ImageCommand) -> Command {
    match command {
        ImageCommand::Ls(args) => Command::Images(args),
        ImageCommand::Rm(args) => Command::Rmi(args),
        ImageCommand::Tag(args) => Command::Tag(args),
        ImageCommand::Inspect(args) => Command::Inspect(args),
        ImageCommand::History(args) => Command::History(args),
        ImageCommand::Push(args) => Command::Push(args),
        ImageCommand::Pull(args) => Command::Pull(args),
        ImageCommand::Save(args) => Command::Save(args),
        ImageCommand::Load(args) => Command::Load(args),
        prune @ ImageCommand::Prune(_) => Command::Image { command: prune },
    }
}

/// Opens the store that flags and environment name.
fn open_store(global: &Global) -> Result<Store, Failure> {
    let dir = global.store.as_deref().ok_or_else(|| Failure::usage("this command has no store"))?;
    open_store_at(dir, global)
}

/// Opens another store, for the tier of this process.
fn open_store_at(dir: &Path, global: &Global) -> Result<Store, Failure> {
    let help = "name another directory with --store DIR, or with RBUILD_STORE in the environment";
    let store = Store::open(dir).map_err(|error| Failure::from(error).help(help))?;
    let style = global.confinement.isolation.tree_style().name();
    store.claim(style).map_err(|error| {
        let tier = global.confinement.isolation.name();
        Failure::from(error)
            .help(format!("steps are kept apart by `{tier}` now, which reads layers in another way"))
            .help(help)
    })?;
    Ok(store)
}

/// Removes what killed processes left, beside the work of the command; waits for the end when dropped.
fn remove_leftovers(store: &Store, isolation: Isolation) -> Leftovers {
    let store = store.clone();
    let look = move || {
        match store.remove_leftovers(&|| false) {
            Ok(0) => {}
            Ok(n_processes) => tracing::debug!(n_processes, "removed what a killed process left"),
            Err(error) => tracing::debug!(%error, "cannot remove what a killed process left"),
        }
        executor::sandbox::remove_abandoned_groups();
        // Elsewhere, a killed program takes its steps with it.
        if isolation == Isolation::Chroot {
            kill_lost(&store.root().join(Bucket::Temporary.name()));
        }
    };
    // Without a thread, the next command does it.
    Leftovers(std::thread::Builder::new().name("leftovers".to_owned()).spawn(look).ok())
}

/// A cleaning in progress.
struct Leftovers(Option<JoinHandle<()>>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // It has nothing to tell.
            drop(thread.join());
        }
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    clock().1.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Both clocks at one moment.
fn clock() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}
