//! `rbuild builds`: the last builds, as far as the store remembers them.

use cache::{BuildName, Store};
use serde_json::json;
use solver::record::{BuildRecord, Status, StepOutcome};

use super::listing::{Listing, date};
use crate::args::BuildsArgs;
use crate::failure::Failure;
use crate::ui;
use crate::ui::format::ago;

const LISTING: Listing = Listing {
    headings: &[
        ("ID", "BUILD ID"),
        ("Name", "NAME"),
        ("Dockerfile", "DOCKERFILE"),
        ("Status", "STATUS"),
        ("CreatedSince", "CREATED AT"),
        ("CreatedAt", "CREATED AT"),
        ("Duration", "DURATION"),
        ("Steps", "STEPS"),
        ("Cached", "CACHED"),
        ("Image", "IMAGE"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Status}}\t{{.CreatedSince}}\t{{.Duration}}\t{{.Cached}}",
};

/// Lists the builds, newest first.
pub(crate) fn builds(store: &Store, args: &BuildsArgs, now: i64) -> Result<(), Failure> {
    let known = store.builds().into_iter().filter_map(|name| Some((read(store, &name)?, name)));
    let rows: Vec<_> = known
        .map(|(record, name)| {
            let (n_cached, n_steps) = counts(&record);
            let seconds = (name.began_at_ms / 1000).cast_signed();
            json!({
                "ID": name.id,
                "Name": title(&record),
                "Dockerfile": record.subject,
                "Status": status(&record),
                "CreatedAt": date(seconds),
                "CreatedSince": ago(now - seconds),
                "Duration": duration(record.ms),
                "Steps": n_steps.to_string(),
                "Cached": format!("{n_cached}/{n_steps}"),
                "Image": record.image.unwrap_or_default(),
            })
        })
        .collect();
    let format = if args.quiet { "{{.ID}}" } else { &args.format };
    Ok(ui::stdout(&LISTING.render(format, &rows)?)?)
}

/// The one of `builds`, newest first, that a user names: the beginning of an ID, or `^N`.
pub(super) fn find(store: &Store, builds: Vec<BuildName>, text: &str) -> Result<(BuildName, BuildRecord), Failure> {
    let help = "`rbuild builds` lists what there is; `^0` is the last one, `^1` the one before";
    let name = match text.strip_prefix('^') {
        Some(number) => {
            let number: usize =
                number.parse().map_err(|_| Failure::usage(format!("`{text}` names no build")).help(help))?;
            builds.into_iter().nth(number)
        }
        None => {
            let mut found = builds.into_iter().filter(|build| !text.is_empty() && build.id.starts_with(text));
            let first = found.next();
            if found.next().is_some() {
                return Err(Failure::usage(format!("several builds begin with `{text}`")).help(help));
            }
            first
        }
    };
    let name = name.ok_or_else(|| match text {
        "^0" => Failure::input("there is no build to explain").help("builds are remembered from now on: `rbuild .`"),
        _ => Failure::input(format!("there is no build `{text}`")).help(help),
    })?;
    let record = read(store, &name)
        .ok_or_else(|| Failure::input(format!("the record of build {} cannot be read", name.id)).help(help))?;
    Ok((name, record))
}

fn read(store: &Store, name: &BuildName) -> Option<BuildRecord> {
    BuildRecord::from_json(&store.read_build(name)?)
}

/// What a build is called: the first name of its image, else its Dockerfile.
pub(super) fn title(record: &BuildRecord) -> String {
    record.tags.first().unwrap_or(&record.subject).clone()
}

/// How many steps were found, and how many were needed.
pub(super) fn counts(record: &BuildRecord) -> (usize, usize) {
    let n_cached = record.steps.iter().filter(|step| step.outcome == StepOutcome::Cached).count();
    (n_cached, record.steps.len())
}

pub(super) fn status(record: &BuildRecord) -> &'static str {
    match record.status {
        Status::Completed => "Completed",
        Status::Failed => "Error",
        Status::Canceled => "Canceled",
    }
}

/// A time span for people: `12ms`, `3.4s`, `2m 5s`.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{:.1}s", ms as f64 / 1000.0),
        _ => format!("{}m {}s", ms / 60_000, ms / 1000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (ms, text) in [(0, "0ms"), (999, "999ms"), (1234, "1.2s"), (125_900, "2m 5s")] {
            assert_eq!(duration(ms), text);
        }
    }
}
