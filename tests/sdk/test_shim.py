"""The shim alone, without a daemon, Pub/Sub or a network.

The import of the SDK takes a second or two, so tests that need it share processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHIM = HERE.parent.parent / "src" / "sdk" / "shim"
QUESTION = "6b9f2fcd-6f66-4a3c-8e85-0a4e8c0b6a2d"

FROM_CHILD = {
    "uuid": "7f8a4d5e-3f6c-4d0a-9f5b-0d9f4a1a1f10",
    "datetime": "2026-11-23T10:00:00.000000+00:00",
    "question_uuid": QUESTION,
    "originator_question_uuid": QUESTION,
    "parent": "local/local:local",
    "originator": "local/local:local",
    "sender": "tests/echo:local",
    "sender_type": "CHILD",
    "sender_sdk_version": "0.69.1",
    "recipient": "local/local:local",
    "retry_count": 0,
}

FROM_PARENT = {
    **FROM_CHILD,
    "sender": "local/local:local",
    "sender_type": "PARENT",
    "recipient": "tests/echo:local",
    "forward_logs": True,
    "save_diagnostics": "SAVE_DIAGNOSTICS_OFF",
}

# As on the wire, where every attribute is a string.
SERIALISED = {**FROM_PARENT, "retry_count": "0", "forward_logs": "0"}

EXCEPTION = {
    "kind": "exception",
    "exception_type": "ValueError",
    "exception_message": "too windy",
    "exception_traceback": ["  File ...", "  File ..."],
}

CHILDREN = [
    {
        "key": "wind",
        "id": "tests/wind:local",
        "backend": {"name": "GCPPubSubBackend", "project_id": "a-project"},
    }
]

MANIFEST = {
    "id": "8ead7669-8162-4f64-8cd5-4abe92509e17",
    "name": None,
    "datasets": {
        "by_path": "gs://a-bucket/a-dataset",
        "by_files": {
            "id": "7ead7669-8162-4f64-8cd5-4abe92509e17",
            "name": "by_files",
            "tags": {},
            "labels": ["wind"],
            "files": ["a.csv", {"path": "b.csv", "tags": {}, "labels": [], "timestamp": 0}],
        },
    },
}


# The environment of child processes.
BASE_ENVIRONMENT = {
    name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
}
BASE_ENVIRONMENT["PYTHONDONTWRITEBYTECODE"] = "1"


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


def run_python(code, *arguments, shim=True, path=(), folder=None, **environment):
    """Runs `code` in a new Python with the shim first on its path, in a clean environment."""
    entries = [str(SHIM)] * shim + [str(entry) for entry in path]

    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**BASE_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(entries), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


# === The hook ===


def test_a_python_that_does_not_import_octue_is_not_changed():
    code = """
import sys
print(sorted(n for n in sys.modules if n.split(".")[0] in ("octue", "jsonschema", "json", "click")))
print([type(f).__name__ for f in sys.meta_path].count("_TwinedFinder"))
"""
    plain = run_python(code, shim=False)
    with_shim = run_python(
        code, TWINED_QUESTION_FILE="/nowhere", TWINED_LOCAL_REGISTRY="http://nowhere"
    )

    assert plain.stdout.splitlines() == ["[]", "0"]
    assert with_shim.stdout.splitlines() == ["[]", "1"]
    assert with_shim.stderr == ""


def test_the_next_sitecustomize_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.next_ran = __file__")

    run = run_python(
        "import sys, sitecustomize; print(sys.next_ran, sitecustomize.__file__)", path=[tmp_path]
    )

    assert run.stdout.split() == [str(tmp_path / "sitecustomize.py")] * 2
    assert run.stderr == ""


def test_two_copies_of_the_shim_install_one_hook_and_run_the_next_sitecustomize(tmp_path):
    copy, following = tmp_path / "copy", tmp_path / "following"
    copy.mkdir()
    following.mkdir()
    (copy / "sitecustomize.py").write_text((SHIM / "sitecustomize.py").read_text())
    (following / "sitecustomize.py").write_text("import sys; sys.next_ran = True")

    run = run_python(
        "import sys\n"
        "hooks = [type(finder).__name__ for finder in sys.meta_path]\n"
        "print(sys.next_ran, hooks.count('_TwinedFinder'))",
        path=[copy, following],
    )

    assert run.stdout.split() == ["True", "1"]


def test_the_failure_of_the_next_sitecustomize_is_reported_and_the_hook_stays(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise ValueError('its own fault')")

    run = run_python(
        "import sys; print([type(f).__name__ for f in sys.meta_path][0])", path=[tmp_path]
    )

    assert run.stdout.split() == ["_TwinedFinder"]
    assert "its own fault" in run.stderr


def test_a_patch_that_fails_prints_one_line_and_the_module_is_imported(tmp_path):
    events = tmp_path / "octue" / "twined" / "cloud" / "events"
    events.mkdir(parents=True)
    for folder in (events, *list(events.parents)[:3]):
        (folder / "__init__.py").write_text("")
    (events / "validation.py").write_text(
        "SERVICE_COMMUNICATION_SCHEMA = {'$ref': 'https://newer/9.9.9.json'}"
    )

    run = run_python(
        "import octue.twined.cloud.events.validation as v; print(v.__loader__.__class__.__name__)",
        path=[tmp_path],
    )

    assert run.stdout.split() == ["SourceFileLoader"]
    assert run.stderr.count("\n") == 1
    assert "https://newer/9.9.9.json" in run.stderr


# === The schemas ===

VALID_EVENTS = {
    "a question": ({"kind": "question"}, FROM_PARENT),
    "a question with everything": (
        {
            "kind": "question",
            "input_values": [1, {"a": None}],
            "input_manifest": MANIFEST,
            "children": CHILDREN,
        },
        {
            **FROM_PARENT,
            "parent_question_uuid": QUESTION,
            "cpus": 2,
            "memory": "256Mi",
            "ephemeral_storage": "1Gi",
        },
    ),
    "a question with false": ({"kind": "question", "input_values": False}, FROM_PARENT),
    "a delivery acknowledgement": ({"kind": "delivery_acknowledgement"}, FROM_CHILD),
    "a heartbeat": ({"kind": "heartbeat"}, {**FROM_CHILD, "retry_count": 3}),
    "a log record": (
        {"kind": "log_record", "log_record": {"msg": "hello", "levelno": 20}},
        FROM_CHILD,
    ),
    "a monitor message of null": ({"kind": "monitor_message", "data": None}, FROM_CHILD),
    "an exception": (EXCEPTION, FROM_CHILD),
    "an empty result": ({"kind": "result"}, FROM_CHILD),
    "a result": ({"kind": "result", "output_values": 0, "output_manifest": MANIFEST}, FROM_CHILD),
    "a field that is new": ({"kind": "result", "new": 1}, {**FROM_CHILD, "new": "x"}),
}

INVALID_EVENTS = {
    "no kind": ({}, FROM_PARENT),
    "an unknown kind": ({"kind": "qestion"}, FROM_PARENT),
    "a kind that is no text": ({"kind": ["question"]}, FROM_PARENT),
    "a cancellation": ({"kind": "cancellation"}, FROM_PARENT),
    "a cancellation from a child": ({"kind": "cancellation"}, FROM_CHILD),
    "a question from a child": ({"kind": "question"}, FROM_CHILD),
    "a result from a parent": ({"kind": "result"}, FROM_PARENT),
    "an event that is no object": (["question"], FROM_PARENT),
    "no event": (None, FROM_PARENT),
    "a manifest that is a text": ({"kind": "question", "input_manifest": "gs://a"}, FROM_PARENT),
    "a child without a backend": (
        {"kind": "question", "children": [without(CHILDREN[0], "backend")]},
        FROM_PARENT,
    ),
    "a log record that is missing": ({"kind": "log_record"}, FROM_CHILD),
    "a log record that is a text": ({"kind": "log_record", "log_record": "hello"}, FROM_CHILD),
    "a monitor message without data": ({"kind": "monitor_message"}, FROM_CHILD),
    "an exception without a type": (without(EXCEPTION, "exception_type"), FROM_CHILD),
    "an exception without a message": (without(EXCEPTION, "exception_message"), FROM_CHILD),
    "an exception without a traceback": (without(EXCEPTION, "exception_traceback"), FROM_CHILD),
    "a traceback that is a text": ({**EXCEPTION, "exception_traceback": "File"}, FROM_CHILD),
    "an output manifest without datasets": (
        {"kind": "result", "output_manifest": without(MANIFEST, "datasets")},
        FROM_CHILD,
    ),
    "an unknown sender type": ({"kind": "result"}, {**FROM_CHILD, "sender_type": "SIBLING"}),
    "a negative retry count": ({"kind": "result"}, {**FROM_CHILD, "retry_count": -1}),
    "a retry count that is a text": ({"kind": "result"}, {**FROM_CHILD, "retry_count": "0"}),
    "a question without forward_logs": ({"kind": "question"}, without(FROM_PARENT, "forward_logs")),
    "forward_logs that is a number": ({"kind": "question"}, {**FROM_PARENT, "forward_logs": 1}),
    "an unknown diagnostics mode": (
        {"kind": "question"},
        {**FROM_PARENT, "save_diagnostics": "YES"},
    ),
    "no CPUs": ({"kind": "question"}, {**FROM_PARENT, "cpus": 0}),
    "half a CPU": ({"kind": "question"}, {**FROM_PARENT, "cpus": 0.5}),
    "memory that is a number": ({"kind": "question"}, {**FROM_PARENT, "memory": 256}),
    **{"no " + name: ({"kind": "result"}, without(FROM_CHILD, name)) for name in FROM_CHILD},
    **{
        name + " that is a number": ({"kind": "result"}, {**FROM_CHILD, name: 5})
        for name in FROM_CHILD
        if name != "retry_count"
    },
}

CHILDREN_STRANDS = {
    "valid": (CHILDREN, None),
    "with an extra field": ([{**CHILDREN[0], "notes": "none"}], None),
    "an object": ({"wind": CHILDREN[0]}, "InvalidValuesContents"),
    "without a key": ([without(CHILDREN[0], "key")], "InvalidValuesContents"),
    "without an id": ([without(CHILDREN[0], "id")], "InvalidValuesContents"),
    "an empty backend": ([{**CHILDREN[0], "backend": {}}], "InvalidValuesContents"),
    "an unknown backend": (
        [{**CHILDREN[0], "backend": {"name": "Pigeon", "project_id": "a"}}],
        "InvalidValuesContents",
    ),
}

MANIFEST_STRANDS = {
    "valid": (MANIFEST, None),
    "datasets in a list": ({**MANIFEST, "datasets": []}, "InvalidManifestContents"),
    "a dataset that is a number": ({**MANIFEST, "datasets": {"a": 1}}, "InvalidManifestContents"),
    "no datasets": (without(MANIFEST, "datasets"), "InvalidManifestContents"),
    "a name that is a number": ({**MANIFEST, "name": 1}, "InvalidManifestContents"),
}

VALIDATE = """
import json, logging, sys

# This process must not use the network.
import socket
def refuse(*args, **kwargs):
    raise OSError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse

# 0.69.1 fails on this import without the shim, where octue.resources was not imported before.
import octue.twined.resources

from octue.twined import Twine
from octue.twined.cloud.events import validation

logging.disable(logging.CRITICAL)
cases = json.load(sys.stdin)


class Attributes(dict):
    sender_sdk_version = "0.69.1"
    to_minimal_dict = dict.copy


def refused(strand, twine, value):
    try:
        getattr(Twine(source=twine), "validate_" + strand)(source=value)
    except Exception as error:
        return type(error).__name__


json.dump(
    {
        "events": {
            name: validation.is_event_valid(event, Attributes(attributes), recipient="a/b:c")
            for name, (event, attributes) in cases["events"].items()
        },
        "children": {
            name: refused("children", {"children": [{"key": "wind"}]}, value)
            for name, (value, _) in cases["children"].items()
        },
        "manifests": {
            name: refused("input_manifest", {"input_manifest": {"datasets": {}}}, value)
            for name, (value, _) in cases["manifests"].items()
        },
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def verdicts():
    """The SDK's offline validation of every case above."""
    cases = {
        "events": {**VALID_EVENTS, **INVALID_EVENTS},
        "children": CHILDREN_STRANDS,
        "manifests": MANIFEST_STRANDS,
    }
    run = subprocess.run(
        [sys.executable, "-c", VALIDATE],
        env={**BASE_ENVIRONMENT, "PYTHONPATH": str(SHIM)},
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "twined:" not in run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", VALID_EVENTS)
def test_a_valid_event_is_accepted(verdicts, name):
    assert verdicts["events"][name] is True


@pytest.mark.parametrize("name", INVALID_EVENTS)
def test_an_invalid_event_is_refused(verdicts, name):
    assert verdicts["events"][name] is False


@pytest.mark.parametrize("name", CHILDREN_STRANDS)
def test_children_are_validated(verdicts, name):
    assert verdicts["children"][name] == CHILDREN_STRANDS[name][1]


@pytest.mark.parametrize("name", MANIFEST_STRANDS)
def test_manifests_are_validated(verdicts, name):
    assert verdicts["manifests"][name] == MANIFEST_STRANDS[name][1]


# === ask-local, with its events printed and not published ===

ASK_LOCAL = """
import json, sys, time

from octue.twined.cloud.pub_sub.service import Service
import octue.cli
from octue.utils.encoders import OctueJSONEncoder

events = []
octue.cli.auth.default = lambda: (None, "a-project")
Service._emit_event = lambda self, event, attributes, **_: events.append(event)

answers = []
for arguments in json.loads(sys.stdin.read() or "[[]]"):
    started = time.monotonic()
    try:
        octue.cli.octue_cli(sys.argv[1:] + arguments, standalone_mode=False)
    except Exception:
        pass
    ends = [event for event in events if event["kind"] in ("result", "exception")]
    answers.append({"end": ends, "seconds": time.monotonic() - started})
    events.clear()

print("answers " + json.dumps(answers, cls=OctueJSONEncoder))
"""


def ask_local(service, *arguments, each=None, **environment):
    """Asks a service one question, or one question for each list of arguments in `each`."""
    run = subprocess.run(
        [sys.executable, "-c", ASK_LOCAL]
        + ["twined", "question", "ask-local", "--attributes", json.dumps(SERIALISED), *arguments],
        env={
            **BASE_ENVIRONMENT,
            "PYTHONPATH": str(SHIM),
            "OCTUE_SERVICE_REVISION_TAG": "local",
            **environment,
        },
        cwd=service,
        input=json.dumps(each) if each else "",
        capture_output=True,
        text=True,
        timeout=60,
    )
    marked = [line for line in run.stdout.splitlines() if line.startswith("answers ")]
    assert marked, run.stderr
    answers = json.loads(marked[0].partition(" ")[2])
    assert all(len(answer["end"]) == 1 for answer in answers), run.stderr
    return answers, run.stderr


@pytest.fixture(scope="module")
def echoed():
    """The answers of the echo service to falsy and similar values, given as arguments."""
    values = ["0", "false", "true", '""', "[]", "{}", "-1", "null", "1.0"]
    answers, _ = ask_local(
        HERE / "services" / "echo", each=[["--input-values", value] for value in values]
    )
    return dict(zip(values, answers))


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ("0", 0),
        ("false", False),
        ("true", True),
        ('""', ""),
        ("[]", []),
        ("{}", {}),
        ("-1", -1),
        ("null", None),
        ("1.0", 1.0),
    ],
)
def test_falsy_values_arrive_unchanged(echoed, given, received):
    output = echoed[given]["end"][0]["output_values"]

    assert output["received"] == received
    assert output["type"] == type(received).__name__


def test_a_question_file_delivers_large_values_and_children(tmp_path):
    (tmp_path / "octue.yaml").write_text("services:\n  - {name: parent, namespace: tests}\n")
    (tmp_path / "twine.json").write_text(
        '{"input_values_schema": {}, "output_values_schema": {}, "children": [{"key": "wind"}]}'
    )
    (tmp_path / "app.py").write_text(
        "import os\n"
        "def run(analysis):\n"
        "    analysis.output_values = {\n"
        "        'length': len(analysis.input_values),\n"
        "        'last': analysis.input_values[-1],\n"
        "        'children': {key: child.id for key, child in analysis.children.items()},\n"
        "        'inherited': 'TWINED_QUESTION_FILE' in os.environ,\n"
        "    }\n"
    )
    values = list(range(10**19, 10**19 + 100_000))
    question = tmp_path / "question.json"
    question.write_text(
        json.dumps({"input_values": values, "children": CHILDREN}), encoding="utf-8"
    )

    answers, _ = ask_local(tmp_path, TWINED_QUESTION_FILE=str(question))

    assert answers[0]["end"][0]["output_values"] == {
        "length": 100_000,
        "last": 10**19 + 99_999,
        "children": {"wind": "tests/wind:local"},
        "inherited": False,
    }


def test_a_question_file_delivers_a_manifest(tmp_path):
    dataset = tmp_path / "winds"
    dataset.mkdir()
    (dataset / "a.csv").write_text("1,2,3")
    (tmp_path / "octue.yaml").write_text("services:\n  - {name: reader, namespace: tests}\n")
    (tmp_path / "twine.json").write_text(
        '{"input_manifest": {"datasets": {"winds": {}}}, "output_values_schema": {}}'
    )
    (tmp_path / "app.py").write_text(
        "def run(analysis):\n"
        "    files = analysis.input_manifest.datasets['winds'].files\n"
        "    analysis.output_values = sorted(file.name for file in files)\n"
    )
    question = tmp_path / "question.json"
    question.write_text(
        json.dumps({"input_manifest": {**MANIFEST, "datasets": {"winds": str(dataset)}}})
    )

    answers, _ = ask_local(tmp_path, TWINED_QUESTION_FILE=str(question))

    assert answers[0]["end"][0]["output_values"] == ["a.csv"]


def test_values_in_the_arguments_override_the_question_file(tmp_path):
    question = tmp_path / "question.json"
    question.write_text('{"input_values": "of the file"}')

    answers, _ = ask_local(
        HERE / "services" / "echo",
        "--input-values",
        "[1]",
        TWINED_QUESTION_FILE=str(question),
    )

    assert answers[0]["end"][0]["output_values"]["received"] == [1]


def test_a_question_whose_file_cannot_be_read_does_not_run(tmp_path):
    run = run_python(
        "import octue; print('ran')",
        "ask-local",
        TWINED_QUESTION_FILE=str(tmp_path / "missing.json"),
    )

    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("twined: cannot read the question file")
    assert run.stderr.count("\n") == 1


# === With TWINED_LOCAL_REGISTRY ===


def test_a_missing_secret_is_reported_at_once(tmp_path):
    (tmp_path / "octue.yaml").write_text(
        "services:\n  - name: secretive\n    namespace: tests\n"
        "    diagnostics_cloud_path: gs://nowhere/at-all\n"
    )
    (tmp_path / "twine.json").write_text('{"credentials": [{"name": "NOBODY_HAS_THIS"}]}')
    (tmp_path / "app.py").write_text("def run(analysis):\n    pass\n")

    answers, stderr = ask_local(tmp_path, TWINED_LOCAL_REGISTRY="http://127.0.0.1:1/registry")

    (answer,) = answers
    assert answer["end"][0]["exception_type"] == "CredentialNotFound"
    assert (
        "'NOBODY_HAS_THIS' missing from environment or .env file"
        in answer["end"][0]["exception_message"]
    )
    assert answer["seconds"] < 2
    assert "Diagnostics are not kept at 'gs://nowhere/at-all'" in stderr


CONFIGURATION = """
import sys
from octue.twined.configuration import ServiceConfiguration
c = ServiceConfiguration(
    "a", "b",
    service_registries=[{"name": "far", "endpoint": "https://far"}],
    diagnostics_cloud_path="gs://a-bucket/diagnostics",
)
print(c.service_registries[0]["endpoint"], c.diagnostics_cloud_path)
"""


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, ["https://far", "gs://a-bucket/diagnostics"]),
        ({"TWINED_LOCAL_REGISTRY": "http://near"}, ["http://near", "None"]),
        (
            {"TWINED_LOCAL_REGISTRY": "http://near", "STORAGE_EMULATOR_HOST": "http://store"},
            ["http://near", "gs://a-bucket/diagnostics"],
        ),
    ],
)
def test_a_service_uses_the_registry_and_the_storage_of_its_environment(environment, seen):
    assert run_python(CONFIGURATION, **environment).stdout.split() == seen
