"""A local network, and a client that asks questions in it with the unmodified SDK.

Run with `TWINED_BIN=/path/to/twined python -m pytest tests/sdk`, with a Python that has the
packages of `requirements.txt`. The tests use no external network.
"""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from sdk_client import SdkClient, end_of

# A shell's background job ignores SIGINT, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent

# The environment of programs: no variables of Google's clients or of `twined`.
BASE_ENVIRONMENT = {
    **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ},
    "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def wait_for(condition, what, within=30):
    """Waits until `condition()` is true, and returns its value."""
    deadline = time.monotonic() + within

    while True:
        found = condition()

        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {within} s", pytrace=False)
        time.sleep(0.02)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# === Programs ===


class Program:
    """A process of the binary, with its stderr in a file."""

    def __init__(self, arguments, stderr, **environment):
        self.stderr = stderr
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            env={**BASE_ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr.open("w"),
            # So that signals to the tests, for example Ctrl-C, do not reach it.
            start_new_session=True,
        )

    def address(self, name):
        """The address on the printed line that starts with `name`."""
        pattern = re.compile(rf"^\s*{name}\W+(?:http://)?([\w.]+:\d+)\b", re.MULTILINE)

        def printed():
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode}:\n{end_of(self.stderr)}", False)
            return pattern.search(self.stderr.read_text())

        return wait_for(printed, f"the address of `{name}` is printed", within=10).group(1)

    def kill(self):
        """Kills the process, but not its child processes."""
        self.process.kill()
        self.process.wait()

    def interrupt(self, within=20):
        """Ends the process by SIGINT, and returns its exit code."""
        self.process.send_signal(signal.SIGINT)

        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"not ended {within} s after Ctrl-C:\n{end_of(self.stderr)}", False)


class Network:
    """`twined local`, its store, and the environment of `twined env`."""

    def __init__(self, binary, folders, data, *options, **environment):
        data.mkdir(exist_ok=True)
        self.binary = binary
        self.data = data
        self.folders = folders
        self.program = Program(
            [binary, "local", *folders, "--data", data, *options],
            data.parent / f"{data.name}-{time.monotonic_ns()}.log",
            **environment,
        )
        self.url = "http://" + self.program.address("http")
        wait_for(self.is_ready, "the network is ready", within=10)
        self.environment = self.printed_environment()

    def is_ready(self):
        try:
            return urllib.request.urlopen(self.url + "/ready", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def printed_environment(self, *options):
        """The environment of a shell after `eval "$(twined env)"`."""
        script = 'eval "$("$0" env --shim --url "$1")" && env -0'
        printed = subprocess.run(
            ["sh", "-c", script, self.binary, self.url],
            env=BASE_ENVIRONMENT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        return dict(entry.split("=", 1) for entry in printed.split("\0") if "=" in entry)

    def rows(self, question_uuid, *kinds):
        """The events of a question on record so far, ordered by time."""
        return self.select("question_uuid = ?", question_uuid, kinds)

    def final_rows(self, question_uuid, *kinds):
        """Waits until the terminal event is on record, and returns the events of the question.

        A parent may receive a terminal event before it is on record.
        """
        self.wait_for_row(question_uuid, "result", "exception")
        return self.rows(question_uuid, *kinds)

    def tree(self, originator_question_uuid, *kinds):
        """The events on record so far of a root question and all questions of its tree."""
        return self.select("originator_question_uuid = ?", originator_question_uuid, kinds)

    def select(self, where, value, kinds):
        store = sqlite3.connect(f"file:{self.data}/events.sqlite?mode=ro", uri=True, timeout=10)
        store.row_factory = sqlite3.Row

        try:
            rows = store.execute(
                f"SELECT * FROM service_events WHERE {where} ORDER BY datetime", (value,)
            ).fetchall()
        finally:
            store.close()

        return [dict(row) for row in rows if not kinds or row["kind"] in kinds]

    def wait_for_row(self, question_uuid, *kinds, within=30):
        what = f"{' or '.join(kinds)} of {question_uuid} is on record"
        return wait_for(lambda: self.rows(question_uuid, *kinds), what, within)[0]


# === Fixtures ===


@pytest.fixture(scope="session")
def binary():
    """The binary under test."""
    built = HERE.parent.parent / "target" / "debug" / "twined"
    path = Path(os.environ.get("TWINED_BIN", built))

    if not path.is_file():
        pytest.fail(f"no binary at {path}: build it, or name it with TWINED_BIN", pytrace=False)
    return path.resolve()


@pytest.fixture(scope="session")
def templates():
    """The SDK's example of a service with children, as installed."""
    import importlib.util

    octue = Path(importlib.util.find_spec("octue").origin).parent
    return octue / "twined" / "templates" / "template-child-services"


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    """The services of these tests, in a folder that tests may change."""
    folder = tmp_path_factory.mktemp("network") / "services"
    return Path(shutil.copytree(HERE / "services", folder))


@pytest.fixture(scope="session")
def network(binary, services, templates):
    """The network that all tests share which leave it unchanged."""
    network = Network(
        binary,
        [services, templates],
        services.parent / "data",
        "--http-port",
        0,
        "--pubsub-port",
        0,
        "--env",
        "PASSED_ON",
        "--env",
        "GIVEN=in the command",
        PASSED_ON="from the shell",
        NOT_PASSED_ON="from the shell",
    )
    yield network
    assert network.program.interrupt() == 0


@pytest.fixture(scope="session")
def sdk_client(network, tmp_path_factory):
    """Asks questions in `network`."""
    client = SdkClient(network.environment, tmp_path_factory.mktemp("sdk-client") / "stderr.log")
    yield client
    client.close()
