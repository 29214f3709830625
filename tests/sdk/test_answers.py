"""Questions of the SDK are answered; inputs, events and results arrive unchanged."""

import json
import math

import pytest


@pytest.mark.parametrize(
    "values",
    [
        {"height": 80, "names": ["a", "é", None], "nested": {"deep": [[1.5]]}},
        [1, 2, 3],
        -1,
        1.0,
        # Values that are easily mistaken for no value.
        0,
        False,
        "",
        [],
        {},
    ],
    ids=json.dumps,
)
def test_input_values_arrive_unchanged(sdk_client, network, values):
    outcome = sdk_client.ask("tests/echo:local", input_values=values)

    assert outcome.output == {"received": values, "type": type(values).__name__}
    (question,) = network.final_rows(outcome.question_uuid, "question")
    assert json.loads(question["event"]) == {"input_values": values}


def test_a_question_without_values_is_answered(sdk_client, network):
    outcome = sdk_client.ask("tests/echo:local")

    assert outcome.output == {"received": None, "type": "NoneType"}
    (question,) = network.final_rows(outcome.question_uuid, "question")
    assert json.loads(question["event"]) == {}


def test_twenty_concurrent_questions_are_all_answered(sdk_client, network):
    questions = [{"input_values": i} for i in range(20)]

    outcomes = sdk_client.ask_multiple("tests/echo:local", questions, max_workers=20)

    assert [outcome.output["received"] for outcome in outcomes] == list(range(20))
    assert len({outcome.question_uuid for outcome in outcomes}) == 20
    for outcome in outcomes:
        assert len(network.final_rows(outcome.question_uuid, "result")) == 1


def test_the_result_of_an_asynchronous_question_is_on_record(sdk_client, network):
    outcome = sdk_client.ask("tests/echo:local", input_values=[5], asynchronous=True)

    assert outcome.answer is None
    result = network.wait_for_row(outcome.question_uuid, "result", "exception")
    assert result["kind"] == "result"
    assert json.loads(result["event"])["output_values"]["received"] == [5]


def test_every_event_that_the_parent_receives_is_on_record(sdk_client, network):
    outcome = sdk_client.ask("tests/echo:local", input_values="[7]")

    assert outcome.kinds()[0] == "delivery_acknowledgement"
    assert outcome.kinds()[-1] == "result"
    assert "log_record" in outcome.kinds()

    rows = network.final_rows(outcome.question_uuid)
    assert sum(row["kind"] == "question" for row in rows) == 1
    received = [(e["attributes"]["uuid"], e["event"]["kind"]) for e in outcome.events]
    recorded = [(row["uuid"], row["kind"]) for row in rows if row["sender_type"] == "CHILD"]
    assert sorted(received) == sorted(recorded)
    assert {row["originator"] for row in rows} == {"local/local:local"}
    assert {row["originator_question_uuid"] for row in rows} == {outcome.question_uuid}
    assert {row["parent_question_uuid"] for row in rows} == {None}


def test_logs_are_forwarded_only_on_request(sdk_client):
    wanted = sdk_client.ask("tests/echo:local", input_values=1)
    unwanted = sdk_client.ask("tests/echo:local", input_values=1, subscribe_to_logs=False)

    messages = [
        event["event"]["log_record"]["msg"]
        for event in wanted.events
        if event["event"]["kind"] == "log_record"
    ]
    assert any("Asked with a value of type int." in message for message in messages)
    assert "log_record" not in unwanted.kinds()


def test_monitor_messages_are_handled(sdk_client):
    outcome = sdk_client.ask("tests/monitoring:local")

    assert outcome.output == "done"
    assert outcome.monitor_messages == [{"progress": 50}, 0, [100]]


def test_a_result_of_two_million_numbers_arrives_and_is_on_record(sdk_client, network):
    outcome = sdk_client.ask("tests/numbers:local", input_values=2_000_000, within=120)

    assert outcome.output == [i % 10 for i in range(2_000_000)]
    (result,) = network.final_rows(outcome.question_uuid, "result")
    assert len(json.loads(result["event"])["output_values"]) == 2_000_000
    # The SDK's threads sometimes give a log record and the result one uuid. Both are on record.
    recorded = len(network.final_rows(outcome.question_uuid, "log_record"))
    assert recorded >= outcome.kinds().count("log_record") >= 21


def test_values_that_do_not_fit_into_an_argument_arrive(sdk_client):
    values = ["wind"] * 100_000

    assert sdk_client.ask("tests/echo:local", input_values=values).output["received"] == values


def test_a_result_with_nan_arrives_and_is_on_record(sdk_client, network):
    outcome = sdk_client.ask("tests/nothing-is-a-number:local")

    assert math.isnan(outcome.output["nan"])
    assert outcome.output["ends"] == [math.inf, -math.inf]
    (result,) = network.final_rows(outcome.question_uuid, "result")
    event = result["event"].replace(" ", "")
    assert event == '{"output_values":{"nan":NaN,"ends":[Infinity,-Infinity],"one":1.0}}'


def test_the_next_question_runs_the_changed_code_of_a_service(sdk_client, services):
    app = services / "changing" / "app.py"

    assert sdk_client.ask("tests/changing:local").output == "before"
    app.write_text(app.read_text().replace('"before"', '"after"'))
    assert sdk_client.ask("tests/changing:local").output == "after"


def test_a_child_has_a_clean_environment_and_the_variables_of_env(sdk_client, services):
    output = sdk_client.ask("tests/environment:local").output
    variables = output["variables"]

    assert output["folder"] == str(services / "environment")
    assert variables["OCTUE_SERVICE_REVISION_TAG"] == "local"
    assert variables["TWINED_SERVICES_TOPIC_NAME"] == "main.octue.twined.services"
    assert variables["OF_THE_SERVICE"] == "in its own file"
    assert variables["PASSED_ON"] == "from the shell"
    assert variables["GIVEN"] == "in the command"
    assert "NOT_PASSED_ON" not in variables
