"""The API server and Pub/Sub fail, and the daemon is told to end, while questions are asked."""

import os
import random
import signal
import threading
import time

import pytest

import evidence as evidences
import faulty
from cluster import wait_for
from passage import Passage
from standin import StandIn

RUN = 3
SERVICE = "fakes/service:local"
# All that can be wrong with the API server, each often enough to be met in a minute.
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
    """Questions that are asked, and the stand-in that answers most of them."""

    def __init__(self, network, run=RUN, seed=None, silent=0.1, **environment):
        seed = seed or os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().getrandbits(32)
        self.seed = int(seed)
        self.network = network
        says = {"FAKE_RUN": f"{run}s", **environment}
        network.settings["defaults"]["environment"].update(says)
        self.evidence = evidences.Evidence(network)
        self.recipients = {}
        self.stand_in = StandIn(self.evidence, self.recipients, run, silent, self.seed)

    def ask(self, count, seconds=0.0):
        """Asks so many, evenly, and gives their uuids."""
        start, asked = time.monotonic(), set()
        for number in range(count):
            time.sleep(max(0, start + seconds * number / count - time.monotonic()))
            question = self.evidence.ask(SERVICE, input_values={"n": number})
            self.recipients[question] = SERVICE
            asked.add(question)
        return asked

    def wait_until_made(self, questions, within=120):
        made = lambda: questions <= self.evidence.made()  # noqa: E731
        wait_for(made, f"all of {len(questions)} have a Job", within, 0.2)

    def wait_until_ended(self, questions, within=240):
        ended = lambda: questions <= self.evidence.ended()  # noqa: E731
        wait_for(ended, f"all of {len(questions)} have an end", within, 0.2)

    def judge(self, words):
        """All of it is in order, once all is quiet."""
        wait_for(lambda: self.evidence.is_quiet(), "all is quiet", 120, 0.5)
        found = evidences.check(self.evidence, set(self.recipients))
        print(f"\nseed {self.seed}: {words}, {dict(found.counts)}")
        assert not found.wrong, f"seed {self.seed}: {found.wrong}"
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stand_in.close()
        self.evidence.close()


def restarts(daemon):
    name = "twined_watch_restarts_total"
    return sum(value for key, value in daemon.metrics().items() if key.startswith(name))


# === The API server ===


@pytest.fixture
def proxied(fake_network):
    """A network whose daemons reach the API server by way of a proxy that fails when it is told."""
    seed = int(os.environ.get("TWINED_TEST_SEED", 0))
    proxy = faulty.Faulty(fake_network.cluster, seed)
    fake_network.direct = fake_network.kubeconfig
    fake_network.kubeconfig = proxy.kubeconfig(fake_network.kubeconfig)
    fake_network.proxy = proxy
    yield fake_network
    proxy.close()


@pytest.mark.long
def test_an_api_server_that_fails_in_every_way_costs_no_question_and_doubles_none(proxied):
    proxy = proxied.proxy
    with Load(proxied) as load, proxied.daemon() as daemon:
        proxy.calls, proxy.watches = CALLS, WATCHES
        during = load.ask(200, seconds=60)
        met = {f"call {fault}" for fault in CALLS} | {f"watch {fault}" for fault in WATCHES}
        give_up = time.monotonic() + 120
        while not met <= set(proxy.fired) and time.monotonic() < give_up:
            during |= load.ask(5, seconds=2)
        proxy.heal()
        # What hangs ends within this: the call's limit, and the watch's.
        after = load.ask(50, seconds=5)
        load.wait_until_made(during | after)
        load.wait_until_ended(during | after)
        load.judge(f"{dict(proxy.fired)}, watches restarted {restarts(daemon):.0f} times")
        assert met <= set(proxy.fired), f"not met: {met - set(proxy.fired)}"
        assert restarts(daemon) > 0


# In a smoke test one of each kind has to do.
def some(faults, smoke):
    return [each if each == smoke else pytest.param(each, marks=pytest.mark.long) for each in faults]


@pytest.mark.parametrize("fault", some(["410", "truncated", "cut"], "truncated"))
def test_a_watch_that_breaks_is_not_blind_after(proxied, fault):
    proxy = proxied.proxy
    with Load(proxied, run=0, silent=1, FAKE_EXIT="3") as load, proxied.daemon() as daemon:
        before = restarts(daemon)
        proxy.watches = {fault: 1.0}
        broken = lambda: proxy.fired[f"watch {fault}"] >= 4  # noqa: E731
        asked = load.ask(10, seconds=2)
        wait_for(broken, f"{fault} fired", 30)
        proxy.heal()
        asked |= load.ask(10)
        load.wait_until_ended(asked, within=60)
        found = load.judge(f"{dict(proxy.fired)}, restarts {restarts(daemon) - before:.0f}")
        assert found.counts["exceptions"] == 20
        # One that only ends is opened again where it was: nothing to tell of.
        if fault != "cut":
            assert restarts(daemon) > before


AT_ONCE = [fault for fault in faulty.CALLS if fault != "commit_and_hang"]


@pytest.mark.parametrize("fault", some(AT_ONCE, "commit_and_cut"))
def test_a_call_that_fails_every_other_time_makes_each_job_once(proxied, fault):
    with Load(proxied, run=0, silent=1) as load, proxied.daemon():
        proxied.proxy.calls = {fault: 0.5}
        asked = load.ask(10)
        load.wait_until_made(asked, within=60)
        load.wait_until_ended(asked, within=120)
        proxied.proxy.heal()
        assert load.judge(f"{dict(proxied.proxy.fired)}").counts["exceptions"] == 10
        assert proxied.proxy.fired[f"call {fault}"]


@pytest.mark.long
def test_calls_whose_answers_never_come_make_each_job_once(proxied):
    with Load(proxied, run=0, silent=1) as load, proxied.daemon():
        proxied.proxy.calls = {"commit_and_hang": 0.3}
        asked = load.ask(20)
        load.wait_until_ended(asked, within=200)
        proxied.proxy.heal()
        load.judge(f"{dict(proxied.proxy.fired)}")
        assert proxied.proxy.fired["call commit_and_hang"]


@pytest.mark.long
def test_a_watch_that_falls_silent_is_given_up_in_a_minute(proxied):
    with Load(proxied, run=0, silent=1) as load, proxied.daemon() as daemon:
        proxied.proxy.watches = {"half_open": 1.0}
        wait_for(lambda: proxied.proxy.fired["watch half_open"] >= 2, "both fired", 10)
        asked = load.ask(20)
        proxied.proxy.heal()
        start = time.monotonic()
        load.wait_until_ended(asked, within=60)
        load.judge(f"seen after {time.monotonic() - start:.1f} s, {restarts(daemon):.0f} restarts")
        assert restarts(daemon) > 0


@pytest.mark.long
def test_an_api_server_that_is_away_for_a_minute_costs_nothing_but_time(proxied):
    with Load(proxied, run=20) as load, proxied.daemon() as daemon:
        before = load.ask(50)
        load.wait_until_made(before)
        with proxied.proxy.down():
            during = load.ask(50, seconds=60)
            assert not during & load.evidence.made()
            assert daemon.get("/live") == 200
        healed = time.monotonic()
        after = load.ask(20)
        load.wait_until_made(during | after)
        made = time.monotonic() - healed
        load.wait_until_ended(before | during | after)
        load.judge(f"all made {made:.1f} s after it was back, {restarts(daemon):.0f} restarts")


# === Pub/Sub ===


@pytest.fixture
def cut_off(fake_network):
    """A network whose daemons reach Pub/Sub by a passage, which can be cut."""
    direct, passage = fake_network.emulator, Passage("127.0.0.1", fake_network.emulator)
    fake_network.emulator = passage.address
    fake_network.passage = passage
    yield fake_network
    fake_network.emulator = direct
    passage.close()


@pytest.mark.long
def test_exceptions_of_pods_that_fail_while_pubsub_is_away_are_said_once_when_it_is_back(cut_off):
    with Load(cut_off, run=8, silent=1, FAKE_EXIT="3") as load, cut_off.daemon():
        asked = load.ask(50)
        load.wait_until_made(asked, within=30)
        with cut_off.passage.cut():
            ended = lambda: all(job["ended"] for job in load.evidence.jobs.values())  # noqa: E731
            wait_for(ended, "all pods failed", 60)
            assert not load.evidence.ended(), "some were told before it was away"
            time.sleep(45)
        back = time.monotonic()
        load.wait_until_ended(asked, within=120)
        took = time.monotonic() - back
        found = load.judge(f"all were told {took:.1f} s after Pub/Sub was back")
        assert found.counts["exceptions"] == 50


# === Its end ===


@pytest.mark.long
def test_twenty_restarts_under_load_take_5_s_each_at_most_and_lose_nothing(fake_network):
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
            load.wait_until_made(set(load.recipients))
            load.wait_until_ended(set(load.recipients))
            times.sort()
            load.judge(
                f"exits in {times[0]:.2f} to {times[-1]:.2f} s, median {times[10]:.2f} s, "
                f"said 503 in {drained} of 20"
            )
        finally:
            stopped.set()
            daemon.stop()
    assert set(codes) == {0}
    assert times[-1] <= 5
    assert drained


def test_a_daemon_that_drains_is_not_ready_and_a_second_signal_ends_it_at_once(proxied):
    with Load(proxied, run=0) as load, proxied.daemon() as daemon:
        # What is in hand cannot be finished.
        proxied.proxy.calls = {"commit_and_hang": 1.0}
        load.ask(5)
        wait_for(lambda: proxied.proxy.fired["call commit_and_hang"] >= 5, "all are in hand", 30)
        daemon.process.send_signal(signal.SIGTERM)
        wait_for(lambda: daemon.get("/ready") == 503, "it says that it drains", 2)
        assert daemon.process.poll() is None
        start = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(5) == 130
        assert time.monotonic() - start < 1


@pytest.mark.long
def test_a_daemon_whose_calls_hang_ends_within_5_s_all_the_same(proxied):
    with Load(proxied, run=0) as load:
        daemon = proxied.daemon()
        proxied.proxy.calls = {"commit_and_hang": 1.0}
        asked = load.ask(20)
        wait_for(lambda: proxied.proxy.fired["call commit_and_hang"] >= 5, "some are in hand", 30)
        start = time.monotonic()
        code = daemon.stop()
        took = time.monotonic() - start
        proxied.proxy.heal()
        with proxied.daemon(name=daemon.name):
            load.wait_until_ended(asked)
            load.judge(f"ended in {took:.2f} s")
    assert (code, took <= 5) == (0, True), took
