//! The transport of the generated clients: a channel that adds credentials to each call.

use crate::chain::Chain;
use crate::pubsub::CALL_TIMEOUT;
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Extensions, HeaderMap, Request, Response};
use tonic::codegen::{Service, StdError};
use tonic::transport::Channel;

/// A channel with credentials. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    channel: Channel,
    credentials: Credentials,
}

// === impl Transport ===

impl Transport {
    pub(super) fn new(channel: Channel, credentials: Credentials) -> Self {
        Self { channel, credentials }
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // `poll_ready` made this channel ready, and not its clone, so this call uses the channel
        // itself.
        let clone = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, clone);
        let credentials = self.credentials.clone();
        Box::pin(async move {
            // Headers of the credentials win, as in Google's own clients.
            request.headers_mut().extend(headers(&credentials).await?);
            channel.call(request).await.map_err(Into::into)
        })
    }
}

/// The headers of the credentials, with a valid token; none for an emulator.
async fn headers(credentials: &Credentials) -> Result<HeaderMap, Status> {
    let headers = tokio::time::timeout(CALL_TIMEOUT, credentials.headers(Extensions::new()));
    match headers.await {
        Ok(Ok(CacheableResource::New { data, .. })) => Ok(data),
        // Only a request with a tag gets this answer, and ours has none.
        Ok(Ok(CacheableResource::NotModified)) => Ok(HeaderMap::new()),
        Ok(Err(error)) => {
            let error = Chain(&error);
            Err(Status::unauthenticated(format!("failed to get a token from Google: {error}")))
        }
        Err(_) => Err(Status::unauthenticated("failed to get a token from Google: timed out")),
    }
}
