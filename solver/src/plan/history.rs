//! History entries: the texts that `docker history` shows. Spec: `spec/dockerfile.md` §2.0, §9.2.

use oci::HistoryEntry;
use oci::image::Healthcheck;

use crate::graph::VertexId;

/// `comment` of every entry that comes from an instruction.
pub const COMMENT: &str = "buildkit.dockerfile.v0";
/// `comment` of an entry for a layer that no instruction made.
pub const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";

/// One line of history. Times are added when the layers are known.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedHistory {
    /// Without `created`, but for entries of the base image.
    pub entry: HistoryEntry,
    /// The vertex whose layer the entry speaks of; `None` for metadata and for layers of the base image.
    pub vertex: Option<VertexId>,
    /// Whether the entry was inherited from the base image.
    pub from_base: bool,
}

impl PlannedHistory {
    /// An entry that changes metadata only.
    pub(super) fn metadata(created_by: String) -> Self {
        Self::new(created_by, COMMENT, None)
    }

    /// An entry of an instruction that makes a layer.
    pub(super) fn layer(created_by: String, vertex: VertexId) -> Self {
        Self::new(created_by, COMMENT, Some(vertex))
    }

    /// An entry for a layer that no instruction made.
    pub(super) fn exporter(description: String, vertex: VertexId) -> Self {
        Self::new(description, EXPORTER_COMMENT, Some(vertex))
    }

    /// An entry of the base image, as it is.
    pub(super) fn inherited(entry: HistoryEntry) -> Self {
        Self { entry, vertex: None, from_base: true }
    }

    fn new(created_by: String, comment: &str, vertex: Option<VertexId>) -> Self {
        let comment = comment.to_owned();
        let entry = HistoryEntry { created_by, comment, empty_layer: vertex.is_none(), ..HistoryEntry::default() };
        Self { entry, vertex, from_base: false }
    }
}

/// `["a" "b"]`, as CMD and ENTRYPOINT show their words.
pub(super) fn quoted_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| parser::go::quote(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `[a b]`.
pub(super) fn plain_list(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}

/// `{Test:[CMD-SHELL x] Interval:1s …}`.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        plain_list(&check.test),
        duration(check.interval_ns),
        duration(check.timeout_ns),
        duration(check.start_period_ns),
        duration(check.start_interval_ns),
        check.retries
    )
}

/// A duration as Go prints it: `1m30s`, `1.5s`, `100ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    if total == 0 {
        return "0s".to_owned();
    }
    if total < SECOND {
        let (unit, name) = match total {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{sign}{}{name}", decimal(total, unit));
    }
    let (minutes, below_a_minute) = (total / SECOND / 60, total % (60 * SECOND));
    let seconds = decimal(below_a_minute, SECOND);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `value` in units of `unit` (a power of ten), without zeros at the end.
fn decimal(value: u64, unit: u64) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0width$}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let table = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_050_000_000, "1h1m1.05s"),
        ];
        for (nanoseconds, wanted) in table {
            assert_eq!(duration(nanoseconds), wanted);
        }
    }

    #[test]
    fn lists_are_gos() {
        let words = ["a".to_owned(), "b \"c\"".to_owned()];
        assert_eq!(quoted_list(&words), r#"["a" "b \"c\""]"#);
        assert_eq!(plain_list(&words), r#"[a b "c"]"#);
        assert_eq!(quoted_list(&[]), "[]");
    }
}
