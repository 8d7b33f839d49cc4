//! `--call` and `--check`: what is asked of a Dockerfile in place of a build (`spec/cli.md` §1.1, `spec/dockerfile.md` §7).

use crate::args::boolean;
use crate::csv;
use crate::failure::Failure;
use crate::mistakes;

/// How `--call` is written.
const FORM: &str = "write --call=METHOD[,format=text|json|sarif][,ignorestatus=true]; METHOD is build, check, outline, \
                    targets or subrequests.describe";

/// A question about a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) format: Format,
    /// Findings do not make the program fail.
    pub(crate) ignore_status: bool,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// What should be changed.
    Check,
    /// What the target can be given and what it asks for.
    Outline,
    /// What can be built.
    Targets,
    /// What can be asked.
    Describe,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// As `docker buildx` writes it.
    Json,
    /// SARIF 2.1.0, for code scanning; of findings only.
    Sarif,
}

impl Call {
    /// `--call TEXT` with `--check`; `None` is an ordinary build.
    pub(crate) fn parse(text: &str, check: bool) -> Result<Option<Self>, Failure> {
        let wrong = |message: String| Failure::usage(format!("--call {text}: {message}")).help(FORM);
        let (mut name, mut format, mut ignore_status) = (None, Format::Text, false);
        for field in csv::fields(text).map_err(|error| wrong(error.0))? {
            match csv::pair(&field) {
                Some((key, value)) if key == "format" => format = Format::parse(&value).map_err(wrong)?,
                Some((key, value)) if key == "ignorestatus" => {
                    ignore_status =
                        boolean(&value).map_err(|reason| wrong(format!("ignorestatus={value}: {reason}")))?;
                }
                Some((key, _)) => return Err(wrong(format!("there is no option `{key}`"))),
                None if name.is_some() => return Err(wrong("there are two methods".to_owned())),
                None => name = Some(field),
            }
        }
        let name = name.filter(|name| !name.is_empty());
        let method = name.as_deref().map_or(Ok(None), Method::parse).map_err(wrong)?;
        let method = match (method, check) {
            (None | Some(Method::Check), true) => Some(Method::Check),
            (Some(_), true) => return Err(wrong("--check asks for something else: give one of the two".to_owned())),
            (method, false) => method,
        };
        if format == Format::Sarif && method != Some(Method::Check) {
            return Err(wrong("only findings of `check` can be written as SARIF".to_owned()));
        }
        Ok(method.map(|method| Self { method, format, ignore_status }))
    }
}

impl Method {
    /// `None` for `build`.
    fn parse(name: &str) -> Result<Option<Self>, String> {
        const NAMES: [&str; 5] = ["build", "check", "outline", "targets", "subrequests.describe"];
        match name {
            "build" => Ok(None),
            "check" | "lint" => Ok(Some(Self::Check)),
            "outline" => Ok(Some(Self::Outline)),
            "targets" => Ok(Some(Self::Targets)),
            "subrequests.describe" | "describe" => Ok(Some(Self::Describe)),
            other => Err(match mistakes::nearest(other, NAMES) {
                Some(nearest) => format!("there is no method `{other}`, did you mean `{nearest}`?"),
                None => format!("there is no method `{other}`"),
            }),
        }
    }
}

impl Format {
    fn parse(name: &str) -> Result<Self, String> {
        match name {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "sarif" => Ok(Self::Sarif),
            other => Err(format!("there is no format `{other}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_formats_and_the_short_flag() {
        let call = |method, format, ignore_status| Some(Call { method, format, ignore_status });
        let table = [
            ("", false, None),
            ("build", false, None),
            ("", true, call(Method::Check, Format::Text, false)),
            ("build", true, call(Method::Check, Format::Text, false)),
            ("check", false, call(Method::Check, Format::Text, false)),
            ("lint,format=json", true, call(Method::Check, Format::Json, false)),
            ("format=sarif", true, call(Method::Check, Format::Sarif, false)),
            ("check,ignorestatus=1", false, call(Method::Check, Format::Text, true)),
            ("format=json,outline", false, call(Method::Outline, Format::Json, false)),
            ("targets", false, call(Method::Targets, Format::Text, false)),
            ("describe", false, call(Method::Describe, Format::Text, false)),
            ("subrequests.describe,format=json", false, call(Method::Describe, Format::Json, false)),
        ];
        for (text, check, want) in table {
            assert_eq!(Call::parse(text, check).expect(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let table = [
            ("chekc", false, "--call chekc: there is no method `chekc`, did you mean `check`?"),
            ("check,format=xml", false, "--call check,format=xml: there is no format `xml`"),
            ("check,ignorestatus=x", false, "--call check,ignorestatus=x: ignorestatus=x: expected true or false"),
            ("check,a=b", false, "--call check,a=b: there is no option `a`"),
            ("check,outline", false, "--call check,outline: there are two methods"),
            ("outline", true, "--call outline: --check asks for something else: give one of the two"),
            (
                "outline,format=sarif",
                false,
                "--call outline,format=sarif: only findings of `check` can be written as SARIF",
            ),
        ];
        for (text, check, want) in table {
            match Call::parse(text, check) {
                Err(Failure::Usage { message, help }) => assert_eq!((message.as_str(), help.len()), (want, 1)),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
