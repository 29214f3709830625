//! What is served over HTTP: how the daemon is, what it counts, which revisions there are.

pub mod admin;
pub mod google;
pub mod registry;
use crate::request_guard::{HostName, RequestGuard};
pub use axum::Router;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long what was asked may take to be answered when the server stops. Half a request would
/// otherwise hold it for ever.
const GRACE: Duration = Duration::from_millis(300);

/// The only route that takes an HTML form, because Google's clients send one.
const FORM_PATHS: &[&str] = &[google::TOKEN_PATH];

/// Serves until `stop`, and then for a moment, until what was asked is answered. What a web page of
/// another origin may send is refused; `allowed_hosts` are names of this server.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    allowed_hosts: &[HostName],
    stop: CancellationToken,
) -> io::Result<()> {
    let guard = RequestGuard::new(listener.local_addr()?, allowed_hosts);
    let router = guard.with_forms(FORM_PATHS).protect(router);
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let stopped = stop.clone().cancelled_owned();
    let serving = axum::serve(listener, router).with_graceful_shutdown(stopped);
    tokio::select! {
        served = serving.into_future() => served,
        () = late => Ok(()),
    }
}
