"""A new user's first steps: what `twined doctor` and `twined serve` say of a real cluster.

What each right is for, `test_rights` shows.
"""

import json
import os
import subprocess

import offline
import pytest
from network import TOPIC


@pytest.fixture
def twined(network):
    """Runs `twined doctor` or `twined serve` as whoever a kubeconfig says."""

    def run(command, *flags, kubeconfig=None, namespace=network.namespace):
        arguments = [network.binary, command, "--topic", TOPIC, "--project", offline.PROJECT]
        arguments += ["--pubsub", network.emulator, "--namespace", namespace]
        arguments += ["--images", network.cluster.repository, "--service-account", "default"]
        arguments += ["--store", f"sqlite:{network.store}", "--data", network.folder / "data"]
        pods = network.settings["defaults"]["environment"]["PUBSUB_EMULATOR_HOST"]
        arguments += ["--env", f"PUBSUB_EMULATOR_HOST={pods}", *flags]
        return subprocess.run(
            [str(argument) for argument in arguments],
            env={"HOME": str(network.folder), "KUBECONFIG": str(kubeconfig or network.kubeconfig)},
            cwd=network.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def checks_of(done):
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_under_exactly_the_role_all_is_well(twined, queue, network):
    local_queue = queue(network.namespace)

    done = twined("doctor", "--output", "json", "--queue", local_queue)

    assert done.returncode == 0, done.stdout
    found = checks_of(done)
    # The daemon has no right to look at accounts, and the doctor says so.
    unknown = {name for name, check in found.items() if check["verdict"] != "ok"}
    assert unknown == {"service account default"}, done.stdout
    assert found["service account default"]["verdict"] == "unknown"
    account = f"`system:serviceaccount:{network.namespace}:twined`"
    assert found["identity for Kubernetes"]["found"] == account
    assert {"rights on workloads", f"queue {local_queue}"} <= set(found)
    # It made nothing, and left nothing.
    assert network.cluster.kubectl.list("jobs", "-n", network.namespace) == []


def test_what_an_admin_may_is_not_taken_for_what_the_daemon_may(twined, network):
    admin = network.cluster.kubeconfig

    done = twined("doctor", "--output", "json", kubeconfig=admin)

    found = checks_of(done)
    rights = [found[f"rights on {kind}"] for kind in ("jobs", "pods", "events", "secrets", "leases")]
    unknown = [found["identity for Kubernetes"], *rights]
    assert {check["verdict"] for check in unknown} == {"unknown"}, done.stdout
    # What it says is to be done asks as the daemon's account: a line for a shell.
    account = f"{network.namespace}:twined"
    ask = found["rights on jobs"]["remedy"].replace("NAMESPACE:NAME", account)
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(admin), "HOME": str(network.folder)}
    said = subprocess.run(["sh", "-c", ask], env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["yes"] * 6, said


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_a_namespace_that_is_not_there_is_named(twined, network, command):
    admin = network.cluster.kubeconfig
    flags = ["--http", "127.0.0.1:0"] if command == "serve" else []

    done = twined(command, *flags, namespace="nowhere-at-all", kubeconfig=admin)

    words = done.stdout + done.stderr
    assert done.returncode == 1, words
    assert 'namespaces "nowhere-at-all" not found' in words.replace("\\", "")
    assert "kubectl create namespace nowhere-at-all" in words


def test_a_daemon_without_a_right_says_which_and_ends(twined, account, network):
    less = account(network.namespace, "less", without=("jobs", "patch"))

    done = twined("serve", "--http", "127.0.0.1:0", "--log-format", "json", kubeconfig=less)

    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = next(line for line in lines if line.get("check") == "rights on jobs")
    assert "patch" in said["found"]
    assert "kubectl" in said["remedy"]
    assert lines[-1]["exit_code"] == 1


def test_a_queue_that_is_not_there_is_named(twined, network):
    done = twined("doctor", "--output", "json", "--queue", "nowhere")

    check = checks_of(done)["queue nowhere"]
    assert (check["verdict"], done.returncode) == ("fail", 1)
    assert "kind: LocalQueue" in check["remedy"]


def test_wrong_settings_are_told_with_their_line(twined, network):
    settings = network.folder / "wrong.yaml"
    settings.write_text("defaults:\n  memory: {default: lots}\n")

    done = twined("serve", "--settings", settings)

    assert done.returncode == 2
    assert "wrong.yaml" in done.stderr
    assert "lots" in done.stderr
    assert "line 2" in done.stderr
