"""Nothing is told of questions that are well: however slow they are, and however far behind we are."""

import contextlib
import os
import random
import subprocess
import threading
import time

import pytest

import deaths
import evidence as evidences
import passage
from cluster import wait_for
from deaths import on_fake_nodes
from standin import StandIn

MANY = 20
GOOD = "deaths/is-good:local"
SLEEPS = "deaths/sleeps:local"


@pytest.fixture
def good(network):
    """The network, with questions that end well on fake nodes, all of which run for a while."""
    network.settings["rules"] += [{"services": [GOOD], **on_fake_nodes(run="25s")}]
    return network


def ask_many(stack, network, sruid=GOOD, many=MANY):
    return [stack.enter_context(network.parent(sruid, input_values={})) for _ in range(many)]


def answered(network, parents, within=120):
    """Waits until all are answered and done with, each once, and none with an exception."""
    for parent in parents:
        parent.result(within)
    for parent in parents:
        deaths.settled(network, parent, kind="result")


@pytest.mark.long
@pytest.mark.parametrize("answers", ["before-its-end", "after-its-end"])
def test_no_alarm_while_the_daemon_stood_still(good, answers):
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(good.daemon())
        parents = ask_many(stack, good)
        all_run(good, parents)
        daemon.pause()
        if answers == "before-its-end":
            answer(parents)
        all_ended(good, parents)
        if answers == "after-its-end":
            answer(parents)
        daemon.resume()
        answered(good, parents)


@pytest.mark.long
def test_no_alarm_while_pubsub_was_out_of_reach(good):
    emulator = good.emulator
    with contextlib.ExitStack() as stack:
        passed = passage.Passage("127.0.0.1", emulator)
        stack.callback(passed.close)
        good.emulator = passed.address
        stack.enter_context(good.daemon())
        parents = ask_many(stack, good)
        all_run(good, parents)
        with passed.cut():
            answer(parents)
            all_ended(good, parents)
            # For longer than one who waits for his fence sends it again.
            time.sleep(2)
            assert not [parent for parent in parents if parent.received("exception")]
        answered(good, parents)


@pytest.mark.long
def test_no_alarm_while_an_image_is_slow_to_come(network):
    network.cluster.store.add_unpulled("tests/is-slow:local", of="tests/echo:local")
    image = network.cluster.image("tests/is-slow:local")
    with network.daemon(), network.parent("tests/is-slow:local", input_values=5) as parent:
        with network.cluster.registry.holding(image):
            time.sleep(max(0, parent.asked + 40 - time.time()))
            assert not parent.received("result", "exception")
            assert any("fetches its image" in said for said in parent.logs())
        assert parent.result()["output_values"]["received"] == 5
        deaths.settled(network, parent, kind="result")


@pytest.mark.long
def test_no_alarm_while_a_node_is_slow(network):
    network.settings["rules"] += [{"services": [GOOD], **on_fake_nodes(start="40s", run="2s")}]
    with contextlib.ExitStack() as stack:
        stack.enter_context(network.daemon())
        parents = ask_many(stack, network)
        for parent in parents:
            network.wait_for_run(parent.question_uuid, within=120)
        answer(parents)
        answered(network, parents)
    assert all(any("fake-" in said for said in parent.logs()) for parent in parents)


@pytest.mark.long
def test_a_thousand_good_questions_raise_no_alarm(fake_network):
    """A stand-in answers each from 5 s before to 5 s after its pod's end: fake nodes run nothing."""
    seed = int(os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    chance, network, run = random.Random(seed), fake_network, 10
    services = [f"deaths/is-good-{group}:local" for group in range(10)]
    for service in services:
        what = {"FAKE_START": f"{chance.randint(0, 20)}s", "FAKE_RUN": f"{run}s"}
        network.settings["rules"].append({"services": [service], "environment": what})
    evidence, recipients = evidences.Evidence(network), {}
    stand_in = StandIn(evidence, recipients, run, silent=0, seed=seed)
    with contextlib.closing(evidence), contextlib.closing(stand_in), network.daemon():
        for number in range(1000):
            service = services[number % 10]
            recipients[evidence.ask(service, input_values={})] = service
        asked = set(recipients)
        wait_for(lambda: asked <= evidence.ended(), "all are answered", within=500, pause=1)
        wait_for(evidence.is_quiet, "all is quiet", within=300, pause=2)
        found = evidences.check(evidence, asked)
        print(f"seed {seed}: {stand_in.late()} answers after the end, {dict(found.counts)}")

    assert not found.wrong, found.wrong
    assert (found.counts["answers"], found.counts["exceptions"]) == (1000, 0)
    assert stand_in.late()


@pytest.mark.long
def test_a_death_is_told_within_two_seconds(network):
    """From when the cluster says it to when the one who asked has it."""
    rule = {"services": ["deaths/dies:local"], **on_fake_nodes(run="3s", exit="3")}
    network.settings["rules"].append(rule)
    with contextlib.ExitStack() as stack:
        stack.enter_context(network.daemon())
        ends = stack.enter_context(Ends(network))
        parents = []
        for _ in range(50):
            parents.append(stack.enter_context(network.parent("deaths/dies:local", input_values={})))
            time.sleep(0.2)
        for parent in parents:
            assert "exit code 3" in parent.exception()["exception_message"]
        took = sorted(parent.when("exception") - ends.of(parent.question_uuid) for parent in parents)

    load = open("/proc/loadavg").read().split()[0]
    print(f"p50 {took[25]:.2f} s, p99 {took[-1]:.2f} s, of {len(took)}, at a load of {load}")
    assert took[-1] < 10
    assert float(load) > 4 or took[-1] < 2


def answer(parents):
    for parent in parents:
        parent.answer_for_child(output_values=1)


def all_run(network, parents):
    wait_for(lambda: phases(network) == ["Running"] * len(parents), "all pods run")


def all_ended(network, parents):
    ended = lambda: phases(network) == ["Succeeded"] * len(parents)  # noqa: E731
    wait_for(ended, "all pods have ended", within=120, pause=0.5)


def phases(network):
    pods = network.cluster.kubectl.list("pods", "-n", network.namespace)
    return [pod["status"].get("phase") for pod in pods]


class Ends:
    """When the cluster said of each pod that it has ended: as a watch says it."""

    def __init__(self, network):
        columns = ".metadata.name}{\" \"}{.status.phase}{\"\\n\"}"
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

    def of(self, question_uuid):
        return wait_for(lambda: self.at.get(question_uuid), f"{question_uuid} was seen to end")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watch.kill()
        self.watch.wait()
