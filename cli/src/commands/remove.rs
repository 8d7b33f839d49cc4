//! `rbuild rmi` and `rbuild image prune` (`spec/cli.md` §6).

use std::io::{BufRead, IsTerminal, Write};

use cache::{PruneFilter, Store};

use super::image::{Image, all, find, names};
use super::image_filter::ImageFilter;
use crate::args::{ImagePruneArgs, RmiArgs};
use crate::failure::Failure;
use crate::ui;
use crate::ui::format::size_short;

/// Removes names, and images without names.
pub(crate) fn rmi(store: &Store, args: &RmiArgs) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for text in &args.images {
        let images = match find(store, text) {
            Ok(images) => images,
            Err(failure) => {
                missing.push(failure);
                continue;
            }
        };
        if images.len() > 1 && !args.force {
            let names: Vec<String> =
                images.iter().map(|image| names(image.stored.reference.as_ref())).map(joined).collect();
            let message = format!("image `{text}` has several names: {}", names.join(", "));
            return Err(Failure::input(message).help("name one of them, or remove all with --force"));
        }
        for image in images {
            ui::stdout(&remove(store, &image)?.join("\n"))?;
            ui::stdout("\n")?;
        }
    }
    match missing.into_iter().next() {
        Some(failure) if !args.force => Err(failure),
        _ => Ok(()),
    }
}

/// Removes what the filters leave, and says how much room that made.
pub(crate) fn prune(store: &Store, args: &ImagePruneArgs, now: i64) -> Result<(), Failure> {
    if let Some(flag) = args.filters.iter().find(|flag| !flag.starts_with("until=") && !flag.starts_with("label")) {
        return Err(Failure::usage(format!("invalid filter `{flag}`: there are until, label, label!")));
    }
    let filter = ImageFilter::from_flags(store, &args.filters, now)?;
    if !args.force && !confirmed(args.all)? {
        return Ok(());
    }
    let mut lines = Vec::new();
    for image in all(store)? {
        if (args.all || image.stored.reference.is_none()) && filter.matches(&image) {
            lines.extend(remove(store, &image)?);
        }
    }
    // What no image and no cached step leads to any more; the cache itself stays.
    let garbage = PruneFilter { reserved_space: Some(u64::MAX), ..PruneFilter::default() };
    let removed = if lines.is_empty() { Vec::new() } else { store.prune(&garbage, false)? };
    let bytes: u64 = removed.iter().map(|record| record.size_bytes).sum();
    let mut text = String::new();
    if !lines.is_empty() {
        text = format!("Deleted Images:\n{}\n\n", lines.join("\n"));
    }
    Ok(ui::stdout(&format!("{text}Total reclaimed space: {}\n", size_short(bytes)))?)
}

/// Removes one name, or an image that has none; says so in docker's words.
fn remove(store: &Store, image: &Image) -> Result<Vec<String>, Failure> {
    let digest = &image.stored.target.digest;
    let mut lines = Vec::new();
    match &image.stored.reference {
        Some(reference) => {
            store.untag(reference)?;
            lines.push(format!("Untagged: {}", reference.familiar()));
        }
        None => {
            store.remove_dangling(digest)?;
        }
    }
    let still_named = store.images()?.iter().any(|other| other.target.digest == *digest);
    if !still_named {
        lines.push(format!("Deleted: {}", image.id()));
    }
    Ok(lines)
}

/// Asks on the terminal. Without one there is nobody to ask, and nothing is removed.
fn confirmed(all: bool) -> Result<bool, Failure> {
    let what = if all { "all images" } else { "all dangling images" };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("this removes {what}, and there is no terminal to confirm it on"))
            .help("say --force"));
    }
    ui::stderr(|out| write!(out, "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn joined((repository, tag): (String, String)) -> String {
    format!("{repository}:{tag}")
}
