//! What is served over HTTP: how the daemon is, what it counts, which revisions there are.

pub mod admin;
pub mod google;
pub mod registry;
pub use axum::Router;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long what was asked may take to be answered when the server stops. Half a request would
/// otherwise hold it for ever.
const GRACE: Duration = Duration::from_millis(300);

/// Serves until `stop`, and then for a moment, until what was asked is answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
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
