"""A browser, a running network, and the servers for an attack on it.

Run with `TWINED_BIN=/path/to/twined python -m pytest tests/web`, with a Python that has the
packages of `tests/sdk/requirements.txt`. The tests use no external network.

Without a browser the tests are skipped; with `TWINED_TEST_BROWSER=required` they fail.
"""

import os
from pathlib import Path

import pytest

# Before the import of the module, so that its assertions are rewritten.
pytest.register_assert_rewrite("network")

import chromium
from network import Network
from servers import PageServer, PermissiveServer, Relay

BUILT = Path(__file__).parents[2] / "target" / "debug" / "twined"


@pytest.fixture(scope="session")
def browser():
    try:
        return chromium.Chromium(chromium.find_or_install())
    except chromium.Unavailable as reason:
        if os.environ.get("TWINED_TEST_BROWSER") == "required":
            raise
        pytest.skip(f"no browser here: {reason}")


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    binary = Path(os.environ.get("TWINED_BIN", BUILT)).resolve()
    assert binary.is_file(), f"no binary at {binary}: build it, or name it with TWINED_BIN"
    with Network(binary, tmp_path_factory.mktemp("network")) as network:
        yield network


@pytest.fixture
def page_server():
    with PageServer() as server:
        yield server


@pytest.fixture
def permissive_server():
    with PermissiveServer() as server:
        yield server


@pytest.fixture
def relays(network, page_server):
    """A relay before each port of the network."""
    with (
        Relay(network.ports["http"], page_server) as http,
        Relay(network.ports["pubsub"], page_server) as pubsub,
    ):
        yield [http, pubsub]
