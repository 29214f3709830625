"""Asks questions with the unmodified SDK, in a process of its own.

For tests in which processes of this machine answer, and for tests in which pods do.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def end_of(path, characters=3000):
    return path.read_text(errors="replace")[-characters:] if path.exists() else ""


class SdkClient:
    """A Python process with the SDK imported, in the given environment."""

    def __init__(self, environment, stderr):
        self.stderr = stderr
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "sdk_process.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr.open("w"),
        )

    def ask(self, sruid, within=60, **arguments):
        """Calls `Child.ask`. Returns the `Outcome` of the question."""
        return self.request({"sruid": sruid, "questions": [arguments]}, within)[0]

    def ask_multiple(self, sruid, questions, within=120, **arguments):
        """Calls `Child.ask_multiple`. Returns the `Outcome` of each question, in order."""
        request = {"sruid": sruid, "questions": questions, "together": arguments}
        return self.request(request, within)

    def request(self, request, within):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return [Outcome(**outcome) for outcome in json.loads(self.read_line(within))]

    def read_line(self, within):
        pipe = self.process.stdout
        deadline = time.monotonic() + within
        line = b""

        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
            part = os.read(pipe.fileno(), 1 << 20) if ready else b""

            if not part:
                self.process.kill()
                pytest.fail(f"no outcome within {within} s:\n{end_of(self.stderr)}", False)
            line += part

        return line

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)


class Outcome:
    """The outcome of a question, as the SDK reports it to the parent."""

    def __init__(self, answer, error, question_uuid, events, monitor_messages, seconds, ended):
        self.answer = answer
        self.error = error
        self.question_uuid = question_uuid
        self.events = events
        self.monitor_messages = monitor_messages
        self.seconds = seconds
        self.ended = ended

    @property
    def output(self):
        assert self.error is None, self.error["message"]
        return self.answer["output_values"]

    def kinds(self):
        return [event["event"]["kind"] for event in self.events]

    def logs(self):
        """The messages of the log records received."""
        records = [event["event"].get("log_record") for event in self.events]
        return [record["msg"] for record in records if record]
