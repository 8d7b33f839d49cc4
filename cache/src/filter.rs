//! Filters over usage records, in containerd's syntax: `field`, `field==value`, `field!=value`, `field~=regex`, with
//! commas for AND. Spec: `spec/engine.md` §3.9, `spec/cli.md` §5.3.

use std::time::Duration;

use regex_lite::Regex;

use crate::usage::{UsageKind, UsageRecord};

/// A filter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such field.
    #[error("no usage record has the field `{field}`: expected one of {}", FIELDS.join(", "))]
    UnknownField {
        /// What was given.
        field: String,
    },
    /// A field that holds text needs something to compare it with, or the other way round.
    #[error("`{text}` is not a filter: expected `field`, `field=value`, `field!=value` or `field~=regex`")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// The right side of `~=`.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// The value of `until`.
    #[error("`{text}` is not a duration: expected for instance `24h`, `90m` or `1h30m`")]
    Duration {
        /// What was given.
        text: String,
    },
}

const FIELDS: [&str; 9] =
    ["id", "parents", "description", "type", "inuse", "mutable", "immutable", "shared", "private"];

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Description,
    Type,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Absent,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl UsageFilter {
    /// Reads conditions separated by commas; values may stand in double quotes. The empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for part in split_outside_quotes(text) {
            filter.conditions.push(Condition::parse(part.trim())?);
        }
        Ok(filter)
    }

    /// Reads one `--filter` of the command line, where `=` on an `id` means `~=`, and adds it to this one.
    pub fn and_flag(&mut self, text: &str) -> Result<(), FilterError> {
        let text = match text.strip_prefix("id=") {
            Some(value) if !value.starts_with('=') => format!("id~={value}"),
            _ => text.to_owned(),
        };
        self.conditions.push(Condition::parse(&text)?);
        Ok(())
    }

    /// The records of one type.
    pub fn of_type(kind: UsageKind) -> Self {
        Self { conditions: vec![Condition { field: Field::Type, test: Test::Equal(kind.name().to_owned()) }] }
    }

    /// Whether all conditions hold.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        self.conditions.iter().all(|condition| condition.holds(record))
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, FilterError> {
        let malformed = || FilterError::Malformed { text: text.to_owned() };
        let end = text.find(['=', '!', '~']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let field = Field::parse(name)?;
        if rest.is_empty() {
            return Ok(Self { field, test: Test::Present });
        }
        let operators = ["==", "!=", "~=", "="];
        let operator = operators.into_iter().find(|operator| rest.starts_with(operator)).ok_or_else(malformed)?;
        let value = unquote(&rest[operator.len()..]);
        if field.is_flag() {
            return Self::of_flag(field, operator, &value).ok_or_else(malformed);
        }
        let test = match operator {
            "!=" => Test::NotEqual(value),
            "~=" => Test::Matches(
                Regex::new(&value)
                    .map_err(|error| FilterError::Pattern { pattern: value.clone(), reason: error.to_string() })?,
            ),
            _ => Test::Equal(value),
        };
        Ok(Self { field, test })
    }

    /// `inuse=true` and its like: presence of a field without a value.
    fn of_flag(field: Field, operator: &str, value: &str) -> Option<Self> {
        let wanted = match value {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return None,
        };
        let test = match (operator, wanted) {
            ("=" | "==", true) | ("!=", false) => Test::Present,
            ("=" | "==", false) | ("!=", true) => Test::Absent,
            _ => return None,
        };
        Some(Self { field, test })
    }

    fn holds(&self, record: &UsageRecord) -> bool {
        let value = self.field.value(record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Test::NotEqual(unwanted) => value.is_none_or(|value| value != *unwanted),
            Test::Matches(regex) => value.is_some_and(|value| regex.is_match(&value)),
        }
    }
}

impl Field {
    fn parse(name: &str) -> Result<Self, FilterError> {
        Ok(match name {
            "id" => Self::Id,
            "parents" | "parent" => Self::Parents,
            "description" => Self::Description,
            "type" => Self::Type,
            "inuse" => Self::InUse,
            "mutable" => Self::Mutable,
            "immutable" => Self::Immutable,
            "shared" => Self::Shared,
            "private" => Self::Private,
            _ => return Err(FilterError::UnknownField { field: name.to_owned() }),
        })
    }

    fn is_flag(self) -> bool {
        !matches!(self, Self::Id | Self::Parents | Self::Description | Self::Type)
    }

    /// `None` when the record does not have the field; the empty text for flags.
    fn value(self, record: &UsageRecord) -> Option<String> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let flag = |is_set: bool| is_set.then(String::new);
        match self {
            Self::Id => text(&record.id),
            Self::Parents => text(&record.parents.join(";")),
            Self::Description => text(&record.description),
            Self::Type => text(record.kind.name()),
            Self::InUse => flag(record.in_use),
            Self::Mutable => flag(record.mutable),
            Self::Immutable => flag(!record.mutable),
            Self::Shared => flag(record.shared),
            Self::Private => flag(!record.shared),
        }
    }
}

fn split_outside_quotes(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let parts = text.split(move |c| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    parts.filter(|part| !part.trim().is_empty())
}

fn unquote(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.unwrap_or(text).to_owned()
}

/// Reads a duration as Go writes it (`1h30m`, `24h`, `300ms`), and days and weeks besides (`7d`, `2w`).
pub fn parse_duration(text: &str) -> Result<Duration, FilterError> {
    let malformed = || FilterError::Duration { text: text.to_owned() };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return Err(malformed()),
        };
        total += number.parse::<f64>().map_err(|_| malformed())? * seconds;
        rest = tail;
    }
    if text.is_empty() { Err(malformed()) } else { Duration::try_from_secs_f64(total).map_err(|_| malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> UsageRecord {
        UsageRecord {
            id: "x-00ff-1".to_owned(),
            kind: UsageKind::CacheMount,
            size_bytes: 1,
            created_at: 0,
            last_used_at: 0,
            usage_count: 1,
            description: "mount /root/.cache, from exec".to_owned(),
            in_use: false,
            shared: false,
            mutable: true,
            parents: vec!["a".to_owned(), "b".to_owned()],
        }
    }

    #[test]
    fn conditions_mean_what_they_mean_in_containerd() {
        for (text, expected) in [
            ("", true),
            ("mutable", true),
            ("immutable", false),
            ("private,mutable", true),
            ("shared", false),
            ("inuse", false),
            ("inuse=false", true),
            ("mutable!=true", false),
            ("type==exec.cachemount", true),
            ("type=regular", false),
            ("type!=regular", true),
            ("id==x-00ff-1", true),
            ("id==x-00", false),
            ("id~=^x-0", true),
            ("parents==a;b", true),
            ("parents~=a", true),
            ("description~=\"cache, from\"", true),
            ("description~=nothing", false),
            ("mutable,type==regular", false),
        ] {
            assert_eq!(UsageFilter::parse(text).unwrap().matches(&record()), expected, "{text}");
        }
    }

    #[test]
    fn an_id_on_the_command_line_is_a_pattern() {
        let mut filter = UsageFilter::default();
        filter.and_flag("id=00ff").unwrap();
        assert!(filter.matches(&record()));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["size=1", "mutable=perhaps", "mutable~=true", "id~=(", "id!", "=x"] {
            assert!(UsageFilter::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in
            [("24h", 86_400_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("0", 0), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "h", "12", "1x", "-1h", "1..h", "999999999999999999999999999999w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
