//! `rbuild cp`: files out of an image, without running anything.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use cache::Store;
use executor::copy_path::{CopyPathError, Wanted, copy_path, tar_path};
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use executor::view::RootView;
use solver::{Chain, OpError, Step};

use super::image::find;
use super::transfer::{step, with_transfer};
use crate::args::CpArgs;
use crate::failure::Failure;
use crate::request::platform;

/// Copies one path.
pub(crate) fn cp(store: &Store, args: &CpArgs, confinement: &Confinement) -> Result<(), Failure> {
    let (name, path) = split(&args.source)?;
    if args.dest == "-" && std::io::stdout().is_terminal() {
        return Err(
            Failure::usage("a tar is not written to a terminal").help("redirect standard output, or name a directory")
        );
    }
    let whole = match find(store, name) {
        Ok(mut found) => found.swap_remove(0),
        // A tag is no path.
        Err(_) if find(store, &args.source).is_ok() => return Err(no_path(&args.source)),
        Err(failure) => return Err(failure),
    };
    let image = match &args.platform {
        Some(text) => whole.for_platform(&platform(text)?, name)?,
        None => whole.shown(),
    };
    let diff_ids = image.config.rootfs.diff_ids.clone();
    let wanted = Wanted { path, follow: args.follow_link, keep_owners: args.archive };
    with_transfer(store, confinement, true, PullPolicy::Missing, None, async |transfer| {
        let layers = diff_ids.iter().map(|diff_id| Ok(store.layer_for_diff_id(diff_id)?.layer));
        let chain = Chain::new(layers.collect::<Result<_, OpError>>()?);
        let work = async |step: Step| transfer.images.ensure_trees(&chain, &step, &transfer.cancel).await;
        let trees = step(&transfer.progress, "unpacking layers".to_owned(), work).await?;
        // Trees stay as long as the transfer lasts.
        Ok(tokio::task::block_in_place(|| copy(&trees, &wanted, &args.dest))?)
    })
}

fn copy(trees: &[PathBuf], wanted: &Wanted<'_>, dest: &str) -> Result<(), CopyPathError> {
    let root = RootView::open(trees)?;
    match dest {
        "-" => tar_path(&root, wanted, &mut std::io::stdout().lock()),
        dest => copy_path(&root, wanted, Path::new(dest)),
    }
}

/// Name and path; the name may have a port and a tag, so the path begins at the first `:/`, else behind the last colon.
fn split(text: &str) -> Result<(&str, &str), Failure> {
    let at = text.find(":/").or_else(|| text.rfind(':'));
    match at.map(|at| (&text[..at], &text[at + 1..])) {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name, path)),
        _ => Err(no_path(text)),
    }
}

fn no_path(text: &str) -> Failure {
    Failure::usage(format!("`{text}` names no path in an image: expected IMAGE:PATH"))
        .help("for instance `rbuild cp app:1.0:/etc/os-release .`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_begins_behind_the_name() {
        for (text, name, path) in [
            ("app:/etc", "app", "/etc"),
            ("app:1.0:/etc/a:b", "app:1.0", "/etc/a:b"),
            ("r.example:5000/app:1.0:/x", "r.example:5000/app:1.0", "/x"),
            ("app:1.0:etc", "app:1.0", "etc"),
            ("app:.", "app", "."),
        ] {
            assert_eq!(split(text).ok(), Some((name, path)), "{text}");
        }
        assert!(split("app").is_err() && split(":/x").is_err() && split("app:").is_err());
    }
}
