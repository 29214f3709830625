"""Evicted runs start again, failed runs are relaunched; each question has one terminal event."""

import contextlib
import json
import uuid

import pytest

import failures
import fake
from cluster import wait_for
from failures import on_fake_nodes
from network import is_running

ECHO = "tests/echo:local"
KIND_LABEL = "twined.test/kind"
EVICTED = "was removed (eviction"
BACKOFF = {"backoff": "1s"}
# Kinds of nodes of which a test creates one or two.
KINDS = ["vanishes", "is-tainted", "is-preempted"]


def fills_node(kind):
    """The settings of a service whose pods need a whole node of this kind."""
    settings = on_fake_nodes(run="forever")
    return {
        **settings,
        "cpus": {"default": "1"},
        "node_selector": {**settings["node_selector"], KIND_LABEL: kind},
    }


@pytest.fixture(scope="module")
def network(shared_network):
    rules = {
        "failing/stays:local": on_fake_nodes(run="forever"),
        "failing/is-evicted:local": on_fake_nodes(run="2s", exit="evicted"),
        **{service_for(kind): fills_node(kind) for kind in KINDS},
        "failing/eats-memory:local": {
            "memory": {"default": "16Mi", "limit": "request"},
            "retry": {"memory": {"times": 2, "factor": 2, "ceiling": "48Mi", **BACKOFF}},
        },
        "failing/is-killed:local": {"retry": {"killed": {"times": 1, **BACKOFF}}},
        "failing/is-rejected:local": {
            "retry": {"evicted": {"times": 1, **BACKOFF}},
            **on_fake_nodes(run="forever"),
        },
        "failing/grows:local": {
            "memory": {"default": "1Gi"},
            "retry": {"memory": {"times": 3, "factor": 1.5, **BACKOFF}},
            **on_fake_nodes(run="4s", exit="137", reason="OOMKilled"),
        },
        "failing/fails-slowly:local": {
            "retry": {"failed": {"times": 2, "backoff": "3s"}},
            **on_fake_nodes(exit="3"),
        },
        "tests/raising:local": {"retry": {"failed": {"times": 2, **BACKOFF}}},
        # Too little for Python to start.
        ECHO: {
            "memory": {"default": "8Mi", "limit": "request"},
            "retry": {"memory": {"times": 2, "factor": 8, "ceiling": "384Mi", **BACKOFF}},
        },
    }
    shared_network.settings["defaults"]["cpus"] = {"default": "20m"}
    shared_network.settings["rules"] = [
        {"services": [services], **settings} for services, settings in rules.items()
    ]
    with shared_network.daemon():
        yield shared_network


# === Evictions ===


@pytest.mark.long
def test_a_run_that_is_evicted_four_times_is_not_started_again(network):
    with network.parent("failing/is-evicted:local", input_values={}) as parent:
        event = parent.exception(within=240)
        failures.wait_until_settled(network, parent)

    assert event["exception_type"] == "InterruptedError"
    assert "evicted 4 times" in event["exception_message"]
    assert "Ask again later" in event["exception_message"]
    messages = [message for message in parent.logs() if EVICTED in message]
    counted = [f"eviction {times}" in message for times, message in enumerate(messages, 1)]
    assert counted == [True] * 3


def test_a_run_that_is_evicted_after_its_result_is_not_started_again(network):
    with network.parent("failing/is-evicted:local", input_values={}) as parent:
        network.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=1)
        parent.result()
        failures.wait_until_settled(network, parent, kind="result")

    assert len(network.pods(parent.question_uuid)) <= 2


def test_a_run_on_a_drained_node_starts_again_and_its_result_counts(network):
    with network.parent("failing/sleeps:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        evict(network, pod)
        expect_restart(network, parent, pod, "a drain: by the eviction API")


def test_a_run_on_a_node_that_vanishes_starts_again(network):
    kind = "vanishes"
    with (
        small_node(network, kind) as node,
        network.parent(service_for(kind), input_values={}) as parent,
    ):
        pod = network.wait_for_run(parent.question_uuid)
        with small_node(network, kind):
            network.cluster.kubectl("delete", "node", node, "--wait=false")
            expect_restart(network, parent, pod, "a node that is gone", within=120)


def test_a_run_on_a_tainted_node_starts_again(network):
    kind = "is-tainted"
    with (
        small_node(network, kind) as node,
        network.parent(service_for(kind), input_values={}) as parent,
    ):
        pod = network.wait_for_run(parent.question_uuid)
        with small_node(network, kind):
            network.cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
            expect_restart(network, parent, pod, "a taint that evicts")


def test_a_run_that_a_pod_of_higher_priority_preempts_starts_again(network):
    kubectl, urgent = network.cluster.kubectl, f"urgent-{network.namespace}"
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    kubectl.create({**priority, "metadata": {"name": urgent}})
    kind = "is-preempted"
    with small_node(network, kind), network.parent(service_for(kind), input_values={}) as parent:
        first = network.wait_for_run(parent.question_uuid)
        kubectl.create(greedy_pod(network.namespace, urgent, kind))
        network.wait_for_pod(parent.question_uuid, lambda pod: uid(pod) != uid(first))
        kubectl("delete", "pod", "-n", network.namespace, urgent, "--wait=false")
        expect_restart(network, parent, first, "a pod of higher priority")
    kubectl("delete", "priorityclass", urgent)


def expect_restart(network, parent, before, cause, within=60):
    """Waits until another pod runs and the parent is notified once. Then the child answers."""
    is_new = lambda pod: uid(pod) != uid(before) and is_running(pod)  # noqa: E731
    network.wait_for_pod(parent.question_uuid, is_new, within)
    evictions = lambda: [message for message in parent.logs() if EVICTED in message]  # noqa: E731
    wait_for(evictions, f"the parent is notified of {cause}")
    parent.answer_for_child(output_values=cause)
    assert parent.result()["output_values"] == cause
    delete_pods(network, parent)
    assert len(evictions()) == 1
    failures.wait_until_settled(network, parent, kind="result")


def delete_pods(network, parent, suffix=""):
    """Ends the question's pods after the result was published for them."""
    for pod in network.pods(parent.question_uuid, suffix):
        if failures.is_alive(pod):
            network.cluster.kubectl(
                "delete", "pod", "-n", network.namespace, name(pod), "--wait=false"
            )


def evict(network, pod):
    """Evicts a pod as `kubectl drain` does."""
    metadata = {"name": name(pod), "namespace": network.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{network.namespace}/pods/{name(pod)}/eviction"
    network.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


@contextlib.contextmanager
def small_node(network, kind):
    """Creates a fake node of this kind with capacity for one question."""
    node = f"fake-{uuid.uuid4().hex[:6]}"
    manifest = fake.node(0)
    manifest["metadata"] = {"name": node, "labels": {**fake.SELECTOR, KIND_LABEL: kind}}
    status = manifest["status"]
    status["allocatable"]["cpu"] = status["capacity"]["cpu"] = "1"
    kubectl = network.cluster.kubectl
    kubectl.create(manifest)
    try:
        yield node
    finally:
        kubectl("delete", "node", node, "--wait=false", "--ignore-not-found")


def service_for(kind):
    return f"failing/fills-node-{kind}:local"


def greedy_pod(namespace, name, kind):
    requests = {"cpu": "1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {"fake.twined.test/run": "forever"},
        },
        "spec": {
            "priorityClassName": name,
            "nodeSelector": {KIND_LABEL: kind},
            "tolerations": [fake.TOLERATION],
            "containers": [{"name": "a", "image": "a", "resources": {"requests": requests}}],
        },
    }


# === Relaunches ===


def test_a_run_out_of_memory_is_relaunched_with_more_up_to_the_ceiling(network):
    with network.parent("failing/eats-memory:local", input_values={}) as parent:
        event = parent.exception(within=120)
        failures.wait_until_settled(network, parent, max_jobs=3)

    assert event["exception_type"] == "MemoryError"
    assert "its limit is 48Mi" in event["exception_message"]
    attempts = [network.job(parent.question_uuid, suffix) for suffix in ("", "-a1", "-a2")]
    limits = [limits_of(job)["memory"] for job in attempts]
    assert limits == ["16Mi", "32Mi", "48Mi"]
    messages = [message for message in parent.logs() if "It is relaunched automatically" in message]
    assert "attempt 2 of 3, with 32Mi of memory" in messages[0]
    assert "attempt 3 of 3, with 48Mi of memory" in messages[1]


def test_a_relaunch_that_answers_gives_the_only_terminal_event(network):
    with network.parent("failing/grows:local", input_values={}) as parent:
        network.wait_for_pod(parent.question_uuid, is_running, suffix="-a1")
        parent.answer_for_child(output_values="enough")
        assert parent.result()["output_values"] == "enough"
        failures.wait_until_settled(network, parent, max_jobs=2, kind="result")

    assert network.job(parent.question_uuid, "-a2") is None


def test_a_large_question_is_available_to_its_relaunches(network):
    large = {"n": "x" * 400_000, "last": 1}
    with network.parent(ECHO, input_values=large) as parent:
        result = parent.result(within=180)
        assert result["output_values"]["received"] == large
        failures.wait_until_settled(network, parent, max_jobs=3, kind="result")

    assert network.job(parent.question_uuid, "-a1")


def test_a_killed_run_is_relaunched_once(network):
    with network.parent("failing/is-killed:local", input_values={}) as parent:
        assert "SIGKILL" in parent.exception()["exception_message"]
        failures.wait_until_settled(network, parent, max_jobs=2)

    assert network.job(parent.question_uuid, "-a1")


def test_a_run_whose_pod_a_kubelet_rejected_is_relaunched(network):
    """The Job does not replace a pod that a node under pressure rejected."""
    with network.parent("failing/is-rejected:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
        patch = json.dumps({"status": status})
        target = ["pod", name(pod), "-n", network.namespace, "--subresource=status"]
        network.cluster.kubectl("patch", *target, "--type=merge", "-p", patch)
        network.wait_for_pod(parent.question_uuid, is_running, suffix="-a1")
        parent.answer_for_child(output_values=1)
        parent.result()
        delete_pods(network, parent, "-a1")
        failures.wait_until_settled(network, parent, max_jobs=2, kind="result")


def test_the_pause_before_each_relaunch_is_longer(network):
    with network.parent("failing/fails-slowly:local", input_values={}) as parent:
        assert "exit code 3" in parent.exception()["exception_message"]
        failures.wait_until_settled(network, parent, max_jobs=3)

    question = parent.question_uuid
    ends = [failures.ended_at(network.pods(question, suffix)[0]) for suffix in ("", "-a1")]
    starts = [failures.created_at(network.job(question, suffix)) for suffix in ("-a1", "-a2")]
    assert starts[0] - ends[0] >= 3
    assert starts[1] - ends[1] >= 6


def test_a_run_that_ends_with_an_exception_is_not_relaunched(network):
    with network.parent("tests/raising:local", input_values={}) as parent:
        parent.exception()
        failures.wait_until_settled(network, parent)


def limits_of(job):
    return job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def uid(pod):
    return pod["metadata"]["uid"]


def name(found):
    return found["metadata"]["name"]
