//! Refuses requests of web pages of another origin. Every HTTP server of this program is behind it.
//!
//! A browser lets any page send requests to any address that the machine can reach, loopback
//! included. Four things need no preflight request, and each has its rule here:
//!
//! | what a page can do | rule |
//! |---|---|
//! | send `GET`, or `POST` with a simple content type | a foreign `Origin` is refused, and so is a request that the browser marks as cross-site; a request that changes state needs `application/json` |
//! | read the answers, once its own name resolves to this machine (DNS rebinding) | on loopback, `Host` is an IP address, `localhost`, or a name of `--allow-host` |
//! | show or load an answer as a frame, an object, a script or an image | the headers of each answer forbid other origins to embed it |
//! | speak gRPC over HTTP/1.1, because servers are lenient | gRPC is HTTP/2 and `application/grpc` only, which no page can send |
//!
//! The rules are pure. [`RequestGuard::protect`] applies them before the routes of a router.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How often a refusal is logged at most: a page may send thousands of requests.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many characters of a client's text are logged and returned.
const MAX_ECHO: usize = 200;

/// Headers of every answer that is not gRPC: other origins can neither embed it nor guess its type.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'none'")),
];

/// Set by browsers, never by a page: the relation of the page that sends a request to the server.
/// (<https://www.w3.org/TR/fetch-metadata/>)
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// A DNS name by which clients may reach a server, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// A text is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a host name such as `devbox` or `twined.example.com`, without scheme, port or `*`"
)]
pub struct HostNameError;

/// The rules of one server. Clones share the interval between two log lines.
#[derive(Clone, Debug)]
pub(crate) struct RequestGuard {
    loopback: bool,
    allowed: Arc<[HostName]>,
    /// Paths with this prefix accept gRPC only.
    grpc_prefix: Option<&'static str>,
    /// Paths that accept an HTML form, although they are not read-only.
    form_paths: &'static [&'static str],
    log: Arc<Mutex<RefusalLog>>,
}

/// Limits how often refusals are logged.
#[derive(Debug, Default)]
struct RefusalLog {
    last: Option<Instant>,
    /// How many refusals since then were not logged.
    suppressed: u64,
}

/// Why a request is refused. The text has the remedy for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// `Origin` is not this server's own.
    #[error(
        "a web page of another origin (`{0}`) cannot use this server. A program can; if the page is \
         this server's own, start it with `--allow-host NAME`"
    )]
    ForeignOrigin(String),
    /// `Sec-Fetch-Site` is neither `same-origin` nor `none`.
    #[error("a web page of another site cannot use this server. A program can")]
    CrossSite,
    /// More than one `Host`.
    #[error("a request may have only one `Host`")]
    TwoHosts,
    /// `Host` is a name that this server does not have.
    #[error(
        "`{0}` is not a known name of this server: use its IP address or `localhost`, or start it \
         with `--allow-host NAME`"
    )]
    UnknownHost(String),
    /// A request to change something, with a content type that any page can send.
    #[error("a request that changes something needs `Content-Type: application/json`")]
    ContentType,
    /// gRPC over HTTP/1.
    #[error("gRPC needs HTTP/2")]
    GrpcVersion,
    /// A gRPC method with another content type.
    #[error("gRPC needs `Content-Type: application/grpc`")]
    GrpcContentType,
}

// === impl HostName ===

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // Names of container networks may have underscores, although DNS names have none.
        let label = |label: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(fits)
        };
        match name.len() <= 253 && name.split('.').all(label) {
            true => Ok(Self(name)),
            false => Err(HostNameError),
        }
    }
}

// === impl RequestGuard ===

impl RequestGuard {
    /// The rules of a server that listens on `address`, and which clients may reach by the names
    /// `allowed`. Without such names, a server beyond loopback accepts every `Host`: pods use names
    /// of Services, which the server cannot know.
    pub(crate) fn new(address: SocketAddr, allowed: &[HostName]) -> Self {
        Self {
            loopback: address.ip().to_canonical().is_loopback(),
            allowed: allowed.into(),
            grpc_prefix: None,
            form_paths: &[],
            log: Arc::default(),
        }
    }

    /// Paths that begin with `prefix` are methods of gRPC services.
    pub(crate) fn with_grpc(mut self, prefix: &'static str) -> Self {
        self.grpc_prefix = Some(prefix);
        self
    }

    /// These paths accept a form: Google's clients send one for a token.
    pub(crate) fn with_forms(mut self, paths: &'static [&'static str]) -> Self {
        self.form_paths = paths;
        self
    }

    /// Applies the rules before all routes of `router`, its fallback included.
    pub(crate) fn protect(self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self, enforce))
    }

    /// Checks the head of a request.
    pub(crate) fn check(
        &self,
        version: Version,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        self.check_origin(uri, headers)?;
        check_fetch_metadata(method, headers)?;
        let content_type = ContentType::from_headers(headers);
        let grpc_path = self.grpc_prefix.is_some_and(|prefix| uri.path().starts_with(prefix));
        if grpc_path || (self.grpc_prefix.is_some() && content_type == ContentType::Grpc) {
            // No rule on `Host` here: pods and containers reach the server by many names, and a
            // page cannot send gRPC.
            return match (version, content_type) {
                (Version::HTTP_2, ContentType::Grpc) => Ok(()),
                (Version::HTTP_2, _) => Err(Refusal::GrpcContentType),
                _ => Err(Refusal::GrpcVersion),
            };
        }
        self.check_host(uri, headers)?;
        match self.accepts_content(method, uri.path(), content_type) {
            true => Ok(()),
            false => Err(Refusal::ContentType),
        }
    }

    /// An origin is this server's own if it equals every host that the request names, and is not a
    /// name that foreign DNS could resolve to this machine.
    fn check_origin(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let text = origin.to_str().unwrap_or_default();
        let own = origins.next().is_none()
            && text.split_once("://").is_some_and(|(scheme, authority)| {
                let default_port = match scheme {
                    "http" => 80,
                    "https" => 443,
                    _ => return false,
                };
                let origin = host_and_port(authority, default_port);
                let known = origin.as_ref().is_some_and(|(host, _)| self.is_known(host));
                let mut hosts = named_hosts(uri, headers).peekable();
                known
                    && hosts.peek().is_some()
                    && hosts.all(|host| {
                        host.and_then(|host| host_and_port(host, default_port)) == origin
                    })
            });
        match own {
            true => Ok(()),
            false => Err(Refusal::ForeignOrigin(shortened(text))),
        }
    }

    /// Every host that the request names must be known. HTTP/1.0 clients name none; browsers always
    /// do.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Refusal::TwoHosts);
        }
        let any_name = !self.loopback && self.allowed.is_empty();
        for host in named_hosts(uri, headers) {
            let parsed = host.and_then(|host| host_and_port(host, 80));
            if !parsed.is_some_and(|(host, _)| any_name || self.is_known(&host)) {
                return Err(Refusal::UnknownHost(shortened(host.unwrap_or_default())));
            }
        }
        Ok(())
    }

    /// Rebinding needs a name, and browsers resolve `localhost` to loopback only. Addresses are
    /// known, except for `0.0.0.0` and IPv6 forms of IPv4 on loopback: browsers connect them to
    /// loopback too, and leave `Sec-Fetch-Site` out.
    fn is_known(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().map(IpAddr::from),
            None => host.parse::<Ipv4Addr>().map(IpAddr::from),
        };
        if let Ok(address) = address {
            let alias = address.is_unspecified() || address.to_canonical() != address;
            return !(self.loopback && alias);
        }
        // Not `localhost.`, which system resolvers ask DNS for.
        let name = host.strip_suffix('.').unwrap_or(host);
        host == "localhost" || self.allowed.iter().any(|HostName(allowed)| allowed == name)
    }

    /// Without a preflight request, a page can send `POST` with the content type of a form, of text
    /// or with none. Other methods and types need a preflight request, which is never answered.
    fn accepts_content(&self, method: &Method, path: &str, content_type: ContentType) -> bool {
        match (method, content_type) {
            (&Method::GET | &Method::HEAD | &Method::OPTIONS, _) => true,
            (_, ContentType::Json) => true,
            (&Method::PUT | &Method::DELETE | &Method::PATCH, ContentType::None) => true,
            (_, ContentType::Form) => self.form_paths.contains(&path),
            (_, ContentType::None | ContentType::Grpc | ContentType::Other) => false,
        }
    }

    /// Logs a refusal, at most once in [`LOG_INTERVAL`].
    fn log(&self, refusal: &Refusal, path: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            log.suppressed += 1;
            return;
        }
        let RefusalLog { suppressed, .. } =
            std::mem::replace(&mut *log, RefusalLog { last: Some(Instant::now()), suppressed: 0 });
        warn!(path = shortened(path), reason = %refusal, suppressed, "HTTP request refused");
    }
}

/// Checks the headers that browsers add to requests without `Origin` (images, scripts, `no-cors`
/// reads). A page may navigate to an answer, because it cannot read what the browser then shows.
fn check_fetch_metadata(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let value = |name| headers.get(name).map(|value| value.as_bytes());
    let navigation = matches!(*method, Method::GET | Method::HEAD)
        && value(SEC_FETCH_MODE) == Some(b"navigate")
        && value(SEC_FETCH_DEST) == Some(b"document");
    match value(SEC_FETCH_SITE) {
        None | Some(b"none" | b"same-origin") => Ok(()),
        Some(_) if navigation => Ok(()),
        Some(_) => Err(Refusal::CrossSite),
    }
}

async fn enforce(State(guard): State<RequestGuard>, request: Request, next: Next) -> Response {
    let checked =
        guard.check(request.version(), request.method(), request.uri(), request.headers());
    let mut response = match checked {
        Ok(()) if is_grpc(request.headers()) => return next.run(request).await,
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            guard.log(&refusal, request.uri().path());
            refusal.into_response()
        }
    };
    response.headers_mut().extend(HEADERS);
    response
}

/// Whether a request has the content type of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    ContentType::from_headers(headers) == ContentType::Grpc
}

/// The first characters of a client's text.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_ECHO).collect()
}

/// Every host that a request names, `None` if it is not text: `:authority` of HTTP/2, the host of
/// an absolute URL, and `Host`.
fn named_hosts<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = Option<&'a str>> {
    let authority = uri.authority().map(|authority| Some(authority.as_str()));
    let headers = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
    authority.into_iter().chain(headers)
}

/// The host in lower case, and the port.
fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    let parsed: Authority = authority.parse().ok()?;
    // None for a user name before the host: no client sends one.
    let rest = authority.strip_prefix(parsed.host())?;
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => default_port,
        Some("") => default_port,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
        _ => return None,
    };
    Some((parsed.host().to_ascii_lowercase(), port))
}

/// The content types that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentType {
    None,
    Json,
    Form,
    Grpc,
    Other,
}

// === impl ContentType ===

impl ContentType {
    fn from_headers(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(header::CONTENT_TYPE).iter();
        let Some(value) = values.next() else { return Self::None };
        // A server and a browser may differ in which of two values they use.
        if values.next().is_some() {
            return Self::Other;
        }
        let value = value.to_str().unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match &*essence {
            "application/json" => Self::Json,
            "application/x-www-form-urlencoded" => Self::Form,
            "application/grpc" | "application/grpc+proto" => Self::Grpc,
            _ => Self::Other,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::ForeignOrigin(_) | Self::CrossSite | Self::UnknownHost(_) => {
                StatusCode::FORBIDDEN
            }
            Self::TwoHosts => StatusCode::BAD_REQUEST,
            Self::ContentType | Self::GrpcContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::GrpcVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // Open connections would let a page exhaust the server's descriptors.
        let close = [(header::CONNECTION, "close")];
        (self.status(), close, format!("request refused: {self}\n")).into_response()
    }
}

#[cfg(test)]
mod tests;
