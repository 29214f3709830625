//! What questions may do, asked in the name of their account: Google's IAM as far as that goes, behind
//! a proxy, for the client finds it by its own name.

use super::*;
use crate::preflight::Verdict;
use crate::pubsub::look::questions;
use google_cloud_googleapis::iam::v1::{TestIamPermissionsRequest, TestIamPermissionsResponse};
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

/// Where the process finds Pub/Sub.
const ENDPOINT: &str = "TWINED_TEST_PUBSUB_ENDPOINT";

#[tokio::test(flavor = "multi_thread")]
async fn what_questions_may_do_is_asked_in_the_name_of_their_account() {
    let folder = folder();
    let routes = Emulator::new(emulator::Options::default()).routes(CancellationToken::new());
    let (port, _, mut servers) = serve(folder.path(), routes.add_service(Rights)).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut process = speaking(folder.path(), "iam::asking_process", "authority.pem");
    process.env("HTTPS_PROXY", format!("http://{}", proxy.local_addr().unwrap()));
    process.env(ENDPOINT, format!("https://localhost:{port}"));
    servers.spawn(grant(proxy, acceptor(folder.path())));

    let output = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Not a test, but what the first one starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn asking_process() {
    let endpoint = std::env::var_os(ENDPOINT).unwrap().into_string().unwrap();
    let connection = Connection::google_at(&endpoint, "a-project").unwrap();
    Admin::new(&connection).ensure_topic("a-topic").await.unwrap();
    let look = async |account| questions::look(&connection, "a-topic", "a-project", account).await;

    let good = look("good@a-project").await;
    let mute = look("mute@a-project").await;
    let stranger = look("stranger@a-project").await;

    assert_eq!(good.verdict, Verdict::Ok, "{good:?}");
    assert_eq!(mute.verdict, Verdict::Fail, "{mute:?}");
    assert!(mute.found.contains("lacks pubsub.topics.publish:"), "{mute:?}");
    assert_eq!(stranger.verdict, Verdict::Unknown, "{stranger:?}");
    assert!(stranger.remedy.contains("roles/iam.serviceAccountTokenCreator"), "{stranger:?}");
}

/// A proxy by which every host is one that gives tokens of accounts, but not of the stranger's.
async fn grant(proxy: TcpListener, acceptor: TlsAcceptor) {
    let mut asking = JoinSet::new();
    loop {
        let (mut asker, _) = proxy.accept().await.unwrap();
        let acceptor = acceptor.clone();
        asking.spawn(async move {
            head(&mut asker).await;
            asker.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut asker = acceptor.accept(asker).await.unwrap();
            let head = head(&mut asker).await;
            let path = head.split(' ').nth(1).unwrap();
            let (status, body) = answer(path.rsplit('/').next().unwrap());
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}");
            asker.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
            asker.shutdown().await.unwrap();
        });
    }
}

/// What is answered to a call of an account, `<account>:<method>`.
fn answer(called: &str) -> (&str, String) {
    match called.split_once(':') {
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

/// The head of a request.
async fn head(asker: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(asker.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(folder.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap()).into()
}

type Answering<R, E> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

/// Says what each may do. We may do nothing.
#[derive(Clone)]
struct Rights;

impl NamedService for Rights {
    const NAME: &'static str = "google.iam.v1.IAMPolicy";
}

impl Service<Request<Body>> for Rights {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Self, request).await) })
    }
}

impl Service<tonic::Request<TestIamPermissionsRequest>> for Rights {
    type Response = tonic::Response<TestIamPermissionsResponse>;
    type Error = Status;
    type Future = Answering<Self::Response, Status>;

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
