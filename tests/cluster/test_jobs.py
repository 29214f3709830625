"""The Job of a question: what it says of itself, and what others may do to it or have done before."""

import contextlib
import datetime
import json
import os
import signal
import time

import pytest

from cluster import wait_for
from network import ASKER, TOPIC, processes

OURS = "twined.octue.com"
ROOT = "6f1f1c36-8a0f-4f43-9d8e-4b8f5a1d7e21"
LONG = f"tests/{'a-long-name-' * 8}end:1.0.0"


@pytest.fixture
def fake(fake_network):
    """A network of fake pods that run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


@contextlib.contextmanager
def replicas(network, count):
    with contextlib.ExitStack() as daemons:
        yield [daemons.enter_context(network.daemon()) for _ in range(count)]


def is_told_once(parent, exception_type):
    exception = parent.exception()
    assert exception["exception_type"] == exception_type, exception
    assert [event["kind"] for event in parent.ends()] == ["exception"], parent.received()
    return exception


def selected(network, resource, **labels):
    selector = ",".join(f"{OURS}/{name.replace('_', '-')}={value}" for name, value in labels.items())
    return network.cluster.kubectl.list(resource, "-n", network.namespace, "-l", selector)


# === What it says of itself ===


def test_a_question_is_found_by_what_it_is(fake):
    of_a_child = {
        "sender": LONG,
        "parent_question_uuid": ROOT,
        "originator_question_uuid": ROOT,
        "attributes": {"parent": LONG, "originator": ASKER},
    }
    with fake.daemon(), fake.parent("tests/echo:local", **of_a_child) as parent:
        question = parent.question_uuid
        pod = fake.wait_for_run(question)

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
                assert len(selected(fake, resource, **labels)) == 1, (resource, labels)
        job = fake.job(question)
        for metadata in (job["metadata"], pod["metadata"]):
            shortened = metadata["labels"][f"{OURS}/parent"]
            assert len(shortened) <= 63 and shortened.startswith("tests.a-long-name-")
            assert metadata["annotations"][f"{OURS}/parent"] == LONG.split(":")[0].replace("/", ".")
            attributes = json.loads(metadata["annotations"][f"{OURS}/attributes"])
            assert attributes == parent.sent
        assert len(selected(fake, "jobs", parent=shortened)) == 1


def test_a_job_is_as_the_contract_has_it(fake):
    with fake.daemon(), fake.parent("tests/echo:local", input_values=[0]) as parent:
        pod = fake.wait_for_run(parent.question_uuid)
        job = fake.job(parent.question_uuid)

    name = f"question-{parent.question_uuid}"
    assert job["metadata"]["name"] == name
    assert pod["metadata"]["name"].startswith(f"{name}-")
    assert len(pod["metadata"]["name"]) == len(name) + 6
    listed = fake.cluster.kubectl("get", "pods", "-n", fake.namespace)
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


def test_each_attempt_has_a_name(fake):
    fake.settings["defaults"]["environment"] |= {"FAKE_RUN": "0s", "FAKE_EXIT": "3"}
    fake.settings["rules"] = [{"services": ["tests/echo"], "retry": {"failed": {"times": 1}}}]
    with fake.daemon(), fake.parent("tests/echo:local", retry_count=2) as parent:
        parent.exception()
        name = f"question-{parent.question_uuid}-r2"
        attempts = {
            job["metadata"]["name"]: job["metadata"]["labels"][f"{OURS}/attempt"]
            for job in fake.jobs(parent.question_uuid)
        }
        assert attempts == {name: "0", f"{name}-a1": "1"}
        assert len(parent.ends()) == 1


# === Made once ===


def test_a_question_that_comes_often_and_to_two_replicas_runs_once(fake):
    with replicas(fake, 2):
        parents = [fake.parent("tests/echo:local") for _ in range(10)]
        for _ in range(4):
            for parent in parents:
                parent.publish()
        for parent in parents:
            fake.wait_for_run(parent.question_uuid)
            parent.publish()
        for parent in parents:
            assert len(fake.pods(parent.question_uuid)) == 1
            assert len(fake.jobs(parent.question_uuid)) == 1
            parent.answer_for_child(output_values=1)
        for parent in parents:
            assert [event["kind"] for event in parent.ends()] == ["result"]
            parent.publish()
            assert len(fake.pods(parent.question_uuid)) <= 1
            parent.close()
        assert len(fake.jobs()) == len(parents)


# === Deleted by hand ===


@pytest.mark.parametrize("count", [1, 2])
def test_a_pod_that_is_deleted_ends_its_question(network, count):
    with replicas(network, count), network.parent("deaths/sleeps:local") as parent:
        pod = network.wait_for_run(parent.question_uuid)["metadata"]
        network.cluster.kubectl("delete", "pod", pod["name"], "-n", network.namespace)

        exception = is_told_once(parent, "InterruptedError")

        assert "deleted" in exception["exception_message"], exception
        condition = lambda: network.job(parent.question_uuid)["status"]["conditions"]  # noqa: E731
        assert any(found["type"] == "Failed" for found in condition())
        assert len(network.pods(parent.question_uuid)) == 0, "no other is made"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_a_job_that_is_deleted_is_told_once(network, cascade, count):
    with replicas(network, count), network.parent("deaths/sleeps:local") as parent:
        uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
        delete(network, parent, cascade)

        exception = is_told_once(parent, "InterruptedError")

        assert "deleted" in exception["exception_message"], exception
        assert not processes(uid)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pod_whose_job_is_deleted_without_it_is_heard_to_its_end(network, count):
    with replicas(network, count), network.parent("deaths/sleeps:local") as parent:
        pod = network.wait_for_run(parent.question_uuid)["metadata"]
        delete(network, parent, "orphan")
        orphan = lambda: "ownerReferences" not in network.pods(parent.question_uuid)[0]["metadata"]  # noqa: E731
        wait_for(orphan, "it is nobody's")
        assert parent.ends() == [], "it runs on, and may answer"

        for process in processes(pod["uid"]):
            os.kill(int(process), signal.SIGKILL)

        is_told_once(parent, "InterruptedError")
        network.cluster.kubectl("delete", "pod", pod["name"], "-n", network.namespace)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_a_job_that_is_deleted_while_nobody_looks_is_found_by_the_sweep(fake, count):
    asked = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=31)
    long_ago = {"attributes": {"datetime": asked.isoformat()}}
    with fake.daemon():
        parent = fake.parent("tests/echo:local", **long_ago)
        fake.wait_for_run(parent.question_uuid)
        runs = fake.parent("tests/echo:local", **long_ago)
        fake.wait_for_run(runs.question_uuid)
    delete(fake, parent, "foreground")

    with replicas(fake, count):
        exception = is_told_once(parent, "RuntimeError")

        assert "nothing of its run is left" in exception["exception_message"]
        assert runs.ends() == [], "what is there is not told as lost"
    parent.close()
    runs.close()


def delete(network, parent, cascade):
    name = f"question-{parent.question_uuid}"
    network.cluster.kubectl(
        "delete", "job", name, "-n", network.namespace, f"--cascade={cascade}", "--wait=false"
    )


# === On a node that is down ===


@pytest.mark.long
def test_a_question_whose_node_never_says_that_its_pod_is_gone_can_be_cancelled(fake):
    fake.settings["defaults"]["environment"] |= {"FAKE_STOP": "1h"}
    with fake.daemon(), fake.parent("tests/echo:local") as parent:
        pod = fake.wait_for_run(parent.question_uuid)["metadata"]["name"]

        parent.cancel()

        assert parent.exception(within=150)["exception_type"] == "InterruptedError"
        (left,) = fake.pods(parent.question_uuid)
        assert left["metadata"]["deletionTimestamp"] and left["status"]["phase"] == "Running"
        fake.cluster.kubectl(
            "delete", "pod", pod, "-n", fake.namespace, "--force", "--grace-period=0"
        )


# === Made before us ===


def reference(network, parent, **changed):
    """The Job that the reference makes of a question."""
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
    (job,) = wait_for(is_ours, "its Job is ours")
    assert job["spec"]["ttlSecondsAfterFinished"] == 24 * 3600
    return job


def adopted(network, service, **question):
    """A question that the reference runs, and then comes to us."""
    parent = network.parent(service, publish=False, **question)
    network.cluster.kubectl.create(reference(network, parent))
    uid = network.wait_for_run(parent.question_uuid)["metadata"]["uid"]
    parent.publish()
    wait_until_adopted(network, parent)
    return parent, uid


def test_the_silent_death_of_the_references_pod_is_told(network):
    with network.daemon():
        parent, uid = adopted(network, "deaths/sleeps:local", input_values={"n": 1})

        for process in processes(uid):
            os.kill(int(process), signal.SIGKILL)

        is_told_once(parent, "RuntimeError")
        assert len(network.pods(parent.question_uuid)) == 1, "it is not run six times more"
        parent.close()


def test_the_references_pod_can_be_cancelled(network):
    with replicas(network, 2):
        parent, uid = adopted(network, "deaths/is-deaf:local", input_values=[1, 2.5, "three"])

        parent.cancel()

        is_told_once(parent, "InterruptedError")
        assert not processes(uid)
        network.wait_until_gone(parent.question_uuid)
        parent.close()


def test_the_references_pod_answers(network):
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

        settled = f"{OURS}/settled"
        labels = lambda: network.job(parent.question_uuid)["metadata"]["labels"]  # noqa: E731
        wait_for(lambda: settled in labels(), "its Job is settled")
        assert [event["kind"] for event in parent.ends()] == ["result"]
    parent.close()


@pytest.mark.long
def test_a_pod_that_ran_long_before_us_is_seen(fake):
    """Both replicas have forgotten the pod of a Job that was not theirs when it becomes so."""
    with replicas(fake, 2) as daemons:
        parent = fake.parent("tests/echo:local", publish=False)
        fake.cluster.kubectl.create(reference(fake, parent))
        fake.wait_for_run(parent.question_uuid)
        time.sleep(65)
        parent.publish()
        wait_until_adopted(fake, parent)

        running = 'twined_questions{state="running"}'
        for daemon in daemons:
            wait_for(lambda: daemon.metrics().get(running) == 1, "it is seen to run")  # noqa: B023
    parent.close()


@pytest.mark.parametrize("changed", [{"image": "registry.test/other"}, {"args": ["--attributes", "{}"]}])
def test_a_strangers_job_of_that_name_is_not_touched(fake, changed):
    parent = fake.parent("tests/echo:local", publish=False)
    fake.cluster.kubectl.create(reference(fake, parent, **changed))
    fake.wait_for_run(parent.question_uuid)
    before = fake.job(parent.question_uuid)
    with replicas(fake, 2):
        parent.publish()

        exception = is_told_once(parent, "RuntimeError")

        assert f"question-{parent.question_uuid}" in exception["exception_message"]
        rejected = wait_for(fake.rejected, "the question is rejected")
        assert [row["ordering_key"] for row in rejected] == [parent.question_uuid]
        parent.cancel()
        fake.wait_for_row(parent.question_uuid, "cancellation")
        assert parent.ends()[1:] == []
        after = fake.job(parent.question_uuid)
        for of in (before, after):
            of["metadata"].pop("resourceVersion")
        assert (after["metadata"], after["spec"]) == (before["metadata"], before["spec"])
    parent.close()
