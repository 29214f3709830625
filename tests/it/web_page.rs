//! Requests that a web page can send to the servers of a network are refused; requests of other
//! clients are answered. All are sent raw.

use crate::program::{Network, Reply, request, twined};
use google_cloud_googleapis::pubsub::v1 as google;
use prost::Message;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;
use twined::event::encode::NewQuestion;
use twined::event::{OutgoingMessage, Sruid, Timestamp};
use twined::google::ServiceAccount;
use twined::pubsub::{Connection, Publisher};
use uuid::Uuid;

const SERVICE: &str = "octue/marking";
const TOPIC: &str = "projects/any/topics/main.octue.twined.services";
const DAEMON: &str = "projects/any/subscriptions/twined.daemon";
const PUBLISH: &str = "/google.pubsub.v1.Publisher/Publish";

/// Leaves a file in the service's folder.
const SCRIPT: &str = "touch started; exit 1";

/// The routes of a network's own port.
const NETWORK_ROUTES: [(&str, &str); 7] = [
    ("GET", "/live"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/env"),
    ("GET", "/registry/octue/marking?revision_tag=local"),
    ("GET", "/computeMetadata/v1/universe/universe-domain"),
    ("POST", "/google/token"),
];

/// The routes of the emulator over plain HTTP.
const EMULATOR_ROUTES: [(&str, &str); 11] = [
    ("GET", "/v1/projects/any/topics"),
    ("GET", "/v1/projects/any/subscriptions"),
    ("GET", "/v1/projects/any/topics/main.octue.twined.services"),
    ("GET", "/v1/projects/any/topics/main.octue.twined.services/subscriptions"),
    ("GET", "/v1/projects/any/subscriptions/twined.daemon"),
    ("PUT", "/v1/projects/any/topics/made-by-a-page"),
    ("PUT", "/v1/projects/any/subscriptions/made-by-a-page"),
    ("DELETE", "/v1/projects/any/topics/main.octue.twined.services"),
    ("DELETE", "/v1/projects/any/subscriptions/twined.daemon"),
    ("POST", "/v1/projects/any/subscriptions/twined.daemon:detach"),
    ("POST", "/google.pubsub.v1.Publisher/DetachSubscription"),
];

/// The content types, and none, that a page can send without a preflight request.
const SIMPLE_TYPES: [&str; 5] = [
    "",
    "Content-Type: text/plain\r\n",
    "Content-Type: text/plain; charset=application/json\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "Content-Type: multipart/form-data; boundary=x\r\n",
];

/// Headers that only a page's request has.
const PAGE_HEADERS: [&str; 8] = [
    "Host: HERE\r\nOrigin: https://evil.example\r\n",
    "Host: HERE\r\nOrigin: null\r\n",
    "Host: HERE\r\nOrigin: http://127.0.0.1:3000\r\n",
    "Host: evil.example:8085\r\n",
    "Host: 0.0.0.0:8085\r\n",
    "Host: [::ffff:7f00:1]:8085\r\n",
    "Host: evil.example:8085\r\nOrigin: http://evil.example:8085\r\n",
    "Host: HERE\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
];

/// Sends a request with these header lines on a new connection.
fn send(address: &str, method: &str, path: &str, lines: &str, body: &[u8]) -> Reply {
    let lines = lines.replace("HERE", address);
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    request(address, &[head.as_bytes(), body].concat())
}

/// A question, as a framed gRPC message.
fn framed_question() -> Vec<u8> {
    let message = question();
    let message = google::PubsubMessage {
        data: message.data,
        attributes: message.attributes.into_iter().collect(),
        ordering_key: message.ordering_key,
        ..google::PubsubMessage::default()
    };
    let publish = google::PublishRequest { topic: TOPIC.to_owned(), messages: vec![message] };
    framed(&publish)
}

fn framed(message: &impl Message) -> Vec<u8> {
    let length = u32::try_from(message.encoded_len()).unwrap();
    [&[0], &length.to_be_bytes()[..], &message.encode_to_vec()].concat()
}

fn question() -> OutgoingMessage {
    NewQuestion {
        question_uuid: Uuid::new_v4(),
        sender: Sruid::parse("local/local:local").unwrap(),
        recipient: Sruid::parse("octue/marking:local").unwrap(),
        datetime: Timestamp::now(),
        forward_logs: false,
        input_values: None,
        input_manifest: None,
    }
    .encode()
}

/// All topics and subscriptions.
fn resources(network: &Network) -> (String, String) {
    let list = |what: &str| {
        let path = format!("/v1/projects/any/{what}");
        let reply = send(network.pubsub(), "GET", &path, "Host: HERE\r\n", b"");
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body
    };
    (list("topics"), list("subscriptions"))
}

/// Asserts that no page changed the network or started the service, which a real question does
/// start.
fn assert_unchanged(network: &Network, before: &(String, String)) {
    let mark = network.folder(SERVICE).join("started");
    assert_eq!(&resources(network), before);
    assert!(!mark.exists(), "a page started a service");
    network.publish(question());
    network.wait_for("the service starts", || mark.exists().then_some(()));
    fs::remove_file(mark).unwrap();
}

#[test]
fn every_route_refuses_a_web_page() {
    let network = Network::with_script(SERVICE, SCRIPT);
    let before = resources(&network);
    let json = "Content-Type: application/json\r\n";
    let mut sent = 0;
    for (address, routes) in
        [(network.http(), &NETWORK_ROUTES[..]), (network.pubsub(), &EMULATOR_ROUTES[..])]
    {
        for (method, path) in routes {
            for headers in PAGE_HEADERS {
                for kind in SIMPLE_TYPES.iter().chain([&json]) {
                    let reply = send(address, method, path, &format!("{headers}{kind}"), b"");
                    let refused = [403, 415, 505].contains(&reply.status);
                    assert!(refused, "{method} {path} {headers} {kind}: {reply:?}");
                    assert!(reply.body.starts_with("request refused: "), "{reply:?}");
                    sent += 1;
                }
            }
        }
    }
    assert_eq!(sent, (7 + 11) * 8 * 6);
    assert_unchanged(&network, &before);
}

#[test]
fn a_change_by_a_simple_request_is_refused() {
    let network = Network::with_script(SERVICE, SCRIPT);
    let before = resources(&network);
    let publish = framed_question();
    let detach = google::DetachSubscriptionRequest { subscription: DAEMON.to_owned() };
    let detach = framed(&detach);
    for kind in SIMPLE_TYPES.iter().chain([&"Content-Type: application/grpc\r\n"]) {
        let lines = format!("Host: HERE\r\n{kind}");
        let address = network.pubsub();
        let detach_path = "/google.pubsub.v1.Publisher/DetachSubscription";
        let rest_path = "/v1/projects/any/subscriptions/twined.daemon:detach";
        for (path, body) in [(PUBLISH, &publish[..]), (detach_path, &detach), (rest_path, b"{}")] {
            let reply = send(address, "POST", path, &lines, body);
            assert!([415, 505].contains(&reply.status), "{path} {kind}: {reply:?}");
        }
        if !kind.is_empty() {
            for method in ["PUT", "DELETE"] {
                let path = "/v1/projects/any/subscriptions/twined.daemon";
                let reply = send(address, method, path, &lines, b"{}");
                assert!([415, 505].contains(&reply.status), "{method} {kind}: {reply:?}");
            }
        }
    }
    assert_unchanged(&network, &before);
}

#[test]
fn the_same_requests_of_a_client_are_answered() {
    let network = Network::with_script(SERVICE, SCRIPT);
    for host in ["Host: HERE\r\n", "Host: localhost:1\r\n", "Host: [::1]\r\n", ""] {
        for (method, path) in NETWORK_ROUTES.iter().filter(|(method, _)| *method == "GET") {
            let reply = send(network.http(), method, path, host, b"");
            assert_eq!(reply.status, 200, "{path} {host}: {}", reply.body);
        }
    }
    let own = "Host: HERE\r\nOrigin: http://HERE\r\n";
    assert_eq!(send(network.http(), "GET", "/env", own, b"").status, 200);
    let form = "Host: HERE\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let token = send(network.http(), "POST", "/google/token", form, b"grant_type=x");
    assert_eq!(token.status, 400, "{}", token.body);
    // Requests like those of `curl -X PUT` and of Google's Rust client.
    let json = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let topic = "/v1/projects/any/topics/a-topic";
    let subscription = "/v1/projects/any/subscriptions/a-subscription";
    let body = br#"{"topic": "projects/any/topics/a-topic"}"#;
    for (method, path, lines, body) in [
        ("PUT", topic, "Host: HERE\r\n", &b""[..]),
        ("PUT", subscription, json, body),
        ("POST", &format!("{subscription}:detach"), json, b"null"),
        ("DELETE", subscription, "Host: HERE\r\n", b""),
    ] {
        let reply = send(network.pubsub(), method, path, lines, body);
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.body);
    }
}

/// A process of the program, killed when this is dropped, and its address.
struct Server {
    process: Child,
    address: String,
    _root: TempDir,
}

impl Server {
    /// Starts the program. Its address follows `label` on a line of its stderr.
    fn start(arguments: &[&str], label: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut command = twined(arguments);
        let command = command.current_dir(root.path()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            eprintln!("{line}");
            let (_, rest) = line.split_once(label)?;
            let rest = rest.trim_start_matches([' ', '=', '"', ':']);
            Some(rest.split([' ', '"', ',']).next().unwrap().to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address: address.expect("it prints its address"), _root: root }
    }

    /// The status of a GET with this `Host`.
    fn status(&self, path: &str, host: &str) -> u16 {
        // It may listen on all addresses.
        let address = self.address.replace("0.0.0.0", "127.0.0.1");
        send(&address, "GET", path, &format!("Host: {host}\r\n"), b"").status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn only_allowed_names_are_accepted() {
    let arguments =
        ["emulator", "--pubsub-port", "0", "--allow-host", "devbox", "--allow-host=db.corp,x.corp"];
    let emulator = Server::start(&arguments, "pubsub");
    let topics = "/v1/projects/any/topics";
    for host in ["devbox:8085", "db.corp", "x.corp", "localhost"] {
        assert_eq!(emulator.status(topics, host), 200, "{host}");
    }
    assert_eq!(emulator.status(topics, "evil.example"), 403);
    let wrong = twined(&["emulator", "--allow-host", "http://devbox"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let stderr = text(&wrong.stderr);
    assert!(stderr.contains("expected a host name such as `devbox`"), "{stderr}");
}

#[test]
fn a_daemon_is_reached_by_any_name_beyond_loopback_only() {
    let serve = |http: &str, emulate: &str| {
        let arguments = ["serve", "--runner", "process", "--log-format", "json", "--http", http];
        let arguments = [&arguments[..], &["--emulate", emulate]].concat();
        // One log line has both addresses; the emulator's is `pubsub`.
        (Server::start(&arguments, "\"http\""), Server::start(&arguments, "\"pubsub\""))
    };
    let (http, pubsub) = serve("0.0.0.0:0", "0.0.0.0:0");
    for host in ["10.1.2.3:8080", "twined.default.svc.cluster.local:8080", "twined"] {
        assert_eq!(http.status("/ready", host), 200, "{host}");
        assert_eq!(http.status("/metrics", host), 200, "{host}");
        assert_eq!(pubsub.status("/v1/projects/any/topics", host), 200, "{host}");
    }
    let (http, pubsub) = serve("127.0.0.1:0", "127.0.0.1:0");
    assert_eq!(http.status("/metrics", "twined.default.svc.cluster.local"), 403);
    assert_eq!(pubsub.status("/v1/projects/any/topics", "twined"), 403);
    assert_eq!(http.status("/live", "localhost:8080"), 200);
    for path in ["/live", "/ready", "/metrics"] {
        for headers in PAGE_HEADERS {
            let reply = send(&http.address, "GET", path, headers, b"");
            assert_eq!(reply.status, 403, "{path} {headers}");
        }
    }
}

#[test]
fn grpc_accepts_every_name() {
    // A client sends the name that it was configured with.
    let emulator = Server::start(&["emulator", "--pubsub-port", "0"], "pubsub");
    let port = emulator.address.rsplit_once(':').unwrap().1;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connection = Connection::emulator(&format!("localhost:{port}"), "any").unwrap();
        let admin = twined::pubsub::Admin::new(&connection);
        admin.ensure_topic("a-topic").await.unwrap();
        let endpoint = tonic::transport::Endpoint::new(format!("http://{}", emulator.address));
        let endpoint = endpoint.unwrap().origin("http://twined.default.svc:8085".parse().unwrap());
        let mut publisher =
            google::publisher_client::PublisherClient::new(endpoint.connect().await.unwrap());
        let topic = "projects/any/topics/a-topic".to_owned();
        let got = publisher.get_topic(google::GetTopicRequest { topic }).await.unwrap();
        assert_eq!(got.into_inner().name, "projects/any/topics/a-topic");
        let publisher = Publisher::new(&connection, "a-topic");
        publisher.publish(question()).await.unwrap();
    });
}

/// A server that answers every request with this body.
fn answering(body: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::{Read, Write};
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// The answer of a hostile owner of the network's port: a valid description with changed variables.
fn description(folder: &Path, changes: &str) -> String {
    let credentials = folder.join("google.json");
    let mut variables = serde_json::json!({
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:8085",
        "GCE_METADATA_HOST": "127.0.0.1:8094",
        "GOOGLE_CLOUD_PROJECT": "any",
        "GOOGLE_APPLICATION_CREDENTIALS": credentials,
        "TWINED_SERVICES_TOPIC_NAME": "a-topic",
        "TWINED_LOCAL_REGISTRY": "http://127.0.0.1:8094/registry",
    });
    let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value.is_null() {
            true => drop(variables.as_object_mut().unwrap().remove(name)),
            false => variables[name] = value.clone(),
        }
    }
    serde_json::json!({ "variables": variables, "shim": folder }).to_string()
}

/// A folder with the credentials of a network at port 8094.
fn credentials() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let token_uri = "http://127.0.0.1:8094/google/token";
    let path = folder.path().join("google.json");
    ServiceAccount::ensure(&path, "any", token_uri).unwrap();
    folder
}

/// Runs `twined env` with this home folder and this answer of the network.
fn env(home: &Path, answer: &str, flags: &[&str]) -> Output {
    let url = format!("http://{}", answering(answer));
    twined(&["env", "--url", &url]).args(flags).env("HOME", home).output().unwrap()
}

#[test]
fn twined_env_prints_known_variables_only() {
    let folder = credentials();
    let marker = folder.path().join("pwned");
    let name = format!("x;touch {};y", marker.display());
    let lines = serde_json::json!({ name: "1", "PATH": "/evil", "LD_PRELOAD": "/evil.so" });
    let hostile = description(folder.path(), &lines.to_string());
    for shell in ["sh", "fish", "powershell"] {
        let output = env(folder.path(), &hostile, &["--shell", shell]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{err}");
        assert!(out.contains("GOOGLE_CLOUD_PROJECT"), "{out}");
        for name in ["PATH", "LD_PRELOAD", "touch"] {
            assert!(!out.contains(name), "{out}");
        }
        assert!(err.contains("3 unknown variables left out"), "{err}");
        if shell == "sh" {
            assert!(Command::new("sh").arg("-c").arg(&out).status().unwrap().success());
        }
    }
    assert!(!marker.exists());
}

#[test]
fn twined_env_refuses_a_description_that_is_not_a_networks() {
    let folder = credentials();
    let shared = credentials();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let external = folder.path().join("external.json");
    fs::write(&external, r#"{"type": "external_account", "token_url": "http://evil.example"}"#)
        .unwrap();
    let credentials =
        |path: &Path| serde_json::json!({ "GOOGLE_APPLICATION_CREDENTIALS": path }).to_string();
    for (changes, expected) in [
        (r#"{"PUBSUB_EMULATOR_HOST": "$(id):80"}"#, "`PUBSUB_EMULATOR_HOST`"),
        (r#"{"PUBSUB_EMULATOR_HOST": null}"#, "lacks `PUBSUB_EMULATOR_HOST`"),
        (r#"{"TWINED_SERVICES_TOPIC_NAME": "a\nb"}"#, "topic name"),
        (r#"{"GCE_METADATA_HOST": "127.0.0.1:1"}"#, "is not a service account of this network"),
        (&credentials(Path::new("/dev/zero")), "cannot be used"),
        (&credentials(Path::new("/etc/passwd")), "is not a service account of this network"),
        (&credentials(&external), "is not a service account of this network"),
        (&credentials(&shared.path().join("google.json")), "other users of this machine"),
        (&credentials(&folder.path().join("nowhere")), "nowhere"),
    ] {
        let output = env(folder.path(), &description(folder.path(), changes), &[]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{changes}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{changes}");
        // On some systems, a device is refused for another reason.
        let device = changes.contains("/dev/") && stderr.contains("is not a service account");
        assert!(stderr.contains(expected) || device, "{changes}: {stderr}");
    }
    let huge = format!("{{\"variables\": {{}}, \"x\": \"{}\"}}", "a".repeat(100_000));
    for (answer, expected) in [(&*huge, "over 65536 bytes"), ("<html>", "is not a network")] {
        let output = env(folder.path(), answer, &[]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[test]
fn the_shim_on_pythonpath_never_comes_from_the_network() {
    let folder = credentials();
    fs::write(folder.path().join("sitecustomize.py"), "import os").unwrap();
    let hostile = description(folder.path(), "{}");

    let output = env(folder.path(), &hostile, &["--shim"]);

    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let line = out.lines().find(|line| line.starts_with("export PYTHONPATH=")).unwrap();
    let shim = line.trim_start_matches("export PYTHONPATH=").trim_matches('\'');
    let cache = fs::canonicalize(folder.path()).unwrap().join(".cache/twined");
    assert!(shim.starts_with(cache.to_str().unwrap()), "{shim}");
    let written = fs::read_to_string(Path::new(shim).join("sitecustomize.py")).unwrap();
    assert!(written.contains("twined_hook"), "{written}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_refused_connection_is_closed() {
    let network = Network::with_script(SERVICE, SCRIPT);
    for address in [network.http(), network.pubsub()] {
        // `request` reads until the server closes, so without a close this would never return.
        let refused = request(address, b"GET /env HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        assert_eq!(refused.status, 403);
    }
}

#[test]
fn no_other_origin_can_embed_an_answer() {
    let network = Network::with_script(SERVICE, SCRIPT);
    for (address, path) in [(network.http(), "/env"), (network.pubsub(), "/v1/projects/any/topics")]
    {
        let reply = send(address, "GET", path, "Host: HERE\r\n", b"");
        for line in [
            "cross-origin-resource-policy: same-origin",
            "x-content-type-options: nosniff",
            "content-security-policy: frame-ancestors 'none'",
        ] {
            assert!(reply.head.contains(line), "{path}: {}", reply.head);
        }
    }
}
