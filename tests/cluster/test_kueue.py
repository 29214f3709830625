"""Questions that wait in a queue of Kueue: what they are told, and that all are answered."""

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
from queueing import live_pods, pods_of_jobs, rule, wait_for_job, wait_for_note, waits

LARGE = 300_000
# For how long the SDK is to be kept waiting, in seconds: it gives up after 300 without a heartbeat.
PATIENCE = float(os.environ.get("TWINED_TEST_PATIENCE", "390"))


def workloads(network):
    return network.cluster.kubectl.list("workloads.kueue.x-k8s.io", "-n", network.namespace)


def states(workload):
    found = workload.get("status", {}).get("conditions", [])
    return {condition["type"] for condition in found if condition["status"] == "True"}


def admitted(network):
    """The workloads that hold quota."""
    held = lambda found: "QuotaReserved" in found and "Finished" not in found  # noqa: E731
    return [workload for workload in workloads(network) if held(states(workload))]


def change_queue(network, name="questions", **spec):
    """Changes the cluster queue that a local queue leads to."""
    whole = f"{network.namespace}-{name}"
    patch = json.dumps({"spec": spec})
    network.cluster.kubectl("patch", "clusterqueue", whole, "--type=merge", "-p", patch)


@pytest.fixture
def priority(own_cluster, namespace):
    """The name of a workload priority class above all others."""
    name = f"{namespace}-high"
    metadata = {"name": name}
    api = "kueue.x-k8s.io/v1beta1"
    own_cluster.kubectl.create(
        {"apiVersion": api, "kind": "WorkloadPriorityClass", "metadata": metadata, "value": 1000}
    )
    yield name
    own_cluster.kubectl("delete", "workloadpriorityclass", name)


# === What a Job says ===


def test_a_job_waits_in_the_queue_of_its_service_with_its_priority(fake_network, queue, priority):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="0")
    queue(network.namespace, "special", on_fake_nodes=True, cpu="0")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/numbers", queue="special", queue_priority=priority)

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

            workload = network.cluster.wait_for(its_workload, "it has a workload")
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
    # Those of one order are told how many are before them.
    told = [text for parent in asked for text in parent.logs() if "queue `questions`" in text]
    assert any("behind" in text and "other" in text for text in told), told


def test_the_place_in_the_queue_is_told(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})

    with network.daemon(), contextlib.ExitStack() as parents:
        asked = ask_in_order(network, parents, 4)
        wait_for_note(asked[1], "It is the first in queue `questions`", within=45)
        wait_for_note(asked[2], "behind 1 other", within=45)
        wait_for_note(asked[3], "behind 2 others", within=45)


def ask_in_order(network, parents, count):
    """Asks the echo so many questions, which Kueue sees one after the other."""
    asked = []
    for number in range(count):
        parent = parents.enter_context(network.parent("tests/echo:local", input_values={}))
        asked.append(parent)
        wait_for_job(network, parent)
        network.cluster.wait_for(lambda: len(workloads(network)) > number, "Kueue has it")
        # Kueue orders by the second.
        time.sleep(1.1)
    return asked


@pytest.mark.long
def test_hundreds_wait_and_all_end_and_nothing_is_left_of_them(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", environment={"FAKE_RUN": "1s"})

    with network.daemon():
        asked = network.ask("tests/echo:local", 200, input_values={})
        most = 0
        while len(network.ends()) < len(asked):
            most = max(most, len(admitted(network)))
            time.sleep(0.3)
        ends = network.wait_for_ends(asked)
        assert most <= 20
        # A fake node runs no child, so each has ended without an answer, and said so.
        assert {row["kind"] for row in ends.values()} == {"exception"}
        network.cluster.wait_for(lambda: not admitted(network), "no quota is held", within=30)
        assert not live_pods(network)


def test_nothing_is_left_of_a_question_that_has_ended(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="200m")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.parent(
        "tests/echo:local", input_values={"much": "x" * LARGE}
    ) as parent:
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
        assert secrets(), "a large question comes by a Secret"
        # As its time to live does, a day later.
        name = f"question-{parent.question_uuid}"
        network.cluster.kubectl("delete", "job", name, "-n", network.namespace)
        network.cluster.wait_for(lambda: not secrets(), "its Secrets are gone", within=60)
        network.cluster.wait_for(lambda: not workloads(network), "its workload is gone", within=60)


# === What can never start ===


def test_a_request_over_the_queues_maximum_is_told_at_once(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.parent(
        "tests/echo:local", input_values={}, attributes={"cpus": "3"}
    ) as parent:
        exception = parent.exception(within=25)
        assert exception["exception_type"] == "PermissionError"
        assert "Queue `questions` can never run it" in exception["exception_message"]
        job = lambda: network.job(parent.question_uuid)  # noqa: E731
        network.cluster.wait_for(lambda: not job(), "its Job is gone", within=20)


def test_a_queue_that_does_not_exist_is_told_at_once(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="200m")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", queue="nowhere")

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        exception = parent.exception(within=25)
        assert exception["exception_type"] == "PermissionError"
        assert "There is no queue `nowhere`" in exception["exception_message"]


def test_what_is_in_a_stopped_queue_waits_and_is_told(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="2")
    change_queue(network, stopPolicy="Hold")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        note = wait_for_note(parent, "the first in queue `questions`: ClusterQueue", within=45)
        assert note.endswith(("is inactive.", "is stopped.")), note
        assert not parent.received("exception", "result")
        change_queue(network, stopPolicy="None")
        # A fake node runs no child.
        parent.exception(within=30)


def test_a_cancelled_one_frees_its_place(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", environment={"FAKE_RUN": "forever"})

    with network.daemon(), contextlib.ExitStack() as parents:
        first, second, third = ask_in_order(network, parents, 3)
        network.wait_for_run(first.question_uuid)
        assert waits(wait_for_job(network, second)) and waits(wait_for_job(network, third))

        second.cancel()
        gone = lambda: network.job(second.question_uuid) is None  # noqa: E731
        network.cluster.wait_for(gone, "the Job of the cancelled one is gone", within=20)
        network.cluster.wait_for(lambda: len(workloads(network)) == 2, "its workload too")

        first.cancel()
        network.wait_for_run(third.question_uuid, within=30)


# === What Kueue takes back ===


def answered_after_eviction(network, parent, pod):
    """It runs in another pod; its child answers, and the pod ends well."""
    other = network.wait_for_pod(
        parent.question_uuid,
        lambda found: found["metadata"]["uid"] != pod["metadata"]["uid"]
        and found["status"].get("phase") == "Running",
        within=60,
    )
    assert other
    parent.answer_for_child(output_values="after all")
    assert parent.result()["output_values"] == "after all"
    wait_for_job(network, parent, lambda job: jobs.condition(job) == "Complete")
    assert not parent.received("exception")


def test_what_is_preempted_runs_again_in_another_pod(fake_network, queue, priority):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    change_queue(network, preemption={"withinClusterQueue": "LowerPriority"})
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", environment={"FAKE_RUN": "20s"})
    rule(network, "tests/numbers", environment={"FAKE_RUN": "2s"}, queue_priority=priority)

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as low:
        pod = network.wait_for_run(low.question_uuid)
        with network.parent("tests/numbers:local", input_values={}) as high:
            wait_for_job(network, low, waits, within=30)
            network.wait_for_run(high.question_uuid, within=30)
            wait_for_note(low, "was removed (eviction 1)", within=30)
            answered_after_eviction(network, low, pod)


def test_what_kueue_drains_runs_again_in_another_pod(fake_network, queue):
    network = fake_network
    queue(network.namespace, on_fake_nodes=True, cpu="100m")
    network.flags = ["--queue", "questions"]
    rule(network, "tests/echo", environment={"FAKE_RUN": "15s"})

    with network.daemon(), network.parent("tests/echo:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        change_queue(network, stopPolicy="HoldAndDrain")
        wait_for_job(network, parent, waits, within=30)
        wait_for_note(parent, "was removed (eviction 1)", within=30)
        assert not parent.received("exception", "result")
        change_queue(network, stopPolicy="None")
        answered_after_eviction(network, parent, pod)


@pytest.mark.long
def test_ten_images_that_cannot_be_had_do_not_stop_a_network(network, queue):
    queue(network.namespace, cpu="1")
    network.flags = ["--queue", "questions"]

    with network.daemon(), contextlib.ExitStack() as parents:
        bad = [
            parents.enter_context(network.parent(f"tests/is-not-there-{n}:local", input_values={}))
            for n in range(10)
        ]
        network.cluster.wait_for(lambda: len(admitted(network)) == 10, "they hold all quota")
        good = network.parent("tests/echo:local", input_values={"n": 11})
        parents.enter_context(good)
        assert waits(wait_for_job(network, good))
        result = good.result(within=180)
        assert result["output_values"]["received"] == {"n": 11}
        for parent in bad:
            exception = parent.exception(within=60)
            assert exception["exception_type"] == "ServiceNotFound"


# === Kueue that is not there ===


@pytest.mark.long
def test_questions_wait_while_kueue_is_away(
    own_cluster, tmp_path, emulator, binary
):
    # Its Workloads are taken away: nobody else's are to go with them.
    with clusters.Cluster(kueue=own_cluster.kueue, fake_nodes=1) as cluster:
        with network_of(cluster, emulator, binary, tmp_path) as network:
            cluster.kubectl.create(
                *kueue.queue(network.namespace, "questions", True, cpu="100m")
            )
            network.flags = ["--queue", "questions"]
            rule(network, "tests/echo", environment={"FAKE_RUN": "30s"})
            with network.daemon() as daemon, contextlib.ExitStack() as parents:
                asked = []
                for _ in range(3):
                    parent = network.parent("tests/echo:local", input_values={})
                    asked.append(parents.enter_context(parent))
                    wait_for_job(network, parent)
                network.wait_for_run(asked[0].question_uuid)

                cluster.parts.pop("kueue").kill()
                # Its webhook of Jobs does not answer, so this one's Job cannot be made now.
                late = network.parent("tests/echo:local", input_values={})
                parents.enter_context(late)
                network.wait_for_row(late.question_uuid, "question")
                assert network.job(late.question_uuid) is None
                kueue.take_away(cluster, "workloads")
                wait_for_note(asked[1], "is not installed in the cluster", within=120)
                assert not any(parent.received("exception") for parent in asked[1:])
                assert daemon.process.poll() is None

                kueue.restart(cluster)
                for parent in [*asked[1:], late]:
                    network.wait_for_run(parent.question_uuid, within=300)
                    parent.answer_for_child(output_values=1)
                    assert parent.result()["output_values"] == 1


@contextlib.contextmanager
def network_of(cluster, emulator, binary, folder):
    """A network in another cluster, as its admin, all of whose pods go to the fake nodes."""
    namespace = "away"
    metadata = {"name": namespace, "annotations": fake.NAMESPACE}
    cluster.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    account = ["serviceaccount", "default", "-n", namespace]
    cluster.wait_for(lambda: cluster.kubectl.get(*account), f"{namespace} has its account")
    google = {"env": cluster.offline.environment(emulator)}
    network = Network(cluster, namespace, emulator, google, cluster.kubeconfig, binary, folder)
    with contextlib.closing(network):
        yield network


# === The SDK waits ===


@pytest.mark.long
def test_the_sdk_does_not_give_up_behind_a_quota(network, queue, asker):
    """TWINED_TEST_PATIENCE=1800 keeps it waiting for half an hour."""
    queue(network.namespace, cpu="1")
    change_queue(network, stopPolicy="Hold")
    network.flags = ["--queue", "questions"]

    with network.daemon(), network.daemon(), ThreadPoolExecutor() as pool:
        ask = {"within": PATIENCE + 120, "input_values": {"n": 5}}
        asked = pool.submit(asker.ask, "tests/echo:local", **ask)
        network.cluster.wait_for(lambda: workloads(network), "it is asked", within=60)
        with pytest.raises(FutureTimeout):
            asked.result(timeout=PATIENCE)
        change_queue(network, stopPolicy="None")
        outcome = asked.result()

    assert outcome.error is None, outcome.error
    assert outcome.answer["output_values"]["received"] == {"n": 5}
    kinds = [event["event"]["kind"] for event in outcome.events]
    # Every two minutes, by one of the two; and one when it runs.
    assert kinds.count("heartbeat") - PATIENCE // 120 in (1, 2), kinds
    rows = network.rows(outcome.question_uuid, "heartbeat")
    assert len({row["uuid"] for row in rows}) == len(rows) == kinds.count("heartbeat")
