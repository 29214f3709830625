//! The service registry, in the API that the SDK uses: `GET
//! /<namespace>/<name>?revision_tag=<tag>`.

use crate::chain::Chain;
use crate::event::SruidBuf;
use crate::registry::{RegistryError, ServiceRegistry};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tracing::warn;

#[derive(Deserialize)]
struct RevisionQuery {
    revision_tag: Option<String>,
}

#[derive(Serialize)]
struct DefaultRevision {
    revision_tag: String,
}

/// The routes, relative to the endpoint of the registry.
pub(crate) fn router(registry: Arc<dyn ServiceRegistry>) -> Router {
    Router::new().route("/{namespace}/{name}", get(find_revision)).with_state(registry)
}

async fn find_revision(
    State(registry): State<Arc<dyn ServiceRegistry>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(RevisionQuery { revision_tag }): Query<RevisionQuery>,
) -> Response {
    let service = format!("{namespace}/{name}");
    let found = match revision_tag {
        Some(tag) => answer_revision(&*registry, &format!("{service}:{tag}")).await,
        None => answer_default(&*registry, &service).await,
    };
    found.unwrap_or_else(|error| {
        warn!(service, error = %Chain(&error), "failed to answer for the registry");
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    })
}

async fn answer_revision(
    registry: &dyn ServiceRegistry,
    text: &str,
) -> Result<Response, RegistryError> {
    let exists = match text.parse::<SruidBuf>() {
        Ok(revision) => registry.has(revision.as_sruid()).await?,
        Err(_) => false,
    };
    Ok(if exists {
        "Service revision found".into_response()
    } else {
        (StatusCode::NOT_FOUND, "Service revision does not exist").into_response()
    })
}

async fn answer_default(
    registry: &dyn ServiceRegistry,
    service: &str,
) -> Result<Response, RegistryError> {
    Ok(match registry.default_tag(service).await? {
        Some(revision_tag) => axum::Json(DefaultRevision { revision_tag }).into_response(),
        None => (StatusCode::NOT_FOUND, "Service does not exist").into_response(),
    })
}
