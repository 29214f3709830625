"""The daemon is killed, and no question is lost or run twice."""

import json

from asking import Asker
from conftest import Network, Program, free_port, wait_for

RUNNING = 20
WAITING = 20


def test_questions_that_run_and_wait_when_the_daemon_is_killed_are_each_answered_once(
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
        # The same after the restart, as for a person who names no port.
        "--http-port",
        free_port(),
        "--max-runs",
        RUNNING,
    )
    network = asker = None
    names = [f"question {i}" for i in range(RUNNING + WAITING)]

    try:
        # Given 40 questions of which 20 run and 20 wait,
        network = Network(binary, [services], data, *options)
        asker = Asker(network.environment, tmp_path / "asker.log")
        asked = asker.ask_multiple(
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

        # when the daemon alone is killed, and started again,
        network.program.kill()
        network = Network(binary, [services], data, *options)
        (work / "may-end").touch()

        # then each is answered once, and none has run twice.
        ends = [network.wait_for_row(uuid, "result", "exception", within=90) for uuid in uuids]
        answers = [json.loads(end["event"]).get("output_values") for end in ends]
        assert answers == names

        # Whatever would still come, comes before a question that is asked now.
        assert asker.ask("tests/echo:local").output
        assert sorted(started()) == sorted(names)
        for uuid in uuids:
            assert len(network.rows(uuid, "result", "exception")) == 1
            assert len(network.rows(uuid, "question")) == 1

        assert network.program.interrupt() == 0
        assert emulator.interrupt() == 0
    finally:
        if asker:
            asker.close()
        for program in (network and network.program, emulator):
            if program and program.process.poll() is None:
                program.kill()
