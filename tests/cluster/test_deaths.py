"""Every way to die that is seen at once, and what the one who asked reads of it.

All are asked side by side, of one daemon: those on the real node first, and then those that only a
fake node can have.
"""

import json

import pytest

import deaths
from deaths import Way, on_fake_nodes

SLEEPS = "deaths/sleeps:local"
SMALL = {"memory": {"default": "32Mi", "limit": "request"}}

REAL = {
    # It ends by itself.
    "exits": Way("RuntimeError", "ended with exit code 3", "last lines of its output",
                 tail="The wind was too much.\n"),
    "answers-nothing": Way("RuntimeError", "exit code 0, but without a result",
                           "what its code returns"),
    "is-loud": Way("RuntimeError", "exit code 1", tail="This is line 5000\n"),
    "lacks-a-program": Way("RuntimeError", "exit code 127", "a command does not exist",
                           "the image's entry point"),
    # It is killed.
    "is-killed": Way("RuntimeError", "signal 9 (SIGKILL; exit code 137)",
                     "for lack of memory of the node"),
    "is-told-to-stop": Way("RuntimeError", "signal 15 (SIGTERM; exit code 143)",
                           "asked it to stop"),
    "crashes": Way("RuntimeError", "signal 11 (SIGSEGV; exit code 139)", "a compiled package"),
    "aborts": Way("RuntimeError", "signal 6 (SIGABRT; exit code 134)", "last lines"),
    "wants-another-processor": Way("RuntimeError", "signal 4 (SIGILL; exit code 132)",
                                   "needs another processor"),
    # It takes more than it may.
    "eats-memory": Way("MemoryError", "its limit is 32Mi", "ask again with more `memory`", **SMALL),
    "child-eats-memory": Way("MemoryError", "its limit is 32Mi", "with more `memory`", **SMALL),
    "hides-its-end": Way("MemoryError", "its limit is 32Mi", "with more `memory`", **SMALL),
    "fills-disk": Way("RuntimeError", "more to its disk than its limit of 32Mi",
                      "with more `ephemeral_storage`", within=120,
                      ephemeral_storage={"default": "32Mi", "limit": "request"},
                      environment={"MEBIBYTES": "48"}),
    "fills-volume": Way("RuntimeError", "more to a volume than that may hold",
                        "raise the volume's size", within=120,
                        volumes=[{"path": "/scratch", "empty_dir": "8Mi"}],
                        environment={"MEBIBYTES": "16"}),
    "takes-too-long": Way("TimeoutError", "longer than its deadline of 4 s", "ask for less at once",
                          of=SLEEPS, deadline="4s"),
    "is-deaf": Way("TimeoutError", "longer than its deadline of 4 s", "raise the deadline",
                   deadline="4s"),
    # It cannot be started.
    "has-no-octue": Way("RuntimeError", "its command is not in it", "mend the image's entry point"),
    "is-damaged": Way("RuntimeError", "exec format error", "docker build --platform"),
    "has-no-shell": Way("RuntimeError", "its command is not in it, or the interpreter that its `#!`",
                        "mend the image's entry point"),
    "may-not-be-run": Way("RuntimeError", "its command may not be executed",
                          "the command in the service's settings", of=SLEEPS,
                          command=["/etc/revision"]),
    "knows-too-much": Way("RuntimeError", "longer than the system allows", "ask with less",
                          of=SLEEPS, environment={"LONG": "x" * 140_000}),
    "mounts-over-a-file": Way("RuntimeError", "a volume cannot be put where it is wanted",
                              "the volumes in the service's settings", of=SLEEPS,
                              volumes=[{"path": "/etc/revision", "empty_dir": "8Mi"}]),
}

# What only a kubelet, or another cluster, would say: as the status of a fake node's pod.
FAKE = {
    "had-no-cpu": ("RuntimeError", "had not enough `cpu` left", "ask again",
                   {"reason": "OutOfcpu", "message": "Pod was rejected: Node didn't have enough "
                    "resource: cpu, requested: 1000, used: 900, capacity: 1000"}),
    "had-no-memory": ("RuntimeError", "had not enough `memory` left", "ask again",
                      {"reason": "OutOfmemory", "message": "Pod was rejected: Node didn't have "
                       "enough resource: memory, requested: 1, used: 1, capacity: 1"}),
    "had-the-wrong-node": ("RuntimeError", "does not fit what its settings want of a node",
                           "the node selector",
                           {"reason": "NodeAffinity", "message": "Pod was rejected: Predicate "
                            "NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}),
    "was-tainted": ("RuntimeError", "does not fit what its settings want", "tolerations",
                    {"reason": "TaintToleration", "message": "Pod was rejected: Predicate "
                     "TaintToleration failed"}),
    "had-no-device": ("RuntimeError", "refused its pod with `UnexpectedAdmissionError`",
                      "the node's devices",
                      {"reason": "UnexpectedAdmissionError", "message": "Pod was rejected: Allocate "
                       "failed due to no healthy devices present, which is unexpected"}),
    "had-too-many-volumes": ("RuntimeError", "can attach no more volumes", "ask again",
                             {"reason": "VolumeAttachmentLimitExceeded", "message": "Pod was "
                              "rejected: Node has reached its volume attachment limit"}),
    "was-shut-down": ("InterruptedError", "because the node was shut down", "ask again",
                      {"reason": "NodeShutdown", "message": "Pod was rejected as the node is shutting "
                       "down."}),
    "came-under-pressure": ("InterruptedError", "because the node ran low on memory", "ask again",
                            {"reason": "Evicted", "message": "The node was low on resource: memory. "
                             "Threshold quantity: 100Mi, available: 7Mi."}),
    "gave-way": ("InterruptedError", "to make room for a critical pod", "ask again",
                 {"reason": "Preempting", "message": "Preempted in order to admit critical pod"}),
    "failed-in-silence": ("RuntimeError", "failed, and nobody knows how", "ask again", {}),
}
FAKE_WAYS = {
    name: Way(exception, says, remedy, **on_fake_nodes(start="never"))
    for name, (exception, says, remedy, _) in FAKE.items()
}
# What fake nodes can play by themselves.
PLAYED = {
    "lost-its-node": Way("RuntimeError", "does not know how it ended", "ask again",
                         **on_fake_nodes(exit="137", reason="ContainerStatusUnknown")),
    "was-out-of-memory": Way("MemoryError", "killed for the memory", "has no limit",
                             **on_fake_nodes(exit="137", reason="OOMKilled")),
    "called-what-it-may-not": Way("RuntimeError", "signal 31 (SIGSYS; exit code 159)",
                                  "a system call", **on_fake_nodes(exit="159")),
    "has-no-name": Way("ServiceNotFound", "no name of an image", "check the revision tag",
                       **on_fake_nodes(waiting="InvalidImageName", message="Failed to apply default "
                                       "image tag: couldn't parse image name")),
}
WAYS = {**REAL, **FAKE_WAYS, **PLAYED}


@pytest.fixture(scope="module")
def network(shared_network):
    shared_network.settings["defaults"]["cpus"] = {"default": "20m"}
    shared_network.settings["defaults"]["memory"] = {"default": "32Mi"}
    deaths.prepare(shared_network, WAYS)
    shared_network.settings["rules"] += [
        {"services": ["deaths/sleeps-*"], **on_fake_nodes(run="forever")},
    ]
    with shared_network.daemon():
        yield shared_network


@pytest.fixture(scope="module")
def asked(network, request):
    """Those who asked, by the way that they are to hear of, as far as it is tested now."""
    wanted = {
        item.callspec.params["way"] for item in request.session.items if hasattr(item, "callspec")
        and item.path == request.path and "way" in item.callspec.params
    }
    parents = deaths.ask(network, {name: way for name, way in WAYS.items() if name in wanted})
    yield parents
    for parent in parents.values():
        parent.close()


@pytest.mark.parametrize("way", [*REAL, *PLAYED])
def test_a_death_is_told_with_its_cause_and_its_remedy(network, asked, way):
    event = deaths.told(network, asked[way], WAYS[way])

    if way == "is-loud":
        assert event["exception_traceback"][0] != "This is line 1\n"
        assert 10 < len(event["exception_traceback"]) <= 80


@pytest.mark.parametrize("way", FAKE)
def test_what_a_kubelet_would_say_is_told(network, asked, way):
    parent = asked[way]
    pod = network.wait_for_pod(parent.question_uuid, lambda pod: pod["spec"].get("nodeName"))
    end(network, pod, **FAKE[way][-1])

    deaths.told(network, parent, WAYS[way])


def test_a_pod_that_is_deleted_by_hand_is_told(network):
    way = Way("InterruptedError", "was deleted in the cluster, by hand or with its Job", "ask again")
    with network.parent(SLEEPS, input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        network.cluster.kubectl("delete", "pod", "-n", network.namespace, name(pod), "--wait=false")
        deaths.told(network, parent, way)


def test_a_job_that_is_deleted_by_hand_is_told(network):
    way = Way("InterruptedError", "was deleted by another client of the cluster", "Ask")
    with network.parent(SLEEPS, input_values={}) as parent:
        network.wait_for_run(parent.question_uuid)
        job = f"question-{parent.question_uuid}"
        network.cluster.kubectl("delete", "job", "-n", network.namespace, job, "--wait=false")
        deaths.told(network, parent, way)

    assert network.jobs(parent.question_uuid) == []


def test_an_exception_of_its_own_is_the_only_one(network):
    with network.parent("tests/raising:local", input_values={}) as parent:
        event = parent.exception()
        deaths.settled(network, parent)

    assert "in the cluster" not in event["exception_message"]
    assert event["exception_traceback"]


def test_a_result_and_then_a_failure_is_a_result(network):
    with network.parent("deaths/sleeps-well:local", input_values={}) as parent:
        pod = network.wait_for_run(parent.question_uuid)
        parent.answer_for_child(output_values=7)
        end(network, pod)
        assert parent.result()["output_values"] == 7
        deaths.settled(network, parent, kind="result")


def end(network, pod, **status):
    """Makes a fake node's pod fail."""
    status = {"phase": "Failed", **status}
    patch = json.dumps({"status": status})
    at = ["-n", network.namespace, name(pod), "--subresource=status", "--type=merge", "-p", patch]
    network.cluster.kubectl("patch", "pod", *at)


def name(pod):
    return pod["metadata"]["name"]
