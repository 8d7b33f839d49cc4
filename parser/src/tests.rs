use proptest::prelude::*;

use super::*;
use crate::instruction::{HealthcheckInstruction, RunScript, SourceContent};

#[track_caller]
fn parsed(text: &str) -> Dockerfile {
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error:?}\n{text}"))
}

/// The first instruction behind `FROM x`.
#[track_caller]
fn one(instruction: &str) -> Instruction {
    let mut file = parsed(&format!("FROM x\n{instruction}\n"));
    file.stages.remove(0).instructions.remove(0)
}

#[track_caller]
fn fails(text: &str) -> (String, Vec<(u32, u32)>) {
    let error = parse(text.as_bytes()).expect_err(text);
    (error.message, error.lines.iter().map(|lines| (lines.start, lines.end)).collect())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn shell(text: &str) -> Command {
    Command::Shell(text.to_owned())
}

fn exec(words: &[&str]) -> Command {
    Command::Exec(strings(words))
}

#[test]
fn files_without_a_build() {
    assert_eq!(fails(""), ("the Dockerfile cannot be empty".to_owned(), vec![]));
    assert_eq!(fails("# nothing here\n\n# at all\n"), ("file with no instructions".to_owned(), vec![(3, 3)]));
    assert_eq!(fails("\u{feff}"), ("file with no instructions".to_owned(), vec![(1, 1)]));
    assert_eq!(fails("ARG A=1\nARG B=2\n"), ("dockerfile contains no stages to build".to_owned(), vec![]));
    let no_stage = "no build stage in current context".to_owned();
    assert_eq!(fails("ARG A=1\nLABEL a=b\nRUN x\nFROM busybox\n"), (no_stage, vec![(2, 2)]));
}

/// Faults of instructions, without the prefix.
#[test]
fn faults_of_instructions() {
    let table = [
        ("LABEL =x", "LABEL names can not be blank"),
        ("ENV =x", "ENV names can not be blank"),
        ("ARG =x", "ARG names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG --x", "ARG requires at least one argument"),
        ("ENV", "ENV requires at least one argument"),
        ("LABEL", "LABEL requires at least one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME []", "VOLUME requires at least one argument"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("VOLUME [\" \", \"/x\"]", "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("SHELL /bin/sh -c", "SHELL requires the arguments to be in JSON form"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("USER", "USER requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        (
            "COPY \\\n\t/only",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("ADD", "ADD requires at least two arguments, but only one was provided. Destination could not be determined"),
        (
            "COPY <<EOF\nx\nEOF",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("COPY a <<EOF\nx\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("ADD a <<EOF\nx\nEOF", "ADD cannot accept a heredoc as a destination"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a is b", "FROM requires either one or three arguments"),
        ("FROM a AS b c", "FROM requires either one or three arguments"),
        (
            "FROM busybox AS 1Stage",
            "invalid name for build stage: \"1Stage\", name can't start with a number or contain symbols",
        ),
        ("FROM a AS b/c", "invalid name for build stage: \"b/c\", name can't start with a number or contain symbols"),
        ("FROM a AS ähm", "invalid name for build stage: \"ähm\", name can't start with a number or contain symbols"),
        ("FROM --x=y a", "unknown flag: --x"),
        ("RUN --mont=type=tmpfs,target=/x true", "unknown flag: --mont (did you mean mount?)"),
        ("COPY --recursive \\\n a \\\n b", "unknown flag: --recursive"),
        ("COPY --chown=1 --chown=2 a b", "duplicate flag specified: --chown"),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --link=yes a b", "expecting boolean value for flag --link, not: yes"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --checksum=sha256:00 a /a", "unknown flag: --checksum"),
        ("ADD --from=busybox /etc/passwd /a", "unknown flag: --from"),
        ("ENV --global A=1", "unknown flag: --global"),
        ("LABEL --x a=b", "unknown flag: --x"),
        ("CMD --help", "unknown flag: --help"),
        ("ENTRYPOINT --help", "unknown flag: --help"),
        ("USER --x y", "unknown flag: --x"),
        ("WORKDIR --x /y", "unknown flag: --x"),
        ("VOLUME --x /y", "unknown flag: --x"),
        ("EXPOSE --x 80", "unknown flag: --x"),
        ("SHELL --x [\"a\"]", "unknown flag: --x"),
        ("MAINTAINER --x y", "unknown flag: --x"),
        ("ONBUILD --x RUN y", "unknown flag: --x"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN true", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD onbuild", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD from busybox", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("FNTRYPOINT [\"a\"]", "unknown instruction: FNTRYPOINT (did you mean ENTRYPOINT?)"),
        ("wrokdir /x", "unknown instruction: wrokdir (did you mean workdir?)"),
        ("Coppy a b", "unknown instruction: Coppy (did you mean COPY?)"),
        ("BUILDIT now", "unknown instruction: BUILDIT"),
        ("RUN --network=x true", "invalid network mode \"x\""),
        ("RUN --security=x true", "security \"x\" is not valid"),
        (
            "RUN --mount=target=a\\\"b true",
            "failed to parse csv mounts: parse error on line 1, column 9: bare \" in non-quoted-field",
        ),
        ("RUN --mount=from=$X,target=/x true", "'from' doesn't support variable expansion, define alias stage instead"),
        ("RUN --device=a/b=c,a/b=d true", "device name already set to a/b=c"),
        ("RUN --device=a/b=c,x=y true", "unexpected key 'x' in 'x=y'"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK --interval=5s", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK cmdx true", "Unknown type \"CMDX\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK --x CMD true", "unknown flag: --x"),
        ("HEALTHCHECK --retries=-1 CMD true", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD true", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("HEALTHCHECK --interval=10us CMD true", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --timeout=-1s CMD true", "Interval \"timeout\" cannot be less than 1ms"),
        ("HEALTHCHECK --start-period=1ns CMD true", "Interval \"start-period\" cannot be less than 1ms"),
        ("HEALTHCHECK --start-interval=1us CMD true", "Interval \"start-interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --interval=5 CMD true", "time: missing unit in duration \"5\""),
    ];
    for (text, want) in table {
        let last = u32::try_from(text.lines().count()).unwrap() + 1;
        let want = (format!("dockerfile parse error on line 2: {want}"), vec![(2, last)]);
        assert_eq!(fails(&format!("FROM x\n{text}\n")), want, "{text}");
    }
}

/// Faults of the line parser, which have no prefix.
#[test]
fn faults_of_lines() {
    let strings_only = "when using JSON array syntax, arrays must be comprised of strings only";
    let table = [
        ("ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
        ("LABEL a=${UN:-a b}", "Syntax error - can't find = in \"b}\". Must be of the form: name=value"),
        ("ENV lonely", "ENV must have two arguments"),
        ("LABEL lonely", "LABEL must have two arguments"),
        ("ONBUILD ENV lonely", "ENV must have two arguments"),
        ("CMD [\"a\", 1]", strings_only),
        ("COPY [\"a\", null]", strings_only),
        ("HEALTHCHECK CMD [1]", strings_only),
        ("ONBUILD RUN [1]", strings_only),
    ];
    for (text, want) in table {
        assert_eq!(fails(&format!("FROM x\n{text}\n")), (want.to_owned(), vec![(2, 2)]), "{text}");
    }
}

#[test]
fn all_faults_are_reported_and_line_faults_come_first() {
    let error = parse(b"FROM x\nCOPY --form=y a b\nENV a=b c\nWRKDIR /x\nRUN <<EOF\n").unwrap_err();
    assert_eq!(error.message, "Syntax error - can't find = in \"c\". Must be of the form: name=value");
    assert_eq!(error.span, Some(SourceSpan { line: 3, column: 9, length: 1 }));
    let others: Vec<&str> = error.others.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(others, ["unterminated heredoc"], "what follows an open heredoc is not known");

    let error = parse(b"FROM x\nCOPY --form=y a b\nENV a=b c\nWRKDIR /x\n").unwrap_err();
    let others: Vec<&str> = error.others.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        others,
        [
            "dockerfile parse error on line 2: unknown flag: --form (did you mean from?)",
            "dockerfile parse error on line 4: unknown instruction: WRKDIR (did you mean WORKDIR?)"
        ]
    );
    assert_eq!(error.others[0].span, Some(SourceSpan { line: 2, column: 6, length: 6 }));
    assert_eq!(error.others[0].help, ["`COPY` takes --from, --chown, --chmod, --link, --parents, --exclude"]);

    let error = parse(b"FRM x\nRUN y\n").unwrap_err();
    assert_eq!(error.message, "dockerfile parse error on line 1: unknown instruction: FRM (did you mean FROM?)");
}

#[test]
fn stages() {
    let file = parsed("ARG V=1 W\n# app is it\nfrom --platform=$P img:$V aS App\nRUN x\nFROM app\n");
    assert_eq!(file.global_args.len(), 1);
    assert_eq!(file.global_args[0].value.args[0].default.as_deref(), Some("1"));
    assert_eq!(file.global_args[0].value.args[1].default, None);
    let [app, last] = &file.stages[..] else { panic!("two stages") };
    assert_eq!(app.name.as_deref(), Some("app"));
    assert_eq!(app.name_as_written.as_deref(), Some("App"));
    assert_eq!((app.base.as_str(), app.platform.as_deref()), ("img:$V", Some("$P")));
    assert_eq!(app.from_text, "from --platform=$P img:$V aS App");
    assert_eq!(description(&app.comments, "app"), Some("is it"));
    assert_eq!(app.location, LineRange::line(3));
    assert_eq!((last.name.as_deref(), last.base.as_str(), last.platform.as_deref()), (None, "app", None));
    assert_eq!(parsed("FROM x AS a.b_c-d9").stages[0].name.as_deref(), Some("a.b_c-d9"));
    assert_eq!(parsed("FROM --platform= x").stages[0].platform, None);
}

#[test]
fn descriptions() {
    let comments = strings(&["a remark", "ab not it", "a\tneither", "a  the text ", "a second"]);
    assert_eq!(description(&comments, "a"), Some("remark"));
    assert_eq!(description(&comments, "ab"), Some("not it"));
    assert_eq!(description(&comments, "x"), None);
    assert_eq!(description(&comments, ""), None);
}

#[test]
fn commands() {
    let table = [
        ("CMD a  b", shell("a  b")),
        ("CMD", shell("")),
        ("CMD []", exec(&[])),
        ("CMD [\"a\",\"b c\"]", exec(&["a", "b c"])),
        ("CMD ['a', 'b']", shell("['a', 'b']")),
        ("CMD [\"a\",]", shell("[\"a\",]")),
        ("CMD []x", shell("[]x")),
        ("CMD [ \"x\" , \\\n  \"y\" ]   ", exec(&["x", "y"])),
        ("CMD echo # three", shell("echo # three")),
        ("CMD run \\\n\twith-tab", shell("run \twith-tab")),
        ("CMD [\"C:\\tools\\x\"]", shell("[\"C:\\tools\\x\"]")),
        ("CMD -- --help", shell("--help")),
    ];
    for (text, want) in table {
        assert_eq!(one(text).kind, InstructionKind::Cmd(want), "{text}");
    }
    assert_eq!(one("ENTRYPOINT []random string").kind, InstructionKind::Entrypoint(shell("[]random string")));
    assert_eq!(one("SHELL [\"a\"]").kind, InstructionKind::Shell(strings(&["a"])));
}

#[test]
fn key_values() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("a=1 b=$a", &[("a", "1"), ("b", "$a")]),
        ("a=", &[("a", "")]),
        ("a=b=c", &[("a", "b=c")]),
        ("a=\"b c\" d=e\\ f", &[("a", "\"b c\""), ("d", "e\\ f")]),
        ("first b c=d \"e f\"", &[("first", "b c=d \"e f\"")]),
        ("second   spaced   out  ", &[("second", "spaced   out")]),
        ("\"a b\"=c 'l $K'=3", &[("\"a b\"", "c"), ("'l $K'", "3")]),
        ("A=x#y B=#z", &[("A", "x#y"), ("B", "#z")]),
        ("A=<<EOF", &[("A", "<<EOF")]),
        ("名=值", &[("名", "值")]),
    ];
    for (text, want) in table {
        assert_eq!(one(&format!("ENV {text}")).kind, InstructionKind::Env(pairs(want)), "{text}");
        assert_eq!(one(&format!("LABEL {text}")).kind, InstructionKind::Label(pairs(want)), "{text}");
    }
}

#[test]
fn lists_and_texts() {
    let table = [
        ("EXPOSE 5000 2375/tcp\t1234/udp", InstructionKind::Expose(strings(&["1234/udp", "2375/tcp", "5000"]))),
        ("VOLUME /a  /b", InstructionKind::Volume(strings(&["/a", "/b"]))),
        ("VOLUME [\" /a b\", \"/c\"]", InstructionKind::Volume(strings(&["/a b", "/c"]))),
        ("VOLUME [a b]", InstructionKind::Volume(strings(&["[a", "b]"]))),
        ("USER a b", InstructionKind::User("a b".to_owned())),
        ("WORKDIR  \"/a b\" ", InstructionKind::Workdir("\"/a b\"".to_owned())),
        ("STOPSIGNAL --y SIGINT", InstructionKind::StopSignal("SIGINT".to_owned())),
        ("MAINTAINER me  <m@x>", InstructionKind::Maintainer("me  <m@x>".to_owned())),
    ];
    for (text, want) in table {
        assert_eq!(one(text).kind, want, "{text}");
    }
    let InstructionKind::Arg(arg) = one("ARG --x A=1 b c='d e'").kind else { panic!("an ARG") };
    let args: Vec<_> = arg.args.iter().map(|arg| (arg.name.as_str(), arg.default.as_deref())).collect();
    assert_eq!(args, [("A", Some("1")), ("b", None), ("c", Some("'d e'"))]);
}

#[test]
fn copies() {
    let InstructionKind::Copy(copy) = one(
        "COPY --from=Base --chown=\"1\":'2' --chmod=6\\4\\0 --link=TRUE --parents --exclude=*.a --exclude=!b a b/ /d/",
    )
    .kind
    else {
        panic!("a COPY")
    };
    assert_eq!((copy.sources, copy.dest), (strings(&["a", "b/"]), "/d/".to_owned()));
    assert_eq!(copy.from.as_deref(), Some("Base"));
    assert_eq!((copy.chown.as_deref(), copy.chmod.as_deref()), (Some("1:2"), Some("640")));
    assert!(copy.link && copy.parents);
    assert_eq!(copy.excludes, strings(&["*.a", "!b"]));

    let InstructionKind::Copy(copy) = one("COPY --chown= --from= --link=false a --chown=1 /d/").kind else {
        panic!("a COPY")
    };
    assert_eq!((copy.chown, copy.from, copy.link), (None, None, false));
    assert_eq!(copy.sources, strings(&["a", "--chown=1"]));

    let InstructionKind::Add(add) = one("ADD --keep-git-dir --unpack=false --checksum=sha256:0 [\"a b\", \"/c\"]").kind
    else {
        panic!("an ADD")
    };
    assert_eq!((add.keep_git_dir, add.unpack, add.checksum.as_deref()), (Some(true), Some(false), Some("sha256:0")));
    assert_eq!((add.sources, add.dest), (strings(&["a b"]), "/c".to_owned()));
    let InstructionKind::Add(add) = one("ADD a /c").kind else { panic!("an ADD") };
    assert_eq!((add.keep_git_dir, add.unpack, add.checksum), (None, None, None));
}

#[test]
fn copies_of_heredocs() {
    let contents = |text: &str| match one(text).kind {
        InstructionKind::Copy(copy) => (copy.sources, copy.contents),
        InstructionKind::Add(add) => (add.sources, add.contents),
        kind => panic!("{kind:?}"),
    };
    let content =
        |path: &str, data: &str, expand| SourceContent { path: path.to_owned(), data: data.as_bytes().into(), expand };
    let table = [
        ("COPY <<EOF /x\nHi.\nEOF", vec![], vec![content("EOF", "Hi.\n", true)]),
        ("ADD <<'a' <<b /d/\n1\na\n2\nb", vec![], vec![content("a", "1\n", false), content("b", "2\n", true)]),
        ("COPY f <<-E g /d/\n\t\t1\n\tE", vec!["f", "g"], vec![content("E", "1\n", true)]),
        ("COPY <<eo\\'f /c\nquote\neo'f", vec![], vec![content("eo'f", "quote\n", true)]),
        ("COPY [\"<<A\", \"<<B\", \"/d/\"]", vec![], vec![content("A", "", true), content("B", "", true)]),
        ("COPY << SPACED /a\nspaced\nSPACED", vec!["<<", "SPACED"], vec![]),
        ("COPY <<'one two' /d\nx\none two", vec!["<<'one", "two'"], vec![]),
        ("COPY <<<word /x", vec!["<<<word"], vec![]),
    ];
    for (text, want_sources, want_contents) in table {
        assert_eq!(contents(text), (strings(&want_sources), want_contents), "{text}");
    }
}

#[test]
fn runs() {
    let run = |text: &str| match one(text).kind {
        InstructionKind::Run(run) => run,
        kind => panic!("{kind:?}"),
    };
    let file =
        |name: &str, content: &str| RunScript::File { name: name.to_owned(), content: content.as_bytes().to_vec() };
    let shell = |text: &str| RunScript::Shell(text.to_owned());
    let table = [
        ("RUN echo a\\\nb   \\\n    c", shell("echo ab       c")),
        ("RUN [\"/bin/echo\", \"$A\"]", RunScript::Exec(strings(&["/bin/echo", "$A"]))),
        ("RUN []", RunScript::Exec(vec![])),
        ("RUN", shell("")),
        ("RUN -- echo x", shell("echo x")),
        ("RUN [ -e /bin/sh ] && true", shell("[ -e /bin/sh ] && true")),
        ("RUN <<EOF\nset -e\n# x\nEOF", shell("set -e\n# x\n")),
        ("RUN <<'EOF'\necho \"$A\"\nEOF", shell("echo \"$A\"\n")),
        ("RUN <<'one two'\nx\none two", shell("x\n")),
        ("RUN <<-EOF\n\ta\n\t\tb <<-\"IN\"\n  \tc\n\tEOF", shell("a\nb <<-\"IN\"\n  \tc\n")),
        ("RUN <<P\n#!/bin/awk -f\nBEGIN {}\nP", file("P", "#!/bin/awk -f\nBEGIN {}\n")),
        ("RUN <<-P\n\t#!/bin/sh\n\tx\n\tP", file("P", "#!/bin/sh\nx\n")),
        ("RUN <<EOF sh -s\necho\nEOF", shell("<<EOF sh -s\necho\nEOF")),
        ("RUN << EOF cat\na\nEOF", shell("<< EOF cat\na\nEOF")),
        ("RUN cat <<\"EOF\" > /x\nhi\nEOF", shell("cat <<\"EOF\" > /x\nhi\nEOF")),
        ("RUN cat <<ONE && cat <<TWO\n1\nONE\n2\nTWO", shell("cat <<ONE && cat <<TWO\n1\nONE\n2\nTWO")),
        ("RUN 3<<EOF cat <&3\nx\nEOF", shell("3<<EOF cat <&3\nx\nEOF")),
        ("RUN cat <<-A\n\tx\n\tA", shell("cat <<-A\n\tx\nA")),
    ];
    for (text, want) in table {
        assert_eq!(run(text).script(), want, "{text}");
    }
    let full = run(
        "RUN --mount=type=cache,target=/c --mount=target=/m --network=none --security=insecure \\\n --device=v.com/c=n,required --device=name=v.com/c=m,required=false <<EOF\n\nx\nEOF",
    );
    assert_eq!(full.mounts, strings(&["type=cache,target=/c", "target=/m"]));
    assert_eq!(full.network, instruction::RunNetwork::None);
    assert_eq!(full.security, instruction::RunSecurity::Insecure);
    let devices: Vec<_> = full.devices.iter().map(|device| (device.name.as_str(), device.required)).collect();
    assert_eq!(devices, [("v.com/c=n", true), ("v.com/c=m", false)]);
    assert_eq!(full.first_body_line().as_deref(), Some(""));
    assert_eq!(full.heredocs[0].content, b"\nx\n");
}

#[test]
fn healthchecks() {
    let check = |text: &str| match one(text).kind {
        InstructionKind::Healthcheck(check) => check,
        kind => panic!("{kind:?}"),
    };
    let unset = HealthcheckInstruction {
        test: vec![],
        interval_ns: 0,
        timeout_ns: 0,
        start_period_ns: 0,
        start_interval_ns: 0,
        retries: 0,
    };
    assert_eq!(
        check(
            "HEALTHCHECK --interval=1m30s --timeout=100ms --start-period=2s --start-interval=1.5s --retries=5 CMD curl -f \"x  y\""
        ),
        HealthcheckInstruction {
            test: strings(&["CMD-SHELL", "curl -f \"x  y\""]),
            interval_ns: 90_000_000_000,
            timeout_ns: 100_000_000,
            start_period_ns: 2_000_000_000,
            start_interval_ns: 1_500_000_000,
            retries: 5,
        }
    );
    let exec = HealthcheckInstruction { test: strings(&["CMD", "a", "b"]), ..unset.clone() };
    assert_eq!(check("HEALTHCHECK --interval=0s --retries=0 cmd [\"a\", \"b\"]"), exec);
    let none = HealthcheckInstruction { test: strings(&["NONE"]), ..unset };
    assert_eq!(check("HEALTHCHECK --interval=x none"), none);
}

#[test]
fn triggers() {
    let stored = |text: &str| match one(text).kind {
        InstructionKind::Onbuild(trigger) => trigger,
        kind => panic!("{kind:?}"),
    };
    assert_eq!(stored("onbuild   RUN  echo $A"), "RUN  echo $A");
    assert_eq!(stored("ONBUILD FOO bar"), "FOO bar");
    assert_eq!(stored("ONBUILD COPY --from=x <<-EOF /y\n\tv $W\n\tEOF"), "COPY --from=x <<-EOF /y\n\tv $W\nEOF");

    let copy = parse_onbuild_trigger("COPY <<EOF /x\nvalue $WHO\nEOF").unwrap();
    let InstructionKind::Copy(copy) = copy.kind else { panic!("a COPY") };
    assert_eq!(*copy.contents[0].data, *b"value $WHO\n");
    let table = [
        ("FOO bar", "unknown instruction: FOO (did you mean FROM?)"),
        ("COPY --form=x a b", "unknown flag: --form (did you mean from?)"),
        ("RUN a\nRUN b", "onbuild trigger should be a single expression"),
        ("ENV a", "ENV must have two arguments"),
        ("RUN <<EOF", "unterminated heredoc"),
        ("FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("", "file with no instructions"),
    ];
    for (text, want) in table {
        let error = parse_onbuild_trigger(text).unwrap_err();
        assert_eq!((error.message.as_str(), error.lines.is_empty()), (want, true), "{text}");
    }
}

#[test]
fn original_text_and_lines() {
    let file = parsed("FROM x\n  Run a \\\n# c\n  b \n");
    let instruction = &file.stages[0].instructions[0];
    assert_eq!(instruction.original, "Run a   b");
    assert_eq!(instruction.keyword_as_written, "Run");
    assert_eq!(instruction.lines, LineRange { start: 2, end: 4 });
}

/// `Rule line: message`, those of the file first, then those of built stages.
fn warnings(text: &str) -> Vec<String> {
    let file = parsed(text);
    let config = file.directives.check.as_ref().map(|check| CheckConfig::parse(&check.value).unwrap());
    let config = config.unwrap_or_default();
    let of_stages = file.stages.iter().flat_map(|stage| &stage.instructions).flat_map(|found| &found.warnings);
    let wanted = file.warnings.iter().chain(of_stages).filter(|warning| config.reports(warning));
    wanted.map(|warning| format!("{} {}: {}", warning.rule.id(), warning.lines.start, warning.message)).collect()
}

#[test]
fn rules_of_the_file() {
    let casing = |line: u32, keyword: &str, majority: &str| {
        format!(
            "ConsistentInstructionCasing {line}: Command '{keyword}' should match the case of the command majority ({majority})"
        )
    };
    let as_casing = |line: u32, from: &str, as_: &str| {
        format!("FromAsCasing {line}: '{as_}' and '{from}' keywords' casing do not match")
    };
    assert_eq!(
        warnings("FROM busybox AS Build\nFROM build AS fin_Al\n"),
        [
            "StageNameCasing 1: Stage name 'Build' should be lowercase",
            "StageNameCasing 2: Stage name 'fin_Al' should be lowercase",
        ]
    );
    assert_eq!(
        warnings("FROM b as a\nfrom b AS b\nFrom b aS c\nfrom b as d\nFROM b As e\n"),
        [
            as_casing(1, "FROM", "as"),
            as_casing(2, "from", "AS"),
            as_casing(5, "FROM", "As"),
            casing(2, "from", "uppercase"),
            casing(3, "From", "uppercase"),
            casing(4, "from", "uppercase"),
        ]
    );
    assert_eq!(
        warnings("FROM b\nRUN true && \\\n\n true \\\n # fine\n && true\n"),
        ["NoEmptyContinuation 6: Empty continuation line"]
    );
    assert_eq!(
        warnings("ARG g=1\nFROM b\ncopy a /a\nENV A=1\nRun true\nLABEL b=1\n"),
        [casing(3, "copy", "uppercase"), casing(5, "Run", "uppercase")]
    );
    assert_eq!(
        warnings("from b\nenv a=1\nenv b=2\nLABEL c=3\nCmd [\"x\"]\n"),
        [casing(4, "LABEL", "lowercase"), casing(5, "Cmd", "lowercase")]
    );
    assert_eq!(warnings("FROM b\nenv a=1\n"), [casing(2, "env", "uppercase")]);
    assert_eq!(
        warnings("FROM x AS b\nFROM x AS B\nFROM x AS c\n"),
        [
            "StageNameCasing 2: Stage name 'B' should be lowercase",
            "DuplicateStageName 2: Duplicate stage name \"b\", stage names should be unique",
        ]
    );
    assert_eq!(
        warnings("FROM x AS scratch\nFROM x AS context\n"),
        [
            "ReservedStageName 1: Stage name should not use the same name as reserved stage \"scratch\"",
            "ReservedStageName 2: Stage name should not use the same name as reserved stage \"context\"",
        ]
    );
    assert_eq!(
        warnings("FROM x\nMAINTAINER me\n"),
        ["MaintainerDeprecated 2: Maintainer instruction is deprecated in favor of using label"]
    );
}

#[test]
fn rules_about_platforms() {
    let redundant = |line: u32, variable: &str| {
        format!(
            "RedundantTargetPlatform {line}: Setting platform to predefined {variable} in FROM is redundant as this is the default behavior"
        )
    };
    let text = "FROM --platform=$TARGETPLATFORM b AS a\nFROM --platform=${TARGETPLATFORM} b AS b\n\
        FROM --platform=${TARGETPLATFORM:-linux/amd64} b AS c\nFROM --platform=$TARGETOS/$TARGETARCH b\n\
        FROM --platform=x$TARGETPLATFORM b\nFROM --platform=${ b\n";
    assert_eq!(
        warnings(text),
        [
            redundant(1, "$TARGETPLATFORM"),
            redundant(2, "${TARGETPLATFORM}"),
            redundant(3, "${TARGETPLATFORM:-linux/amd64}"),
        ]
    );
    let constant = |line: u32| {
        format!(
            "FromPlatformFlagConstDisallowed {line}: FROM --platform flag should not use constant value \"linux/amd64\""
        )
    };
    let text = "FROM --platform=linux/amd64 b AS one\nFROM --platform=linux/amd64 b AS for-amd64\n\
        FROM --platform=linux/amd64 b AS linux_build\nFROM --platform=linux/amd64 b\n";
    assert_eq!(warnings(text), [constant(1), constant(4)]);
}

#[test]
fn rules_about_instructions() {
    let legacy = |line: u32, keyword: &str| {
        format!(
            "LegacyKeyValueFormat {line}: \"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
        )
    };
    assert_eq!(warnings("FROM x\nENV a b\nLABEL c d e=f\nENV g=h\n"), [legacy(2, "ENV"), legacy(3, "LABEL")]);
    let multiple = |line: u32, keyword: &str| {
        format!(
            "MultipleInstructionsDisallowed {line}: Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        )
    };
    let text = "FROM x\nCMD [\"a\"]\nCMD [\"b\"]\nENTRYPOINT [\"a\"]\nHEALTHCHECK NONE\nCMD [\"c\"]\n\
        ENTRYPOINT [\"b\"]\nHEALTHCHECK CMD [\"true\"]\nFROM x\nCMD [\"a\"]\n";
    assert_eq!(
        warnings(text),
        [multiple(2, "CMD"), multiple(3, "CMD"), multiple(4, "ENTRYPOINT"), multiple(5, "HEALTHCHECK")]
    );
}

#[test]
fn rules_about_descriptions() {
    let wrong = |line: u32, keyword: &str, name: &str| {
        format!(
            "InvalidDefinitionDescription {line}: Comment for {keyword} should follow the format: `# {name} <description>`"
        )
    };
    let body = "# a wrong comment\nARG first=1\n# second is right\nARG second=2\n# a lone comment\n\nFROM b AS app\n\
        # wrong\nARG x y\n# detached\n#\nARG z\n# final: almost right\nFROM app AS final\n# other\nFROM app AS last\n";
    assert_eq!(warnings(body), [""; 0]);
    let text = format!("# check=experimental=InvalidDefinitionDescription\n{body}");
    assert_eq!(
        warnings(&text),
        [
            wrong(3, "ARG", "first"),
            wrong(8, "FROM", "app"),
            wrong(10, "ARG", "<arg_key>"),
            wrong(15, "FROM", "final"),
            wrong(17, "FROM", "last"),
        ]
    );
}

#[test]
fn comments_configure_one_instruction() {
    let text = "FROM busybox\n# check=skip=MaintainerDeprecated\nMAINTAINER x\n# check=skip=LegacyKeyValueFormat\n\
        ENV a b\nENV c d\n# check=error=true\nENV e f\n# check=skip=StageNameCasing\nFROM busybox AS One\n";
    let found = warnings(text);
    let rules: Vec<&str> = found.iter().filter_map(|found| found.split(':').next()).collect();
    assert_eq!(rules, ["LegacyKeyValueFormat 6", "LegacyKeyValueFormat 8"]);
}

#[test]
fn ten_thousand_lines_take_milliseconds() {
    let mut text = String::from("FROM x\n");
    for line in 0..2_000 {
        text.push_str(&format!(
            "# comment {line}\nRUN --mount=type=cache,target=/c{line} a && \\\n    b\nENV K{line}=\"v $X\" L={line}\nCOPY --chown=1 a{line} /d/\n"
        ));
    }
    let start = std::time::Instant::now();
    let file = parsed(&text);
    assert_eq!(file.stages[0].instructions.len(), 6_000);
    // The promise is 20 ms in an optimised build; this bound is wide enough for any machine and build.
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_body_that_is_named_often_is_in_memory_once() {
    let text = format!("FROM x\nCOPY {}/d/\n{}big\na\n", "<<a <<-a ".repeat(500), "a\n".repeat(999));
    let InstructionKind::Copy(copy) = parsed(&text).stages.remove(0).instructions.remove(0).kind else { panic!() };
    assert_eq!(copy.contents.len(), 1_000);
    for pair in copy.contents.windows(3) {
        assert_eq!(&*pair[0].data, b"big\n");
        assert!(std::sync::Arc::ptr_eq(&pair[0].data, &pair[2].data));
    }
}

/// Pieces of Dockerfiles, to be thrown together.
fn token() -> impl Strategy<Value = String> {
    let tokens = [
        "FROM x",
        "AS",
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "LABEL",
        "ARG",
        "CMD",
        "ONBUILD",
        "HEALTHCHECK",
        "SHELL",
        "EXPOSE",
        "VOLUME",
        "#",
        "# escape=`",
        "# check=skip=all",
        "# syntax=a",
        "\\",
        "\\\n",
        "`\n",
        "\n",
        "\r\n",
        " ",
        "\t",
        "<<EOF",
        "<<-'E'",
        "EOF",
        "\nEOF\n",
        "\nE\n",
        "--",
        "--from=",
        "--mount=type=",
        "--link",
        "[",
        "]",
        "\"a\"",
        "\"",
        "'",
        ",",
        "=",
        "$",
        "${",
        "${x",
        "${x:-",
        "}",
        "/",
        "NONE",
        "\u{feff}",
        "é",
        "\u{0}",
        "\u{a0}",
        "{\"syntax\":",
        "//syntax=a",
        "#!",
    ];
    prop::sample::select(tokens.to_vec()).prop_map(str::to_owned)
}

fn exercise(text: &[u8]) {
    if let Ok(file) = parse(text) {
        for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
            if let InstructionKind::Run(run) = &instruction.kind {
                run.script();
                run.first_body_line();
            }
            if let InstructionKind::Onbuild(trigger) = &instruction.kind {
                drop(parse_onbuild_trigger(trigger));
            }
        }
    }
    directive::detect(text);
}

proptest! {
    #[test]
    fn any_bytes_end(text in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(&text);
    }

    #[test]
    fn any_tokens_end(tokens in prop::collection::vec(token(), 0..30)) {
        exercise(tokens.concat().as_bytes());
        exercise(format!("FROM x\n{}", tokens.join(" ")).as_bytes());
    }

    #[test]
    fn instructions_lie_within_the_file_and_in_order(tokens in prop::collection::vec(token(), 0..30)) {
        let text = format!("FROM x\nRUN {}", tokens.concat());
        let n_lines = u32::try_from(text.split_inclusive('\n').count()).unwrap();
        if let Ok(file) = parse(text.as_bytes()) {
            let mut last = 0;
            for stage in &file.stages {
                for lines in std::iter::once(stage.location).chain(stage.instructions.iter().map(|found| found.lines)) {
                    prop_assert!(last < lines.start && lines.start <= lines.end && lines.end <= n_lines);
                    last = lines.end;
                }
            }
        }
    }
}
