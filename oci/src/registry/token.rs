//! Token servers: trading credentials, or nothing, for a bearer token.
//!
//! Spec: distribution's token and OAuth2 specifications; `spec/engine.md` §4.2, "Token request".

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::auth::{Need, secret_header};
use super::client::Client;
use super::credentials::Credential;
use super::error::{RegistryError, is_transient_status, server_message};
use super::options::jittered;
use super::scopes::Scopes;
use super::transport::{MAX_SMALL_ANSWER, ReadError, describe, read_limited};

/// Life of a token whose server does not tell it.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The name under which token servers know this program.
const CLIENT_ID: &str = "rbuild";

/// A bearer token.
pub(super) struct Token {
    /// What it is good for.
    pub(super) scopes: Scopes,
    /// As sent.
    pub(super) header: HeaderValue,
    /// When it is too old to start a request with: at nine tenths of its life.
    pub(super) refresh_at: Instant,
}

/// Where a token is to be had, and for whom.
#[derive(Clone, Copy)]
pub(super) struct TokenServer<'a> {
    /// Its URL, from the challenge.
    pub(super) realm: &'a str,
    /// The registry's name there.
    pub(super) service: Option<&'a str>,
    /// The request that needs the token.
    pub(super) need: Need<'a>,
}

/// Why there is no token.
enum Refusal {
    /// The server could not be reached.
    NoAnswer(String),
    /// The server said no.
    Status(u16, String),
    /// The challenge or the answer makes no sense.
    Unusable(String),
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Client {
    /// Asks for one token that covers `scopes`.
    ///
    /// An identity token is traded by POST (OAuth2). A password goes by GET with Basic authentication, which every
    /// server understands, and by POST where GET is refused. Passing failures are tried again.
    pub(super) async fn fetch_token(
        &self,
        server: TokenServer<'_>,
        scopes: Scopes,
        credential: Option<&Credential>,
    ) -> Result<Token, RegistryError> {
        let policy = &self.options().retry;
        let mut failures = 0;
        loop {
            let refusal = match self.fetch_token_once(server, &scopes, credential).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            failures += 1;
            if !refusal.is_passing() || failures >= policy.attempts {
                return Err(refusal.into_error(server, credential.is_some()));
            }
            tokio::time::sleep(jittered(policy.delay(failures))).await;
        }
    }

    async fn fetch_token_once(
        &self,
        server: TokenServer<'_>,
        scopes: &Scopes,
        credential: Option<&Credential>,
    ) -> Result<Token, Refusal> {
        let started = Instant::now();
        if credential.is_some() && !server.need.endpoint.may_lead_to(&server.url()?) {
            return Err(Refusal::Unusable(
                "it is reached by plain HTTP, where everybody could read the credentials".to_owned(),
            ));
        }
        let answer = match credential {
            Some(Credential::IdentityToken(token)) => {
                let grant = [("grant_type", "refresh_token"), ("refresh_token", token)];
                self.post_token(server, scopes, &grant).await?
            }
            Some(Credential::Password { username, password }) => {
                let basic = secret_header("Basic", &STANDARD.encode(format!("{username}:{password}")));
                match self.get_token(server, scopes, basic).await {
                    Err(Refusal::Status(401 | 404 | 405, _)) => {
                        let grant = [("grant_type", "password"), ("username", username), ("password", password)];
                        self.post_token(server, scopes, &grant).await?
                    }
                    answer => answer?,
                }
            }
            Some(Credential::RegistryToken(_)) | None => self.get_token(server, scopes, None).await?,
        };
        answer.into_token(scopes.clone(), started)
    }

    async fn get_token(
        &self,
        server: TokenServer<'_>,
        scopes: &Scopes,
        authorization: Option<HeaderValue>,
    ) -> Result<TokenAnswer, Refusal> {
        let mut url = server.url()?;
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(server.service.map(|service| ("service", service)));
            query.extend_pairs(scopes.texts().iter().map(|scope| ("scope", scope)));
        }
        let headers = authorization.map(|header| (AUTHORIZATION, header)).into_iter().collect();
        self.send_token_request(server, Method::GET, url, headers, String::new()).await
    }

    async fn post_token(
        &self,
        server: TokenServer<'_>,
        scopes: &Scopes,
        grant: &[(&str, &str)],
    ) -> Result<TokenAnswer, Refusal> {
        let url = server.url()?;
        // A URL's query has the encoding of a form; the address is only the vehicle.
        let mut form = url.clone();
        form.query_pairs_mut()
            .clear()
            .extend_pairs(grant)
            .extend_pairs(server.service.map(|service| ("service", service)))
            .append_pair("scope", &scopes.to_string())
            .append_pair("client_id", CLIENT_ID);
        let body = form.query().unwrap_or_default().to_owned();
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
        self.send_token_request(server, Method::POST, url, headers, body).await
    }

    async fn send_token_request(
        &self,
        server: TokenServer<'_>,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: String,
    ) -> Result<TokenAnswer, Refusal> {
        let unusable = |error: RegistryError| Refusal::Unusable(error.to_string());
        let http = self.http_for(&url, server.need.endpoint).await.map_err(unusable)?;
        let request = http.request(method, url).headers(headers).body(body).timeout(self.options().retry.stall_timeout);
        let response = request.send().await.map_err(|error| Refusal::NoAnswer(describe(&error)))?;
        let status = response.status();
        let bytes = read_limited(response, MAX_SMALL_ANSWER).await.map_err(|error| match error {
            ReadError::Broken(reason) => Refusal::NoAnswer(reason),
            ReadError::TooLarge => Refusal::no_token(),
        })?;
        if !status.is_success() {
            let words = server_message(&bytes).unwrap_or_else(|| format!("it answered {status}"));
            return Err(Refusal::Status(status.as_u16(), words));
        }
        serde_json::from_slice(&bytes).map_err(|_| Refusal::no_token())
    }
}

impl TokenServer<'_> {
    fn url(&self) -> Result<Url, Refusal> {
        let url = Url::parse(self.realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        url.ok_or_else(|| Refusal::Unusable("the registry named no usable URL".to_owned()))
    }
}

impl TokenAnswer {
    fn into_token(self, scopes: Scopes, started: Instant) -> Result<Token, Refusal> {
        let given = [self.token, self.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let header = given.and_then(|token| secret_header("Bearer", &token));
        let header = header.ok_or_else(Refusal::no_token)?;
        let life = self.expires_in.filter(|seconds| *seconds > 0).map_or(DEFAULT_LIFE, Duration::from_secs);
        // Some servers promise years; an `Instant` need not reach that far.
        let life = life.min(Duration::from_secs(24 * 3600));
        Ok(Token { scopes, header, refresh_at: started + life * 9 / 10 })
    }
}

impl Refusal {
    fn no_token() -> Self {
        Self::Unusable("its answer holds no token".to_owned())
    }

    fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Status(status, _) => is_transient_status(*status),
            Self::Unusable(_) => false,
        }
    }

    fn into_error(self, server: TokenServer<'_>, had_credentials: bool) -> RegistryError {
        let attempt = server.need.attempt.clone();
        let realm = server.realm.to_owned();
        match self {
            Self::Status(status @ (401 | 403), words) => RegistryError::Unauthorized {
                attempt,
                status,
                had_credentials,
                message: Some(words),
                credentials_error: None,
            },
            Self::Status(status, reason) => RegistryError::Token { attempt, realm, status: Some(status), reason },
            Self::NoAnswer(reason) => RegistryError::TokenServerUnreachable { attempt, realm, reason },
            Self::Unusable(reason) => RegistryError::Token { attempt, realm, status: None, reason },
        }
    }
}
