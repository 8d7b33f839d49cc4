//! One image's registry: which file says how it is reached, and whether it answers. No secret is shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci::ImageRef;
use oci::registry::{Client, CredentialFacts, HostFacts, Notice, RegistryError};

use super::{Check, Status};
use crate::commands::build::wire;
use crate::failure::Failure;

/// What was found, and the failure if the image cannot be asked for.
pub(super) fn examine(text: &str) -> Result<(Vec<Check>, Option<Failure>), Failure> {
    let reference = ImageRef::parse_normalized(text)
        .map(ImageRef::with_default_tag)
        .map_err(|error| Failure::usage(format!("invalid image name `{text}`: {error}")))?;
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    let client = Client::new(wire::client_options()).observed_by(Arc::new(move |notice: &Notice<'_>| {
        if let Some(check) = of_notice(notice) {
            let mut told = sink.lock().unwrap_or_else(PoisonError::into_inner);
            // A host is asked twice, with one answer.
            if !told.contains(&check) {
                told.push(check);
            }
        }
    }));
    let mut checks = vec![Check::ok("reference", reference.to_string())];
    let asked = wire::runtime()?.block_on(look_and_ask(&client, &reference, &mut checks));
    checks.append(&mut told.lock().unwrap_or_else(PoisonError::into_inner));
    match asked {
        Ok(answers) => {
            checks.extend(answers);
            Ok((checks, None))
        }
        Err(error) => {
            let failure = failed(&reference, &error);
            checks.push(Check { name: "answer", status: Status::Missing, found: error.to_string(), need: None });
            Ok((checks, Some(failure)))
        }
    }
}

/// Adds what is known before anything is asked to `checks`, then asks; returns what the answers say.
async fn look_and_ask(
    client: &Client,
    reference: &ImageRef,
    checks: &mut Vec<Check>,
) -> Result<Vec<Check>, RegistryError> {
    let explained = client.explain(reference).await?;
    checks.push(Check::ok("settings", explained.source));
    for host in &explained.hosts {
        checks.extend(of_host(host));
    }
    let started = Instant::now();
    let ping = client.ping(reference).await?;
    let door = ping.authentication.map_or_else(|| "everybody is let in".to_owned(), |scheme| format!("wants {scheme}"));
    let found = format!("{} answers {} in {}; {door}", ping.url, ping.status, millis(started.elapsed()));
    let mut answers = vec![Check::ok("ping", found)];
    let started = Instant::now();
    match client.resolve(reference).await {
        Ok(resolved) => {
            let oci::Descriptor { media_type, digest, size_bytes, .. } = resolved.descriptor;
            let found = format!("{digest} ({media_type}, {size_bytes} bytes) in {}", millis(started.elapsed()));
            answers.push(Check::ok("manifest", found));
            Ok(answers)
        }
        Err(error) => {
            checks.append(&mut answers);
            Err(error)
        }
    }
}

/// What is known of one host.
fn of_host(host: &HostFacts) -> Vec<Check> {
    let name = if host.is_mirror { "mirror" } else { "registry" };
    let purpose = match (host.pulls, host.pushes) {
        (true, true) => "pulls and pushes",
        (true, false) => "pulls",
        (false, true) => "pushes",
        (false, false) => "nothing",
    };
    let found = format!("{} for {purpose}, as {}", host.url, host.repository);
    let is_plain = host.url.starts_with("http:");
    let first = match (is_plain, host.verifies) {
        (false, false) => Check::warn(name, found, "its certificate is not verified"),
        _ => Check::ok(name, found),
    };
    let mut checks = vec![first];
    let mut add = |name, found: String| checks.push(Check::ok(name, format!("{found} ({})", host.url)));
    for path in &host.authorities {
        add("CA", format!("{}, besides the system's", path.display()));
    }
    if let Some(path) = &host.identity {
        add("client certificate", path.display().to_string());
    }
    if !host.headers.is_empty() {
        add("headers", host.headers.join(" "));
    }
    if let Some(proxy) = &host.proxy {
        add("proxy", proxy.clone());
    }
    checks.push(match &host.credentials {
        Ok(None) => Check::ok("credentials", format!("none ({})", host.url)),
        Ok(Some(facts)) => Check::ok("credentials", format!("{} ({})", credentials(facts), host.url)),
        Err(reason) => Check::warn("credentials", reason.clone(), "mend it, or log in again: `rbuild login`"),
    });
    checks
}

fn credentials(facts: &CredentialFacts) -> String {
    let CredentialFacts { username, kind, origin } = facts;
    match username {
        Some(username) => format!("{kind} of `{username}` from {origin}"),
        None => format!("{kind} from {origin}"),
    }
}

fn of_notice(notice: &Notice<'_>) -> Option<Check> {
    match notice {
        Notice::Fallback { error, next_host } => {
            Some(Check::warn("fallback", error.to_string(), format!("{next_host} was asked instead")))
        }
        Notice::Retry { error, .. } => Some(Check::warn("retry", error.to_string(), "it was asked again")),
        Notice::Token { host, scopes } => Some(Check::ok("token", format!("asked for {scopes} at {host}"))),
        // Said of the host already.
        Notice::Credentials { .. } => None,
    }
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

fn failed(reference: &ImageRef, error: &RegistryError) -> Failure {
    let name = reference.familiar();
    let failure = Failure::environment(format!("{name} cannot be had: {error}"));
    match error {
        RegistryError::NotFound { .. } => failure.help("the registry answers; the name or the tag is wrong"),
        RegistryError::Unauthorized { had_credentials: true, attempt, .. } => {
            failure.help(format!("the credentials were refused; log in again: rbuild login {}", attempt.host))
        }
        RegistryError::Unauthorized { attempt, .. } => failure.help(format!("log in: rbuild login {}", attempt.host)),
        RegistryError::Tls { attempt, .. } => failure.help(format!(
            "a private CA belongs into /etc/docker/certs.d/{}/ca.crt, or into the system's",
            attempt.host
        )),
        RegistryError::Unreachable { .. } | RegistryError::TokenServerUnreachable { .. } => {
            failure.help("look at the host's name, its port, and the proxies (HTTPS_PROXY, NO_PROXY)")
        }
        _ => failure,
    }
}
