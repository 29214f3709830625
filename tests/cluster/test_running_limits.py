"""The network's own limits of concurrent questions, without Kueue."""

import contextlib
import time
import uuid

import pytest
from queueing import (
    add_rule,
    complete_pod,
    cpu_seconds,
    is_active,
    is_released,
    is_suspended,
    limit_holds,
    wait_for_job,
    wait_for_log,
)

ECHO, NUMBERS = "tests/echo:local", "tests/numbers:local"


def set_run_time(network, duration):
    """Sets how long the fake pods of all services run."""
    add_rule(network, "tests/*", environment={"FAKE_RUN": duration})


def released(network):
    return [job for job in network.jobs() if is_released(job)]


# === The number of questions ===


def test_the_networks_limit_is_never_exceeded_and_all_questions_end(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 3}
    set_run_time(network, "1s")

    with network.daemon(), network.daemon(), limit_holds(network, 3) as seen:
        asked = network.ask(ECHO, 24, input_values={})
        network.wait_for_ends(asked)
    assert max(count for count, _ in seen) == 3


def test_a_service_and_a_tree_can_have_their_own_limits(fake_network):
    network = fake_network
    network.settings["running"] = {"tree": 2}
    add_rule(network, "tests/echo", running=1)
    set_run_time(network, "forever")
    root = str(uuid.uuid4())

    with network.daemon(), limit_holds(network, 6):
        echoes = network.ask(ECHO, 4, input_values={})
        tree = network.ask(NUMBERS, 4, input_values={}, originator_question_uuid=root)
        free = network.ask(NUMBERS, 3, input_values={})

        def count_active(questions):
            return sum(is_active(wait_for_job(network, question)) for question in questions)

        network.cluster.wait_for(lambda: count_active(free) == 3, "those without a limit run")
        network.cluster.wait_for(lambda: count_active(tree) == 2, "two of the tree run")
        network.cluster.wait_for(lambda: count_active(echoes) == 1, "one of the service runs")


def test_queued_questions_start_in_order_and_their_parents_are_notified(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    set_run_time(network, "2s")

    with network.daemon(), contextlib.ExitStack() as parents:
        asked = []
        for _ in range(5):
            parent = parents.enter_context(network.parent(ECHO, input_values={}))
            asked.append(parent)
            wait_for_job(network, parent)
        assert is_suspended(network.job(asked[4].question_uuid))
        wait_for_log(asked[4], "the network's limit of 1 concurrent questions is reached")
        for parent in asked:
            parent.end()
        starts = [network.job(parent.question_uuid)["status"]["startTime"] for parent in asked]
    # In whole seconds.
    assert starts == sorted(starts) and len(set(starts)) == 5, starts


@pytest.mark.long
def test_a_tree_of_200_questions_does_not_delay_a_tree_of_one(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 4}
    set_run_time(network, "1s")

    with network.daemon():
        root = str(uuid.uuid4())
        many = network.ask(NUMBERS, 200, input_values={}, originator_question_uuid=root)
        network.cluster.wait_for(lambda: len(network.jobs()) >= 150, "most of them have a Job")
        before = len(network.ends(set(many)))
        with network.parent(ECHO, input_values={}) as one:
            one.end()
        # A run ends every quarter of a second, and then one of the smaller tree is released.
        assert len(network.ends(set(many))) - before < 30


# === Trees ===


def test_a_child_does_not_wait_for_its_own_ancestors(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1, "tree": 1}
    set_run_time(network, "forever")

    with network.daemon(), contextlib.ExitStack() as parents:
        root = parents.enter_context(network.parent(ECHO, input_values={}))
        network.wait_for_run(root.question_uuid)
        other = parents.enter_context(network.parent(ECHO, input_values={}))
        wait_for_job(network, other, is_suspended)
        ancestors = [root]
        for _ in range(3):
            below = network.parent(
                NUMBERS,
                input_values={},
                sender=ancestors[-1].recipient,
                parent_question_uuid=ancestors[-1].question_uuid,
                originator_question_uuid=root.question_uuid,
            )
            ancestors.append(parents.enter_context(below))
            network.wait_for_run(below.question_uuid)
        # A sibling waits, because a run that is not its ancestor counts.
        sibling = network.ask(
            NUMBERS,
            input_values={},
            sender=ECHO,
            parent_question_uuid=root.question_uuid,
            originator_question_uuid=root.question_uuid,
        )[0]
        wait_for_job(network, sibling, is_suspended)

        for parent in reversed(ancestors[1:]):
            complete_pod(network, parent)
            parent.end()
        network.wait_for_run(sibling)
        assert is_suspended(network.job(other.question_uuid))
        complete_pod(network, sibling)
        complete_pod(network, root)
        network.wait_for_run(other.question_uuid)


# === The queue outlives the daemons ===


def test_queued_questions_survive_the_end_of_all_daemons(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 2}
    set_run_time(network, "2s")

    with limit_holds(network, 2):
        daemons = [network.daemon(), network.daemon()]
        asked = network.ask(ECHO, 16, input_values={})
        network.cluster.wait_for(lambda: len(network.jobs()) == 16, "all questions have a Job")
        for daemon in daemons:
            daemon.kill()
        before = len(released(network))
        assert before < 16
        done = lambda: not any(is_active(job) for job in network.jobs())  # noqa: E731
        network.cluster.wait_for(done, "no question runs")
        assert len(released(network)) == before
        with network.daemon():
            network.wait_for_ends(asked)


def test_all_queued_questions_are_released_without_a_limit(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 1}
    set_run_time(network, "forever")

    with network.daemon():
        network.ask(ECHO, 12, input_values={})
        network.cluster.wait_for(lambda: len(network.jobs()) == 12, "all questions have a Job")
        assert len(released(network)) == 1
    network.settings["running"] = {}
    with network.daemon():
        network.cluster.wait_for(lambda: len(released(network)) == 12, "all are released")


@pytest.mark.long
def test_2000_queued_questions_use_little_cpu(fake_network):
    network = fake_network
    network.settings["running"] = {"network": 50}
    set_run_time(network, "forever")

    with network.daemon() as daemon:
        asked = network.ask(ECHO, 2000, input_values={})
        count = lambda: daemon.metrics().get('twined_questions{state="queued"}', 0)  # noqa: E731
        network.cluster.wait_for(lambda: count() >= 1950, "1,950 are queued", within=300)
        before, start = cpu_seconds(daemon.pid), time.time()
        time.sleep(30)
        at_rest = (cpu_seconds(daemon.pid) - before) / (time.time() - start)
        print(f"2,000 questions queued, none ends: {at_rest:.1%} of a CPU")
        assert len(asked) == 2000
        assert at_rest < 0.5
