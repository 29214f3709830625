"""A cluster to test in. README.md tells of every fixture."""

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import cluster as clusters
import fake
import kueue
import offline
import parts
import passage
from network import Network

HERE = Path(__file__).parent

# What is always run where there can be a cluster: some of each kind, in 8 minutes at most.
SMOKE = {
    "test_cluster": {
        "test_a_job_completes_in_the_image_of_a_service",
        "test_who_eats_more_than_its_limit_is_killed_by_the_kernel",
        "test_a_queue_holds_jobs_back_until_there_is_quota",
    },
    "test_contract": {"test_jobs_keep_every_promise_of_a_runner"},
    "test_questions": {"test_a_question_is_answered_by_a_pod"},
    "test_sdk": {
        "test_what_a_service_raises_arrives_as_its_own_type_once",
        "test_a_tree_is_pods_that_labels_find",
        "test_a_question_that_is_delivered_again_runs_once",
    },
    "test_inputs": {
        "test_children_come_with_and_without_values",
        "test_secrets_are_ensured_again_by_a_redelivery",
    },
    "test_settings": {"test_a_pod_has_what_its_settings_say"},
    "test_cancellation": {
        "test_what_runs_really_ends_and_then_the_asker_is_told",
        "test_a_stranger_cancels_nothing",
        "test_what_waits_in_kueue_goes_and_what_ran_gives_its_quota_to_the_next",
    },
    "test_deaths": {
        "test_what_a_kubelet_would_say_is_told",
        "test_a_job_that_is_deleted_by_hand_is_told",
        "test_an_exception_of_its_own_is_the_only_one",
    },
    "test_evictions": {"test_a_drained_node_starts_it_anew_and_its_answer_counts"},
    "test_jobs": {
        "test_a_job_is_as_the_contract_has_it",
        "test_the_references_pod_answers",
    },
    "test_limits": {"test_a_question_that_asks_for_more_than_a_cap_is_told_which"},
    "test_own_limits": {"test_never_more_run_than_the_network_may_and_all_end"},
    "test_kueue": {"test_a_request_over_the_queues_maximum_is_told_at_once"},
    "test_rights": {"test_every_right_of_the_role_has_a_test"},
    "test_replicas": {"test_two_replicas_that_die_and_sleep_lose_nothing_and_double_nothing"},
    "test_doctor": {"test_under_exactly_the_role_all_is_well"},
    "test_reachable": {"test_a_pod_reaches_the_daemon_by_the_name_of_a_service"},
}
SDK = HERE.parent / "sdk"
# The one who asks with the SDK is the same there. Behind, for some names are in both folders.
sys.path.append(str(SDK))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster of all tests that leave it as it was."""
    options = {"kueue": os.environ.get("TWINED_TEST_KUEUE", "0.16"), "fake_nodes": 4}

    try:
        with clusters.taken_or_started(tmp_path_factory.mktemp("cluster"), **options) as found:
            yield found
    except parts.Unavailable as reason:
        if os.environ.get("TWINED_TEST_CLUSTER") == "required":
            raise
        pytest.skip(f"no cluster here: {reason}")


@pytest.fixture(scope="session")
def own_cluster(cluster):
    """The same, where it is ours: with images, fake nodes, a registry and Kueue of the tests."""
    if not cluster.own:
        pytest.skip("wants the cluster of the tests, not somebody's own")
    return cluster


@pytest.fixture
def namespace(cluster):
    """The name of a namespace for one test."""
    yield from new_namespace(cluster)


@pytest.fixture
def fake_namespace(own_cluster):
    """The name of a namespace all of whose pods go to the fake nodes."""
    yield from new_namespace(own_cluster, fake.NAMESPACE)


def new_namespace(cluster, annotations=None):
    name = f"test-{uuid.uuid4().hex[:8]}"
    metadata = {"name": name, "annotations": annotations or {}}
    cluster.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    # Pods are refused until it has its account.
    account = lambda: cluster.kubectl.get("serviceaccount", "default", "-n", name)  # noqa: E731
    cluster.wait_for(account, f"{name} has its account")
    yield name
    # It goes in its own time; nothing waits for it.
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def queue(own_cluster):
    """Makes a local queue: `queue(namespace, cpu="2")` returns its name."""
    made = []

    def new_queue(namespace, name="questions", on_fake_nodes=False, **quota):
        objects = kueue.queue(namespace, name, on_fake_nodes, **quota)
        made.extend(objects)
        own_cluster.kubectl.create(*objects)
        return name

    yield new_queue

    for made_object in reversed(made):
        if "namespace" not in made_object["metadata"]:
            kind, name = made_object["kind"], made_object["metadata"]["name"]
            own_cluster.kubectl("delete", kind, name, "--wait=false", check=False)


@pytest.fixture
def account(cluster, tmp_path):
    """Makes a service account with the daemon's Role: `account(namespace)` returns a kubeconfig.

    `without=("secrets", "create")` leaves out one right.
    """

    def new(namespace, name="twined", without=None):
        return new_account(cluster, namespace, tmp_path, name, without)

    return new


def new_account(cluster, namespace, folder, name="twined", without=None):
    cluster.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        },
        role(cluster, namespace, name, without),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": name,
            },
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    )
    return cluster.kubeconfig_of(namespace, name, folder / f"{namespace}-{name}.kubeconfig")


def role(cluster, namespace, name, without):
    """The Role of `role.yaml`, perhaps with one right less."""
    read = ["create", "--dry-run=client", "-o", "json", "-n", namespace]
    role = json.loads(cluster.kubectl(*read, "-f", HERE / "role.yaml"))
    role["metadata"] = {"name": name, "namespace": namespace}

    if without:
        resource, verb = without
        rule = next(rule for rule in role["rules"] if resource in rule["resources"])
        rule["verbs"].remove(verb)
        role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    return role


@pytest.fixture(scope="session")
def binary():
    """The binary that is tested, as in `tests/sdk`."""
    built = HERE.parent.parent / "target" / "debug" / "twined"
    path = Path(os.environ.get("TWINED_BIN", built))

    if not path.is_file():
        pytest.skip(f"no binary at {path}: build it, or name it with TWINED_BIN")
    return path.resolve()


@pytest.fixture
def emulator(binary, tmp_path):
    """The address of a Pub/Sub emulator on loopback, which takes every project for one."""
    with emulating(binary, tmp_path) as address:
        yield address


@contextlib.contextmanager
def emulating(binary, folder):
    log = folder / "emulator.log"
    command = [binary, "emulator", "--pubsub-port", "0", "--project", offline.PROJECT]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log.open("w"))
    address = re.compile(r"PUBSUB_EMULATOR_HOST=(\S+)")

    try:
        yield clusters.wait_for(lambda: address.search(log.read_text()), "it has an address")[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def as_google(own_cluster):
    """Makes a namespace's pods able to use Google's clients off line.

    `as_google(namespace, pubsub)` returns the `env`, `volumes` and `volumeMounts` that a pod
    wants, where `pubsub` is the address of an emulator on this machine, loopback or not.
    """
    with contextlib.ExitStack() as made:
        yield lambda namespace, pubsub: made.enter_context(
            like_google(own_cluster, namespace, pubsub)
        )


@contextlib.contextmanager
def like_google(cluster, namespace, pubsub):
    passed = passage.Passage(cluster.host, pubsub)
    try:
        cluster.kubectl.apply(cluster.offline.secret(namespace))
        yield {
            "env": cluster.offline.environment(passed.address),
            "volumes": [cluster.offline.volume()],
            "volumeMounts": [cluster.offline.mount()],
        }
    finally:
        passed.close()


# === The daemon ===


@pytest.fixture
def network(own_cluster, namespace, emulator, as_google, account, binary, tmp_path):
    """A network in a namespace of its own, without a daemon yet."""
    yield from new_network(own_cluster, namespace, emulator, as_google, account, binary, tmp_path)


@pytest.fixture
def fake_network(own_cluster, fake_namespace, emulator, as_google, account, binary, tmp_path):
    """The same, all of whose pods go to the fake nodes."""
    yield from new_network(
        own_cluster, fake_namespace, emulator, as_google, account, binary, tmp_path
    )


def new_network(cluster, namespace, emulator, as_google, account, binary, folder):
    google = as_google(namespace, emulator)
    kubeconfig = account(namespace)
    network = Network(cluster, namespace, emulator, google, kubeconfig, binary, folder)
    yield network
    network.close()


@pytest.fixture(scope="module")
def shared_network(own_cluster, binary, tmp_path_factory):
    """One network for all tests of a module, which ask in it side by side."""
    folder = tmp_path_factory.mktemp("network")
    namespaces = contextlib.contextmanager(new_namespace)
    with (
        namespaces(own_cluster) as namespace,
        emulating(binary, folder) as emulator,
        like_google(own_cluster, namespace, emulator) as google,
    ):
        kubeconfig = new_account(own_cluster, namespace, folder)
        network = Network(own_cluster, namespace, emulator, google, kubeconfig, binary, folder)
        yield network
        network.close()


@pytest.fixture
def asker(network, tmp_path):
    """One who asks in the network with the unmodified SDK."""
    from asking import Asker

    asker = Asker(network.environment_here(), tmp_path / "asker.log")
    yield asker
    asker.close()


def pytest_collection_modifyitems(items):
    """Marks the smoke, and sees to it that each of its tests is there."""
    left = {(module, name) for module, names in SMOKE.items() for name in names}
    modules = {item.module.__name__ for item in items}

    for item in items:
        named = (item.module.__name__, item.originalname)

        if item.originalname in SMOKE.get(item.module.__name__, ()):
            item.add_marker(pytest.mark.smoke)
            left.discard(named)

    missing = {name for module, name in left if module in modules}

    # Where tests are named on the command line, not all of a module are there.
    if missing and not any("::" in argument for argument in sys.argv):
        raise pytest.UsageError(f"the smoke names tests that are not there: {sorted(missing)}")
