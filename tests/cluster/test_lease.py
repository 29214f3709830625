"""Which of two replicas lets go what waits for our own limits, and what of it hangs on nobody."""

import contextlib
import json
import time

import pytest
from cluster import write_kubeconfig
from passage import Passage
from queueing import never_more, rule, wait_for_job, waits, was_released

ECHO, NUMBERS = "tests/echo:local", "tests/numbers:local"
LIMIT = 2


def leases(network):
    return network.cluster.kubectl.list("leases", "-n", network.namespace)


def holder(network):
    found = leases(network)
    return found and found[0]["spec"].get("holderIdentity") or None


@pytest.fixture
def pair(fake_network):
    """A network of which two questions to the echo run at once, and its two replicas.

    Questions to the numbers have no limit.
    """
    network = fake_network
    rule(network, "tests/echo", running=LIMIT)
    rule(network, "tests/*", environment={"FAKE_RUN": "1s"})
    # Who dies is told so at once.
    rule(network, "tests/numbers", environment={"FAKE_EXIT": "3"})
    daemons = [network.daemon(), network.daemon()]
    network.cluster.wait_for(lambda: holder(network), "one leads")
    yield network, daemons
    for daemon in daemons:
        daemon.stop()


def by_role(network, daemons):
    leader = next(daemon for daemon in daemons if daemon.name == holder(network))
    return leader, next(daemon for daemon in daemons if daemon is not leader)


def released(network):
    return sum(map(was_released, network.jobs()))


def until_it_goes_on(network, within=30):
    """Waits until those that ran have ended and others are let go, and says how long it took."""
    start = time.time()
    before = released(network)
    # Those that were let go just before, or are being let go, are no word of the new leader.
    network.cluster.wait_for(lambda: released(network) > before + LIMIT, "it goes on", within)
    return time.time() - start


def ask_many(network, count=60):
    asked = network.ask(ECHO, count, input_values={})
    network.cluster.wait_for(lambda: len(network.jobs()) >= count, "all are in the cluster")
    return asked


def test_a_leader_that_is_killed_is_followed_and_nothing_else_is_late(pair):
    network, daemons = pair
    with never_more(network, LIMIT, of=is_echo):
        ask_many(network)
        leader, other = by_role(network, daemons)
        leader.kill()
        killed = time.time()
        with network.parent(NUMBERS, input_values={}) as parent:
            network.wait_for_run(parent.question_uuid, within=5)
            parent.end(within=5)
        took = time.time() - killed
        print(f"a question without a limit ended {took:.1f} s after the leader was killed")
        assert holder(network) == leader.name, "so nobody led meanwhile"
        until_it_goes_on(network)
        took = time.time() - killed
        print(f"releases went on {took:.1f} s after the leader was killed")
        assert took < 15 + 3
        assert holder(network) == other.name


def is_echo(job):
    labels = job["metadata"]["labels"]
    return "numbers" not in json.dumps(labels)


def test_a_leader_that_is_told_to_end_gives_the_lease_back(pair):
    network, daemons = pair
    leader, other = by_role(network, daemons)
    leader.process.terminate()
    start = time.time()
    network.cluster.wait_for(lambda: holder(network) == other.name, "the other leads", within=6)
    print(f"the other leads {time.time() - start:.1f} s after SIGTERM")


def test_a_leader_that_was_paused_does_no_harm_when_it_wakes(pair):
    network, daemons = pair
    with never_more(network, LIMIT, of=is_echo):
        ask_many(network, 100)
        leader, other = by_role(network, daemons)
        leader.pause()
        paused = time.time()
        until_it_goes_on(network)
        took = time.time() - paused
        print(f"releases went on {took:.1f} s after the leader was paused")
        assert took < 15 + 3
        assert holder(network) == other.name
        leader.resume()
        until_it_goes_on(network)
        until_it_goes_on(network)
        assert holder(network) == other.name


def test_a_leader_that_does_not_reach_the_api_server_steps_down(fake_network, tmp_path):
    network = fake_network
    rule(network, "tests/echo", running=LIMIT)
    rule(network, "tests/*", environment={"FAKE_RUN": "1s"})
    passage = Passage("127.0.0.1", f"{network.cluster.api}:443")
    through = tmp_path / "through.kubeconfig"
    direct = json.loads(network.kubeconfig.read_text())
    server = {**direct["clusters"][0]["cluster"], "server": f"https://{passage.address}"}
    server["tls-server-name"] = "kubernetes.default.svc"
    write_kubeconfig(through, server, direct["users"][0]["user"]["token"], network.namespace)

    with contextlib.closing(passage), network.daemon(KUBECONFIG=str(through)) as leader:
        network.cluster.wait_for(lambda: holder(network) == leader.name, "it leads")
        with network.daemon() as other, never_more(network, LIMIT, of=is_echo):
            ask_many(network, 80)
            with passage.cut():
                cut = time.time()
                stepped_down = lambda: last_word(leader) is False  # noqa: E731
                network.cluster.wait_for(stepped_down, "it leads no more", within=10)
                print(f"it stepped down {time.time() - cut:.1f} s after the cut")
                until_it_goes_on(network)
                print(f"releases went on {time.time() - cut:.1f} s after the cut")
                assert time.time() - cut < 15 + 3
                # What comes to the one that is cut off is not lost either.
                asked = network.ask(NUMBERS, 6, input_values={})
                network.cluster.wait_for(lambda: time.time() > cut + 30, "half a minute passed")
            network.wait_for_ends(asked, within=60)
            assert holder(network) == other.name
            network.cluster.wait_for(lambda: leader.get("/ready") == 200, "it is ready again")


def last_word(daemon):
    """Whether a daemon leads, by its log."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if line[:1] == "{"]
    words = [line["leads"] for line in lines if "leads" in line]
    return words[-1] in (True, "true") if words else None


# === Waiting for too long, and what is said meanwhile ===


def test_who_waits_for_too_long_is_told(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    network.settings["waiting"] = "15s"
    rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})
    rule(network, "tests/numbers", node_selector={"twined.test/no": "such-node"})

    with network.daemon(), network.parent(ECHO, input_values={}) as first:
        network.wait_for_run(first.question_uuid)
        with network.parent(ECHO, input_values={}) as second:
            exception = second.exception(within=30)
            assert exception["exception_type"] == "TimeoutError"
            assert "waited for 15 seconds" in exception["exception_message"]
            assert "limit of 1 concurrent questions is reached" in exception["exception_message"]
            gone = lambda: network.job(second.question_uuid) is None  # noqa: E731
            network.cluster.wait_for(gone, "its Job is gone", within=10)
        assert not first.received("exception")
        first.cancel()
        # It has its turn, and no machine takes it.
        with network.parent(NUMBERS, input_values={}) as third:
            exception = third.exception(within=40)
            assert exception["exception_type"] == "TimeoutError"
            assert not network.jobs(third.question_uuid) or not live(network, third)


def live(network, parent):
    pods = network.pods(parent.question_uuid)
    return [pod for pod in pods if pod["status"]["phase"] == "Pending"]


@pytest.mark.long
def test_one_of_two_says_that_a_question_lives(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    rule(network, "tests/*", environment={"FAKE_RUN": "forever"})

    with network.daemon(), network.daemon(), network.parent(ECHO, input_values={}) as first:
        network.wait_for_run(first.question_uuid)
        with network.parent(ECHO, input_values={}) as second:
            wait_for_job(network, second, waits)
            second.wait_for("heartbeat", within=150)
            assert 115 < second.when("heartbeat") - second.asked < 130
            (row,) = network.rows(second.question_uuid, "heartbeat")
            assert row["sender"] == ECHO
            first.cancel()
            network.wait_for_run(second.question_uuid)
            two = lambda: len(second.received("heartbeat")) == 2  # noqa: E731
            network.cluster.wait_for(two, "one more when it runs", within=10)
            assert len(network.rows(second.question_uuid, "heartbeat")) == 2
