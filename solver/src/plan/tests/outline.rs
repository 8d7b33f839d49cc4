//! Outlines and lists of targets.

use std::sync::mpsc::sync_channel;

use super::fake::{Images, request};
use crate::plan::{Outline, PlanError, Purpose, outline, targets};
use crate::progress::Progress;

fn outlined(dockerfile: &str, target: Option<&str>, build_args: &[(&str, &str)]) -> Result<Outline, PlanError> {
    let mut request = request(dockerfile);
    request.purpose = Purpose::Outline;
    request.target = target.map(str::to_owned);
    request.build_args = build_args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let progress = Progress::new(sync_channel(1024).0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(outline(&request, &Images::new(), &progress))
}

/// `name=value@line`, without a value `name@line`.
fn args(outline: &Outline) -> Vec<String> {
    let shown = outline.args.iter().map(|arg| {
        let value = arg.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
        format!("{}{value}@{}", arg.name, arg.location.start_line)
    });
    shown.collect()
}

/// A Dockerfile, build arguments, and what is listed.
type Row = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

#[test]
fn arguments_that_matter_are_listed_where_they_get_their_value() {
    let table: &[Row] = &[
        // What FROM is made of, and what that is made of; automatic arguments are nobody's to give.
        ("ARG A=1\nFROM --platform=$BUILDPLATFORM busybox\n", &[], &[]),
        ("ARG T=latest\nARG R=busybox:$T\nARG C=x\nFROM $R\n", &[], &["T=latest@1", "R=busybox:latest@2"]),
        ("ARG T=latest\nARG R=busybox:$T\nFROM $R\n", &[("R", "busybox")], &["R=busybox@2"]),
        ("ARG P=linux/amd64\nFROM --platform=$P busybox\n", &[], &["P=linux/amd64@1"]),
        // A stage repeats a global argument, gives it another value, or declares its own.
        ("ARG A=1\nFROM busybox\nARG A\nARG B\nARG TARGETARCH\n", &[], &["A=1@1", "B@4"]),
        ("ARG A=1\nFROM busybox\nARG A=2\n", &[], &["A=2@3"]),
        ("ARG A=1\nFROM busybox\nARG A\n", &[("A", "3")], &["A=3@3"]),
        ("FROM busybox\nARG A=1\nARG A=2\n", &[], &["A=2@3"]),
        // The stage, its base, then what files are taken from.
        ("FROM busybox AS b\nARG A=b\nARG B=b\nFROM b\nARG A=t\n", &[], &["B=b@3", "A=t@5"]),
        ("FROM busybox AS b\nARG A=b\nFROM busybox\nCOPY --from=b / /\n", &[], &["A=b@2"]),
        ("FROM busybox AS b\nARG A=b\nFROM busybox AS c\nCOPY --from=b / /\nFROM busybox\n", &[], &[]),
    ];
    for (dockerfile, build_args, want) in table {
        let outline = outlined(dockerfile, None, build_args).unwrap_or_else(|fault| panic!("{dockerfile}: {fault}"));
        assert_eq!(args(&outline), *want, "{dockerfile}");
    }
}

#[test]
fn mounts_say_what_a_target_asks_for() {
    let dockerfile = "FROM busybox AS base\nRUN --mount=type=secret,id=a,required --mount=type=cache,target=/c/ true\n\
                      # app runs\nFROM base AS app\nRUN --mount=type=secret,id=a --mount=type=ssh,required \\\n  true\n\
                      RUN --mount=type=secret,target=/run/b --mount=type=cache,id=x,target=/y true\n";
    let outline = outlined(dockerfile, Some("APP"), &[]).unwrap();
    assert_eq!((outline.name.as_deref(), outline.description.as_deref()), (Some("app"), Some("runs")));
    let asked = |list: &[crate::plan::Asked]| -> Vec<String> {
        list.iter().map(|one| format!("{} {} {:?}", one.id, one.required, one.location.start_line)).collect()
    };
    assert_eq!(asked(&outline.secrets), ["a false 5", "b false 7"]);
    assert_eq!(asked(&outline.agents), ["default true 5"]);
    assert_eq!(outline.agents[0].location.end_line, 6);
    let caches: Vec<(&str, u32)> = outline.caches.iter().map(|c| (c.id.as_str(), c.location.start_line)).collect();
    assert_eq!(caches, [("/c", 2), ("x", 7)]);
}

#[test]
fn nothing_has_to_be_allowed_for_an_outline() {
    let outline = outlined("FROM busybox\nRUN --network=host --security=insecure true\n", None, &[]);
    assert_eq!(outline.unwrap(), Outline::default());
    let fault = outlined("FROM busybox\nRUN --mount=type=cahce true\n", None, &[]).unwrap_err();
    assert_eq!(fault.locations.len(), 1, "{fault}");
}

#[test]
fn targets_are_listed_without_being_evaluated() {
    let list = targets(&request("ARG X\nFROM nowhere.invalid/$X AS One\n# two is it\nFROM --platform=$Y one AS two\n"))
        .unwrap();
    let shown: Vec<_> = list.iter().map(|t| (t.name.as_deref(), t.base.as_str(), t.is_default)).collect();
    assert_eq!(shown, [(Some("one"), "nowhere.invalid/$X", false), (Some("two"), "one", true)]);
    assert_eq!((list[1].description.as_deref(), list[1].platform.as_deref()), (Some("is it"), Some("$Y")));
    assert!(targets(&request("# syntax=other/frontend\nFROM x\n")).is_err());
}
