//! `RUN --device`: which devices a step may ask for. What they are is looked up when the step runs.
//!
//! A step is known by what it asks for, not by what that means on this machine: the names in its key are those of the
//! Dockerfile, but for aliases. Spec: `spec/dockerfile.md` §2.2.10, `spec/engine.md` §5.5.

use std::collections::BTreeSet;

use parser::instruction::RunInstruction;

use super::error::PlanError;
use super::request::Purpose;
use super::stage::StageBuilder;
use crate::op::Device;
use crate::traits::Resolver;

/// What `--allow device…` gives.
#[derive(Debug, Default, PartialEq, Eq)]
struct Grants<'a> {
    /// Every device.
    all: bool,
    /// Names of devices.
    names: Vec<&'a str>,
    /// What a Dockerfile says, and the device that it gets for it.
    aliases: Vec<(&'a str, &'a str)>,
}

impl<'a> Grants<'a> {
    /// Reads `device`, `device=NAME` and `device=NAME,alias=NAME`; what they do not say right was refused before.
    fn of(entitlements: &'a [String]) -> Self {
        let mut grants = Self::default();
        for entitlement in entitlements {
            let Some(rest) = entitlement.strip_prefix("device") else { continue };
            let Some(rest) = rest.strip_prefix('=').filter(|rest| !rest.is_empty()) else {
                grants.all |= rest.is_empty() || rest == "=";
                continue;
            };
            let mut fields = rest.split(',');
            let name = fields.next().unwrap_or_default();
            match fields.find_map(|field| field.strip_prefix("alias=")).filter(|alias| !alias.is_empty()) {
                Some(alias) => grants.aliases.push((alias, name)),
                None => grants.names.push(name),
            }
        }
        grants
    }

    /// Whole names of all devices that were named.
    fn found(&self, resolver: &dyn Resolver) -> Result<BTreeSet<String>, PlanError> {
        let mut found = BTreeSet::new();
        for name in &self.names {
            let device = Device { name: (*name).to_owned(), required: false };
            found.extend(resolver.find_devices(&device)?.into_iter().map(|device| device.name));
        }
        Ok(found)
    }
}

impl StageBuilder<'_> {
    /// The devices of a step, with the names that aliases stand for.
    pub(super) fn devices(&self, run: &RunInstruction) -> Result<Vec<Device>, PlanError> {
        if !run.devices.is_empty() && !self.target.is_labs {
            let message = "device feature is only supported in Dockerfile frontend 1.14.0-labs or later";
            return Err(PlanError::input(message).help("begin the Dockerfile with `# syntax=docker/dockerfile:labs`"));
        }
        let grants = Grants::of(&self.target.request.entitlements);
        let (mut devices, mut ungranted) = (Vec::new(), Vec::new());
        for device in &run.devices {
            let alias = grants.aliases.iter().find(|(alias, _)| *alias == device.name);
            let name = alias.map_or(device.name.as_str(), |(_, name)| name).to_owned();
            let device = Device { name, required: device.required };
            if alias.is_none() && !grants.all {
                ungranted.push(device.clone());
            }
            devices.push(device);
        }
        // Only a build runs anything.
        if self.target.request.purpose == Purpose::Build && !ungranted.is_empty() {
            check(&ungranted, &grants, self.target.resolver)?;
        }
        Ok(devices)
    }
}

/// Refuses devices that nobody has allowed.
fn check(devices: &[Device], grants: &Grants<'_>, resolver: &dyn Resolver) -> Result<(), PlanError> {
    let granted = grants.found(resolver)?;
    let mut refused: Vec<String> = Vec::new();
    for device in devices {
        let found = resolver.find_devices(device).map_err(|error| PlanError::from(error).about(&device.name))?;
        let found = found.into_iter().filter(|found| !found.is_auto_allowed && !granted.contains(&found.name));
        refused.extend(found.map(|found| found.name));
    }
    let mut seen = BTreeSet::new();
    refused.retain(|name| seen.insert(name.clone()));
    let message = match refused.as_slice() {
        [] => return Ok(()),
        [one] => format!("failed to load LLB: device {one} is requested by the build but not allowed"),
        several => {
            format!("failed to load LLB: devices {} are requested by the build but not allowed", several.join(", "))
        }
    };
    let flags: Vec<String> = refused.iter().map(|name| format!("--allow device={name}")).collect();
    Err(PlanError::input(message).help(format!("allow it with `{}`; `--allow device` allows all", flags.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlements_say_which_devices() {
        let read = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
            let grants = Grants::of(&list);
            format!("{} {:?} {:?}", grants.all, grants.names, grants.aliases)
        };
        let cases: [(&[&str], &str); 5] = [
            (&["network.host", "devices"], "false [] []"),
            (&["device"], "true [] []"),
            (&["device="], "true [] []"),
            (&["device=v/c=d", "device=v/c"], r#"false ["v/c=d", "v/c"] []"#),
            (&["device=v/c=d,alias=w/c=e", "device=v/c=f,alias="], r#"false ["v/c=f"] [("w/c=e", "v/c=d")]"#),
        ];
        for (list, want) in cases {
            assert_eq!(read(list), want, "{list:?}");
        }
    }
}
