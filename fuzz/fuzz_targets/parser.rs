//! Whole Dockerfiles, any bytes: `parser::parse`, `directive::detect`, and what comes of each instruction.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parser::expand::{ExpandError, Expander};
use parser::instruction::{InstructionKind, RunInstruction};
use parser::lexer::Heredoc;
use parser::lint::CheckConfig;
use parser::{Dockerfile, Instruction, LineRange, ParseError, Warning, directive, mount, port, signal};

fuzz_target!(|data: &[u8]| fuzz::run(data, check));

fn check(data: &[u8]) {
    let source = Source::new(data);
    let (syntax, check) = directive::detect(data);
    let places = syntax.iter().filter_map(|found| found.lines).chain(check.iter().map(|found| found.lines));
    places.for_each(|lines| source.holds_lines(lines));
    if let Some(check) = &check {
        drop(CheckConfig::parse(&check.value));
    }

    let parsed = parser::parse(data);
    assert!(parsed == parser::parse(data), "parsed twice with two results");
    if !data.is_empty() && !data.ends_with(b"\n") {
        assert!(parsed == parser::parse(&[data, b"\n"].concat()), "a newline at the end changes the result");
    }
    match parsed {
        Err(error) => source.holds_error(&error),
        Ok(file) => {
            assert_eq!((&file.directives.syntax, &file.directives.check), (&syntax, &check));
            source.holds_file(&file);
        }
    }
}

/// The text that lines and spans have to lie in.
struct Source<'a> {
    lines: Vec<&'a [u8]>,
}

impl<'a> Source<'a> {
    fn new(data: &'a [u8]) -> Self {
        let text = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        Self { lines: if lines.is_empty() { vec![b""] } else { lines } }
    }

    fn holds_lines(&self, lines: LineRange) {
        fuzz::assert_in_file(lines, u32::try_from(self.lines.len()).unwrap_or(u32::MAX));
    }

    fn holds_warnings(&self, warnings: &[Warning]) {
        warnings.iter().for_each(|warning| self.holds_lines(warning.lines));
    }

    fn holds_error(&self, error: &ParseError) {
        assert!(!error.message.is_empty());
        error.lines.iter().for_each(|lines| self.holds_lines(*lines));
        if let Some(span) = error.span {
            let line = span.line.checked_sub(1).and_then(|index| self.lines.get(index as usize));
            let line = String::from_utf8_lossy(line.expect("the span's line is one of the file"));
            let behind = span.column as usize + span.length as usize;
            assert!(span.column >= 1 && span.length >= 1, "{span:?}");
            assert!(behind <= line.trim_end_matches(['\r', '\n']).chars().count() + 1, "{span:?} in {line:?}");
        }
        let first_lines = error.others.iter().map(|other| other.lines.first().copied());
        assert!(first_lines.is_sorted(), "further errors are in source order");
        for other in &error.others {
            assert!(other.others.is_empty(), "further errors do not nest");
            self.holds_error(other);
        }
    }

    fn holds_file(&self, file: &Dockerfile) {
        assert!(!file.stages.is_empty());
        self.holds_warnings(&file.warnings);
        let mut last = 0;
        let mut in_order = |lines: LineRange| {
            self.holds_lines(lines);
            assert!(last < lines.start, "{lines:?} after line {last}");
            last = lines.end;
        };
        file.global_args.iter().for_each(|arg| in_order(arg.lines));
        for stage in &file.stages {
            in_order(stage.location);
            assert!(stage.name.as_deref().is_none_or(|name| !name.is_empty() && name == name.to_lowercase()));
            stage.instructions.iter().for_each(|instruction| in_order(instruction.lines));
        }
        let expander = Expander::new(file.directives.escape);
        for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
            self.holds_warnings(&instruction.warnings);
            assert!(instruction.original.starts_with(&instruction.keyword_as_written));
            assert!(instruction.keyword_as_written.eq_ignore_ascii_case(instruction.kind.keyword()));
            assert_eq!(instruction.original.trim(), instruction.original);
            evaluate(instruction, expander);
        }
    }
}

/// Does with an instruction what a planner does with it.
fn evaluate(instruction: &Instruction, expander: Expander) {
    let variables = vec![("x", "a b/c"), ("empty", ""), ("TARGETPLATFORM", "linux/amd64")];
    let expand = |word: &str| -> Result<String, ExpandError> {
        expander.process_word(word, &variables).map(|expanded| expanded.text)
    };
    match &instruction.kind {
        InstructionKind::Run(run) => evaluate_run(run, instruction.lines, &expand),
        InstructionKind::Copy(copy) => {
            assert!(!copy.sources.is_empty() || !copy.contents.is_empty());
            copy.sources.iter().chain([&copy.dest]).for_each(|word| drop(expand(word)));
        }
        InstructionKind::Add(add) => {
            assert!(!add.sources.is_empty() || !add.contents.is_empty());
            add.sources.iter().chain([&add.dest]).for_each(|word| drop(expand(word)));
        }
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            assert!(!pairs.is_empty() && pairs.iter().all(|(key, _)| !key.is_empty()));
            pairs.iter().for_each(|(key, value)| drop((expand(key), expand(value))));
        }
        InstructionKind::Arg(arg) => {
            assert!(!arg.args.is_empty() && arg.args.iter().all(|arg| !arg.name.is_empty()));
        }
        InstructionKind::Expose(words) => {
            let mut warnings = Vec::new();
            for word in words {
                let mut warn = |warning| warnings.push(warning);
                let Ok(spec) = port::parse_port(word, instruction.lines, &instruction.checks, &mut warn) else {
                    continue;
                };
                assert!(!spec.ports.is_empty());
            }
            assert!(warnings.iter().all(|warning| warning.lines == instruction.lines));
        }
        InstructionKind::StopSignal(text) => drop(signal::check(text)),
        InstructionKind::Volume(words) => assert!(words.iter().all(|word| !word.is_empty() && word.trim() == word)),
        InstructionKind::Shell(words) => assert!(!words.is_empty()),
        InstructionKind::Healthcheck(check) => {
            assert!(!check.test.is_empty() && check.retries >= 0);
            for ns in [check.interval_ns, check.timeout_ns, check.start_period_ns, check.start_interval_ns] {
                assert!(ns == 0 || ns >= 1_000_000, "{ns}");
            }
        }
        InstructionKind::Onbuild(trigger) => match parser::parse_onbuild_trigger(trigger) {
            Ok(inner) => assert!(!matches!(inner.kind, InstructionKind::Onbuild(_)), "{trigger}"),
            Err(error) => assert!(error.lines.is_empty() && error.span.is_none()),
        },
        InstructionKind::User(text) | InstructionKind::Workdir(text) | InstructionKind::Maintainer(text) => {
            drop(expand(text));
        }
        InstructionKind::Cmd(_) | InstructionKind::Entrypoint(_) => {}
    }
}

fn evaluate_run(run: &RunInstruction, lines: LineRange, expand: &dyn Fn(&str) -> Result<String, ExpandError>) {
    let n_lines_of = |heredoc: &Heredoc| heredoc.content.split_inclusive(|byte| *byte == b'\n').count() + 1;
    let n_heredoc_lines: usize = run.heredocs.iter().map(n_lines_of).sum();
    assert!(n_heredoc_lines <= (lines.end - lines.start) as usize, "heredocs lie behind the command line");
    for heredoc in &run.heredocs {
        assert!(heredoc.content.is_empty() || heredoc.content.ends_with(b"\n"));
        assert!(heredoc.body().len() <= heredoc.content.len());
    }
    run.script();
    assert_eq!(run.first_body_line().is_some(), !run.heredocs.is_empty());
    for raw in &run.mounts {
        assert_eq!(mount::check_syntax(raw), Ok(()), "mounts of a parsed file are well formed");
        if let Ok(spec) = mount::parse_mount(raw, &mut |value| expand(value)) {
            assert_eq!(spec.from, mount::from_of(raw));
        }
    }
}
