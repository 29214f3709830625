//! What a web page can send to the servers of a network on this host, sent raw: refused. What
//! clients that are no pages send: answered.

use crate::program::{Network, Reply, request, twined};
use google_cloud_googleapis::pubsub::v1 as google;
use prost::Message;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use twined::event::encode::Ask;
use twined::event::{Outgoing, Sruid, Timestamp};
use twined::pubsub::{Connection, Publisher};
use uuid::Uuid;

const SERVICE: &str = "octue/marking";
const TOPIC: &str = "projects/any/topics/main.octue.twined.services";
const DAEMON: &str = "projects/any/subscriptions/twined.daemon";
const PUBLISH: &str = "/google.pubsub.v1.Publisher/Publish";

/// Leaves a mark in the service's folder.
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

/// The content types that a page can send without asking the server first; none is one of them.
const SIMPLE_TYPES: [&str; 5] = [
    "",
    "Content-Type: text/plain\r\n",
    "Content-Type: text/plain; charset=application/json\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "Content-Type: multipart/form-data; boundary=x\r\n",
];

/// What tells a page's request from a client's.
const MARKS: [&str; 6] = [
    "Host: HERE\r\nOrigin: https://evil.example\r\n",
    "Host: HERE\r\nOrigin: null\r\n",
    "Host: HERE\r\nOrigin: http://127.0.0.1:3000\r\n",
    "Host: evil.example:8085\r\n",
    "Host: evil.example:8085\r\nOrigin: http://evil.example:8085\r\n",
    "Host: HERE\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
];

/// A request on a connection of its own, with these lines behind the first.
fn send(address: &str, method: &str, path: &str, lines: &str, body: &[u8]) -> Reply {
    let lines = lines.replace("HERE", address);
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    request(address, &[head.as_bytes(), body].concat())
}

/// A question that a page would ask, as the gRPC message in its frame.
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

fn question() -> Outgoing {
    Ask {
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
fn there_is(network: &Network) -> (String, String) {
    let list = |what: &str| {
        let path = format!("/v1/projects/any/{what}");
        let reply = send(network.pubsub(), "GET", &path, "Host: HERE\r\n", b"");
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body
    };
    (list("topics"), list("subscriptions"))
}

/// The network is as it was, and hears: the service that no page has started starts now.
fn assert_nothing_happened(network: &Network, before: &(String, String)) {
    let mark = network.folder(SERVICE).join("started");
    assert_eq!(&there_is(network), before);
    assert!(!mark.exists(), "a page started a service");
    network.publish(question());
    network.wait_for("the service starts", || mark.exists().then_some(()));
    fs::remove_file(mark).unwrap();
}

#[test]
fn every_route_refuses_a_web_page() {
    let network = Network::with_script(SERVICE, SCRIPT);
    let before = there_is(&network);
    let json = "Content-Type: application/json\r\n";
    let mut sent = 0;
    for (address, routes) in
        [(network.http(), &NETWORK_ROUTES[..]), (network.pubsub(), &EMULATOR_ROUTES[..])]
    {
        for (method, path) in routes {
            for mark in MARKS {
                for kind in SIMPLE_TYPES.iter().chain([&json]) {
                    let reply = send(address, method, path, &format!("{mark}{kind}"), b"");
                    let refused = [403, 415, 505].contains(&reply.status);
                    assert!(refused, "{method} {path} {mark} {kind}: {reply:?}");
                    assert!(reply.body.starts_with("request refused: "), "{reply:?}");
                    sent += 1;
                }
            }
        }
    }
    assert_eq!(sent, (7 + 11) * 6 * 6);
    assert_nothing_happened(&network, &before);
}

#[test]
fn a_change_by_a_simple_request_is_refused() {
    let network = Network::with_script(SERVICE, SCRIPT);
    let before = there_is(&network);
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
    assert_nothing_happened(&network, &before);
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
    // As `curl -X PUT`, and as Google's Rust client.
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

/// A program that goes with this, and its address.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// The program whose stderr has a line with `label` and its address.
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
        Self { process, address: address.expect("it prints its address") }
    }

    /// The status of a GET by a client that calls the server `host`.
    fn status(&self, path: &str, host: &str) -> u16 {
        // It may listen at all addresses.
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
fn a_given_name_is_accepted_and_no_other() {
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
    let words = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(words.contains("expected a host name such as `devbox`"), "{words}");
}

#[test]
fn a_daemon_is_reached_by_any_name_beyond_loopback_only() {
    let serve = |http: &str, emulate: &str| {
        let arguments = ["serve", "--runner", "process", "--log-format", "json", "--http", http];
        let arguments = [&arguments[..], &["--emulate", emulate]].concat();
        // Its line says where both are; the emulator's is `pubsub`.
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
        for mark in MARKS {
            assert_eq!(send(&http.address, "GET", path, mark, b"").status, 403, "{path} {mark}");
        }
    }
}

#[test]
fn grpc_has_no_rule_on_names() {
    // A client calls the server what it was told to.
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

/// A server that answers every request with this.
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

#[test]
fn twined_env_prints_what_it_knows_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let marker = root.path().join("pwned");
    let mark = format!("touch {}", marker.display());
    let hostile = answering(&format!(
        r#"{{"variables": {{"x;{mark};y": "1", "PATH": "/evil", "LD_PRELOAD": "/evil.so",
            "GOOGLE_CLOUD_PROJECT": "any"}}, "shim": "/evil"}}"#
    ));
    for shell in ["sh", "fish", "powershell"] {
        let url = format!("http://{hostile}");
        let output = twined(&["env", "--url", &url, "--shell", shell]).output().unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(words.contains("GOOGLE_CLOUD_PROJECT"), "{words}");
        for name in ["PATH", "LD_PRELOAD", "touch"] {
            assert!(!words.contains(name), "{words}");
        }
        let left_out = String::from_utf8(output.stderr).unwrap();
        assert!(left_out.contains("left out what this version does not know"), "{left_out}");
        if shell == "sh" {
            let status = std::process::Command::new("sh").arg("-c").arg(&words).status().unwrap();
            assert!(status.success());
        }
    }
    assert!(!marker.exists());
}

#[test]
fn twined_env_refuses_values_and_a_shim_that_are_not_a_networks() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("sitecustomize.py"), "import os").unwrap();
    let shim = folder.path().display();
    for (variables, shim, flags, words) in [
        (r#""PUBSUB_EMULATOR_HOST": "$(id):80""#, "/x", &[][..], "`PUBSUB_EMULATOR_HOST`"),
        (r#""GOOGLE_APPLICATION_CREDENTIALS": "/a\nb""#, "/x", &[], "absolute path"),
        ("", &*format!("{shim}"), &["--shim"], "not this version's shim"),
        ("", "/nowhere", &["--shim"], "/nowhere"),
        ("", "relative", &["--shim"], "no absolute path"),
    ] {
        let body = format!(r#"{{"variables": {{{variables}}}, "shim": "{shim}"}}"#);
        let url = format!("http://{}", answering(&body));
        let output = twined(&["env", "--url", &url]).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{body}");
        assert_eq!(output.stdout, b"", "{body}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(words), "{told}");
    }
}
