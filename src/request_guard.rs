//! Which requests an HTTP server of ours answers: none that a web page of another origin makes.
//!
//! A browser lets any page send requests to any address that the machine can reach, loopback
//! included. Three kinds reach a server without asking it first, and each has its rule here:
//!
//! | what a page can do | rule |
//! |---|---|
//! | send `GET`, or `POST` with a simple content type | a foreign `Origin` is refused, and so is what the browser itself marks as cross-site; what changes state must be `application/json` |
//! | read the answers, once its own name resolves to this machine (DNS rebinding) | `Host` is an IP address, `localhost`, or a name that this server was given |
//! | speak gRPC over HTTP/1.1, because servers are lenient | gRPC is HTTP/2 and `application/grpc` only, which no page can send |
//!
//! The rules are pure and apply before any route. [`RequestGuard::protect`] puts them in front of
//! a router.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version, header};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How often a refusal is logged at most: a page may send thousands of requests.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Set by browsers, never by a page: how the page that sends a request relates to the server.
/// (<https://www.w3.org/TR/fetch-metadata/>)
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// A DNS name by which clients may reach a server, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// What a host name must look like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a host name such as `devbox` or `twined.example.com`, without scheme, port or `*`"
)]
pub struct HostNameError;

/// The rules of one server. Clones share the interval between two log lines.
#[derive(Clone, Debug)]
pub struct RequestGuard {
    /// Whether names other than `allowed` are accepted in `Host`.
    any_host: bool,
    allowed: Arc<[HostName]>,
    /// Paths that begin so are gRPC and nothing else.
    grpc_prefix: Option<&'static str>,
    /// Paths that take an HTML form, although they are not read-only.
    form_paths: &'static [&'static str],
    last_logged: Arc<Mutex<Option<Instant>>>,
}

/// Why a request is refused. The text tells the client what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `Origin` is not this server's own.
    #[error("a web page of another origin (`{0}`) cannot use this server")]
    ForeignOrigin(String),
    /// `Sec-Fetch-Site` is neither `same-origin` nor `none`.
    #[error("a web page of another site cannot use this server")]
    CrossSite,
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
        // Underscores are in names of container networks, although DNS has none.
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

impl Display for HostName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl RequestGuard ===

impl RequestGuard {
    /// The rules of a server that listens at `address`, whose clients may also reach it by the
    /// names `allowed`. Beyond loopback every name is accepted in `Host`: pods use names of
    /// Services, which the server cannot know.
    pub fn new(address: SocketAddr, allowed: &[HostName]) -> Self {
        Self {
            any_host: !address.ip().to_canonical().is_loopback(),
            allowed: allowed.into(),
            grpc_prefix: None,
            form_paths: &[],
            last_logged: Arc::default(),
        }
    }

    /// Paths that begin with `prefix` are methods of gRPC services.
    pub fn with_grpc(mut self, prefix: &'static str) -> Self {
        self.grpc_prefix = Some(prefix);
        self
    }

    /// These paths take a form, as Google's clients send one for a token.
    pub fn with_forms(mut self, paths: &'static [&'static str]) -> Self {
        self.form_paths = paths;
        self
    }

    /// Puts the rules in front of all routes of `router`, its fallback included.
    pub fn protect(self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self, enforce))
    }

    /// Whether a request with this head is answered.
    pub fn check(
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
        if grpc_path || (self.grpc_prefix.is_some() && content_type.is_grpc()) {
            // No rule on `Host` here: pods and containers reach the server by many names, and a
            // page cannot get this far.
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

    /// An origin is this server's own where it is what the client called the server, and is no
    /// name that anybody's DNS could point here.
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
                let known = origin.as_ref().is_some_and(|(host, _)| self.knows(host));
                let mut hosts = hosts(uri, headers).peekable();
                known
                    && hosts.peek().is_some()
                    && hosts.all(|host| {
                        host.and_then(|host| host_and_port(host, default_port)) == origin
                    })
            });
        match own {
            true => Ok(()),
            false => Err(Refusal::ForeignOrigin(text.to_owned())),
        }
    }

    /// Every name in the request must be one of ours. None at all is what HTTP/1.0 clients send;
    /// browsers always send one.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        for host in hosts(uri, headers) {
            let parsed = host.and_then(|host| host_and_port(host, 80));
            if !parsed.is_some_and(|(host, _)| self.any_host || self.knows(&host)) {
                return Err(Refusal::UnknownHost(host.unwrap_or_default().to_owned()));
            }
        }
        match headers.get_all(header::HOST).iter().count() {
            0 | 1 => Ok(()),
            _ => Err(Refusal::UnknownHost("two hosts".to_owned())),
        }
    }

    /// Rebinding needs a name: an address says where the client really went, and browsers resolve
    /// `localhost` to loopback alone.
    fn knows(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().map(IpAddr::from),
            None => host.parse::<Ipv4Addr>().map(IpAddr::from),
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        address.is_ok()
            || name == "localhost"
            || self.allowed.iter().any(|HostName(allowed)| allowed == name)
    }

    /// A page can send `POST` with the content type of a form, of text or with none without asking
    /// first; other methods and types only after a preflight request, which is never answered.
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
        let mut last = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        warn!(path, reason = %refusal, "HTTP request refused");
    }
}

/// What browsers say by themselves, for requests that carry no `Origin` (images, scripts, `no-cors`
/// reads). A link that a person follows to one of our pages is welcome.
fn check_fetch_metadata(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let value = |name| headers.get(name).map(|value| value.as_bytes());
    let followed_link = matches!(*method, Method::GET | Method::HEAD)
        && value(SEC_FETCH_MODE) == Some(b"navigate")
        && value(SEC_FETCH_DEST) == Some(b"document");
    match value(SEC_FETCH_SITE) {
        None | Some(b"none" | b"same-origin") => Ok(()),
        Some(_) if followed_link => Ok(()),
        Some(_) => Err(Refusal::CrossSite),
    }
}

async fn enforce(State(guard): State<RequestGuard>, request: Request, next: Next) -> Response {
    let checked =
        guard.check(request.version(), request.method(), request.uri(), request.headers());
    match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            guard.log(&refusal, request.uri().path());
            refusal.into_response()
        }
    }
}

/// All that a request calls the server, `None` where it is no text: `:authority` in HTTP/2, the
/// whole URL that a client of a proxy sends, and `Host`.
fn hosts<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = Option<&'a str>> {
    let authority = uri.authority().map(|authority| Some(authority.as_str()));
    let headers = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
    authority.into_iter().chain(headers)
}

/// The host in lower case, and the port.
fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    let parsed: Authority = authority.parse().ok()?;
    // What is left is the port; or a user's name, which no client sends.
    let port = match authority.strip_prefix(parsed.host())? {
        "" => default_port,
        port => port.strip_prefix(':')?.parse().ok()?,
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
        // Of two, nobody knows which one the browser went by.
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

    fn is_grpc(self) -> bool {
        self == Self::Grpc
    }
}

// === impl Refusal ===

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::ForeignOrigin(_) | Self::CrossSite | Self::UnknownHost(_) => {
                StatusCode::FORBIDDEN
            }
            Self::ContentType | Self::GrpcContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::GrpcVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // It repeats what the client sent: text, whatever a browser would guess.
        let plain = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (self.status(), plain, format!("request refused: {self}\n")).into_response()
    }
}

#[cfg(test)]
mod tests;
