"""The API server and Pub/Sub fail, and daemons are restarted, while questions are asked."""

import os
import random
import signal
import threading
import time

import pytest

import evidence as evidences
import fault_proxy
from cluster import wait_for
from fake_children import FakeChildren
from tcp_proxy import TcpProxy

RUN = 3
SERVICE = "fakes/service:local"
# The probability of each fault of the API server, high enough that each occurs within a minute.
CALLS = {
    "409": 0.04,
    "429": 0.04,
    "500": 0.04,
    "503": 0.04,
    "commit_and_cut": 0.04,
    "commit_and_hang": 0.02,
    "cut": 0.04,
    "slow": 0.05,
}
WATCHES = {"half_open": 0.03, "410": 0.03, "truncated": 0.03, "cut": 0.03}


class Load:
    """Asks questions, most of which get a result from fake children."""

    def __init__(self, network, run=RUN, seed=None, silent=0.1, **environment):
        seed = seed or os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().getrandbits(32)
        self.seed = int(seed)
        self.network = network
        behaviour = {"FAKE_RUN": f"{run}s", **environment}
        network.settings["defaults"]["environment"].update(behaviour)
        self.evidence = evidences.Evidence(network)
        self.recipients = {}
        self.children = FakeChildren(self.evidence, self.recipients, run, silent, self.seed)

    def ask(self, count, seconds=0.0):
        """Asks `count` questions at a steady rate, and returns their uuids."""
        start, asked = time.monotonic(), set()
        for number in range(count):
            time.sleep(max(0, start + seconds * number / count - time.monotonic()))
            question = self.evidence.ask(SERVICE, input_values={"n": number})
            self.recipients[question] = SERVICE
            asked.add(question)
        return asked

    def wait_for_jobs(self, questions, within=120):
        created = lambda: questions <= self.evidence.questions_with_job()  # noqa: E731
        wait_for(created, f"all of {len(questions)} questions have a Job", within, 0.2)

    def wait_until_ended(self, questions, within=240):
        ended = lambda: questions <= self.evidence.ended_questions()  # noqa: E731
        wait_for(ended, f"all of {len(questions)} questions have ended", within, 0.2)

    def check(self, summary):
        """Waits until all events are on record, and checks the evidence."""
        wait_for(lambda: self.evidence.is_quiet(), "all events are on record", 120, 0.5)
        found = evidences.check(self.evidence, set(self.recipients))
        print(f"\nseed {self.seed}: {summary}, {dict(found.counts)}")
        assert not found.violations, f"seed {self.seed}: {found.violations}"
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.children.close()
        self.evidence.close()


def restarts(daemon):
    name = "twined_watch_restarts_total"
    return sum(value for key, value in daemon.metrics().items() if key.startswith(name))


# === The API server ===


@pytest.fixture
def api_proxied(fake_network):
    """A network whose daemons use a proxy of the API server that injects faults."""
    seed = int(os.environ.get("TWINED_TEST_SEED", 0))
    proxy = fault_proxy.FaultProxy(fake_network.cluster, seed)
    fake_network.direct = fake_network.kubeconfig
    fake_network.kubeconfig = proxy.kubeconfig(fake_network.kubeconfig)
    fake_network.proxy = proxy
    yield fake_network
    proxy.close()


@pytest.mark.long
def test_no_fault_of_the_api_server_loses_or_duplicates_a_question(api_proxied):
    proxy = api_proxied.proxy
    with Load(api_proxied) as load, api_proxied.daemon() as daemon:
        proxy.calls, proxy.watches = CALLS, WATCHES
        during = load.ask(200, seconds=60)
        faults = {f"call {fault}" for fault in CALLS} | {f"watch {fault}" for fault in WATCHES}
        deadline = time.monotonic() + 120
        while not faults <= set(proxy.fired) and time.monotonic() < deadline:
            during |= load.ask(5, seconds=2)
        proxy.heal()
        # Longer than the timeouts of calls and of watches.
        after = load.ask(50, seconds=5)
        load.wait_for_jobs(during | after)
        load.wait_until_ended(during | after)
        load.check(f"{dict(proxy.fired)}, watches restarted {restarts(daemon):.0f} times")
        assert faults <= set(proxy.fired), f"not injected: {faults - set(proxy.fired)}"
        assert restarts(daemon) > 0


def only_smoke(faults, smoke):
    """Parameters of which all but one are marked `long`."""
    long = pytest.mark.long
    return [fault if fault == smoke else pytest.param(fault, marks=long) for fault in faults]


@pytest.mark.parametrize("fault", only_smoke(["410", "truncated", "cut"], "truncated"))
def test_a_watch_that_breaks_misses_nothing(api_proxied, fault):
    proxy = api_proxied.proxy
    with Load(api_proxied, run=0, silent=1, FAKE_EXIT="3") as load, api_proxied.daemon() as daemon:
        before = restarts(daemon)
        proxy.watches = {fault: 1.0}
        injected = lambda: proxy.fired[f"watch {fault}"] >= 4  # noqa: E731
        asked = load.ask(10, seconds=2)
        wait_for(injected, f"{fault} is injected", 30)
        proxy.heal()
        asked |= load.ask(10)
        load.wait_until_ended(asked, within=60)
        found = load.check(f"{dict(proxy.fired)}, restarts {restarts(daemon) - before:.0f}")
        assert found.counts["exceptions"] == 20
        # A watch that only ends is continued at its version, which is no restart. Its client ignores
        # an incomplete last line, unless the connection breaks before the end of the answer.
        if fault == "410":
            assert restarts(daemon) > before


AT_ONCE = [fault for fault in fault_proxy.CALLS if fault != "commit_and_hang"]


@pytest.mark.parametrize("fault", only_smoke(AT_ONCE, "commit_and_cut"))
def test_each_job_is_created_once_if_every_other_call_fails(api_proxied, fault):
    with Load(api_proxied, run=0, silent=1) as load, api_proxied.daemon():
        api_proxied.proxy.calls = {fault: 0.5}
        asked = load.ask(10)
        load.wait_for_jobs(asked, within=60)
        load.wait_until_ended(asked, within=120)
        api_proxied.proxy.heal()
        assert load.check(f"{dict(api_proxied.proxy.fired)}").counts["exceptions"] == 10
        assert api_proxied.proxy.fired[f"call {fault}"]


@pytest.mark.long
def test_each_job_is_created_once_if_calls_get_no_answer(api_proxied):
    with Load(api_proxied, run=0, silent=1) as load, api_proxied.daemon():
        api_proxied.proxy.calls = {"commit_and_hang": 0.3}
        asked = load.ask(20)
        load.wait_until_ended(asked, within=200)
        api_proxied.proxy.heal()
        load.check(f"{dict(api_proxied.proxy.fired)}")
        assert api_proxied.proxy.fired["call commit_and_hang"]


@pytest.mark.long
def test_a_half_open_watch_is_replaced_within_a_minute(api_proxied):
    with Load(api_proxied, run=0, silent=1) as load, api_proxied.daemon() as daemon:
        api_proxied.proxy.watches = {"half_open": 1.0}
        wait_for(lambda: api_proxied.proxy.fired["watch half_open"] >= 2, "both watches hang", 10)
        asked = load.ask(20)
        api_proxied.proxy.heal()
        start = time.monotonic()
        load.wait_until_ended(asked, within=60)
        load.check(f"seen after {time.monotonic() - start:.1f} s, {restarts(daemon):.0f} restarts")
        assert restarts(daemon) > 0


@pytest.mark.long
def test_an_api_server_that_is_down_for_a_minute_only_delays_questions(api_proxied):
    with Load(api_proxied, run=20) as load, api_proxied.daemon() as daemon:
        before = load.ask(50)
        load.wait_for_jobs(before)
        with api_proxied.proxy.down():
            during = load.ask(50, seconds=60)
            assert not during & load.evidence.questions_with_job()
            assert daemon.get("/live") == 200
        healed = time.monotonic()
        after = load.ask(20)
        load.wait_for_jobs(during | after)
        delay = time.monotonic() - healed
        load.wait_until_ended(before | during | after)
        load.check(f"all launched {delay:.1f} s after the outage, {restarts(daemon):.0f} restarts")


# === Pub/Sub ===


@pytest.fixture
def pubsub_proxied(fake_network):
    """A network whose daemons reach Pub/Sub through a proxy that can be cut."""
    direct, proxy = fake_network.emulator, TcpProxy("127.0.0.1", fake_network.emulator)
    fake_network.emulator = proxy.address
    fake_network.proxy = proxy
    yield fake_network
    fake_network.emulator = direct
    proxy.close()


@pytest.mark.long
def test_failures_during_an_outage_of_pubsub_are_reported_once_after_it(pubsub_proxied):
    with Load(pubsub_proxied, run=8, silent=1, FAKE_EXIT="3") as load, pubsub_proxied.daemon():
        asked = load.ask(50)
        load.wait_for_jobs(asked, within=30)
        with pubsub_proxied.proxy.cut():
            ended = lambda: all(job["ended"] for job in load.evidence.jobs.values())  # noqa: E731
            wait_for(ended, "all pods have failed", 60)
            assert not load.evidence.ended_questions(), "some were reported before the outage"
            time.sleep(45)
        restored = time.monotonic()
        load.wait_until_ended(asked, within=120)
        delay = time.monotonic() - restored
        found = load.check(f"all were reported {delay:.1f} s after the outage of Pub/Sub")
        assert found.counts["exceptions"] == 50


# === Shutdown ===


@pytest.mark.long
def test_twenty_restarts_under_load_take_at_most_5_s_each_and_lose_nothing(fake_network):
    times, codes, drained = [], [], 0
    with Load(fake_network, run=1) as load:
        daemon = fake_network.daemon()
        stopped = threading.Event()

        def ask():
            while not stopped.is_set():
                load.ask(5, seconds=1)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(20):
                time.sleep(1.5)
                start = time.monotonic()
                daemon.process.send_signal(signal.SIGTERM)
                statuses = []
                while daemon.process.poll() is None:
                    statuses.append(daemon.get("/ready"))
                    time.sleep(0.002)
                times.append(time.monotonic() - start)
                codes.append(daemon.process.returncode)
                drained += 503 in statuses
                daemon = fake_network.daemon(name=daemon.name)
            stopped.set()
            asking.join()
            load.wait_for_jobs(set(load.recipients))
            load.wait_until_ended(set(load.recipients))
            times.sort()
            load.check(
                f"exits in {times[0]:.2f} to {times[-1]:.2f} s, median {times[10]:.2f} s, "
                f"answered 503 in {drained} of 20"
            )
        finally:
            stopped.set()
            daemon.stop()
    assert set(codes) == {0}
    assert times[-1] <= 5
    assert drained


def test_a_draining_daemon_is_not_ready_and_a_second_signal_ends_it_at_once(api_proxied):
    with Load(api_proxied, run=0) as load, api_proxied.daemon() as daemon:
        # Deliveries in flight cannot be finished.
        api_proxied.proxy.calls = {"commit_and_hang": 1.0}
        load.ask(5)
        hanging = lambda: api_proxied.proxy.fired["call commit_and_hang"] >= 5  # noqa: E731
        wait_for(hanging, "all deliveries are in flight", 30)
        daemon.process.send_signal(signal.SIGTERM)
        wait_for(lambda: daemon.get("/ready") == 503, "the daemon is not ready", 2)
        assert daemon.process.poll() is None
        start = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(5) == 130
        assert time.monotonic() - start < 1


@pytest.mark.long
def test_a_daemon_whose_calls_hang_ends_within_5_s(api_proxied):
    with Load(api_proxied, run=0) as load:
        daemon = api_proxied.daemon()
        api_proxied.proxy.calls = {"commit_and_hang": 1.0}
        asked = load.ask(20)
        hanging = lambda: api_proxied.proxy.fired["call commit_and_hang"] >= 5  # noqa: E731
        wait_for(hanging, "some deliveries are in flight", 30)
        start = time.monotonic()
        code = daemon.stop()
        took = time.monotonic() - start
        api_proxied.proxy.heal()
        with api_proxied.daemon(name=daemon.name):
            load.wait_until_ended(asked)
            load.check(f"ended in {took:.2f} s")
    assert (code, took <= 5) == (0, True), took
