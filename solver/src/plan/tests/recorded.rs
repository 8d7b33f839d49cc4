//! Plans against recorded builds of the reference builder: config, history, names of steps, warnings and errors.
//!
//! The recordings are in the folder that `RBUILD_GOLDENS` names, or in `shared/goldens` next to the workspace. What only
//! shows when steps run is left to the tests that run them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fake::{self, Images, amd64, apply};
use crate::op::Op;
use crate::plan::{ContextKind, IgnoreFile, Plan, PlanError, PlanRequest, PlannedImage, SourceText};

/// What stands for the address of the web server of a case.
const WEB: &str = "http://web.test/case";

/// Cases whose Dockerfile is not in their folder, or that need what is not done yet.
const LEFT_OUT: &[(&str, &str)] = &[
    ("context-git", "the Dockerfile is in the repository"),
    ("context-remote", "the Dockerfile is behind the URL"),
    ("add-git-checksum", "the Dockerfile is made by a script"),
    ("ignore-dockerfile-symlink", "the Dockerfile is made by a script"),
    ("ignore-files/lower-case-dockerfile", "finding the Dockerfile comes first"),
    ("ignore-files/dockerfile-missing", "finding the Dockerfile comes first"),
    ("ignore-files/dockerfile-named-missing", "finding the Dockerfile comes first"),
    ("epoch-of-a-stage", "the time is that of a file behind a URL"),
    ("call-outline-and-targets", "no plan is made"),
    ("parse-line-too-long-fails", "the Dockerfile is made by a script"),
    ("parse-line-just-short-enough", "the Dockerfile is made by a script"),
    ("parse-logical-line-of-any-length", "the Dockerfile is made by a script"),
];

/// How errors begin that only steps can have.
const OF_STEPS: &[&str] = &[
    "process \"",
    "failed to compute cache key",
    "failed to load cache key",
    "secret ",
    "no SSH key",
    "cannot replace to directory",
    "cannot copy to non-directory",
    "mkdir ",
    "open ",
    "digest mismatch",
    "invalid subdir",
    "unexpected EOF",
    "archive/tar",
];

fn folder() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/goldens");
    let root = fake::setting("RBUILD_GOLDENS").map_or_else(default, PathBuf::from);
    let cases = root.join("cases");
    cases.is_dir().then_some(cases)
}

#[test]
fn plans_agree_with_recorded_builds() {
    let Some(cases) = folder() else {
        say("skipped: no recordings (set RBUILD_GOLDENS to their folder)");
        return;
    };
    let mut names: Vec<String> =
        std::fs::read_dir(&cases).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let (mut n_agreed, mut n_left_out, mut wrong) = (0, 0, Vec::new());
    for name in names {
        for case in Case::read(&cases.join(&name), &name) {
            if LEFT_OUT.iter().any(|(left_out, _)| *left_out == name || *left_out == case.name) {
                n_left_out += 1;
                continue;
            }
            match case.check() {
                Ok(Verdict::Agreed) => n_agreed += 1,
                Ok(Verdict::OfSteps) => n_left_out += 1,
                Err(message) => wrong.push(format!("{}: {message}", case.name)),
            }
        }
    }
    let summary = format!("{n_agreed} agree, {n_left_out} left out, {} differ", wrong.len());
    say(&summary);
    assert!(wrong.is_empty(), "{summary}\n{}", wrong.join("\n"));
    // A floor, so that a change of the recordings' layout cannot make the test empty.
    assert!(n_agreed > 600, "{summary}");
}

/// Tells whoever runs the tests with `--nocapture`, or reads why one failed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "recorded builds: {text}");
}

enum Verdict {
    Agreed,
    /// The outcome shows only when steps run.
    OfSteps,
}

/// One build of a case.
struct Case {
    name: String,
    folder: PathBuf,
    spec: toml::Table,
    expected: Value,
}

impl Case {
    fn read(folder: &Path, name: &str) -> Vec<Self> {
        let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let mut spec: toml::Table = text("case.toml").parse().unwrap();
        let expected: Value = serde_json::from_str(&text("expected.json").replace("{WEB}", WEB)).unwrap();
        let folder = folder.to_owned();
        let Some(variants) = spec.remove("variant") else {
            return vec![Self { name: name.to_owned(), folder, spec, expected }];
        };
        let variants = variants.as_array().unwrap().iter();
        let case = |variant: &toml::Value| {
            let variant = variant.as_table().unwrap();
            let variant_name = variant["name"].as_str().unwrap();
            let mut spec = spec.clone();
            spec.extend(variant.clone());
            let expected = expected["variants"][variant_name].clone();
            Self { name: format!("{name}/{variant_name}"), folder: folder.clone(), spec, expected }
        };
        variants.map(case).collect()
    }

    /// Text of a file of the case, of the variant if it has one.
    fn file(&self, path: &str) -> Option<Vec<u8>> {
        let own = self.spec.get("files").and_then(|files| files.get(path)).and_then(toml::Value::as_str);
        own.map(|text| text.as_bytes().to_vec()).or_else(|| std::fs::read(self.folder.join(path)).ok())
    }

    fn args(&self) -> Vec<String> {
        let list = self.spec.get("args").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        list.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
    }

    fn request(&self, args: &[String]) -> PlanRequest {
        let named = args.iter().position(|arg| arg == "--file").map(|at| args[at + 1].clone());
        let given = self.spec.get("dockerfile").and_then(toml::Value::as_str).map(|text| text.as_bytes().to_vec());
        let path = named.unwrap_or_else(|| match self.folder.join("Dockerfile").exists() || given.is_some() {
            true => "Dockerfile".to_owned(),
            false => "context/Dockerfile".to_owned(),
        });
        let text = given.or_else(|| self.file(&path)).unwrap_or_default();
        let mut request = PlanRequest::new(SourceText { name: "Dockerfile".to_owned(), text }, amd64());
        request.main_context = ContextKind::Local("context".to_owned());
        let ignore = self.file(&format!("{path}.dockerignore")).or_else(|| self.file("context/.dockerignore"));
        request.ignore = ignore.map(|text| IgnoreFile { name: ".dockerignore".to_owned(), text });
        if self.spec.get("serve").is_some() {
            request.build_args.insert("WEB".to_owned(), WEB.to_owned());
        }
        apply(&mut request, args);
        request
    }

    fn images(&self) -> Images {
        let mut images = Images::new();
        if let Some(base) = self.spec.get("base").and_then(toml::Value::as_str) {
            let text = std::fs::read(self.folder.join("base/Dockerfile")).unwrap();
            let mut request = PlanRequest::new(SourceText { name: "base".to_owned(), text }, amd64());
            request.main_context = ContextKind::Local("base".to_owned());
            let plan = fake::run(&request, &images).0.unwrap();
            images.add_built(base, &plan.images[0]);
        }
        images
    }

    fn check(&self) -> Result<Verdict, String> {
        let images = self.images();
        let args = self.args();
        let (result, shown) = fake::run(&self.request(&args), &images);
        if args.iter().any(|arg| arg == "--call") {
            return self.check_call(&result);
        }
        match (self.expected["ok"].as_bool().unwrap(), result) {
            (true, Ok(plan)) => {
                self.check_plan(&plan, &shown)?;
                self.check_rebuilds(&images)
            }
            (false, Err(fault)) => self.check_fault(&fault),
            (true, Err(fault)) => Err(format!("unexpected error: {fault} at {:?}", fault.locations)),
            (false, Ok(_)) => {
                let error = self.expected["error"].as_str().unwrap();
                let is_of_steps = OF_STEPS.iter().any(|start| error.starts_with(start));
                if is_of_steps { Ok(Verdict::OfSteps) } else { Err(format!("no error, wanted: {error}")) }
            }
        }
    }

    fn check_fault(&self, fault: &PlanError) -> Result<Verdict, String> {
        let wanted = self.expected["error"].as_str().unwrap();
        let got = fault.message.trim();
        // What a front end is and what a context transfer wraps around an error is not ours to word.
        let is_worded_otherwise =
            wanted.contains("no-such-frontend") || wanted == format!("rpc error: code = Unknown desc = {got}");
        if got != wanted && !is_worded_otherwise {
            return Err(format!("error {got:?}, wanted {wanted:?}"));
        }
        let lines: Vec<[u32; 2]> = fault.locations.iter().map(|at| [at.start_line, at.end_line]).collect();
        let lines = json!(lines);
        if self.expected["lines"] != json!([]) && lines != self.expected["lines"] {
            return Err(format!("error at {lines}, wanted {}", self.expected["lines"]));
        }
        Ok(Verdict::Agreed)
    }

    fn check_plan(&self, plan: &Plan, shown: &[String]) -> Result<(), String> {
        match self.expected.get("platforms").and_then(Value::as_object) {
            Some(platforms) => {
                let got: BTreeMap<String, &PlannedImage> =
                    plan.images.iter().map(|image| (image.platform.to_string(), image)).collect();
                if !got.keys().eq(platforms.keys()) {
                    return Err(format!("platforms {:?}", got.keys()));
                }
                for (platform, wanted) in platforms {
                    check_image(got[platform], wanted).map_err(|error| format!("{platform}: {error}"))?;
                }
            }
            None => check_image(&plan.images[0], &self.expected)?,
        }
        if let Some(wanted) = self.expected.get("warnings") {
            differ("warnings", &warnings(plan), &recorded_warnings(wanted))?;
        }
        if let Some(wanted) = self.expected.get("steps") {
            let mut names = step_names(plan);
            // Reading the Dockerfile and the ignore files is not the plan's business.
            let is_planned =
                |name: &String| !name.contains("load .dockerignore") && !name.contains("load build definition");
            names.extend(shown.iter().cloned());
            differ("steps", &names, &texts(wanted).into_iter().filter(is_planned).collect())?;
        }
        Ok(())
    }

    /// The names of all steps of a rebuild, whether they were cached or not.
    fn check_rebuilds(&self, images: &Images) -> Result<Verdict, String> {
        let rebuilds = self.spec.get("rebuild").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        for (index, rebuild) in rebuilds.iter().enumerate() {
            if rebuild.get("change").and_then(toml::Value::as_str).is_some_and(|script| script.contains("Dockerfile")) {
                break;
            }
            let own = rebuild.get("args").and_then(toml::Value::as_array);
            let args = own
                .map_or_else(|| self.args(), |list| list.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect());
            let plan = fake::run(&self.request(&args), images).0.map_err(|fault| fault.to_string())?;
            let wanted = &self.expected["rebuilds"][index];
            let mut recorded = texts(&wanted["cached"]);
            recorded.extend(texts(&wanted["ran"]));
            let is_instruction =
                |name: &String| name.starts_with('[') && !name.contains("internal]") && !name.starts_with("[context");
            let names: BTreeSet<String> = step_names(&plan).into_iter().filter(is_instruction).collect();
            let recorded = recorded.into_iter().filter(is_instruction).collect();
            differ(&format!("steps of rebuild {index}"), &names, &recorded)?;
        }
        Ok(Verdict::Agreed)
    }

    fn check_call(&self, result: &Result<Plan, PlanError>) -> Result<Verdict, String> {
        let (warnings, fault) = match result {
            Ok(plan) => (plan.warnings.as_slice(), None),
            Err(fault) => (&*fault.warnings, Some(fault)),
        };
        let got: BTreeSet<String> = warnings
            .iter()
            .map(|warning| {
                let lines = warning.location.as_ref().map(|at| at.start_line);
                format!("{} {} {} {lines:?} {}", warning.rule, warning.url, warning.message, warning.description)
            })
            .collect();
        let recorded = self.expected["json"]["warnings"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let wanted: BTreeSet<String> = recorded
            .iter()
            .map(|warning| {
                let line = warning["location"]["ranges"][0]["start"]["line"]
                    .as_u64()
                    .and_then(|line| u32::try_from(line).ok());
                let [rule, url, detail, description] =
                    ["ruleName", "url", "detail", "description"].map(|key| text(&warning[key]));
                format!("{rule} {url} {detail} {line:?} {description}")
            })
            .collect();
        differ("warnings", &got, &wanted)?;
        let wanted = self.expected["json"]["buildError"]["message"].as_str().or(self.expected["error"].as_str());
        match (fault, wanted) {
            (None, None) => Ok(Verdict::Agreed),
            (Some(fault), Some(wanted)) if fault.message == wanted => Ok(Verdict::Agreed),
            (fault, wanted) => Err(format!("error {fault:?}, wanted {wanted:?}")),
        }
    }
}

fn check_image(image: &PlannedImage, expected: &Value) -> Result<(), String> {
    // Exports without an image record files only.
    let Some(wanted) = expected.get("config") else { return Ok(()) };
    let mut got = serde_json::to_value(&image.config.config).unwrap();
    let fields = got.as_object_mut().unwrap();
    for (key, value) in [
        ("os", Some(image.config.os.clone())),
        ("architecture", Some(image.config.architecture.clone())),
        ("variant", image.config.variant.clone()),
        ("author", image.config.author.clone()),
    ] {
        fields.extend(value.map(|value| (key.to_owned(), json!(value))));
    }
    let mut wanted = wanted.clone();
    // Times come with the layers.
    wanted.as_object_mut().unwrap().remove("created");
    if got != wanted {
        return Err(format!("config {got}\n wanted {wanted}"));
    }
    let own = image.history.iter().filter(|planned| !planned.from_base).map(|planned| {
        let entry = &planned.entry;
        format!("{} | {} | {}", entry.created_by, entry.comment, entry.empty_layer)
    });
    let own: Vec<String> = own.collect();
    let recorded = expected["history"].as_array().unwrap().iter().map(|entry| {
        let is_empty = entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        format!("{} | {} | {is_empty}", entry["created_by"].as_str().unwrap(), entry["comment"].as_str().unwrap())
    });
    let recorded: Vec<String> = recorded.collect();
    if own != recorded {
        return Err(format!("history {own:#?}\n wanted {recorded:#?}"));
    }
    Ok(())
}

fn warnings(plan: &Plan) -> BTreeSet<String> {
    let shown = plan.warnings.iter().map(|warning| {
        let lines = warning.location.as_ref().map_or(Vec::new(), |at| (at.start_line..=at.end_line).collect());
        format!("{} {lines:?} {}", warning.rule, warning.message)
    });
    shown.collect()
}

fn recorded_warnings(list: &Value) -> BTreeSet<String> {
    let shown = list.as_array().unwrap().iter().map(|warning| {
        let ranges = warning["lines"].as_array().unwrap();
        let lines: Vec<u64> = ranges.iter().map(|range| range[0].as_u64().unwrap()).collect();
        format!("{} {lines:?} {}", warning["rule"].as_str().unwrap(), warning["message"].as_str().unwrap())
    });
    shown.collect()
}

/// Names of all vertices but images.
fn step_names(plan: &Plan) -> BTreeSet<String> {
    let vertices = plan.graph.ids().map(|id| plan.graph.vertex(id));
    let steps = vertices.filter(|vertex| !matches!(*vertex.op, Op::Image(_)));
    steps.map(|vertex| vertex.meta.name.clone()).collect()
}

fn texts(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn differ(what: &str, got: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Result<(), String> {
    let extra: Vec<&String> = got.difference(wanted).collect();
    let missing: Vec<&String> = wanted.difference(got).collect();
    if extra.is_empty() && missing.is_empty() {
        return Ok(());
    }
    Err(format!("{what}: unexpected {extra:#?}, missing {missing:#?}"))
}
