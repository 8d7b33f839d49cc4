//! `rbuild history` (`spec/cli.md` §6).

use cache::Store;
use serde_json::{Value, json};

use super::image::find;
use super::listing::Listing;
use crate::args::HistoryArgs;
use crate::failure::Failure;
use crate::request::platform;
use crate::ui;
use crate::ui::format::{ago, size_short};

/// Characters of a command that a line has room for.
const COMMAND_WIDTH: usize = 45;

const LISTING: Listing = Listing {
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
};

/// As the table, with dates.
const WITH_DATES: Listing =
    Listing { table: "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}", ..LISTING };

/// Prints the history, newest first.
pub(crate) fn history(store: &Store, args: &HistoryArgs, now: i64) -> Result<(), Failure> {
    let whole = find(store, &args.image)?.swap_remove(0);
    let image = match &args.platform {
        Some(text) => whole.for_platform(&platform(text)?, &args.image)?,
        None => whole.shown(),
    };
    let mut layers = image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers);
    let mut rows = Vec::new();
    for entry in &image.config.history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        let bytes = match layer {
            Some((diff_id, blob)) => store.layer_for_diff_id(diff_id)?.tar_bytes.unwrap_or(blob.size_bytes),
            None => 0,
        };
        let created = entry.created.as_deref().and_then(|time| oci::time::parse_rfc3339(time).ok());
        let is_whole = args.no_trunc || args.format != "table";
        rows.push(json!({
            "ID": "<missing>",
            "CreatedAt": entry.created,
            "CreatedSince": created.map_or_else(|| "N/A".to_owned(), |(seconds, _)| ago(now - seconds)),
            "CreatedBy": if is_whole { entry.created_by.clone() } else { clipped(&entry.created_by, COMMAND_WIDTH) },
            "Size": if args.human { size_short(bytes) } else { bytes.to_string() },
            "Comment": entry.comment,
        }));
    }
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        newest["ID"] = Value::from(if args.no_trunc { image.id().to_string() } else { image.id().short() });
    }
    let listing = if args.human { &LISTING } else { &WITH_DATES };
    let format = if args.quiet { "{{.ID}}" } else { &args.format };
    Ok(ui::stdout(&listing.render(format, &rows)?)?)
}

fn clipped(text: &str, width: usize) -> String {
    // A tab or a new line would end a cell.
    let text = text.replace(['\t', '\n'], " ");
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
