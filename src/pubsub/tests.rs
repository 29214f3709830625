//! Google's Pub/Sub as far as it goes without Google: an authority, a server with TLS and a service
//! account, all made here. Credentials and authorities are found by the environment, so what speaks
//! to the server is a process of its own.

use super::*;
mod iam;
use crate::event::Outgoing;
use crate::pubsub::emulator::Emulator;
use crate::pubsub::subscriber::Flow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::{Identity, Server, ServerTlsConfig};

/// The folder that a process of [`speaking_process`] finds its server's key in.
const FOLDER: &str = "TWINED_TEST_PUBSUB_FOLDER";
const DEADLINE: Duration = Duration::from_secs(30);

/// What each call said of who makes it: the path of the call is not known here.
type Bearers = Arc<Mutex<Vec<Option<String>>>>;

#[test]
fn google_is_spoken_to_with_tls_and_a_token_in_every_call() {
    let folder = folder();

    let output = speak(folder.path(), "speaking_process", "authority.pem");

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_token_is_fetched_where_the_credentials_say_and_kept_for_many_calls() {
    let folder = folder();

    let output = speak(folder.path(), "fetching_process", "authority.pem");

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_server_that_no_authority_vouches_for_gets_no_token() {
    let folder = folder();

    let output = speak(folder.path(), "refusing_process", "stranger.pem");

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_address_without_a_host_and_an_endpoint_without_tls_are_refused() {
    let error = Connection::emulator("not an address", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`not an address` is no address of a Pub/Sub emulator: expected HOST:PORT"
    );
    let error = Connection::google_at("http://localhost:8085", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`http://localhost:8085` is no endpoint of Google's Pub/Sub: expected https://HOST"
    );
}

/// Not a test, but what the first one starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by other tests"]
async fn speaking_process() {
    let (connection, bearers, _server) = served().await;
    let admin = Admin::new(&connection);
    let wanted = Wanted::view_of("a-topic", "a-view");
    admin.ensure_topic("a-topic").await.unwrap();
    assert!(admin.subscribe(&wanted).await.unwrap());
    let publisher = Publisher::new(&connection, "a-topic");
    let message =
        Outgoing { data: b"{}".into(), attributes: HashMap::new(), ordering_key: String::new() };
    publisher.publish(message).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let subscriber = Subscriber::new(&connection, "a-view", Flow::default()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(subscriber.run(sender, stop.clone()));

    let delivery = tokio::time::timeout(DEADLINE, deliveries.recv()).await.unwrap().unwrap();

    assert_eq!(delivery.message.data, "{}");
    delivery.receipt.ack();
    stop.cancel();
    tasks.join_all().await;
    let bearers = bearers.lock().unwrap();
    // Three of ours at least, a stream, and an acknowledgement.
    assert!(bearers.len() >= 5, "{bearers:?}");
    for bearer in &*bearers {
        // A JSON web token, signed by the account's key.
        let token = bearer.as_deref().and_then(|bearer| bearer.strip_prefix("Bearer ey")).unwrap();
        assert_eq!(token.matches('.').count(), 2, "{token}");
    }
}

/// Not a test, but what the second one starts: a person's credentials, as `gcloud` leaves them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by other tests"]
async fn fetching_process() {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let person = serde_json::json!({
        "type": "authorized_user",
        "client_id": "a-client",
        "client_secret": "a-secret",
        "refresh_token": "a-refresh-token",
        "token_uri": format!("http://{}/token", endpoint.local_addr().unwrap()),
    });
    let file = PathBuf::from(std::env::var_os(FOLDER).unwrap()).join("account.json");
    std::fs::write(file, person.to_string()).unwrap();
    let granted = Arc::new(AtomicUsize::new(0));
    let mut tokens = JoinSet::new();
    tokens.spawn(grant(endpoint, Arc::clone(&granted)));
    let (connection, bearers, _server) = served().await;
    let admin = Admin::new(&connection);

    for _ in 0..3 {
        admin.check().await.unwrap();
    }

    let token = Some("Bearer a-fetched-token".to_owned());
    assert_eq!(*bearers.lock().unwrap(), [token.clone(), token.clone(), token]);
    assert_eq!(granted.load(Ordering::SeqCst), 1);
}

/// A token endpoint, of which each connection gets one token.
async fn grant(endpoint: TcpListener, granted: Arc<AtomicUsize>) {
    let body = r#"{"access_token": "a-fetched-token", "expires_in": 3600, "token_type": "Bearer"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    loop {
        let (mut asker, _) = endpoint.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.windows(15).any(|part| part == b"a-refresh-token") {
            assert!(asker.read_buf(&mut asked).await.unwrap() > 0, "it ends before its token");
        }
        granted.fetch_add(1, Ordering::SeqCst);
        asker.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Not a test, but what the third one starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by other tests"]
async fn refusing_process() {
    let (connection, bearers, _server) = served().await;

    let error = Admin::new(&connection).check().await.unwrap_err();

    assert!(error.chain().contains("invalid peer certificate"), "{}", error.chain());
    assert!(error.is_transient());
    assert!(bearers.lock().unwrap().is_empty());
}

/// An emulator behind TLS, and a connection to it as to Google.
async fn served() -> (Connection, Bearers, JoinSet<()>) {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let routes = Emulator::new(emulator::Options::default()).routes(CancellationToken::new());
    let (port, bearers, server) = serve(&folder, routes).await;
    let endpoint = format!("https://localhost:{port}");
    (Connection::google_at(&endpoint, "a-project").unwrap(), bearers, server)
}

/// Serves behind TLS, at a port of loopback.
async fn serve(folder: &Path, routes: Routes) -> (u16, Bearers, JoinSet<()>) {
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let identity = Identity::from_pem(read("server.pem"), read("server.key"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bearers = Bearers::default();
    let seen = Arc::clone(&bearers);
    let mut server = JoinSet::new();
    server.spawn(async move {
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
    (port, bearers, server)
}

/// A folder with two authorities, a server's key that the first vouches for, and a service account.
fn folder() -> TempDir {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256};
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
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
    folder
}

fn speak(folder: &Path, process: &str, authority: &str) -> Output {
    speaking(folder, process, authority).output().unwrap()
}

fn speaking(folder: &Path, process: &str, authority: &str) -> Command {
    let name = format!("{}::{process}", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env("SSL_CERT_FILE", folder.join(authority))
        .env_remove("SSL_CERT_DIR")
        .env("GOOGLE_APPLICATION_CREDENTIALS", folder.join("account.json"));
    command
}

#[tokio::test]
async fn a_views_subscription_keeps_the_order_and_is_gone_in_a_day() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    assert!(admin.subscribe(&Wanted::view_of("a-topic", "a-view")).await.unwrap());

    let made = found(&connection, "a-view").await;
    assert!(made.enable_message_ordering);
    assert_eq!(made.ack_deadline_seconds, 10);
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap().seconds;
    assert_eq!(seconds(made.expiration_policy.unwrap().ttl), 86_400);
    assert_eq!(seconds(made.message_retention_duration), 43_200);
    assert!(!admin.subscribe(&Wanted::view_of("a-topic", "a-view")).await.unwrap(), "it is there");
    admin.delete_subscription("a-view").await.unwrap();
    admin.delete_subscription("a-view").await.unwrap();
    assert!(!admin.has_subscription("a-view").await.unwrap());
}

#[tokio::test]
async fn the_shared_subscription_keeps_the_order() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    assert!(!admin.has_topic("a-topic").await.unwrap());

    admin.ensure_subscribed("shared", "a-topic").await.unwrap();

    assert!(admin.has_topic("a-topic").await.unwrap());
    admin.ensure_subscribed("shared", "a-topic").await.unwrap();

    let made = found(&connection, "shared").await;
    assert!(made.enable_message_ordering);
    assert_eq!(made.expiration_policy.unwrap().ttl.unwrap().seconds, 31 * 86_400);
}

#[tokio::test]
async fn a_subscription_that_never_expires_can_be_had() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    let wanted = Wanted { expires: None, ..Wanted::all_of("a-topic", "for-ever") };
    admin.subscribe(&wanted).await.unwrap();

    assert_eq!(found(&connection, "for-ever").await.expiration_policy.unwrap().ttl, None);
}

async fn found(
    connection: &Connection,
    name: &str,
) -> google_cloud_googleapis::pubsub::v1::Subscription {
    let subscription = connection.subscription(name);
    let request = google_cloud_googleapis::pubsub::v1::GetSubscriptionRequest { subscription };
    Subscribing::new(connection.transport()).get_subscription(request).await.unwrap().into_inner()
}

/// An emulator, and a connection to it.
async fn emulated() -> (Connection, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let emulator = Emulator::new(emulator::Options::default());
        emulator.serve(listener, std::future::pending()).await.unwrap();
    });
    (Connection::emulator(&address, "a-project").unwrap(), server)
}
