//! What Google's clients request, so that they work without the internet.

use crate::google::{self, HttpAnswer, ServiceAccount};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::watch;

/// The path of the token endpoint.
pub(crate) const TOKEN_PATH: &str = "/google/token";

/// The service account, once its key is made.
pub(crate) type Account = watch::Receiver<Option<Arc<ServiceAccount>>>;

/// The routes.
pub(crate) fn router(account: Account) -> Router {
    let metadata = get(async |uri: Uri| respond(google::metadata(uri.path())));
    Router::new()
        .route(TOKEN_PATH, post(token))
        .route("/computeMetadata/{*path}", metadata)
        .with_state(account)
}

/// A route that returns a constant JSON document. The document names the file of the account, so it
/// is returned only when that file exists.
pub(crate) fn document(path: &str, document: Value, account: Account) -> Router {
    let answer = async move |State(mut account): State<Account>| match account
        .wait_for(Option::is_some)
        .await
        .is_ok()
    {
        true => axum::Json(document).into_response(),
        false => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    Router::new().route(path, get(answer)).with_state(account)
}

async fn token(State(mut account): State<Account>, form: Bytes) -> Response {
    match account.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(account)) => respond(account.grant(&form, Timestamp::now())),
        // Only if the network ends before the key was made.
        Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn respond(answer: HttpAnswer) -> Response {
    let HttpAnswer { status, headers, body } = answer;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
