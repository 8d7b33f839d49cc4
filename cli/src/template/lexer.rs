//! Text to pieces (plain text, actions), and actions to tokens.

use serde_json::Value;

use super::TemplateError;

const LEFT: &str = "{{";
const RIGHT: &str = "}}";

/// What a template consists of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// Never empty.
    Action(Vec<Token>),
}

/// A word of an action. A chain holds the fields that follow directly.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Word(String),
    Literal(Value),
    Pipe,
    Open,
    Close(Vec<String>),
    Declare,
    Assign,
    Comma,
}

/// Cuts a template into text and actions. Comments are dropped; `{{-` and `-}}` take white space beside them along.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trims = false;
    while let Some(at) = rest.find(LEFT) {
        let (mut text, action) = (&rest[..at], &rest[at + LEFT.len()..]);
        if trims {
            text = text.trim_start();
        }
        let body = match action.strip_prefix('-').filter(|body| body.starts_with(char::is_whitespace)) {
            Some(body) => {
                text = text.trim_end();
                body
            }
            None => action,
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let (tokens, after, trims_right) = action_tokens(body)?;
        if !tokens.is_empty() {
            pieces.push(Piece::Action(tokens));
        }
        (rest, trims) = (after, trims_right);
    }
    let text = if trims { rest.trim_start() } else { rest };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    Ok(pieces)
}

/// The tokens up to `}}`, what follows it, and whether white space behind is dropped. A comment has no tokens.
fn action_tokens(body: &str) -> Result<(Vec<Token>, &str, bool), TemplateError> {
    if let Some(comment) = body.trim_start().strip_prefix("/*") {
        let end = comment.find("*/").ok_or_else(|| TemplateError::new("a comment has no end"))?;
        let (after, trims) =
            end_of_action(comment[end + 2..].trim_start_matches(' '), comment[end + 2..].starts_with(' '))
                .ok_or_else(|| TemplateError::new("a comment ends before the closing `}}`"))?;
        return Ok((Vec::new(), after, trims));
    }
    let mut tokens = Vec::new();
    let mut rest = body;
    loop {
        let trimmed = rest.trim_start();
        if let Some((after, trims)) = end_of_action(trimmed, trimmed.len() < rest.len()) {
            if tokens.is_empty() {
                return Err(TemplateError::new("missing value for command: `{{}}` is empty"));
            }
            return Ok((tokens, after, trims));
        }
        if trimmed.is_empty() {
            return Err(TemplateError::new("an action has no closing `}}`"));
        }
        let (token, after) = token(trimmed)?;
        tokens.push(token);
        rest = after;
    }
}

/// What follows `}}` or ` -}}`, and whether it was the latter.
fn end_of_action(text: &str, after_space: bool) -> Option<(&str, bool)> {
    match text.strip_prefix('-').filter(|_| after_space).and_then(|text| text.strip_prefix(RIGHT)) {
        Some(after) => Some((after, true)),
        None => text.strip_prefix(RIGHT).map(|after| (after, false)),
    }
}

fn token(text: &str) -> Result<(Token, &str), TemplateError> {
    let first = text.chars().next().unwrap_or_default();
    let rest = &text[first.len_utf8()..];
    match first {
        '|' => Ok((Token::Pipe, rest)),
        ',' => Ok((Token::Comma, rest)),
        '(' => Ok((Token::Open, rest)),
        ')' => {
            let (fields, rest) = chain(rest);
            Ok((Token::Close(fields), rest))
        }
        ':' if rest.starts_with('=') => Ok((Token::Declare, &rest[1..])),
        '=' => Ok((Token::Assign, rest)),
        '"' => quoted(text),
        '`' => {
            let end = rest.find('`').ok_or_else(|| TemplateError::new("a raw string has no closing backquote"))?;
            Ok((Token::Literal(rest[..end].into()), &rest[end + 1..]))
        }
        '\'' => character(rest),
        '.' if !rest.starts_with(|next: char| next.is_ascii_digit()) => {
            let (fields, rest) = chain(text);
            Ok((Token::Dot(fields.clone()), if fields.is_empty() { &text[1..] } else { rest }))
        }
        '$' => {
            let (name, rest) = word(rest);
            let (fields, rest) = chain(rest);
            Ok((Token::Variable(name.to_owned(), fields), rest))
        }
        '0'..='9' | '-' | '+' | '.' => number(text),
        first if first.is_alphabetic() || first == '_' => {
            let (name, rest) = word(text);
            let literal = match name {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "nil" => Value::Null,
                _ => return Ok((Token::Word(name.to_owned()), rest)),
            };
            Ok((Token::Literal(literal), rest))
        }
        other => Err(TemplateError::new(format!("unexpected `{other}` in an action"))),
    }
}

/// `.A.B` as names; empty when `text` does not begin with a field.
fn chain(text: &str) -> (Vec<String>, &str) {
    let mut fields = Vec::new();
    let mut rest = text;
    while let Some(after_dot) = rest.strip_prefix('.') {
        let (name, after) = word(after_dot);
        if name.is_empty() {
            break;
        }
        fields.push(name.to_owned());
        rest = after;
    }
    (fields, rest)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    text.split_at(end)
}

fn number(text: &str) -> Result<(Token, &str), TemplateError> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '+' | '_'))).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let plain = digits.replace('_', "");
    let unsigned = plain.strip_prefix('+').unwrap_or(&plain);
    let integer = match unsigned.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => unsigned.parse::<i64>().ok(),
    };
    let value = match integer {
        Some(integer) => Some(Value::from(integer)),
        None => unsigned.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number),
    };
    value.map(|value| (Token::Literal(value), rest)).ok_or_else(|| TemplateError::new(format!("bad number `{digits}`")))
}

fn quoted(text: &str) -> Result<(Token, &str), TemplateError> {
    let mut value = String::new();
    let mut chars = text[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(value.into()), &text[at + 2..])),
            '\\' => {
                let (_, escaped) = chars.next().ok_or_else(|| TemplateError::new("a string has no closing quote"))?;
                value.push(escape(escaped, || chars.next().map(|(_, c)| c))?);
            }
            c => value.push(c),
        }
    }
    Err(TemplateError::new("a string has no closing quote"))
}

fn character(rest: &str) -> Result<(Token, &str), TemplateError> {
    let bad = || TemplateError::new("a character constant is one character between single quotes");
    let mut chars = rest.chars();
    let mut c = chars.next().ok_or_else(bad)?;
    if c == '\\' {
        let escaped = chars.next().ok_or_else(bad)?;
        c = escape(escaped, || chars.next())?;
    }
    let rest = chars.as_str().strip_prefix('\'').ok_or_else(bad)?;
    Ok((Token::Literal(u32::from(c).into()), rest))
}

/// What `\c` stands for; digits of numeric escapes come from `next`.
fn escape(c: char, mut next: impl FnMut() -> Option<char>) -> Result<char, TemplateError> {
    let n_digits = match c {
        'a' => return Ok('\u{7}'),
        'b' => return Ok('\u{8}'),
        'f' => return Ok('\u{c}'),
        'n' => return Ok('\n'),
        'r' => return Ok('\r'),
        't' => return Ok('\t'),
        'v' => return Ok('\u{b}'),
        '\\' | '"' | '\'' => return Ok(c),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        other => return Err(TemplateError::new(format!("unknown escape `\\{other}` in a string"))),
    };
    let digits: String = (0..n_digits).filter_map(|_| next()).collect();
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == n_digits);
    code.and_then(char::from_u32).ok_or_else(|| TemplateError::new(format!("bad escape `\\{c}{digits}` in a string")))
}
