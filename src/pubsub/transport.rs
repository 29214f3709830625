//! What carries the calls of the generated clients: a channel, and the credentials that go with
//! each call.

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

/// A channel that says who we are. Cheap to clone.
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
        // The one that is ready is taken; its clone has to become so.
        let clone = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, clone);
        let credentials = self.credentials.clone();
        Box::pin(async move {
            // Theirs win, as in Google's own clients.
            request.headers_mut().extend(headers(&credentials).await?);
            channel.call(request).await.map_err(Into::into)
        })
    }
}

/// A token that is fresh, and what else says who we are; none for an emulator.
async fn headers(credentials: &Credentials) -> Result<HeaderMap, Status> {
    let headers = tokio::time::timeout(CALL_TIMEOUT, credentials.headers(Extensions::new()));
    match headers.await {
        Ok(Ok(CacheableResource::New { data, .. })) => Ok(data),
        // Only who brings a tag is told so.
        Ok(Ok(CacheableResource::NotModified)) => Ok(HeaderMap::new()),
        Ok(Err(error)) => {
            let words = Chain(&error);
            Err(Status::unauthenticated(format!("no token of Google's to be had: {words}")))
        }
        Err(_) => Err(Status::unauthenticated("no token of Google's came in time")),
    }
}
