//! The check of what questions may do, with the tokens of their account: as much of Google's IAM as
//! it needs, behind a proxy, because the client knows IAM by its real name only.

use super::*;
use google_cloud_googleapis::iam::v1::{TestIamPermissionsRequest, TestIamPermissionsResponse};
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncRead;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::{Grpc, NamedService};
use tonic_prost::ProstCodec;

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_questions_are_checked_with_their_account_s_token() {
    let credentials = Credentials::new();
    let server = TlsServer::start(&credentials, emulator().add_service(Policies)).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_address = format!("http://{}", proxy.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(proxy_to_iam(proxy, acceptor(credentials.path())));
    let check = async |account: &str| -> Value {
        let mut client = credentials.client("question-rights", "authority.pem", &server.endpoint);
        client.arg(account).env("HTTPS_PROXY", &proxy_address);
        serde_json::from_str(&succeeded(output(client).await)).unwrap()
    };
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();

    let good = check("good@a-project").await;
    let mute = check("mute@a-project").await;
    let stranger = check("stranger@a-project").await;

    assert_eq!(good["verdict"], "ok", "{good}");
    assert_eq!(mute["verdict"], "fail", "{mute}");
    assert!(text(&mute, "found").contains("lacks pubsub.topics.publish:"), "{mute}");
    assert_eq!(stranger["verdict"], "unknown", "{stranger}");
    let remedy = text(&stranger, "remedy");
    assert!(remedy.contains("roles/iam.serviceAccountTokenCreator"), "{stranger}");
}

/// A proxy that answers as IAM, whatever host a client asks for. It gives tokens of every account
/// but the stranger's.
async fn proxy_to_iam(proxy: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = proxy.accept().await.unwrap();
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            request_head(&mut client).await;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut client = acceptor.accept(client).await.unwrap();
            let head = request_head(&mut client).await;
            let path = head.split(' ').nth(1).unwrap();
            let (status, body) = iam_answer(path.rsplit('/').next().unwrap());
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}");
            client.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
        });
    }
}

/// The answer to a call `<account>:<method>`.
fn iam_answer(call: &str) -> (&str, String) {
    match call.split_once(':') {
        Some(("stranger@a-project", _)) => ("403 Forbidden", "{}".to_owned()),
        Some((account, "generateAccessToken")) => {
            let token = format!("token-of-{account}");
            let expires = "2100-01-01T00:00:00Z";
            let body = serde_json::json!({ "accessToken": token, "expireTime": expires });
            ("200 OK", body.to_string())
        }
        Some(_) | None => ("404 Not Found", "{}".to_owned()),
    }
}

async fn request_head(client: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(folder.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap()).into()
}

type BoxFuture<R, E> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

/// `IAMPolicy` of Google, which answers by the account of the token. The daemon's account has no
/// rights.
#[derive(Clone)]
struct Policies;

impl NamedService for Policies {
    const NAME: &'static str = "google.iam.v1.IAMPolicy";
}

impl Service<Request<Body>> for Policies {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Self, request).await) })
    }
}

impl Service<tonic::Request<TestIamPermissionsRequest>> for Policies {
    type Response = tonic::Response<TestIamPermissionsResponse>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<TestIamPermissionsRequest>) -> Self::Future {
        let bearer = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let has = |right: &String| match &*bearer {
            "Bearer token-of-good@a-project" => true,
            "Bearer token-of-mute@a-project" => right != "pubsub.topics.publish",
            _ => false,
        };
        let permissions = request.into_inner().permissions.into_iter().filter(has).collect();
        let answer = TestIamPermissionsResponse { permissions };
        Box::pin(std::future::ready(Ok(tonic::Response::new(answer))))
    }
}
