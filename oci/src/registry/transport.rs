//! One request and its answer: authorisation, redirects, and patience with passing failures.
//!
//! Everything that reads from or writes to a registry goes through [`Client::send`] (requests that can be repeated) or
//! [`Client::send_once`] (bodies that cannot).
//!
//! Spec: `spec/engine.md` §4.2, "Retries".

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::Need;
use super::challenge::parse_challenges;
use super::client::{Client, Notice, Place, Slot};
use super::error::{Attempt, Operation, RegistryError, is_transient_status, server_message};
use super::hosts::Endpoint;
use super::options::jittered;
use super::scopes::Scopes;
use super::tls::authority;
use crate::reference::ImageRef;
use crate::time::parse_http_date;

/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 10;
/// Times that a connection is tried, at most: a host that is not there should be reported soon.
const MAX_CONNECT_ATTEMPTS: u32 = 3;
/// Why a connection that stays silent is given up.
pub(super) const NO_DATA: &str = "no data in time";
/// Limit of answers that hold a message or a token.
pub(super) const MAX_SMALL_ANSWER: u64 = 1 << 20;

/// A request that can be sent again and again.
#[derive(Clone)]
pub(super) struct Request<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) attempt: &'a Arc<Attempt>,
    /// The repository, as the endpoint calls it.
    pub(super) repository: &'a str,
    pub(super) scopes: &'a Scopes,
    pub(super) slot: Slot,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer, and the place among the host's requests that it keeps until its body is read.
pub(super) struct Reply {
    pub(super) response: Response,
    _place: Place,
}

/// A body to send.
pub(super) enum Body {
    /// Bytes at hand; they follow redirects.
    Bytes(Bytes),
    /// A stream, and its exact length. It can be sent once and follows no redirect.
    Stream(reqwest::Body, u64),
}

/// Why there is no answer at all.
pub(super) enum Failure {
    /// No connection.
    Connect(RegistryError),
    /// The connection broke or stayed silent.
    Broken(RegistryError),
    /// Trying again cannot help.
    Fatal(RegistryError),
}

impl<'a> Request<'a> {
    pub(super) fn need(&self) -> Need<'a> {
        Need { endpoint: self.endpoint, repository: self.repository, scopes: self.scopes, attempt: self.attempt }
    }
}

impl Reply {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header's value, if it is there and text.
    pub(super) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The pause that the server asks for: seconds, or a date, which is compared with the server's own.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let text = self.header(RETRY_AFTER)?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let (until, now) = (parse_http_date(text)?, parse_http_date(self.header(DATE)?)?);
        Some(Duration::from_secs(until.saturating_sub(now).try_into().unwrap_or(0)))
    }
}

impl Client {
    /// Sends a request until there is an answer that is worth reporting.
    ///
    /// Answers a 401 once, repeats what fails for passing reasons, follows redirects. Gives back every other answer,
    /// of whatever status; see [`Client::status_error`].
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Reply, RegistryError> {
        let policy = &self.options().retry;
        let mut authorization = self.authorization(request.need()).await?;
        let mut answered_challenge = false;
        let (mut failures, mut connect_failures) = (0, 0);
        loop {
            let body = Body::Bytes(request.body.clone());
            let (error, delay) = match self.send_once(&request, authorization.clone(), body).await {
                Ok(reply) if reply.status() == StatusCode::UNAUTHORIZED && !answered_challenge => {
                    answered_challenge = true;
                    match self.reauthorize(&request, &reply, authorization.as_ref()).await? {
                        Some(header) => authorization = Some(header),
                        None => return Ok(reply),
                    }
                    continue;
                }
                Ok(reply) if is_transient_status(reply.status().as_u16()) => {
                    let delay = reply.retry_after();
                    let too_long = delay.is_some_and(|delay| delay > policy.max_retry_after);
                    let error = self.status_error(&request, reply).await;
                    if too_long {
                        return Err(error);
                    }
                    failures += 1;
                    (error, delay.unwrap_or_else(|| policy.delay(failures)))
                }
                Ok(reply) => return Ok(reply),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Connect(error)) if connect_failures + 1 >= MAX_CONNECT_ATTEMPTS => return Err(error),
                Err(failure @ (Failure::Broken(_) | Failure::Connect(_))) => {
                    connect_failures += u32::from(matches!(failure, Failure::Connect(_)));
                    let (Failure::Broken(error) | Failure::Connect(error) | Failure::Fatal(error)) = failure;
                    failures += 1;
                    (error, policy.reconnect_delay(failures))
                }
            };
            self.pause(error, failures, delay).await?;
        }
    }

    /// Waits for `delay` before the next try after `failures` failures in a row.
    ///
    /// # Errors
    /// Gives `error` back when there have been enough of them.
    pub(super) async fn pause(
        &self,
        error: RegistryError,
        failures: u32,
        delay: Duration,
    ) -> Result<(), RegistryError> {
        if failures >= self.options().retry.attempts {
            return Err(error);
        }
        self.notify(&Notice::Retry { error: &error, delay });
        tokio::time::sleep(jittered(delay)).await;
        Ok(())
    }

    /// [`pause`](Self::pause) after broken connections: they are mostly mended at once.
    pub(super) async fn pause_after_break(&self, error: RegistryError, failures: u32) -> Result<(), RegistryError> {
        self.pause(error, failures, self.options().retry.reconnect_delay(failures)).await
    }

    /// Gets the header that a 401 asks for; `None` if there is none to be had.
    pub(super) async fn reauthorize(
        &self,
        request: &Request<'_>,
        reply: &Reply,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let headers = reply.response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = parse_challenges(headers.iter().filter_map(|header| header.to_str().ok()));
        self.answer_challenge(request.need(), &challenges, rejected).await
    }

    /// Sends a request once, following redirects, and waits for the head of the answer.
    ///
    /// The authorisation goes to the host of the request alone. The method stays, except that 303 asks for GET.
    pub(super) async fn send_once(
        &self,
        request: &Request<'_>,
        authorization: Option<HeaderValue>,
        body: Body,
    ) -> Result<Reply, Failure> {
        let place = self.place(&request.endpoint.host, request.slot).await;
        self.send_placed(place, request, authorization, body).await
    }

    /// [`send_once`](Self::send_once) for a caller who has waited for the place.
    pub(super) async fn send_placed(
        &self,
        place: Place,
        request: &Request<'_>,
        authorization: Option<HeaderValue>,
        body: Body,
    ) -> Result<Reply, Failure> {
        let (mut url, mut method, mut authorization) = (request.url.clone(), request.method.clone(), authorization);
        let (mut body, repeatable) = match body {
            Body::Bytes(bytes) => (Some((reqwest::Body::from(bytes.clone()), bytes.len() as u64)), Some(bytes)),
            Body::Stream(stream, len) => (Some((stream, len)), None),
        };
        for _ in 0..=MAX_REDIRECTS {
            let http = self.http_for(&url, request.endpoint).await.map_err(Failure::Fatal)?;
            let mut builder = http.request(method.clone(), url.clone()).headers(request.headers.clone());
            // A proxy on the way that compresses would make other bytes of it, and other offsets.
            builder = builder.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if request.endpoint.is_home_of(&url) {
                builder = builder.headers(self.own_headers(request.endpoint)?);
            }
            if let Some(header) = &authorization {
                builder = builder.header(AUTHORIZATION, header);
            }
            if matches!(method, Method::PUT | Method::POST | Method::PATCH)
                && let Some((bytes, len)) = body.take()
            {
                builder = builder.header(CONTENT_LENGTH, len).body(bytes);
            }
            let response = self.head_of(builder.send(), repeatable.is_some(), request.attempt).await?;
            let Some(target) = redirect_target(&response) else {
                self.remember_scheme(request.endpoint);
                return Ok(Reply { response, _place: place });
            };
            if !request.endpoint.may_lead_to(&target) {
                let reason = format!("it redirects from HTTPS to plain HTTP, at {}", authority(&target));
                return Err(Failure::Fatal(protocol(request.attempt, &reason)));
            }
            if (target.scheme(), authority(&target)) != (url.scheme(), authority(&url)) {
                authorization = None;
            }
            if response.status() == StatusCode::SEE_OTHER {
                method = Method::GET;
            }
            url = target;
            body = repeatable.clone().map(|bytes| (reqwest::Body::from(bytes.clone()), bytes.len() as u64));
            if body.is_none() && method != Method::GET {
                return Err(Failure::Fatal(protocol(request.attempt, "it redirects an upload")));
            }
        }
        Err(Failure::Fatal(protocol(request.attempt, "it redirects in circles")))
    }

    /// The headers that the settings of a host want sent to it.
    fn own_headers(&self, endpoint: &Endpoint) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.extras.headers {
            let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
                let reason = format!("the header `{name}` for it is not one");
                return Err(Failure::Fatal(RegistryError::Configuration { path: endpoint.host.clone(), reason }));
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// Waits for the head of an answer: for the stall timeout if the body was at hand, else as long as it takes (the
    /// one who feeds the stream watches it).
    async fn head_of(
        &self,
        answer: impl Future<Output = reqwest::Result<Response>>,
        is_timed: bool,
        attempt: &Arc<Attempt>,
    ) -> Result<Response, Failure> {
        let answer = if is_timed {
            match tokio::time::timeout(self.options().retry.stall_timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    let reason = NO_DATA.to_owned();
                    return Err(Failure::Broken(RegistryError::Unreachable { attempt: attempt.clone(), reason }));
                }
            }
        } else {
            answer.await
        };
        answer.map_err(|error| classify(&error, attempt))
    }

    /// The error for an answer whose status is no success; reads the server's words from the body.
    pub(super) async fn status_error(&self, request: &Request<'_>, reply: Reply) -> RegistryError {
        let attempt = request.attempt.clone();
        let status = reply.status().as_u16();
        // A message that cannot be read is only a message less.
        let body =
            tokio::time::timeout(self.options().retry.stall_timeout, read_limited(reply.response, MAX_SMALL_ANSWER));
        let message = body.await.ok().and_then(Result::ok).and_then(|body| server_message(&body));
        match status {
            404 => RegistryError::NotFound { attempt, message },
            401 | 403 => {
                let (had_credentials, credentials_error) = self.credential_facts(request.need()).await;
                RegistryError::Unauthorized { attempt, status, had_credentials, message, credentials_error }
            }
            _ => RegistryError::Status { attempt, status, message },
        }
    }
}

/// Where a redirect leads. `None` if the answer is none, or leads nowhere.
fn redirect_target(response: &Response) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// Who is asked for what, for errors.
pub(super) fn attempt(operation: Operation, endpoint: &Endpoint, reference: &ImageRef, object: String) -> Arc<Attempt> {
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    Arc::new(Attempt { operation, host: endpoint.host.clone(), repository, object })
}

/// The URL of something in the repository of `reference`.
pub(super) fn endpoint_url(
    endpoint: &Endpoint,
    reference: &ImageRef,
    path: &str,
    attempt: &Arc<Attempt>,
) -> Result<Url, RegistryError> {
    let no_url = || RegistryError::Configuration {
        path: attempt.host.clone(),
        reason: "it is not a host name with an optional port".to_owned(),
    };
    endpoint.url(reference.repository(), path).ok_or_else(no_url)
}

/// An error about an answer that breaks the protocol.
pub(super) fn protocol(attempt: &Arc<Attempt>, reason: &str) -> RegistryError {
    RegistryError::Protocol { attempt: attempt.clone(), reason: reason.to_owned() }
}

/// Sorts an error of the HTTP library by what can be done about it.
fn classify(error: &reqwest::Error, attempt: &Arc<Attempt>) -> Failure {
    let attempt = attempt.clone();
    let reason = describe(error);
    if is_tls(error) {
        return Failure::Fatal(RegistryError::Tls { attempt, reason });
    }
    let unreachable = RegistryError::Unreachable { attempt, reason };
    match error {
        error if error.is_connect() => Failure::Connect(unreachable),
        error if error.is_builder() => Failure::Fatal(unreachable),
        _ => Failure::Broken(unreachable),
    }
}

fn is_tls(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<rustls::Error>() {
            return true;
        }
        let wrapped = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if wrapped.is_some_and(|wrapped| wrapped.is::<rustls::Error>()) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The innermost cause of an error, in words. Never holds the URL, which may be a signed one.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { "connection failed".to_owned() };
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    // The resolver prints its query, type and class and all.
    if text.starts_with("no records found") {
        return "its name does not resolve".to_owned();
    }
    text
}

/// Why a body could not be read.
pub(super) enum ReadError {
    /// There is more than the limit.
    TooLarge,
    /// The connection broke.
    Broken(String),
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_limited(mut response: Response, limit: u64) -> Result<Bytes, ReadError> {
    if response.content_length().is_some_and(|len| len > limit) {
        return Err(ReadError::TooLarge);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ReadError::Broken(describe(&error)))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(ReadError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
