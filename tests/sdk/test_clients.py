"""Google's Go and Node.js clients against the emulator of a network.

`tests/clients` has a program in each language. It creates a topic and a subscription with a filter
and ordering, publishes, receives and acknowledges, lists, detaches and deletes, and prints what it
saw. Google's Python client has `test_pubsub.py`, its Rust client the tests in `tests/it`.
"""

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "tests" / "clients"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

# In seconds. A program takes one or two.
TIMEOUT = 60


@pytest.fixture(scope="session")
def go_client(tmp_path_factory):
    """The command of the Go program. The first build on a machine takes 2 minutes."""
    if shutil.which("go") is None:
        pytest.skip("no Go on this machine")
    program = tmp_path_factory.mktemp("clients") / "go-client"
    prepare(["go", "build", "-o", program, "."], CLIENTS / "go")
    return [program]


@pytest.fixture(scope="session")
def node_client():
    """The command of the Node.js program, whose packages are cached below `target`."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    folder = TARGET / "sdk-node"
    lock, installed = CLIENTS / "node" / "package-lock.json", folder / "installed.json"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CLIENTS / "node", folder)
        prepare(["npm", "ci"], folder)
        shutil.copy(lock, installed)
    # Node.js looks for packages beside the program.
    shutil.copy(CLIENTS / "node" / "main.js", folder)
    return ["node", folder / "main.js"]


def prepare(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(params=["127.0.0.1", "localhost"])
def emulator(request, network):
    """The address of the network's emulator, as a client may write it."""
    _, _, port = network.environment["PUBSUB_EMULATOR_HOST"].rpartition(":")
    return f"{request.param}:{port}"


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_the_go_client_creates_publishes_receives_lists_detaches_and_deletes(
    network, emulator, go_client, protocol
):
    assert_all_done(network, emulator, go_client, protocol)


def test_the_node_client_creates_publishes_receives_lists_detaches_and_deletes(
    network, emulator, node_client
):
    assert_all_done(network, emulator, node_client)


def assert_all_done(network, emulator, command, *arguments):
    """Runs a program, and compares its report with what Google's Pub/Sub would give."""
    name = f"client-{uuid.uuid4()}"
    done = subprocess.run(
        [*command, name, *arguments],
        env={**network.environment, "PUBSUB_EMULATOR_HOST": emulator},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    project = f"projects/{network.environment['GOOGLE_CLOUD_PROJECT']}"
    topic, subscription = f"{project}/topics/{name}", f"{project}/subscriptions/{name}"
    assert json.loads(done.stdout) == {
        "filter": 'attributes.to = "me"',
        "received": ["0", "2", "4", "6", "8", "10"],
        "keys": ["a-key"],
        "listed": [topic, subscription],
        "attached": [subscription],
        "detached": True,
        "attached_afterward": [],
        "listed_afterward": [],
    }
