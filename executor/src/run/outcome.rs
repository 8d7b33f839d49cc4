//! How a command ended, in BuildKit's words. Spec: `spec/dockerfile.md` §8.10.

use oci::Platform;
use solver::plan::quote;
use solver::{OpError, RunOp};

use super::foreign::NoEmulator;
use crate::sandbox::{Exit, NotStarted, SandboxError};
use crate::view::passwd::AccountsError;

/// Success, or why not. `memory_bytes` is the limit of the build; `foreign` is known when the command is for another
/// machine.
pub(super) fn judge(
    op: &RunOp,
    exit: Result<Exit, SandboxError>,
    memory_bytes: Option<u64>,
    foreign: Option<&NoEmulator>,
) -> Result<(), OpError> {
    let exit = exit.map_err(|error| op_error(op, error))?;
    if exit.success() {
        return Ok(());
    }
    let reason = match exit.out_of_memory {
        true => "cannot allocate memory".to_owned(),
        false => format!("exit code: {}", exit.code),
    };
    let mut error = OpError::input(failed(op, &reason));
    error.exit_code = Some(exit.code);
    error.help.extend(match (exit.not_started, foreign) {
        (Some(NotStarted::WrongFormat), Some(foreign)) => no_emulator(foreign),
        (Some(reason), _) => advice(op, reason).into_iter().collect(),
        (None, _) if exit.out_of_memory => vec![out_of_memory(memory_bytes)],
        (None, _) => meaning(exit.code).map(str::to_owned).into_iter().collect(),
    });
    Err(error)
}

/// A command that was not run to its end.
pub(super) fn op_error(op: &RunOp, error: SandboxError) -> OpError {
    match &error {
        SandboxError::Cancelled => OpError::cancelled(),
        SandboxError::User(reason) => {
            let failed = OpError::input(failed(op, &error.to_string()));
            match reason {
                AccountsError::UnknownUser { name } => {
                    failed.help(format!("make `{name}` in an earlier step (`RUN adduser {name}`), or give a number"))
                }
                AccountsError::UnknownGroup { name } => {
                    failed.help(format!("make `{name}` in an earlier step (`RUN addgroup {name}`), or give a number"))
                }
                _ => failed,
            }
        }
        SandboxError::Directory { .. } => OpError::input(failed(op, &error.to_string())),
        SandboxError::SourceMissing { .. } => OpError::input(format!("failed to compute cache key: {error}")),
        SandboxError::NulByte { .. } | SandboxError::UnknownLimit { .. } => OpError::input(error.to_string()),
        SandboxError::NotInThisTier { .. } => {
            OpError::environment(error.to_string()).help("`rbuild doctor` says what this machine lacks for more")
        }
        SandboxError::NoCommands => OpError::environment(error.to_string())
            .help("COPY and ADD work without; `rbuild doctor` says what is missing for RUN"),
        SandboxError::Io { .. } | SandboxError::Setup { .. } | SandboxError::Mount { .. } | SandboxError::Copy(_) => {
            OpError::environment(format!("cannot run `{}`: {error}", op.args.join(" ")))
        }
        SandboxError::Node { .. } | SandboxError::OtherDevice { .. } | SandboxError::Hook { .. } => {
            OpError::environment(error.to_string())
        }
        SandboxError::HookMoment { .. } => {
            OpError::environment(error.to_string()).help("`--isolation=oci:crun` has a runtime do it")
        }
        SandboxError::Runtime { .. } => OpError::environment(format!("cannot run `{}`: {error}", op.args.join(" ")))
            .help("`--isolation=auto` runs it without an OCI runtime"),
        SandboxError::Lost => OpError::internal(error.to_string()),
    }
}

fn failed(op: &RunOp, reason: &str) -> String {
    format!("process {} did not complete successfully: {reason}", quote(&op.args.join(" ")))
}

/// What can be done about memory that ran out.
fn out_of_memory(limit_bytes: Option<u64>) -> String {
    match limit_bytes {
        Some(bytes) => {
            let limit = if bytes % (1 << 20) == 0 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") };
            format!(
                "the steps of this build may have {limit} together: give them more with --memory, or run fewer at once with --jobs"
            )
        }
        None => {
            "this machine, or the container that rbuild runs in, has no memory left: let the step do less at once, \
                 or run fewer steps at once with --jobs"
                .to_owned()
        }
    }
}

/// What exit codes mean by the custom of shells.
fn meaning(code: i32) -> Option<&'static str> {
    match code {
        126 => Some("exit code 126: a program was found that cannot be executed; has it an executable mode?"),
        127 => Some("exit code 127: a program was not found; is it installed in an earlier step, and in PATH?"),
        137 => Some("exit code 137: the process was killed, often because memory ran out"),
        _ => None,
    }
}

/// What can be done about a program that did not even start.
fn advice(op: &RunOp, reason: NotStarted) -> Option<String> {
    let program = op.args.first().map_or("", String::as_str);
    match reason {
        NotStarted::Missing if program.ends_with("sh") => Some(format!(
            "the root has no working `{program}`: use the exec form `RUN [\"program\", \"argument\"]`, or set `SHELL`"
        )),
        NotStarted::Missing => Some(format!("is `{program}` installed in an earlier step?")),
        NotStarted::Denied => {
            Some(format!("give `{program}` an executable mode, for instance with `COPY --chmod=755`"))
        }
        NotStarted::WrongFormat => Some(format!(
            "`{program}` is neither a program for {} nor a script with `#!`; is the image for another platform?",
            op.platform
        )),
        NotStarted::Other(_) => None,
    }
}

/// What can be done about a command that is for another machine.
fn no_emulator(foreign: &NoEmulator) -> Vec<String> {
    let (architecture, host) = (foreign.architecture, Platform::host().architecture);
    let Some(lacking) = &foreign.lacking else {
        return vec![format!("the program is for linux/{architecture}, and the emulator does not take it")];
    };
    let mut help =
        vec![format!("this is a linux/{host} machine, and the program is for linux/{architecture}: {lacking}")];
    help.extend(lacking.advice(architecture));
    help
}

#[cfg(test)]
mod tests {
    use super::super::tests::op;
    use super::*;
    use crate::emulation::Lacking;

    fn exit(code: i32) -> Exit {
        Exit { code, signal: None, out_of_memory: false, not_started: None, warnings: Vec::new() }
    }

    #[test]
    fn endings_have_the_usual_words() {
        let op = op(&["/bin/sh", "-c", "exit 3"]);
        assert_eq!(judge(&op, Ok(exit(0)), None, None), Ok(()));
        let error = judge(&op, Ok(exit(3)), None, None).unwrap_err();
        assert_eq!(error.message, "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3");
        assert_eq!(error.exit_code, Some(3));
        let error = judge(&op, Ok(Exit { out_of_memory: true, ..exit(137) }), Some(16 << 20), None).unwrap_err();
        assert_eq!(
            error.message,
            "process \"/bin/sh -c exit 3\" did not complete successfully: cannot allocate memory"
        );
        assert_eq!(error.exit_code, Some(137));
        assert!(error.help[0].contains("16 MiB") && error.help[0].contains("--memory"), "{:?}", error.help);
        let error = judge(&op, Err(SandboxError::Cancelled), None, None).unwrap_err();
        assert_eq!((error.tier, error.message.as_str()), (solver::Tier::Cancelled, "context canceled"));
    }

    #[test]
    fn a_command_of_several_lines_stays_on_one() {
        let error = judge(&op(&["/bin/sh", "-c", "true\nexit \"5\"\n"]), Ok(exit(5)), None, None).unwrap_err();
        let expected = r#"process "/bin/sh -c true\nexit \"5\"\n" did not complete successfully: exit code: 5"#;
        assert_eq!(error.message, expected);
    }

    #[test]
    fn a_program_for_another_machine_names_its_emulator() {
        let op = op(&["/bin/x"]);
        let lacking = Lacking::Program { qemu: "s390x", searched: vec!["/usr/bin".into()] };
        let foreign = NoEmulator { architecture: "s390x", lacking: Some(lacking) };
        let not_started = Exit { not_started: Some(NotStarted::WrongFormat), ..exit(1) };
        let error = judge(&op, Ok(not_started), None, Some(&foreign)).unwrap_err();
        assert!(error.help[0].ends_with(" for linux/s390x: no `qemu-s390x-static` or `qemu-s390x` in /usr/bin"));
        assert!(error.help[1].contains("qemu-user-static"), "{:?}", error.help);
    }
}
