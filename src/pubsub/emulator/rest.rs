//! TopicList and subscriptions as JSON over HTTP, on the port of gRPC.
//!
//! Google's Rust client uses it to create and list them, and so can `curl`. Messages are published
//! and pulled by gRPC only.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use tonic::codegen::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use tonic::{Code, Status};

use super::Inner;
use super::page::Page;
use crate::request_guard::is_grpc;
use json::{EnumFormat, SubscriptionJson, TopicJson};

mod json;

/// A parsed request.
struct RestRequest<'a> {
    inner: &'a Inner,
    method: Method,
    query: QueryParameters,
    body: &'a [u8],
}

/// The parameters of a query.
#[derive(Debug, Default)]
struct QueryParameters {
    page_size: i32,
    page_token: String,
    enums: EnumFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TopicList {
    topics: Vec<TopicJson>,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SubscriptionList<T> {
    subscriptions: Vec<T>,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

#[derive(Serialize)]
struct EmptyJson {}

#[derive(Serialize)]
struct ErrorJson<'a> {
    error: ErrorStatus<'a>,
}

#[derive(Serialize)]
struct ErrorStatus<'a> {
    code: u16,
    message: &'a str,
    status: &'a str,
}

/// Answers a request that is not for one of the gRPC services.
pub(super) fn answer(
    inner: &Arc<Inner>,
    method: Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<String> {
    if is_grpc(headers) {
        return Status::unimplemented("this emulator does not implement that service").into_http();
    }
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    let answer = query(uri.query().unwrap_or_default())
        .and_then(|query| RestRequest { inner, method, query, body }.answer(&path));
    match answer {
        Ok(json) => response(StatusCode::OK, json),
        Err(status) => error_response(&status),
    }
}

// === impl RestRequest ===

impl RestRequest<'_> {
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
            _ => Err(self.unimplemented(name)),
        }
    }

    fn topic(&self, method: &Method, name: &str) -> Result<String, Status> {
        let directory = &self.inner.directory;
        match *method {
            Method::PUT => {
                let topic: TopicJson = read(self.body)?;
                let topic = directory.create_topic(topic.into_google(name)?)?;
                write(&TopicJson::new(topic, self.query.enums))
            }
            Method::GET => {
                write(&TopicJson::new(directory.describe_topic(name)?, self.query.enums))
            }
            Method::DELETE => {
                directory.delete_topic(name)?;
                write(&EmptyJson {})
            }
            _ => Err(self.unimplemented(name)),
        }
    }

    fn subscription(&self, method: &Method, name: &str) -> Result<String, Status> {
        let directory = &self.inner.directory;
        match (method, name.strip_suffix(":detach")) {
            (&Method::PUT, None) => {
                let subscription: SubscriptionJson = read(self.body)?;
                let subscription =
                    directory.create_subscription(subscription.into_google(name)?)?;
                write(&SubscriptionJson::new(subscription, self.query.enums))
            }
            (&Method::GET, None) => {
                let subscription = directory.describe_subscription(name)?;
                write(&SubscriptionJson::new(subscription, self.query.enums))
            }
            (&Method::DELETE, None) => {
                directory.delete_subscription(name)?;
                write(&EmptyJson {})
            }
            (&Method::POST, Some(name)) => {
                directory.detach_subscription(name)?;
                write(&EmptyJson {})
            }
            _ => Err(self.unimplemented(name)),
        }
    }

    fn list_topics(&self, project: &str) -> Result<String, Status> {
        let QueryParameters { page_size, page_token, enums } = &self.query;
        let project = format!("projects/{project}");
        let Page { items, next_token } =
            self.inner.directory.list_topics(&project, *page_size, page_token)?;
        let topics = items.into_iter().map(|topic| TopicJson::new(topic, *enums)).collect();
        write(&TopicList { topics, next_page_token: next_token })
    }

    fn list_subscriptions(&self, project: &str) -> Result<String, Status> {
        let QueryParameters { page_size, page_token, enums } = &self.query;
        let project = format!("projects/{project}");
        let Page { items, next_token } =
            self.inner.directory.list_subscriptions(&project, *page_size, page_token)?;
        let subscriptions = items
            .into_iter()
            .map(|subscription| SubscriptionJson::new(subscription, *enums))
            .collect();
        write(&SubscriptionList { subscriptions, next_page_token: next_token })
    }

    fn list_topic_subscriptions(&self, topic: &str) -> Result<String, Status> {
        let QueryParameters { page_size, page_token, .. } = &self.query;
        let Page { items, next_token } =
            self.inner.directory.list_topic_subscriptions(topic, *page_size, page_token)?;
        write(&SubscriptionList { subscriptions: items, next_page_token: next_token })
    }

    fn unimplemented(&self, name: &str) -> Status {
        Status::unimplemented(format!(
            "this emulator does not implement `{} {name}` over HTTP: it creates, gets, lists and \
             deletes topics and subscriptions; for all else use gRPC",
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

fn error_response(status: &Status) -> Response<String> {
    let (code, name) = match status.code() {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        Code::FailedPrecondition => (StatusCode::BAD_REQUEST, "FAILED_PRECONDITION"),
        Code::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        Code::AlreadyExists => (StatusCode::CONFLICT, "ALREADY_EXISTS"),
        Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "UNIMPLEMENTED"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    };
    let error = ErrorStatus { code: code.as_u16(), message: status.message(), status: name };
    let json = serde_json::to_string(&ErrorJson { error }).expect("plain structs are JSON");
    response(code, json)
}

fn response(code: StatusCode, json: String) -> Response<String> {
    let mut response = Response::new(json);
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn query(text: &str) -> Result<QueryParameters, Status> {
    let mut query = QueryParameters::default();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        match &*name {
            "pageSize" => {
                query.page_size = value.parse().map_err(|_| {
                    Status::invalid_argument(format!("invalid page size (pageSize={value})"))
                })?;
            }
            "pageToken" => query.page_token = value.into_owned(),
            "$alt" | "alt" if value.contains("enum-encoding=int") => {
                query.enums = EnumFormat::Numbers
            }
            _ => {}
        }
    }
    Ok(query)
}
