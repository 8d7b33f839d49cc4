//! Words of Go's standard library that show up in messages or grammars: quoting, booleans, integers.

/// Go's `%q` of a string.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            ' '..='~' => out.push(c),
            c if c < '\u{80}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || c.is_whitespace() || is_private_use(c) => {
                let code = u32::from(c);
                out.push_str(&if code < 0x10000 { format!("\\u{code:04x}") } else { format!("\\U{code:08x}") });
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_private_use(c: char) -> bool {
    matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}' | '\u{feff}' | '\u{200b}'..='\u{200f}')
}

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The error that Go's `strconv.ParseBool` gives for `text`.
pub fn parse_bool_error(text: &str) -> String {
    format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text))
}

/// Go's `strconv.ParseInt(text, 10, 32)`; the error is Go's text.
pub fn parse_int32(text: &str) -> Result<i32, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let fault = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        "invalid syntax"
    } else if let Ok(value) = text.parse::<i32>() {
        return Ok(value);
    } else {
        "value out of range"
    };
    Err(format!("strconv.ParseInt: parsing {}: {fault}", quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_is_gos() {
        let table = [
            ("a b", r#""a b""#),
            ("\"\\", r#""\"\\""#),
            ("a\nb\tc\x1b", r#""a\nb\tc\x1b""#),
            ("größe ☃", r#""größe ☃""#),
            ("\u{a0}\u{feff}", r#""\u00a0\ufeff""#),
        ];
        for (text, want) in table {
            assert_eq!(quote(text), want);
        }
    }

    #[test]
    fn integers_are_gos() {
        assert_eq!(parse_int32("+5"), Ok(5));
        assert_eq!(parse_int32("-1"), Ok(-1));
        assert_eq!(parse_int32("x"), Err("strconv.ParseInt: parsing \"x\": invalid syntax".to_owned()));
        assert_eq!(parse_int32(""), Err("strconv.ParseInt: parsing \"\": invalid syntax".to_owned()));
        assert_eq!(
            parse_int32("3000000000"),
            Err("strconv.ParseInt: parsing \"3000000000\": value out of range".to_owned())
        );
    }
}
