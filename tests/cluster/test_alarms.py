"""Healthy questions get no exception, however slow they are; a silent failure is reported soon."""

import contextlib
import os
import random
import subprocess
import threading
import time

import pytest

import failures
import evidence as evidences
from cluster import wait_for
from failures import on_fake_nodes
from fake_children import FakeChildren
from tcp_proxy import TcpProxy

COUNT = 20
HEALTHY = "failing/is-healthy:local"


@pytest.fixture
def healthy_network(network):
    """The network, with a service whose pods run for 25 s on fake nodes and succeed."""
    network.settings["rules"] += [{"services": [HEALTHY], **on_fake_nodes(run="25s")}]
    return network


def ask_many(stack, network):
    return [stack.enter_context(network.parent(HEALTHY, input_values={})) for _ in range(COUNT)]


def expect_results(network, parents, within=120):
    """Waits until all questions have a result and are settled, without an exception."""
    for parent in parents:
        parent.result(within)
    for parent in parents:
        failures.wait_until_settled(network, parent, kind="result")


@pytest.mark.long
@pytest.mark.parametrize("answers", ["before-its-end", "after-its-end"])
def test_runs_that_end_while_the_daemon_is_paused_get_no_exception(healthy_network, answers):
    network = healthy_network
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(network.daemon())
        parents = ask_many(stack, network)
        wait_until_running(network, parents)
        daemon.pause()
        if answers == "before-its-end":
            answer(parents)
        wait_until_succeeded(network, parents)
        if answers == "after-its-end":
            answer(parents)
        daemon.resume()
        expect_results(network, parents)


@pytest.mark.long
def test_runs_that_end_while_pubsub_is_unreachable_get_no_exception(healthy_network):
    network = healthy_network
    with contextlib.ExitStack() as stack:
        proxy = TcpProxy("127.0.0.1", network.emulator)
        stack.callback(proxy.close)
        network.emulator = proxy.address
        stack.enter_context(network.daemon())
        parents = ask_many(stack, network)
        wait_until_running(network, parents)
        with proxy.cut():
            answer(parents)
            wait_until_succeeded(network, parents)
            # Longer than the interval at which a fence is published again.
            time.sleep(2)
            assert not [parent for parent in parents if parent.received("exception")]
        expect_results(network, parents)


@pytest.mark.long
def test_a_run_whose_image_is_pulled_slowly_gets_no_exception(network):
    network.cluster.store.add_unpulled("tests/is-slow:local", like="tests/echo:local")
    image = network.cluster.image("tests/is-slow:local")
    with network.daemon(), network.parent("tests/is-slow:local", input_values=5) as parent:
        with network.cluster.registry.holding(image):
            time.sleep(max(0, parent.asked + 40 - time.time()))
            assert not parent.received("result", "exception")
            assert any("fetches its image" in message for message in parent.logs())
        assert parent.result()["output_values"]["received"] == 5
        failures.wait_until_settled(network, parent, kind="result")


@pytest.mark.long
def test_a_run_whose_node_is_slow_gets_no_exception(network):
    network.settings["rules"] += [{"services": [HEALTHY], **on_fake_nodes(start="40s", run="2s")}]
    with contextlib.ExitStack() as stack:
        stack.enter_context(network.daemon())
        parents = ask_many(stack, network)
        for parent in parents:
            network.wait_for_run(parent.question_uuid, within=120)
        answer(parents)
        expect_results(network, parents)
    assert all(any("fake-" in message for message in parent.logs()) for parent in parents)


@pytest.mark.long
def test_a_thousand_healthy_questions_get_no_exception(fake_network):
    """Each result comes between 5 s before and 5 s after the end of its pod."""
    seed = int(os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    chance, network, run = random.Random(seed), fake_network, 10
    services = [f"failing/is-healthy-{group}:local" for group in range(10)]
    for service in services:
        behaviour = {"FAKE_START": f"{chance.randint(0, 20)}s", "FAKE_RUN": f"{run}s"}
        network.settings["rules"].append({"services": [service], "environment": behaviour})
    evidence, recipients = evidences.Evidence(network), {}
    children = FakeChildren(evidence, recipients, run, silent=0, seed=seed)
    with contextlib.closing(evidence), contextlib.closing(children), network.daemon():
        for number in range(1000):
            service = services[number % 10]
            recipients[evidence.ask(service, input_values={})] = service
        asked = set(recipients)
        ended = lambda: asked <= evidence.ended_questions()  # noqa: E731
        wait_for(ended, "all questions have ended", within=500, pause=1)
        wait_for(evidence.is_quiet, "all events are on record", within=300, pause=2)
        found = evidences.check(evidence, asked)
        print(f"seed {seed}: {children.count_late()} results after the end, {dict(found.counts)}")

    assert not found.violations, found.violations
    assert (found.counts["answers"], found.counts["exceptions"]) == (1000, 0)
    assert children.count_late()


@pytest.mark.long
def test_a_silent_failure_is_reported_within_two_seconds(network):
    """From the end of the pod at the API server to the exception at the parent."""
    service = "failing/dies:local"
    rule = {"services": [service], **on_fake_nodes(run="3s", exit="3")}
    network.settings["rules"].append(rule)
    with contextlib.ExitStack() as stack:
        stack.enter_context(network.daemon())
        pod_ends = stack.enter_context(PodEnds(network))
        parents = []
        for _ in range(50):
            parents.append(stack.enter_context(network.parent(service, input_values={})))
            time.sleep(0.2)
        for parent in parents:
            assert "exit code 3" in parent.exception()["exception_message"]
        ends = [pod_ends.wait_for(parent.question_uuid) for parent in parents]
        delays = [parent.when("exception") - end for parent, end in zip(parents, ends)]

    load = open("/proc/loadavg").read().split()[0]
    delays.sort()
    print(f"p50 {delays[25]:.2f} s, p99 {delays[-1]:.2f} s, of {len(delays)}, at a load of {load}")
    assert delays[-1] < 10
    assert float(load) > 4 or delays[-1] < 2


def answer(parents):
    for parent in parents:
        parent.answer_for_child(output_values=1)


def wait_until_running(network, parents):
    wait_for(lambda: phases(network) == ["Running"] * len(parents), "all pods run")


def wait_until_succeeded(network, parents):
    succeeded = lambda: phases(network) == ["Succeeded"] * len(parents)  # noqa: E731
    wait_for(succeeded, "all pods have succeeded", within=120, pause=0.5)


def phases(network):
    pods = network.cluster.kubectl.list("pods", "-n", network.namespace)
    return [pod["status"].get("phase") for pod in pods]


class PodEnds:
    """The times at which a watch reported the end of each pod, by question."""

    def __init__(self, network):
        columns = '.metadata.name}{" "}{.status.phase}{"\\n"}'
        self.at = {}
        self.watch = subprocess.Popen(
            ["kubectl", "get", "pods", "-n", network.namespace, "-w", "-o", "jsonpath={" + columns],
            env={
                "PATH": os.environ["PATH"],
                "KUBECONFIG": str(network.cluster.kubeconfig),
                "KUBECACHEDIR": str(network.cluster.kubectl.cache),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.watch.stdout:
            name, _, phase = line.strip().partition(" ")
            question_uuid = name.removeprefix("question-")[:36]
            if phase in ("Succeeded", "Failed"):
                self.at.setdefault(question_uuid, time.time())

    def wait_for(self, question_uuid):
        """The time at which the pod of a question ended."""
        return wait_for(lambda: self.at.get(question_uuid), f"the pod of {question_uuid} has ended")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watch.kill()
        self.watch.wait()
