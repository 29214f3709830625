use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use jiff::Timestamp;
use serde_json::Value;

use super::*;

/// 2026-11-23T10:00:00Z.
const NOW: Timestamp = Timestamp::constant(1_795_428_000, 0);

fn account() -> ServiceAccount {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("account.json");
    ServiceAccount::ensure(&path, "a-project", "http://127.0.0.1:1/token").unwrap()
}

fn form(claims: &str) -> String {
    let grant_type = JWT_BEARER.replace(':', "%3A");
    let claims = URL_SAFE_NO_PAD.encode(claims);
    format!("assertion=aGVhZA.{claims}.c2lnbmVk&grant_type={grant_type}")
}

fn body(answer: &HttpAnswer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

#[test]
fn an_assertion_without_an_audience_gets_an_access_token() {
    let answer = account().grant(form(r#"{"scope": "a b"}"#).as_bytes(), NOW);

    assert_eq!(answer.status, 200);
    let body = body(&answer);
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], 3600);
    assert!(body["access_token"].is_string());
    assert!(body.get("id_token").is_none());
}

#[test]
fn an_assertion_with_an_audience_gets_an_id_token_for_it() {
    let audience = "http://127.0.0.1:8094/registry";
    let asked = format!(r#"{{"target_audience": "{audience}"}}"#);

    let answer = account().grant(form(&asked).as_bytes(), NOW);

    assert_eq!(answer.status, 200);
    let token = body(&answer)["id_token"].as_str().unwrap().to_owned();
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(claims["aud"], audience);
    assert_eq!(claims["iat"], NOW.as_second());
    assert_eq!(claims["exp"], NOW.as_second() + 3600);
    assert_eq!(claims["iss"], "https://accounts.google.com");
    assert_eq!(claims["email"], "twined@a-project.iam.gserviceaccount.com");
    assert_eq!(claims["sub"], SUBJECT);
}

#[test]
fn an_id_token_is_signed_with_the_accounts_key() {
    let account = account();

    let token = account.id_token("anyone", NOW).unwrap();

    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, account.public_key())
        .verify(signed.as_bytes(), &signature)
        .unwrap();
}

#[test]
fn a_bad_form_is_refused_with_its_reason() {
    let account = account();
    let bearer = JWT_BEARER.replace(':', "%3A");

    for (form, error, reason) in [
        (String::new(), "invalid_request", "`grant_type`"),
        (format!("grant_type={bearer}"), "invalid_request", "`assertion`"),
        ("grant_type=password&assertion=a.b.c".to_owned(), "unsupported_grant_type", "`password`"),
        (format!("grant_type={bearer}&assertion=a.b"), "invalid_grant", "JSON web token"),
        (format!("grant_type={bearer}&assertion=a.b.c.d"), "invalid_grant", "JSON web token"),
        (format!("grant_type={bearer}&assertion=a.*.c"), "invalid_grant", "JSON web token"),
        (form("[]x"), "invalid_grant", "JSON web token"),
    ] {
        let answer = account.grant(form.as_bytes(), NOW);

        assert_eq!(answer.status, 400, "{form}");
        assert_eq!(body(&answer)["error"], error, "{form}");
        assert!(body(&answer)["error_description"].as_str().unwrap().contains(reason), "{form}");
    }
}

#[test]
fn a_form_is_decoded() {
    assert_eq!(field(b"x=1&a=b+c%3Ad%2f%&a=2", "a").unwrap(), "b c:d/%");
    assert_eq!(field(b"x=1&ab=2&ab=3&a=4", "ab").unwrap(), "2");
    assert!(field(b"x=1", "a").is_err());
}
