//! What Google's clients need to work without the internet.
//!
//! They require credentials even for an emulator. They accept a service account file with a key
//! that was made here, if its `token_uri` answers on loopback:
//!
//! ```text
//! GOOGLE_APPLICATION_CREDENTIALS ─► file (ServiceAccount::ensure)
//! token_uri                      ─► ServiceAccount::grant    access and ID tokens
//! GCE_METADATA_HOST              ─► metadata                 the universe domain, nothing else
//! ```
//!
//! The tokens give no access to anything: no other machine knows the key.

mod account;
mod token;

pub use account::{AccountError, ServiceAccount, uses_token_uri};

/// The path under which Google's clients ask a metadata server for its universe domain.
pub const UNIVERSE_DOMAIN_PATH: &str = "/computeMetadata/v1/universe/universe-domain";

/// The universe that Google's own services are in.
const UNIVERSE_DOMAIN: &str = "googleapis.com";

/// An HTTP response, for whoever serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body, a text.
    pub body: String,
}

/// Answers a GET of `path` like a metadata server that knows only its universe domain.
///
/// Every other path gets a 404. Google's clients then send no more requests, and sign with the key
/// of the service account instead.
pub fn metadata(path: &str) -> HttpAnswer {
    // Without this header a client does not accept the server as a metadata server.
    let flavor = ("metadata-flavor", "Google");
    let text = ("content-type", "application/text");

    let (status, body) = match path {
        UNIVERSE_DOMAIN_PATH => (200, UNIVERSE_DOMAIN.to_owned()),
        _ => (404, "not found: there is no metadata server here".to_owned()),
    };
    HttpAnswer { status, headers: vec![flavor, text], body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_universe_domain_is_googles() {
        let answer = metadata(UNIVERSE_DOMAIN_PATH);

        assert_eq!((answer.status, answer.body.as_str()), (200, "googleapis.com"));
        assert!(answer.headers.contains(&("metadata-flavor", "Google")));
    }

    #[test]
    fn no_other_metadata_is_there() {
        let answer = metadata("/computeMetadata/v1/instance/service-accounts/default/token");

        assert_eq!(answer.status, 404);
        assert!(answer.headers.contains(&("metadata-flavor", "Google")));
    }
}
