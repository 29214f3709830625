use super::*;
const LOOPBACK: &str = "127.0.0.1:8094";

/// A guard on loopback that also accepts `devbox`.
fn guard() -> RequestGuard {
    RequestGuard::new(LOOPBACK.parse().unwrap(), &["devbox".parse().unwrap()])
        .with_grpc("/google.pubsub.v1.")
        .with_forms(&["/google/token"])
}

/// The result of the check for an HTTP/1.1 request with these headers.
fn checked(
    guard: &RequestGuard,
    method: Method,
    path: &str,
    sent: &[(HeaderName, &str)],
) -> Result<(), Refusal> {
    checked_as(guard, Version::HTTP_11, method, path, sent)
}

fn checked_as(
    guard: &RequestGuard,
    version: Version,
    method: Method,
    path: &str,
    sent: &[(HeaderName, &str)],
) -> Result<(), Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in sent {
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    guard.check(version, &method, &path.parse().unwrap(), &headers)
}

#[test]
fn a_loopback_server_accepts_addresses_localhost_and_allowed_names() {
    for host in
        ["127.0.0.1:8094", "127.0.0.1", "[::1]:8094", "LOCALHOST:8094", "localhost:", "Devbox.:1"]
    {
        let sent = [(header::HOST, host)];
        assert_eq!(checked(&guard(), Method::GET, "/env", &sent), Ok(()), "{host}");
    }
    // HTTP/1.0 has no `Host`.
    assert_eq!(checked(&guard(), Method::GET, "/env", &[]), Ok(()));
}

#[test]
fn a_name_that_could_be_rebound_is_refused_on_loopback_only() {
    let beyond = RequestGuard::new("0.0.0.0:8080".parse().unwrap(), &[]);
    for host in [
        "evil.example:8094",
        "localhost.evil.example",
        "xlocalhost",
        "localhost.",
        "2130706433",
        "0x7f.1",
        "0.0.0.0:8094",
        "[::]:8094",
        "[::ffff:127.0.0.1]:8094",
    ] {
        let sent = [(header::HOST, host)];
        let refused = checked(&guard(), Method::GET, "/env", &sent);
        assert_eq!(refused, Err(Refusal::UnknownHost(host.to_owned())));
        assert_eq!(checked(&beyond, Method::GET, "/ready", &sent), Ok(()), "{host}");
    }
    for host in ["", "user@localhost", "localhost:+80", "localhost:99999", "[::1", "a b"] {
        let sent = [(header::HOST, host)];
        assert!(checked(&guard(), Method::GET, "/env", &sent).is_err(), "{host}");
        assert!(checked(&beyond, Method::GET, "/env", &sent).is_err(), "{host}");
    }
}

#[test]
fn every_host_that_a_request_names_is_checked() {
    let two = [(header::HOST, "localhost"), (header::HOST, "localhost")];
    assert_eq!(checked(&guard(), Method::GET, "/env", &two), Err(Refusal::TwoHosts));
    let absolute = "http://evil.example:8094/env";
    let sent = [(header::HOST, "localhost:8094")];
    assert!(checked(&guard(), Method::GET, absolute, &sent).is_err());
    let second = checked_as(&guard(), Version::HTTP_2, Method::GET, absolute, &[]);
    assert_eq!(second, Err(Refusal::UnknownHost("evil.example:8094".to_owned())));
}

#[test]
fn a_foreign_origin_is_refused_everywhere() {
    let beyond = RequestGuard::new("10.0.0.1:8080".parse().unwrap(), &[]);
    let json = (header::CONTENT_TYPE, "application/json");
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost:3000",
        "http://127.0.0.1:8094.evil.example",
        "http://localhost:8094@evil.example",
        "file://",
        "chrome-extension://abc",
        "localhost:8094",
        "",
    ] {
        let sent = [(header::HOST, "localhost:8094"), (header::ORIGIN, origin), json.clone()];
        for guard in [&guard(), &beyond] {
            for method in [Method::GET, Method::POST, Method::PUT, Method::OPTIONS] {
                let refused = checked(guard, method, "/v1/projects", &sent);
                assert_eq!(refused, Err(Refusal::ForeignOrigin(origin.to_owned())));
            }
        }
    }
}

#[test]
fn a_rebound_name_is_never_the_servers_own_origin() {
    let beyond =
        RequestGuard::new("0.0.0.0:8080".parse().unwrap(), &["twined.corp".parse().unwrap()]);
    let json = (header::CONTENT_TYPE, "application/json");
    let sent = |host, origin| [(header::HOST, host), (header::ORIGIN, origin), json.clone()];
    let rebound = sent("evil.example:8080", "http://evil.example:8080");
    assert!(checked(&beyond, Method::POST, "/x", &rebound).is_err());
    for (host, origin) in [
        ("10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("twined.corp", "https://twined.corp"),
        ("twined.corp:80", "http://twined.corp"),
    ] {
        assert_eq!(checked(&beyond, Method::POST, "/x", &sent(host, origin)), Ok(()), "{origin}");
    }
}

#[test]
fn requests_marked_as_cross_site_are_refused_except_for_links() {
    let marked = |site, mode, dest| {
        [
            (header::HOST, "localhost:8094"),
            (SEC_FETCH_SITE, site),
            (SEC_FETCH_MODE, mode),
            (SEC_FETCH_DEST, dest),
        ]
    };
    for (site, mode, dest, method, outcome) in [
        ("cross-site", "no-cors", "image", Method::GET, Err(Refusal::CrossSite)),
        ("same-site", "no-cors", "empty", Method::GET, Err(Refusal::CrossSite)),
        ("cross-site", "navigate", "iframe", Method::GET, Err(Refusal::CrossSite)),
        ("cross-site", "navigate", "document", Method::POST, Err(Refusal::CrossSite)),
        ("cross-site", "navigate", "document", Method::GET, Ok(())),
        ("same-origin", "cors", "empty", Method::GET, Ok(())),
        ("none", "navigate", "document", Method::GET, Ok(())),
    ] {
        let sent = marked(site, mode, dest);
        assert_eq!(checked(&guard(), method, "/env", &sent), outcome, "{site} {mode} {dest}");
    }
}

#[test]
fn a_change_needs_a_content_type_that_needs_a_preflight_request() {
    let path = "/v1/projects/p/subscriptions/s:detach";
    for simple in [
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let refused = checked(&guard(), method, path, &[(header::CONTENT_TYPE, simple)]);
            assert_eq!(refused, Err(Refusal::ContentType), "{simple}");
        }
    }
    assert_eq!(checked(&guard(), Method::POST, path, &[]), Err(Refusal::ContentType));
    let custom = Method::from_bytes(b"SEARCH").unwrap();
    assert_eq!(checked(&guard(), custom, path, &[]), Err(Refusal::ContentType));
    let two = ["application/json", "text/plain"].map(|kind| (header::CONTENT_TYPE, kind));
    assert_eq!(checked(&guard(), Method::POST, path, &two), Err(Refusal::ContentType));
    for json in ["application/json", "Application/JSON; charset=utf-8"] {
        let sent = [(header::CONTENT_TYPE, json)];
        assert_eq!(checked(&guard(), Method::POST, path, &sent), Ok(()));
    }
    // `curl -X PUT` and `curl -X DELETE` send none, and a page needs a preflight request for them.
    assert_eq!(checked(&guard(), Method::PUT, path, &[]), Ok(()));
    assert_eq!(checked(&guard(), Method::DELETE, path, &[]), Ok(()));
}

#[test]
fn only_the_token_endpoint_accepts_a_form() {
    let form = [(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
    assert_eq!(checked(&guard(), Method::POST, "/google/token", &form), Ok(()));
    assert!(checked(&guard(), Method::POST, "/google/token/", &form).is_err());
    let multipart = [(header::CONTENT_TYPE, "multipart/form-data; boundary=x")];
    assert!(checked(&guard(), Method::POST, "/google/token", &multipart).is_err());
}

#[test]
fn grpc_needs_http_2_and_its_content_type_and_accepts_every_name() {
    let publish = "/google.pubsub.v1.Publisher/Publish";
    let sent = |kind| [(header::HOST, "twined.default.svc"), (header::CONTENT_TYPE, kind)];
    for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
        let second = checked_as(&guard(), Version::HTTP_2, Method::POST, publish, &sent(kind));
        assert_eq!(second, Ok(()), "{kind}");
        let first = checked(&guard(), Method::POST, publish, &sent(kind));
        assert_eq!(first, Err(Refusal::GrpcVersion), "{kind}");
    }
    for kind in ["text/plain", "application/json", "application/grpc-web", "application/grpc+json"]
    {
        let second = checked_as(&guard(), Version::HTTP_2, Method::POST, publish, &sent(kind));
        assert_eq!(second, Err(Refusal::GrpcContentType), "{kind}");
    }
    let origin =
        [(header::ORIGIN, "http://evil.example"), (header::CONTENT_TYPE, "application/grpc")];
    let foreign = checked_as(&guard(), Version::HTTP_2, Method::POST, publish, &origin);
    assert!(matches!(foreign, Err(Refusal::ForeignOrigin(_))));
}

#[test]
fn a_host_name_has_no_scheme_port_or_wildcard() {
    for (text, name) in [("Devbox", "devbox"), ("a-b.example.com.", "a-b.example.com")] {
        assert_eq!(text.parse(), Ok(HostName(name.to_owned())));
    }
    let long = "a".repeat(64);
    for text in ["", ".", "*", "*.example.com", "a:80", "http://a", "a/b", "a..b", "a b", &long] {
        assert_eq!(text.parse::<HostName>(), Err(HostNameError), "{text}");
    }
}

#[test]
fn allowed_names_are_the_only_ones_beyond_loopback() {
    let beyond = RequestGuard::new("0.0.0.0:8080".parse().unwrap(), &["twined".parse().unwrap()]);
    for (host, accepted) in
        [("twined:8080", true), ("10.0.0.7", true), ("0.0.0.0", true), ("other", false)]
    {
        let sent = [(header::HOST, host)];
        assert_eq!(checked(&beyond, Method::GET, "/ready", &sent).is_ok(), accepted, "{host}");
    }
}

#[test]
fn a_refusal_repeats_a_short_text_only() {
    let long = "a".repeat(1000);
    let refused = checked(&guard(), Method::GET, "/env", &[(header::HOST, &long)]);
    assert_eq!(refused, Err(Refusal::UnknownHost("a".repeat(MAX_ECHO))));
}
