//! Tokens to nodes.

use super::lexer::{Piece, Token};
use super::{Node, Operand, Pipeline, TemplateError, functions};

/// Parentheses and blocks in each other; more is a mistake, and would exhaust the stack.
const MAX_DEPTH: usize = 100;

/// Where a list of nodes ended.
enum End {
    /// The template did.
    Template,
    /// `{{end}}`.
    Block,
    /// `{{else}}`, with what follows the word.
    Else(Vec<Token>),
}

/// Parses a whole template.
pub(super) fn parse(pieces: &[Piece]) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { pieces: pieces.iter(), depth: 0, n_loops: 0, variables: vec![String::new()] };
    match parser.nodes()? {
        (nodes, End::Template) => Ok(nodes),
        (_, End::Block) => Err(TemplateError::new("unexpected {{end}}")),
        (_, End::Else(_)) => Err(TemplateError::new("unexpected {{else}}")),
    }
}

struct Parser<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    depth: usize,
    n_loops: usize,
    /// Names that are known at this place; the root is the empty one.
    variables: Vec<String>,
}

impl Parser<'_> {
    fn nodes(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(TemplateError::new(format!("blocks are more than {MAX_DEPTH} deep")));
        }
        let mut nodes = Vec::new();
        let end = loop {
            let tokens = match self.pieces.next() {
                None => break End::Template,
                Some(Piece::Text(text)) => {
                    nodes.push(Node::Text(text.clone()));
                    continue;
                }
                Some(Piece::Action(tokens)) => tokens,
            };
            let Token::Word(word) = &tokens[0] else {
                nodes.push(Node::Print(self.pipeline(tokens)?));
                continue;
            };
            match word.as_str() {
                "end" if tokens.len() == 1 => break End::Block,
                "else" => break End::Else(tokens[1..].to_vec()),
                "if" => nodes.push(self.branches(&tokens[1..], "if")?),
                "with" => nodes.push(self.branches(&tokens[1..], "with")?),
                "range" => nodes.push(self.range(&tokens[1..])?),
                "break" | "continue" if self.n_loops == 0 => {
                    return Err(TemplateError::new(format!("{{{{{word}}}}} outside of {{{{range}}}}")));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "template" | "block" => {
                    return Err(TemplateError::new(format!("{{{{{word}}}}} is not supported: write one template")));
                }
                _ => nodes.push(Node::Print(self.pipeline(tokens)?)),
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn branches(&mut self, condition: &[Token], word: &str) -> Result<Node, TemplateError> {
        let n_variables = self.variables.len();
        let mut condition = condition.to_vec();
        let mut branches = Vec::new();
        let otherwise = loop {
            let pipeline = self.pipeline(&condition)?;
            let (body, end) = self.nodes()?;
            branches.push((pipeline, body));
            match end {
                End::Block => break Vec::new(),
                End::Else(rest) if rest.is_empty() => break self.rest_of(word)?,
                End::Else(rest) if rest[0] == Token::Word(word.to_owned()) => condition = rest[1..].to_vec(),
                End::Else(_) => {
                    return Err(TemplateError::new(format!("{{{{else}}}} of {{{{{word}}}}} has a condition")));
                }
                End::Template => return Err(unclosed(word)),
            }
        };
        self.variables.truncate(n_variables);
        Ok(if word == "if" { Node::If { branches, otherwise } } else { Node::With { branches, otherwise } })
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let n_variables = self.variables.len();
        let over = self.pipeline_of(tokens, 2)?;
        self.n_loops += 1;
        let (body, end) = self.nodes()?;
        self.n_loops -= 1;
        let otherwise = match end {
            End::Block => Vec::new(),
            End::Else(rest) if rest.is_empty() => self.rest_of("range")?,
            End::Else(_) => return Err(TemplateError::new("{{else}} of {{range}} has a condition")),
            End::Template => return Err(unclosed("range")),
        };
        self.variables.truncate(n_variables);
        Ok(Node::Range { over, body, otherwise })
    }

    fn rest_of(&mut self, word: &str) -> Result<Vec<Node>, TemplateError> {
        match self.nodes()? {
            (nodes, End::Block) => Ok(nodes),
            (_, End::Else(_)) => Err(TemplateError::new(format!("{{{{{word}}}}} has two {{{{else}}}}"))),
            (_, End::Template) => Err(unclosed(word)),
        }
    }

    fn pipeline(&mut self, tokens: &[Token]) -> Result<Pipeline, TemplateError> {
        self.pipeline_of(tokens, 1)
    }

    /// A pipeline that may give names to up to `max_variables` values.
    fn pipeline_of(&mut self, tokens: &[Token], max_variables: usize) -> Result<Pipeline, TemplateError> {
        let (variables, assigns, rest) = match tokens {
            [Token::Variable(one, chain), sign @ (Token::Declare | Token::Assign), rest @ ..] if chain.is_empty() => {
                (vec![one.clone()], *sign == Token::Assign, rest)
            }
            [
                Token::Variable(one, _),
                Token::Comma,
                Token::Variable(two, _),
                sign @ (Token::Declare | Token::Assign),
                rest @ ..,
            ] if max_variables > 1 => (vec![one.clone(), two.clone()], *sign == Token::Assign, rest),
            _ => (Vec::new(), false, tokens),
        };
        let mut rest = rest;
        let commands = self.commands(&mut rest, false)?;
        for name in &variables {
            if assigns {
                self.known(name)?;
            } else {
                self.variables.push(name.clone());
            }
        }
        Ok(Pipeline { variables, assigns, commands })
    }

    /// Commands up to the end, or to the closing parenthesis, which is left there.
    fn commands(&mut self, rest: &mut &[Token], in_group: bool) -> Result<Vec<Vec<Operand>>, TemplateError> {
        let mut commands = vec![Vec::new()];
        while let Some((token, after)) = rest.split_first() {
            if in_group && matches!(token, Token::Close(_)) {
                break;
            }
            *rest = after;
            let operand = match token {
                Token::Pipe => {
                    commands.push(Vec::new());
                    continue;
                }
                Token::Dot(chain) => Operand::Dot(chain.clone()),
                Token::Variable(name, chain) => {
                    self.known(name)?;
                    Operand::Variable(name.clone(), chain.clone())
                }
                Token::Word(name) => {
                    functions::check(name)?;
                    Operand::Function(name.clone())
                }
                Token::Literal(value) => Operand::Literal(value.clone()),
                Token::Open => self.group(rest)?,
                Token::Close(_) => return Err(TemplateError::new("unexpected right parenthesis")),
                Token::Declare | Token::Assign => {
                    return Err(TemplateError::new("only a variable can be given a value"));
                }
                Token::Comma => return Err(TemplateError::new("unexpected `,`: arguments are separated by spaces")),
            };
            commands.last_mut().expect("there is always one").push(operand);
        }
        if commands.iter().any(Vec::is_empty) {
            return Err(TemplateError::new("missing value for command"));
        }
        Ok(commands)
    }

    fn group(&mut self, rest: &mut &[Token]) -> Result<Operand, TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(TemplateError::new(format!("parentheses are more than {MAX_DEPTH} deep")));
        }
        let commands = self.commands(rest, true)?;
        self.depth -= 1;
        let Some((Token::Close(chain), after)) = rest.split_first() else {
            return Err(TemplateError::new("unclosed left parenthesis"));
        };
        *rest = after;
        Ok(Operand::Group(Box::new(Pipeline { variables: Vec::new(), assigns: false, commands }), chain.clone()))
    }

    fn known(&self, name: &str) -> Result<(), TemplateError> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(TemplateError::new(format!("undefined variable `${name}`")))
    }
}

fn unclosed(word: &str) -> TemplateError {
    TemplateError::new(format!("{{{{{word}}}}} has no {{{{end}}}}"))
}
