//! "Did you mean": the nearest of a list of names. Spec: §1.11.

/// Names further away than this are no suggestion.
const MAX_DISTANCE: usize = 2;

/// Returns the candidate that is one or two edits away from `text`: the nearest one, the first among equals.
///
/// `None` when no candidate is near, or when one equals `text`: then the fault lies elsewhere. Letter case counts.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = text.chars().count();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        // The distance is at least the difference in length; this also keeps absurdly long words cheap.
        if candidate.chars().count().abs_diff(length) > MAX_DISTANCE {
            continue;
        }
        let distance = strsim::levenshtein(text, candidate);
        if distance == 0 {
            return None;
        }
        if distance <= MAX_DISTANCE && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, name)| name)
}

/// Like [`nearest`], whatever the letter case of either side. Returns the candidate as it is listed.
pub fn nearest_ignoring_case<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let lowered: Vec<String> = candidates.iter().map(|name| name.to_lowercase()).collect();
    let found = nearest(&text.to_lowercase(), lowered.iter().map(String::as_str))?;
    let index = lowered.iter().position(|name| name == found)?;
    Some(candidates[index])
}

/// Appends ` (did you mean X?)` if there is an X.
pub fn with_suggestion<'a>(message: String, text: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(text, candidates) {
        Some(name) => format!("{message} (did you mean {name}?)"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let table: &[(&str, &[&str], Option<&str>)] = &[
            ("mont", &["mount", "network"], Some("mount")),
            ("typ", &["type", "tmpfs"], Some("type")),
            ("tmp", &["bind", "tmpfs"], Some("tmpfs")),
            ("FROM", &["from"], None),
            ("bulid", &["build", "test"], Some("build")),
            ("x", &["shared", "private", "locked"], None),
            ("ab", &["ac", "ad"], Some("ac")),
            ("abcd", &["abxy", "abcx"], Some("abcx")),
            ("same", &["sane", "same"], None),
            ("", &["ab"], Some("ab")),
        ];
        for &(text, candidates, want) in table {
            assert_eq!(nearest(text, candidates.iter().copied()), want, "{text}");
        }
    }

    #[test]
    fn letter_case_can_be_ignored() {
        assert_eq!(nearest_ignoring_case("fntrypoint", ["CMD", "ENTRYPOINT"]), Some("ENTRYPOINT"));
        assert_eq!(nearest_ignoring_case("Entrypoint", ["ENTRYPOINT"]), None);
    }
}
