"""A network whose questions run as pods: the daemons under test, and parents that ask questions.

network = Network(cluster, namespace, emulator, …)
with network.daemon() as daemon:
    with network.parent("tests/echo:local", input_values={"n": 3}) as parent:
        parent.wait_for("result")
"""

import contextlib
import datetime
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from google.api_core.exceptions import DeadlineExceeded, NotFound
from google.cloud import pubsub_v1

import images
import offline
from cluster import wait_for

TOPIC = "tests.octue.twined.services"
# The SRUID of a parent that is no service.
PARENT_SRUID = "local/local:local"
# The kinds of terminal events.
TERMINAL = ("result", "exception")
STARTED = re.compile(
    r'"message":"daemon started".*?"http":"([^"]+)"|"http":"([^"]+)".*?"message":"daemon started"'
)


class Network:
    """What all daemons and all parents of one network share."""

    def __init__(self, cluster, namespace, emulator, google, kubeconfig, binary, folder):
        self.cluster = cluster
        self.namespace = namespace
        self.emulator = emulator
        self.google = google
        self.kubeconfig = kubeconfig
        self.binary = binary
        self.folder = folder
        self.settings = {"defaults": self.defaults(), "rules": []}
        self.flags = []
        # Where daemons listen for HTTP: not on loopback in tests whose pods send requests.
        self.http = "127.0.0.1:0"
        self.daemons = 0
        # Google's clients read it when they are created.
        os.environ["PUBSUB_EMULATOR_HOST"] = emulator
        ordered = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        self.publisher = pubsub_v1.PublisherClient(publisher_options=ordered)
        self.subscriber = pubsub_v1.SubscriberClient()
        self.topic = self.publisher.topic_path(offline.PROJECT, TOPIC)
        # So that a question can be asked before a daemon starts.
        self.publisher.create_topic(request={"name": self.topic})

    def defaults(self):
        """The settings of all services: small requests, and variables for Google's clients."""
        variables = {
            variable["name"]: variable["value"] for variable in as_list(self.google["env"])
        }
        return {
            "cpus": {"default": "100m"},
            "memory": {"default": "128Mi"},
            "ephemeral_storage": {"default": "64Mi"},
            "environment": variables,
            "volumes": [{"path": offline.FOLDER, "secret": offline.SECRET}],
        }

    def local_environment(self):
        """The environment of a program of this machine that asks with the SDK."""
        programs = [os.path.dirname(sys.executable), os.environ["PATH"]]
        return {
            **self.cluster.offline.local_environment(self.emulator),
            "PATH": os.pathsep.join(programs),
            "HOME": str(self.folder),
            "PYTHONPATH": str(images.SHIM),
            "TWINED_SERVICES_TOPIC_NAME": TOPIC,
        }

    # === Daemons ===

    def daemon(self, *flags, name=None, **environment):
        """Starts a replica, and waits until it is ready."""
        daemon = self.start_daemon(*flags, name=name, **environment)
        daemon.wait_until_ready()
        return daemon

    def start_daemon(self, *flags, name=None, **environment):
        """Starts a replica, without waiting until it is ready."""
        self.daemons += 1
        name = name or f"replica-{self.daemons}"
        settings = self.write_settings(name)
        return Daemon(self, name, settings, [*self.flags, *flags], environment)

    def doctor(self, *flags):
        """The results of `twined doctor`, by the names of its checks."""
        command = self.command("doctor", "doctor", self.write_settings("doctor"), *flags)
        done = subprocess.run(
            [*command, "--output", "json"],
            env=self.process_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, done.stderr
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    def write_settings(self, name):
        settings = self.folder / f"{name}.settings.json"
        settings.write_text(json.dumps(self.settings))
        return settings

    def command(self, command, name, settings, *flags):
        """The arguments of `twined serve` or `twined doctor`."""
        pods_pubsub = self.settings["defaults"]["environment"]["PUBSUB_EMULATOR_HOST"]
        arguments = [
            self.binary,
            command,
            *("--topic", TOPIC, "--project", offline.PROJECT, "--pubsub", self.emulator),
            *("--store", f"sqlite:{self.store}", "--data", self.folder / f"{name}.data"),
            *("--namespace", self.namespace, "--images", self.cluster.repository),
            *("--service-account", "default", "--settings", settings),
            *("--http", self.http, "--replica", name),
            *("--env", f"PUBSUB_EMULATOR_HOST={pods_pubsub}", *flags),
            *(("--log-format", "json") if command == "serve" else ()),
        ]
        return [str(argument) for argument in arguments]

    def process_environment(self):
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.kubeconfig),
        }

    @property
    def store(self):
        return self.folder / "events.sqlite"

    # === Events ===

    def rows(self, question_uuid=None, *kinds):
        """The events on record, of one question or of all questions."""
        where = "WHERE question_uuid = ?" if question_uuid else ""
        values = (str(question_uuid),) if question_uuid else ()
        with contextlib.closing(
            sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=20)
        ) as store:
            store.row_factory = sqlite3.Row
            rows = store.execute(
                f"SELECT * FROM service_events {where} ORDER BY datetime", values
            ).fetchall()
        return [dict(row) for row in rows if not kinds or row["kind"] in kinds]

    def wait_for_row(self, question_uuid, *kinds, within=60):
        what = f"{' or '.join(kinds)} of {question_uuid} is on record"
        return wait_for(lambda: self.rows(question_uuid, *kinds), what, within)[0]

    def rejected_messages(self):
        """The rejected messages."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=20)
        ) as store:
            store.row_factory = sqlite3.Row
            return [dict(row) for row in store.execute("SELECT * FROM rejected_messages")]

    # === Parents ===

    def parent(self, recipient, question_uuid=None, **arguments):
        """Publishes a question as the SDK does, and receives its events."""
        return Parent(self, recipient, question_uuid or str(uuid.uuid4()), **arguments)

    def ask(self, recipient, count=1, **arguments):
        """Asks questions without receiving their events. Returns their uuids."""
        asked = []
        for _ in range(count):
            parent = Parent(self, recipient, str(uuid.uuid4()), listen=False, **arguments)
            asked.append(parent.question_uuid)
        return asked

    def ends(self, questions=None):
        """The terminal events on record, of these questions or of all, by question uuid."""
        rows = {row["question_uuid"]: row for row in self.rows(None, *TERMINAL)}
        return {
            question: row
            for question, row in rows.items()
            if questions is None or question in questions
        }

    def wait_for_ends(self, questions, within=120):
        """Waits until all of these questions have ended, and returns their terminal events."""

        def ends():
            found = self.ends(set(questions))
            return found if len(found) == len(questions) else None

        return wait_for(ends, f"{len(questions)} questions have ended", within, pause=0.5)

    def publish(self, data, attributes, ordering_key):
        """Publishes an event, and waits until Pub/Sub has it."""
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
        sent = self.publisher.publish(self.topic, data, ordering_key=ordering_key, **attributes)
        return sent.result(timeout=60)

    # === Jobs and pods ===

    def job(self, question_uuid, suffix=""):
        """The Job of a question, or None."""
        name = f"question-{question_uuid}{suffix}"
        return self.cluster.kubectl.get("job", name, "-n", self.namespace)

    def jobs(self, question_uuid=None):
        """The Jobs of one question, or of all questions."""
        selector = (
            f"=twined,twined.octue.com/question={question_uuid}" if question_uuid else "=twined"
        )
        selector = f"app.kubernetes.io/managed-by{selector}"
        return self.cluster.kubectl.list("jobs", "-n", self.namespace, "-l", selector)

    def pods(self, question_uuid, suffix=""):
        """The pods of a question's Job."""
        selector = f"batch.kubernetes.io/job-name=question-{question_uuid}{suffix}"
        return self.cluster.kubectl.list("pods", "-n", self.namespace, "-l", selector)

    def wait_for_pod(self, question_uuid, matches=lambda pod: True, within=60, suffix=""):
        """Waits for a pod of the question that matches, and returns it."""

        def found():
            return next((pod for pod in self.pods(question_uuid, suffix) if matches(pod)), None)

        return wait_for(found, f"a pod of {question_uuid} matches", within)

    def wait_for_run(self, question_uuid, within=60):
        """Waits until a question's container runs."""
        return self.wait_for_pod(question_uuid, is_running, within)

    def wait_until_gone(self, question_uuid, within=60):
        """Waits until a question has no Job, no pod and no process."""
        uids = [pod["metadata"]["uid"] for pod in self.pods(question_uuid)]

        def gone():
            left = self.jobs(question_uuid) or self.pods(question_uuid)
            return not left and not any(processes(uid) for uid in uids)

        return wait_for(gone, f"nothing is left of {question_uuid}", within)

    def close(self):
        self.publisher.transport.close()
        self.subscriber.close()


def processes(pod_uid):
    """The processes in a pod's containers, without its pause container."""
    found = []
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if pod_uid in cgroup.read_text():
                command = (cgroup.parent / "cmdline").read_bytes()
                found += [] if command.startswith(b"/bin/busybox\0sleep") else [cgroup.parent.name]
        except OSError:
            # It ended meanwhile.
            continue
    return found


def is_running(pod):
    return pod["status"].get("phase") == "Running"


def as_list(variables):
    """Variables as a list, as in a pod's `env`."""
    if isinstance(variables, dict):
        return [{"name": name, "value": value} for name, value in variables.items()]
    return variables


class Daemon:
    """A replica of `twined serve`."""

    def __init__(self, network, name, settings, flags, environment):
        self.network = network
        self.name = name
        self.log = network.folder / f"{name}.log"
        self.process = subprocess.Popen(
            network.command("serve", name, settings, *flags),
            env={**network.process_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("a"),
        )

    @property
    def pid(self):
        return self.process.pid

    def wait_until_ready(self, within=60):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended: {self.end_of_log()}")
            return self.get("/ready") == 200

        return wait_for(ready, f"{self.name} is ready", within)

    def url(self):
        # The log of a replica that was restarted has several.
        found = list(STARTED.finditer(self.log.read_text()))
        return f"http://{found[-1][1] or found[-1][2]}" if found else None

    def get(self, path):
        """The HTTP status of a page; None if nothing answers."""
        url = self.url()
        if url is None:
            return None
        try:
            return urllib.request.urlopen(url + path, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def metrics(self):
        """The samples of /metrics, by name with labels."""
        text = urllib.request.urlopen(self.url() + "/metrics", timeout=10).read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines if name}

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, within=20):
        """Ends it by SIGTERM, as Kubernetes does, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end: {self.end_of_log()}") from None

    def end_of_log(self, lines=30):
        return "\n".join(self.log.read_text().splitlines()[-lines:])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Parent:
    """The parent of one question. Publishes, subscribes and filters as the SDK does."""

    def __init__(self, network, recipient, question_uuid, **arguments):
        self.network = network
        self.recipient = recipient
        self.question_uuid = question_uuid
        self.retry_count = arguments.pop("retry_count", 0)
        self.sender = arguments.pop("sender", PARENT_SRUID)
        self.parent_question_uuid = arguments.pop("parent_question_uuid", None)
        self.originator_question_uuid = arguments.pop("originator_question_uuid", question_uuid)
        self.forward_logs = arguments.pop("forward_logs", True)
        # More attributes: cpus, memory, ephemeral_storage, or others.
        self.more = arguments.pop("attributes", {})
        publish = arguments.pop("publish", True)
        # Thousands of subscriptions would be too many.
        listen = arguments.pop("listen", True)
        self.data = {"kind": "question", **arguments}
        # (event, attributes, time of receipt)
        self.events = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = None
        if listen:
            self.listen()
        self.asked = time.time()
        if publish:
            self.publish()

    def listen(self):
        name = self.recipient.replace("/", ".").replace(":", ".") + f".answers.{self.question_uuid}"
        name += f".{uuid.uuid4().hex[:6]}"
        self.subscription = self.network.subscriber.subscription_path(offline.PROJECT, name)
        self.network.subscriber.create_subscription(
            request={
                "name": self.subscription,
                "topic": self.network.topic,
                "filter": f'attributes.recipient = "{self.sender}" AND '
                f'attributes.question_uuid = "{self.question_uuid}" AND '
                'attributes.sender_type = "CHILD"',
                "enable_message_ordering": True,
            }
        )
        self.thread = threading.Thread(target=self.pull, daemon=True)
        self.thread.start()

    def attributes(self, sender_type="PARENT", **changed):
        attributes = {
            "uuid": str(uuid.uuid4()),
            "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "question_uuid": self.question_uuid,
            "originator_question_uuid": self.originator_question_uuid,
            "parent": self.sender,
            "originator": self.sender,
            "sender": self.sender,
            "recipient": self.recipient,
            "sender_type": sender_type,
            "sender_sdk_version": "0.69.1",
            "retry_count": str(self.retry_count),
        }
        if self.parent_question_uuid:
            attributes["parent_question_uuid"] = self.parent_question_uuid
        return {**attributes, **changed}

    def publish(self):
        """Publishes the question. A second call is the same event, like a redelivery."""
        self.network.publish(self.data, self.attributes_of_question(), self.question_uuid)

    def attributes_of_question(self):
        """The question's attributes, the same each time that it is published."""
        if not hasattr(self, "sent"):
            self.sent = self.attributes(
                **{
                    "forward_logs": "1" if self.forward_logs else "0",
                    "save_diagnostics": "SAVE_DIAGNOSTICS_OFF",
                    **self.more,
                }
            )
        return self.sent

    def cancel(self, **changed):
        """Publishes a cancellation."""
        self.network.publish(
            {"kind": "cancellation"}, self.attributes(**changed), self.question_uuid
        )

    def answer_for_child(self, kind="result", **fields):
        """Publishes an event in the name of the child, because fake nodes run none."""
        attributes = self.attributes("CHILD", sender=self.recipient, recipient=self.sender)
        self.network.publish({"kind": kind, **fields}, attributes, self.question_uuid)

    def pull(self):
        client = self.network.subscriber
        while not self.stopped.is_set():
            try:
                pulled = client.pull(
                    request={"subscription": self.subscription, "max_messages": 100},
                    timeout=5,
                    retry=None,
                )
                ids = [received.ack_id for received in pulled.received_messages]
                self.record(pulled.received_messages)
                if ids:
                    client.acknowledge(request={"subscription": self.subscription, "ack_ids": ids})
            except DeadlineExceeded:
                continue
            except Exception:
                # A test cut the connection, or the parent was closed.
                if self.stopped.wait(0.2):
                    return

    def record(self, messages):
        with self.lock:
            for received in messages:
                message = received.message
                event = json.loads(message.data)
                self.events.append((event, dict(message.attributes), time.time()))

    def received(self, *kinds):
        """The events received so far, of these kinds or of all kinds."""
        with self.lock:
            return [event for event, _, _ in self.events if not kinds or event["kind"] in kinds]

    def when(self, kind):
        """When the first event of a kind was received."""
        with self.lock:
            return next(at for event, _, at in self.events if event["kind"] == kind)

    def wait_for(self, *kinds, within=60):
        """Waits for an event of these kinds, and returns the first."""
        what = f"{' or '.join(kinds)} of {self.question_uuid} is received"
        try:
            return wait_for(lambda: self.received(*kinds), what, within)[0]
        except TimeoutError as error:
            raise TimeoutError(f"{error}; received: {self.received()}") from None

    def end(self, within=60):
        """Waits for the terminal event."""
        return self.wait_for(*TERMINAL, within=within)

    def exception(self, within=60):
        """Waits for the terminal event, which must be an exception."""
        event = self.end(within)
        assert event["kind"] == "exception", event
        return event

    def result(self, within=60):
        """Waits for the terminal event, which must be a result."""
        event = self.end(within)
        assert event["kind"] == "result", event
        return event

    def ends(self):
        """All terminal events that were published before this call."""
        fence = uuid.uuid4().hex
        self.answer_for_child("monitor_message", data=fence)
        wait_for(
            lambda: any(event.get("data") == fence for event in self.received("monitor_message")),
            f"the fence behind all events of {self.question_uuid} is received",
        )
        return self.received(*TERMINAL)

    def logs(self):
        """The messages of the log records received."""
        return [event["log_record"]["msg"] for event in self.received("log_record")]

    def close(self):
        self.stopped.set()
        if self.thread is None:
            return
        # This ends the pull that may be waiting.
        with contextlib.suppress(NotFound):
            self.network.subscriber.delete_subscription(request={"subscription": self.subscription})
        self.thread.join(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
