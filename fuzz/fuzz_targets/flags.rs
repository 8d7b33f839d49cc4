//! The small grammars of a line: flags of instructions, `--mount` records, ports, durations, signals, `check` options.
//! Each line of the input goes to all of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parser::instruction::InstructionKind;
use parser::lint::CheckConfig;
use parser::{LineRange, directive, duration, go, mount, port, signal};

/// Instructions that take flags, with what stands around them.
const INSTRUCTIONS: [(&str, &str); 6] = [
    ("FROM", " x"),
    ("FROM x\nRUN", " true"),
    ("FROM x\nCOPY", " a /b"),
    ("FROM x\nADD", " a /b"),
    ("FROM x\nHEALTHCHECK", " CMD true"),
    ("FROM x\nONBUILD RUN", " true"),
];

/// Lines of one input that are looked at: each is worth a dozen small files.
const MAX_LINES: usize = 50;

fuzz_target!(|data: &[u8]| fuzz::run(data, check));

fn check(data: &[u8]) {
    let [text] = fuzz::parts(data);
    text.split('\n').take(MAX_LINES).for_each(check_line);
    let fields: Vec<&str> = text.split('\n').collect();
    quoted_fields_arrive_as_they_are(&fields);
}

fn check_line(line: &str) {
    flags_of_instructions(line);
    excludes_arrive_as_they_are(line);
    mounts(line);
    ports(line);
    if let Ok(ns) = duration::parse(line) {
        assert_eq!(duration::parse(&duration::format(ns)), Ok(ns));
    }
    if signal::check(line).is_ok() {
        assert_eq!(signal::check(&line.to_uppercase()), Ok(()));
    }
    if let Ok(number) = go::parse_int32(line) {
        assert_eq!(go::parse_int32(&number.to_string()), Ok(number));
    }
    let quoted = go::quote(line);
    assert!(quoted.len() >= 2 && quoted.starts_with('"') && quoted.ends_with('"') && !quoted.contains('\n'));
    drop(CheckConfig::parse(line));
    directive::is_builtin_frontend(line);
}

fn flags_of_instructions(line: &str) {
    for escape in ["\\", "`"] {
        for (before, behind) in INSTRUCTIONS {
            let text = format!("# escape={escape}\n{before} {line}{behind}\n");
            let n_lines = u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX);
            match parser::parse(text.as_bytes()) {
                Ok(file) => {
                    let kinds = file.stages.iter().flat_map(|stage| &stage.instructions).map(|found| &found.kind);
                    kinds.for_each(texts_of_flags_are_not_empty);
                }
                Err(error) => error.lines.iter().for_each(|lines| fuzz::assert_in_file(*lines, n_lines)),
            }
        }
    }
}

fn texts_of_flags_are_not_empty(kind: &InstructionKind) {
    let texts = match kind {
        InstructionKind::Copy(copy) => [&copy.from, &copy.chown, &copy.chmod],
        InstructionKind::Add(add) => [&add.checksum, &add.chown, &add.chmod],
        _ => return,
    };
    assert!(texts.into_iter().flatten().all(|text| !text.is_empty()));
}

/// The value of a flag, every character escaped, is what stands behind the parser.
fn excludes_arrive_as_they_are(line: &str) {
    // The ends of lines, and of the file's longest line, are no matter of flags.
    if line.contains('\r') || line.len() > 10_000 {
        return;
    }
    let escaped: String = line.chars().flat_map(|c| ['\\', c]).collect();
    let text = format!("FROM x\nCOPY --exclude={escaped} --link a /b\n");
    let file = parser::parse(text.as_bytes()).expect("an escaped value is well formed");
    let InstructionKind::Copy(copy) = &file.stages[0].instructions[0].kind else { panic!("{text:?}") };
    assert_eq!((copy.excludes.as_slice(), copy.link), ([line.to_owned()].as_slice(), true));
    assert_eq!((copy.sources.as_slice(), copy.dest.as_str()), (["a".to_owned()].as_slice(), "/b"));
}

fn mounts(raw: &str) {
    let syntax = mount::check_syntax(raw);
    let mut n_values = 0;
    let spec = mount::parse_mount(raw, &mut |value| {
        n_values += 1;
        Ok(value.to_owned())
    });
    assert!(n_values <= raw.matches('=').count());
    match (syntax, spec) {
        (Ok(()), Ok(spec)) => {
            assert_eq!(mount::from_of(raw), spec.from);
            assert!([&spec.source, &spec.target, &spec.id].into_iter().flatten().all(|text| !text.is_empty()));
        }
        (Err(syntax), Err(error)) => assert_eq!(syntax, error),
        (Err(syntax), Ok(_)) => panic!("{raw:?} is accepted despite of {syntax}"),
        (Ok(()), Err(error)) => assert!(!error.to_string().is_empty()),
    }
}

/// Fields in quotes, with quotes doubled: CSV gives them back.
fn quoted_fields_arrive_as_they_are(values: &[&str]) {
    let fields: Vec<String> = values.iter().map(|value| format!("\"id={}\"", value.replace('"', "\"\""))).collect();
    let mut seen = Vec::new();
    let spec = mount::parse_mount(&fields.join(","), &mut |value| {
        seen.push(value.to_owned());
        Ok(value.to_owned())
    });
    assert_eq!(seen, values);
    let last = values.last().filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
    assert_eq!(spec.map(|spec| spec.id), Ok(last));
}

fn ports(word: &str) {
    let mut warnings = Vec::new();
    let mut warn = |warning| warnings.push(warning);
    if let Ok(spec) = port::parse_port(word, LineRange::line(1), &CheckConfig::default(), &mut warn) {
        assert_eq!(spec.text, word);
        let (first, last) = (*spec.ports.start(), *spec.ports.end());
        assert!(first <= last);
        assert_eq!(spec.keys().next(), Some(format!("{first}/{}", spec.protocol)));
        // What a port is stored as is a port itself, and nothing about it is odd.
        let mut none = |warning| panic!("{warning:?}");
        let key = format!("{last}/{}", spec.protocol);
        let again = port::parse_port(&key, LineRange::line(1), &CheckConfig::default(), &mut none);
        assert_eq!(again.map(|spec| (spec.ports, spec.protocol)), Ok((last..=last, spec.protocol.clone())));
    }
    assert!(warnings.len() <= 2);
}
