//! The CSV of `--output`, `--secret` and friends (`spec/cli.md` §1.4): one RFC 4180 record of `key=value` fields.

/// A malformed record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CsvError(pub(crate) String);

/// Splits one record into its fields; a field that holds commas is quoted as a whole, `""` is a quote.
pub(crate) fn fields(record: &str) -> Result<Vec<String>, CsvError> {
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                rest.split_once(',').map_or((rest.to_owned(), None), |(field, after)| (field.to_owned(), Some(after)))
            }
        };
        if !rest.starts_with('"') && field.contains('"') {
            return Err(CsvError(format!("bare quote in `{field}`: quote the whole field, as in \"name=a,b\"")));
        }
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// Splits a field at its first `=`; the key is lower-cased.
pub(crate) fn pair(field: &str) -> Option<(String, String)> {
    let (key, value) = field.split_once('=')?;
    Some((key.trim().to_ascii_lowercase(), value.to_owned()))
}

fn quoted_field(quoted: &str) -> Result<(String, Option<&str>), CsvError> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err(CsvError(format!("the quote before `{quoted}` is never closed")));
        };
        field.push_str(part);
        match after.as_bytes().first() {
            None => return Ok((field, None)),
            Some(b',') => return Ok((field, Some(&after[1..]))),
            Some(b'"') => {
                field.push('"');
                rest = &after[1..];
            }
            Some(_) => return Err(CsvError(format!("text after the closing quote of `{field}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_split_at_commas_outside_quotes() {
        let cases: [(&str, &[&str]); 5] = [
            ("type=oci,dest=x.tar", &["type=oci", "dest=x.tar"]),
            ("\"name=a,b\",push=true", &["name=a,b", "push=true"]),
            ("\"a\"\"b\"", &["a\"b"]),
            ("", &[""]),
            ("a,", &["a", ""]),
        ];
        for (record, expected) in cases {
            assert_eq!(fields(record).expect(record), expected);
        }
    }

    #[test]
    fn broken_quotes_are_errors() {
        for record in ["\"a", "a\"b", "\"a\"b"] {
            assert!(fields(record).is_err(), "{record}");
        }
    }
}
