//! Says in words how the ingredients of two keys differ: why a step was not found in the cache.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::key::Ingredient;

/// Longest value shown in [`brief`], in characters.
const BRIEF_VALUE_CHARS: usize = 32;

/// One difference between two lists of ingredients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the ingredient.
    pub name: String,
    /// Its value before; `None` when it is new.
    pub before: Option<String>,
    /// Its value now; `None` when it has gone.
    pub after: Option<String>,
}

/// The differences between the ingredients of an earlier key and those of the present one.
///
/// First what has changed or is new, in the order of `after`; then what has gone, in the order of `before`.
/// Ingredients of one name (several files of one path) are compared in order.
pub fn differences(before: &[Ingredient], after: &[Ingredient]) -> Vec<Difference> {
    let before = numbered(before);
    let after = numbered(after);
    let earlier: BTreeMap<_, _> = before.iter().copied().collect();
    let present: BTreeMap<_, _> = after.iter().copied().collect();
    let changed = after.iter().filter(|(id, value)| earlier.get(id) != Some(value)).map(|(id, value)| Difference {
        name: id.0.to_owned(),
        before: earlier.get(id).map(|&value| value.to_owned()),
        after: Some((*value).to_owned()),
    });
    let gone = before.iter().filter(|(id, _)| !present.contains_key(id)).map(|(id, value)| Difference {
        name: id.0.to_owned(),
        before: Some((*value).to_owned()),
        after: None,
    });
    changed.chain(gone).collect()
}

/// The differences in half a line, the most telling one in full: `variable VERSION 1 → 2, and 3 more`.
///
/// Empty when there are none.
pub fn brief(differences: &[Difference]) -> String {
    // A count never tells more than what was counted.
    let telling = |difference: &&Difference| !difference.name.starts_with("number of ");
    let Some(first) = differences.iter().find(telling).or(differences.first()) else { return String::new() };
    let rest = differences.iter().filter(telling).filter(|other| other.name != first.name).count();
    let mut text = sentence(first, &|value| clip(value));
    if rest > 0 {
        write!(text, ", and {rest} more").expect("a String takes all text");
    }
    text
}

/// The differences in full, one a line without line ends.
pub fn full(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(|difference| sentence(difference, &str::to_owned)).collect()
}

fn sentence(difference: &Difference, show: &dyn Fn(&str) -> String) -> String {
    let Difference { name, before, after } = difference;
    match (before.as_deref(), after.as_deref()) {
        (Some(before), Some(after)) if before.starts_with("(hidden") && after.starts_with("(hidden") => {
            format!("{name} changed")
        }
        (Some(before), Some(after)) => {
            let (before, after) = (show(before), show(after));
            // Cut down to the same words, the values would seem equal.
            if before == after { format!("{name} changed") } else { format!("{name} {before} → {after}") }
        }
        (None, Some(after)) => format!("{name} {} is new", show(after)),
        (Some(before), None) => format!("{name} {} has gone", show(before)),
        (None, None) => name.clone(),
    }
}

/// Digests are shown by their beginning, as everywhere; other values as far as half a line allows.
fn clip(value: &str) -> String {
    let is_digest = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_digest {
        return value[..12].to_owned();
    }
    if value.is_empty() {
        return "``".to_owned();
    }
    let one_line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if one_line.chars().count() <= BRIEF_VALUE_CHARS {
        return one_line;
    }
    one_line.chars().take(BRIEF_VALUE_CHARS - 1).chain(['…']).collect()
}

/// Tells ingredients of one name apart by their number among those of the name.
fn numbered(ingredients: &[Ingredient]) -> Vec<((&str, usize), &str)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    ingredients
        .iter()
        .map(|ingredient| {
            let count = seen.entry(&ingredient.name).or_default();
            *count += 1;
            ((ingredient.name.as_str(), *count), ingredient.value.as_str())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<Ingredient> {
        pairs.iter().map(|(name, value)| Ingredient { name: (*name).to_owned(), value: (*value).to_owned() }).collect()
    }

    #[track_caller]
    fn check(before: &[(&str, &str)], after: &[(&str, &str)], want_brief: &str, want_full: &[&str]) {
        let differences = differences(&list(before), &list(after));
        assert_eq!(brief(&differences), want_brief);
        assert_eq!(full(&differences), want_full);
    }

    #[test]
    fn equal_lists_have_nothing_to_tell() {
        check(&[("argv", "a")], &[("argv", "a")], "", &[]);
    }

    #[test]
    fn a_changed_value_shows_both() {
        check(
            &[("variable VERSION", "1"), ("argv", "make")],
            &[("variable VERSION", "2"), ("argv", "make")],
            "variable VERSION 1 → 2",
            &["variable VERSION 1 → 2"],
        );
    }

    #[test]
    fn new_and_gone_ones_are_named() {
        check(
            &[("user", "a")],
            &[("hostname", "b")],
            "hostname b is new, and 1 more",
            &["hostname b is new", "user a has gone"],
        );
    }

    #[test]
    fn digests_are_short_in_the_brief_form_and_whole_in_the_full_one() {
        let (old, new) = ("ab".repeat(32), "cd".repeat(32));
        check(
            &[("files /src/", &old)],
            &[("files /src/", &new)],
            "files /src/ abababababab → cdcdcdcdcdcd",
            &[&format!("files /src/ {old} → {new}")],
        );
    }

    #[test]
    fn long_values_with_equal_beginnings_are_said_to_have_changed() {
        let (old, new) = (format!("{}1", "x".repeat(50)), format!("{}2", "x".repeat(50)));
        check(&[("argv", &old)], &[("argv", &new)], "argv changed", &[&format!("argv {old} → {new}")]);
    }

    #[test]
    fn hidden_values_stay_hidden() {
        let (old, new) = ("(hidden, 12)", "(hidden, 34)");
        check(
            &[("variable TOKEN", old)],
            &[("variable TOKEN", new)],
            "variable TOKEN changed",
            &["variable TOKEN changed"],
        );
    }

    #[test]
    fn a_count_gives_way_to_what_was_counted() {
        check(
            &[("number of parent layers", "1"), ("base image", "aa")],
            &[("number of parent layers", "2"), ("base image", "aa"), ("parent layer 1", "bb")],
            "parent layer 1 bb is new",
            &["number of parent layers 1 → 2", "parent layer 1 bb is new"],
        );
    }

    #[test]
    fn ingredients_of_one_name_are_compared_in_order() {
        check(
            &[("base image", "a"), ("base image", "b")],
            &[("base image", "a"), ("base image", "c")],
            "base image b → c",
            &["base image b → c"],
        );
    }
}
