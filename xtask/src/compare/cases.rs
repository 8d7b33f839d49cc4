//! Which builds are compared.

use std::path::PathBuf;

use anyhow::Result;
use e2e::case::{self, Case};
use serde_json::Value;

use crate::process::workspace;

/// The cases of `testdata/compare`; with `slow` also the real applications and the golden cases, which get the name of
/// their kind in front.
pub(crate) fn discover(slow: bool) -> Result<Vec<Case>> {
    let mut cases = read(workspace().join("testdata/compare"), "")?;
    if slow {
        cases.extend(read(workspace().join("testdata/real"), "real/")?);
        if let Some(folder) = e2e::goldens() {
            let mut goldens = read(folder.join("cases"), "goldens/")?;
            goldens.retain(gives_an_image);
            cases.extend(goldens);
        }
    }
    Ok(cases)
}

fn read(folder: PathBuf, prefix: &str) -> Result<Vec<Case>> {
    let cases = case::discover(&folder).map_err(anyhow::Error::msg)?;
    let named = |case: Case| Case { name: format!("{prefix}{}", case.name), ..case };
    Ok(cases.into_iter().flatten().map(named).collect())
}

/// Whether a golden build ends in one image, made from nothing but the case's folder.
fn gives_an_image(case: &Case) -> bool {
    let has = |flag: &str| case.spec.args.iter().any(|arg| arg == flag);
    let is_built = case.expected["ok"] == Value::Bool(true) && case.expected.get("platforms").is_none();
    is_built && case.spec.rebuild.is_empty() && !has("--call") && !has("--output")
}
