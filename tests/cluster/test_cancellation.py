"""Cancellations: at any stage of a question, from any sender, received by any replica."""

import contextlib
import time

import pytest

from cluster import wait_for
from network import PARENT_SRUID, processes

OTHER_SRUID = "somebody/else:1.0.0"
PARENT_SERVICE = "tests/parent:local"
ROOT = "0e6ad1ad-0c5b-4f4d-8bd2-0f3f2d4c9a10"


@pytest.fixture
def endless_network(fake_network):
    """A network whose fake pods run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


def expect_exception(parent, within=60):
    """Waits for the exception of a cancelled question."""
    exception = parent.exception(within)
    assert exception["exception_type"] == "InterruptedError", exception
    assert "cancelled" in exception["exception_message"], exception
    return exception


def expect_one_exception(parent):
    assert [event["kind"] for event in parent.ends()] == ["exception"], parent.received()


def expect_cancelled(network, parent, within=60):
    """Waits until the parent has one exception, and the question has no Job, pod or process."""
    expect_exception(parent, within)
    network.wait_until_gone(parent.question_uuid)
    expect_one_exception(parent)


# === At any stage ===


@pytest.mark.parametrize("service", ["failing/sleeps:local", "failing/ignores-sigterm:local"])
def test_a_cancelled_run_has_no_process_when_its_parent_is_notified(network, service):
    with network.daemon(), network.parent(service) as parent:
        uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
        wait_for(lambda: processes(uid), "the pod has processes")

        parent.cancel()
        cancelled = time.time()
        expect_exception(parent)

        assert not processes(uid), "the parent is notified only after the last process has ended"
        assert parent.when("exception") - cancelled < 20
        expect_cancelled(network, parent)


def test_the_parent_is_notified_only_after_the_last_pod_is_gone(endless_network):
    endless_network.settings["defaults"]["environment"] |= {"FAKE_STOP": "6s"}
    with endless_network.daemon(), endless_network.parent("tests/echo:local") as parent:
        endless_network.wait_for_run(parent.question_uuid)

        parent.cancel()
        endless_network.wait_for_pod(
            parent.question_uuid, lambda pod: "deletionTimestamp" in pod["metadata"]
        )
        ending = time.time()
        expect_exception(parent)

        assert not endless_network.pods(parent.question_uuid)
        assert parent.when("exception") - ending > 5
        expect_cancelled(endless_network, parent)


def test_a_cancellation_that_precedes_its_question_takes_effect(endless_network):
    with (
        endless_network.daemon(),
        endless_network.parent("tests/echo:local", publish=False) as parent,
    ):
        parent.cancel()
        endless_network.wait_for_row(parent.question_uuid, "cancellation")

        parent.publish()

        expect_cancelled(endless_network, parent)


@pytest.mark.parametrize("first", ["question", "cancellation"])
def test_a_cancellation_during_the_launch_takes_effect(endless_network, first):
    with endless_network.daemon(), endless_network.daemon():
        parents = [endless_network.parent("tests/echo:local", publish=False) for _ in range(10)]
        for parent in parents:
            calls = [parent.publish, parent.cancel]
            for call in calls if first == "question" else reversed(calls):
                call()

        for parent in parents:
            expect_cancelled(endless_network, parent)
            parent.close()
        assert not endless_network.jobs()


@contextlib.contextmanager
def one_running(endless_network):
    """Asks three questions of which one can run, and cancels the second, then the first.

    Yields the second, and the third, which runs now.
    """
    ask = lambda: endless_network.parent("tests/echo:local")  # noqa: E731
    with endless_network.daemon(), ask() as first:
        endless_network.wait_for_run(first.question_uuid)
        with ask() as second, ask() as third:
            for parent in (second, third):
                wait_for(lambda: endless_network.job(parent.question_uuid), "it has a Job")  # noqa: B023
            second.cancel()
            expect_cancelled(endless_network, second)
            assert not endless_network.pods(third.question_uuid), "the limit is still reached"

            first.cancel()
            endless_network.wait_for_run(third.question_uuid)

            expect_cancelled(endless_network, first)
            yield second, third


def test_cancelled_questions_leave_kueue_and_release_their_quota(endless_network, queue):
    endless_network.settings["defaults"]["queue"] = queue(
        endless_network.namespace, on_fake_nodes=True, cpu="1"
    )
    endless_network.settings["defaults"]["cpus"] = {"default": "1"}
    with one_running(endless_network) as (second, third):
        workloads = endless_network.cluster.kubectl.list(
            "workloads", "-n", endless_network.namespace
        )
        owners = [workload["metadata"]["ownerReferences"][0]["name"] for workload in workloads]
        assert owners == [f"question-{third.question_uuid}"]
        assert not second.received("result") and not third.received("result")


def test_cancelled_questions_do_not_count_towards_our_own_limits(endless_network):
    endless_network.settings["running"] = {"network": 1}
    with one_running(endless_network):
        pass


def test_a_question_that_is_cancelled_during_a_pull_never_runs(network):
    """A kubelet does not abort a pull: the pod is gone only after the pull has ended."""
    cluster = network.cluster
    image = cluster.store.add_unpulled("tests/slow-to-pull:local", like="failing/sleeps:local")
    pulling = lambda: cluster.registry.pulls.get(image)  # noqa: E731
    with network.daemon(), network.parent("tests/slow-to-pull:local") as parent:
        with cluster.registry.holding(image):
            wait_for(pulling, "the image is being pulled")

            parent.cancel()

            is_ending = lambda pod: "deletionTimestamp" in pod["metadata"]  # noqa: E731
            pod = network.wait_for_pod(parent.question_uuid, is_ending)
            assert not processes(pod["metadata"]["uid"])
            assert not parent.received("exception")
        expect_cancelled(network, parent)


def test_a_cancellation_after_the_result_ends_the_run_without_an_exception(endless_network):
    with endless_network.daemon(), endless_network.parent("tests/echo:local") as parent:
        endless_network.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=1)
        endless_network.wait_for_row(parent.question_uuid, "result")

        parent.cancel()

        endless_network.wait_until_gone(parent.question_uuid)
        assert [event["kind"] for event in parent.ends()] == ["result"]


def test_a_cancellation_after_the_end_of_the_run_changes_nothing(network):
    with network.daemon() as daemon, network.parent("tests/echo:local") as parent:
        parent.result()
        settled = "twined.octue.com/settled"
        job = lambda: network.job(parent.question_uuid)  # noqa: E731
        wait_for(lambda: settled in job()["metadata"]["labels"], "the Job is settled")

        parent.cancel()

        handled = 'twined_events_received_total{kind="cancellation"}'
        wait_for(lambda: daemon.metrics().get(handled) == 1, "the cancellation is handled")
        assert [event["kind"] for event in parent.ends()] == ["result"]
        assert job(), "a settled Job stays for inspection"


def test_repeated_cancellations_give_one_exception(endless_network):
    with endless_network.daemon() as daemon, endless_network.parent("tests/echo:local") as parent:
        endless_network.wait_for_run(parent.question_uuid)

        parent.cancel()
        parent.cancel()
        expect_cancelled(endless_network, parent)
        parent.cancel()

        cancellations = lambda: endless_network.rows(parent.question_uuid, "cancellation")  # noqa: E731
        wait_for(lambda: len(cancellations()) == 3, "all cancellations are on record")
        # A redelivery of the question.
        parent.publish()
        asked = 'twined_events_received_total{kind="question"}'
        wait_for(lambda: daemon.metrics()[asked] == 2, "the question was delivered again")
        expect_one_exception(parent)
        assert not endless_network.jobs(parent.question_uuid)


# === From any sender ===


@pytest.mark.parametrize("claimed", [{}, {"parent": OTHER_SRUID, "originator": OTHER_SRUID}])
def test_a_cancellation_by_another_sender_is_ignored(endless_network, claimed):
    with endless_network.daemon() as daemon, endless_network.parent("tests/echo:local") as parent:
        endless_network.wait_for_run(parent.question_uuid)

        parent.cancel(sender=OTHER_SRUID, **claimed)

        ignored = "cancellation ignored"
        wait_for(lambda: ignored in daemon.log.read_text(), "the cancellation is ignored")
        job = endless_network.job(parent.question_uuid)
        assert "twined.octue.com/stopped" not in job["metadata"]["annotations"]
        assert parent.ends() == []
        # The parent itself can cancel.
        parent.cancel()
        expect_cancelled(endless_network, parent)


def test_the_originator_of_a_tree_can_cancel_a_question_in_it(endless_network):
    of_a_child = {
        "sender": PARENT_SERVICE,
        "parent_question_uuid": ROOT,
        "originator_question_uuid": ROOT,
        "attributes": {"parent": PARENT_SERVICE, "originator": PARENT_SRUID},
    }
    with (
        endless_network.daemon(),
        endless_network.parent("tests/echo:local", **of_a_child) as parent,
    ):
        endless_network.wait_for_run(parent.question_uuid)

        parent.cancel(sender=PARENT_SRUID, originator=PARENT_SRUID)

        expect_cancelled(endless_network, parent)


# === On any replica ===


def test_a_replica_ends_runs_that_another_launched(endless_network):
    with endless_network.daemon() as first:
        parents = [endless_network.parent("tests/echo:local") for _ in range(8)]
        for parent in parents:
            endless_network.wait_for_run(parent.question_uuid)
        with endless_network.daemon() as second:
            for parent in parents:
                parent.cancel()

            for parent in parents:
                expect_cancelled(endless_network, parent)
                parent.close()
            received = 'twined_events_received_total{kind="cancellation"}'
            launched = 'twined_runner_requests_total{verb="create",code="ok"}'
            assert second.metrics()[received] > 0
            assert second.metrics().get(launched, 0) == 0
            assert first.metrics()[received] + second.metrics()[received] >= len(parents)


def test_a_cancellation_without_a_replica_takes_effect_when_one_starts(endless_network):
    with endless_network.daemon() as daemon:
        parent = endless_network.parent("tests/echo:local")
        endless_network.wait_for_run(parent.question_uuid)
        daemon.kill()
    parent.cancel()

    with endless_network.daemon():
        expect_cancelled(endless_network, parent)
    parent.close()
