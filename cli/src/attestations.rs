//! `--attest`, `--provenance` and `--sbom` (`spec/cli.md` §1.7). Attestations are not made yet: whoever asks for one is told
//! so, and whoever asks for none has what he wants.

use std::collections::BTreeMap;

use crate::args::{InactiveArgs, boolean};
use crate::csv;
use crate::failure::Failure;

/// What can be attested.
const KINDS: [&str; 2] = ["provenance", "sbom"];

/// Checks the flags. The last one about a kind wins; `--provenance` and `--sbom` come after `--attest`.
///
/// # Errors
/// One that is malformed, or asks for an attestation.
pub(crate) fn check(args: &InactiveArgs) -> Result<(), Failure> {
    let mut wanted: BTreeMap<&str, (String, bool)> = BTreeMap::new();
    for text in &args.attest {
        let (kind, is_wanted) = attest(text)?;
        wanted.insert(kind, (format!("--attest {text}"), is_wanted));
    }
    for (kind, value) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        if let Some(text) = value {
            wanted.insert(kind, (format!("--{kind}={text}"), flag(kind, text)?));
        }
    }
    match wanted.into_iter().find(|(_, (_, is_wanted))| *is_wanted) {
        None => Ok(()),
        Some((kind, (flag, _))) => Err(Failure::usage(format!("{flag}: attestations are not made yet"))
            .help(format!("leave it out, or say --{kind}=false"))),
    }
}

/// `type=KIND[,disabled=true][,K=V]`.
fn attest(text: &str) -> Result<(&'static str, bool), Failure> {
    let fault = |why: String| Failure::usage(format!("invalid value for --attest `{text}`: {why}"));
    let mut kind = None;
    let mut is_wanted = true;
    for field in csv::fields(text).map_err(|error| fault(error.0))? {
        let (key, value) = field.split_once('=').ok_or_else(|| fault(format!("`{field}` is no `key=value`")))?;
        match key.to_lowercase().as_str() {
            "type" => {
                let known = KINDS.into_iter().find(|known| *known == value);
                kind = Some(known.ok_or_else(|| {
                    fault(format!("there are no attestations of type `{value}`: types are {}", KINDS.join(" and ")))
                })?);
            }
            "disabled" => is_wanted = !boolean(value).map_err(fault)?,
            _ => {}
        }
    }
    kind.map(|kind| (kind, is_wanted)).ok_or_else(|| fault("the type is missing".to_owned()))
}

/// A boolean, or what `--attest` has behind the type.
fn flag(kind: &str, text: &str) -> Result<bool, Failure> {
    match boolean(text) {
        Ok(is_wanted) => Ok(is_wanted),
        Err(_) if text.contains('=') => attest(&format!("type={kind},{text}")).map(|(_, is_wanted)| is_wanted),
        Err(_) => {
            Err(Failure::usage(format!("invalid value for --{kind} `{text}`: expected true, false, or `key=value`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(attest: &[&str], provenance: Option<&str>, sbom: Option<&str>) -> String {
        let text = |value: Option<&str>| value.map(str::to_owned);
        let attest = attest.iter().map(|text| (*text).to_owned()).collect();
        let args = InactiveArgs { attest, provenance: text(provenance), sbom: text(sbom), ..InactiveArgs::default() };
        match check(&args) {
            Ok(()) => "none".to_owned(),
            Err(Failure::Usage { message, .. }) => message,
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn none_is_accepted_and_one_is_not_made_yet() {
        assert_eq!(checked(&[], None, None), "none");
        assert_eq!(checked(&[], Some("false"), Some("0")), "none");
        assert_eq!(checked(&["type=provenance,disabled=true", "type=sbom,disabled=1"], None, None), "none");
        assert_eq!(checked(&["type=sbom"], None, Some("false")), "none");
        assert_eq!(checked(&["type=sbom", "type=sbom,disabled=true"], None, None), "none");
        assert_eq!(checked(&[], Some("mode=max,disabled=true"), None), "none");
        assert_eq!(checked(&[], Some("true"), None), "--provenance=true: attestations are not made yet");
        assert_eq!(checked(&[], Some("mode=max"), None), "--provenance=mode=max: attestations are not made yet");
        assert_eq!(checked(&[], None, Some("generator=x")), "--sbom=generator=x: attestations are not made yet");
        assert_eq!(
            checked(&["type=sbom,generator=x"], None, None),
            "--attest type=sbom,generator=x: attestations are not made yet"
        );
        assert!(checked(&["type=taste"], None, None).contains("types are provenance and sbom"));
        assert!(checked(&["mode=max"], None, None).contains("the type is missing"));
        assert!(checked(&[], None, Some("maybe")).contains("expected true, false"));
    }
}
