"""Limits of our own on how many questions run at once, without Kueue."""

import contextlib
import time
import uuid

import pytest
from queueing import (
    finish,
    lives,
    never_more,
    processor_seconds,
    rule,
    wait_for_job,
    wait_for_note,
    waits,
    was_released,
)

ECHO, NUMBERS = "tests/echo:local", "tests/numbers:local"


def runs(network, services, how_long):
    rule(network, services, environment={"FAKE_RUN": how_long})


def released(network):
    return [job for job in network.jobs() if was_released(job)]


# === How many ===


def test_never_more_run_than_the_network_may_and_all_end(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 3}
    runs(network, "tests/*", "1s")

    with network.daemon(), network.daemon(), never_more(network, 3) as seen:
        asked = network.ask(ECHO, 24, input_values={})
        network.wait_for_ends(asked)
    assert max(count for count, _ in seen) == 3


def test_a_service_and_a_tree_have_limits_of_their_own(fake_network):
    network = fake_network
    network.settings["running"] = {"tree": 2}
    rule(network, "tests/echo", running=1)
    runs(network, "tests/*", "forever")
    root = str(uuid.uuid4())

    with network.daemon(), never_more(network, 6):
        echoes = network.ask(ECHO, 4, input_values={})
        tree = network.ask(NUMBERS, 4, input_values={}, originator_question_uuid=root)
        free = network.ask(NUMBERS, 3, input_values={})

        def turns(questions):
            return [lives(wait_for_job(network, question)) for question in questions]

        network.cluster.wait_for(lambda: turns(free) == [True] * 3, "no limit holds these")
        network.cluster.wait_for(lambda: sum(turns(tree)) == 2, "two of the tree run")
        network.cluster.wait_for(lambda: sum(turns(echoes)) == 1, "one of the service runs")


def test_what_waits_is_told_why_and_goes_in_order(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    runs(network, "tests/*", "2s")

    with network.daemon(), contextlib.ExitStack() as parents:
        asked = []
        for _ in range(5):
            parent = parents.enter_context(network.parent(ECHO, input_values={}))
            asked.append(parent)
            wait_for_job(network, parent)
        assert waits(network.job(asked[4].question_uuid))
        wait_for_note(asked[4], "the network's limit of 1 concurrent questions is reached")
        for parent in asked:
            parent.end()
        began = [network.job(parent.question_uuid)["status"]["startTime"] for parent in asked]
    # They are of a second.
    assert began == sorted(began) and len(set(began)) == 5, began


@pytest.mark.long
def test_a_tree_of_200_does_not_hold_back_a_tree_of_one(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 4}
    runs(network, "tests/*", "1s")

    with network.daemon():
        root = str(uuid.uuid4())
        many = network.ask(NUMBERS, 200, input_values={}, originator_question_uuid=root)
        network.cluster.wait_for(lambda: len(network.jobs()) >= 150, "most of them wait")
        before = len(network.ends(set(many)))
        with network.parent(ECHO, input_values={}) as one:
            one.end()
        # A place is free every quarter of a second, and it has the next one.
        assert len(network.ends(set(many))) - before < 30


# === Trees ===


def test_questions_that_ask_do_not_wait_for_their_own_place(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1, "tree": 1}
    runs(network, "tests/*", "forever")

    with network.daemon(), contextlib.ExitStack() as parents:
        root = parents.enter_context(network.parent(ECHO, input_values={}))
        network.wait_for_run(root.question_uuid)
        other = parents.enter_context(network.parent(ECHO, input_values={}))
        wait_for_job(network, other, waits)
        line = [root]
        for _ in range(3):
            below = network.parent(
                NUMBERS,
                input_values={},
                sender=line[-1].recipient,
                parent_question_uuid=line[-1].question_uuid,
                originator_question_uuid=root.question_uuid,
            )
            line.append(parents.enter_context(below))
            network.wait_for_run(below.question_uuid)
        # Its sister has to wait: the place is taken by one who is not her ancestor.
        sister = network.ask(
            NUMBERS,
            input_values={},
            sender=ECHO,
            parent_question_uuid=root.question_uuid,
            originator_question_uuid=root.question_uuid,
        )[0]
        wait_for_job(network, sister, waits)

        for parent in reversed(line[1:]):
            finish(network, parent)
            parent.end()
        network.wait_for_run(sister)
        assert waits(network.job(other.question_uuid))
        finish(network, sister)
        finish(network, root)
        network.wait_for_run(other.question_uuid)


# === The queue is in the cluster ===


def test_the_queue_survives_all_daemons(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 2}
    runs(network, "tests/*", "2s")

    with never_more(network, 2):
        daemons = [network.daemon(), network.daemon()]
        asked = network.ask(ECHO, 16, input_values={})
        network.cluster.wait_for(lambda: len(network.jobs()) == 16, "all are in the cluster")
        for daemon in daemons:
            daemon.kill()
        before = len(released(network))
        assert before < 16
        done = lambda: not any(lives(job) for job in network.jobs())  # noqa: E731
        network.cluster.wait_for(done, "what ran has ended")
        assert len(released(network)) == before
        with network.daemon():
            network.wait_for_ends(asked)


def test_limits_that_are_switched_off_let_all_go(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    runs(network, "tests/*", "forever")

    with network.daemon():
        network.ask(ECHO, 12, input_values={})
        network.cluster.wait_for(lambda: len(network.jobs()) == 12, "all are in the cluster")
        assert len(released(network)) == 1
    network.settings["running"] = {}
    with network.daemon():
        network.cluster.wait_for(lambda: len(released(network)) == 12, "all have their turn")


@pytest.mark.long
def test_2000_wait_for_50(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 50}
    runs(network, "tests/*", "forever")

    with network.daemon() as daemon:
        asked = network.ask(ECHO, 2000, input_values={})
        count = lambda: daemon.metrics().get('twined_questions{state="queued"}', 0)  # noqa: E731
        network.cluster.wait_for(lambda: count() >= 1950, "they wait", within=300)
        before, start = processor_seconds(daemon.pid), time.time()
        time.sleep(30)
        at_rest = (processor_seconds(daemon.pid) - before) / (time.time() - start)
        print(f"2,000 wait, nothing ends: {at_rest:.1%} of a processor")
        assert len(asked) == 2000
        assert at_rest < 0.5
