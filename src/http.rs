//! The HTTP servers: probes, metrics, the registry, and what Google's clients request.

pub(crate) mod admin;
pub(crate) mod google;
pub(crate) mod registry;
use crate::request_guard::{HostName, RequestGuard};
pub(crate) use axum::Router;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long requests under way may take when the server stops. A client that has sent half a
/// request would otherwise delay the stop for ever.
const GRACE: Duration = Duration::from_millis(300);

/// The only route that takes an HTML form, because Google's clients send one.
const FORM_PATHS: &[&str] = &[google::TOKEN_PATH];

/// Serves until `stop`, and then finishes the requests under way, for a moment at most. Requests
/// that a web page of another origin may send are refused; `allowed_hosts` are names of this
/// server.
pub(crate) async fn serve(
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
