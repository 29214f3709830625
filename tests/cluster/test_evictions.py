"""What ran is taken away, and what died is run again: the asker hears of it, and has one end."""

import contextlib
import json
import uuid

import pytest

import deaths
import fake
from cluster import wait_for
from deaths import on_fake_nodes
from network import runs

ECHO = "tests/echo:local"
KIND = "twined.test/kind"
TAKEN = "was removed (eviction"
RETRY = {"backoff": "1s"}
# Nodes of which there is one, or two.
KINDS = ["vanishes", "is-tainted", "is-preempted"]


def is_small(kind):
    """Fills a node of that kind."""
    settings = on_fake_nodes(run="forever")
    return {
        **settings,
        "cpus": {"default": "1"},
        "node_selector": {**settings["node_selector"], KIND: kind},
    }


@pytest.fixture(scope="module")
def network(shared_network):
    rules = {
        "deaths/stays:local": on_fake_nodes(run="forever"),
        "deaths/is-evicted:local": on_fake_nodes(run="2s", exit="evicted"),
        **{f"deaths/is-small-{kind}:local": is_small(kind) for kind in KINDS},
        "deaths/eats-memory:local": {
            "memory": {"default": "16Mi", "limit": "request"},
            "retry": {"memory": {"times": 2, "factor": 2, "ceiling": "48Mi", **RETRY}},
        },
        "deaths/is-killed:local": {"retry": {"killed": {"times": 1, **RETRY}}},
        "deaths/gives-way:local": {
            "retry": {"evicted": {"times": 1, **RETRY}},
            **on_fake_nodes(run="forever"),
        },
        "deaths/grows:local": {
            "memory": {"default": "1Gi"},
            "retry": {"memory": {"times": 3, "factor": 1.5, **RETRY}},
            **on_fake_nodes(run="4s", exit="137", reason="OOMKilled"),
        },
        "deaths/fails-slowly:local": {
            "retry": {"failed": {"times": 2, "backoff": "3s"}},
            **on_fake_nodes(exit="3"),
        },
        "tests/raising:local": {"retry": {"failed": {"times": 2, **RETRY}}},
        # Python cannot even start in that.
        ECHO: {
            "memory": {"default": "8Mi", "limit": "request"},
            "retry": {"memory": {"times": 2, "factor": 8, "ceiling": "384Mi", **RETRY}},
        },
    }
    shared_network.settings["defaults"]["cpus"] = {"default": "20m"}
    shared_network.settings["rules"] = [
        {"services": [services], **settings} for services, settings in rules.items()
    ]
    with shared_network.daemon():
        yield shared_network


# === Taken away ===


@pytest.mark.long
def test_what_is_evicted_four_times_is_started_no_more(network):
    with network.parent("deaths/is-evicted:local", input_values={}) as parent:
        event = parent.exception(within=240)
        deaths.settled(network, parent)

    assert event["exception_type"] == "InterruptedError"
    assert "evicted 4 times" in event["exception_message"]
    assert "Ask again later" in event["exception_message"]
    told = [said for said in parent.logs() if TAKEN in said]
    assert [f"eviction {times}" in said for times, said in enumerate(told, 1)] == [True] * 3


def test_what_has_answered_and_is_evicted_is_not_started_anew(network):
    with network.parent("deaths/is-evicted:local", input_values={}) as parent:
        network.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=1)
        parent.result()
        deaths.settled(network, parent, kind="result")

    assert len(network.pods(parent.question_uuid)) <= 2


def test_a_drained_node_starts_it_anew_and_its_answer_counts(network):
    with network.parent("deaths/sleeps:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        evict(network, pod)
        goes_on_elsewhere(network, parent, pod, "a drain: by the API of evictions")


def test_a_node_that_vanishes_starts_it_anew(network):
    kind = "vanishes"
    with small_node(network, kind) as node, network.parent(small(kind), input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        with small_node(network, kind):
            network.cluster.kubectl("delete", "node", node, "--wait=false")
            goes_on_elsewhere(network, parent, pod, "a node that is gone", within=120)


def test_a_tainted_node_starts_it_anew(network):
    kind = "is-tainted"
    with small_node(network, kind) as node, network.parent(small(kind), input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        with small_node(network, kind):
            network.cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
            goes_on_elsewhere(network, parent, pod, "a node that is to be empty")


def test_a_pod_of_higher_priority_takes_its_place_for_a_while(network):
    kubectl, urgent = network.cluster.kubectl, f"urgent-{network.namespace}"
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    kubectl.create({**priority, "metadata": {"name": urgent}})
    kind = "is-preempted"
    with small_node(network, kind), network.parent(small(kind), input_values={}) as parent:
        first = network.wait_for_run(parent.question_uuid)
        kubectl.create(greedy_pod(network.namespace, urgent, kind))
        network.wait_for_pod(parent.question_uuid, lambda pod: uid(pod) != uid(first))
        kubectl("delete", "pod", "-n", network.namespace, urgent, "--wait=false")
        goes_on_elsewhere(network, parent, first, "a pod of higher priority")
    kubectl("delete", "priorityclass", urgent)


def goes_on_elsewhere(network, parent, before, by, within=60):
    """Waits until another pod runs, has it answer, and sees that the asker was told."""
    another = lambda pod: uid(pod) != uid(before) and runs(pod)  # noqa: E731
    network.wait_for_pod(parent.question_uuid, another, within)
    wait_for(lambda: [said for said in parent.logs() if TAKEN in said], f"the asker is told of {by}")
    parent.answer_for_child(output_values=by)
    assert parent.result()["output_values"] == by
    finish(network, parent)
    assert len([said for said in parent.logs() if TAKEN in said]) == 1
    deaths.settled(network, parent, kind="result")


def finish(network, parent):
    """Ends the question's pod, whose answer was given for it."""
    for pod in network.pods(parent.question_uuid):
        if deaths.alive(pod):
            network.cluster.kubectl(
                "delete", "pod", "-n", network.namespace, name(pod), "--wait=false"
            )


def evict(network, pod):
    """As `kubectl drain` does it."""
    metadata = {"name": name(pod), "namespace": network.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{network.namespace}/pods/{name(pod)}/eviction"
    network.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


@contextlib.contextmanager
def small_node(network, kind):
    """A fake node with room for one question."""
    node = f"fake-{uuid.uuid4().hex[:6]}"
    made = fake.node(0)
    made["metadata"] = {"name": node, "labels": {**fake.SELECTOR, KIND: kind}}
    made["status"]["allocatable"]["cpu"] = made["status"]["capacity"]["cpu"] = "1"
    kubectl = network.cluster.kubectl
    kubectl.create(made)
    try:
        yield node
    finally:
        kubectl("delete", "node", node, "--wait=false", "--ignore-not-found")


def small(kind):
    return f"deaths/is-small-{kind}:local"


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
            "nodeSelector": {KIND: kind},
            "tolerations": [fake.TOLERATION],
            "containers": [{"name": "a", "image": "a", "resources": {"requests": requests}}],
        },
    }


# === Run again ===


def test_out_of_memory_it_runs_again_with_more_up_to_the_ceiling(network):
    with network.parent("deaths/eats-memory:local", input_values={}) as parent:
        event = parent.exception(within=120)
        deaths.settled(network, parent, jobs_of_it=3)

    assert event["exception_type"] == "MemoryError"
    assert "its limit is 48Mi" in event["exception_message"]
    asked = [network.job(parent.question_uuid, suffix) for suffix in ("", "-a1", "-a2")]
    limits = [limits_of(job)["memory"] for job in asked]
    assert limits == ["16Mi", "32Mi", "48Mi"]
    told = [said for said in parent.logs() if "It runs again, by itself" in said]
    assert "attempt 2 of 3, with 32Mi of memory" in told[0]
    assert "attempt 3 of 3, with 48Mi of memory" in told[1]


def test_an_attempt_that_answers_is_the_only_end(network):
    with network.parent("deaths/grows:local", input_values={}) as parent:
        network.wait_for_pod(parent.question_uuid, runs, suffix="-a1")
        parent.answer_for_child(output_values="enough")
        assert parent.result()["output_values"] == "enough"
        deaths.settled(network, parent, jobs_of_it=2, kind="result")

    assert network.job(parent.question_uuid, "-a2") is None


def test_a_large_question_is_kept_for_its_next_attempt(network):
    large = {"n": "x" * 400_000, "last": 1}
    with network.parent(ECHO, input_values=large) as parent:
        result = parent.result(within=180)
        assert result["output_values"]["received"] == large
        deaths.settled(network, parent, jobs_of_it=3, kind="result")

    assert network.job(parent.question_uuid, "-a1")


def test_what_was_killed_runs_again_once(network):
    with network.parent("deaths/is-killed:local", input_values={}) as parent:
        assert "SIGKILL" in parent.exception()["exception_message"]
        deaths.settled(network, parent, jobs_of_it=2)

    assert network.job(parent.question_uuid, "-a1")


def test_what_the_kubelet_evicted_for_good_runs_again(network):
    """A pod that a node under pressure rejects is none that the Job makes again."""
    with network.parent("deaths/gives-way:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
        patch = json.dumps({"status": status})
        at = ["-n", network.namespace, name(pod), "--subresource=status", "--type=merge"]
        network.cluster.kubectl("patch", "pod", *at, "-p", patch)
        network.wait_for_pod(parent.question_uuid, runs, suffix="-a1")
        parent.answer_for_child(output_values=1)
        parent.result()
        for pod in network.pods(parent.question_uuid, "-a1"):
            network.cluster.kubectl("delete", "pod", "-n", network.namespace, name(pod), "--wait=false")
        deaths.settled(network, parent, jobs_of_it=2, kind="result")


def test_it_waits_longer_before_each_attempt(network):
    with network.parent("deaths/fails-slowly:local", input_values={}) as parent:
        assert "exit code 3" in parent.exception()["exception_message"]
        deaths.settled(network, parent, jobs_of_it=3)

    ends = [deaths.ended_at(network.pods(parent.question_uuid, at)[0]) for at in ("", "-a1")]
    made = [deaths.made_at(network.job(parent.question_uuid, at)) for at in ("-a1", "-a2")]
    assert made[0] - ends[0] >= 3
    assert made[1] - ends[1] >= 6


def test_an_exception_of_its_own_is_not_run_again(network):
    with network.parent("tests/raising:local", input_values={}) as parent:
        parent.exception()
        deaths.settled(network, parent)


def limits_of(job):
    return job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def uid(pod):
    return pod["metadata"]["uid"]


def name(made):
    return made["metadata"]["name"]
