//! Fields of two configs.

use std::collections::BTreeMap;

use oci::ImageConfig;
use serde::Serialize;
use serde_json::Value;

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its name: `Env PATH`, `Labels org.example.a`, `Cmd`, `created`.
    pub field: String,
    /// What the first image has.
    pub a: Option<Value>,
    /// What the other has.
    pub b: Option<Value>,
}

/// Fields of the config that are maps, and are compared entry by entry.
const MAPS: [&str; 3] = ["Labels", "ExposedPorts", "Volumes"];

/// All fields that differ, by name.
pub(super) fn compare(a: &ImageConfig, b: &ImageConfig) -> Vec<FieldChange> {
    let (mut of_a, mut of_b) = (fields(a), fields(b));
    let names: std::collections::BTreeSet<String> = of_a.keys().chain(of_b.keys()).cloned().collect();
    let changes = names.into_iter().map(|field| {
        let (a, b) = (of_a.remove(&field), of_b.remove(&field));
        FieldChange { field, a, b }
    });
    changes.filter(|change| change.a != change.b).collect()
}

fn fields(config: &ImageConfig) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    let Ok(Value::Object(top)) = serde_json::to_value(config) else { return fields };
    for (name, value) in top {
        match (name.as_str(), value) {
            // Layers are told apart by themselves.
            ("rootfs" | "history", _) => {}
            ("config", Value::Object(container)) => {
                for (name, value) in container {
                    add(&mut fields, &name, value);
                }
            }
            (_, value) => {
                fields.insert(name, value);
            }
        }
    }
    fields
}

fn add(fields: &mut BTreeMap<String, Value>, name: &str, value: Value) {
    match value {
        Value::Object(map) if MAPS.contains(&name) => {
            fields.extend(map.into_iter().map(|(key, value)| (format!("{name} {key}"), value)));
        }
        Value::Array(list) if name == "Env" => {
            for entry in list {
                let text = entry.as_str().unwrap_or_default();
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                fields.insert(format!("{name} {key}"), value.into());
            }
        }
        value => {
            fields.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_names() {
        let read = |text: &str| serde_json::from_str::<ImageConfig>(text).expect("a config");
        let a = read(r#"{"os":"linux","config":{"Env":["A=1","PATH=/bin"],"Labels":{"x":"1"},"Cmd":["sh"]}}"#);
        let b =
            read(r#"{"os":"linux","config":{"Env":["A=2","PATH=/bin"],"Labels":{"y":"1"},"Cmd":["sh"],"User":"me"}}"#);
        let shown: Vec<String> =
            compare(&a, &b).into_iter().map(|it| format!("{} {:?} {:?}", it.field, it.a, it.b)).collect();
        let (one, two, me) = ("Some(String(\"1\"))", "Some(String(\"2\"))", "Some(String(\"me\"))");
        assert_eq!(
            shown,
            [
                format!("Env A {one} {two}"),
                format!("Labels x {one} None"),
                format!("Labels y None {one}"),
                format!("User None {me}"),
            ]
        );
        assert_eq!(compare(&a, &a), []);
    }
}
