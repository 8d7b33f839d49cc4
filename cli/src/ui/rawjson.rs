//! One JSON object per event on standard error (`spec/cli.md` §3.6).

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci::Digest;
use serde_json::{Value, json};
use solver::{Event, Outcome, StepId, Stream};

/// The renderer.
pub(crate) struct RawJson<W> {
    out: W,
    steps: BTreeMap<StepId, Vertex>,
    /// Turns instants into wall-clock times.
    clock: (Instant, SystemTime),
}

struct Vertex {
    digest: String,
    name: String,
    started: String,
    /// The platform for which its command is emulated.
    emulated: Option<String>,
}

impl Vertex {
    fn json(&self) -> Value {
        let mut value = json!({"digest": self.digest, "name": self.name, "started": self.started});
        if let Some(platform) = &self.emulated {
            value["emulated"] = json!(platform);
        }
        value
    }
}

impl<W: Write> RawJson<W> {
    /// Writes to `out`; `now` are the two clocks at one moment.
    pub(crate) fn new(out: W, now: (Instant, SystemTime)) -> Self {
        Self { out, steps: BTreeMap::new(), clock: now }
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, event: Event) {
        let line = match event {
            Event::Started { step, name, at } => {
                let digest = Digest::of(format!("{}:{name}", step.0).as_bytes()).to_string();
                let vertex = Vertex { digest, name, started: self.time(at), emulated: None };
                let line = json!({"vertexes": [vertex.json()]});
                self.steps.insert(step, vertex);
                line
            }
            Event::Log { step, stream, data, at } => json!({"logs": [{
                "vertex": self.digest(step), "stream": if stream == Stream::Stdout { 1 } else { 2 },
                "data": STANDARD.encode(data), "timestamp": self.time(at)}]}),
            Event::Status { step, id, current_bytes, total_bytes, done, at } => {
                let mut status = json!({"id": id, "vertex": self.digest(step), "current": current_bytes,
                    "timestamp": self.time(at)});
                if total_bytes > 0 {
                    status["total"] = json!(total_bytes);
                }
                if done {
                    status["completed"] = json!(self.time(at));
                }
                json!({"statuses": [status]})
            }
            Event::Miss { step, reason } => warning(self.digest(step), &format!("MISS: {reason}")),
            Event::Imported { step, from } => {
                let at = self.time(Instant::now());
                json!({"statuses": [{"id": format!("cached in {from}"), "vertex": self.digest(step), "current": 0,
                    "timestamp": at, "completed": at}]})
            }
            Event::Emulated { step, architecture } => {
                let platform = format!("linux/{architecture}");
                if let Some(vertex) = self.steps.get_mut(&step) {
                    vertex.emulated = Some(platform);
                }
                self.steps.get(&step).map_or(json!({}), |vertex| json!({"vertexes": [vertex.json()]}))
            }
            Event::Warning { step, message } => {
                warning(step.map(|step| self.digest(step)).unwrap_or_default(), &message)
            }
            Event::Finished { step, outcome, at } => self.finished(step, &outcome, at),
            Event::End => return,
        };
        // A closed standard error must not stop a build.
        drop(writeln!(self.out, "{line}"));
    }

    fn finished(&self, step: StepId, outcome: &Outcome, at: Instant) -> Value {
        let Some(vertex) = self.steps.get(&step) else { return json!({}) };
        let mut value = vertex.json();
        value["completed"] = json!(self.time(at));
        match outcome {
            Outcome::Done => {}
            Outcome::Cached => value["cached"] = json!(true),
            Outcome::Failed(message) => value["error"] = json!(message),
            Outcome::Canceled => value["error"] = json!("context canceled"),
        }
        json!({"vertexes": [value]})
    }

    fn digest(&self, step: StepId) -> String {
        self.steps.get(&step).map(|vertex| vertex.digest.clone()).unwrap_or_default()
    }

    fn time(&self, at: Instant) -> String {
        let since = (self.clock.1 + at.duration_since(self.clock.0)).duration_since(UNIX_EPOCH);
        let since = since.unwrap_or(Duration::ZERO);
        oci::time::format_rfc3339(since.as_secs() as i64, since.subsec_nanos())
    }
}

fn warning(vertex: String, short: &str) -> Value {
    json!({"warnings": [{"vertex": vertex, "level": 1, "short": STANDARD.encode(short)}]})
}
