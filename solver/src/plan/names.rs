//! Names of steps as progress shows them. Spec: `spec/dockerfile.md` §4.8, `spec/cli.md` §3.7.

use oci::Platform;

use super::scope::Env;

/// Counts the steps of a stage and names them.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbering {
    /// Empty for the only stage of a file.
    stage: String,
    total: usize,
    used: usize,
}

impl Numbering {
    pub(super) fn new(stage: &str, total: usize) -> Self {
        Self { stage: stage.to_owned(), total, used: 0 }
    }

    /// `[stage k/N] ` for the next step; `platforms` is what multi-platform builds put before the stage.
    pub(super) fn next(&mut self, platforms: &str) -> String {
        self.used += 1;
        let separated = |text: &str| if text.is_empty() { String::new() } else { format!("{text} ") };
        let width = self.total.to_string().len();
        format!("[{}{}{:>width$}/{}] ", separated(platforms), separated(&self.stage), self.used, self.total)
    }
}

/// `linux/amd64`, or `linux/amd64->arm64` where the stage's variables say that it builds for another platform.
pub(super) fn platforms(own: &Platform, env: &Env, build: &Platform) -> String {
    let target = match env.get("TARGETPLATFORM").and_then(|text| Platform::parse(text, build).ok()) {
        Some(target) => target,
        None => {
            let part = |key: &str| env.get(key).filter(|value| !value.is_empty());
            let keys = ["TARGETOS", "TARGETARCH", "TARGETVARIANT"];
            if keys.iter().all(|key| env.get(key).is_none()) {
                return own.to_string();
            }
            let os = part("TARGETOS").unwrap_or(&own.os);
            let architecture = part("TARGETARCH").unwrap_or(&own.architecture);
            Platform::new(os, architecture, part("TARGETVARIANT").or(own.variant.as_deref()))
        }
    };
    if target.os != own.os {
        format!("{own}->{target}")
    } else if target.architecture != own.architecture {
        let variant = target.variant.as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{own}->{}{variant}", target.architecture)
    } else {
        own.to_string()
    }
}

/// The text with its first word in upper case.
pub(super) fn upper_case_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// What stands for a heredoc in a name: its first line, with dots when there are more.
pub(super) fn summary(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or_default().to_owned();
    if lines.next().is_some() { first + "..." } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_wide_as_the_total() {
        let mut numbering = Numbering::new("", 10);
        assert_eq!(numbering.next(""), "[ 1/10] ");
        let mut numbering = Numbering::new("build", 9);
        assert_eq!(numbering.next(""), "[build 1/9] ");
        assert_eq!(numbering.next("linux/amd64"), "[linux/amd64 build 2/9] ");
    }

    #[test]
    fn cross_builds_show_both_platforms() {
        let build = Platform::new("linux", "amd64", None);
        let shown = |pairs: &[(&str, &str)]| {
            let mut env = Env::default();
            for (key, value) in pairs {
                env.set(key, value);
            }
            platforms(&build, &env, &build)
        };
        assert_eq!(shown(&[]), "linux/amd64");
        assert_eq!(shown(&[("TARGETARCH", "amd64")]), "linux/amd64");
        assert_eq!(shown(&[("TARGETARCH", "arm64"), ("TARGETVARIANT", "")]), "linux/amd64->arm64");
        assert_eq!(shown(&[("TARGETPLATFORM", "linux/arm/v7")]), "linux/amd64->arm/v7");
        assert_eq!(shown(&[("TARGETOS", "windows")]), "linux/amd64->windows/amd64");
    }

    #[test]
    fn heredocs_are_summarised_by_their_first_line() {
        assert_eq!(summary(b"\n echo a\necho b\n"), "echo a...");
        assert_eq!(summary(b"echo a\r\n"), "echo a");
        assert_eq!(summary(b""), "");
    }

    #[test]
    fn keywords_become_upper_case() {
        assert_eq!(upper_case_keyword("run echo a"), "RUN echo a");
        assert_eq!(upper_case_keyword("cmd"), "CMD");
    }
}
