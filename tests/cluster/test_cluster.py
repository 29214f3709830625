"""The cluster itself is as the other tests take it to be."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import jobs
import sweeping
from cluster import Cluster

HERE = Path(__file__).parent
ECHO = "tests/echo:local"
NOTHING = "deaths/answers-nothing:local"


# === The real node ===


def test_a_job_completes_in_the_image_of_a_service(cluster, namespace):
    job = jobs.job(namespace, "version", cluster.image(ECHO), "octue", "--version")
    cluster.kubectl.create(job)

    assert jobs.wait_for_end(cluster, namespace, "version") == "Complete"
    assert "0.69.1" in cluster.kubectl("logs", "-n", namespace, "job/version")


def test_an_exit_code_and_the_last_words_are_told(cluster, namespace):
    cluster.kubectl.create(jobs.job(namespace, "exits", cluster.image("deaths/exits:local")))

    assert jobs.wait_for_end(cluster, namespace, "exits") == "Failed"
    _, words = jobs.state(jobs.only_pod(cluster, namespace, "exits"))
    assert words["exitCode"] == 3
    assert words["message"] == "The wind was too much.\n"


def test_who_eats_more_than_its_limit_is_killed_by_the_kernel(cluster, namespace):
    image = cluster.image("deaths/eats-memory:local")
    limit = {"limits": {"memory": "64Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "eats", image, resources=limit))

    assert jobs.wait_for_end(cluster, namespace, "eats") == "Failed"
    _, words = jobs.state(jobs.only_pod(cluster, namespace, "eats"))
    assert (words["reason"], words["exitCode"]) == ("OOMKilled", 137)


def test_who_writes_more_than_its_limit_is_evicted(cluster, namespace):
    image = cluster.image("deaths/fills-disk:local")
    limit = {"limits": {"ephemeral-storage": "50Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "fills", image, resources=limit))

    assert jobs.wait_for_end(cluster, namespace, "fills") == "Failed"
    assert jobs.only_pod(cluster, namespace, "fills")["status"]["reason"] == "Evicted"


@pytest.mark.parametrize(
    "death, code",
    [("answers-nothing", 0), ("is-loud", 1), ("is-killed", 137), ("crashes", 139)],
)
def test_each_death_has_its_code(cluster, namespace, death, code):
    cluster.kubectl.create(jobs.job(namespace, death, cluster.image(f"deaths/{death}:local")))

    words = jobs.wait_for_state(cluster, namespace, death, "terminated")
    assert words["exitCode"] == code


@pytest.mark.parametrize("death", ["has-no-octue", "is-damaged"])
def test_what_cannot_start_says_so(cluster, namespace, death):
    cluster.kubectl.create(jobs.job(namespace, death, cluster.image(f"deaths/{death}:local")))

    words = jobs.wait_for_state(cluster, namespace, death, "terminated")
    assert words["reason"] in ("StartError", "Error")
    assert words["exitCode"] != 0


def test_an_image_that_is_not_there_cannot_be_pulled(cluster, namespace):
    cluster.kubectl.create(jobs.job(namespace, "missing", cluster.image("tests/nobody:local")))

    jobs.wait_for_state(cluster, namespace, "missing", "waiting", "ErrImagePull")
    jobs.wait_for_state(cluster, namespace, "missing", "waiting", "ImagePullBackOff")


def test_an_image_is_pulled_when_the_registry_gives_it(own_cluster, namespace):
    image = own_cluster.store.add_unpulled(f"deaths/{namespace}:1", of=NOTHING)

    with own_cluster.registry.holding(image):
        own_cluster.kubectl.create(jobs.job(namespace, "pulled", image))
        asked = lambda: own_cluster.registry.pulls.get(image)  # noqa: E731
        own_cluster.wait_for(asked, "the image is asked for")
        kind, words = jobs.state(jobs.only_pod(own_cluster, namespace, "pulled"))
        assert kind != "terminated", words

    assert jobs.wait_for_end(own_cluster, namespace, "pulled") == "Complete"


def test_a_refused_pull_is_tried_again(own_cluster, namespace):
    image = own_cluster.store.add_unpulled(f"deaths/{namespace}:1", of=NOTHING)

    with own_cluster.registry.refusing(image, 403):
        own_cluster.kubectl.create(jobs.job(namespace, "refused", image))
        words = jobs.wait_for_state(own_cluster, namespace, "refused", "waiting", "ErrImagePull")
        assert "403" in words["message"]

    assert jobs.wait_for_end(own_cluster, namespace, "refused") == "Complete"


def test_the_process_of_a_deleted_job_is_gone(own_cluster, namespace):
    image = own_cluster.image("deaths/is-deaf:local")
    mark = f"MARK_OF_{namespace}".replace("-", "_")
    own_cluster.kubectl.create(jobs.job(namespace, "deaf", image, env={mark: "1"}))
    jobs.wait_for_state(own_cluster, namespace, "deaf", "running")
    assert has_process_with(mark)

    own_cluster.kubectl(
        "delete", "job", "deaf", "-n", namespace, "--cascade=background", "--wait=false"
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
        "of = '/var/run/secrets/kubernetes.io/serviceaccount/ca.crt'\n"
        "known = ssl.create_default_context(cafile=of)\n"
        f"print(u.urlopen('{own_cluster.url}/version', context=known).read())\n"
    )
    image = own_cluster.image(ECHO)
    own_cluster.kubectl.create(jobs.job(namespace, "reaches", image, "python", "-c", script))

    jobs.wait_for_end(own_cluster, namespace, "reaches")
    logs = own_cluster.kubectl("logs", "-n", namespace, "job/reaches")
    assert "revision_tag" in logs
    assert "v1.36.3" in logs


# === A service ===


def test_a_service_answers_a_question_from_a_pod(own_cluster, namespace, emulator, as_google):
    assert_answered(own_cluster, namespace, emulator, as_google(namespace, emulator))


def assert_answered(cluster, namespace, emulator, google, **pod_fields):
    """Runs a question in a pod that has what `as_google` gives and these fields of its own."""
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
    """A topic's name, and what gives the events that were published to it."""
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


def test_the_account_may_do_what_its_role_says_and_no_more(cluster, namespace, account):
    kubectl = type(cluster.kubectl)(account(namespace), cluster.folder)
    may = lambda *what: kubectl("auth", "can-i", *what, check=False).strip()  # noqa: E731

    assert may("create", "jobs", "-n", namespace) == "yes"
    assert may("watch", "pods", "-n", namespace) == "yes"
    assert may("get", "secrets", "-n", namespace) == "no"
    assert may("create", "jobs", "-n", "default") == "no"


def test_one_right_can_be_left_out(cluster, namespace, account):
    left_out = account(namespace, name="poor", without=("secrets", "create"))
    kubectl = type(cluster.kubectl)(left_out, cluster.folder)

    assert kubectl("auth", "can-i", "create", "secrets", "-n", namespace, check=False) == "no\n"
    assert kubectl("auth", "can-i", "create", "jobs", "-n", namespace) == "yes\n"


# === Kueue ===


def test_a_queue_holds_jobs_back_until_there_is_quota(own_cluster, namespace, queue):
    holds_back(own_cluster, namespace, queue(namespace, cpu="1"))


def test_the_older_kueue_does_the_same_in_a_cluster_beside_this_one(own_cluster):
    with Cluster(kueue="0.10") as other:
        assert other.host != own_cluster.host
        other.kubectl.create(*queue_objects("default"))
        holds_back(other, "default", "questions")


def queue_objects(namespace):
    import kueue

    return kueue.queue(namespace, "questions", cpu="1")


def holds_back(cluster, namespace, queue):
    image = cluster.image("deaths/sleeps:local")
    wants = {"requests": {"cpu": "1", "memory": "16Mi"}}
    cluster.kubectl.create(jobs.job(namespace, "first", image, queue=queue, resources=wants))
    jobs.wait_for_state(cluster, namespace, "first", "running")
    cluster.kubectl.create(jobs.job(namespace, "second", image, queue=queue, resources=wants))

    def is_pending():
        workloads = cluster.kubectl.list("workloads", "-n", namespace)
        conditions = [found for each in workloads for found in each["status"].get("conditions", [])]
        return any(
            found["type"] == "QuotaReserved" and found["status"] == "False" for found in conditions
        )

    cluster.wait_for(is_pending, "the second Job has to wait")
    assert jobs.pods(cluster, namespace, "second") == []

    cluster.kubectl("delete", "job", "first", "-n", namespace, "--wait=false")
    jobs.wait_for_state(cluster, namespace, "second", "running")


# === Fake nodes ===


def test_fake_pods_run_to_their_end_as_they_say(own_cluster, namespace):
    say = {
        "succeeds": {"run": "500ms"},
        "fails": {"run": "0s", "exit": "7", "message": "It broke."},
        "is-killed": {"exit": "137", "reason": "OOMKilled"},
        "is-evicted": {"exit": "evicted"},
        "stays": {"run": "forever"},
        "waits": {"waiting": "ImagePullBackOff", "message": "Back-off pulling."},
    }

    for name, words in say.items():
        annotations = {f"fake.twined.test/{what}": value for what, value in words.items()}
        job = jobs.job(namespace, name, "nobody/has:this", annotations=annotations)
        own_cluster.kubectl.create(jobs.on_fake_nodes(job))

    assert jobs.wait_for_end(own_cluster, namespace, "succeeds") == "Complete"
    words = jobs.wait_for_state(own_cluster, namespace, "fails", "terminated", "Error")
    assert (words["exitCode"], words["message"]) == (7, "It broke.")
    words = jobs.wait_for_state(own_cluster, namespace, "is-killed", "terminated", "OOMKilled")
    assert words["exitCode"] == 137
    jobs.wait_for_end(own_cluster, namespace, "is-evicted")
    assert jobs.only_pod(own_cluster, namespace, "is-evicted")["status"]["reason"] == "Evicted"
    words = jobs.wait_for_state(own_cluster, namespace, "waits", "waiting", "ImagePullBackOff")
    assert words["message"] == "Back-off pulling."
    jobs.wait_for_state(own_cluster, namespace, "stays", "running")

    own_cluster.kubectl("delete", "job", "stays", "-n", namespace, "--wait=false")
    gone = lambda: not jobs.pods(own_cluster, namespace, "stays")  # noqa: E731
    own_cluster.wait_for(gone, "the pod that stays is gone")


def test_fake_pods_are_told_by_their_environment_too(own_cluster, fake_namespace):
    says = {"FAKE_RUN": "100ms", "FAKE_EXIT": "9"}
    own_cluster.kubectl.create(jobs.job(fake_namespace, "fails", "nobody/has:this", env=says))

    words = jobs.wait_for_state(own_cluster, fake_namespace, "fails", "terminated")
    assert words["exitCode"] == 9


def test_200_fake_pods_run_to_their_end(own_cluster, fake_namespace):
    names = [f"fake-{number}" for number in range(200)]
    own_cluster.kubectl.create(
        *(jobs.job(fake_namespace, name, "nobody/has:this") for name in names)
    )

    def all_ended():
        found = own_cluster.kubectl.list("jobs", "-n", fake_namespace)
        return sum(jobs.condition(job) == "Complete" for job in found) == len(names)

    own_cluster.wait_for(all_ended, "200 Jobs are complete", within=120)


def test_pods_that_do_not_ask_for_fake_nodes_do_not_go_there(own_cluster, namespace):
    image = own_cluster.image("deaths/answers-nothing:local")
    own_cluster.kubectl.create(jobs.job(namespace, "usual", image))

    jobs.wait_for_end(own_cluster, namespace, "usual")
    assert jobs.only_pod(own_cluster, namespace, "usual")["spec"]["nodeName"] == "real"


# === Its end ===


RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import cluster, jobs
with cluster.Cluster(fake_nodes=1) as started:
    started.kubectl.create(jobs.job("default", "sleeps", started.image("deaths/is-deaf:local")))
    jobs.wait_for_state(started, "default", "sleeps", "running")
    print(started.slot, started.folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("ending", [None, signal.SIGKILL])
def test_nothing_is_left_of_a_cluster_however_it_ended(ending):
    command = [sys.executable, "-c", RUN, str(HERE)]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    slot, folder = run.stdout.readline().split()
    assert sweeping.processes_of(slot, folder)

    if ending:
        run.send_signal(ending)
        run.wait()
        assert sweeping.processes_of(slot, folder)
        # The next to start sweeps up.
        Cluster(with_images=False).stop()
    else:
        run.communicate("")
        assert run.returncode == 0

    assert sweeping.processes_of(slot, folder) == []
    assert sweeping.mounts_of(folder) == []
    assert sweeping.cgroups_of(slot) == []
    assert not Path(folder).exists()
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    assert sweeping.bridge(slot) not in [link["ifname"] for link in links]
