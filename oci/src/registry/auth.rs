//! Authentication: from a challenge to an `Authorization` header, remembered for each host.
//!
//! One lock a host is held while a token is fetched, so that many parallel requests ask for one token only. Nothing is
//! sent to a host before it has asked: credentials never go to a server that does not want them.
//!
//! Spec: `spec/engine.md` §4.2, "Authentication".

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;

use super::challenge::Challenge;
use super::client::{Client, Notice};
use super::credentials::{Credential, CredentialError, Found, find_credential};
use super::error::{Attempt, RegistryError};
use super::hosts::Endpoint;
use super::login::Login;
use super::options::ClientOptions;
use super::scopes::Scopes;
use super::token::{Token, TokenServer};

/// How long an answer of the credential files and helpers is used.
const CREDENTIAL_LIFE: Duration = Duration::from_secs(290);
/// How long a helper may take; a longer wait is one for a person who is not there.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// What all hosts have asked for and been given.
pub(super) struct Authenticator {
    files: Vec<PathBuf>,
    hosts: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<HostAuth>>>>,
}

/// What a request needs to be let in.
#[derive(Clone, Copy)]
pub(super) struct Need<'a> {
    /// Where it goes.
    pub(super) endpoint: &'a Endpoint,
    /// The repository, as the endpoint calls it.
    pub(super) repository: &'a str,
    /// What is going to be done.
    pub(super) scopes: &'a Scopes,
    /// For errors.
    pub(super) attempt: &'a Arc<Attempt>,
}

#[derive(Default)]
struct HostAuth {
    scheme: Option<Scheme>,
    tokens: Vec<Token>,
    /// By repository, because entries may be for parts of a registry.
    credentials: BTreeMap<String, KnownCredential>,
}

#[derive(Clone)]
enum Scheme {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Clone)]
struct KnownCredential {
    found: Result<Option<Found>, CredentialError>,
    at: Instant,
}

impl Authenticator {
    pub(super) fn new(options: &ClientOptions) -> Self {
        let config = options.docker_config_dir.iter().map(|dir| dir.join("config.json"));
        let files = options.auth_files.iter().cloned().chain(config).collect();
        Self { files, hosts: Mutex::new(BTreeMap::new()) }
    }

    fn host(&self, host: &str) -> Arc<tokio::sync::Mutex<HostAuth>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).entry(host.to_owned()).or_default().clone()
    }
}

impl Client {
    /// The header to send, if the host has asked for one before. Fetches a token when the host wants one and none fits.
    pub(super) async fn authorization(&self, need: Need<'_>) -> Result<Option<HeaderValue>, RegistryError> {
        let host = self.auth().host(&need.endpoint.host);
        let mut state = host.lock().await;
        let Some(scheme) = state.scheme.clone() else {
            return Ok(None);
        };
        self.header(&mut state, &scheme, need, need.scopes.clone()).await
    }

    /// Answers a 401. `rejected` is the header that was not enough.
    ///
    /// `None` when there is nothing to answer with: an unknown scheme, or Basic without credentials.
    pub(super) async fn answer_challenge(
        &self,
        need: Need<'_>,
        challenges: &[Challenge],
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let (scheme, scopes) = match bearer.or_else(|| challenges.first()) {
            Some(Challenge::Bearer { realm, service, scope, .. }) => {
                let scopes = need.scopes.clone().with_text(scope.as_deref().unwrap_or_default());
                (Scheme::Bearer { realm: realm.clone(), service: service.clone() }, scopes)
            }
            Some(Challenge::Basic) => (Scheme::Basic, need.scopes.clone()),
            None => return Ok(None),
        };
        let host = self.auth().host(&need.endpoint.host);
        let mut state = host.lock().await;
        state.scheme = Some(scheme.clone());
        state.tokens.retain(|token| Some(&token.header) != rejected);
        let header = self.header(&mut state, &scheme, need, scopes).await?;
        Ok(header.filter(|header| Some(header) != rejected))
    }

    /// Whether credentials for the repository exist, and what was wrong with those that could not be used.
    pub(super) async fn credential_facts(&self, need: Need<'_>) -> (bool, Option<String>) {
        let host = self.auth().host(&need.endpoint.host);
        let state = host.lock().await;
        match state.credentials.get(need.repository).map(|known| &known.found) {
            Some(Ok(credential)) => (credential.is_some(), None),
            Some(Err(error)) => (false, Some(error.to_string())),
            None => (false, None),
        }
    }

    async fn header(
        &self,
        state: &mut HostAuth,
        scheme: &Scheme,
        need: Need<'_>,
        scopes: Scopes,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if let Scheme::Bearer { .. } = scheme {
            let now = Instant::now();
            state.tokens.retain(|token| token.refresh_at > now);
            if let Some(token) = state.tokens.iter().find(|token| token.scopes.cover(&scopes)) {
                return Ok(Some(token.header.clone()));
            }
        }
        let credential = self.credential(state, need).await;
        match (scheme, credential) {
            (Scheme::Bearer { .. }, Some(Credential::RegistryToken(token))) => Ok(secret_header("Bearer", &token)),
            (Scheme::Bearer { realm, service }, credential) => {
                self.notify(&Notice::Token { host: &need.endpoint.host, scopes: &scopes.to_string() });
                let server = TokenServer { realm, service: service.as_deref(), need };
                let token = self.fetch_token(server, scopes, credential.as_ref()).await?;
                let header = token.header.clone();
                state.tokens.push(token);
                Ok(Some(header))
            }
            (Scheme::Basic, Some(Credential::Password { username, password })) => {
                Ok(secret_header("Basic", &STANDARD.encode(format!("{username}:{password}"))))
            }
            (Scheme::Basic, _) => Ok(None),
        }
    }

    /// Looks the credential up in the files, off the runtime. One that cannot be read counts as none, because most
    /// images need none; the reason is told at once, and again should the registry refuse.
    async fn credential(&self, state: &mut HostAuth, need: Need<'_>) -> Option<Credential> {
        let known = state.credentials.get(need.repository).filter(|known| known.at.elapsed() < CREDENTIAL_LIFE);
        let found = match known {
            Some(known) => known.found.clone(),
            None => {
                let found = self.find_credential(need.endpoint, need.repository).await;
                if let Err(error) = &found {
                    self.notify(&Notice::Credentials { host: &need.endpoint.host, reason: &error.to_string() });
                }
                let known = KnownCredential { found: found.clone(), at: Instant::now() };
                state.credentials.insert(need.repository.to_owned(), known);
                found
            }
        };
        found.ok().flatten().map(|found| found.credential)
    }

    /// The credential for a repository, as the endpoint calls it, and where it is from.
    pub(super) async fn find_credential(
        &self,
        endpoint: &Endpoint,
        repository: &str,
    ) -> Result<Option<Found>, CredentialError> {
        let given = endpoint.credential_keys().into_iter().find_map(|key| self.options().logins.get(key));
        if let Some(Login { username, password }) = given.cloned() {
            let credential = Credential::Password { username, password };
            return Ok(Some(Found { credential, origin: "the command line".to_owned() }));
        }
        let keys: Vec<String> = endpoint.credential_keys().into_iter().map(str::to_owned).collect();
        let server = keys.first().cloned().unwrap_or_default();
        let (files, given, repository) =
            (self.auth().files.clone(), self.options().auth_config.clone(), repository.to_owned());
        let lookup = tokio::task::spawn_blocking(move || find_credential(given.as_ref(), &files, &keys, &repository));
        let silent = |reason: &str| CredentialError::Silent { server: server.clone(), reason: reason.to_owned() };
        match tokio::time::timeout(HELPER_TIMEOUT, lookup).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(silent("it crashed")),
            Err(_) => Err(silent("it took more than a minute")),
        }
    }

    /// How the host lets people in, in words; `None` if it has not asked.
    pub(super) async fn scheme_of(&self, endpoint: &Endpoint) -> Option<String> {
        let host = self.auth().host(&endpoint.host);
        let state = host.lock().await;
        match &state.scheme {
            None => None,
            Some(Scheme::Basic) => Some("Basic authentication".to_owned()),
            Some(Scheme::Bearer { realm, .. }) => Some(format!("tokens of {realm}")),
        }
    }
}

/// `SCHEME VALUE`, marked so that no log shows it. `None` if the value cannot stand in a header.
pub(super) fn secret_header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}
