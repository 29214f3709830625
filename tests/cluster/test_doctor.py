"""The preflight checks of `twined doctor` and `twined serve` in a real cluster.

`test_rights` tests what each right is for.
"""

import json
import os
import subprocess

import offline
import pytest
from network import TOPIC


@pytest.fixture
def twined(network):
    """Runs `twined doctor` or `twined serve` as the user of a kubeconfig."""

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


def test_all_checks_pass_with_exactly_the_rights_of_the_role(twined, queue, network):
    local_queue = queue(network.namespace)

    done = twined("doctor", "--output", "json", "--queue", local_queue)

    assert done.returncode == 0, done.stdout
    found = checks_of(done)
    # The daemon has no right to read service accounts.
    unknown = {name for name, check in found.items() if check["verdict"] != "ok"}
    assert unknown == {"service account default"}, done.stdout
    assert found["service account default"]["verdict"] == "unknown"
    account = f"`system:serviceaccount:{network.namespace}:twined`"
    assert found["identity for Kubernetes"]["found"] == account
    assert {"rights on workloads", f"queue {local_queue}"} <= set(found)
    # The checks create nothing.
    assert network.cluster.kubectl.list("jobs", "-n", network.namespace) == []


def test_the_rights_of_an_admin_are_not_reported_as_those_of_the_daemon(twined, network):
    admin = network.cluster.kubeconfig

    done = twined("doctor", "--output", "json", kubeconfig=admin)

    found = checks_of(done)
    kinds = ("jobs", "pods", "events", "secrets", "leases")
    rights = [found[f"rights on {kind}"] for kind in kinds]
    unknown = [found["identity for Kubernetes"], *rights]
    assert {check["verdict"] for check in unknown} == {"unknown"}, done.stdout
    # The remedy is a line for a shell, which asks as the daemon's account.
    account = f"{network.namespace}:twined"
    line = found["rights on jobs"]["remedy"].replace("NAMESPACE:NAME", account)
    environment = {"PATH": os.environ["PATH"], "HOME": str(network.folder)}
    environment["KUBECONFIG"] = str(admin)
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["yes"] * 6, done


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_a_missing_namespace_is_reported_with_its_remedy(twined, network, command):
    admin = network.cluster.kubeconfig
    flags = ["--http", "127.0.0.1:0"] if command == "serve" else []

    done = twined(command, *flags, namespace="nowhere-at-all", kubeconfig=admin)

    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert 'namespaces "nowhere-at-all" not found' in output.replace("\\", "")
    assert "kubectl create namespace nowhere-at-all" in output


def test_a_daemon_without_a_right_names_it_and_exits(twined, account, network):
    less = account(network.namespace, "less", without=("jobs", "patch"))

    done = twined("serve", "--http", "127.0.0.1:0", "--log-format", "json", kubeconfig=less)

    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    failed = next(line for line in lines if line.get("check") == "rights on jobs")
    assert "patch" in failed["found"]
    assert "kubectl" in failed["remedy"]
    assert lines[-1]["exit_code"] == 1


def test_a_missing_queue_is_reported_with_its_remedy(twined, network):
    done = twined("doctor", "--output", "json", "--queue", "nowhere")

    check = checks_of(done)["queue nowhere"]
    assert (check["verdict"], done.returncode) == ("fail", 1)
    assert "kind: LocalQueue" in check["remedy"]


def test_invalid_settings_are_reported_with_their_line(twined, network):
    settings = network.folder / "wrong.yaml"
    settings.write_text("defaults:\n  memory: {default: lots}\n")

    done = twined("serve", "--settings", settings)

    assert done.returncode == 2
    assert "wrong.yaml" in done.stderr
    assert "lots" in done.stderr
    assert "line 2" in done.stderr
