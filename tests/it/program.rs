//! The real binary, with services that are small scripts.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;
use twined::event::OutgoingMessage;
use twined::pubsub::{Connection, Publisher};

/// How long a test waits for an event.
const DEADLINE: Duration = Duration::from_secs(30);

/// The binary with these arguments, and with no variable of the tests but `PATH`.
pub(crate) fn twined(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twined"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command
}

/// A process of `twined local`, interrupted when this is dropped.
pub(crate) struct Network {
    root: TempDir,
    process: Child,
    pubsub: String,
    http: String,
}

impl Network {
    /// A network with services that count primes.
    pub(crate) fn start(services: &[&str]) -> Self {
        let binary = env!("CARGO_BIN_EXE_twined");
        let script = format!("shift 3; exec '{binary}' example-service \"$@\"");
        let services: Vec<_> = services.iter().map(|service| (*service, &*script)).collect();
        Self::with(&services)
    }

    /// A network with one service, whose `octue` is a shell script.
    pub(crate) fn with_script(service: &str, script: &str) -> Self {
        Self::with(&[(service, script)])
    }

    fn with(services: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("services")).unwrap();
        for (service, script) in services {
            make_service(&root.path().join("services").join(service), service, script);
        }
        let data = root.path().join("data");
        let mut command = twined(&["local", "--http-port", "0", "--pubsub-port", "0"]);
        command.arg("--data").arg(data).current_dir(root.path()).stderr(Stdio::piped());
        if !services.is_empty() {
            command.arg("services");
        }
        let mut process = command.spawn().unwrap();
        let stderr = process.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        // Read to the end, so that the network does not block on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        let address = |name: &str| loop {
            let line = lines.recv_timeout(DEADLINE).expect("the network prints its addresses");
            if let Some(value) = line.trim().strip_prefix(name) {
                return value.trim().trim_start_matches("http://").to_owned();
            }
        };
        let (pubsub, http) = (address("pubsub"), address("http"));
        let network = Self { root, process, pubsub, http };
        network
            .wait_for("the network is ready", || (network.status("/ready") == 200).then_some(()));
        network
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// The folder of a service.
    pub(crate) fn folder(&self, service: &str) -> PathBuf {
        self.root.path().join("services").join(service)
    }

    /// Runs `twined ask` to its end.
    pub(crate) fn ask(&self, sruid: &str, arguments: &[&str]) -> Output {
        self.asking(sruid, arguments).wait_with_output().unwrap()
    }

    /// Starts `twined ask`.
    pub(crate) fn asking(&self, sruid: &str, arguments: &[&str]) -> Child {
        let url = format!("http://{}", self.http);
        let mut command = twined(&["ask", sruid, "--url", &url]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Publishes a message to its topic.
    pub(crate) fn publish(&self, message: OutgoingMessage) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let connection = Connection::emulator(&self.pubsub, "any-project").unwrap();
            let publisher = Publisher::new(&connection, "main.octue.twined.services");
            publisher.publish(message).await.unwrap();
        });
    }

    /// The body of a GET.
    pub(crate) fn get(&self, path: &str) -> String {
        self.request(path).1
    }

    /// The status of a GET.
    pub(crate) fn status(&self, path: &str) -> u16 {
        self.request(path).0
    }

    /// Sends `text` to its HTTP server, and returns the connection.
    pub(crate) fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    /// The address of its HTTP server.
    pub(crate) fn http(&self) -> &str {
        &self.http
    }

    /// The address of its Pub/Sub emulator.
    pub(crate) fn pubsub(&self) -> &str {
        &self.pubsub
    }

    fn request(&self, path: &str) -> (u16, String) {
        let Reply { status, body, .. } =
            request(&self.http, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        (status, body)
    }

    /// Waits until `poll` returns something.
    pub(crate) fn wait_for<T>(&self, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = poll() {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Sends SIGINT, and returns its exit code.
    pub(crate) fn interrupt(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.process.wait().unwrap().code()
    }
}

/// An answer of a server.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends bytes on a new connection, and reads until the server closes it.
pub(crate) fn request(address: &str, bytes: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    // A server that refuses a request need not read all of it.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

impl Drop for Network {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.interrupt();
        }
    }
}

/// A folder whose `.venv/bin/octue` is a script.
pub(crate) fn make_service(folder: &Path, service: &str, script: &str) {
    let bin = folder.join(".venv/bin");
    fs::create_dir_all(&bin).unwrap();
    let (namespace, name) = service.split_once('/').unwrap();
    let text = format!("services:\n  - name: {name}\n    namespace: {namespace}\n");
    fs::write(folder.join("octue.yaml"), text).unwrap();
    fs::write(bin.join("octue"), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(bin.join("octue"), fs::Permissions::from_mode(0o755)).unwrap();
}
