"""A person in a shell, after `eval "$(twined env --shim)"`."""

import json
import signal
import subprocess

from asking import end_of
from conftest import USUAL, wait_for


def run(command, environment, **options):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, **options
    )


def test_the_sdks_command_asks_in_a_shell_after_eval_of_twined_env(network, tmp_path):
    script = """
        set -eu
        eval "$("$0" env --shim --url "$1")"
        octue twined question ask tests/echo:local --input-values '{"height": 80}'
    """

    asked = run(["sh", "-c", script, str(network.binary), network.url], USUAL, cwd=tmp_path)

    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["output_values"]["received"] == {"height": 80}


def test_a_path_of_the_persons_own_stays_on_pythonpath(network):
    script = 'eval "$("$0" env --shim --url "$1")" && echo "$PYTHONPATH"'
    environment = {**USUAL, "PYTHONPATH": "/of/my/own"}

    printed = run(["sh", "-c", script, str(network.binary), network.url], environment)

    shim, own = printed.stdout.strip().split(":")
    assert own == "/of/my/own"
    assert shim == network.environment["PYTHONPATH"]


def test_twined_ask_prints_the_answer_alone(network, tmp_path):
    asked = run(
        [network.binary, "ask", "tests/echo:local", "-i", "[1, 2]"],
        {**network.environment, "TWINED_URL": network.url},
        cwd=tmp_path,
    )

    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.count("\n") == 1
    assert json.loads(asked.stdout)["output_values"]["received"] == [1, 2]
    # The child's logs are for the person, not for the program that reads the answer.
    assert "Asked with a value of type list." in asked.stderr


def test_a_service_started_beside_the_network_answers_alone_while_it_runs(
    network, asker, services, tmp_path
):
    log = tmp_path / "service.log"
    service = subprocess.Popen(
        ["octue", "twined", "service", "start", "--revision-tag", "local"],
        cwd=services / "beside",
        env={**network.environment, "STARTED_BY": "a person"},
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
        executable=str(find_octue()),
    )
    try:
        listening = "You can now ask this service questions"
        wait_for(lambda: listening in log.read_text(), "the service listens")

        outcome = asker.ask("tests/beside:local")

        assert outcome.output == "a person", end_of(log)
        # Had the network started a child too, it would have been done before this one is.
        assert asker.ask("tests/echo:local").output
        kinds = [row["kind"] for row in network.record(outcome.question_uuid)]
        assert kinds.count("result") == 1
        assert kinds.count("delivery_acknowledgement") == 1
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(20)

    assert asker.ask("tests/beside:local").output == "the network"


def find_octue():
    """The command beside the Python that runs the tests."""
    import shutil

    return shutil.which("octue", path=USUAL["PATH"])
