//! Go's `printf`: flags, width, precision, and the verbs that make sense for JSON values.

use serde_json::Value;

use super::TemplateError;
use super::functions::show;

/// Wider is a slip.
const MAX_WIDTH: usize = 1_000_000;

/// One `%…` without its verb.
#[derive(Default)]
struct Directive {
    left: bool,
    plus: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Formats as Go does; too few or too many arguments show as Go shows them.
pub(super) fn printf(format: &str, values: &[Value]) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = Directive::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | ' ' | '#')) {
            match flag {
                '-' => directive.left = true,
                '+' => directive.plus = true,
                '0' => directive.zero = true,
                _ => {}
            }
        }
        directive.width = number(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            directive.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                Some(value) => out.push_str(&directive.padded(&directive.body(verb, value)?, verb)),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
        }
    }
    let extra: Vec<String> = values.map(show).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, TemplateError> {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    let number = digits.parse().ok().filter(|number| *number <= MAX_WIDTH);
    number.map(Some).ok_or_else(|| TemplateError::new(format!("printf: width {digits} is too large")))
}

impl Directive {
    fn body(&self, verb: char, value: &Value) -> Result<String, TemplateError> {
        let clipped = |text: String| match self.precision {
            Some(length) => text.chars().take(length).collect(),
            None => text,
        };
        let sign = |text: String| if self.plus && !text.starts_with('-') { format!("+{text}") } else { text };
        Ok(match (verb, value) {
            ('s' | 'v', Value::String(text)) => clipped(text.clone()),
            ('v', value) => show(value),
            ('s', Value::Array(_) | Value::Object(_)) => show(value),
            ('q', Value::String(text)) => quoted(&clipped(text.clone())),
            ('q', Value::Array(list)) => {
                let parts: Result<Vec<String>, _> = list.iter().map(|value| self.body('q', value)).collect();
                format!("[{}]", parts?.join(" "))
            }
            ('t', Value::Bool(value)) => value.to_string(),
            ('d', Value::Number(number)) if !number.is_f64() => sign(number.to_string()),
            ('x' | 'X' | 'o' | 'b' | 'c', Value::Number(number)) if number.is_u64() => {
                let number = number.as_u64().unwrap_or_default();
                match verb {
                    'x' => format!("{number:x}"),
                    'X' => format!("{number:X}"),
                    'o' => format!("{number:o}"),
                    'b' => format!("{number:b}"),
                    _ => u32::try_from(number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string(),
                }
            }
            ('x', Value::String(text)) => oci::digest::hex(text.as_bytes()),
            ('f' | 'F', Value::Number(number)) => {
                sign(format!("{:.*}", self.precision.unwrap_or(6), number.as_f64().unwrap_or_default()))
            }
            ('g', Value::Number(number)) => sign(number.to_string()),
            ('s' | 'q' | 't' | 'd' | 'x' | 'X' | 'o' | 'b' | 'c' | 'f' | 'F' | 'g', value) => {
                format!("%!{verb}({})", show(value))
            }
            (verb, _) => return Err(TemplateError::new(format!("printf: the verb `%{verb}` is not supported"))),
        })
    }

    fn padded(&self, body: &str, verb: char) -> String {
        let missing = self.width.saturating_sub(body.chars().count());
        let is_number = matches!(verb, 'd' | 'x' | 'X' | 'o' | 'b' | 'f' | 'F' | 'g');
        match (self.left, self.zero && is_number) {
            (true, _) => format!("{body}{}", " ".repeat(missing)),
            (false, true) => {
                let n_sign = usize::from(body.starts_with(['-', '+']));
                format!("{}{}{}", &body[..n_sign], "0".repeat(missing), &body[n_sign..])
            }
            (false, false) => format!("{}{body}", " ".repeat(missing)),
        }
    }
}

/// As Go quotes text, which for what is in images is as JSON does.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
