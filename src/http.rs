//! What is served over HTTP: how the daemon is, what it counts, which revisions there are.

pub mod admin;
pub mod google;
pub mod registry;
pub use axum::Router;
use axum::routing::get;
use serde_json::Value;
use std::io;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`, and then until what was asked is answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// One JSON document, always the same.
pub fn document(path: &str, document: Value) -> Router {
    Router::new().route(path, get(async move || axum::Json(document)))
}
