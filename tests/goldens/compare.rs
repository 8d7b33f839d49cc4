//! Compares a result with its recording, field by field, by the rules of `goldens/README.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// No more differences of one build are told.
const MAX_DIFFERENCES: usize = 4;
/// No more of a value is shown.
const MAX_VALUE_CHARS: usize = 160;

/// What differs, as `field: expected …, got …`; empty when the result agrees.
pub(crate) fn differences(expected: &Value, actual: &Value) -> Vec<String> {
    if let (Some(Value::Bool(true)), Some(Value::Bool(false))) = (expected.get("ok"), actual.get("ok")) {
        return vec![format!("fails: {}", string(&actual["error"]))];
    }
    let (mut expected, mut actual) = (expected.clone(), actual.clone());
    normalise(&mut expected);
    normalise(&mut actual);
    tolerate(&expected, &mut actual);
    let mut found = Vec::new();
    diff("", &expected, &actual, &mut found);
    let rest = found.len().saturating_sub(MAX_DIFFERENCES);
    found.truncate(MAX_DIFFERENCES);
    if rest > 0 {
        found.push(format!("and {rest} more"));
    }
    found
}

/// Gives both sides the one form that equal results have.
fn normalise(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("layers", Value::Array(layers)) => layers.iter_mut().for_each(normalise_layer),
            ("files", Value::Array(files)) => files.iter_mut().for_each(whole_seconds),
            ("lines", Value::Array(ranges)) => sort(ranges),
            ("steps" | "cached" | "ran", Value::Array(names)) => sort(names),
            // A path on the host, or none: who reads it knows the path in the image.
            ("error", Value::String(text)) => *text = text.replace("<root>", ""),
            ("warnings", Value::Array(warnings)) => normalise_warnings(warnings),
            ("platforms", Value::Object(platforms)) => platforms.values_mut().for_each(normalise),
            ("rebuilds", Value::Array(rebuilds)) => rebuilds.iter_mut().for_each(normalise),
            _ => {}
        }
    }
}

/// A layer becomes path → entry. Directories that only come along go; whiteouts are names; the names of a hard-linked
/// file are equals.
fn normalise_layer(layer: &mut Value) {
    let Value::Array(entries) = layer else { return };
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["type"] == "hardlink") {
        let target = string(&entry["linkname"]).trim_start_matches('/').to_owned();
        groups.entry(target.clone()).or_insert_with(|| [target].into()).insert(string(&entry["path"]));
    }
    let mut by_path: Map<String, Value> = Map::new();
    for entry in entries.iter().filter(|entry| entry.get("carried").is_none()) {
        let path = string(&entry["path"]);
        if path.rsplit('/').next().is_some_and(|name| name.starts_with(".wh.")) {
            by_path.insert(path, json!("whiteout"));
            continue;
        }
        let mut entry = entry.clone();
        whole_seconds(&mut entry);
        if let Some(names) = groups.get(&path) {
            entry["hardlinks"] = json!(names);
        }
        by_path.insert(path, entry);
    }
    for (target, names) in groups {
        let Some(holder) = by_path.get(&target).cloned() else { continue };
        for name in names {
            let mut entry = holder.clone();
            entry["path"] = json!(name);
            by_path.insert(name, entry);
        }
    }
    *layer = Value::Object(by_path);
}

fn whole_seconds(entry: &mut Value) {
    if let Some(time) = entry["mtime"].as_str() {
        entry["mtime"] = json!(time.split('.').next());
    }
}

fn normalise_warnings(warnings: &mut Vec<Value>) {
    for warning in warnings.iter_mut() {
        let ranges: Vec<[u64; 2]> = serde_json::from_value(warning["lines"].take()).unwrap_or_default();
        warning["lines"] = json!(merged(ranges));
    }
    sort(warnings);
    warnings.dedup();
}

/// Ranges that touch become one.
pub(crate) fn merged(mut ranges: Vec<[u64; 2]>) -> Vec<[u64; 2]> {
    ranges.sort_unstable();
    let mut merged: Vec<[u64; 2]> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range[0] <= last[1] + 1 => last[1] = last[1].max(range[1]),
            _ => merged.push(range),
        }
    }
    merged
}

fn sort(values: &mut [Value]) {
    values.sort_by_key(Value::to_string);
}

/// Takes from `actual` what need not be equal.
fn tolerate(expected: &Value, actual: &mut Value) {
    // Where the recording has no excerpt, showing one is better.
    if expected["lines"] == json!([]) && actual.get("lines").is_some() {
        actual["lines"] = json!([]);
    }
    let (error, own) = (string(&expected["error"]), string(&actual["error"]));
    if !error.is_empty() && words_of_others(&error, &own) {
        actual["error"] = json!(error);
    }
    // The same for the error of a check, whose excerpt follows the message.
    if expected["json"]["buildError"]["location"] == json!({}) && actual["json"]["buildError"].is_object() {
        actual["json"]["buildError"]["location"] = json!({});
        let text = string(&actual["error"]);
        actual["error"] = json!(text.lines().next());
    }
    // Our excerpt is shorter and points at the word: what was said has to be the same, and of which line.
    if let (Some(place), Some(own)) = (message_and_line(&error), message_and_line(&string(&actual["error"])))
        && place == own
    {
        actual["error"] = json!(error);
    }
    // Warnings of builds that fail are not compared.
    if let (Some(Value::Bool(false)), Some(warnings)) = (expected.get("ok"), expected.get("warnings"))
        && actual["ok"] == false
    {
        actual["warnings"] = warnings.clone();
    }
}

/// The message and the line number of an error that is followed by an excerpt.
fn message_and_line(text: &str) -> Option<(&str, &str)> {
    let (message, excerpt) = text.split_once("\nDockerfile:")?;
    let end = excerpt.find(|character: char| !character.is_ascii_digit()).unwrap_or(excerpt.len());
    Some((message, &excerpt[..end]))
}

/// Whether the texts differ only in what a registry, the kernel or a runtime words.
fn words_of_others(expected: &str, actual: &str) -> bool {
    // What a registry says, or that there is none, follows the image's name.
    let lookup = "failed to resolve source metadata for ";
    if let (Some((before, of)), Some((own_before, own))) = (expected.split_once(lookup), actual.split_once(lookup)) {
        let name = |text: &str| text.split_once(": ").map_or_else(|| text.to_owned(), |(name, _)| name.to_owned());
        return before == own_before && name(of) == name(own);
    }
    // A program that cannot be started: the runtime's status, or the reason.
    let ended = "did not complete successfully: ";
    match (expected.split_once(ended), actual.split_once(ended)) {
        (Some((expected, "exit code: 1")), Some((actual, reason))) => {
            expected == actual && !reason.starts_with("exit code")
        }
        _ => false,
    }
}

fn diff(path: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            let keys: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (expected.get(key), actual.get(key)) {
                    (Some(expected), Some(actual)) => diff(&path, expected, actual, found),
                    (Some(expected), None) => found.push(format!("{path}: lacks {}", short(expected))),
                    (None, Some(actual)) => found.push(format!("{path}: has {}", short(actual))),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(expected), Value::Array(actual)) if is_nested(expected) && expected.len() == actual.len() => {
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                diff(&format!("{path}[{index}]"), expected, actual, found);
            }
        }
        (Value::Array(expected), Value::Array(actual)) if expected != actual => {
            let lacks: Vec<_> = expected.iter().filter(|item| !actual.contains(item)).collect();
            let has: Vec<_> = actual.iter().filter(|item| !expected.contains(item)).collect();
            found.push(match (lacks.is_empty(), has.is_empty()) {
                (true, true) => format!("{path}: another order or number: {}", short(&json!(actual))),
                (false, true) => format!("{path}: lacks {}", short(&json!(lacks))),
                (true, false) => format!("{path}: has {}", short(&json!(has))),
                (false, false) => format!("{path}: lacks {}, has {}", short(&json!(lacks)), short(&json!(has))),
            });
        }
        (expected, actual) if expected != actual => {
            found.push(format!("{path}: expected {}, got {}", short(expected), short(actual)));
        }
        _ => {}
    }
}

fn is_nested(items: &[Value]) -> bool {
    items.iter().any(|item| item.is_object() || item.is_array())
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_name_holds_the_data_does_not_matter() {
        let one = json!({"layers": [[
            {"path": "a", "type": "file", "size": 1}, {"path": "b", "type": "hardlink", "linkname": "a"}]]});
        let other = json!({"layers": [[
            {"path": "a", "type": "hardlink", "linkname": "b"}, {"path": "b", "type": "file", "size": 1}]]});
        assert_eq!(differences(&one, &other), [""; 0]);
        let apart = json!({"layers": [[
            {"path": "a", "type": "file", "size": 1}, {"path": "b", "type": "file", "size": 1}]]});
        assert!(!differences(&one, &apart).is_empty());
    }

    #[test]
    fn an_excerpt_more_and_a_reason_more_are_no_differences() {
        let expected =
            json!({"ok": false, "error": "process \"x\" did not complete successfully: exit code: 1", "lines": []});
        let actual = json!({"ok": false, "error": "process \"x\" did not complete successfully: no such file", "lines": [[2, 2]]});
        assert_eq!(differences(&expected, &actual), [""; 0]);
        let actual =
            json!({"ok": false, "error": "process \"x\" did not complete successfully: exit code: 2", "lines": []});
        assert_eq!(differences(&expected, &actual).len(), 1);
        let check = |error: &str, location: Value| json!({"exit": 1, "error": error, "json": {"buildError": {"message": "m", "location": location}}});
        let located = check("m\nDockerfile:3\n", json!({"ranges": []}));
        assert_eq!(differences(&check("m", json!({})), &located), [""; 0]);
        assert_eq!(differences(&check("n", json!({})), &located).len(), 1);
        let shown = |error: &str| json!({"exit": 1, "error": error});
        let recorded = shown("m\nDockerfile:3\n-----\n   3 | >>> X");
        assert_eq!(differences(&recorded, &shown("m\nDockerfile:3:5\n   3 | >>> X\n     |     ^")), [""; 0]);
        for other in ["m\nDockerfile:31:5\n", "n\nDockerfile:3:5\n", "m"] {
            assert_eq!(differences(&recorded, &shown(other)).len(), 1, "{other}");
        }
    }
}
