//! The JSON form of arguments. Spec: §1.6.

use serde_json::Value;

use crate::node::Fault;

/// Which form an argument text has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExecForm {
    /// A JSON array of strings.
    Array(Vec<String>),
    /// Anything that is not JSON.
    Plain,
}

/// Tells the JSON form from the plain one. What looks like JSON but is none is plain, silently.
///
/// # Errors
///
/// A valid JSON array that has something else than strings in it.
pub(crate) fn exec_form(text: &str) -> Result<ExecForm, Fault> {
    if !text.starts_with('[') {
        return Ok(ExecForm::Plain);
    }
    let Ok(items) = serde_json::from_str::<Vec<Value>>(text) else { return Ok(ExecForm::Plain) };
    let mut words = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Value::String(word) => words.push(word),
            other => {
                let message = "when using JSON array syntax, arrays must be comprised of strings only";
                return Err(Fault::new(message).about(other.to_string()).help("put every element into double quotes"));
            }
        }
    }
    Ok(ExecForm::Array(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let array = |words: &[&str]| ExecForm::Array(words.iter().map(|word| (*word).to_owned()).collect());
        let table = [
            (r#"["a", "b c"]"#, array(&["a", "b c"])),
            ("[]", array(&[])),
            (r#"["tab\there", "uni\u00e9"]"#, array(&["tab\there", "unié"])),
            ("['a']", ExecForm::Plain),
            (r#"["a",]"#, ExecForm::Plain),
            (r#"["a"] b"#, ExecForm::Plain),
            ("[]random string", ExecForm::Plain),
            (r#"["C:\tools\x"]"#, ExecForm::Plain),
            ("[ -e /bin/sh ]", ExecForm::Plain),
            ("echo", ExecForm::Plain),
        ];
        for (text, want) in table {
            assert_eq!(exec_form(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn other_elements_are_refused() {
        for text in [r#"["a", 1]"#, "[null]", r#"[["a"]]"#] {
            let fault = exec_form(text).unwrap_err();
            assert_eq!(fault.message, "when using JSON array syntax, arrays must be comprised of strings only");
        }
    }
}
