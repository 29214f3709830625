"""The leader of two replicas releases questions that wait for our own limits."""

import contextlib
import json
import time

import pytest
from cluster import write_kubeconfig
from queueing import add_rule, is_released, is_suspended, limit_holds, wait_for_job
from tcp_proxy import TcpProxy

ECHO, NUMBERS = "tests/echo:local", "tests/numbers:local"
LIMIT = 2


def leases(network):
    return network.cluster.kubectl.list("leases", "-n", network.namespace)


def holder(network):
    found = leases(network)
    return found and found[0]["spec"].get("holderIdentity") or None


@pytest.fixture
def two_replicas(fake_network):
    """A network in which two questions to the echo service can run at once, and two replicas.

    Questions to the numbers service have no limit.
    """
    network = fake_network
    add_rule(network, "tests/echo", running=LIMIT)
    add_rule(network, "tests/*", environment={"FAKE_RUN": "1s"})
    # A run that fails is reported at once.
    add_rule(network, "tests/numbers", environment={"FAKE_EXIT": "3"})
    daemons = [network.daemon(), network.daemon()]
    network.cluster.wait_for(lambda: holder(network), "one replica leads")
    yield network, daemons
    for daemon in daemons:
        daemon.stop()


def by_role(network, daemons):
    leader = next(daemon for daemon in daemons if daemon.name == holder(network))
    return leader, next(daemon for daemon in daemons if daemon is not leader)


def released(network):
    return sum(map(is_released, network.jobs()))


def wait_for_releases(network, within=30):
    """Waits until a leader has released more questions."""
    before = released(network)
    # More than the previous leader could have released already.
    enough = lambda: released(network) > before + LIMIT  # noqa: E731
    network.cluster.wait_for(enough, "more questions are released", within)


def ask_many(network, count=60):
    asked = network.ask(ECHO, count, input_values={})
    network.cluster.wait_for(lambda: len(network.jobs()) >= count, "all questions have a Job")
    return asked


def test_a_killed_leader_is_replaced_and_delays_only_releases(two_replicas):
    network, daemons = two_replicas
    with limit_holds(network, LIMIT, counts=is_echo):
        ask_many(network)
        leader, other = by_role(network, daemons)
        leader.kill()
        killed = time.time()
        with network.parent(NUMBERS, input_values={}) as parent:
            network.wait_for_run(parent.question_uuid, within=5)
            parent.end(within=5)
        delay = time.time() - killed
        print(f"a question without a limit ended {delay:.1f} s after the leader was killed")
        assert holder(network) == leader.name, "no replica led meanwhile"
        wait_for_releases(network)
        delay = time.time() - killed
        print(f"releases continued {delay:.1f} s after the leader was killed")
        assert delay < 15 + 3
        assert holder(network) == other.name


def is_echo(job):
    labels = job["metadata"]["labels"]
    return "numbers" not in json.dumps(labels)


def test_a_leader_releases_the_lease_on_shutdown(two_replicas):
    network, daemons = two_replicas
    leader, other = by_role(network, daemons)
    leader.process.terminate()
    start = time.time()
    network.cluster.wait_for(lambda: holder(network) == other.name, "the other leads", within=6)
    print(f"the other leads {time.time() - start:.1f} s after SIGTERM")


def test_a_leader_that_was_paused_releases_nothing_when_it_resumes(two_replicas):
    network, daemons = two_replicas
    with limit_holds(network, LIMIT, counts=is_echo):
        ask_many(network, 100)
        leader, other = by_role(network, daemons)
        leader.pause()
        paused = time.time()
        wait_for_releases(network)
        delay = time.time() - paused
        print(f"releases continued {delay:.1f} s after the leader was paused")
        assert delay < 15 + 3
        assert holder(network) == other.name
        leader.resume()
        wait_for_releases(network)
        wait_for_releases(network)
        assert holder(network) == other.name


def test_a_leader_that_cannot_reach_the_api_server_steps_down(fake_network, tmp_path):
    network = fake_network
    add_rule(network, "tests/echo", running=LIMIT)
    add_rule(network, "tests/*", environment={"FAKE_RUN": "1s"})
    proxy = TcpProxy("127.0.0.1", f"{network.cluster.api}:443")
    through = tmp_path / "through.kubeconfig"
    direct = json.loads(network.kubeconfig.read_text())
    server = {**direct["clusters"][0]["cluster"], "server": f"https://{proxy.address}"}
    server["tls-server-name"] = "kubernetes.default.svc"
    write_kubeconfig(through, server, direct["users"][0]["user"]["token"], network.namespace)

    with contextlib.closing(proxy), network.daemon(KUBECONFIG=str(through)) as leader:
        network.cluster.wait_for(lambda: holder(network) == leader.name, "it leads")
        with network.daemon() as other, limit_holds(network, LIMIT, counts=is_echo):
            ask_many(network, 80)
            with proxy.cut():
                cut = time.time()
                stepped_down = lambda: leads(leader) is False  # noqa: E731
                network.cluster.wait_for(stepped_down, "it no longer leads", within=10)
                print(f"it stepped down {time.time() - cut:.1f} s after the cut")
                wait_for_releases(network)
                print(f"releases continued {time.time() - cut:.1f} s after the cut")
                assert time.time() - cut < 15 + 3
                # Questions that are delivered to the replica without an API server are not lost.
                asked = network.ask(NUMBERS, 6, input_values={})
                network.cluster.wait_for(lambda: time.time() > cut + 30, "30 s have passed")
            network.wait_for_ends(asked, within=60)
            assert holder(network) == other.name
            network.cluster.wait_for(lambda: leader.get("/ready") == 200, "the replica is ready")


def leads(daemon):
    """Whether a daemon leads, by the last report in its log; None if there is none."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if line[:1] == "{"]
    reports = [line["leads"] for line in lines if "leads" in line]
    return reports[-1] in (True, "true") if reports else None


# === The queue timeout, and heartbeats of questions that wait ===


def test_a_question_that_waits_longer_than_the_queue_timeout_is_ended(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    network.settings["waiting"] = "15s"
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})
    add_rule(network, "tests/numbers", node_selector={"twined.test/no": "such-node"})

    with network.daemon(), network.parent(ECHO, input_values={}) as first:
        network.wait_for_run(first.question_uuid)
        with network.parent(ECHO, input_values={}) as second:
            exception = second.exception(within=30)
            assert exception["exception_type"] == "TimeoutError"
            assert "waited for 15 seconds" in exception["exception_message"]
            assert "limit of 1 concurrent questions is reached" in exception["exception_message"]
            gone = lambda: network.job(second.question_uuid) is None  # noqa: E731
            network.cluster.wait_for(gone, "the Job is gone", within=10)
        assert not first.received("exception")
        first.cancel()
        # An admitted question that no node fits.
        with network.parent(NUMBERS, input_values={}) as third:
            exception = third.exception(within=40)
            assert exception["exception_type"] == "TimeoutError"
            assert not network.jobs(third.question_uuid) or not live(network, third)


def live(network, parent):
    pods = network.pods(parent.question_uuid)
    return [pod for pod in pods if pod["status"]["phase"] == "Pending"]


@pytest.mark.long
def test_one_of_two_replicas_publishes_heartbeats_of_a_waiting_question(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    add_rule(network, "tests/*", environment={"FAKE_RUN": "forever"})

    with network.daemon(), network.daemon(), network.parent(ECHO, input_values={}) as first:
        network.wait_for_run(first.question_uuid)
        with network.parent(ECHO, input_values={}) as second:
            wait_for_job(network, second, is_suspended)
            second.wait_for("heartbeat", within=150)
            assert 115 < second.when("heartbeat") - second.asked < 130
            (row,) = network.rows(second.question_uuid, "heartbeat")
            assert row["sender"] == ECHO
            first.cancel()
            network.wait_for_run(second.question_uuid)
            two = lambda: len(second.received("heartbeat")) == 2  # noqa: E731
            network.cluster.wait_for(two, "another heartbeat when it runs", within=10)
            assert len(network.rows(second.question_uuid, "heartbeat")) == 2
