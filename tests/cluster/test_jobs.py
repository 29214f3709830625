"""The Job of a question: its fields, and what other clients do to it or have created before."""

import contextlib
import datetime
import json
import os
import signal
import time

import pytest

from cluster import wait_for
from network import PARENT_SRUID, TOPIC, processes

LABELS = "twined.octue.com"
ROOT = "6f1f1c36-8a0f-4f43-9d8e-4b8f5a1d7e21"
LONG_SRUID = f"tests/{'a-long-name-' * 8}end:1.0.0"


@pytest.fixture
def endless_network(fake_network):
    """A network whose fake pods run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


@contextlib.contextmanager
def replicas(network, count):
    with contextlib.ExitStack() as daemons:
        yield [daemons.enter_context(network.daemon()) for _ in range(count)]


def expect_one_exception(parent, exception_type):
    exception = parent.exception()
    assert exception["exception_type"] == exception_type, exception
    assert [event["kind"] for event in parent.ends()] == ["exception"], parent.received()
    return exception


def selected(network, resource, **labels):
    """The objects with these labels of ours."""
    parts = (f"{LABELS}/{name.replace('_', '-')}={value}" for name, value in labels.items())
    return network.cluster.kubectl.list(resource, "-n", network.namespace, "-l", ",".join(parts))


# === Fields ===


def test_jobs_and_pods_are_found_by_labels_of_their_question(endless_network):
    of_a_child = {
        "sender": LONG_SRUID,
        "parent_question_uuid": ROOT,
        "originator_question_uuid": ROOT,
        "attributes": {"parent": LONG_SRUID, "originator": PARENT_SRUID},
    }
    with (
        endless_network.daemon(),
        endless_network.parent("tests/echo:local", **of_a_child) as parent,
    ):
        question = parent.question_uuid
        pod = endless_network.wait_for_run(question)

        for labels in (
            {"question": question},
            {"parent_question": ROOT},
            {"originator_question": ROOT},
            {"originator": "local.local"},
            {"service": "tests.echo", "revision": "local"},
            {"topic": TOPIC},
            {"retry": "0", "attempt": "0"},
        ):
            for resource in ("jobs", "pods"):
                assert len(selected(endless_network, resource, **labels)) == 1, (resource, labels)
        job = endless_network.job(question)
        for metadata in (job["metadata"], pod["metadata"]):
            shortened = metadata["labels"][f"{LABELS}/parent"]
            assert len(shortened) <= 63 and shortened.startswith("tests.a-long-name-")
            annotations = metadata["annotations"]
            assert annotations[f"{LABELS}/parent"] == LONG_SRUID.split(":")[0].replace("/", ".")
            attributes = json.loads(annotations[f"{LABELS}/attributes"])
            assert attributes == parent.sent
        assert len(selected(endless_network, "jobs", parent=shortened)) == 1


def test_a_job_has_the_fields_of_the_contract(endless_network):
    with (
        endless_network.daemon(),
        endless_network.parent("tests/echo:local", input_values=[0]) as parent,
    ):
        pod = endless_network.wait_for_run(parent.question_uuid)
        job = endless_network.job(parent.question_uuid)

    name = f"question-{parent.question_uuid}"
    assert job["metadata"]["name"] == name
    assert pod["metadata"]["name"].startswith(f"{name}-")
    assert len(pod["metadata"]["name"]) == len(name) + 6
    listed = endless_network.cluster.kubectl("get", "pods", "-n", endless_network.namespace)
    assert f"{name}-" in listed
    spec = job["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 0)
    assert spec["ttlSecondsAfterFinished"] == 24 * 3600
    template = spec["template"]
    safe_to_evict = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    assert template["metadata"]["annotations"][safe_to_evict] == "false"
    assert template["spec"]["restartPolicy"] == "Never"
    assert template["spec"]["terminationGracePeriodSeconds"] == 3
    assert template["spec"]["activeDeadlineSeconds"] == 7 * 24 * 3600
    (container,) = template["spec"]["containers"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["command"] == ["octue", "twined", "question", "ask-local"]
    assert container["args"][0::2] == ["--attributes", "--input-values"]
    assert json.loads(container["args"][1]) == parent.sent
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment["TWINED_SERVICES_TOPIC_NAME"] == TOPIC
    assert environment["COMPUTE_PROVIDER"] == "GOOGLE_KUEUE"
    assert environment["OCTUE_SERVICE_REVISION_TAG"] == "local"


def test_each_attempt_has_its_own_name(endless_network):
    endless_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "0s", "FAKE_EXIT": "3"}
    endless_network.settings["rules"] = [
        {"services": ["tests/echo"], "retry": {"failed": {"times": 1}}}
    ]
    with (
        endless_network.daemon(),
        endless_network.parent("tests/echo:local", retry_count=2) as parent,
    ):
        parent.exception()
        name = f"question-{parent.question_uuid}-r2"
        attempts = {
            job["metadata"]["name"]: job["metadata"]["labels"][f"{LABELS}/attempt"]
            for job in endless_network.jobs(parent.question_uuid)
        }
        assert attempts == {name: "0", f"{name}-a1": "1"}
        assert len(parent.ends()) == 1


# === Created once ===


def test_a_question_that_is_redelivered_to_two_replicas_runs_once(endless_network):
    with replicas(endless_network, 2):
        parents = [endless_network.parent("tests/echo:local") for _ in range(10)]
        for _ in range(4):
            for parent in parents:
                parent.publish()
        for parent in parents:
            endless_network.wait_for_run(parent.question_uuid)
            parent.publish()
        for parent in parents:
            assert len(endless_network.pods(parent.question_uuid)) == 1
            assert len(endless_network.jobs(parent.question_uuid)) == 1
            parent.answer_for_child(output_values=1)
        for parent in parents:
            assert [event["kind"] for event in parent.ends()] == ["result"]
            parent.publish()
            assert len(endless_network.pods(parent.question_uuid)) <= 1
            parent.close()
        assert len(endless_network.jobs()) == len(parents)


# === Deleted by another client ===


@pytest.mark.parametrize("count", [1, 2])
def test_the_deletion_of_its_pod_ends_a_question(network, count):
    with replicas(network, count), network.parent("failing/sleeps:local") as parent:
        pod = network.wait_for_run(parent.question_uuid)["metadata"]
        network.cluster.kubectl("delete", "pod", pod["name"], "-n", network.namespace)

        exception = expect_one_exception(parent, "InterruptedError")

        assert "deleted" in exception["exception_message"], exception
        condition = lambda: network.job(parent.question_uuid)["status"]["conditions"]  # noqa: E731
        assert any(found["type"] == "Failed" for found in condition())
        assert len(network.pods(parent.question_uuid)) == 0, "the Job does not replace the pod"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_the_deletion_of_a_job_is_reported_once(network, cascade, count):
    with replicas(network, count), network.parent("failing/sleeps:local") as parent:
        uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
        delete(network, parent, cascade)

        exception = expect_one_exception(parent, "InterruptedError")

        assert "deleted" in exception["exception_message"], exception
        assert not processes(uid)


@pytest.mark.parametrize("count", [1, 2])
def test_an_orphaned_pod_is_observed_until_its_end(network, count):
    with replicas(network, count), network.parent("failing/sleeps:local") as parent:
        pod = network.wait_for_run(parent.question_uuid)["metadata"]
        delete(network, parent, "orphan")
        found = lambda: network.pods(parent.question_uuid)[0]["metadata"]  # noqa: E731
        wait_for(lambda: "ownerReferences" not in found(), "the pod has no owner")
        assert parent.ends() == [], "the pod still runs, and may answer"

        for process in processes(pod["uid"]):
            os.kill(int(process), signal.SIGKILL)

        expect_one_exception(parent, "InterruptedError")
        network.cluster.kubectl("delete", "pod", pod["name"], "-n", network.namespace)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_the_sweep_finds_a_job_that_was_deleted_while_no_daemon_ran(endless_network, count):
    asked = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=31)
    long_ago = {"attributes": {"datetime": asked.isoformat()}}
    with endless_network.daemon():
        parent = endless_network.parent("tests/echo:local", **long_ago)
        endless_network.wait_for_run(parent.question_uuid)
        running = endless_network.parent("tests/echo:local", **long_ago)
        endless_network.wait_for_run(running.question_uuid)
    delete(endless_network, parent, "foreground")

    with replicas(endless_network, count):
        exception = expect_one_exception(parent, "RuntimeError")

        assert "nothing of its run is left" in exception["exception_message"]
        assert running.ends() == [], "a run that exists is not reported as lost"
    parent.close()
    running.close()


def delete(network, parent, cascade):
    name = f"question-{parent.question_uuid}"
    network.cluster.kubectl(
        "delete", "job", name, "-n", network.namespace, f"--cascade={cascade}", "--wait=false"
    )


# === On a node that is down ===


@pytest.mark.long
def test_a_question_whose_node_does_not_report_its_end_can_be_cancelled(endless_network):
    endless_network.settings["defaults"]["environment"] |= {"FAKE_STOP": "1h"}
    with endless_network.daemon(), endless_network.parent("tests/echo:local") as parent:
        pod = endless_network.wait_for_run(parent.question_uuid)["metadata"]["name"]

        parent.cancel()

        assert parent.exception(within=150)["exception_type"] == "InterruptedError"
        (left,) = endless_network.pods(parent.question_uuid)
        assert left["metadata"]["deletionTimestamp"] and left["status"]["phase"] == "Running"
        endless_network.cluster.kubectl(
            "delete", "pod", pod, "-n", endless_network.namespace, "--force", "--grace-period=0"
        )


# === Created by the reference ===


def reference(network, parent, **changed):
    """The Job that the reference creates for a question."""
    namespace, _, tag = parent.recipient.rpartition(":")
    environment = {
        **network.settings["defaults"]["environment"],
        "TWINED_SERVICES_TOPIC_NAME": TOPIC,
        "COMPUTE_PROVIDER": "GOOGLE_KUEUE",
        "OCTUE_SERVICE_REVISION_TAG": tag,
    }
    arguments = ["--attributes", json.dumps(parent.attributes_of_question())]
    for option in ("input_values", "input_manifest"):
        if parent.data.get(option):
            arguments += [f"--{option.replace('_', '-')}", json.dumps(parent.data[option])]
    container = {
        "name": "question",
        "image": f"{network.cluster.repository}/{parent.recipient}",
        "command": ["octue", "twined", "question", "ask-local"],
        "args": arguments,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "64Mi"}},
        **changed,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"question-{parent.question_uuid}",
            "namespace": network.namespace,
        },
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def wait_until_adopted(network, parent):
    is_ours = lambda: network.jobs(parent.question_uuid)  # noqa: E731
    (job,) = wait_for(is_ours, "the Job is adopted")
    assert job["spec"]["ttlSecondsAfterFinished"] == 24 * 3600
    return job


def adopted(network, service, **question):
    """A question that the reference launched before it is delivered to our daemon."""
    parent = network.parent(service, publish=False, **question)
    network.cluster.kubectl.create(reference(network, parent))
    uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
    parent.publish()
    wait_until_adopted(network, parent)
    return parent, uid


def test_a_silent_failure_of_the_references_pod_is_reported(network):
    with network.daemon():
        parent, uid = adopted(network, "failing/sleeps:local", input_values={"n": 1})

        for process in processes(uid):
            os.kill(int(process), signal.SIGKILL)

        expect_one_exception(parent, "RuntimeError")
        assert len(network.pods(parent.question_uuid)) == 1, "the Job does not replace the pod"
        parent.close()


def test_the_references_pod_can_be_cancelled(network):
    with replicas(network, 2):
        parent, uid = adopted(
            network, "failing/ignores-sigterm:local", input_values=[1, 2.5, "three"]
        )

        parent.cancel()

        expect_one_exception(parent, "InterruptedError")
        assert not processes(uid)
        network.wait_until_gone(parent.question_uuid)
        parent.close()


def test_a_result_of_the_references_pod_settles_its_job(network):
    values = {"n": 3}
    parent = network.parent("tests/echo:local", publish=False, input_values=values)
    job = reference(network, parent)
    pod = job["spec"]["template"]["spec"]
    pod["volumes"] = [network.cluster.offline.volume()]
    pod["containers"][0]["volumeMounts"] = [network.cluster.offline.mount()]
    network.cluster.kubectl.create(job)
    with network.daemon():
        parent.publish()
        wait_until_adopted(network, parent)

        assert parent.result()["output_values"]["received"] == values

        settled = f"{LABELS}/settled"
        labels = lambda: network.job(parent.question_uuid)["metadata"]["labels"]  # noqa: E731
        wait_for(lambda: settled in labels(), "the Job is settled")
        assert [event["kind"] for event in parent.ends()] == ["result"]
    parent.close()


@pytest.mark.long
def test_a_pod_that_ran_long_before_its_job_was_adopted_is_seen(endless_network):
    """By the time of the adoption, both replicas have forgotten the pod."""
    with replicas(endless_network, 2) as daemons:
        parent = endless_network.parent("tests/echo:local", publish=False)
        endless_network.cluster.kubectl.create(reference(endless_network, parent))
        endless_network.wait_for_run(parent.question_uuid)
        time.sleep(65)
        parent.publish()
        wait_until_adopted(endless_network, parent)

        running = 'twined_questions{state="running"}'
        for daemon in daemons:
            seen = lambda: daemon.metrics().get(running) == 1  # noqa: E731, B023
            wait_for(seen, f"{daemon.name} sees that it runs")
    parent.close()


@pytest.mark.parametrize(
    "changed", [{"image": "registry.test/other"}, {"args": ["--attributes", "{}"]}]
)
def test_another_clients_job_of_the_same_name_is_not_changed(endless_network, changed):
    parent = endless_network.parent("tests/echo:local", publish=False)
    endless_network.cluster.kubectl.create(reference(endless_network, parent, **changed))
    endless_network.wait_for_run(parent.question_uuid)
    before = endless_network.job(parent.question_uuid)
    with replicas(endless_network, 2):
        parent.publish()

        exception = expect_one_exception(parent, "RuntimeError")

        assert f"question-{parent.question_uuid}" in exception["exception_message"]
        rejected = wait_for(endless_network.rejected_messages, "the question is rejected")
        assert [row["ordering_key"] for row in rejected] == [parent.question_uuid]
        parent.cancel()
        endless_network.wait_for_row(parent.question_uuid, "cancellation")
        assert parent.ends()[1:] == []
        after = endless_network.job(parent.question_uuid)
        for job in (before, after):
            job["metadata"].pop("resourceVersion")
        assert (after["metadata"], after["spec"]) == (before["metadata"], before["spec"])
    parent.close()
