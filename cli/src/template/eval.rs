//! Executes nodes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Node, Operand, Pipeline, TemplateError, functions};

/// Fields of Go's types that JSON leaves out when they are empty, by name, with what they are then.
///
/// `docker inspect --format '{{.Config.User}}'` is an empty line for an image without a user, not an error.
pub(crate) type Zeros = BTreeMap<&'static str, Value>;

/// What a list of nodes ended with.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// Executes `nodes` on `data`.
pub(super) fn render(nodes: &[Node], data: &Value, zeros: &Zeros) -> Result<String, TemplateError> {
    let mut machine = Machine { variables: vec![(String::new(), data.clone())], zeros, out: String::new() };
    machine.nodes(nodes, data)?;
    Ok(machine.out)
}

struct Machine<'a> {
    /// Innermost last.
    variables: Vec<(String, Value)>,
    zeros: &'a Zeros,
    out: String,
}

impl Machine<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let n_variables = self.variables.len();
        let mut flow = Flow::On;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::On {
                break;
            }
        }
        self.variables.truncate(n_variables);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = self.bound(pipeline, dot)?;
                // A declaration shows nothing.
                if pipeline.variables.is_empty() {
                    self.out.push_str(&functions::show(&value));
                }
            }
            Node::If { branches, otherwise } => {
                let n_variables = self.variables.len();
                let mut chosen = otherwise;
                for (condition, body) in branches {
                    if functions::truth(&self.bound(condition, dot)?) {
                        chosen = body;
                        break;
                    }
                }
                let flow = self.nodes(chosen, dot)?;
                self.variables.truncate(n_variables);
                return Ok(flow);
            }
            Node::With { branches, otherwise } => {
                let n_variables = self.variables.len();
                let mut chosen = (otherwise, dot.clone());
                for (condition, body) in branches {
                    let value = self.bound(condition, dot)?;
                    if functions::truth(&value) {
                        chosen = (body, value);
                        break;
                    }
                }
                let flow = self.nodes(chosen.0, &chosen.1)?;
                self.variables.truncate(n_variables);
                return Ok(flow);
            }
            Node::Range { over, body, otherwise } => return self.range(over, body, otherwise, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Null => Vec::new(),
            Value::Array(list) => list.into_iter().enumerate().map(|(index, value)| (index.into(), value)).collect(),
            // Sorted by key, as Go does.
            Value::Object(map) => map.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            other => return Err(TemplateError::new(format!("range can't iterate over {}", functions::show(&other)))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, value) in items {
            let n_variables = self.variables.len();
            match over.variables.as_slice() {
                [] => {}
                [one] => self.variables.push((one.clone(), value.clone())),
                [one, two, ..] => {
                    self.variables.extend([(one.clone(), key), (two.clone(), value.clone())]);
                }
            }
            let flow = self.nodes(body, &value)?;
            self.variables.truncate(n_variables);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    /// The value of a pipeline; its variable, if it has one, gets it.
    fn bound(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.pipeline(pipeline, dot)?;
        if let Some(name) = pipeline.variables.first() {
            match self.variables.iter_mut().rev().find(|(known, _)| known == name).filter(|_| pipeline.assigns) {
                Some((_, old)) => *old = value.clone(),
                None => self.variables.push((name.clone(), value.clone())),
            }
        }
        Ok(value)
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, dot, piped)?);
        }
        Ok(piped.unwrap_or(Value::Null))
    }

    fn command(&mut self, command: &[Operand], dot: &Value, piped: Option<Value>) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.split_first() else { return Ok(Value::Null) };
        let Operand::Function(name) = first else {
            if let Some(extra) = rest.first() {
                let extra = self.operand(extra, dot)?;
                return Err(TemplateError::new(format!(
                    "can't give argument `{}` to a value",
                    functions::show(&extra)
                )));
            }
            if piped.is_some() {
                return Err(TemplateError::new("only a function can stand behind `|`"));
            }
            return self.operand(first, dot);
        };
        // These stop at the first argument that decides.
        if let "and" | "or" = name.as_str() {
            return self.decide(name == "or", rest, dot, piped);
        }
        let mut arguments = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<Vec<_>, _>>()?;
        arguments.extend(piped);
        functions::call(name, arguments)
    }

    fn decide(
        &mut self,
        until: bool,
        operands: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let mut last = None;
        for operand in operands {
            let value = self.operand(operand, dot)?;
            if functions::truth(&value) == until {
                return Ok(value);
            }
            last = Some(value);
        }
        piped.or(last).ok_or_else(|| TemplateError::new("`and` and `or` want at least one argument"))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Dot(chain) => self.fields(dot, chain),
            Operand::Variable(name, chain) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let value = found.map(|(_, value)| value.clone()).unwrap_or_default();
                self.fields(&value, chain)
            }
            Operand::Function(_) => self.command(std::slice::from_ref(operand), dot, None),
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Group(pipeline, chain) => {
                let value = self.pipeline(pipeline, dot)?;
                self.fields(&value, chain)
            }
        }
    }

    fn fields(&self, value: &Value, chain: &[String]) -> Result<Value, TemplateError> {
        let mut value = value;
        for name in chain {
            value = match value {
                Value::Object(map) => {
                    let exact = map.get(name).or_else(|| self.zeros.get(name.as_str()));
                    // Go's types say `ID` where JSON says `Id`.
                    let alike = || map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
                    exact.or_else(alike).ok_or_else(|| {
                        let known: Vec<&str> = map.keys().map(String::as_str).collect();
                        TemplateError::new(format!("there is no field `{name}`: there are {}", known.join(", ")))
                    })?
                }
                // What is not there has no fields, and shows as nothing.
                Value::Null => &Value::Null,
                other => {
                    let shown = functions::show(other);
                    return Err(TemplateError::new(format!("can't take field `{name}` of `{shown}`")));
                }
            };
        }
        Ok(value.clone())
    }
}
