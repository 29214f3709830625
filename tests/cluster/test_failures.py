"""Failures that are reported as soon as they are seen, and the exceptions that parents receive.

All questions are asked concurrently, of one daemon: first those on the real node, then those that
only a fake node can cause.
"""

import json

import pytest

import failures
from failures import Failure, on_fake_nodes

SLEEPS = "failing/sleeps:local"
LITTLE_MEMORY = {"memory": {"default": "32Mi", "limit": "request"}}

REAL = {
    # It ends by itself.
    "exits": Failure(
        "RuntimeError",
        "ended with exit code 3",
        "last lines of its output",
        tail="The wind was too much.\n",
    ),
    "answers-nothing": Failure(
        "RuntimeError", "exit code 0, but without a result", "what its code returns"
    ),
    "is-loud": Failure("RuntimeError", "exit code 1", tail="This is line 5000\n"),
    "lacks-a-program": Failure(
        "RuntimeError", "exit code 127", "a command does not exist", "the image's entry point"
    ),
    # It is killed.
    "is-killed": Failure(
        "RuntimeError", "signal 9 (SIGKILL; exit code 137)", "for lack of memory of the node"
    ),
    "is-terminated": Failure(
        "RuntimeError", "signal 15 (SIGTERM; exit code 143)", "asked it to stop"
    ),
    "crashes": Failure("RuntimeError", "signal 11 (SIGSEGV; exit code 139)", "a compiled package"),
    "aborts": Failure("RuntimeError", "signal 6 (SIGABRT; exit code 134)", "last lines"),
    "wants-another-processor": Failure(
        "RuntimeError", "signal 4 (SIGILL; exit code 132)", "needs another processor"
    ),
    # It exceeds a limit.
    "eats-memory": Failure(
        "MemoryError", "its limit is 32Mi", "ask again with more `memory`", **LITTLE_MEMORY
    ),
    "child-eats-memory": Failure(
        "MemoryError", "its limit is 32Mi", "with more `memory`", **LITTLE_MEMORY
    ),
    "hides-its-end": Failure(
        "MemoryError", "its limit is 32Mi", "with more `memory`", **LITTLE_MEMORY
    ),
    "fills-disk": Failure(
        "RuntimeError",
        "more to its disk than its limit of 32Mi",
        "with more `ephemeral_storage`",
        within=120,
        ephemeral_storage={"default": "32Mi", "limit": "request"},
        environment={"MEBIBYTES": "48"},
    ),
    "fills-volume": Failure(
        "RuntimeError",
        "more to a volume than that may hold",
        "raise the volume's size",
        within=120,
        volumes=[{"path": "/scratch", "empty_dir": "8Mi"}],
        environment={"MEBIBYTES": "16"},
    ),
    "takes-too-long": Failure(
        "TimeoutError",
        "longer than its deadline of 4 s",
        "ask for less at once",
        image_of=SLEEPS,
        deadline="4s",
    ),
    "ignores-sigterm": Failure(
        "TimeoutError", "longer than its deadline of 4 s", "raise the deadline", deadline="4s"
    ),
    # It cannot be started.
    "has-no-octue": Failure(
        "RuntimeError", "its command is not in it", "mend the image's entry point"
    ),
    "is-damaged": Failure("RuntimeError", "exec format error", "docker build --platform"),
    "has-no-shell": Failure(
        "RuntimeError",
        "its command is not in it, or the interpreter that its `#!`",
        "mend the image's entry point",
    ),
    "is-not-executable": Failure(
        "RuntimeError",
        "its command may not be executed",
        "the command in the service's settings",
        image_of=SLEEPS,
        command=["/etc/revision"],
    ),
    "has-a-long-environment": Failure(
        "RuntimeError",
        "longer than the system allows",
        "ask with less",
        image_of=SLEEPS,
        environment={"LONG": "x" * 140_000},
    ),
    "mounts-over-a-file": Failure(
        "RuntimeError",
        "a volume cannot be put where it is wanted",
        "the volumes in the service's settings",
        image_of=SLEEPS,
        volumes=[{"path": "/etc/revision", "empty_dir": "8Mi"}],
    ),
}

# Statuses that only a kubelet or another cluster would set: for pods on a fake node.
FAKE = {
    "had-no-cpu": (
        "RuntimeError",
        "had not enough `cpu` left",
        "ask again",
        {
            "reason": "OutOfcpu",
            "message": "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, "
            "used: 900, capacity: 1000",
        },
    ),
    "had-no-memory": (
        "RuntimeError",
        "had not enough `memory` left",
        "ask again",
        {
            "reason": "OutOfmemory",
            "message": "Pod was rejected: Node didn't have enough resource: memory, requested: 1, "
            "used: 1, capacity: 1",
        },
    ),
    "had-the-wrong-node": (
        "RuntimeError",
        "does not fit what its settings want of a node",
        "the node selector",
        {
            "reason": "NodeAffinity",
            "message": "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match "
            "Pod's node affinity/selector",
        },
    ),
    "did-not-tolerate-a-taint": (
        "RuntimeError",
        "does not fit what its settings want",
        "tolerations",
        {
            "reason": "TaintToleration",
            "message": "Pod was rejected: Predicate TaintToleration failed",
        },
    ),
    "had-no-device": (
        "RuntimeError",
        "refused its pod with `UnexpectedAdmissionError`",
        "the node's devices",
        {
            "reason": "UnexpectedAdmissionError",
            "message": "Pod was rejected: Allocate failed due to no healthy devices present, which "
            "is unexpected",
        },
    ),
    "had-too-many-volumes": (
        "RuntimeError",
        "can attach no more volumes",
        "ask again",
        {
            "reason": "VolumeAttachmentLimitExceeded",
            "message": "Pod was rejected: Node has reached its volume attachment limit",
        },
    ),
    "was-shut-down": (
        "InterruptedError",
        "because the node was shut down",
        "ask again",
        {
            "reason": "NodeShutdown",
            "message": "Pod was rejected as the node is shutting down.",
        },
    ),
    "was-evicted-for-memory": (
        "InterruptedError",
        "because the node ran low on memory",
        "ask again",
        {
            "reason": "Evicted",
            "message": "The node was low on resource: memory. Threshold quantity: 100Mi, "
            "available: 7Mi.",
        },
    ),
    "was-preempted": (
        "InterruptedError",
        "to make room for a critical pod",
        "ask again",
        {"reason": "Preempting", "message": "Preempted in order to admit critical pod"},
    ),
    "reported-nothing": ("RuntimeError", "failed, and nobody knows how", "ask again", {}),
}
FAKE_FAILURES = {
    name: Failure(exception, text, remedy, **on_fake_nodes(start="never"))
    for name, (exception, text, remedy, _) in FAKE.items()
}
# Failures that are a behaviour of fake nodes.
SIMULATED = {
    "lost-its-node": Failure(
        "RuntimeError",
        "does not know how it ended",
        "ask again",
        **on_fake_nodes(exit="137", reason="ContainerStatusUnknown"),
    ),
    "was-out-of-memory": Failure(
        "MemoryError",
        "killed for the memory",
        "has no limit",
        **on_fake_nodes(exit="137", reason="OOMKilled"),
    ),
    "made-a-forbidden-system-call": Failure(
        "RuntimeError",
        "signal 31 (SIGSYS; exit code 159)",
        "a system call",
        **on_fake_nodes(exit="159"),
    ),
    "has-an-invalid-image-name": Failure(
        "ServiceNotFound",
        "no name of an image",
        "check the revision tag",
        **on_fake_nodes(
            waiting="InvalidImageName",
            message="Failed to apply default image tag: couldn't parse image name",
        ),
    ),
}
FAILURES = {**REAL, **FAKE_FAILURES, **SIMULATED}


@pytest.fixture(scope="module")
def network(shared_network):
    shared_network.settings["defaults"]["cpus"] = {"default": "20m"}
    shared_network.settings["defaults"]["memory"] = {"default": "32Mi"}
    failures.prepare(shared_network, FAILURES)
    shared_network.settings["rules"] += [
        {"services": ["failing/sleeps-*"], **on_fake_nodes(run="forever")},
    ]
    with shared_network.daemon():
        yield shared_network


@pytest.fixture(scope="module")
def parents(network, request):
    """The parents of all failures that this session tests, by name."""
    parents = failures.ask_all(network, failures.selected(FAILURES, request))
    yield parents
    for parent in parents.values():
        parent.close()


@pytest.mark.parametrize("name", [*REAL, *SIMULATED])
def test_a_failure_is_reported_with_its_cause_and_its_remedy(network, parents, name):
    event = failures.expect_exception(network, parents[name], FAILURES[name])

    if name == "is-loud":
        assert event["exception_traceback"][0] != "This is line 1\n"
        assert 10 < len(event["exception_traceback"]) <= 80


@pytest.mark.parametrize("name", FAKE)
def test_a_failure_that_a_kubelet_reports_is_passed_on(network, parents, name):
    parent = parents[name]
    pod = network.wait_for_pod(parent.question_uuid, failures.has_node)
    fail(network, pod, **FAKE[name][-1])

    failures.expect_exception(network, parent, FAILURES[name])


def test_the_deletion_of_a_pod_is_reported(network):
    text = "was deleted in the cluster, by hand or with its Job"
    failure = Failure("InterruptedError", text, "ask again")
    with network.parent(SLEEPS, input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)["metadata"]["name"]
        network.cluster.kubectl("delete", "pod", "-n", network.namespace, pod, "--wait=false")
        failures.expect_exception(network, parent, failure)


def test_the_deletion_of_a_job_is_reported(network):
    failure = Failure("InterruptedError", "was deleted by another client of the cluster", "Ask")
    with network.parent(SLEEPS, input_values={}) as parent:
        network.wait_for_run(parent.question_uuid)
        job = f"question-{parent.question_uuid}"
        network.cluster.kubectl("delete", "job", "-n", network.namespace, job, "--wait=false")
        failures.expect_exception(network, parent, failure)

    assert network.jobs(parent.question_uuid) == []


def test_an_exception_of_the_service_is_the_only_one(network):
    with network.parent("tests/raising:local", input_values={}) as parent:
        event = parent.exception()
        failures.wait_until_settled(network, parent)

    assert "in the cluster" not in event["exception_message"]
    assert event["exception_traceback"]


def test_a_pod_that_fails_after_its_result_gives_no_exception(network):
    with network.parent("failing/sleeps-well:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=7)
        fail(network, pod)
        assert parent.result()["output_values"] == 7
        failures.wait_until_settled(network, parent, kind="result")


def fail(network, pod, **status):
    """Makes a pod on a fake node fail."""
    status = {"phase": "Failed", **status}
    patch = json.dumps({"status": status})
    target = ["pod", pod["metadata"]["name"], "-n", network.namespace, "--subresource=status"]
    network.cluster.kubectl("patch", *target, "--type=merge", "-p", patch)
