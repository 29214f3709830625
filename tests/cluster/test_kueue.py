"""Questions in queues of Kueue: what their parents are notified of, and that all are answered."""

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import cluster as clusters
import fake
import jobs
import kueue
import pytest
from network import Network
from queueing import (
    add_rule,
    is_suspended,
    live_pods,
    pods_of_jobs,
    wait_for_job,
    wait_for_log,
)

LARGE = 300_000
# How long the SDK must wait, in seconds. It gives up after 360 s without a heartbeat.
SDK_WAIT = float(os.environ.get("TWINED_TEST_SDK_WAIT", "390"))


def workloads(network):
    return network.cluster.kubectl.list("workloads.kueue.x-k8s.io", "-n", network.namespace)


def states(workload):
    found = workload.get("status", {}).get("conditions", [])
    return {condition["type"] for condition in found if condition["status"] == "True"}


def admitted(network):
    """The Workloads that hold quota."""
    held = lambda found: "QuotaReserved" in found and "Finished" not in found  # noqa: E731
    return [workload for workload in workloads(network) if held(states(workload))]


def change_queue(network, name="questions", **spec):
    """Changes the cluster queue of a local queue."""
    cluster_queue = f"{network.namespace}-{name}"
    patch = json.dumps({"spec": spec})
    network.cluster.kubectl("patch", "clusterqueue", cluster_queue, "--type=merge", "-p", patch)


@pytest.fixture
def priority(own_cluster, namespace):
    """The name of a new WorkloadPriorityClass, above all others."""
    name = f"{namespace}-high"
    metadata = {"name": name}
    api = "kueue.x-k8s.io/v1beta1"
    own_cluster.kubectl.create(
        {"apiVersion": api, "kind": "WorkloadPriorityClass", "metadata": metadata, "value": 1000}
    )
    yield name
    own_cluster.kubectl("delete", "workloadpriorityclass", name)


# === Labels ===


def test_a_job_waits_in_the_queue_of_its_service_with_its_priority(fake_network, queue, priority):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="0")
    queue(network.namespace, "special", on_fake_nodes=True, cpu="0")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/numbers", queue="special", queue_priority=priority)

    with network.daemon():
        plain, special = (
            network.parent(f"tests/{name}:local", input_values={}) for name in ("echo", "numbers")
        )
        with plain, special:
            job = wait_for_job(network, plain)
            assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "questions"
            assert job["spec"]["suspend"]

            job = wait_for_job(network, special)
            assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "special"
            assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == priority
            assert job["spec"]["suspend"]
            uid = job["metadata"]["uid"]

            def its_workload():
                for found in workloads(network):
                    if found["metadata"]["ownerReferences"][0]["uid"] == uid:
                        return found

            workload = network.cluster.wait_for(its_workload, "the Job has a workload")
            assert workload["spec"]["priority"] == 1000


# === Waiting ===


def test_questions_beyond_the_quota_wait_and_all_are_answered(network, queue):
    queue(network.namespace, cpu="200m")
    network.flags = ["--queue", "questions"]
    most = 0

    with network.daemon(), contextlib.ExitStack() as parents:
        ask = lambda n: network.parent("tests/echo:local", input_values={"n": n})  # noqa: E731
        asked = [parents.enter_context(ask(n)) for n in range(7)]

        while not all(parent.received("result", "exception") for parent in asked):
            running = [pod for pod in pods_of_jobs(network) if pod["status"]["phase"] == "Running"]
            most = max(most, len(running))
            assert time.time() < asked[0].asked + 180, [parent.logs() for parent in asked]

        for n, parent in enumerate(asked):
            assert parent.result()["output_values"]["received"] == {"n": n}

    assert 1 <= most <= 2
    # Parents are notified how many questions are before theirs.
    messages = [text for parent in asked for text in parent.logs() if "queue `questions`" in text]
    assert any("behind" in text and "other" in text for text in messages), messages


def test_parents_are_notified_of_their_position_in_the_queue(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})

    with network.daemon(), contextlib.ExitStack() as parents:
        asked = ask_in_order(network, parents, 4)
        wait_for_log(asked[1], "It is the first in queue `questions`", within=45)
        wait_for_log(asked[2], "behind 1 other", within=45)
        wait_for_log(asked[3], "behind 2 others", within=45)


def ask_in_order(network, parents, count):
    """Asks the echo service `count` questions, which Kueue receives one after the other."""
    asked = []
    for number in range(count):
        parent = parents.enter_context(network.parent("tests/echo:local", input_values={}))
        asked.append(parent)
        wait_for_job(network, parent)
        network.cluster.wait_for(lambda: len(workloads(network)) > number, "it has a workload")
        # Kueue orders Workloads by their creation, in whole seconds.
        time.sleep(1.1)
    return asked


@pytest.mark.long
def test_hundreds_of_queued_questions_all_end_and_hold_no_quota(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "1s"})

    with network.daemon():
        asked = network.ask("tests/echo:local", 200, input_values={})
        most = 0
        while len(network.ends()) < len(asked):
            most = max(most, len(admitted(network)))
            time.sleep(0.3)
        ends = network.wait_for_ends(asked)
        assert most <= 20
        # A fake node runs no child, so each has ended without a result.
        assert {row["kind"] for row in ends.values()} == {"exception"}
        network.cluster.wait_for(lambda: not admitted(network), "no quota is held", within=30)
        assert not live_pods(network)


def test_a_question_that_has_ended_leaves_nothing_behind(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="200m")
    network.flags = ["--queue", "questions"]

    with (
        network.daemon(),
        network.parent("tests/echo:local", input_values={"much": "x" * LARGE}) as parent,
    ):
        # A fake node runs no child.
        parent.exception()
        wait_for_job(network, parent, jobs.condition)
        network.cluster.wait_for(lambda: not admitted(network), "no quota is held", within=30)
        assert not live_pods(network)
        secrets = lambda: [  # noqa: E731
            secret
            for secret in network.cluster.kubectl.list("secrets", "-n", network.namespace)
            if parent.question_uuid in secret["metadata"]["name"]
        ]
        assert secrets(), "a large question has Secrets"
        # As its time to live would do after a day.
        name = f"question-{parent.question_uuid}"
        network.cluster.kubectl("delete", "job", name, "-n", network.namespace)
        network.cluster.wait_for(lambda: not secrets(), "the Secrets are gone", within=60)
        network.cluster.wait_for(lambda: not workloads(network), "the Workload is gone", within=60)


# === Further attempts ===


@pytest.mark.parametrize(
    ("reason", "behaviour"),
    [
        ("failed", {"FAKE_EXIT": "3"}),
        ("memory", {"FAKE_EXIT": "137", "FAKE_REASON": "OOMKilled"}),
    ],
    ids=["failed", "memory"],
)
def test_a_question_in_a_queue_runs_again_by_its_retry_rule(fake_network, queue, reason, behaviour):
    """Kueue starts no Job whose pod template has what it wrote into that of another."""
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="200m")
    network.flags = ["--queue", "questions"]
    retry = {reason: {"times": 1, "backoff": "1s"}}
    add_rule(network, "tests/echo", environment=behaviour, retry=retry)

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        parent.exception(within=120)
        assert any("attempt 2 of 2" in message for message in parent.logs()), parent.logs()
        second = f"question-{parent.question_uuid}-a1"
        job = network.cluster.kubectl.get("job", second, "-n", network.namespace)
        assert not is_suspended(job), "Kueue admitted the second attempt"
        network.cluster.wait_for(lambda: not admitted(network), "no quota is held", within=30)


# === Questions that can never start ===


def test_a_request_over_the_queues_maximum_is_refused_at_once(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    network.flags = ["--queue", "questions"]

    with (
        network.daemon(),
        network.parent("tests/echo:local", input_values={}, attributes={"cpus": "3"}) as parent,
    ):
        exception = parent.exception(within=25)
        assert exception["exception_type"] == "PermissionError"
        assert "Queue `questions` can never run it" in exception["exception_message"]
        job = lambda: network.job(parent.question_uuid)  # noqa: E731
        network.cluster.wait_for(lambda: not job(), "the Job is gone", within=20)


def test_a_queue_that_does_not_exist_is_reported_at_once(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="200m")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", queue="nowhere")

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        exception = parent.exception(within=25)
        assert exception["exception_type"] == "PermissionError"
        assert "There is no queue `nowhere`" in exception["exception_message"]


def test_questions_in_a_stopped_queue_wait_and_their_parents_are_notified(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    change_queue(network, stopPolicy="Hold")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        text = wait_for_log(parent, "the first in queue `questions`: ClusterQueue", within=45)
        assert text.endswith(("is inactive.", "is stopped.")), text
        assert not parent.received("exception", "result")
        change_queue(network, stopPolicy="None")
        # A fake node runs no child.
        parent.exception(within=30)


def test_a_cancelled_question_leaves_the_queue(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})

    with network.daemon(), contextlib.ExitStack() as parents:
        first, second, third = ask_in_order(network, parents, 3)
        network.wait_for_run(first.question_uuid)
        assert is_suspended(wait_for_job(network, second)) and is_suspended(
            wait_for_job(network, third)
        )

        second.cancel()
        gone = lambda: network.job(second.question_uuid) is None  # noqa: E731
        network.cluster.wait_for(gone, "the Job of the cancelled question is gone", within=20)
        network.cluster.wait_for(lambda: len(workloads(network)) == 2, "its Workload is gone")

        first.cancel()
        network.wait_for_run(third.question_uuid, within=30)


# === Evictions by Kueue ===


def expect_result_after_eviction(network, parent, pod):
    """Waits until the question runs in another pod, which then answers and succeeds."""
    other = network.wait_for_pod(
        parent.question_uuid,
        lambda found: (
            found["metadata"]["uid"] != pod["metadata"]["uid"]
            and found["status"].get("phase") == "Running"
        ),
        within=60,
    )
    assert other
    parent.answer_for_child(output_values="after all")
    assert parent.result()["output_values"] == "after all"
    wait_for_job(network, parent, lambda job: jobs.condition(job) == "Complete")
    assert not parent.received("exception")


def test_a_preempted_question_starts_again_in_another_pod(fake_network, queue, priority):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    change_queue(network, preemption={"withinClusterQueue": "LowerPriority"})
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "20s"})
    add_rule(network, "tests/numbers", environment={"FAKE_RUN": "2s"}, queue_priority=priority)

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as low:
        pod = network.wait_for_run(low.question_uuid)
        with network.parent("tests/numbers:local", input_values={}) as high:
            wait_for_job(network, low, is_suspended, within=30)
            network.wait_for_run(high.question_uuid, within=30)
            wait_for_log(low, "was removed (eviction 1)", within=30)
            expect_result_after_eviction(network, low, pod)


def test_a_question_of_a_drained_queue_starts_again_in_another_pod(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    add_rule(network, "tests/echo", environment={"FAKE_RUN": "15s"})

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        change_queue(network, stopPolicy="HoldAndDrain")
        wait_for_job(network, parent, is_suspended, within=30)
        wait_for_log(parent, "was removed (eviction 1)", within=30)
        assert not parent.received("exception", "result")
        change_queue(network, stopPolicy="None")
        expect_result_after_eviction(network, parent, pod)


@pytest.mark.long
def test_images_that_cannot_be_pulled_release_the_quota_of_a_queue(network, queue):
    queue(network.namespace, cpu="1")
    network.flags = ["--queue", "questions"]

    with network.daemon(), contextlib.ExitStack() as parents:
        bad = [
            parents.enter_context(network.parent(f"tests/is-missing-{n}:local", input_values={}))
            for n in range(10)
        ]
        network.cluster.wait_for(lambda: len(admitted(network)) == 10, "ten hold all quota")
        good = network.parent("tests/echo:local", input_values={"n": 11})
        parents.enter_context(good)
        assert is_suspended(wait_for_job(network, good))
        result = good.result(within=180)
        assert result["output_values"]["received"] == {"n": 11}
        for parent in bad:
            exception = parent.exception(within=60)
            assert exception["exception_type"] == "ServiceNotFound"


# === Outages of Kueue ===


@pytest.mark.long
def test_questions_wait_during_an_outage_of_kueue(own_cluster, tmp_path, emulator, binary):
    # The test removes the kind Workload, so it needs a cluster of its own.
    with clusters.Cluster(kueue=own_cluster.kueue, fake_nodes=1) as cluster:
        with network_of(cluster, emulator, binary, tmp_path) as network:
            cluster.kubectl.create(*kueue.queue(network.namespace, "questions", True, cpu="100m"))
            network.flags = ["--queue", "questions"]
            add_rule(network, "tests/echo", environment={"FAKE_RUN": "30s"})
            with network.daemon() as daemon, contextlib.ExitStack() as parents:
                asked = []
                for _ in range(3):
                    parent = network.parent("tests/echo:local", input_values={})
                    asked.append(parents.enter_context(parent))
                    wait_for_job(network, parent)
                network.wait_for_run(asked[0].question_uuid)

                cluster.parts.pop("kueue").kill()
                # Kueue's webhook for Jobs does not answer, so this Job cannot be created now.
                late = network.parent("tests/echo:local", input_values={})
                parents.enter_context(late)
                network.wait_for_row(late.question_uuid, "question")
                assert network.job(late.question_uuid) is None
                kueue.remove_kind(cluster, "workloads")
                wait_for_log(asked[1], "is not installed in the cluster", within=120)
                assert not any(parent.received("exception") for parent in asked[1:])
                assert daemon.process.poll() is None

                kueue.restart(cluster)
                for parent in [*asked[1:], late]:
                    network.wait_for_run(parent.question_uuid, within=300)
                    parent.answer_for_child(output_values=1)
                    assert parent.result()["output_values"] == 1


@contextlib.contextmanager
def network_of(cluster, emulator, binary, folder):
    """A network in another cluster, as its admin. All of its pods go to the fake nodes."""
    namespace = "questions"
    metadata = {"name": namespace, "annotations": fake.NAMESPACE}
    cluster.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    account = ["serviceaccount", "default", "-n", namespace]
    cluster.wait_for(lambda: cluster.kubectl.get(*account), "the service account exists")
    google = {"env": cluster.offline.environment(emulator)}
    network = Network(cluster, namespace, emulator, google, cluster.kubeconfig, binary, folder)
    with contextlib.closing(network):
        yield network


# === The SDK ===


@pytest.mark.long
def test_the_sdk_does_not_give_up_behind_a_quota(network, queue, sdk_client):
    """With TWINED_TEST_SDK_WAIT=1800 the SDK waits for half an hour."""
    queue(network.namespace, cpu="1")
    change_queue(network, stopPolicy="Hold")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.daemon(), ThreadPoolExecutor() as pool:
        ask = {"within": SDK_WAIT + 120, "input_values": {"n": 5}}
        asked = pool.submit(sdk_client.ask, "tests/echo:local", **ask)
        network.cluster.wait_for(lambda: workloads(network), "the question is queued", within=60)
        with pytest.raises(FutureTimeout):
            asked.result(timeout=SDK_WAIT)
        change_queue(network, stopPolicy="None")
        outcome = asked.result()

    assert outcome.error is None, outcome.error
    assert outcome.answer["output_values"]["received"] == {"n": 5}
    kinds = [event["event"]["kind"] for event in outcome.events]
    # One every two minutes, from one of the two replicas, and one when it runs.
    assert kinds.count("heartbeat") - SDK_WAIT // 120 in (1, 2), kinds
    rows = network.rows(outcome.question_uuid, "heartbeat")
    assert len({row["uuid"] for row in rows}) == len(rows) == kinds.count("heartbeat")
