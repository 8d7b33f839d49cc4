//! STOPSIGNAL after expansion. Spec: §2.12.

use crate::suggest;

/// A text that is no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", wording(.0))]
pub struct SignalError(pub String);

/// Nothing follows the colon when the signal is empty.
fn wording(text: &str) -> String {
    format!("invalid signal: {text}").trim_end().to_owned()
}

/// Linux' names, without `SIG`; the real-time ones are counted from their ends.
const NAMES: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Checks a signal: an integer other than zero, or a name, with or without `SIG`, in any letter case. The text is to be
/// stored as it is.
///
/// # Errors
///
/// It is neither.
pub fn check(text: &str) -> Result<(), SignalError> {
    let valid = match text.parse::<i64>() {
        Ok(number) => number != 0,
        Err(_) => is_name(text),
    };
    if valid { Ok(()) } else { Err(SignalError(text.to_owned())) }
}

/// The name, with `SIG`, that may have been meant.
pub fn nearest(text: &str) -> Option<String> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    suggest::nearest(name, NAMES).map(|name| format!("SIG{name}"))
}

fn is_name(text: &str) -> bool {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // RTMIN+1 to RTMIN+15 and RTMAX-14 to RTMAX-1, written without leading zeros.
    let counted = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).is_some_and(|count| {
            !count.starts_with(['0', '+']) && count.parse().is_ok_and(|count: u32| (1..=most).contains(&count))
        })
    };
    NAMES.contains(&name) || counted("RTMIN+", 15) || counted("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for text in ["9", "99", "-1", "term", "SIGTERM", "sigkill", "SigInt", "SIGRTMIN+3", "RTMAX-2", "rtmin"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in ["0", "SIGNOPE", "SIG", "SIGSIGTERM", "RTMIN+16", "RTMIN+0", "RTMIN+03", "RTMAX-15", "1.5"] {
            assert_eq!(check(text).unwrap_err().to_string(), format!("invalid signal: {text}"));
        }
        assert_eq!(check("").unwrap_err().to_string(), "invalid signal:");
    }
}
