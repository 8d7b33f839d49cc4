//! The rules as a table, and the wording of what they find. Spec: §7.1.

use super::{CheckConfig, Warning};
use crate::error::LineRange;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// `AS Name`
    StageNameCasing,
    /// `FROM x as y`
    FromAsCasing,
    /// A blank line within a continued instruction.
    NoEmptyContinuation,
    /// `copy` among `RUN`s.
    ConsistentInstructionCasing,
    /// Two stages of one name.
    DuplicateStageName,
    /// A stage named `scratch` or `context`.
    ReservedStageName,
    /// Plain form CMD or ENTRYPOINT.
    JsonArgsRecommended,
    /// MAINTAINER.
    MaintainerDeprecated,
    /// FROM uses an ARG that is not declared.
    UndefinedArgInFrom,
    /// The first WORKDIR is relative.
    WorkdirRelativePath,
    /// A variable that nobody defines.
    UndefinedVar,
    /// A second CMD, ENTRYPOINT or HEALTHCHECK.
    MultipleInstructionsDisallowed,
    /// `ENV key value`
    LegacyKeyValueFormat,
    /// The image is for another platform.
    InvalidBaseImagePlatform,
    /// `--platform=$TARGETPLATFORM`
    RedundantTargetPlatform,
    /// A key that looks like a secret.
    SecretsUsedInArgOrEnv,
    /// A FROM that only works with build arguments.
    InvalidDefaultArgInFrom,
    /// `--platform=linux/amd64`
    FromPlatformFlagConstDisallowed,
    /// COPY of an ignored file.
    CopyIgnoredFile,
    /// A comment above ARG or FROM that is not a description.
    InvalidDefinitionDescription,
    /// `EXPOSE 80/TCP`
    ExposeProtoCasing,
    /// `EXPOSE 127.0.0.1:80:80`
    ExposeInvalidFormat,
}

/// What is fixed about a rule.
#[derive(Clone, Copy, Debug)]
pub struct RuleInfo {
    /// The rule.
    pub rule: Rule,
    /// Its name in directives and reports.
    pub id: &'static str,
    /// Its page; empty when it has none.
    pub url: &'static str,
    /// One sentence for machines and tables.
    pub description: &'static str,
    /// Whether it is off unless asked for.
    pub experimental: bool,
}

macro_rules! rule_table {
    ($($rule:ident $id:literal $page:literal $experimental:literal $description:literal;)*) => {
        /// All rules, in the order of [`Rule`].
        pub const RULES: &[RuleInfo] = &[$(RuleInfo {
            rule: Rule::$rule,
            id: $id,
            url: $page,
            description: $description,
            experimental: $experimental,
        }),*];
    };
}

rule_table! {
    StageNameCasing "StageNameCasing"
        "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/" false
        "Stage names should be lowercase";
    FromAsCasing "FromAsCasing"
        "https://docs.docker.com/go/dockerfile/rule/from-as-casing/" false
        "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation "NoEmptyContinuation"
        "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/" false
        "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing "ConsistentInstructionCasing"
        "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/" false
        "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName "DuplicateStageName"
        "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/" false
        "Stage names should be unique";
    ReservedStageName "ReservedStageName"
        "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/" false
        "Reserved words should not be used as stage names";
    JsonArgsRecommended "JSONArgsRecommended"
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/" false
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated "MaintainerDeprecated"
        "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/" false
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom "UndefinedArgInFrom"
        "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/" false
        "FROM command must use declared ARGs";
    WorkdirRelativePath "WorkdirRelativePath"
        "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/" false
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar "UndefinedVar"
        "https://docs.docker.com/go/dockerfile/rule/undefined-var/" false
        "Variables should be defined before their use";
    MultipleInstructionsDisallowed "MultipleInstructionsDisallowed"
        "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/" false
        "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat "LegacyKeyValueFormat"
        "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/" false
        "Legacy key/value format with whitespace separator should not be used";
    InvalidBaseImagePlatform "InvalidBaseImagePlatform"
        "" false
        "Base image platform does not match expected target platform";
    RedundantTargetPlatform "RedundantTargetPlatform"
        "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/" false
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv "SecretsUsedInArgOrEnv"
        "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/" false
        "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom "InvalidDefaultArgInFrom"
        "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/" false
        "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed "FromPlatformFlagConstDisallowed"
        "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/" false
        "FROM --platform flag should not use a constant value";
    CopyIgnoredFile "CopyIgnoredFile"
        "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/" false
        "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription "InvalidDefinitionDescription"
        "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/" true
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing "ExposeProtoCasing"
        "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/" false
        "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat "ExposeInvalidFormat"
        "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/" false
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}

// `Rule::info` indexes the table by discriminant.
const _: () = {
    let mut index = 0;
    while index < RULES.len() {
        assert!(RULES[index].rule as usize == index);
        index += 1;
    }
};

impl Rule {
    /// What is fixed about it.
    pub fn info(self) -> &'static RuleInfo {
        &RULES[self as usize]
    }

    /// Its name in directives and reports.
    pub fn id(self) -> &'static str {
        self.info().id
    }

    fn warn(self, message: String, lines: LineRange, local: &CheckConfig) -> Warning {
        Warning { rule: self, message, lines, local: local.clone() }
    }
}

/// `text (did you mean X?)`
fn with_suggestion(text: String, nearest: Option<&str>, sigil: &str) -> String {
    match nearest {
        Some(name) => format!("{text} (did you mean {sigil}{name}?)"),
        None => text,
    }
}

/// One constructor per rule. `lines` is where it is reported, `local` the [`CheckConfig`] of the instruction's comments.
impl Warning {
    /// `name` as written.
    pub fn stage_name_casing(name: &str, lines: LineRange, local: &CheckConfig) -> Self {
        Rule::StageNameCasing.warn(format!("Stage name '{name}' should be lowercase"), lines, local)
    }

    /// Both keywords as written.
    pub fn from_as_casing(from: &str, as_: &str, lines: LineRange, local: &CheckConfig) -> Self {
        Rule::FromAsCasing.warn(format!("'{as_}' and '{from}' keywords' casing do not match"), lines, local)
    }

    /// `lines` is the last line of the instruction.
    pub fn no_empty_continuation(lines: LineRange, local: &CheckConfig) -> Self {
        Rule::NoEmptyContinuation.warn("Empty continuation line".to_owned(), lines, local)
    }

    /// `majority` is `uppercase` or `lowercase`.
    pub fn consistent_instruction_casing(keyword: &str, majority: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Command '{keyword}' should match the case of the command majority ({majority})");
        Rule::ConsistentInstructionCasing.warn(message, lines, local)
    }

    /// `name` lower-cased.
    pub fn duplicate_stage_name(name: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Duplicate stage name \"{name}\", stage names should be unique");
        Rule::DuplicateStageName.warn(message, lines, local)
    }

    /// `name` lower-cased.
    pub fn reserved_stage_name(name: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Stage name should not use the same name as reserved stage \"{name}\"");
        Rule::ReservedStageName.warn(message, lines, local)
    }

    /// `keyword` is `CMD` or `ENTRYPOINT`.
    pub fn json_args_recommended(keyword: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message =
            format!("JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals");
        Rule::JsonArgsRecommended.warn(message, lines, local)
    }

    /// For each MAINTAINER.
    pub fn maintainer_deprecated(lines: LineRange, local: &CheckConfig) -> Self {
        let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
        Rule::MaintainerDeprecated.warn(message, lines, local)
    }

    /// `nearest` is a declared name to suggest.
    pub fn undefined_arg_in_from(name: &str, nearest: Option<&str>, lines: LineRange, local: &CheckConfig) -> Self {
        let message = with_suggestion(format!("FROM argument '{name}' is not declared"), nearest, "");
        Rule::UndefinedArgInFrom.warn(message, lines, local)
    }

    /// `path` as written.
    pub fn workdir_relative_path(path: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Relative workdir \"{path}\" can have unexpected results if the base image changes");
        Rule::WorkdirRelativePath.warn(message, lines, local)
    }

    /// `nearest` is a defined name to suggest.
    pub fn undefined_var(name: &str, nearest: Option<&str>, lines: LineRange, local: &CheckConfig) -> Self {
        let message = with_suggestion(format!("Usage of undefined variable '${name}'"), nearest, "$");
        Rule::UndefinedVar.warn(message, lines, local)
    }

    /// `lines` is the earlier instruction; `keyword` in upper case.
    pub fn multiple_instructions(keyword: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        );
        Rule::MultipleInstructionsDisallowed.warn(message, lines, local)
    }

    /// `keyword` is `ENV` or `LABEL`.
    pub fn legacy_key_value_format(keyword: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message =
            format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
        Rule::LegacyKeyValueFormat.warn(message, lines, local)
    }

    /// `image` as named, platforms as `os/arch[/variant]`.
    pub fn invalid_base_image_platform(
        image: &str,
        got: &str,
        expected: &str,
        lines: LineRange,
        local: &CheckConfig,
    ) -> Self {
        let message =
            format!("Base image {image} was pulled with platform \"{got}\", expected \"{expected}\" for current build");
        Rule::InvalidBaseImagePlatform.warn(message, lines, local)
    }

    /// `variable` as written.
    pub fn redundant_target_platform(variable: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message =
            format!("Setting platform to predefined {variable} in FROM is redundant as this is the default behavior");
        Rule::RedundantTargetPlatform.warn(message, lines, local)
    }

    /// `keyword` is `ARG` or `ENV`; see [`super::looks_like_secret`].
    pub fn secrets_used(keyword: &str, key: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} \"{key}\")");
        Rule::SecretsUsedInArgOrEnv.warn(message, lines, local)
    }

    /// `base` is the text of FROM as written.
    pub fn invalid_default_arg_in_from(base: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Default value for ARG {base} results in empty or invalid base image name");
        Rule::InvalidDefaultArgInFrom.warn(message, lines, local)
    }

    /// `platform` as written.
    pub fn from_platform_const(platform: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("FROM --platform flag should not use constant value \"{platform}\"");
        Rule::FromPlatformFlagConstDisallowed.warn(message, lines, local)
    }

    /// `verb` is `Copy` or `Add`.
    pub fn copy_ignored_file(verb: &str, file: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Attempting to {verb} file \"{file}\" that is excluded by .dockerignore");
        Rule::CopyIgnoredFile.warn(message, lines, local)
    }

    /// `keyword` is `FROM` or `ARG`; `name` the stage, the ARG, or `<arg_key>` when there are several.
    pub fn invalid_definition_description(keyword: &str, name: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
        Rule::InvalidDefinitionDescription.warn(message, lines, local)
    }

    /// `port` as written, after expansion.
    pub fn expose_proto_casing(port: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        Rule::ExposeProtoCasing.warn(message, lines, local)
    }

    /// `port` as written, after expansion.
    pub fn expose_invalid_format(port: &str, lines: LineRange, local: &CheckConfig) -> Self {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
        Rule::ExposeInvalidFormat.warn(message, lines, local)
    }
}
