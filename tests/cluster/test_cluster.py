"""The cluster behaves as the other tests assume."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import jobs
import cleanup
from cluster import Cluster

HERE = Path(__file__).parent
ECHO = "tests/echo:local"
NOTHING = "failing/answers-nothing:local"


# === The real node ===


def test_a_job_completes_in_the_image_of_a_service(cluster, namespace):
    job = jobs.job(namespace, "version", cluster.image(ECHO), "octue", "--version")
    cluster.kubectl.create(job)

    assert jobs.wait_for_end(cluster, namespace, "version") == "Complete"
    assert "0.69.1" in cluster.kubectl("logs", "-n", namespace, "job/version")


def test_a_failed_pod_reports_its_exit_code_and_last_lines(cluster, namespace):
    cluster.kubectl.create(jobs.job(namespace, "exits", cluster.image("failing/exits:local")))

    assert jobs.wait_for_end(cluster, namespace, "exits") == "Failed"
    _, fields = jobs.state(jobs.only_pod(cluster, namespace, "exits"))
    assert fields["exitCode"] == 3
    assert fields["message"] == "The wind was too much.\n"


def test_a_container_over_its_memory_limit_is_oom_killed(cluster, namespace):
    image = cluster.image("failing/eats-memory:local")
    limit = {"limits": {"memory": "64Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "eats", image, resources=limit))

    assert jobs.wait_for_end(cluster, namespace, "eats") == "Failed"
    _, fields = jobs.state(jobs.only_pod(cluster, namespace, "eats"))
    assert (fields["reason"], fields["exitCode"]) == ("OOMKilled", 137)


def test_a_container_over_its_storage_limit_is_evicted(cluster, namespace):
    image = cluster.image("failing/fills-disk:local")
    limit = {"limits": {"ephemeral-storage": "50Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "fills", image, resources=limit))

    assert jobs.wait_for_end(cluster, namespace, "fills") == "Failed"
    assert jobs.only_pod(cluster, namespace, "fills")["status"]["reason"] == "Evicted"


@pytest.mark.parametrize(
    "service, code",
    [("answers-nothing", 0), ("is-loud", 1), ("is-killed", 137), ("crashes", 139)],
)
def test_each_failing_image_has_its_exit_code(cluster, namespace, service, code):
    cluster.kubectl.create(jobs.job(namespace, service, cluster.image(f"failing/{service}:local")))

    fields = jobs.wait_for_state(cluster, namespace, service, "terminated")
    assert fields["exitCode"] == code


@pytest.mark.parametrize("service", ["has-no-octue", "is-damaged"])
def test_a_container_that_cannot_start_reports_an_error(cluster, namespace, service):
    cluster.kubectl.create(jobs.job(namespace, service, cluster.image(f"failing/{service}:local")))

    fields = jobs.wait_for_state(cluster, namespace, service, "terminated")
    assert fields["reason"] in ("StartError", "Error")
    assert fields["exitCode"] != 0


def test_an_image_that_does_not_exist_cannot_be_pulled(cluster, namespace):
    cluster.kubectl.create(jobs.job(namespace, "missing", cluster.image("tests/nobody:local")))

    jobs.wait_for_state(cluster, namespace, "missing", "waiting", "ErrImagePull")
    jobs.wait_for_state(cluster, namespace, "missing", "waiting", "ImagePullBackOff")


def test_a_pull_waits_while_the_registry_holds_the_image(own_cluster, namespace):
    image = own_cluster.store.add_unpulled(f"failing/{namespace}:1", like=NOTHING)

    with own_cluster.registry.holding(image):
        own_cluster.kubectl.create(jobs.job(namespace, "pulled", image))
        requested = lambda: own_cluster.registry.pulls.get(image)  # noqa: E731
        own_cluster.wait_for(requested, "the image is requested")
        kind, fields = jobs.state(jobs.only_pod(own_cluster, namespace, "pulled"))
        assert kind != "terminated", fields

    assert jobs.wait_for_end(own_cluster, namespace, "pulled") == "Complete"


def test_a_refused_pull_is_retried(own_cluster, namespace):
    image = own_cluster.store.add_unpulled(f"failing/{namespace}:1", like=NOTHING)

    with own_cluster.registry.refusing(image, 403):
        own_cluster.kubectl.create(jobs.job(namespace, "refused", image))
        fields = jobs.wait_for_state(own_cluster, namespace, "refused", "waiting", "ErrImagePull")
        assert "403" in fields["message"]

    assert jobs.wait_for_end(own_cluster, namespace, "refused") == "Complete"


def test_the_deletion_of_a_job_ends_its_process(own_cluster, namespace):
    image = own_cluster.image("failing/ignores-sigterm:local")
    mark = f"MARK_OF_{namespace}".replace("-", "_")
    own_cluster.kubectl.create(jobs.job(namespace, "sleeps", image, env={mark: "1"}))
    jobs.wait_for_state(own_cluster, namespace, "sleeps", "running")
    assert has_process_with(mark)

    own_cluster.kubectl(
        "delete", "job", "sleeps", "-n", namespace, "--cascade=background", "--wait=false"
    )

    own_cluster.wait_for(lambda: not has_process_with(mark), "its process is gone", within=15)


def has_process_with(variable):
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in environment.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_a_pod_reaches_the_host_and_the_api_server(own_cluster, namespace):
    script = (
        "import ssl, urllib.request as u\n"
        f"print(u.urlopen('http://{own_cluster.offline.address}/registry/tests/echo').read())\n"
        "authority = '/var/run/secrets/kubernetes.io/serviceaccount/ca.crt'\n"
        "trusted = ssl.create_default_context(cafile=authority)\n"
        f"print(u.urlopen('{own_cluster.url}/version', context=trusted).read())\n"
    )
    image = own_cluster.image(ECHO)
    own_cluster.kubectl.create(jobs.job(namespace, "reaches", image, "python", "-c", script))

    jobs.wait_for_end(own_cluster, namespace, "reaches")
    logs = own_cluster.kubectl("logs", "-n", namespace, "job/reaches")
    assert "revision_tag" in logs
    assert "v1.36.3" in logs


# === A service ===


def test_a_service_answers_a_question_from_a_pod(own_cluster, namespace, emulator, offline_google):
    assert_answered(own_cluster, namespace, emulator, offline_google(namespace, emulator))


def assert_answered(cluster, namespace, emulator, google, **pod_fields):
    """Runs a question in a pod with what `offline_google` returns, and with these fields."""
    pubsub = pytest.importorskip("google.cloud.pubsub_v1")
    topic, seen = prepare_topic(pubsub, emulator)
    env = google["env"] | {
        "TWINED_SERVICES_TOPIC_NAME": topic,
        "COMPUTE_PROVIDER": "GOOGLE_KUEUE",
        "OCTUE_SERVICE_REVISION_TAG": "local",
    }
    command = ["octue", "twined", "question", "ask-local"]
    command += ["--attributes", json.dumps(question()), "--input-values", "[1, 2]"]
    job = jobs.job(namespace, "asked", cluster.image(ECHO), *command, env=env)
    pod = job["spec"]["template"]["spec"]
    pod.update(pod_fields, volumes=google["volumes"])
    pod["containers"][0]["volumeMounts"] = google["volumeMounts"]

    cluster.kubectl.create(job)

    ended = jobs.wait_for_end(cluster, namespace, "asked")
    assert ended == "Complete", cluster.kubectl("logs", "-n", namespace, "job/asked")
    result = next(event for event in seen() if event["kind"] == "result")
    assert result["output_values"] == {"received": [1, 2], "type": "list"}


def question():
    identifier = str(uuid.uuid4())
    return {
        "uuid": str(uuid.uuid4()),
        "datetime": "2026-11-25T20:00:00.000000+00:00",
        "question_uuid": identifier,
        "originator_question_uuid": identifier,
        "parent": "local/local:local",
        "originator": "local/local:local",
        "sender": "local/local:local",
        "sender_type": "PARENT",
        "sender_sdk_version": "0.69.1",
        "recipient": ECHO,
        "forward_logs": "0",
        "retry_count": "0",
        "save_diagnostics": "SAVE_DIAGNOSTICS_OFF",
    }


def prepare_topic(pubsub, emulator):
    """Creates a topic. Returns its name, and a function that returns the events published to it."""
    os.environ["PUBSUB_EMULATOR_HOST"] = emulator

    try:
        publisher, subscriber = pubsub.PublisherClient(), pubsub.SubscriberClient()
    finally:
        del os.environ["PUBSUB_EMULATOR_HOST"]

    topic = publisher.topic_path("tests", "tests.octue.twined.services")
    publisher.create_topic(name=topic)
    subscription = subscriber.subscription_path("tests", "all")
    subscriber.create_subscription(name=subscription, topic=topic)

    def seen():
        pulled = subscriber.pull(subscription=subscription, max_messages=1000)
        return [json.loads(found.message.data) for found in pulled.received_messages]

    return "tests.octue.twined.services", seen


# === The daemon's account ===


def test_the_account_has_the_rights_of_its_role_and_no_others(cluster, namespace, account):
    kubectl = type(cluster.kubectl)(account(namespace), cluster.folder)
    may = lambda *what: kubectl("auth", "can-i", *what, check=False).strip()  # noqa: E731

    assert may("create", "jobs", "-n", namespace) == "yes"
    assert may("watch", "pods", "-n", namespace) == "yes"
    assert may("get", "secrets", "-n", namespace) == "no"
    assert may("create", "jobs", "-n", "default") == "no"


def test_one_right_can_be_omitted(cluster, namespace, account):
    kubeconfig = account(namespace, name="limited", without=("secrets", "create"))
    kubectl = type(cluster.kubectl)(kubeconfig, cluster.folder)

    assert kubectl("auth", "can-i", "create", "secrets", "-n", namespace, check=False) == "no\n"
    assert kubectl("auth", "can-i", "create", "jobs", "-n", namespace) == "yes\n"


# === Kueue ===


def test_a_queue_holds_jobs_until_quota_is_free(own_cluster, namespace, queue):
    check_queue(own_cluster, namespace, queue(namespace, cpu="1"))


def test_the_older_kueue_holds_jobs_in_a_second_cluster(own_cluster):
    with Cluster(kueue="0.10") as other:
        assert other.host != own_cluster.host
        other.kubectl.create(*queue_objects("default"))
        check_queue(other, "default", "questions")


def queue_objects(namespace):
    import kueue

    return kueue.queue(namespace, "questions", cpu="1")


def check_queue(cluster, namespace, queue):
    """Checks that the second of two Jobs is queued until the first is deleted."""
    image = cluster.image("failing/sleeps:local")
    resources = {"requests": {"cpu": "1", "memory": "16Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "first", image, queue=queue, resources=resources))
    jobs.wait_for_state(cluster, namespace, "first", "running")
    cluster.kubectl.create(jobs.job(namespace, "second", image, queue=queue, resources=resources))

    def is_pending():
        workloads = cluster.kubectl.list("workloads", "-n", namespace)
        conditions = [found for each in workloads for found in each["status"].get("conditions", [])]
        return any(
            found["type"] == "QuotaReserved" and found["status"] == "False" for found in conditions
        )

    cluster.wait_for(is_pending, "the second Job is queued")
    assert jobs.pods(cluster, namespace, "second") == []

    cluster.kubectl("delete", "job", "first", "-n", namespace, "--wait=false")
    jobs.wait_for_state(cluster, namespace, "second", "running")


# === Fake nodes ===


def test_fake_pods_behave_as_their_annotations_define(own_cluster, namespace):
    behaviours = {
        "succeeds": {"run": "500ms"},
        "fails": {"run": "0s", "exit": "7", "message": "It broke."},
        "is-killed": {"exit": "137", "reason": "OOMKilled"},
        "is-evicted": {"exit": "evicted"},
        "runs": {"run": "forever"},
        "waits": {"waiting": "ImagePullBackOff", "message": "Back-off pulling."},
    }

    for name, behaviour in behaviours.items():
        annotations = {f"fake.twined.test/{field}": value for field, value in behaviour.items()}
        job = jobs.job(namespace, name, "nobody/has:this", annotations=annotations)
        own_cluster.kubectl.create(jobs.on_fake_nodes(job))

    assert jobs.wait_for_end(own_cluster, namespace, "succeeds") == "Complete"
    fields = jobs.wait_for_state(own_cluster, namespace, "fails", "terminated", "Error")
    assert (fields["exitCode"], fields["message"]) == (7, "It broke.")
    fields = jobs.wait_for_state(own_cluster, namespace, "is-killed", "terminated", "OOMKilled")
    assert fields["exitCode"] == 137
    jobs.wait_for_end(own_cluster, namespace, "is-evicted")
    assert jobs.only_pod(own_cluster, namespace, "is-evicted")["status"]["reason"] == "Evicted"
    fields = jobs.wait_for_state(own_cluster, namespace, "waits", "waiting", "ImagePullBackOff")
    assert fields["message"] == "Back-off pulling."
    jobs.wait_for_state(own_cluster, namespace, "runs", "running")

    own_cluster.kubectl("delete", "job", "runs", "-n", namespace, "--wait=false")
    gone = lambda: not jobs.pods(own_cluster, namespace, "runs")  # noqa: E731
    own_cluster.wait_for(gone, "the pod of the deleted Job is gone")


def test_fake_pods_behave_as_their_environment_defines(own_cluster, fake_namespace):
    env = {"FAKE_RUN": "100ms", "FAKE_EXIT": "9"}
    own_cluster.kubectl.create(jobs.job(fake_namespace, "fails", "nobody/has:this", env=env))

    fields = jobs.wait_for_state(own_cluster, fake_namespace, "fails", "terminated")
    assert fields["exitCode"] == 9


def test_200_fake_pods_run_to_completion(own_cluster, fake_namespace):
    names = [f"fake-{number}" for number in range(200)]
    own_cluster.kubectl.create(
        *(jobs.job(fake_namespace, name, "nobody/has:this") for name in names)
    )

    def all_ended():
        found = own_cluster.kubectl.list("jobs", "-n", fake_namespace)
        return sum(jobs.condition(job) == "Complete" for job in found) == len(names)

    own_cluster.wait_for(all_ended, "200 Jobs are complete", within=120)


def test_pods_without_the_selector_of_fake_nodes_go_to_the_real_node(own_cluster, namespace):
    image = own_cluster.image("failing/answers-nothing:local")
    own_cluster.kubectl.create(jobs.job(namespace, "usual", image))

    jobs.wait_for_end(own_cluster, namespace, "usual")
    assert jobs.only_pod(own_cluster, namespace, "usual")["spec"]["nodeName"] == "real"


# === Cleanup ===


RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import cluster, jobs
with cluster.Cluster(fake_nodes=1) as started:
    image = started.image("failing/ignores-sigterm:local")
    started.kubectl.create(jobs.job("default", "sleeps", image))
    jobs.wait_for_state(started, "default", "sleeps", "running")
    print(started.slot, started.folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("ending", [None, signal.SIGKILL])
def test_nothing_is_left_of_a_cluster_however_it_ended(ending):
    command = [sys.executable, "-c", RUN, str(HERE)]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    slot, folder = run.stdout.readline().split()
    assert cleanup.processes_of(slot, folder)

    if ending:
        run.send_signal(ending)
        run.wait()
        assert cleanup.processes_of(slot, folder)
        # The next cluster cleans up.
        Cluster(with_images=False).stop()
    else:
        run.communicate("")
        assert run.returncode == 0

    assert cleanup.processes_of(slot, folder) == []
    assert cleanup.mounts_of(folder) == []
    assert cleanup.cgroups_of(slot) == []
    assert not Path(folder).exists()
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    assert cleanup.bridge(slot) not in [link["ifname"] for link in links]
