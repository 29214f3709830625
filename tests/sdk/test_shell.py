"""The commands of `octue` and `twined` in a shell, after `eval "$(twined env --shim)"`."""

import json
import signal
import subprocess

from conftest import BASE_ENVIRONMENT, wait_for
from sdk_client import end_of


def run(command, environment, **options):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, **options
    )


def test_the_command_of_the_sdk_asks_after_eval_of_twined_env(network, tmp_path):
    script = """
        set -eu
        eval "$("$0" env --shim --url "$1")"
        octue twined question ask tests/echo:local --input-values '{"height": 80}'
    """

    command = ["sh", "-c", script, str(network.binary), network.url]
    asked = run(command, BASE_ENVIRONMENT, cwd=tmp_path)

    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["output_values"]["received"] == {"height": 80}


def test_the_users_own_path_stays_on_pythonpath(network):
    script = 'eval "$("$0" env --shim --url "$1")" && echo "$PYTHONPATH"'
    environment = {**BASE_ENVIRONMENT, "PYTHONPATH": "/of/my/own"}

    printed = run(["sh", "-c", script, str(network.binary), network.url], environment)

    shim, own = printed.stdout.strip().split(":")
    assert own == "/of/my/own"
    assert shim == network.environment["PYTHONPATH"]


def test_twined_ask_prints_only_the_answer_on_stdout(network, tmp_path):
    asked = run(
        [network.binary, "ask", "tests/echo:local", "-i", "[1, 2]"],
        {**network.environment, "TWINED_URL": network.url},
        cwd=tmp_path,
    )

    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.count("\n") == 1
    assert json.loads(asked.stdout)["output_values"]["received"] == [1, 2]
    # The child's logs go to stderr.
    assert "Asked with a value of type list." in asked.stderr


def test_an_external_service_answers_instead_of_ours_while_it_runs(
    network, sdk_client, services, tmp_path
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

        outcome = sdk_client.ask("tests/beside:local")

        assert outcome.output == "a person", end_of(log)
        # If the network had started a child too, it would have ended before this one.
        assert sdk_client.ask("tests/echo:local").output
        kinds = [row["kind"] for row in network.final_rows(outcome.question_uuid)]
        assert kinds.count("result") == 1
        assert kinds.count("delivery_acknowledgement") == 1
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(20)

    assert sdk_client.ask("tests/beside:local").output == "the network"


def find_octue():
    """The `octue` command of the Python that runs the tests."""
    import shutil

    return shutil.which("octue", path=BASE_ENVIRONMENT["PATH"])
