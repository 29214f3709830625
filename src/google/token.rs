//! The token endpoint: a signed assertion in, an access or an ID token out (RFC 7523).

use aws_lc_rs::error::Unspecified;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, ServiceAccount};

/// How long a token lasts, in seconds: an hour, as Google's do.
const LIFETIME: i64 = 3600;

/// Who signs Google's ID tokens. Clients that look at it want this one.
const ISSUER: &str = "https://accounts.google.com";

/// The account's number, which Google's clients want and nobody looks at.
pub(super) const SUBJECT: &str = "100000000000000000000";

/// Nobody checks it, so it says what it is.
const ACCESS_TOKEN: &str = "twined-local-access-token";

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Why a request gets no token, in the words of RFC 6749.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the form field `{0}` is missing")]
    Missing(&'static str),
    #[error("the grant type is `{0}`, and only `{JWT_BEARER}` is known here")]
    GrantType(String),
    #[error("the assertion is no JSON web token")]
    Assertion,
    #[error("the token could not be signed")]
    Sign,
}

/// What is looked at in an assertion.
#[derive(Deserialize)]
struct Claims {
    /// Whom an ID token is for; an access token is wanted where it is missing.
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
    /// 200 with an ID token for the `target_audience` of the assertion, or with an access token
    /// where it names none; 400 with `error` and `error_description` for what is no such request.
    ///
    /// The assertion's signature is not checked: whoever is on this machine may have a token, for
    /// it opens no door elsewhere, and a process that still holds an older key goes on working.
    pub fn grant(&self, form: &[u8], now: Timestamp) -> Answer {
        match self.token(form, now) {
            Ok(body) => answer(200, &body),
            Err(refusal) => {
                let body = json!({
                    "error": refusal.code(),
                    "error_description": refusal.to_string(),
                });
                answer(400, &body)
            }
        }
    }

    fn token(&self, form: &[u8], now: Timestamp) -> Result<serde_json::Value, Refusal> {
        let grant_type = field(form, "grant_type")?;

        if grant_type != JWT_BEARER {
            return Err(Refusal::GrantType(grant_type));
        }
        match claims(&field(form, "assertion")?)?.target_audience {
            Some(audience) => {
                let id_token = self.id_token(&audience, now).map_err(|_| Refusal::Sign)?;
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

// === impl Refusal ===

impl Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "invalid_request",
            Self::GrantType(_) => "unsupported_grant_type",
            Self::Assertion => "invalid_grant",
            Self::Sign => "server_error",
        }
    }
}

fn answer(status: u16, body: &serde_json::Value) -> Answer {
    Answer {
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
fn claims(assertion: &str) -> Result<Claims, Refusal> {
    let mut parts = assertion.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Assertion);
    };

    // google-auth leaves the padding away, others do not.
    let json =
        URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|_| Refusal::Assertion)?;
    serde_json::from_slice(&json).map_err(|_| Refusal::Assertion)
}

/// The first value of the field `name` in an urlencoded form.
fn field(form: &[u8], name: &'static str) -> Result<String, Refusal> {
    let found = form_urlencoded::parse(form).find(|(field, _)| field == name);
    found.map(|(_, value)| value.into_owned()).ok_or(Refusal::Missing(name))
}

#[cfg(test)]
mod tests;
