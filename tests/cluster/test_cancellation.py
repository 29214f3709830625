"""Questions that are no longer wanted: whenever, by whomever, and whichever replica hears of it."""

import contextlib
import time

import pytest

from cluster import wait_for
from network import ASKER, processes

STRANGER = "somebody/else:1.0.0"
PARENT = "tests/parent:local"
ROOT = "0e6ad1ad-0c5b-4f4d-8bd2-0f3f2d4c9a10"
# A fake pod that runs for as long as it may.
FOREVER = {"FAKE_RUN": "forever"}


@pytest.fixture
def fake(fake_network):
    """A network of fake pods that run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= FOREVER
    return fake_network


def is_told(parent, within=60):
    """The asker hears once that it was cancelled."""
    exception = parent.exception(within)
    assert exception["exception_type"] == "InterruptedError", exception
    assert "cancelled" in exception["exception_message"], exception
    return exception


def is_told_once(parent):
    assert [event["kind"] for event in parent.ends()] == ["exception"], parent.received()


def is_cancelled(network, parent, within=60):
    """Told once, and nothing is left."""
    is_told(parent, within)
    network.wait_until_gone(parent.question_uuid)
    is_told_once(parent)


# === When ===


@pytest.mark.parametrize("service", ["deaths/sleeps:local", "deaths/is-deaf:local"])
def test_what_runs_really_ends_and_then_the_asker_is_told(network, service):
    with network.daemon(), network.parent(service) as parent:
        uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
        wait_for(lambda: processes(uid), "its processes run")

        parent.cancel()
        cancelled = time.time()
        is_told(parent)

        assert not processes(uid), "it is told when the last process is gone, and not before"
        assert parent.when("exception") - cancelled < 20
        is_cancelled(network, parent)


def test_the_asker_is_told_when_the_last_pod_is_gone_and_not_before(fake):
    fake.settings["defaults"]["environment"] |= {"FAKE_STOP": "6s"}
    with fake.daemon(), fake.parent("tests/echo:local") as parent:
        fake.wait_for_run(parent.question_uuid)

        parent.cancel()
        fake.wait_for_pod(parent.question_uuid, lambda pod: "deletionTimestamp" in pod["metadata"])
        ending = time.time()
        is_told(parent)

        assert not fake.pods(parent.question_uuid)
        assert parent.when("exception") - ending > 5
        is_cancelled(fake, parent)


def test_a_cancellation_before_its_question_holds(fake):
    with fake.daemon(), fake.parent("tests/echo:local", publish=False) as parent:
        parent.cancel()
        fake.wait_for_row(parent.question_uuid, "cancellation")

        parent.publish()

        is_cancelled(fake, parent)


@pytest.mark.parametrize("first", ["question", "cancellation"])
def test_a_cancellation_that_meets_the_launch_holds(fake, first):
    with fake.daemon(), fake.daemon():
        parents = [fake.parent("tests/echo:local", publish=False) for _ in range(10)]
        for parent in parents:
            acts = [parent.publish, parent.cancel]
            for act in acts if first == "question" else reversed(acts):
                act()

        for parent in parents:
            is_cancelled(fake, parent)
            parent.close()
        assert not fake.jobs()


@contextlib.contextmanager
def one_place(fake):
    """Of three questions one runs and two wait. The first that waits is cancelled, then the one that
    runs: gives the one that waited, and the one that has the place now."""
    ask = lambda: fake.parent("tests/echo:local")  # noqa: E731
    with fake.daemon(), ask() as runs:
        fake.wait_for_run(runs.question_uuid)
        with ask() as waits, ask() as follows:
            for parent in (waits, follows):
                wait_for(lambda: fake.job(parent.question_uuid), "it waits")  # noqa: B023
            waits.cancel()
            is_cancelled(fake, waits)
            assert not fake.pods(follows.question_uuid), "there is no room yet"

            runs.cancel()
            fake.wait_for_run(follows.question_uuid)

            is_cancelled(fake, runs)
            yield waits, follows


def test_what_waits_in_kueue_goes_and_what_ran_gives_its_quota_to_the_next(fake, queue):
    fake.settings["defaults"]["queue"] = queue(fake.namespace, on_fake_nodes=True, cpu="1")
    fake.settings["defaults"]["cpus"] = {"default": "1"}
    with one_place(fake) as (waits, follows):
        workloads = fake.cluster.kubectl.list("workloads", "-n", fake.namespace)
        owners = [workload["metadata"]["ownerReferences"][0]["name"] for workload in workloads]
        assert owners == [f"question-{follows.question_uuid}"]
        assert not waits.received("result") and follows.received("result") == []


def test_what_waits_for_our_own_limits_goes_and_what_ran_lets_the_next_start(fake):
    fake.settings["running"] = {"network": 1}
    with one_place(fake):
        pass


def test_what_waits_for_its_image_never_runs_and_goes_with_the_pull(network):
    """A kubelet does not break off a pull: the pod goes when that has come to an end."""
    cluster = network.cluster
    image = cluster.store.add_unpulled("tests/slow-to-come:local", of="deaths/sleeps:local")
    pulling = lambda: cluster.registry.pulls.get(image)  # noqa: E731
    with network.daemon(), network.parent("tests/slow-to-come:local") as parent:
        with cluster.registry.holding(image):
            wait_for(pulling, "its image is being pulled")

            parent.cancel()

            is_ending = lambda pod: "deletionTimestamp" in pod["metadata"]  # noqa: E731
            pod = network.wait_for_pod(parent.question_uuid, is_ending)
            assert not processes(pod["metadata"]["uid"])
            assert not parent.received("exception")
        is_cancelled(network, parent)


def test_an_answer_stays_the_answer(fake):
    with fake.daemon(), fake.parent("tests/echo:local") as parent:
        fake.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=1)
        fake.wait_for_row(parent.question_uuid, "result")

        parent.cancel()

        fake.wait_until_gone(parent.question_uuid)
        assert [event["kind"] for event in parent.ends()] == ["result"]


def test_what_is_over_stays_as_it_was(network):
    with network.daemon() as daemon, network.parent("tests/echo:local") as parent:
        parent.result()
        settled = "twined.octue.com/settled"
        job = lambda: network.job(parent.question_uuid)  # noqa: E731
        wait_for(lambda: settled in job()["metadata"]["labels"], "its Job is settled")

        parent.cancel()

        handled = 'twined_events_received_total{kind="cancellation"}'
        wait_for(lambda: daemon.metrics().get(handled) == 1, "the cancellation is handled")
        assert [event["kind"] for event in parent.ends()] == ["result"]
        assert job(), "it can be looked at for a day"


def test_twice_is_once(fake):
    with fake.daemon() as daemon, fake.parent("tests/echo:local") as parent:
        fake.wait_for_run(parent.question_uuid)

        parent.cancel()
        parent.cancel()
        is_cancelled(fake, parent)
        parent.cancel()

        cancellations = lambda: fake.rows(parent.question_uuid, "cancellation")  # noqa: E731
        wait_for(lambda: len(cancellations()) == 3, "all are on record")
        # The question too comes again.
        parent.publish()
        asked = 'twined_events_received_total{kind="question"}'
        wait_for(lambda: daemon.metrics()[asked] == 2, "it was delivered again")
        is_told_once(parent)
        assert not fake.jobs(parent.question_uuid)


# === By whom ===


@pytest.mark.parametrize("claimed", [{}, {"parent": STRANGER, "originator": STRANGER}])
def test_a_stranger_cancels_nothing(fake, claimed):
    with fake.daemon() as daemon, fake.parent("tests/echo:local") as parent:
        fake.wait_for_run(parent.question_uuid)

        parent.cancel(sender=STRANGER, **claimed)

        ignored = "cancellation ignored"
        wait_for(lambda: ignored in daemon.log.read_text(), "the stranger is ignored")
        job = fake.job(parent.question_uuid)
        assert "twined.octue.com/stopped" not in job["metadata"]["annotations"]
        assert parent.ends() == []
        # Who asked can.
        parent.cancel()
        is_cancelled(fake, parent)


def test_whoever_asked_the_root_of_a_tree_cancels_a_question_in_it(fake):
    of_a_child = {
        "sender": PARENT,
        "parent_question_uuid": ROOT,
        "originator_question_uuid": ROOT,
        "attributes": {"parent": PARENT, "originator": ASKER},
    }
    with fake.daemon(), fake.parent("tests/echo:local", **of_a_child) as parent:
        fake.wait_for_run(parent.question_uuid)

        parent.cancel(sender=ASKER, originator=ASKER)

        is_cancelled(fake, parent)


# === Where ===


def test_a_replica_ends_what_another_launched(fake):
    with fake.daemon() as first:
        parents = [fake.parent("tests/echo:local") for _ in range(8)]
        for parent in parents:
            fake.wait_for_run(parent.question_uuid)
        with fake.daemon() as second:
            for parent in parents:
                parent.cancel()

            for parent in parents:
                is_cancelled(fake, parent)
                parent.close()
            heard = 'twined_events_received_total{kind="cancellation"}'
            launched = 'twined_runner_requests_total{verb="create",code="ok"}'
            assert second.metrics()[heard] > 0, "it is to have heard of some"
            assert second.metrics().get(launched, 0) == 0, "and launched none"
            assert first.metrics()[heard] + second.metrics()[heard] >= len(parents)


def test_a_cancellation_waits_for_a_replica(fake):
    with fake.daemon() as daemon:
        parent = fake.parent("tests/echo:local")
        fake.wait_for_run(parent.question_uuid)
        daemon.kill()
    parent.cancel()

    with fake.daemon():
        is_cancelled(fake, parent)
    parent.close()
