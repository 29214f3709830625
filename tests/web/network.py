"""A running network with one service, which records its starts."""

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import urllib.request
import uuid

import grpc
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import DetachSubscriptionRequest, PubsubMessage, PublishRequest

from waiting import wait_for

SERVICE = "octue/recording"
TOPIC = "projects/any/topics/main.octue.twined.services"
SUBSCRIPTION = "projects/any/subscriptions/twined.daemon"

# Records the arguments, which contain the question's uuid.
PROGRAM = '#!/bin/sh\necho "$@" >> started\nexit 1\n'


class Network:
    """`twined local`."""

    def __init__(self, binary, folder):
        self.service = make_service(folder / "services" / "recording")
        self.log = folder / "network.log"
        command = [binary, "local", "services", "--data", folder / "data"]
        self.process = subprocess.Popen(
            [*command, "--http-port", "0", "--pubsub-port", "0"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            start_new_session=True,
        )
        self.ports = {name: self.printed_port(name) for name in ("pubsub", "http")}
        wait_for(self.is_ready, "the network is ready")

    def printed_port(self, name):
        """The port in the line of the network's output that starts with `name`."""
        pattern = re.compile(rf"^\s*{name}\W+(?:http://)?127\.0\.0\.1:(\d+)\b", re.MULTILINE)
        printed = lambda: pattern.search(self.output())  # noqa: E731
        return int(wait_for(printed, f"the port `{name}` is printed")[1])

    def output(self):
        output = self.log.read_text()
        assert self.process.poll() is None, output
        return output

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.get("http", "/ready").status == 200

    def get(self, port, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0

    # === State ===

    def topics_and_subscriptions(self):
        """The emulator's lists of topics and subscriptions."""
        return [
            json.load(self.get("pubsub", f"/v1/projects/any/{kind}"))
            for kind in ("topics", "subscriptions")
        ]

    def starts(self):
        """The arguments of each start of the service so far."""
        started = self.service / "started"
        return started.read_text().splitlines() if started.exists() else []

    @contextlib.contextmanager
    def unaffected(self):
        """Asserts that this context starts no service and changes no topic or subscription, and
        that a question still starts the service afterwards.
        """
        resources, starts = self.topics_and_subscriptions(), self.starts()
        yield
        assert (self.topics_and_subscriptions(), self.starts()) == (resources, starts)

        # A question from the page would have started the service before this one.
        question_uuid = str(uuid.uuid4())
        self.publish(question(question_uuid))
        new_starts = lambda: self.starts()[len(starts) :]  # noqa: E731
        [start] = wait_for(new_starts, "the service starts")
        assert question_uuid in start

    def publish(self, message):
        """Publishes a message with Google's client."""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['pubsub']}") as channel:
            client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            client.publish(topic=TOPIC, messages=[message], timeout=20)


def make_service(folder):
    program = folder / ".venv" / "bin" / "octue"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    namespace, name = SERVICE.split("/")
    octue_yaml = f"services:\n  - name: {name}\n    namespace: {namespace}\n"
    (folder / "octue.yaml").write_text(octue_yaml)
    return folder


# === Messages ===


def question(question_uuid):
    """A question to the service, as the SDK publishes it."""
    parent = "local/local:local"
    attributes = {
        "uuid": str(uuid.uuid4()),
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "question_uuid": question_uuid,
        "originator_question_uuid": question_uuid,
        "parent": parent,
        "originator": parent,
        "sender": parent,
        "sender_type": "PARENT",
        "sender_sdk_version": "0.69.1",
        "recipient": f"{SERVICE}:local",
        "retry_count": "0",
        "forward_logs": "0",
        "save_diagnostics": "SAVE_DIAGNOSTICS_OFF",
    }
    data = json.dumps({"kind": "question"}).encode()
    return PubsubMessage(data=data, attributes=attributes, ordering_key=question_uuid)


def publish_call():
    """The body of a gRPC call that asks the service a question."""
    request = PublishRequest(topic=TOPIC, messages=[question(str(uuid.uuid4()))])
    return grpc_frame(PublishRequest.serialize(request))


def detach_call():
    """The body of a gRPC call that detaches the network from its topic."""
    request = DetachSubscriptionRequest(subscription=SUBSCRIPTION)
    return grpc_frame(DetachSubscriptionRequest.serialize(request))


def grpc_frame(message):
    """An uncompressed message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message
