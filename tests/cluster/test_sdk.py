"""The unmodified SDK asks, and containers on the real kubelet answer."""

import contextlib
import json
import math
import subprocess
import uuid

import pytest
from cluster import wait_for
from network import PARENT_SRUID

LOCATIONS = {"locations": [{"longitude": 0, "latitude": 0}, {"longitude": 1, "latitude": 1}]}

VALUES = [
    {"height": 80, "names": ["a", "é", None], "nested": {"deep": [[1.5]]}},
    # Values that are easily mistaken for no value, or for another.
    0,
    False,
    True,
    "",
    [],
    {},
    {"nothing": None},
    [math.inf, -math.inf],
    2**63 + 1,
    "$(HOME) $HOME $$ $$(HOME) `id` \" ' \\ \n\t 中 😀",
]


def test_values_arrive_and_return_unchanged(network, sdk_client):
    questions = [{"input_values": values} for values in VALUES]
    # The SDK parses a text as JSON, so a text that is not JSON is wrapped in a list.
    questions[-1]["input_values"] = [VALUES[-1]]

    with network.daemon():
        outcomes = sdk_client.ask_multiple("tests/echo:local", questions, max_workers=4, within=300)

    for question, outcome in zip(questions, outcomes, strict=True):
        values = question["input_values"]
        expected = {"received": values, "type": type(values).__name__}
        assert outcome.error is None, (values, outcome.error)
        assert outcome.output == expected, values


def test_missing_values_nan_logs_and_monitor_messages_arrive(network, sdk_client):
    with network.daemon():
        nothing = sdk_client.ask("tests/echo:local")
        quiet = sdk_client.ask("tests/nothing-is-a-number:local", subscribe_to_logs=False)
        monitoring = sdk_client.ask("tests/monitoring:local")

    assert nothing.output == {"received": None, "type": "NoneType"}
    assert any("Asked with a value of type NoneType." in text for text in nothing.logs())
    assert "delivery_acknowledgement" in nothing.kinds()
    assert nothing.kinds()[-1] == "result"
    assert math.isnan(quiet.output["nan"])
    assert quiet.output["ends"] == [math.inf, -math.inf]
    assert quiet.logs() == []
    assert monitoring.output == "done"
    assert monitoring.monitor_messages == [{"progress": 50}, 0, [100]]


def test_an_exception_of_a_service_arrives_once_with_its_type(network, sdk_client):
    questions = [{"input_values": {"type": how}} for how in ("python", "sdk", "own")]

    with network.daemon():
        outcomes = sdk_client.ask_multiple("tests/raising:local", questions)
        # The SDK reports a failed import itself.
        missing = sdk_client.ask("tests/missing-import:local")
        for outcome in outcomes:
            wait_for_settled(network, outcome.question_uuid)
        rows = [network.rows(outcome.question_uuid, "exception") for outcome in outcomes]

    assert missing.error["type"] == "ModuleNotFoundError"
    assert "a_library_that_nobody_has" in missing.error["message"]
    types = [outcome.error["type"] for outcome in outcomes]
    assert types == ["ValueError", "InvalidInputException", "TooWindyError"]
    assert outcomes[1].error["module"].startswith("octue.")
    for outcome, exceptions in zip(outcomes, rows, strict=True):
        assert "The wind was asked for, and it was too much." in outcome.error["message"]
        assert "app.py" in outcome.error["message"]
        # The failure of the container gives no second exception.
        assert len(exceptions) == 1


def test_the_command_of_the_sdk_asks_a_question(network, tmp_path):
    command = ["octue", "twined", "question", "ask", "tests/echo:local"]
    command += ["--input-values", '{"height": 80}']

    with network.daemon():
        asked = subprocess.run(
            command,
            env=network.local_environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )

    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["output_values"]["received"] == {"height": 80}


def test_the_pods_of_a_tree_are_found_by_labels(network, sdk_client):
    root = "template-child-services/parent-service:local"
    children = {
        "template-child-services/elevation-service:local",
        "template-child-services/wind-speed-service:local",
    }

    with network.daemon():
        outcome = sdk_client.ask(root, input_values=LOCATIONS, within=120)
        assert sorted(outcome.output) == ["elevations", "wind_speeds"]
        asked = outcome.question_uuid
        wait_for(
            lambda: len(tree(network, asked, "result")) == 3, "three results are on record", 30
        )

    for row in tree(network, asked):
        own = row["question_uuid"] == asked
        assert row["originator"] == PARENT_SRUID
        assert row["parent"] == (PARENT_SRUID if own else root)
        assert row["parent_question_uuid"] == (None if own else asked)

    results = {row["sender"]: row["question_uuid"] for row in tree(network, asked, "result")}
    assert set(results) == {root, *children}
    below = {results[child] for child in children}
    assert selected(network, f"originator-question={asked}") == {asked, *below}
    assert selected(network, f"parent-question={asked}") == below
    assert selected(network, "parent=template-child-services.parent-service") == below
    assert selected(network, "originator=local.local,revision=local") == {asked, *below}
    wind = "service=template-child-services.wind-speed-service"
    assert selected(network, wind) == {results["template-child-services/wind-speed-service:local"]}


@pytest.mark.long
def test_the_failure_of_a_child_is_reported_up_the_tree(network, sdk_client):
    raising = [child("tests/raising:local")]

    with network.daemon():
        outcome = sdk_client.ask(
            "tests/parent:local", input_values={"type": "own"}, children=raising
        )

    assert outcome.error["type"] == "TooWindyError"
    rows = tree(network, outcome.question_uuid, "exception")
    assert {row["sender"] for row in rows} == {"tests/parent:local", "tests/raising:local"}
    assert len(rows) == 2


def test_each_retry_of_the_sdk_has_one_job_and_one_exception(network, sdk_client):
    question = str(uuid.uuid4())

    with network.daemon():
        outcome = sdk_client.ask(
            "tests/raising:local",
            input_values={"type": "own"},
            raise_errors=False,
            max_retries=2,
            question_uuid=question,
            within=120,
        )
        for suffix in ("", "-r1", "-r2"):
            wait_for_settled(network, question, suffix)
        exceptions = network.rows(question, "exception")

    assert outcome.error["type"] == "TooWindyError"
    assert sorted(job["metadata"]["name"] for job in network.jobs(question)) == [
        f"question-{question}",
        f"question-{question}-r1",
        f"question-{question}-r2",
    ]
    assert retries(exceptions) == [0, 1, 2]
    assert retries(network.rows(question, "question")) == [0, 1, 2]


@pytest.mark.long
def test_a_silent_failure_is_reported_once_for_each_retry_of_the_sdk(network, sdk_client):
    """A second report would answer the next retry."""
    question = str(uuid.uuid4())

    with network.daemon(), network.daemon():
        outcome = sdk_client.ask(
            "failing/exits:local",
            raise_errors=False,
            max_retries=2,
            question_uuid=question,
            within=120,
        )
        for suffix in ("", "-r1", "-r2"):
            wait_for_settled(network, question, suffix)
        exceptions = network.rows(question, "exception")

    assert outcome.error["type"] == "RuntimeError"
    assert retries(exceptions) == [0, 1, 2]


def test_a_redelivered_question_runs_once(network):
    with network.daemon(), network.parent("tests/echo:local", input_values=[7]) as parent:
        question = parent.question_uuid
        network.wait_for_run(question)
        parent.publish()
        parent.result()
        wait_for_settled(network, question)
        uid = network.job(question)["metadata"]["uid"]
        # After its end, and after the deletion of its Job.
        parent.publish()
        wait_until_all_handled(network)
        assert network.job(question)["metadata"]["uid"] == uid
        network.cluster.kubectl("delete", "job", f"question-{question}", "-n", network.namespace)
        parent.publish()
        wait_until_all_handled(network)
        assert network.job(question) is None

        assert len(parent.received("result")) == 1
        assert len(parent.received("delivery_acknowledgement")) == 1
        assert len(network.rows(question, "question")) == 1
        assert len(network.rows(question, "result", "exception")) == 1


def test_a_child_that_ends_silently_is_reported_with_its_last_lines(network):
    """Each child fails before the SDK's `try`, or ends without an error and without a result."""
    last_lines = {
        "tests/broken-twine:local": "InvalidTwineJson",
        "tests/bad-configuration:local": "'eighty' is not of type 'number'",
        "failing/exits:local": "The wind was too much.",
        "failing/answers-nothing:local": "",
        # The SDK finds the question invalid, and ends with exit code 0.
        "tests/echo:local": "",
    }
    invalid = {"save_diagnostics": "SAVE_DIAGNOSTICS_NOW_AND_THEN"}

    with contextlib.ExitStack() as stack:
        stack.enter_context(network.daemon())
        parents = [
            stack.enter_context(network.parent(sruid, publish=False)) for sruid in last_lines
        ]
        for parent in parents:
            more = invalid if parent.recipient == "tests/echo:local" else {}
            parent.sent = parent.attributes(
                **{"forward_logs": "1", "save_diagnostics": "SAVE_DIAGNOSTICS_OFF", **more}
            )
            parent.publish()
        for parent in parents:
            exception = parent.exception(within=90)
            wait_for_settled(network, parent.question_uuid)
            (row,) = network.rows(parent.question_uuid, "result", "exception")
            assert row["sender"] == parent.recipient
            assert len(parent.received("exception")) == 1
            assert exception["exception_type"] == "RuntimeError"
            message, lines = exception["exception_message"], exception["exception_traceback"]
            last = last_lines[parent.recipient]
            if last:
                assert last in "".join(lines), exception
                assert parent.recipient in message
            else:
                assert "exit code 0" in message, exception
                assert "without a result" in message


# === Helpers ===


def child(sruid):
    backend = {"name": "GCPPubSubBackend", "project_id": "a-project-of-long-ago"}
    return {"key": "child", "id": sruid, "backend": backend}


def tree(network, originator_question, *kinds):
    rows = network.rows(None, *kinds)
    return [row for row in rows if row["originator_question_uuid"] == originator_question]


def selected(network, selector):
    """The questions of the Jobs that match a selector of our labels."""
    selector = ",".join(f"twined.octue.com/{part}" for part in selector.split(","))
    jobs = network.cluster.kubectl.list("jobs", "-n", network.namespace, "-l", selector)
    return {job["metadata"]["labels"]["twined.octue.com/question"] for job in jobs}


def wait_for_settled(network, question, suffix=""):
    """Waits until a run is settled."""

    def settled():
        job = network.job(question, suffix)
        return job and "twined.octue.com/settled" in job["metadata"]["labels"]

    wait_for(settled, f"{question}{suffix} is settled", 60)


def wait_until_all_handled(network):
    """Waits until a new question has ended: then all earlier messages have been handled."""
    with network.parent("failing/exits:local") as other:
        other.exception()


def retries(rows):
    return sorted(int(json.loads(row["other_attributes"])["retry_count"]) for row in rows)
