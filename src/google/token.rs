//! The token endpoint: a signed assertion in, an access or an ID token out (RFC 7523).

use aws_lc_rs::error::Unspecified;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{HttpAnswer, ServiceAccount};

/// How long a token lasts, in seconds: an hour, as Google's do.
const LIFETIME: i64 = 3600;

/// The issuer of Google's ID tokens, which some clients check.
const ISSUER: &str = "https://accounts.google.com";

/// The account's number. Google's clients require one, and do not check it.
pub(super) const SUBJECT: &str = "100000000000000000000";

/// Nobody checks the token, so its text can be a description.
const ACCESS_TOKEN: &str = "twined-local-access-token";

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Why a request gets no token, with the error codes of RFC 6749.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("form field `{0}` is missing")]
    Missing(&'static str),
    #[error("unsupported grant type `{0}`: expected `{JWT_BEARER}`")]
    GrantType(String),
    #[error("the assertion is not a JSON web token")]
    Assertion,
    #[error("failed to sign the token")]
    Sign,
}

/// The claims of an assertion that are used.
#[derive(Deserialize)]
struct Claims {
    /// The audience of the ID token. Without it, the client requests an access token.
    target_audience: Option<String>,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    kid: &'a str,
}

#[derive(Serialize)]
struct IdClaims<'a> {
    aud: &'a str,
    azp: &'a str,
    email: &'a str,
    email_verified: bool,
    exp: i64,
    iat: i64,
    iss: &'static str,
    sub: &'static str,
}

// === impl ServiceAccount ===

impl ServiceAccount {
    /// Answers a POST to the token endpoint, whose urlencoded body is `form`.
    ///
    /// 200 with an ID token for the `target_audience` of the assertion, or with an access token if
    /// it names none; 400 with `error` and `error_description` if the request is invalid.
    ///
    /// The signature of the assertion is not checked. Every process of this machine may have a
    /// token, because it gives access to nothing else. And a process with an older key continues to
    /// work.
    pub fn grant(&self, form: &[u8], now: Timestamp) -> HttpAnswer {
        match self.token(form, now) {
            Ok(body) => answer(200, &body),
            Err(error) => {
                let body = json!({
                    "error": error.code(),
                    "error_description": error.to_string(),
                });
                answer(400, &body)
            }
        }
    }

    fn token(&self, form: &[u8], now: Timestamp) -> Result<serde_json::Value, TokenError> {
        let grant_type = field(form, "grant_type")?;

        if grant_type != JWT_BEARER {
            return Err(TokenError::GrantType(grant_type));
        }
        match claims(&field(form, "assertion")?)?.target_audience {
            Some(audience) => {
                let id_token = self.id_token(&audience, now).map_err(|_| TokenError::Sign)?;
                Ok(json!({ "id_token": id_token }))
            }
            None => Ok(json!({
                "access_token": ACCESS_TOKEN,
                "expires_in": LIFETIME,
                "token_type": "Bearer",
            })),
        }
    }

    fn id_token(&self, audience: &str, now: Timestamp) -> Result<String, Unspecified> {
        let header = Header { alg: "RS256", typ: "JWT", kid: self.key_id() };
        let issued = now.as_second();
        let claims = IdClaims {
            aud: audience,
            azp: self.email(),
            email: self.email(),
            email_verified: true,
            exp: issued + LIFETIME,
            iat: issued,
            iss: ISSUER,
            sub: SUBJECT,
        };

        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }
}

// === impl TokenError ===

impl TokenError {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "invalid_request",
            Self::GrantType(_) => "unsupported_grant_type",
            Self::Assertion => "invalid_grant",
            Self::Sign => "server_error",
        }
    }
}

fn answer(status: u16, body: &serde_json::Value) -> HttpAnswer {
    HttpAnswer {
        status,
        headers: vec![("content-type", "application/json"), ("cache-control", "no-store")],
        body: body.to_string(),
    }
}

/// One part of a token that we make.
fn part(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("texts and numbers are JSON"))
}

/// What an assertion claims.
fn claims(assertion: &str) -> Result<Claims, TokenError> {
    let mut parts = assertion.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Assertion);
    };

    // google-auth leaves the padding away, others do not.
    let json =
        URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|_| TokenError::Assertion)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Assertion)
}

/// The first value of the field `name` in an urlencoded form.
fn field(form: &[u8], name: &'static str) -> Result<String, TokenError> {
    let found = form_urlencoded::parse(form).find(|(field, _)| field == name);
    found.map(|(_, value)| value.into_owned()).ok_or(TokenError::Missing(name))
}

#[cfg(test)]
mod tests;
