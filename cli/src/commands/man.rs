//! `rbuild man DIR`: manual pages, one a command, out of the help texts.

use std::path::Path;

use clap::{Command, CommandFactory};

use crate::args::Cli;
use crate::failure::Failure;

/// Writes `rbuild.1`, `rbuild-build.1`, `rbuild-image-ls.1` and so on.
pub(crate) fn man(dir: &Path) -> Result<(), Failure> {
    let fault = |path: &Path, error| Failure::environment(format!("cannot write `{}`: {error}", path.display()));
    std::fs::create_dir_all(dir).map_err(|error| fault(dir, error))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    // Names of pages and usage lines are those of the whole command.
    command.build();
    for (name, page) in pages(&command, command.get_name())? {
        let path = dir.join(format!("{name}.1"));
        std::fs::write(&path, page).map_err(|error| fault(&path, error))?;
    }
    Ok(())
}

fn pages(command: &Command, name: &str) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).manual("rbuild");
    man.render(&mut page).map_err(|error| Failure::environment(format!("cannot write the page of {name}: {error}")))?;
    let mut all = vec![(name.to_owned(), page)];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        all.extend(pages(sub, &format!("{name}-{}", sub.get_name()))?);
    }
    Ok(all)
}
