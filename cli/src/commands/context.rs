//! `rbuild context ls`: what of a context a build can see, and which rule of an ignore file decided.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use executor::context::listing::{Hidden, Listed, Why, hidden, list, why};
use executor::context::{IgnoreRules, LocalContext, RuleAt};
use executor::view::NodeKind;
use serde_json::{Value, json};
use solver::OpError;
use solver::plan::patterns::Patterns;

use super::build::ignore_file;
use crate::args::ContextLsArgs;
use crate::failure::Failure;
use crate::ui;
use crate::ui::format::size;

/// So many directories are named.
const BIGGEST: usize = 10;

/// A context that is looked at.
struct Opened {
    /// `None` is the main context.
    name: Option<String>,
    root: PathBuf,
    context: LocalContext,
}

/// What a context amounts to.
struct Totals {
    n_files: usize,
    bytes: u64,
    /// With everything in them, biggest first.
    biggest: Vec<(PathBuf, usize, u64)>,
}

/// Shows contexts.
pub(crate) fn ls(args: &ContextLsArgs) -> Result<(), Failure> {
    let mut contexts = vec![open_main(args)?];
    for text in &args.build_contexts {
        contexts.push(open_named(text)?);
    }
    if !args.why.is_empty() {
        return reasons(&contexts[0], args);
    }
    let (mut text, mut documents) = (String::new(), Vec::new());
    for opened in &contexts {
        let listed = list(&opened.context).map_err(OpError::from)?;
        let totals = totals(&listed);
        let hidden = match args.ignored {
            true => hidden(&opened.context).map_err(OpError::from)?,
            false => Vec::new(),
        };
        match args.format.as_str() {
            "json" => documents.push(as_json(opened, &listed, &hidden, &totals, args)),
            _ => text.push_str(&as_text(opened, &listed, &hidden, &totals, args)),
        }
    }
    if args.format == "json" {
        // One document, as for a single context, unless several were asked for.
        let document = if documents.len() == 1 { documents.swap_remove(0) } else { Value::Array(documents) };
        text = format!("{document:#}\n");
    }
    Ok(ui::stdout(&text)?)
}

fn open_main(args: &ContextLsArgs) -> Result<Opened, Failure> {
    let root = directory(&args.context)?;
    let dockerfile = args.file.as_ref().map_or_else(|| root.join("Dockerfile"), PathBuf::from);
    let ignore = ignore_file(Some(&dockerfile), &root)?;
    open(None, root, ignore)
}

fn open_named(text: &str) -> Result<Opened, Failure> {
    let (name, value) = text.split_once('=').unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::usage(format!("--build-context: `{text}` is not NAME=DIR")));
    }
    let root = directory(value)?;
    let ignore = ignore_file(None, &root)?;
    open(Some(name.to_owned()), root, ignore)
}

fn directory(path: &str) -> Result<PathBuf, Failure> {
    if !Path::new(path).is_dir() {
        return Err(Failure::input(format!("path \"{path}\" is no directory"))
            .help("only directories of this machine can be listed, not URLs or images"));
    }
    Path::new(path).canonicalize().map_err(|error| Failure::environment(format!("cannot resolve \"{path}\": {error}")))
}

fn open(name: Option<String>, root: PathBuf, ignore: Option<(String, Vec<u8>)>) -> Result<Opened, Failure> {
    let rules = match ignore {
        None => IgnoreRules::default(),
        Some((file, text)) => {
            let patterns = Patterns::parse_ignore_file(&text)
                .map_err(|error| Failure::input(format!("failed to read {file}: {error}")))?;
            IgnoreRules { patterns, file }
        }
    };
    let shown = name.as_deref().unwrap_or("context");
    let context = LocalContext::open(shown, &root, rules, None).map_err(OpError::from)?;
    Ok(Opened { name, root, context })
}

/// `--why`.
fn reasons(opened: &Opened, args: &ContextLsArgs) -> Result<(), Failure> {
    let mut text = String::new();
    let mut documents = Vec::new();
    for path in &args.why {
        let relative = relative(path, &opened.root)?;
        let why = why(&opened.context, &relative).map_err(OpError::from)?;
        documents.push(json!({
            "path": relative, "exists": why.exists, "sent": why.is_sent, "comes_along": why.comes_along,
            "rule": why.rule.as_ref().map(rule_json),
        }));
        writeln!(text, "{}: {}", relative.display(), in_words(&why)).expect("a String takes all text");
    }
    if args.format == "json" {
        text = format!("{:#}\n", Value::Array(documents));
    }
    Ok(ui::stdout(&text)?)
}

/// A path as the rules see it. Absolute ones may be given when they lead into the context.
fn relative(path: &str, root: &Path) -> Result<PathBuf, Failure> {
    let path = Path::new(path);
    let inside = path.strip_prefix(root).unwrap_or(path);
    let names: Vec<_> =
        inside.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir)).collect();
    if names.is_empty() || names.contains(&Component::ParentDir) {
        return Err(Failure::usage(format!("--why: `{}` is no path in the context", path.display())));
    }
    Ok(names.into_iter().collect())
}

fn in_words(why: &Why) -> String {
    let there = if why.exists { "" } else { ", if it were there" };
    match (&why.rule, why.is_sent) {
        (Some(rule), true) if why.comes_along => {
            format!("sent for what is in it; {} hides the rest", named(rule))
        }
        (Some(rule), _) if rule.hides => format!("not sent{there}: {} hides it", named(rule)),
        (Some(rule), _) => format!("sent{there}: {} shows it again", named(rule)),
        (None, _) => format!("sent{there}: no rule matches"),
    }
}

fn named(rule: &RuleAt) -> String {
    format!("`{}` in {}:{}", rule.pattern, rule.file, rule.line_1based)
}

fn totals(listed: &[Listed]) -> Totals {
    let mut directories: BTreeMap<&Path, (usize, u64)> = BTreeMap::new();
    let (mut n_files, mut bytes) = (0, 0);
    for it in listed.iter().filter(|it| it.kind != NodeKind::Dir) {
        n_files += 1;
        bytes += it.size_bytes;
        for dir in it.path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            let sums = directories.entry(dir).or_default();
            *sums = (sums.0 + 1, sums.1 + it.size_bytes);
        }
    }
    let mut biggest: Vec<_> = directories.into_iter().map(|(dir, (n, bytes))| (dir.to_owned(), n, bytes)).collect();
    biggest.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| b.1.cmp(&a.1)).then_with(|| a.0.cmp(&b.0)));
    biggest.truncate(BIGGEST);
    Totals { n_files, bytes, biggest }
}

fn as_text(opened: &Opened, listed: &[Listed], hidden: &[Hidden], totals: &Totals, args: &ContextLsArgs) -> String {
    let mut text = String::new();
    let mut line = |content: String| writeln!(text, "{content}").expect("a String takes all text");
    if args.ignored {
        for it in hidden {
            let slash = if it.is_dir { "/" } else { "" };
            let rule = it.rule.as_ref().map_or_else(|| "it is new".to_owned(), named);
            line(format!("{}{slash}  ({rule})", it.path.display()));
        }
    } else if !args.summary {
        for it in listed {
            line(match (&it.target, it.kind) {
                (_, NodeKind::Dir) => format!("{:>10}  {}/", "", it.path.display()),
                (Some(target), _) => format!("{:>10}  {} -> {}", "", it.path.display(), target.display()),
                _ => format!("{:>10}  {}", size(it.size_bytes), it.path.display()),
            });
        }
    }
    if !totals.biggest.is_empty() && !args.ignored {
        line(String::new());
        line("Biggest directories:".to_owned());
        for (dir, n_files, bytes) in &totals.biggest {
            line(format!("{:>10}  {}/  ({n_files} files)", size(*bytes), dir.display()));
        }
    }
    let name = opened.name.as_ref().map_or_else(|| "Context".to_owned(), |name| format!("Context {name}"));
    let file = &opened.context.rules().file;
    let rules = if file.is_empty() { "no ignore file".to_owned() } else { format!("less what {file} hides") };
    line(String::new());
    let (n_files, bytes) = (totals.n_files, size(totals.bytes));
    line(format!("{name} {}: {n_files} files, {bytes} ({rules})", opened.root.display()));
    text
}

fn as_json(opened: &Opened, listed: &[Listed], hidden: &[Hidden], totals: &Totals, args: &ContextLsArgs) -> Value {
    let entry = |it: &Listed| {
        json!({"path": it.path, "kind": kind(it.kind), "mode": format!("{:04o}", it.mode), "size": it.size_bytes,
            "target": it.target})
    };
    let directory =
        |(path, n_files, bytes): &(PathBuf, usize, u64)| json!({"path": path, "files": n_files, "size": bytes});
    let mut document = json!({
        "context": opened.name.as_deref().unwrap_or("context"),
        "root": opened.root,
        "ignore_file": Some(&opened.context.rules().file).filter(|file| !file.is_empty()),
        "files": totals.n_files,
        "size": totals.bytes,
        "biggest_directories": totals.biggest.iter().map(directory).collect::<Vec<_>>(),
    });
    if args.ignored {
        let entry = |it: &Hidden| json!({"path": it.path, "dir": it.is_dir, "rule": it.rule.as_ref().map(rule_json)});
        document["ignored"] = hidden.iter().map(entry).collect();
    } else if !args.summary {
        document["entries"] = listed.iter().map(entry).collect();
    }
    document
}

fn rule_json(rule: &RuleAt) -> Value {
    json!({"pattern": rule.pattern, "file": rule.file, "line": rule.line_1based, "hides": rule.hides})
}

fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Dir => "directory",
        NodeKind::Symlink => "link",
        NodeKind::CharDevice | NodeKind::BlockDevice => "device",
        NodeKind::Fifo => "pipe",
        NodeKind::Socket => "socket",
    }
}
