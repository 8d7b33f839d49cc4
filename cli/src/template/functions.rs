//! What templates can call: Go's functions, and those that docker adds.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

use super::TemplateError;
use super::printf::printf;

/// All names; `and` and `or` are performed where arguments are evaluated.
const NAMES: [&str; 27] = [
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "slice", "print", "printf", "println",
    "urlquery", "json", "split", "join", "title", "lower", "upper", "pad", "truncate", "contains", "trim", "replace",
];

/// Says whether there is such a function.
pub(super) fn check(name: &str) -> Result<(), TemplateError> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(TemplateError::new(format!("function `{name}` is not defined: there are {}", NAMES.join(", "))))
}

/// Calls a function that has been checked.
pub(super) fn call(name: &str, arguments: Vec<Value>) -> Result<Value, TemplateError> {
    match (name, arguments.as_slice()) {
        ("not", [value]) => Ok((!truth(value)).into()),
        ("eq", [one, others @ ..]) if !others.is_empty() => {
            for other in others {
                if equal(one, other)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        ("ne", [one, other]) => Ok((!equal(one, other)?).into()),
        ("lt", [one, other]) => Ok((order(one, other)? == Ordering::Less).into()),
        ("le", [one, other]) => Ok((order(one, other)? != Ordering::Greater).into()),
        ("gt", [one, other]) => Ok((order(one, other)? == Ordering::Greater).into()),
        ("ge", [one, other]) => Ok((order(one, other)? != Ordering::Less).into()),
        ("len", [value]) => length(value).map(Value::from),
        ("index", [value, keys @ ..]) => index(value, keys),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds),
        ("print", values) => Ok(print(values).into()),
        ("println", values) => Ok(format!("{}\n", values.iter().map(show).collect::<Vec<_>>().join(" ")).into()),
        ("printf", [Value::String(format), values @ ..]) => Ok(printf(format, values)?.into()),
        ("urlquery", values) => Ok(url_query(&print(values)).into()),
        ("json", [value]) => {
            let text = serde_json::to_string(value);
            text.map(Value::from).map_err(|error| TemplateError::new(format!("cannot write JSON: {error}")))
        }
        ("split", [Value::String(text), Value::String(separator)]) => {
            Ok(text.split(separator.as_str()).map(Value::from).collect::<Vec<_>>().into())
        }
        ("join", [Value::Array(list), Value::String(separator)]) => {
            Ok(list.iter().map(show).collect::<Vec<_>>().join(separator).into())
        }
        ("join", [Value::Null, Value::String(_)]) => Ok("".into()),
        ("title", [Value::String(text)]) => Ok(title(text).into()),
        ("lower", [Value::String(text)]) => Ok(text.to_lowercase().into()),
        ("upper", [Value::String(text)]) => Ok(text.to_uppercase().into()),
        ("pad", [Value::String(text), before, after]) => {
            let blanks = |count| Ok::<_, TemplateError>(" ".repeat(whole(count)?.min(1 << 16)));
            let text =
                if text.is_empty() { String::new() } else { format!("{}{text}{}", blanks(before)?, blanks(after)?) };
            Ok(text.into())
        }
        ("truncate", [Value::String(text), length]) => Ok(text.chars().take(whole(length)?).collect::<String>().into()),
        ("contains", [Value::String(text), Value::String(part)]) => Ok(text.contains(part.as_str()).into()),
        ("trim", [Value::String(text)]) => Ok(text.trim().into()),
        ("replace", [Value::String(text), Value::String(old), Value::String(new)]) => {
            Ok(text.replace(old.as_str(), new).into())
        }
        (name, arguments) => {
            let shown: Vec<String> = arguments.iter().map(show).collect();
            Err(TemplateError::new(format!("`{name}` cannot be called with ({})", shown.join(", "))))
        }
    }
}

/// Whether Go takes a value for true: anything but false, 0, nil, and what is empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(show_inner).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", show_inner(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

fn show_inner(value: &Value) -> String {
    if value.is_null() { "<nil>".to_owned() } else { show(value) }
}

/// As Go's `Sprint`: a blank between values when neither is text.
fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (number, value) in values.iter().enumerate() {
        if number > 0 && !value.is_string() && !values[number - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&show(value));
    }
    out
}

fn equal(one: &Value, other: &Value) -> Result<bool, TemplateError> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => Ok(one.as_f64() == other.as_f64()),
        (Value::Null, _) | (_, Value::Null) => Ok(one == other),
        (Value::Bool(_), Value::Bool(_)) | (Value::String(_), Value::String(_)) => Ok(one == other),
        _ => Err(incomparable(one, other)),
    }
}

fn order(one: &Value, other: &Value) -> Result<Ordering, TemplateError> {
    let ordering = match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64().partial_cmp(&other.as_f64()),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    };
    ordering.ok_or_else(|| incomparable(one, other))
}

fn incomparable(one: &Value, other: &Value) -> TemplateError {
    TemplateError::new(format!("incompatible types for comparison: `{}` and `{}`", show(one), show(other)))
}

fn length(value: &Value) -> Result<usize, TemplateError> {
    match value {
        Value::String(text) => Ok(text.len()),
        Value::Array(list) => Ok(list.len()),
        Value::Object(map) => Ok(map.len()),
        Value::Null => Ok(0),
        other => Err(TemplateError::new(format!("`{}` has no length", show(other)))),
    }
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, TemplateError> {
    let mut value = value;
    // What a map of texts has for a key that is not in it.
    let nothing = Value::String(String::new());
    for key in keys {
        value = match (value, key) {
            (Value::Array(list), Value::Number(_)) => {
                let at = whole(key)?;
                let out_of_range = || TemplateError::new(format!("index out of range: {at} of {}", list.len()));
                list.get(at).ok_or_else(out_of_range)?
            }
            (Value::Object(map), Value::String(key)) => map.get(key).unwrap_or(&nothing),
            (Value::Null, _) => return Err(TemplateError::new("index of nothing")),
            (other, key) => {
                return Err(TemplateError::new(format!("`{}` cannot be indexed by `{}`", show(other), show(key))));
            }
        };
    }
    Ok(value.clone())
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, TemplateError> {
    let end_of = length(value)?;
    let start = bounds.first().map(whole).transpose()?.unwrap_or(0);
    let end = bounds.get(1).map(whole).transpose()?.unwrap_or(end_of);
    let out_of_range = || TemplateError::new(format!("slice out of range: {start} to {end} of {end_of}"));
    match value {
        Value::String(text) => text.get(start..end).map(Value::from).ok_or_else(out_of_range),
        Value::Array(list) => list.get(start..end).map(|part| part.to_vec().into()).ok_or_else(out_of_range),
        other => Err(TemplateError::new(format!("`{}` cannot be sliced", show(other)))),
    }
}

fn whole(value: &Value) -> Result<usize, TemplateError> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| TemplateError::new(format!("`{}` is no count", show(value))))
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase())
        } else {
            out.push(c)
        }
        begins = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn url_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}
