//! The client of Google's Pub/Sub without Google: a certificate authority, a server with TLS and a
//! service account, all made here.
//!
//! Google's clients find credentials and authorities by environment variables, so each runs in a
//! process of its own.

use crate::helper;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use twined::pubsub::emulator::{Emulator, EmulatorOptions};

mod iam;

/// The files that a client and its server are given: two authorities, a server's key that the first
/// of them certifies, and a service account.
struct Credentials {
    folder: TempDir,
}

/// An emulator behind TLS.
struct TlsServer {
    endpoint: String,
    /// The header `authorization` of each call.
    bearers: Arc<Mutex<Vec<Option<String>>>>,
    _task: JoinSet<()>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_to_google_has_a_signed_token() {
    let credentials = Credentials::new();
    let server = TlsServer::start(&credentials, emulator()).await;

    let client = credentials.client("pubsub-round-trip", "authority.pem", &server.endpoint);
    succeeded(output(client).await);

    let bearers = server.bearers.lock().unwrap();
    // At least three calls, a stream, and an acknowledgement.
    assert!(bearers.len() >= 5, "{bearers:?}");
    for bearer in &*bearers {
        // A JSON web token, signed by the account's key.
        let token = bearer.as_deref().and_then(|bearer| bearer.strip_prefix("Bearer ey")).unwrap();
        assert_eq!(token.matches('.').count(), 2, "{token}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_token_is_fetched_once_for_many_calls() {
    let credentials = Credentials::new();
    let token_endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // What `gcloud auth application-default login` writes.
    let person = serde_json::json!({
        "type": "authorized_user",
        "client_id": "a-client",
        "client_secret": "a-secret",
        "refresh_token": "a-refresh-token",
        "token_uri": format!("http://{}/token", token_endpoint.local_addr().unwrap()),
    });
    std::fs::write(credentials.path().join("account.json"), person.to_string()).unwrap();
    let granted = Arc::new(AtomicUsize::new(0));
    let mut tokens = JoinSet::new();
    tokens.spawn(grant_tokens(token_endpoint, Arc::clone(&granted)));
    let server = TlsServer::start(&credentials, emulator()).await;

    let mut client = credentials.client("pubsub-check", "authority.pem", &server.endpoint);
    client.arg("3");
    let text = succeeded(output(client).await);

    assert_eq!(text, "ok\nok\nok\n");
    let token = Some("Bearer a-fetched-token".to_owned());
    assert_eq!(*server.bearers.lock().unwrap(), [token.clone(), token.clone(), token]);
    assert_eq!(granted.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_unknown_authority_gets_no_token() {
    let credentials = Credentials::new();
    let server = TlsServer::start(&credentials, emulator()).await;

    let mut client = credentials.client("pubsub-check", "stranger.pem", &server.endpoint);
    client.arg("1");
    let text = succeeded(output(client).await);

    assert!(text.starts_with("transient: "), "{text}");
    assert!(text.contains("invalid peer certificate"), "{text}");
    assert!(server.bearers.lock().unwrap().is_empty());
}

/// Runs a process to its end without blocking the servers of this test.
async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The text of a process that succeeded.
fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn emulator() -> Routes {
    Emulator::new(EmulatorOptions::default()).routes(CancellationToken::new())
}

/// Grants one token to each connection.
async fn grant_tokens(endpoint: TcpListener, granted: Arc<AtomicUsize>) {
    let body = r#"{"access_token": "a-fetched-token", "expires_in": 3600, "token_type": "Bearer"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    loop {
        let (mut client, _) = endpoint.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(15).any(|part| part == b"a-refresh-token") {
            assert!(client.read_buf(&mut request).await.unwrap() > 0, "the request has no token");
        }
        granted.fetch_add(1, Ordering::SeqCst);
        client.write_all(answer.as_bytes()).await.unwrap();
    }
}

// === impl Credentials ===

impl Credentials {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256};
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let authority = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            write(name, params.self_signed(&key).unwrap().pem());
            Issuer::new(params, key)
        };
        let issuer = authority("authority.pem");
        authority("stranger.pem");
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "iamcredentials.googleapis.com"].map(str::to_owned);
        let params = CertificateParams::new(names).unwrap();
        write("server.pem", params.signed_by(&key, &issuer).unwrap().pem());
        write("server.key", key.serialize_pem());
        let account = serde_json::json!({
            "type": "service_account",
            "project_id": "a-project",
            "private_key_id": "a-key",
            "private_key": KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap().serialize_pem(),
            "client_email": "twined@a-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "http://127.0.0.1:1/token",
            "universe_domain": "googleapis.com",
        });
        write("account.json", account.to_string());
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A client that trusts one of the authorities and has the account.
    fn client(&self, command: &str, authority: &str, endpoint: &str) -> Command {
        let mut client = helper::command(command);
        client
            .arg(endpoint)
            .env("SSL_CERT_FILE", self.path().join(authority))
            .env_remove("SSL_CERT_DIR")
            .env("GOOGLE_APPLICATION_CREDENTIALS", self.path().join("account.json"));
        client
    }
}

// === impl TlsServer ===

impl TlsServer {
    async fn start(credentials: &Credentials, routes: Routes) -> Self {
        let read = |name| std::fs::read(credentials.path().join(name)).unwrap();
        let identity = Identity::from_pem(read("server.pem"), read("server.key"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let bearers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&bearers);
        let mut task = JoinSet::new();
        task.spawn(async move {
            Server::builder()
                .tls_config(ServerTlsConfig::new().identity(identity))
                .unwrap()
                .layer(InterceptorLayer::new(move |request: tonic::Request<()>| {
                    let bearer = request.metadata().get("authorization");
                    let bearer = bearer.map(|bearer| bearer.to_str().unwrap().to_owned());
                    seen.lock().unwrap().push(bearer);
                    Ok(request)
                }))
                .add_routes(routes)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { endpoint, bearers, _task: task }
    }
}
