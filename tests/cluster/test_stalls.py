"""A run that makes no progress is ended when its stall has lasted for its grace, and not before.

All questions are asked concurrently: the longest grace is 15 minutes.
"""

import contextlib
import json

import pytest

import failures
from cluster import wait_for
from failures import Failure, on_fake_nodes
from network import is_running

pytestmark = pytest.mark.long

SLEEPS = "failing/sleeps:local"
# The graces of `failure/symptoms.rs`, in seconds.
BRIEF, SIDECAR, CREATED_LATER, DAMAGED, PASSES = 30, 60, 120, 300, 900
NO_NODE = {"node_selector": {"twined.test/nowhere": "true"}}

# Causes that do not change by themselves.
PERMANENT = {
    "is-not-there": Failure(
        "ServiceNotFound", "there is no such image", "push the image of that revision"
    ),
    "runs-as-root": Failure(
        "RuntimeError",
        "runs as root",
        "set a numeric user in the image",
        image_of=SLEEPS,
        security="restricted",
    ),
    "starts-with-nothing": Failure(
        "MemoryError",
        "limit of memory is too low",
        "with more `memory`",
        image_of=SLEEPS,
        memory={"default": "1Mi", "limit": "request"},
    ),
    "is-never-pulled": Failure(
        "RuntimeError",
        "its pull policy is `Never`",
        "load the image",
        **on_fake_nodes(
            waiting="ErrImageNeverPull",
            message="Container image is not present with pull policy of Never",
        ),
    ),
    "is-not-signed": Failure(
        "RuntimeError",
        "its signature is not one",
        "sign the image",
        **on_fake_nodes(waiting="SignatureValidationFailed", message="no signature"),
    ),
    "is-for-another-processor": Failure(
        "RuntimeError",
        "not built for the processor of the node",
        "build it for that platform too",
        **on_fake_nodes(
            waiting="ErrImagePull", message="no match for platform in manifest: not found"
        ),
    ),
    "breaks-a-policy": Failure(
        "PermissionError",
        "a policy of the cluster does not let it be made",
        "nobody wants it",
        "see what the policy wants",
        image_of=SLEEPS,
    ),
    "is-over-a-limit-range": Failure(
        "PermissionError",
        "the namespace's LimitRange",
        "ask for what is allowed",
        image_of=SLEEPS,
        attributes={"cpus": "100"},
        cpus={"limit": "request"},
    ),
    "requests-more-than-its-limit": Failure(
        "PermissionError",
        "the API server finds it invalid",
        "see what is asked for",
        image_of=SLEEPS,
        attributes={"cpus": "100"},
    ),
}
# Containers that outlive the service.
OUTLIVED = {
    "has-a-proxy": Failure(
        "RuntimeError",
        "without a result",
        "the container `istio-proxy` still runs",
        "`restartPolicy: Always`",
        **on_fake_nodes(run="forever"),
    ),
}
# Objects that may be created a moment later.
MISSING = {
    "is-forbidden": Failure(
        "RuntimeError",
        "its registry does not let the cluster have it",
        "let the nodes' account read the repository",
        image_of=SLEEPS,
    ),
    "is-not-known": Failure(
        "RuntimeError",
        "its registry does not let the cluster have it",
        "name a pull secret",
        image_of=SLEEPS,
    ),
    "wants-a-secret": Failure(
        "RuntimeError",
        "a secret, or a key of it,",
        "create it in the namespace",
        image_of=SLEEPS,
        secrets={"TOKEN": {"secret": "nobody-made-it", "key": "a"}},
    ),
    "wants-a-key": Failure(
        "RuntimeError",
        "a secret, or a key of it,",
        "create it in the namespace",
        image_of=SLEEPS,
        secrets={"TOKEN": {"secret": "empty", "key": "nobody-made-it"}},
    ),
    "mounts-a-secret": Failure(
        "RuntimeError",
        "a secret, or a key of it,",
        "create it in the namespace",
        image_of=SLEEPS,
        volumes=[{"path": "/a", "secret": "nobody-made-it"}],
    ),
    "mounts-a-configuration": Failure(
        "RuntimeError",
        "a configuration (ConfigMap)",
        "create it in the",
        image_of=SLEEPS,
        volumes=[{"path": "/a", "config_map": "nobody-made-it"}],
    ),
    "mounts-a-claim": Failure(
        "RuntimeError",
        "a volume claim that its settings want is not there",
        "create it",
        image_of=SLEEPS,
        volumes=[{"path": "/a", "claim": "nobody-made-it"}],
    ),
    "has-no-account": Failure(
        "PermissionError",
        "the service account that it wants is not there",
        "create the account",
        image_of=SLEEPS,
        service_account="nobody-made-it",
    ),
    "has-no-priority": Failure(
        "PermissionError",
        "the priority class that it wants is not there",
        "create it",
        image_of=SLEEPS,
        priority="nobody-made-it",
    ),
    "is-not-created": Failure(
        "RuntimeError",
        "its command is not in it",
        "entry point",
        **on_fake_nodes(
            waiting="CreateContainerError",
            message="failed to generate spec: no such file or directory",
        ),
    ),
    "is-not-run": Failure(
        "RuntimeError",
        "its command may not be executed",
        "entry point",
        **on_fake_nodes(
            waiting="RunContainerError", message="runc create failed: permission denied"
        ),
    ),
    "fails-a-hook": Failure(
        "RuntimeError",
        "a hook around its start failed",
        "see the hooks",
        **on_fake_nodes(waiting="PostStartHookError", message="exit 1"),
    ),
}
# Images that a node may pull again.
BROKEN = {
    "has-a-damaged-layer": Failure(
        "RuntimeError", "its layers cannot be unpacked", "push the image again", image_of=SLEEPS
    ),
}
# Causes that usually pass by themselves.
TRANSIENT = {
    "has-a-broken-registry": Failure(
        "RuntimeError", "its registry cannot be reached", "see the registry", image_of=SLEEPS
    ),
    "has-a-dead-registry": Failure(
        "RuntimeError", "its registry cannot be reached", "see the registry", image_of=SLEEPS
    ),
    "has-a-busy-registry": Failure(
        "RuntimeError", "its registry answers no more pulls", "later", image_of=SLEEPS
    ),
    "has-no-volume": Failure(
        "RuntimeError",
        "a volume claim that its settings want gets no volume",
        "its storage class",
        image_of=SLEEPS,
        volumes=[{"path": "/a", "claim": "unbound"}],
    ),
    "is-over-quota": Failure(
        "PermissionError",
        "the namespace's quota has no room",
        "raise the ResourceQuota",
        image_of=SLEEPS,
        priority="quota",
    ),
    "has-a-dead-webhook": Failure(
        "PermissionError", "the cluster cannot decide on it now", "webhooks", image_of=SLEEPS
    ),
    "gets-no-node": Failure(
        "RuntimeError",
        "no node of the kind that its settings want, and its autoscaler adds none for it",
        "see the node selector",
        image_of=SLEEPS,
        **NO_NODE,
    ),
    "has-a-slow-node": Failure(
        "RuntimeError",
        "its node is too slow",
        "see the image and the node",
        **on_fake_nodes(waiting="CreateContainerError", message="context deadline exceeded"),
    ),
    "has-no-network": Failure(
        "RuntimeError",
        "its node cannot give it a network",
        "see the node",
        **on_fake_nodes(start="never"),
    ),
    "has-a-silent-node": Failure(
        "RuntimeError", "is out of sight", "the node may be down", **on_fake_nodes(run="forever")
    ),
}
# Pods that no node fits now: these wait.
WAITING = {
    "wants-60-cpus": Failure("InterruptedError", image_of=SLEEPS, cpus={"default": "60"}),
    "wants-another-node": Failure("InterruptedError", image_of=SLEEPS, **NO_NODE),
    "tolerates-nothing": Failure(
        "InterruptedError", image_of=SLEEPS, node_selector={"twined.test/fake": "true"}
    ),
}
WAIT_TEXTS = {
    "wants-60-cpus": "not enough free CPUs",
    "wants-another-node": "no node of the kind that its settings want",
    "tolerates-nothing": "only nodes with a taint that it does not tolerate",
}
GRACES = [
    (PERMANENT, BRIEF),
    (OUTLIVED, SIDECAR),
    (MISSING, CREATED_LATER),
    (BROKEN, DAMAGED),
    (TRANSIENT, PASSES),
]
ENDING = {name: failure for group, _ in GRACES for name, failure in group.items()}
FAILURES = {**ENDING, **WAITING}
for group, grace in GRACES:
    for failure in group.values():
        failure.grace, failure.within = grace, grace + 120

REFUSED = {
    "is-forbidden": 403,
    "is-not-known": 401,
    "has-a-broken-registry": 500,
    "has-a-dead-registry": 0,
    "has-a-busy-registry": 429,
}


@pytest.fixture(scope="module")
def network(shared_network):
    network = shared_network
    network.settings["defaults"] |= {"cpus": {"default": "10m"}, "memory": {"default": "16Mi"}}
    failures.prepare(network, FAILURES)
    cluster = network.cluster
    cluster.store.damage(cluster.image(failures.sruid("has-a-damaged-layer")))
    cluster_wide, namespaced = obstacles(network.namespace)
    cluster.kubectl.apply(*cluster_wide, *namespaced)
    probe = ["run", "probe", "-n", network.namespace, "--image=breaks-a-policy", "--dry-run=server"]
    # A policy is in force some moments after its creation.
    refused = lambda: not cluster.kubectl(*probe, check=False)  # noqa: E731
    wait_for(refused, "the policy is in force")
    with contextlib.ExitStack() as stack:
        for name, status in REFUSED.items():
            image = cluster.image(failures.sruid(name))
            stack.enter_context(cluster.registry.refusing(image, status))
        with network.daemon():
            yield network
    for found in cluster_wide:
        target = [found["kind"], found["metadata"]["name"]]
        cluster.kubectl("delete", *target, "--wait=false", check=False)


def obstacles(namespace):
    """Objects that keep pods of this namespace from starting: cluster-wide ones, and others."""
    image = "object.spec.containers[0].image"
    pods = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    only_here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy, webhook = f"policy-{namespace}", f"webhook-{namespace}"
    admission = "admissionregistration.k8s.io/v1"
    cluster_wide = [
        {
            "apiVersion": admission,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": policy},
            "spec": {
                "matchConstraints": {"resourceRules": [pods], "namespaceSelector": only_here},
                "validations": [
                    {
                        "expression": f"!{image}.contains('breaks-a-policy')",
                        "message": "nobody wants it",
                    }
                ],
            },
        },
        {
            "apiVersion": admission,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": policy},
            "spec": {"policyName": policy, "validationActions": ["Deny"]},
        },
        {
            "apiVersion": admission,
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": webhook},
            "webhooks": [
                {
                    "name": "dead.twined.test",
                    "rules": [pods],
                    "namespaceSelector": only_here,
                    "matchConditions": [
                        {"name": "one", "expression": f"{image}.contains('has-a-dead-webhook')"}
                    ],
                    "clientConfig": {"url": "https://127.0.0.1:1/"},
                    "failurePolicy": "Fail",
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                }
            ],
        },
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "quota"},
            "value": 1,
        },
    ]

    def manifest(kind, name, **fields):
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}

    in_class = {"operator": "In", "scopeName": "PriorityClass", "values": ["quota"]}
    full = {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [in_class]}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "nobody-made-it",
    }
    limit = {"type": "Container", "max": {"cpu": "64"}}
    namespaced = [
        manifest("Secret", "empty"),
        manifest("LimitRange", "limits", spec={"limits": [limit]}),
        manifest("ResourceQuota", "full", spec=full),
        manifest("PersistentVolumeClaim", "unbound", spec=claim),
    ]
    return cluster_wide, namespaced


@pytest.fixture(scope="module")
def parents(network, request):
    """The parents of all failures that this session tests, by name.

    Changes the pods of some of them, as parts of a cluster would that do not exist here.
    """
    parents = failures.ask_all(network, failures.selected(FAILURES, request))
    for name, change in {
        "gets-no-node": lambda pod: add_event(
            network,
            pod,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 node(s) didn't match Pod's node affinity/selector",
        ),
        "has-no-network": lambda pod: add_event(
            network,
            pod,
            "FailedCreatePodSandBox",
            'Failed to create pod sandbox: plugin type="bridge" failed (add): '
            "no IP addresses available",
        ),
        "has-a-silent-node": lambda pod: lose(network, pod),
        "has-a-proxy": lambda pod: outlive(network, pod),
    }.items():
        if name in parents:
            conditions = {"gets-no-node": lambda pod: True, "has-a-proxy": is_running}
            condition = conditions.get(name, failures.has_node)
            change(network.wait_for_pod(parents[name].question_uuid, condition, within=120))
    yield parents
    for parent in parents.values():
        parent.close()


def add_event(network, pod, reason, message):
    """Creates an event of a pod, as another component of a cluster would."""
    name = pod["metadata"]["name"]
    network.cluster.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.test", "namespace": network.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": name,
                "namespace": network.namespace,
                "uid": pod["metadata"]["uid"],
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "tests"},
        }
    )


def lose(network, pod):
    """Sets the status of a pod whose node does not answer."""
    patch(network, pod, {"phase": "Unknown", "reason": "NodeLost"})


def outlive(network, pod):
    """Sets the status of a pod whose service has ended, while a sidecar of a mesh still runs."""
    [question] = pod["status"]["containerStatuses"]
    since = question["state"]["running"]["startedAt"]
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since}
    proxy = {**question, "name": "istio-proxy"}
    question["state"] = {"terminated": ended}
    patch(network, pod, {"containerStatuses": [question, proxy]})


def patch(network, pod, status):
    change = json.dumps({"status": status})
    target = ["pod", pod["metadata"]["name"], "-n", network.namespace, "--subresource=status"]
    network.cluster.kubectl("patch", *target, "--type=merge", "-p", change)


@pytest.mark.parametrize("name", ENDING)
def test_a_stalled_run_is_ended_after_its_grace(network, parents, name):
    failures.expect_exception(network, parents[name], FAILURES[name])


@pytest.mark.parametrize("name", WAITING)
def test_a_run_that_no_node_fits_waits_and_its_parent_is_notified(network, parents, name):
    parent = parents[name]
    notified = lambda: any(WAIT_TEXTS[name] in text for text in parent.logs())  # noqa: E731
    wait_for(notified, f"the parent of {name} is notified")
    assert not parent.received("result", "exception")

    parent.cancel()
    assert parent.exception()["exception_type"] == "InterruptedError"
    pods = lambda: network.pods(parent.question_uuid)  # noqa: E731
    wait_for(lambda: not [pod for pod in pods() if failures.is_alive(pod)], "no pod is left")
    times = [at for event, _, at in parent.events if event["kind"] in ("heartbeat", "exception")]
    gaps = [after - before for before, after in zip([parent.asked, *times], times)]
    assert max(gaps) < 130, gaps
