"""Questions on the wire, answered by pods of real images."""


def test_a_question_is_answered_by_a_pod(network):
    with network.daemon(), network.parent("tests/echo:local", input_values={"n": 3}) as parent:
        result = parent.result()

    assert result["output_values"] == {"received": {"n": 3}, "type": "dict"}
    kinds = {event["kind"] for event in parent.received()}
    assert {"delivery_acknowledgement", "result"} <= kinds
    assert "exception" not in kinds
