//! Topics and subscriptions as JSON over HTTP, on the port of gRPC.
//!
//! Google's Rust client publishes and pulls by gRPC, but makes and lists by this; `curl` can too.
//! Messages go by gRPC alone.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use tonic::codegen::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use tonic::{Code, Status};

use super::Inner;
use super::page::Page;
use crate::request_guard::is_grpc;
use json::{Enums, SubscriptionJson, TopicJson};

mod json;

/// One request, taken apart.
struct Call<'a> {
    inner: &'a Inner,
    method: Method,
    query: Query,
    body: &'a [u8],
}

/// What the query may say.
#[derive(Debug, Default)]
struct Query {
    page_size: i32,
    page_token: String,
    enums: Enums,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Topics {
    topics: Vec<TopicJson>,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Subscriptions<T> {
    subscriptions: Vec<T>,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Failure<'a> {
    error: FailureStatus<'a>,
}

#[derive(Serialize)]
struct FailureStatus<'a> {
    code: u16,
    message: &'a str,
    status: &'a str,
}

/// Answers what no gRPC service answers.
pub(super) fn answer(
    inner: &Arc<Inner>,
    method: Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<String> {
    if is_grpc(headers) {
        return Status::unimplemented("this emulator does not have that service").into_http();
    }
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    let answered = query(uri.query().unwrap_or_default())
        .and_then(|query| Call { inner, method, query, body }.answer(&path));
    match answered {
        Ok(json) => response(StatusCode::OK, json),
        Err(status) => failure(&status),
    }
}

// === impl Call ===

impl Call<'_> {
    fn answer(&self, path: &str) -> Result<String, Status> {
        let name = path.strip_prefix("/v1/").unwrap_or_default();
        let parts: Vec<&str> = name.split('/').collect();
        match (&self.method, &parts[..]) {
            (&Method::GET, ["projects", project, "topics"]) => self.list_topics(project),
            (&Method::GET, ["projects", project, "subscriptions"]) => {
                self.list_subscriptions(project)
            }
            (&Method::GET, ["projects", _, "topics", _, "subscriptions"]) => {
                self.list_topic_subscriptions(name.trim_end_matches("/subscriptions"))
            }
            (method, ["projects", _, "topics", _]) => self.topic(method, name),
            (method, ["projects", _, "subscriptions", _]) => self.subscription(method, name),
            _ => Err(self.unknown(name)),
        }
    }

    fn topic(&self, method: &Method, name: &str) -> Result<String, Status> {
        let directory = &self.inner.directory;
        match *method {
            Method::PUT => {
                let asked: TopicJson = read(self.body)?;
                let topic = directory.create_topic(asked.into_google(name)?)?;
                write(&TopicJson::new(topic, self.query.enums))
            }
            Method::GET => {
                write(&TopicJson::new(directory.describe_topic(name)?, self.query.enums))
            }
            Method::DELETE => {
                directory.delete_topic(name)?;
                write(&Nothing {})
            }
            _ => Err(self.unknown(name)),
        }
    }

    fn subscription(&self, method: &Method, name: &str) -> Result<String, Status> {
        let directory = &self.inner.directory;
        match (method, name.strip_suffix(":detach")) {
            (&Method::PUT, None) => {
                let asked: SubscriptionJson = read(self.body)?;
                let subscription = directory.create_subscription(asked.into_google(name)?)?;
                write(&SubscriptionJson::new(subscription, self.query.enums))
            }
            (&Method::GET, None) => {
                let subscription = directory.describe_subscription(name)?;
                write(&SubscriptionJson::new(subscription, self.query.enums))
            }
            (&Method::DELETE, None) => {
                directory.delete_subscription(name)?;
                write(&Nothing {})
            }
            (&Method::POST, Some(name)) => {
                directory.detach_subscription(name)?;
                write(&Nothing {})
            }
            _ => Err(self.unknown(name)),
        }
    }

    fn list_topics(&self, project: &str) -> Result<String, Status> {
        let Query { page_size, page_token, enums } = &self.query;
        let project = format!("projects/{project}");
        let Page { items, next } =
            self.inner.directory.list_topics(&project, *page_size, page_token)?;
        let topics = items.into_iter().map(|topic| TopicJson::new(topic, *enums)).collect();
        write(&Topics { topics, next_page_token: next })
    }

    fn list_subscriptions(&self, project: &str) -> Result<String, Status> {
        let Query { page_size, page_token, enums } = &self.query;
        let project = format!("projects/{project}");
        let Page { items, next } =
            self.inner.directory.list_subscriptions(&project, *page_size, page_token)?;
        let subscriptions = items
            .into_iter()
            .map(|subscription| SubscriptionJson::new(subscription, *enums))
            .collect();
        write(&Subscriptions { subscriptions, next_page_token: next })
    }

    fn list_topic_subscriptions(&self, topic: &str) -> Result<String, Status> {
        let Query { page_size, page_token, .. } = &self.query;
        let Page { items, next } =
            self.inner.directory.list_topic_subscriptions(topic, *page_size, page_token)?;
        write(&Subscriptions { subscriptions: items, next_page_token: next })
    }

    fn unknown(&self, name: &str) -> Status {
        Status::unimplemented(format!(
            "this emulator does not have `{} {name}` over HTTP: topics and subscriptions are made, \
             got, listed and deleted here, and all else goes by gRPC",
            self.method
        ))
    }
}

fn read<T: Default + serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| Status::invalid_argument(format!("invalid JSON in the request: {error}")))
}

fn write(answer: &impl Serialize) -> Result<String, Status> {
    Ok(serde_json::to_string(answer).expect("plain structs are JSON"))
}

fn failure(status: &Status) -> Response<String> {
    let (code, name) = match status.code() {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        Code::FailedPrecondition => (StatusCode::BAD_REQUEST, "FAILED_PRECONDITION"),
        Code::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        Code::AlreadyExists => (StatusCode::CONFLICT, "ALREADY_EXISTS"),
        Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "UNIMPLEMENTED"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    };
    let error = FailureStatus { code: code.as_u16(), message: status.message(), status: name };
    let json = serde_json::to_string(&Failure { error }).expect("plain structs are JSON");
    response(code, json)
}

fn response(code: StatusCode, json: String) -> Response<String> {
    let mut response = Response::new(json);
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn query(text: &str) -> Result<Query, Status> {
    let mut query = Query::default();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        match &*name {
            "pageSize" => {
                query.page_size = value.parse().map_err(|_| {
                    Status::invalid_argument(format!("invalid page size given (pageSize={value})"))
                })?;
            }
            "pageToken" => query.page_token = value.into_owned(),
            "$alt" | "alt" if value.contains("enum-encoding=int") => query.enums = Enums::Numbers,
            _ => {}
        }
    }
    Ok(query)
}
