"""Inputs that do not fit into an argument, `children`, and images of unusual shapes."""

import hashlib
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cluster import wait_for
from node import NAME
from test_sdk import child, wait_for_settled, wait_until_all_handled

WITNESS = "tests/witness:local"
LABEL = "twined.octue.com/question"
# The largest argument, in bytes of JSON. Larger inputs are mounted as files.
LIMIT = 120 * 1024
MIB = 1024 * 1024


def text_of(size):
    """A list of one text whose JSON, as Python writes it, has `size` bytes."""
    start = ["$(HOME) $$ é 中 😀 "]
    # The SDK writes its messages in ASCII.
    start[0] += "x" * (size - len(json.dumps(start)))
    return start


def digest(values):
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()


@pytest.mark.parametrize(
    ("size", "secrets"),
    [
        (LIMIT, 0),
        (LIMIT + 1, 1),
        (200 * 1024, 1),
        pytest.param(MIB, 2, marks=pytest.mark.long),
        pytest.param(3 * MIB, 4, marks=pytest.mark.long),
        # Pub/Sub takes 10 MB, with the attributes.
        pytest.param(9_990_000, 11, marks=pytest.mark.long),
    ],
)
def test_values_of_any_size_arrive_complete_and_leave_nothing(network, sdk_client, size, secrets):
    values = text_of(size)
    # Python needs a multiple of the size of the text.
    network.settings["defaults"]["memory"] = {"default": "512Mi"}

    with network.daemon():
        outcome = sdk_client.ask(WITNESS, input_values=values, within=180)
        question = outcome.question_uuid
        assert outcome.output["sha256"] == digest(values)
        job = network.job(question)
        found = secrets_of(network, question)
        assert len(found) == secrets
        for secret in found:
            (owner,) = secret["metadata"]["ownerReferences"]
            assert owner["uid"] == job["metadata"]["uid"]
            assert secret["immutable"]

        wait_for_settled(network, question)
        network.cluster.kubectl("delete", "job", job["metadata"]["name"], "-n", network.namespace)
        gone = lambda: not secrets_of(network, question)  # noqa: E731
        wait_for(gone, "the Secrets are deleted with the Job")


def test_children_arrive_with_and_without_values(network, sdk_client):
    with network.daemon():
        own = sdk_client.ask(WITNESS, input_values=1)
        named = sdk_client.ask(WITNESS, children=[child("tests/environment:local")])
        both = sdk_client.ask(
            WITNESS, input_values=text_of(200 * 1024), children=[child("tests/environment:local")]
        )

    assert own.output["children"] == {"child": "tests/echo:local"}
    assert named.output["children"] == {"child": "tests/environment:local"}
    assert both.output["children"] == {"child": "tests/environment:local"}
    assert both.output["sha256"] == digest(text_of(200 * 1024))
    # The image's own path follows ours. Child processes of the service inherit no question.
    variables = both.output["variables"]
    assert variables["PYTHONPATH"] == "/twined:/opt/shim"
    assert not [name for name in variables if name.startswith("TWINED_QUESTION")]
    assert own.output["variables"]["PYTHONPATH"] == "/opt/shim"


@pytest.mark.long
def test_an_image_without_pythonpath_gets_large_inputs(network, sdk_client):
    with network.daemon():
        short = sdk_client.ask("shapes/without-path:local", input_values=1)
        long = sdk_client.ask("shapes/without-path:local", input_values=text_of(200 * 1024))

    assert "PYTHONPATH" not in short.output["variables"]
    assert long.output["variables"]["PYTHONPATH"] == "/twined"
    assert long.output["sha256"] == digest(text_of(200 * 1024))


@pytest.mark.long
def test_a_large_manifest_arrives_complete(network):
    names = [f"{i:06}.dat" for i in range(20_000)]
    files = [f"/data/of/the/wind/{name}" for name in names]
    manifest = {"id": str(uuid.uuid4()), "datasets": {"wind": {"path": "/data", "files": files}}}
    network.settings["defaults"]["memory"] = {"default": "512Mi"}

    with (
        network.daemon(),
        network.parent(WITNESS, input_manifest=manifest, input_values={"a": 1}) as parent,
    ):
        result = parent.result(within=120)

    assert result["output_values"]["files"] == names
    assert result["output_values"]["sha256"] == digest({"a": 1})


def test_an_image_in_another_language_reads_the_file(network):
    small, large = {"a": "$(HOME) é"}, text_of(2 * MIB)
    named = [child("tests/echo:local")]

    with Answers(network) as answers, network.daemon():
        for question in (
            {"input_values": small, "children": named},
            {"input_values": large},
            {"input_values": large, "children": named},
        ):
            assert answers.ask(question) == sha256(question)
        # Small values are an argument.
        expected = hashlib.sha256(json.dumps(small).encode()).hexdigest()
        assert answers.ask({"input_values": small}) == expected


def test_no_character_of_a_question_is_replaced(network):
    """Kubernetes replaces `$(NAME)` and `$$` in arguments, and a shell replaces more."""
    odd = "$(HOME) $HOME $$ $$(HOME) $(TWINED_SERVICES_TOPIC_NAME) `id` ${PATH} \\ ' \" \n é 中 😀"

    with (
        network.daemon(),
        network.parent(WITNESS, input_values=[odd], attributes={"odd": odd}) as parent,
    ):
        output = parent.result()["output_values"]

    assert output["sha256"] == digest([odd])
    arguments = output["arguments"]
    attributes = json.loads(arguments[arguments.index("--attributes") + 1])
    assert attributes["odd"] == odd


def test_a_redelivery_restores_missing_secrets(network):
    """A daemon may crash between the creation of a Job and of its Secrets. Here one is deleted."""
    values = text_of(MIB)
    # No node has this label before a Secret was deleted, so the pod cannot start earlier.
    network.settings["rules"] = [{"services": ["tests/*"], "node_selector": {"wind": "strong"}}]
    node = NAME

    with network.daemon(), network.parent(WITNESS, input_values=values) as parent:
        question = parent.question_uuid
        network.wait_for_pod(question)
        wait_for(lambda: len(secrets_of(network, question)) == 2, "both Secrets exist")
        before = sorted(secret["metadata"]["name"] for secret in secrets_of(network, question))
        network.cluster.kubectl("delete", "secret", before[1], "-n", network.namespace)
        network.cluster.kubectl("label", "node", node, "wind=strong")
        try:
            parent.publish()
            found = lambda: len(secrets_of(network, question)) == 2  # noqa: E731
            wait_for(found, "both Secrets exist again")
            result = parent.result(within=120)
        finally:
            network.cluster.kubectl("label", "node", node, "wind-")
        after = sorted(secret["metadata"]["name"] for secret in secrets_of(network, question))

    assert result["output_values"]["sha256"] == digest(values)
    assert after == before
    assert len(network.jobs(question)) == 1


def test_attributes_that_do_not_fit_into_an_argument_are_refused(network):
    # Pub/Sub accepts values of 1024 bytes; as JSON these are twice as long.
    more = {f"odd-{i}": '"' * 1024 for i in range(80)}

    with network.daemon(), network.parent(WITNESS, input_values=1, attributes=more) as parent:
        exception = parent.exception()
        wait_until_all_handled(network)
        assert network.job(parent.question_uuid) is None

    assert exception["exception_type"] == "ValueError"
    assert str(LIMIT) in exception["exception_message"]


class Answers:
    """Receives the digests that containers of `shapes/shell` post. Publishes them as results."""

    def __init__(self, network):
        self.network = network
        self.parents = {}
        answers = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self):
                digest = self.rfile.read(int(self.headers["Content-Length"])).decode()
                answers.parents[self.path.strip("/")].answer_for_child(output_values=digest)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer((network.cluster.host, 0), Answering)
        address = f"http://{network.cluster.host}:{self.server.server_port}"
        network.settings["rules"] = [
            {"services": ["shapes/*"], "inputs": "file", "environment": {"ANSWERS": address}}
        ]

    def ask(self, question):
        """Asks a question, and returns the digest of the inputs that the container received."""
        with self.network.parent("shapes/shell:local", publish=False, **question) as parent:
            self.parents[parent.question_uuid] = parent
            parent.publish()
            return parent.result()["output_values"]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def secrets_of(network, question):
    return network.cluster.kubectl.list(
        "secrets", "-n", network.namespace, "-l", f"{LABEL}={question}"
    )


def sha256(question):
    """The digest of a question's file: the inputs in the bytes in which they were published."""
    names = [name for name in ("input_values", "input_manifest", "children") if name in question]
    parts = ",".join(f'"{name}":{json.dumps(question[name])}' for name in names)
    return hashlib.sha256(f"{{{parts}}}".encode()).hexdigest()
