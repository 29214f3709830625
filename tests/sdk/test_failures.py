"""What goes wrong is told to the one who asked, soon and in words that he can use."""

import json

import pytest
from conftest import wait_for

# `twined` judges by the end of a process; the SDK's own last words are quicker than that.
SOON = 2


@pytest.mark.parametrize(
    ("how", "expected"),
    [("python", "ValueError"), ("sdk", "InvalidInputException"), ("own", "TooWindyError")],
)
def test_the_type_that_a_service_raises_arrives(asker, network, how, expected):
    outcome = asker.ask("tests/raising:local", input_values={"type": how})

    assert outcome.error["type"] == expected
    assert "The wind was asked for, and it was too much." in outcome.error["message"]
    assert "app.py" in outcome.error["message"]
    # Its diagnostics go to a bucket that is not there: that is not waited for.
    assert outcome.seconds < 15
    # It has spoken for itself: nobody speaks for it.
    asker.ask("tests/echo:local")
    assert len(network.record(outcome.question_uuid, "exception")) == 1


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("broken-twine", ["InvalidTwineJson"]),
        ("bad-configuration", ["InvalidValuesContents", "'eighty' is not of type 'number'"]),
        ("missing-import", ["No module named 'a_library_that_nobody_has'"]),
        ("secretive", ["CredentialNotFound", "'NOBODY_HAS_THIS' missing from environment"]),
    ],
)
def test_a_service_that_cannot_start_tells_the_asker_pythons_error(asker, network, service, words):
    outcome = asker.ask(f"tests/{service}:local")

    told = outcome.error["type"] + ": " + outcome.error["message"]
    for word in words:
        assert word in told
    assert outcome.seconds < 15
    (exception,) = network.record(outcome.question_uuid, "exception")
    assert exception["sender"] == f"tests/{service}:local"
    assert exception["recipient"] == "local/local:local"


@pytest.mark.parametrize("sruid", ["tests/echo:locall", "tests/ecko:local"])
def test_a_typo_is_a_service_not_found_at_once(asker, network, sruid):
    outcome = asker.ask(sruid, input_values=1)

    assert outcome.error["type"] == "ServiceNotFound"
    assert outcome.error["module"] == "octue.twined.exceptions"
    assert sruid in outcome.error["message"]
    assert outcome.seconds < SOON


def test_a_child_killed_with_its_last_log_unread_is_an_exception_soon(asker, network, tmp_path):
    died = tmp_path / "died"

    outcome = asker.ask("tests/dying:local", input_values={"file": str(died)})

    assert outcome.error["type"] == "RuntimeError"
    assert outcome.ended - float(died.read_text()) < SOON
    # All that it said comes first, and nothing comes twice.
    kinds = outcome.kinds()
    assert kinds[-1] == "exception"
    assert kinds.count("exception") == 1
    kept = [row["kind"] for row in network.record(outcome.question_uuid)]
    assert kept.count("exception") == 1
    assert kept.count("log_record") == kinds.count("log_record")


def test_a_question_that_failed_can_be_asked_again(asker, network):
    """`max_retries` asks again with one more in `retry_count`; each attempt is a run."""
    outcome = asker.ask(
        "tests/raising:local",
        input_values={"type": "own"},
        raise_errors=False,
        max_retries=1,
        question_uuid="0b0e3c1c-6c75-4f0e-9a3e-6d9ad45b7d0e",
    )

    assert outcome.error["type"] == "TooWindyError"
    asked = network.record(outcome.question_uuid, "question")
    assert retries(asked) == [0, 1]
    both = lambda: len(network.rows(outcome.question_uuid, "exception")) == 2  # noqa: E731
    wait_for(both, "an exception of each attempt is on record")
    assert retries(network.record(outcome.question_uuid, "exception")) == [0, 1]


def retries(rows):
    return sorted(int(json.loads(row["other_attributes"])["retry_count"]) for row in rows)
