//! A plan as text, for goldens and for people who want to see what a Dockerfile became.

use std::fmt::Write;

use super::Plan;
use super::target::PlannedImage;
use crate::graph::{Graph, Input, VertexId};
use crate::op::{
    CopyAction, FileAction, MakeDirAction, ModeChange, Mount, MountKind, Op, Owner, Principal, RunOp, Unpack,
    WriteFileAction,
};

/// Renders a plan: one block a vertex, inputs before users, then the images and the warnings.
///
/// Stable for equal plans; the text is not meant to be read back.
pub fn render(plan: &Plan) -> String {
    let mut out = String::new();
    for id in plan.graph.ids() {
        render_vertex(&mut out, &plan.graph, id);
    }
    for image in &plan.images {
        render_image(&mut out, image);
    }
    for warning in &plan.warnings {
        let lines = warning.location.as_ref().map(|at| format!(" line {}-{}", at.start_line, at.end_line));
        line(&mut out, 0, format_args!("warning {}{}: {}", warning.rule, lines.unwrap_or_default(), warning.message));
    }
    out
}

/// Writing to a string cannot fail.
fn line(out: &mut String, depth: usize, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "{:width$}{text}", "", width = depth * 2);
}

fn render_vertex(out: &mut String, graph: &Graph, id: VertexId) {
    let vertex = graph.vertex(id);
    let inputs: Vec<String> = vertex.inputs.iter().map(|input| shown_input(*input)).collect();
    let ignored = if vertex.meta.ignore_cache { " no-cache" } else { "" };
    let on = if inputs.is_empty() { String::new() } else { format!(" on {}", inputs.join(" ")) };
    line(out, 0, format_args!("v{} {}{on}{ignored}", id.index(), kind(&vertex.op)));
    let lines = vertex.meta.location.as_ref().map(|at| format!(" line {}-{}", at.start_line, at.end_line));
    line(out, 1, format_args!("name {:?}{}", vertex.meta.name, lines.unwrap_or_default()));
    match &*vertex.op {
        Op::Image(image) => line(out, 1, format_args!("{} for {}", image.reference, image.platform)),
        Op::Local(local) => line(out, 1, format_args!("context {:?}", local.name)),
        Op::Http(http) => {
            let checksum = http.checksum.as_ref().map(|digest| format!(" {digest}")).unwrap_or_default();
            line(out, 1, format_args!("{} as {:?}{checksum}", http.url, http.filename));
        }
        Op::Git(git) => line(out, 1, format_args!("{git:?}")),
        Op::Run(run) => render_run(out, run),
        Op::File(file) => file.actions.iter().for_each(|action| render_action(out, action)),
        Op::Merge => {}
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Image(_) => "image",
        Op::Local(_) => "local",
        Op::Http(_) => "http",
        Op::Git(_) => "git",
        Op::Run(_) => "run",
        Op::File(_) => "file",
        Op::Merge => "merge",
    }
}

fn shown_input(input: Input) -> String {
    match input {
        Input::Scratch => "scratch".to_owned(),
        Input::Vertex(id) => format!("v{}", id.index()),
    }
}

fn render_run(out: &mut String, run: &RunOp) {
    line(out, 1, format_args!("args {:?}", run.args));
    for (label, pairs) in [("env", &run.env), ("proxy", &run.proxy_env)] {
        for (key, value) in pairs {
            line(out, 1, format_args!("{label} {key}={value:?}"));
        }
    }
    let user = if run.user.is_empty() { "root" } else { &run.user };
    line(out, 1, format_args!("in {} as {user} for {}", run.cwd, run.platform));
    line(out, 1, format_args!("network {:?} security {:?} hostname {}", run.network, run.security, run.hostname));
    for host in &run.extra_hosts {
        line(out, 1, format_args!("host {} {}", host.name, host.address));
    }
    for limit in &run.ulimits {
        line(out, 1, format_args!("ulimit {} {}:{}", limit.name, limit.soft, limit.hard));
    }
    for (label, value) in
        [("shm", run.shm_size_bytes.map(|size| size.to_string())), ("cgroup", run.cgroup_parent.clone())]
    {
        if let Some(value) = value {
            line(out, 1, format_args!("{label} {value}"));
        }
    }
    for script in &run.scripts {
        line(out, 1, format_args!("script {} {:?}", script.name, String::from_utf8_lossy(&script.content)));
    }
    for device in &run.devices {
        line(out, 1, format_args!("device {} required={}", device.name, device.required));
    }
    run.mounts.iter().for_each(|mount| render_mount(out, mount));
}

fn render_mount(out: &mut String, mount: &Mount) {
    let from = |input: &Option<usize>| input.map_or_else(|| "nothing".to_owned(), |index| format!("input {index}"));
    let access = |read_only: bool| if read_only { "ro" } else { "rw" };
    let text = match &mount.kind {
        MountKind::Bind { input, source, read_only } => format!("bind {} {source} {}", from(input), access(*read_only)),
        MountKind::Cache { id, sharing, input, source, uid, gid, mode, read_only } => {
            let from = from(input);
            let access = access(*read_only);
            format!("cache {id:?} {sharing:?} {from} {source} {uid}:{gid} {mode:04o} {access}")
        }
        MountKind::Tmpfs { size_bytes } => format!("tmpfs {size_bytes:?}"),
        MountKind::Secret { id, env, required, uid, gid, mode } => {
            format!("secret {id:?} env={env:?} required={required} {uid}:{gid} {mode:04o}")
        }
        MountKind::Ssh { id, required, uid, gid, mode } => {
            format!("ssh {id:?} required={required} {uid}:{gid} {mode:04o}")
        }
    };
    line(out, 1, format_args!("mount {:?} {text}", mount.target));
}

fn render_action(out: &mut String, action: &FileAction) {
    match action {
        FileAction::Copy(copy) => render_copy(out, copy),
        FileAction::MakeDir(MakeDirAction { path, mode, owner, mtime }) => {
            let times = mtime.map(|time| format!(" at {time}")).unwrap_or_default();
            line(out, 1, format_args!("mkdir {path} {mode:04o}{}{times}", shown_owner(owner)));
        }
        FileAction::WriteFile(WriteFileAction { dest, name, content, owner, mode, mtime }) => {
            let times = mtime.map(|time| format!(" at {time}")).unwrap_or_default();
            let text = String::from_utf8_lossy(content);
            let how = format!("{}{}{times}", shown_owner(owner), shown_mode(mode));
            line(out, 1, format_args!("write {dest} name {name}{how} {text:?}"));
        }
    }
}

fn render_copy(out: &mut String, copy: &CopyAction) {
    let from = copy.input.map_or_else(|| "nothing".to_owned(), |index| format!("input {index}"));
    let mut text = format!("copy {from} {}", copy.selection.source);
    let flags = [
        (copy.selection.wildcard, "wildcard"),
        (copy.unpack == Unpack::IfArchive, "unpack"),
        (copy.keep_source_metadata, "keep-metadata"),
    ];
    for (_, flag) in flags.into_iter().filter(|(is_set, _)| *is_set) {
        let _ = write!(text, " {flag}");
    }
    if let Some(base) = &copy.selection.parents_base {
        let _ = write!(text, " parents-of {base}");
    }
    for exclude in &copy.selection.excludes {
        let _ = write!(text, " exclude {exclude}");
    }
    line(out, 1, format_args!("{text} to {}{}{}", copy.dest, shown_owner(&copy.owner), shown_mode(&copy.mode)));
}

fn shown_owner(owner: &Option<Owner>) -> String {
    let shown = |principal: &Principal| match principal {
        Principal::Id(id) => id.to_string(),
        Principal::Name(name) => name.clone(),
    };
    match owner {
        Some(Owner { user, group: Some(group) }) => format!(" owner {}:{}", shown(user), shown(group)),
        Some(Owner { user, group: None }) => format!(" owner {}", shown(user)),
        None => String::new(),
    }
}

fn shown_mode(mode: &Option<ModeChange>) -> String {
    match mode {
        Some(ModeChange::Octal(mode)) => format!(" mode {mode:04o}"),
        Some(ModeChange::Symbolic(text)) => format!(" mode {text}"),
        None => String::new(),
    }
}

fn render_image(out: &mut String, image: &PlannedImage) {
    line(out, 0, format_args!("image {} root {}", image.platform, shown_input(image.root)));
    if let Some(base) = &image.base {
        line(out, 1, format_args!("base {} layers {}", base.reference, base.diff_ids.len()));
    }
    line(out, 1, format_args!("config {}", String::from_utf8_lossy(&image.config.to_json())));
    for planned in &image.history {
        let layer = planned.vertex.map_or_else(|| "-".to_owned(), |id| format!("v{}", id.index()));
        let origin = if planned.from_base { " (base)" } else { "" };
        line(out, 1, format_args!("history {layer}{origin} {:?}", planned.entry.created_by));
    }
    if let Some(epoch) = image.epoch {
        line(out, 1, format_args!("epoch {epoch}"));
    }
}
