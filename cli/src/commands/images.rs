//! `rbuild images` and `rbuild tag` (`spec/cli.md` §6).

use cache::Store;
use serde_json::{Value, json};

use super::image::{Image, all, created_at, find, names, size_bytes};
use super::image_filter::ImageFilter;
use super::listing::{Listing, date};
use crate::args::{ImagesArgs, TagArgs};
use crate::failure::Failure;
use crate::ui;
use crate::ui::format::{ago, size_short};

const HEADINGS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
    ("Platforms", "PLATFORMS"),
];

const USUAL: Listing =
    Listing { headings: HEADINGS, table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}" };

const WITH_DIGESTS: Listing = Listing {
    headings: HEADINGS,
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
};

/// Lists images, newest first.
pub(crate) fn images(store: &Store, args: &ImagesArgs, now: i64) -> Result<(), Failure> {
    let mut filter = ImageFilter::from_flags(store, &args.filters, now)?;
    if let Some(pattern) = &args.repository {
        filter.and_name(pattern)?;
    }
    let mut images = all(store)?;
    images.retain(|image| filter.matches(image));
    let name = |image: &Image| image.stored.reference.as_ref().map(ToString::to_string);
    images.sort_by_cached_key(|image| (std::cmp::Reverse(created_at(image)), name(image)));
    let rows = images.iter().map(|image| row(store, image, args.no_trunc, now)).collect::<Result<Vec<_>, _>>()?;
    let listing = if args.digests { &WITH_DIGESTS } else { &USUAL };
    let format = if args.quiet { "{{.ID}}" } else { &args.format };
    Ok(ui::stdout(&listing.render(format, &rows)?)?)
}

/// The fields of one image, with docker's names.
fn row(store: &Store, image: &Image, whole_id: bool, now: i64) -> Result<Value, Failure> {
    let (repository, tag) = names(image.stored.reference.as_ref());
    let created_at = created_at(image);
    let size = size_short(size_bytes(store, image.platforms())?);
    let platforms: Vec<String> = image.platforms().iter().map(|image| image.platform().to_string()).collect();
    Ok(json!({
        "ID": if whole_id { image.id().to_string() } else { image.id().short() },
        "Repository": repository,
        "Tag": tag,
        "Digest": image.stored.target.digest,
        "CreatedSince": ago(now - created_at),
        "CreatedAt": date(created_at),
        "Size": size,
        "VirtualSize": size,
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
        "Containers": "N/A",
        "Platforms": platforms,
    }))
}

/// Gives an image another name.
pub(crate) fn tag(store: &Store, args: &TagArgs) -> Result<(), Failure> {
    let image = find(store, &args.source)?.swap_remove(0);
    Ok(store.tag(&crate::request::parse_tag(&args.target)?, &image.stored.target)?)
}
