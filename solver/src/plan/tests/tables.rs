//! What is easier to say in a table than in a folder.

use super::fake::{self, Images, amd64, request};
use crate::graph::Input;
use crate::op::{FileAction, Op, SecurityMode};
use crate::plan::{ContextKind, NamedContext, Plan, PlanError, PlanRequest, Purpose};
use oci::Platform;

#[track_caller]
fn planned(dockerfile: &str) -> Plan {
    planned_as(&request(dockerfile))
}

#[track_caller]
fn planned_as(request: &PlanRequest) -> Plan {
    fake::run(request, &Images::new()).0.unwrap_or_else(|fault| panic!("{fault} at {:?}", fault.locations))
}

#[track_caller]
fn fault_of(request: &PlanRequest) -> PlanError {
    match fake::run(request, &Images::new()).0 {
        Ok(_) => panic!("no fault in {}", String::from_utf8_lossy(&request.dockerfile.text)),
        Err(fault) => fault,
    }
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.graph.ids().map(|id| plan.graph.vertex(id).meta.name.as_str()).collect()
}

#[test]
fn faults_have_their_words_and_lines() {
    let table = [
        ("FROM scratch\nCOPY --from=-1 a /\n", "invalid stage index -1", [2, 2]),
        (
            "FROM scratch\nCOPY --from=Bad:Ref:x a /\n",
            "failed to parse stage name \"Bad:Ref:x\": invalid reference format: repository name (library/Bad) must be lowercase",
            [2, 2],
        ),
        (
            "FROM a AS x\nCOPY --from=y / /\nFROM x AS y\n",
            "cannot copy from stage \"y\", it needs to be defined before current stage \"x\"",
            [2, 2],
        ),
        (
            "FROM alpin\n",
            "alpin: failed to resolve source metadata for docker.io/library/alpin:latest: docker.io/library/alpin:latest: not found (did you mean alpine?)",
            [1, 1],
        ),
        (
            "FROM scratch\nADD ?ref=1 /x\nADD --checksum=sha256:0 a /\n",
            "checksum requires HTTP(S) or Git sources",
            [3, 3],
        ),
        (
            "FROM scratch\nADD --keep-git-dir=false https://h/r.git?keep-git-dir=1 /x\n",
            "inconsistent keep-git-dir configuration",
            [2, 2],
        ),
        ("FROM scratch\nADD --checksum=a https://h/r.git?checksum=b /x\n", "checksum mismatch \"a\" != \"b\"", [2, 2]),
        ("FROM scratch\nCOPY --exclude=[ a /\n", "invalid excludepatterns: [[]: syntax error in pattern", [2, 2]),
        ("FROM scratch\nUSER ghost\nWORKDIR /x\n", "invalid user index: -1", [3, 3]),
        (
            "FROM --platform=${X?need} scratch\n",
            "failed to process arguments for platform ${X?need}: failed to process \"${X?need}\": X: need",
            [1, 1],
        ),
        (
            "FROM scratch\nEXPOSE 0-65535 0-65535/udp 0-65535/sctp\nEXPOSE 80\n",
            "the stage exposes more ports than there are",
            [3, 3],
        ),
        (
            "FROM scratch\nRUN --security=insecure true\n",
            "failed to load LLB: security.insecure is not allowed",
            [2, 2],
        ),
    ];
    for (dockerfile, message, [start, end]) in table {
        let dockerfile = dockerfile.replace("FROM a AS", "FROM busybox AS");
        let fault = fault_of(&request(&dockerfile));
        assert_eq!(fault.message, message);
        let lines: Vec<_> = fault.locations.iter().map(|at| (at.start_line, at.end_line)).collect();
        assert_eq!(lines, [(start, end)], "{dockerfile}");
    }
}

#[test]
fn faults_of_several_lines_are_told_together() {
    let fault = fault_of(&request("FROM $A AS a\nFROM $B AS b\nFROM --platform=x/y/z/w scratch\n"));
    assert_eq!(fault.message, "base name ($A) should not be blank");
    let others: Vec<&str> = fault.others.iter().map(|other| other.message.as_str()).collect();
    assert_eq!(others.len(), 2, "{others:?}");
    assert_eq!(others[0], "base name ($B) should not be blank");
    assert_eq!(fault.others[1].locations[0].start_line, 3);
    // What is found behind the first fault may be its consequence, so nothing is said about it.
    let undeclared = fault.warnings.iter().filter(|warning| warning.rule == "UndefinedArgInFrom");
    assert_eq!(undeclared.count(), 1);
}

#[test]
fn images_are_asked_for_once_and_only_when_needed() {
    let dockerfile = "FROM busybox AS a\nFROM busybox AS b\nCOPY --from=busybox / /x\nCOPY --from=a / /y\n\
                      FROM no.such/image AS unused\nFROM b\n";
    let images = Images::new();
    let (plan, shown) = fake::run(&request(dockerfile), &images);
    plan.unwrap();
    assert_eq!(*images.asked.lock().unwrap(), ["docker.io/library/busybox:latest linux/amd64"]);
    assert_eq!(shown, ["[internal] load metadata for docker.io/library/busybox:latest"]);
}

#[test]
fn platforms_share_what_is_equal() {
    let mut request = request("FROM busybox\nRUN true\nCOPY a /\n");
    request.platforms = vec![amd64(), Platform::new("linux", "arm64", None), amd64()];
    let plan = planned_as(&request);
    let platforms: Vec<String> = plan.images.iter().map(|image| image.platform.to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert!(plan.is_multi_platform);
    let n_locals = plan.graph.ids().filter(|&id| matches!(*plan.graph.vertex(id).op, Op::Local(_))).count();
    assert_eq!(n_locals, 1, "the context is the same for all");
    let rules: Vec<(&str, &str)> = plan.warnings.iter().map(|found| (found.rule, found.message.as_str())).collect();
    assert_eq!(rules[0], ("", "Duplicate platform result requested \"linux/amd64\""));
    assert_eq!(rules[1].0, "InvalidBaseImagePlatform", "the image is for amd64 alone");
    assert_eq!(rules.len(), 2, "{rules:?}");
}

#[test]
fn slots_survive_edits_elsewhere() {
    let slots = |dockerfile: &str| -> Vec<String> {
        let plan = planned(dockerfile);
        let runs = plan.graph.ids().map(|id| plan.graph.vertex(id)).filter(|it| matches!(*it.op, Op::Run(_)));
        runs.map(|vertex| vertex.meta.slot.clone()).collect()
    };
    let before = slots("FROM busybox AS s\nRUN echo 1\nRUN echo 2\n");
    assert_eq!(before, ["Dockerfile:s:1", "Dockerfile:s:2"]);
    assert_eq!(slots("# a comment\n\nFROM busybox AS s\nRUN echo x\nRUN echo y\n"), before);
}

#[test]
fn front_ends_are_ours_or_refused() {
    for syntax in ["docker/dockerfile:1", "docker/dockerfile:1.7-labs@sha256:00", "docker/dockerfile-upstream:master"] {
        planned(&format!("# syntax={syntax}\nFROM scratch\n"));
    }
    let fault = fault_of(&request("# syntax=example.com/other\nFROM scratch\n"));
    assert_eq!(fault.message, "the front end example.com/other is not supported");
    assert_eq!(fault.locations[0].start_line, 1);
    let mut asked = request("FROM scratch\n");
    asked.build_args.insert("BUILDKIT_SYNTAX".to_owned(), "other --opt".to_owned());
    let message = "failed with build-arg:BUILDKIT_SYNTAX = other --opt: the front end other is not supported";
    assert_eq!(fault_of(&asked).message, message);
}

#[test]
fn devices_need_the_labs() {
    let refused = "device feature is only supported in Dockerfile frontend 1.14.0-labs or later";
    assert_eq!(fault_of(&request("FROM busybox\nRUN --device=vendor.test/class=dev true\n")).message, refused);
}

/// A build with one step that asks for `devices`, allowed what `entitlements` say. The machine has `vendor.test/class=dev` and
/// `vendor.test/free=dev`; the latter is everybody's.
fn with_devices(devices: &[&str], entitlements: &[&str]) -> PlanRequest {
    let flags: Vec<String> = devices.iter().map(|device| format!("--device={device}")).collect();
    let text = format!("# syntax=docker/dockerfile:labs\nFROM busybox\nRUN {} true\n", flags.join(" "));
    PlanRequest { entitlements: entitlements.iter().map(|text| (*text).to_owned()).collect(), ..request(&text) }
}

#[test]
fn devices_need_an_entitlement() {
    let (one, free) = ("vendor.test/class=dev", "vendor.test/free=dev");
    let required = format!("{one},required");
    let refused = format!("failed to load LLB: device {one} is requested by the build but not allowed");
    let cases: [(&[&str], &[&str], Option<&str>); 12] = [
        (&[one], &[], Some(&refused)),
        (&["vendor.test/class"], &[], Some(&refused)),
        (&[one, free], &["device=vendor.test/free=dev"], Some(&refused)),
        (&[&required], &["device"], None),
        (&[&required], &["device=vendor.test/class=dev"], None),
        (&[&required], &["device=vendor.test/class"], None),
        (&[free], &[], None),
        (&["vendor.test/other=dev"], &[], None),
        (&["vendor.test/other=dev,required"], &[], Some("required device \"vendor.test/other=dev\" is not registered")),
        // It is not looked for before it is needed.
        (&["vendor.test/other=dev,required"], &["device"], None),
        (&["vendor.test/other=dev"], &["device=vendor.test/class=dev,alias=vendor.test/other=dev"], None),
        (&[one], &["device=vendor.test/free=dev,alias=vendor.test/other=dev"], Some(&refused)),
    ];
    for (devices, entitlements, want) in cases {
        let request = with_devices(devices, entitlements);
        let fault = fake::run(&request, &Images::new()).0.err().map(|fault| fault.message);
        assert_eq!(fault.as_deref(), want, "{devices:?} {entitlements:?}");
    }
    let help = fault_of(&with_devices(&[one], &[])).help;
    assert_eq!(help, ["allow it with `--allow device=vendor.test/class=dev`; `--allow device` allows all"]);
}

#[test]
fn a_step_keeps_the_names_it_asks_for() {
    let alias = "device=vendor.test/class=dev,alias=my.test/gpu=0";
    for (asked, want) in [("vendor.test/free", "vendor.test/free"), ("my.test/gpu=0,required", "vendor.test/class=dev")]
    {
        let plan = planned_as(&with_devices(&[asked], &[alias]));
        let Input::Vertex(root) = plan.images[0].root else { panic!("a step") };
        let Op::Run(run) = &*plan.graph.vertex(root).op else { panic!("RUN") };
        assert_eq!((run.devices[0].name.as_str(), run.devices[0].required), (want, asked.ends_with("required")));
    }
}

#[test]
fn entitlements_allow_what_they_name() {
    let mut request = request("FROM busybox\nRUN --security=insecure --network=host true\n");
    request.entitlements = vec!["security.insecure".to_owned()];
    assert_eq!(fault_of(&request).message, "failed to load LLB: network.host is not allowed");
    request.entitlements.push("network.host".to_owned());
    let plan = planned_as(&request);
    let Input::Vertex(root) = plan.images[0].root else { panic!("a step") };
    let Op::Run(run) = &*plan.graph.vertex(root).op else { panic!("RUN") };
    assert_eq!(run.security, SecurityMode::Insecure);
    // A check runs nothing, so there is nothing to allow.
    request.entitlements.clear();
    request.purpose = Purpose::Check;
    planned_as(&request);
}

/// A request for these platforms.
fn for_platforms(dockerfile: &str, platforms: &str) -> PlanRequest {
    let mut request = request(dockerfile);
    fake::apply(&mut request, &["--platform".to_owned(), platforms.to_owned()]);
    request
}

#[test]
fn every_platform_has_its_own_epoch_and_image() {
    let file = "ARG TARGETARCH\nARG SOURCE_DATE_EPOCH=${TARGETARCH#arm}\nFROM scratch\nLABEL a=b\n";
    let mut request = for_platforms(file, "linux/arm64,linux/s390x");
    let fault = fault_of(&request);
    assert_eq!(fault.message, "invalid SOURCE_DATE_EPOCH: s390x");
    request.platforms[1] = Platform::parse("linux/386", &fake::amd64()).unwrap();
    let plan = planned_as(&request);
    let images = plan.images.iter().map(|image| (image.platform.to_string(), image.epoch));
    let expected = [("linux/arm64".to_owned(), Some(64)), ("linux/386".to_owned(), Some(386))];
    assert_eq!(images.collect::<Vec<_>>(), expected);
}

#[test]
fn an_argument_asks_for_an_index_of_one_platform_and_forbids_none_of_several() {
    let multi = |platforms: &str, value: &str| {
        let mut request = for_platforms("FROM scratch\nCOPY a /\n", platforms);
        request.build_args.insert("BUILDKIT_MULTI_PLATFORM".to_owned(), value.to_owned());
        let result = fake::run(&request, &Images::new()).0;
        result
            .map(|plan| (plan.is_multi_platform, names(&plan).pop().unwrap().to_owned()))
            .map_err(|fault| fault.message)
    };
    let conflict = "conflicting config: returning multiple target platforms is not allowed";
    for (platforms, value, expected) in [
        ("linux/arm64", "", Ok((false, "[1/1] COPY a /"))),
        ("linux/arm64", "0", Ok((false, "[1/1] COPY a /"))),
        ("linux/arm64", "true", Ok((true, "[linux/arm64 1/1] COPY a /"))),
        ("linux/arm64,linux/arm64", "", Ok((false, "[1/1] COPY a /"))),
        // The step is the same for both, and has the name that the first gave it.
        ("linux/arm64,linux/amd64", "", Ok((true, "[linux/arm64 1/1] COPY a /"))),
        ("linux/arm64,linux/amd64", "1", Ok((true, "[linux/arm64 1/1] COPY a /"))),
        ("linux/arm64,linux/amd64", "false", Err(conflict)),
        ("linux/arm64", "yes", Err("invalid boolean value for multi-platform: yes")),
    ] {
        let expected = expected.map(|(is_multi, name)| (is_multi, name.to_owned())).map_err(str::to_owned);
        assert_eq!(multi(platforms, value), expected, "{platforms} {value}");
    }
}

#[test]
fn what_is_found_for_several_platforms_is_told_once() {
    let file = "FROM busybox\nmaintainer me\nRUN echo $TYPO\n";
    let rules = |platforms: &str| {
        let warnings = planned_as(&for_platforms(file, platforms)).warnings;
        warnings.into_iter().map(|warning| (warning.rule, warning.message)).collect::<Vec<_>>()
    };
    let one = rules("linux/amd64");
    assert_eq!(one.len(), 2, "{one:?}");
    assert_eq!(rules("linux/amd64,linux/amd64/v2"), one);
    // The image is for amd64 alone, which is no news for the first platform.
    let several = rules("linux/amd64,linux/arm64,linux/s390x");
    assert_eq!(several[..2], one);
    let expected = |platform: &str| {
        let message = format!(
            "Base image busybox was pulled with platform \"linux/amd64\", expected \"{platform}\" for current build"
        );
        ("InvalidBaseImagePlatform", message)
    };
    assert_eq!(several[2..], [expected("linux/arm64"), expected("linux/s390x")]);
}

#[test]
fn faults_of_several_platforms_are_told_once() {
    let fault = fault_of(&for_platforms("FROM nowhere\n", "linux/amd64,linux/arm64"));
    assert!(fault.message.starts_with("nowhere: ") && fault.others.is_empty(), "{fault}: {:?}", fault.others);
    let file = "ARG TARGETARCH\nFROM nowhere-$TARGETARCH\n";
    let fault = fault_of(&for_platforms(file, "linux/amd64,linux/arm64"));
    let all: Vec<&str> = std::iter::once(&fault).chain(&fault.others).map(|fault| fault.message.as_str()).collect();
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("nowhere-amd64: ") && all[1].starts_with("nowhere-arm64: "), "{all:?}");
}

#[test]
fn epochs_of_directories_are_unset_and_of_remote_sources_their_time() {
    let mut request = request("FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL e=[$SOURCE_DATE_EPOCH]\nCOPY . /\n");
    request.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "context".to_owned());
    let plan = planned_as(&request);
    assert_eq!(plan.images[0].epoch, None);
    assert_eq!(plan.images[0].config.config.labels["e"], "[]");

    request.platforms = vec![amd64(), Platform::new("linux", "arm64", None)];
    let url = ContextKind::Http("http://h.test/x".to_owned());
    let git = ContextKind::parse_remote("http://h.test/r.git", false).unwrap().unwrap();
    for (kind, n_vertices) in [(url, 2), (git, 1)] {
        request.main_context = kind;
        let images = Images::new();
        let plan = fake::run(&request, &images).0.unwrap();
        assert_eq!(plan.images[0].epoch, Some(fake::TIME));
        assert_eq!(plan.images[0].config.config.labels["e"], format!("[{}]", fake::TIME));
        // Once for both platforms; what was made for the time is what the plan copies from.
        let timed = images.timed.lock().unwrap();
        let planned: Vec<&Op> = plan.graph.ids().map(|id| &*plan.graph.vertex(id).op).collect();
        assert_eq!(timed.iter().collect::<Vec<_>>(), planned[..n_vertices]);
        assert!(timed.iter().all(|op| !matches!(op, Op::Git(git) if !git.commit_times)));
    }
    request.purpose = Purpose::Check;
    assert_eq!(planned_as(&request).images[0].epoch, None, "a check fetches nothing");
}

#[test]
fn epochs_may_name_contexts_and_stages() {
    let file = "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nARG WEB\nARG FILE=a%20b\nADD $WEB/$FILE /\nFROM scratch\n\
                COPY --from=src / /\nCOPY --from=named / /\n";
    let mut request = request(file);
    request.build_args.insert("WEB".to_owned(), "http://h.test".to_owned());
    request.named_contexts.insert("named".to_owned(), NamedContext::parse("named", "http://h.test/r.git#v1"));
    let times = |request: &PlanRequest| {
        let images = Images::new();
        let plan = fake::run(request, &images).0.unwrap();
        assert_eq!(plan.images[0].epoch, Some(fake::TIME));
        let timed = images.timed.lock().unwrap().clone();
        let is_planned = |op: &Op| plan.graph.ids().any(|id| *plan.graph.vertex(id).op == *op);
        assert!(timed.iter().all(is_planned), "{timed:?}");
        timed
    };
    let of_stage = times(&request);
    assert!(matches!(&of_stage[..], [Op::Http(http)] if http.url == "http://h.test/a%20b"), "{of_stage:?}");
    request.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "named".to_owned());
    assert!(matches!(&times(&request)[..], [Op::Git(git)] if git.commit_times));

    for (stage, message) in [
        ("FROM busybox AS src", "SOURCE_DATE_EPOCH stage must use FROM scratch"),
        (
            "FROM scratch AS src\nRUN x",
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported RUN instruction",
        ),
        (
            "FROM scratch AS src",
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements: exactly one remote ADD",
        ),
        (
            "FROM scratch AS src\nADD x /",
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements: exactly one remote ADD",
        ),
        (
            "FROM scratch AS src\nADD http://h/a /\nADD http://h/b /",
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements: exactly one remote ADD",
        ),
    ] {
        let request = fake::request(&format!("ARG SOURCE_DATE_EPOCH=src\n{stage}\nFROM scratch\n"));
        assert_eq!(fault_of(&request).message, message, "{stage}");
    }
}

#[test]
fn contexts_of_every_kind_are_roots() {
    let mut request = request("FROM scratch\nCOPY . /\n");
    let kinds = [
        (ContextKind::None, vec!["[1/1] COPY . /"]),
        (ContextKind::Local("x".to_owned()), vec!["[internal] load build context", "[1/1] COPY . /"]),
        (
            ContextKind::Http("http://h.test/x".to_owned()),
            vec!["[internal] load remote build context", "[internal] load build context", "[1/1] COPY . /"],
        ),
    ];
    for (kind, wanted) in kinds {
        request.main_context = kind;
        assert_eq!(names(&planned_as(&request)), wanted);
    }
}

#[test]
fn unused_contexts_are_not_in_the_graph() {
    assert_eq!(names(&planned("FROM scratch\nCOPY <<EOF /f\nx\nEOF\n")), ["[1/1] COPY <<EOF /f"]);
}

#[test]
fn a_body_that_is_named_often_is_written_once() {
    let text = format!("FROM scratch\nCOPY {}<<b /d/\n{}big $x\na\nb\n", "<<a ".repeat(1_000), "a\n".repeat(999));
    let plan = planned(&text);
    let ops = plan.graph.ids().map(|id| &plan.graph.vertex(id).op);
    let files: Vec<(String, &[u8])> = ops
        .filter_map(|op| match &**op {
            Op::File(file) => Some(&file.actions),
            _ => None,
        })
        .flatten()
        .map(|action| match action {
            FileAction::WriteFile(file) => (file.name.clone(), file.content.as_slice()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(files, [("a".to_owned(), &b"big \n"[..]), ("b".to_owned(), b"")]);
    assert!(plan.images[0].history[0].entry.created_by.starts_with("COPY <<a <<a <<a "));
}

#[test]
fn files_of_ten_thousand_instructions_and_stages_are_planned() {
    let mut long = "FROM busybox\n".to_owned();
    (0..10_000).for_each(|index| long.push_str(&format!("RUN echo {index}\n")));
    let plan = planned(&long);
    assert_eq!(plan.graph.ids().count(), 10_001);
    assert_eq!(plan.images[0].history.len(), 10_001);

    let mut deep = "FROM busybox AS s0\n".to_owned();
    (1..5_000)
        .for_each(|index| deep.push_str(&format!("FROM s{} AS s{index}\nCOPY --from=s0 a /{index}\n", index - 1)));
    let plan = planned(&deep);
    assert_eq!(plan.images[0].history.len(), 5_000);
    assert_eq!(plan.images[0].history[4_999].entry.created_by, "COPY a /4999 # buildkit");
}

#[test]
fn build_arguments_that_nobody_takes_are_mistakes_when_an_arg_is_called_nearly_so() {
    let table: [(&str, &[&str], &[&str]); 5] = [
        ("FROM scratch\nARG VERSION", &["VERSOIN"], &["VERSOIN (did you mean VERSION?)"]),
        ("ARG VERSION\nFROM scratch", &["VERSION", "OTHER"], &[]),
        ("FROM scratch\nARG VERSION VERSIONS", &["VERSIONS"], &[]),
        ("FROM scratch\nARG GO", &["PI"], &[]),
        ("FROM scratch\nARG NPM_PROXY BUILDKIT_X", &["no_proxy", "NO_PROXY", "BUILDKIT_Y"], &[]),
    ];
    for (dockerfile, given, expected) in table {
        let mut request = request(dockerfile);
        request.build_args = given.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
        let messages: Vec<_> = planned_as(&request).warnings.into_iter().map(|warning| warning.message).collect();
        let expected: Vec<_> = expected.iter().map(|text| format!("no ARG takes the build argument {text}")).collect();
        assert_eq!(messages, expected, "{dockerfile}");
    }
}
