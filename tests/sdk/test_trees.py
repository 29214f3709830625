"""A service asks other services: every event names its parent and originator in the tree."""

from conftest import wait_for

LOCATIONS = {"locations": [{"longitude": 0, "latitude": 0}, {"longitude": 1, "latitude": 1}]}


def test_the_template_of_the_sdk_runs_unchanged_as_a_tree_of_three(sdk_client, network):
    parent = "template-child-services/parent-service:local"
    children = {
        "template-child-services/elevation-service:local",
        "template-child-services/wind-speed-service:local",
    }

    outcome = sdk_client.ask(parent, input_values=LOCATIONS, within=90)

    assert sorted(outcome.output) == ["elevations", "wind_speeds"]
    assert all(len(values) == 2 for values in outcome.output.values())

    ended = lambda: network.tree(outcome.question_uuid, "result")  # noqa: E731
    wait_for(lambda: len(ended()) == 3, "three results are on record")
    rows = network.tree(outcome.question_uuid)
    questions = {row["recipient"]: row for row in rows if row["kind"] == "question"}
    results = {row["sender"]: row for row in rows if row["kind"] == "result"}
    assert set(questions) == set(results) == {parent, *children}
    assert len({row["question_uuid"] for row in rows}) == 3

    for row in rows:
        assert row["originator"] == "local/local:local"
        assert row["originator_question_uuid"] == outcome.question_uuid

        if row["question_uuid"] == outcome.question_uuid:
            assert row["parent_question_uuid"] is None
            assert row["parent"] == "local/local:local"
        else:
            assert row["parent_question_uuid"] == outcome.question_uuid
            assert row["parent"] == parent


def test_children_of_a_question_replace_those_of_octue_yaml(sdk_client):
    backend = {"name": "GCPPubSubBackend", "project_id": "a-project-of-long-ago"}
    other = {"key": "child", "id": "tests/environment:local", "backend": backend}

    own = sdk_client.ask("tests/parent:local", input_values=[1])
    named = sdk_client.ask("tests/parent:local", input_values=[1], children=[other])

    assert own.output["child"] == "tests/echo:local"
    assert own.output["answer"]["received"] == [1]
    assert named.output["child"] == "tests/environment:local"
    assert "variables" in named.output["answer"]


def test_the_failure_of_a_grandchild_is_reported_up_the_tree(sdk_client, network):
    backend = {"name": "GCPPubSubBackend", "project_id": "a-project-of-long-ago"}
    raising = {"key": "child", "id": "tests/raising:local", "backend": backend}

    outcome = sdk_client.ask("tests/parent:local", input_values={"type": "own"}, children=[raising])

    assert outcome.error["type"] == "TooWindyError"
    exceptions = lambda: network.tree(outcome.question_uuid, "exception")  # noqa: E731
    wait_for(lambda: len(exceptions()) == 2, "two exceptions are on record")
