"""Failures are reported to the parent soon, with a message that names the cause."""

import json

import pytest
from conftest import wait_for

# In seconds, from the end of the child's process.
SOON = 2


@pytest.mark.parametrize(
    ("how", "expected"),
    [("python", "ValueError"), ("sdk", "InvalidInputException"), ("own", "TooWindyError")],
)
def test_an_exception_of_a_service_arrives_with_its_type(sdk_client, network, how, expected):
    outcome = sdk_client.ask("tests/raising:local", input_values={"type": how})

    assert outcome.error["type"] == expected
    assert "The wind was asked for, and it was too much." in outcome.error["message"]
    assert "app.py" in outcome.error["message"]
    # The child does not wait for its diagnostics, whose bucket does not exist.
    assert outcome.seconds < 15
    # The child published an exception, so the daemon publishes none.
    sdk_client.ask("tests/echo:local")
    assert len(network.final_rows(outcome.question_uuid, "exception")) == 1


@pytest.mark.parametrize(
    ("service", "texts"),
    [
        ("broken-twine", ["InvalidTwineJson"]),
        ("bad-configuration", ["InvalidValuesContents", "'eighty' is not of type 'number'"]),
        ("missing-import", ["No module named 'a_library_that_nobody_has'"]),
        ("secretive", ["CredentialNotFound", "'NOBODY_HAS_THIS' missing from environment"]),
    ],
)
def test_a_service_that_cannot_start_reports_pythons_error(sdk_client, network, service, texts):
    outcome = sdk_client.ask(f"tests/{service}:local")

    error = outcome.error["type"] + ": " + outcome.error["message"]
    for text in texts:
        assert text in error
    assert outcome.seconds < 15
    (exception,) = network.final_rows(outcome.question_uuid, "exception")
    assert exception["sender"] == f"tests/{service}:local"
    assert exception["recipient"] == "local/local:local"


@pytest.mark.parametrize("sruid", ["tests/echo:locall", "tests/ecko:local"])
def test_a_mistyped_sruid_gives_service_not_found_at_once(sdk_client, network, sruid):
    outcome = sdk_client.ask(sruid, input_values=1)

    assert outcome.error["type"] == "ServiceNotFound"
    assert outcome.error["module"] == "octue.twined.exceptions"
    assert sruid in outcome.error["message"]
    assert outcome.seconds < SOON


def test_a_child_that_is_killed_is_reported_soon_after_its_last_log(sdk_client, network, tmp_path):
    died = tmp_path / "died"

    outcome = sdk_client.ask("tests/dying:local", input_values={"file": str(died)})

    assert outcome.error["type"] == "RuntimeError"
    assert outcome.ended - float(died.read_text()) < SOON
    # All events of the child precede the exception, and no event arrives twice.
    kinds = outcome.kinds()
    assert kinds[-1] == "exception"
    assert kinds.count("exception") == 1
    recorded = [row["kind"] for row in network.final_rows(outcome.question_uuid)]
    assert recorded.count("exception") == 1
    assert recorded.count("log_record") == kinds.count("log_record")


def test_a_failed_question_can_be_retried(sdk_client, network):
    """`max_retries` asks again with the next `retry_count`; each retry is a run."""
    outcome = sdk_client.ask(
        "tests/raising:local",
        input_values={"type": "own"},
        raise_errors=False,
        max_retries=1,
        question_uuid="0b0e3c1c-6c75-4f0e-9a3e-6d9ad45b7d0e",
    )

    assert outcome.error["type"] == "TooWindyError"
    asked = network.final_rows(outcome.question_uuid, "question")
    assert retries(asked) == [0, 1]
    both = lambda: len(network.rows(outcome.question_uuid, "exception")) == 2  # noqa: E731
    wait_for(both, "an exception of each retry is on record")
    assert retries(network.final_rows(outcome.question_uuid, "exception")) == [0, 1]


def retries(rows):
    return sorted(int(json.loads(row["other_attributes"])["retry_count"]) for row in rows)
