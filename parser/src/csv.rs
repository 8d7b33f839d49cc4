//! One CSV record, as `--mount` and `--device` use it.

use nom::branch::alt;
use nom::character::complete::{char, none_of};
use nom::combinator::value;
use nom::multi::fold_many0;
use nom::{IResult, Parser};

/// Splits a record at commas. Double quotes group a field, and `""` within them is a quote.
///
/// # Errors
///
/// Go's text for a quote where none may be; columns are 1-based and count bytes.
pub(crate) fn fields(record: &str) -> Result<Vec<String>, String> {
    if record.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let offset = record.len() - rest.len();
        let behind = match rest.strip_prefix('"') {
            Some(inner) => {
                let Ok((behind, field)) = quoted(inner) else { return Err(misplaced_quote(record.len())) };
                fields.push(field);
                behind
            }
            None => {
                let (field, behind) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                if let Some(at) = field.find('"') {
                    return Err(fault(offset + at, "bare \" in non-quoted-field"));
                }
                fields.push(field.to_owned());
                behind
            }
        };
        if behind.is_empty() {
            return Ok(fields);
        }
        // A quoted field can be followed by something else than a comma; its closing quote is then at fault.
        rest = behind.strip_prefix(',').ok_or_else(|| misplaced_quote(record.len() - behind.len() - 1))?;
    }
}

/// The content of a quoted field and what follows the closing quote.
fn quoted(input: &str) -> IResult<&str, String> {
    let pair = value('"', (char('"'), char('"')));
    let content = fold_many0(alt((pair, none_of("\""))), String::new, |mut text, c| {
        text.push(c);
        text
    });
    (content, char('"')).map(|(content, _)| content).parse(input)
}

fn misplaced_quote(offset_bytes: usize) -> String {
    fault(offset_bytes, "extraneous or missing \" in quoted-field")
}

fn fault(offset_bytes: usize, what: &str) -> String {
    format!("parse error on line 1, column {}: {what}", offset_bytes + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let table: &[(&str, Result<&[&str], &str>)] = &[
            ("a", Ok(&["a"])),
            ("type=bind,target=/x", Ok(&["type=bind", "target=/x"])),
            ("a,,b,", Ok(&["a", "", "b", ""])),
            (r#""a,b",c"#, Ok(&["a,b", "c"])),
            (r#""a""b""#, Ok(&["a\"b"])),
            (r#""""#, Ok(&[""])),
            ("", Err("EOF")),
            (r#"target=a"b"#, Err("parse error on line 1, column 9: bare \" in non-quoted-field")),
            (r#"x,a"b"#, Err("parse error on line 1, column 4: bare \" in non-quoted-field")),
            (r#""a"b"#, Err("parse error on line 1, column 3: extraneous or missing \" in quoted-field")),
            (r#""abc"#, Err("parse error on line 1, column 5: extraneous or missing \" in quoted-field")),
        ];
        for (record, want) in table {
            let got = fields(record);
            let got = got.as_ref().map(|fields| fields.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(got.as_deref().map_err(|error| error.as_str()), *want, "{record}");
        }
    }
}
