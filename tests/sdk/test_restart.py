"""No question is lost or runs twice when the daemon is killed."""

import json

from conftest import Network, Program, free_port, wait_for
from sdk_client import SdkClient

RUNNING = 20
WAITING = 20


def test_running_and_waiting_questions_are_answered_once_after_the_daemon_is_killed(
    binary, services, tmp_path
):
    work = tmp_path / "work"
    work.mkdir()
    runs = work / "runs"
    runs.touch()
    data = tmp_path / "data"
    emulator = Program([binary, "emulator", "--pubsub-port", 0], tmp_path / "emulator.log")
    options = (
        "--pubsub",
        emulator.address("pubsub"),
        # The restarted daemon uses the same port, as it does by default.
        "--http-port",
        free_port(),
        "--max-runs",
        RUNNING,
    )
    network = client = None
    names = [f"question {i}" for i in range(RUNNING + WAITING)]

    try:
        # 40 questions are asked, of which 20 run and 20 wait.
        network = Network(binary, [services], data, *options)
        client = SdkClient(network.environment, tmp_path / "sdk-client.log")
        asked = client.ask_multiple(
            "tests/counted:local",
            [
                {"input_values": {"name": name, "folder": str(work)}, "asynchronous": True}
                for name in names
            ],
        )
        uuids = [outcome.question_uuid for outcome in asked]
        for uuid in uuids:
            network.wait_for_row(uuid, "question")
        started = lambda: runs.read_text().splitlines()  # noqa: E731
        wait_for(lambda: len(started()) == RUNNING, "20 questions run", within=90)

        # Only the daemon is killed, and started again.
        network.program.kill()
        network = Network(binary, [services], data, *options)
        (work / "may-end").touch()

        # Each question is answered once, and none runs twice.
        ends = [network.wait_for_row(uuid, "result", "exception", within=90) for uuid in uuids]
        answers = [json.loads(end["event"]).get("output_values") for end in ends]
        assert answers == names

        # All events published before this question was answered are on record.
        assert client.ask("tests/echo:local").output
        assert sorted(started()) == sorted(names)
        for uuid in uuids:
            assert len(network.rows(uuid, "result", "exception")) == 1
            assert len(network.rows(uuid, "question")) == 1

        assert network.program.interrupt() == 0
        assert emulator.interrupt() == 0
    finally:
        if client:
            client.close()
        for program in (network and network.program, emulator):
            if program and program.process.poll() is None:
                program.kill()
