//! `--format` of lists: a table, JSON lines, or a Go template a row, as docker has them.

use serde_json::{Map, Value};

use super::table::aligned;
use crate::failure::Failure;
use crate::template::{Template, TemplateError, Zeros};

/// A list that can be shown: what its fields are called above columns, and what a table has when nobody says.
pub(crate) struct Listing {
    /// Field and heading. Every row has all fields.
    pub(crate) headings: &'static [(&'static str, &'static str)],
    /// The columns of the usual table, as a template.
    pub(crate) table: &'static str,
}

/// How rows are shown.
enum Shape {
    Table(Template),
    Json,
    Lines(Template),
}

impl Listing {
    /// Shows `rows`, objects with the fields of the list, as `format` says.
    pub(crate) fn render(&self, format: &str, rows: &[Value]) -> Result<String, Failure> {
        match shape(format, self.table)? {
            Shape::Json => Ok(rows.iter().map(|row| format!("{row}\n")).collect()),
            Shape::Lines(template) => lines(&template, rows),
            Shape::Table(template) => {
                let headings =
                    self.headings.iter().map(|(field, heading)| ((*field).to_owned(), Value::from(*heading)));
                let mut text = lines(&template, &[Value::Object(headings.collect::<Map<_, _>>())])?;
                text.push_str(&lines(&template, rows)?);
                Ok(aligned(&text))
            }
        }
    }
}

fn shape(format: &str, table: &str) -> Result<Shape, Failure> {
    Ok(match format.trim() {
        "" | "table" => Shape::Table(parse(table)?),
        "json" => Shape::Json,
        format => match format.strip_prefix("table ") {
            Some(columns) => Shape::Table(parse(columns.trim_start())?),
            None => Shape::Lines(parse(format)?),
        },
    })
}

/// A template as people type it: `\t` and `\n` in it are a tab and a new line.
pub(crate) fn parse(text: &str) -> Result<Template, Failure> {
    Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n")).map_err(|error| failure(&error))
}

fn lines(template: &Template, rows: &[Value]) -> Result<String, Failure> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&template.render(row, &Zeros::new()).map_err(|error| failure(&error))?);
        text.push('\n');
    }
    Ok(text)
}

/// A template that is wrong is a mistake on the command line.
pub(crate) fn failure(error: &TemplateError) -> Failure {
    Failure::usage(format!("--format: {error}"))
}

/// A time as docker shows it in lists.
pub(crate) fn date(seconds: i64) -> String {
    let text = oci::time::format_rfc3339(seconds, 0);
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: Listing = Listing { headings: &[("Name", "NAME"), ("Size", "SIZE")], table: "{{.Name}}\t{{.Size}}" };

    #[test]
    fn formats_of_a_list() {
        let rows = [json!({"Name": "a", "Size": "1B"}), json!({"Name": "b", "Size": "2B"})];
        for (format, expected) in [
            ("table", "NAME      SIZE\na         1B\nb         2B\n"),
            ("table {{.Size}}\\t{{.Name}}", "SIZE      NAME\n1B        a\n2B        b\n"),
            ("{{.Name}}:{{.Size}}", "a:1B\nb:2B\n"),
            ("json", "{\"Name\":\"a\",\"Size\":\"1B\"}\n{\"Name\":\"b\",\"Size\":\"2B\"}\n"),
            ("{{json .}}", "{\"Name\":\"a\",\"Size\":\"1B\"}\n{\"Name\":\"b\",\"Size\":\"2B\"}\n"),
        ] {
            assert_eq!(LIST.render(format, &rows).expect(format), expected);
        }
        assert!(LIST.render("{{.Nope}}", &rows).is_err());
        assert_eq!(date(0), "1970-01-01 00:00:00 +0000 UTC");
    }
}
