"""Fixtures of the cluster tests. README.md describes each."""

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
from network import Network
from tcp_proxy import TcpProxy

HERE = Path(__file__).parent

# The tests that always run where a cluster can be started: some of each kind, 8 minutes at most.
SMOKE = {
    "test_cluster": {
        "test_a_job_completes_in_the_image_of_a_service",
        "test_a_container_over_its_memory_limit_is_oom_killed",
        "test_a_queue_holds_jobs_until_quota_is_free",
    },
    "test_contract": {"test_jobs_fulfil_the_contract_of_runners"},
    "test_questions": {"test_a_question_is_answered_by_a_pod"},
    "test_sdk": {
        "test_an_exception_of_a_service_arrives_once_with_its_type",
        "test_the_pods_of_a_tree_are_found_by_labels",
        "test_a_redelivered_question_runs_once",
    },
    "test_inputs": {
        "test_children_arrive_with_and_without_values",
        "test_a_redelivery_restores_missing_secrets",
    },
    "test_settings": {"test_a_pod_has_the_settings_of_its_service"},
    "test_cancellation": {
        "test_a_cancelled_run_has_no_process_when_its_parent_is_notified",
        "test_a_cancellation_by_another_sender_is_ignored",
        "test_cancelled_questions_leave_kueue_and_release_their_quota",
    },
    "test_failures": {
        "test_a_failure_that_a_kubelet_reports_is_passed_on",
        "test_the_deletion_of_a_job_is_reported",
        "test_an_exception_of_the_service_is_the_only_one",
    },
    "test_evictions": {"test_a_run_on_a_drained_node_starts_again_and_its_result_counts"},
    "test_jobs": {
        "test_a_job_has_the_fields_of_the_contract",
        "test_a_result_of_the_references_pod_settles_its_job",
    },
    "test_refusals": {"test_a_request_over_a_cap_is_refused_with_the_name_of_the_cap"},
    "test_running_limits": {"test_the_networks_limit_is_never_exceeded_and_all_questions_end"},
    "test_kueue": {"test_a_request_over_the_queues_maximum_is_refused_at_once"},
    "test_rights": {"test_every_right_of_the_role_has_a_test"},
    "test_replicas": {"test_replicas_that_are_killed_and_paused_lose_and_duplicate_nothing"},
    "test_doctor": {"test_all_checks_pass_with_exactly_the_rights_of_the_role"},
    "test_reachable": {"test_a_pod_reaches_the_daemon_by_the_name_of_a_service"},
}
SDK = HERE.parent / "sdk"
# For `sdk_client`. At the end, because some names exist in both folders.
sys.path.append(str(SDK))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster that all tests share which leave it unchanged."""
    options = {"kueue": os.environ.get("TWINED_TEST_KUEUE", "0.16"), "fake_nodes": 4}

    try:
        with clusters.existing_or_new(tmp_path_factory.mktemp("cluster"), **options) as found:
            yield found
    except parts.Unavailable as reason:
        if os.environ.get("TWINED_TEST_CLUSTER") == "required":
            raise
        pytest.skip(f"no cluster here: {reason}")


@pytest.fixture(scope="session")
def own_cluster(cluster):
    """The same, if the tests started it: with images, fake nodes, a registry and Kueue."""
    if not cluster.own:
        pytest.skip("needs a cluster that the tests start")
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
    # The API server refuses pods until the namespace has its service account.
    account = lambda: cluster.kubectl.get("serviceaccount", "default", "-n", name)  # noqa: E731
    cluster.wait_for(account, f"{name} has its service account")
    yield name
    # Nothing waits for the deletion.
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def queue(own_cluster):
    """Creates a local queue: `queue(namespace, cpu="2")` returns its name."""
    created = []

    def new_queue(namespace, name="questions", on_fake_nodes=False, **quota):
        objects = kueue.queue(namespace, name, on_fake_nodes, **quota)
        created.extend(objects)
        own_cluster.kubectl.create(*objects)
        return name

    yield new_queue

    for found in reversed(created):
        if "namespace" not in found["metadata"]:
            kind, name = found["kind"], found["metadata"]["name"]
            own_cluster.kubectl("delete", kind, name, "--wait=false", check=False)


@pytest.fixture
def account(cluster, tmp_path):
    """Creates a service account with the daemon's Role: `account(namespace)` returns a kubeconfig.

    `without=("secrets", "create")` omits one right.
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
    """The Role of `role.yaml`; `without` omits one right."""
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
    """The binary under test, as in `tests/sdk`."""
    built = HERE.parent.parent / "target" / "debug" / "twined"
    path = Path(os.environ.get("TWINED_BIN", built))

    if not path.is_file():
        pytest.skip(f"no binary at {path}: build it, or name it with TWINED_BIN")
    return path.resolve()


@pytest.fixture
def emulator(binary, tmp_path):
    """The address of a Pub/Sub emulator on loopback, which treats every project as one."""
    with running_emulator(binary, tmp_path) as address:
        yield address


@contextlib.contextmanager
def running_emulator(binary, folder):
    log = folder / "emulator.log"
    command = [binary, "emulator", "--pubsub-port", "0", "--project", offline.PROJECT]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log.open("w"))
    address = re.compile(r"PUBSUB_EMULATOR_HOST=(\S+)")

    try:
        printed = lambda: address.search(log.read_text())  # noqa: E731
        yield clusters.wait_for(printed, "the emulator prints its address")[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def offline_google(own_cluster):
    """Lets the pods of a namespace use Google's clients offline.

    `offline_google(namespace, pubsub)` returns the `env`, `volumes` and `volumeMounts` that a pod
    needs. `pubsub` is the address of an emulator on this machine, on loopback or not.
    """
    with contextlib.ExitStack() as stack:
        yield lambda namespace, pubsub: stack.enter_context(
            google_for_pods(own_cluster, namespace, pubsub)
        )


@contextlib.contextmanager
def google_for_pods(cluster, namespace, pubsub):
    proxy = TcpProxy(cluster.host, pubsub)
    try:
        cluster.kubectl.apply(cluster.offline.secret(namespace))
        yield {
            "env": cluster.offline.environment(proxy.address),
            "volumes": [cluster.offline.volume()],
            "volumeMounts": [cluster.offline.mount()],
        }
    finally:
        proxy.close()


# === The daemon ===


@pytest.fixture
def network(own_cluster, namespace, emulator, offline_google, account, binary, tmp_path):
    """A network in its own namespace, without a daemon."""
    yield from new_network(
        own_cluster, namespace, emulator, offline_google, account, binary, tmp_path
    )


@pytest.fixture
def fake_network(own_cluster, fake_namespace, emulator, offline_google, account, binary, tmp_path):
    """The same; all of its pods go to the fake nodes."""
    yield from new_network(
        own_cluster, fake_namespace, emulator, offline_google, account, binary, tmp_path
    )


def new_network(cluster, namespace, emulator, offline_google, account, binary, folder):
    google = offline_google(namespace, emulator)
    kubeconfig = account(namespace)
    network = Network(cluster, namespace, emulator, google, kubeconfig, binary, folder)
    yield network
    network.close()


@pytest.fixture(scope="module")
def shared_network(own_cluster, binary, tmp_path_factory):
    """One network for all tests of a module, which ask in it concurrently."""
    folder = tmp_path_factory.mktemp("network")
    namespaces = contextlib.contextmanager(new_namespace)
    with (
        namespaces(own_cluster) as namespace,
        running_emulator(binary, folder) as emulator,
        google_for_pods(own_cluster, namespace, emulator) as google,
    ):
        kubeconfig = new_account(own_cluster, namespace, folder)
        network = Network(own_cluster, namespace, emulator, google, kubeconfig, binary, folder)
        yield network
        network.close()


@pytest.fixture
def sdk_client(network, tmp_path):
    """Asks questions in the network with the unmodified SDK."""
    from sdk_client import SdkClient

    client = SdkClient(network.local_environment(), tmp_path / "sdk-client.log")
    yield client
    client.close()


def pytest_collection_modifyitems(items):
    """Marks the smoke tests, and fails if one of them does not exist."""
    missing = {(module, name) for module, names in SMOKE.items() for name in names}
    modules = {item.module.__name__ for item in items}

    for item in items:
        named = (item.module.__name__, item.originalname)

        if item.originalname in SMOKE.get(item.module.__name__, ()):
            item.add_marker(pytest.mark.smoke)
            missing.discard(named)

    missing = {name for module, name in missing if module in modules}

    # Tests named on the command line are not all tests of their module.
    if missing and not any("::" in argument for argument in sys.argv):
        raise pytest.UsageError(f"`SMOKE` names tests that do not exist: {sorted(missing)}")
