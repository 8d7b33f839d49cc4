//! `--filter` of `rbuild images` and `rbuild image prune`, with docker's meanings.

use cache::Store;
use parser::pattern::Glob;

use super::image::{Image, created_at, find};
use crate::failure::Failure;

/// Conditions on images: those of one kind are alternatives (but labels, which must all be there), kinds must all hold.
#[derive(Default)]
pub(crate) struct ImageFilter {
    dangling: Option<bool>,
    labels: Vec<Label>,
    names: Vec<Glob>,
    /// Seconds since the epoch; made earlier than that.
    before: Option<i64>,
    /// Made later than that.
    since: Option<i64>,
}

struct Label {
    key: String,
    value: Option<String>,
    is_wanted: bool,
}

impl ImageFilter {
    /// Reads the flags. `now` is in seconds since the epoch.
    pub(crate) fn from_flags(store: &Store, flags: &[String], now: i64) -> Result<Self, Failure> {
        let mut filter = Self::default();
        for flag in flags {
            let (key, value) = flag
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("invalid filter `{flag}`: expected `NAME=VALUE`")))?;
            match key {
                "dangling" => {
                    let value = crate::args::boolean(value)
                        .map_err(|error| Failure::usage(format!("invalid filter `{flag}`: {error}")))?;
                    filter.dangling = Some(value);
                }
                "label" | "label!" => filter.labels.push(Label::parse(value, key == "label")),
                "reference" => filter.and_name(value)?,
                "before" => {
                    let time = made_at(store, value)?;
                    filter.before = Some(filter.before.map_or(time, |known| known.min(time)));
                }
                "since" => {
                    let time = made_at(store, value)?;
                    filter.since = Some(filter.since.map_or(time, |known| known.max(time)));
                }
                "until" => {
                    let time = until(value, now)?;
                    filter.before = Some(filter.before.map_or(time, |known| known.min(time)));
                }
                _ => {
                    let known = "dangling, label, reference, before, since, until";
                    return Err(Failure::usage(format!("invalid filter `{key}`: there are {known}")));
                }
            }
        }
        Ok(filter)
    }

    /// Only images with a name that matches.
    pub(crate) fn and_name(&mut self, pattern: &str) -> Result<(), Failure> {
        let glob = Glob::compile(pattern)
            .map_err(|error| Failure::usage(format!("invalid pattern `{pattern}` for names: {error}")))?;
        self.names.push(glob);
        Ok(())
    }

    /// Whether an image is one of those that are meant.
    pub(crate) fn matches(&self, image: &Image) -> bool {
        let is_dangling = image.stored.reference.is_none();
        let made = created_at(image);
        self.dangling.is_none_or(|wanted| wanted == is_dangling)
            && self.before.is_none_or(|before| made < before)
            && self.since.is_none_or(|since| made > since)
            && (self.names.is_empty() || self.names.iter().any(|pattern| is_named(image, pattern)))
            && self.labels.iter().all(|label| label.holds(image))
    }
}

impl Label {
    fn parse(text: &str, is_wanted: bool) -> Self {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value.to_owned())));
        Self { key: key.to_owned(), value, is_wanted }
    }

    fn holds(&self, image: &Image) -> bool {
        let has = image.shown().config.config.labels.get(&self.key);
        let is_there = has.is_some_and(|has| self.value.as_ref().is_none_or(|wanted| wanted == has));
        is_there == self.is_wanted
    }
}

/// The pattern is for the name with its tag, or without; the repository alone may be named in full.
fn is_named(image: &Image, pattern: &Glob) -> bool {
    let Some(reference) = &image.stored.reference else { return false };
    let whole = reference.name_only();
    [reference.familiar(), whole.familiar(), reference.to_string(), whole.to_string()]
        .iter()
        .any(|name| pattern.matches(name))
}

fn made_at(store: &Store, name: &str) -> Result<i64, Failure> {
    Ok(created_at(&find(store, name)?.swap_remove(0)))
}

/// A time before now (`24h`), or a date, as docker takes it.
fn until(text: &str, now: i64) -> Result<i64, Failure> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(seconds);
    }
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let with_zone = |time: &str| {
        if time.ends_with('Z') || time.contains(['+', '-']) { time.to_owned() } else { format!("{time}Z") }
    };
    if let Ok((seconds, _)) = oci::time::parse_rfc3339(&format!("{date}T{}", with_zone(time))) {
        return Ok(seconds);
    }
    let age = cache::parse_duration(text).map_err(|_| {
        Failure::usage(format!("invalid filter `until={text}`: expected `24h`, `2026-01-31` or `2026-01-31T08:00:00Z`"))
    })?;
    Ok(now.saturating_sub_unsigned(age.as_secs()))
}
