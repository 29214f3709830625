"""Reads questions from stdin, asks them with the SDK, and writes the outcomes to stdout.

One JSON document per line, both ways. The import of the SDK takes a second, so one process asks
many questions.
"""

import json
import os
import sys
import time

from octue.twined.resources import Child
from octue.utils.encoders import OctueJSONEncoder


def new_child(sruid):
    backend = {"name": "GCPPubSubBackend", "project_id": os.environ["GOOGLE_CLOUD_PROJECT"]}
    return Child(id=sruid, backend=backend)


def ask(sruid, arguments):
    child = new_child(sruid)
    monitor_messages = []
    answer, error, question_uuid = None, None, None
    started = time.monotonic()

    try:
        answer, question_uuid = child.ask(
            handle_monitor_message=monitor_messages.append, **arguments
        )
    except Exception as raised:
        answer = raised

    if isinstance(answer, Exception):
        answer, error = None, describe(answer)

    seconds = time.monotonic() - started
    events = child.received_events or []

    if question_uuid is None and events:
        question_uuid = events[0]["attributes"]["question_uuid"]

    return {
        **outcome(answer, error, question_uuid, seconds),
        "events": events,
        "monitor_messages": monitor_messages,
    }


def ask_multiple(sruid, questions, arguments):
    started = time.monotonic()
    answers = new_child(sruid).ask_multiple(*questions, raise_errors=False, **arguments)
    seconds = time.monotonic() - started

    return [
        outcome(None, describe(answer), question_uuid, seconds)
        if isinstance(answer, Exception)
        else outcome(answer, None, question_uuid, seconds)
        for answer, question_uuid in answers
    ]


def outcome(answer, error, question_uuid, seconds):
    return {
        "answer": answer,
        "error": error,
        "question_uuid": question_uuid,
        "events": [],
        "monitor_messages": [],
        "seconds": seconds,
        "ended": time.time(),
    }


def describe(error):
    return {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "message": str(error),
    }


def main():
    # Output of the SDK goes to stderr, so that it does not mix with the documents.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    for line in sys.stdin:
        request = json.loads(line)
        sruid, questions = request["sruid"], request["questions"]

        if "together" in request:
            outcomes = ask_multiple(sruid, questions, request["together"])
        else:
            outcomes = [ask(sruid, question) for question in questions]

        print(json.dumps(outcomes, cls=OctueJSONEncoder), file=answers, flush=True)


if __name__ == "__main__":
    main()
