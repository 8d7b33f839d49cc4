//! Which rules are wanted: the `check` directive, its build argument, and comments. Spec: §7.2.

use std::collections::BTreeSet;

use super::{RULES, Rule, Warning};
use crate::go;

/// `skip=A,B;error=true;experimental=all`. Small, whatever the text: every finding has a copy of its instruction's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckConfig {
    /// Rules that are off; unknown names do nothing.
    pub skip: BTreeSet<Rule>,
    /// `skip=all`
    pub skip_all: bool,
    /// Experimental rules that are on.
    pub experimental: BTreeSet<Rule>,
    /// `experimental=all`
    pub experimental_all: bool,
    /// Whether any finding fails the build. Has no effect in a comment.
    pub error: bool,
}

/// A `check` option that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckConfigError {
    /// Neither `skip`, `error` nor `experimental`.
    #[error("failed to parse check options: invalid check option {}", go::quote(key))]
    InvalidOption {
        /// The text before `=`.
        key: String,
    },
    /// `error=` with something that is no boolean.
    #[error(
        "failed to parse check options: failed to parse check option {}: {}",
        go::quote(part),
        go::parse_bool_error(value)
    )]
    InvalidError {
        /// The whole part.
        part: String,
        /// The text after `=`.
        value: String,
    },
}

impl CheckConfig {
    /// Parses the value of a `check` directive or of `BUILDKIT_DOCKERFILE_CHECK`. Empty is the default.
    ///
    /// # Errors
    ///
    /// An option that is not known, or `error=` with something that is no boolean.
    pub fn parse(value: &str) -> Result<Self, CheckConfigError> {
        let mut config = Self::default();
        if value.trim().is_empty() {
            return Ok(config);
        }
        for part in value.trim().splitn(3, ';') {
            let (key, list) = part.split_once('=').unwrap_or((part, ""));
            match key.trim() {
                "skip" => rule_list(list, &mut config.skip_all, &mut config.skip),
                "experimental" => rule_list(list, &mut config.experimental_all, &mut config.experimental),
                "error" => {
                    config.error = go::parse_bool(list.trim()).ok_or_else(|| CheckConfigError::InvalidError {
                        part: part.to_owned(),
                        value: list.to_owned(),
                    })?;
                }
                key => return Err(CheckConfigError::InvalidOption { key: key.to_owned() }),
            }
        }
        Ok(config)
    }

    /// What the comments of an instruction say: the first one that is a `check` counts, and is ignored when malformed.
    pub fn from_comments(comments: &[String]) -> Self {
        let value = comments.iter().find_map(|comment| {
            let (name, value) = crate::directive::name_and_value(comment)?;
            name.eq_ignore_ascii_case("check").then(|| value.split(' ').next().unwrap_or_default())
        });
        value.and_then(|value| Self::parse(value).ok()).unwrap_or_default()
    }

    /// Whether a finding is wanted, given that `self` holds for the whole file.
    ///
    /// Experimental rules are reported when they are asked for, and no `skip` takes that back.
    pub fn reports(&self, warning: &Warning) -> bool {
        if warning.rule.info().experimental {
            self.turns_on(warning.rule) || warning.local.turns_on(warning.rule)
        } else {
            !self.skips(warning.rule) && !warning.local.skips(warning.rule)
        }
    }

    fn skips(&self, rule: Rule) -> bool {
        self.skip_all || self.skip.contains(&rule)
    }

    fn turns_on(&self, rule: Rule) -> bool {
        self.experimental_all || self.experimental.contains(&rule)
    }
}

fn rule_list(text: &str, all: &mut bool, rules: &mut BTreeSet<Rule>) {
    if text.trim() == "all" {
        *all = true;
        return;
    }
    let named = |name: &str| RULES.iter().find(|info| info.id == name.trim()).map(|info| info.rule);
    rules.extend(text.split(',').filter_map(named));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LineRange;

    #[test]
    fn options() {
        let text = "skip=StageNameCasing, B,JSONArgsRecommended;error=true;experimental=all";
        let config = CheckConfig::parse(text).unwrap();
        assert_eq!(config.skip, BTreeSet::from([Rule::StageNameCasing, Rule::JsonArgsRecommended]));
        assert!(config.error && config.experimental_all && !config.skip_all);
        assert_eq!(CheckConfig::parse("").unwrap(), CheckConfig::default());
    }

    #[test]
    fn unknown_rules_take_no_memory() {
        let config = CheckConfig::parse(&format!("skip=MaintainerDeprecated{}", ",X".repeat(10_000))).unwrap();
        assert_eq!(config.skip, BTreeSet::from([Rule::MaintainerDeprecated]));
    }

    #[test]
    fn faults_are_worded_as_in_buildkit() {
        let table = [
            ("skipp=all", r#"failed to parse check options: invalid check option "skipp""#),
            ("nonsense", r#"failed to parse check options: invalid check option "nonsense""#),
            (
                "error=maybe",
                r#"failed to parse check options: failed to parse check option "error=maybe": strconv.ParseBool: parsing "maybe": invalid syntax"#,
            ),
        ];
        for (text, want) in table {
            assert_eq!(CheckConfig::parse(text).unwrap_err().to_string(), want, "{text}");
        }
    }

    #[test]
    fn skip_and_experimental() {
        let none = CheckConfig::default();
        let normal = |local: &CheckConfig| Warning::maintainer_deprecated(LineRange::line(1), local);
        let experimental =
            |local: &CheckConfig| Warning::invalid_definition_description("ARG", "x", LineRange::line(1), local);
        let table: &[(&str, bool, bool)] = &[
            ("", true, false),
            ("skip=all", false, false),
            ("skip=MaintainerDeprecated", false, false),
            ("skip=maintainerdeprecated", true, false),
            ("experimental=all", true, true),
            ("skip=all;experimental=InvalidDefinitionDescription", false, true),
            ("skip=InvalidDefinitionDescription;experimental=all", true, true),
        ];
        for &(text, want_normal, want_experimental) in table {
            let config = CheckConfig::parse(text).unwrap();
            assert_eq!(config.reports(&normal(&none)), want_normal, "{text}");
            assert_eq!(config.reports(&experimental(&none)), want_experimental, "{text}");
            assert_eq!(none.reports(&normal(&config)), want_normal, "{text} as a comment");
            assert_eq!(none.reports(&experimental(&config)), want_experimental, "{text} as a comment");
        }
    }

    #[test]
    fn comments() {
        let comments = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let skips = |lines: &[&str]| CheckConfig::from_comments(&comments(lines)).skip_all;
        assert!(skips(&["a remark", "check=skip=all", "check=skip=none"]));
        assert!(skips(&["Check = skip=all because of this"]));
        assert!(!skips(&["check=nonsense", "check=skip=all"]), "only the first one counts");
        assert!(!skips(&["see check=skip=all"]));
    }
}
