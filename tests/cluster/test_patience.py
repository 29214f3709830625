"""What does not go on is told when it has stood so for long enough, and not before.

All are asked side by side: a quarter of an hour is the longest that something is given.
"""

import contextlib
import json

import pytest

import deaths
from cluster import wait_for
from deaths import Way, on_fake_nodes
from network import runs

pytestmark = pytest.mark.long

SLEEPS = "deaths/sleeps:local"
SOON, ALONE, MADE_LATER, DAMAGED, PASSES = 30, 60, 120, 300, 900
NOWHERE = {"node_selector": {"twined.test/nowhere": "true"}}

# Half a minute.
UNLIKELY = {
    "is-not-there": Way("ServiceNotFound", "there is no such image",
                        "push the image of that revision"),
    "runs-as-root": Way("RuntimeError", "runs as root", "set a numeric user in the image",
                        of=SLEEPS, security="restricted"),
    "starts-with-nothing": Way("MemoryError", "limit of memory is too low", "with more `memory`",
                               of=SLEEPS, memory={"default": "1Mi", "limit": "request"}),
    "is-never-pulled": Way("RuntimeError", "its pull policy is `Never`", "load the image",
                           **on_fake_nodes(waiting="ErrImageNeverPull", message="Container image is "
                                           "not present with pull policy of Never")),
    "is-not-signed": Way("RuntimeError", "its signature is not one", "sign the image",
                         **on_fake_nodes(waiting="SignatureValidationFailed", message="no signature")),
    "is-for-another-processor": Way(
        "RuntimeError", "not built for the processor of the node", "build it for that platform too",
        **on_fake_nodes(waiting="ErrImagePull", message="no match for platform in manifest: "
                        "not found")),
    "breaks-a-policy": Way("PermissionError", "a policy of the cluster does not let it be made",
                           "nobody wants it", "see what the policy wants", of=SLEEPS),
    "asks-for-too-much": Way("PermissionError", "the namespace's LimitRange", "ask for what is allowed",
                             of=SLEEPS, asks={"cpus": "100"}, cpus={"limit": "request"}),
    "asks-for-more-than-its-limit": Way("PermissionError", "the API server finds it invalid",
                                        "see what is asked for", of=SLEEPS, asks={"cpus": "100"}),
}
# A minute.
OUTLIVED = {
    "has-a-proxy": Way("RuntimeError", "without a result", "the container `istio-proxy` still runs",
                       "`restartPolicy: Always`", **on_fake_nodes(run="forever")),
}
# Two minutes.
MISSING = {
    "is-forbidden": Way("RuntimeError", "its registry does not let the cluster have it",
                        "let the nodes' account read the repository", of=SLEEPS),
    "is-not-known": Way("RuntimeError", "its registry does not let the cluster have it",
                        "name a pull secret", of=SLEEPS),
    "wants-a-secret": Way("RuntimeError", "a secret, or a key of it,", "create it in the namespace",
                          of=SLEEPS, secrets={"TOKEN": {"secret": "nobody-made-it", "key": "a"}}),
    "wants-a-key": Way("RuntimeError", "a secret, or a key of it,", "create it in the namespace",
                       of=SLEEPS, secrets={"TOKEN": {"secret": "empty", "key": "nobody-made-it"}}),
    "mounts-a-secret": Way("RuntimeError", "a secret, or a key of it,", "create it in the namespace",
                           of=SLEEPS, volumes=[{"path": "/a", "secret": "nobody-made-it"}]),
    "mounts-a-configuration": Way("RuntimeError", "a configuration (ConfigMap)", "create it in the",
                                  of=SLEEPS, volumes=[{"path": "/a", "config_map": "nobody-made-it"}]),
    "mounts-a-claim": Way("RuntimeError", "a volume claim that its settings want is not there",
                          "create it", of=SLEEPS, volumes=[{"path": "/a", "claim": "nobody-made-it"}]),
    "has-no-account": Way("PermissionError", "the service account that it wants is not there",
                          "create the account", of=SLEEPS, service_account="nobody-made-it"),
    "has-no-priority": Way("PermissionError", "the priority class that it wants is not there",
                           "create it", of=SLEEPS, priority="nobody-made-it"),
    "is-not-created": Way("RuntimeError", "its command is not in it", "entry point",
                          **on_fake_nodes(waiting="CreateContainerError", message="failed to generate "
                                          "spec: no such file or directory")),
    "is-not-run": Way("RuntimeError", "its command may not be executed", "entry point",
                      **on_fake_nodes(waiting="RunContainerError", message="runc create failed: "
                                      "permission denied")),
    "fails-a-hook": Way("RuntimeError", "a hook around its start failed", "see the hooks",
                        **on_fake_nodes(waiting="PostStartHookError", message="exit 1")),
}
# Five minutes.
BROKEN = {
    "has-a-damaged-layer": Way("RuntimeError", "its layers cannot be unpacked", "push the image again",
                               of=SLEEPS),
}
# A quarter of an hour.
PASSING = {
    "has-a-broken-registry": Way("RuntimeError", "its registry cannot be reached", "see the registry",
                                 of=SLEEPS),
    "has-a-dead-registry": Way("RuntimeError", "its registry cannot be reached", "see the registry",
                               of=SLEEPS),
    "has-a-busy-registry": Way("RuntimeError", "its registry answers no more pulls", "later",
                               of=SLEEPS),
    "has-no-volume": Way("RuntimeError", "a volume claim that its settings want gets no volume",
                         "its storage class", of=SLEEPS, volumes=[{"path": "/a", "claim": "unbound"}]),
    "is-over-quota": Way("PermissionError", "the namespace's quota has no room", "raise the ResourceQuota",
                         of=SLEEPS, priority="quota"),
    "has-a-dead-webhook": Way("PermissionError", "the cluster cannot decide on it now", "webhooks",
                              of=SLEEPS),
    "gets-no-node": Way("RuntimeError", "no node of the kind that its settings want, and its autoscaler "
                        "adds none for it", "see the node selector", of=SLEEPS, **NOWHERE),
    "has-a-slow-node": Way("RuntimeError", "its node is too slow", "see the image and the node",
                           **on_fake_nodes(waiting="CreateContainerError",
                                           message="context deadline exceeded")),
    "has-no-network": Way("RuntimeError", "its node cannot give it a network", "see the node",
                          **on_fake_nodes(start="never")),
    "has-a-silent-node": Way("RuntimeError", "is out of sight", "the node may be down",
                             **on_fake_nodes(run="forever")),
}
# Not at all: these wait.
WAITING = {
    "asks-for-the-moon": Way("InterruptedError", of=SLEEPS, cpus={"default": "60"}),
    "wants-another-node": Way("InterruptedError", of=SLEEPS, **NOWHERE),
    "tolerates-nothing": Way("InterruptedError", of=SLEEPS, node_selector={"twined.test/fake": "true"}),
}
WHYS = {
    "asks-for-the-moon": "not enough free CPUs",
    "wants-another-node": "no node of the kind that its settings want",
    "tolerates-nothing": "only nodes with a taint that it does not tolerate",
}
PATIENCE = [
    (UNLIKELY, SOON), (OUTLIVED, ALONE), (MISSING, MADE_LATER), (BROKEN, DAMAGED), (PASSING, PASSES)
]
ENDING = {name: way for ways, _ in PATIENCE for name, way in ways.items()}
WAYS = {**ENDING, **WAITING}
for ways, patience in PATIENCE:
    for way in ways.values():
        way.patience, way.within = patience, patience + 120

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
    deaths.prepare(network, WAYS)
    cluster = network.cluster
    cluster.store.damage(cluster.image(deaths.sruid("has-a-damaged-layer")))
    everywhere, here = surroundings(network.namespace)
    cluster.kubectl.apply(*everywhere, *here)
    probe = ["run", "probe", "-n", network.namespace, "--image=breaks-a-policy", "--dry-run=server"]
    # A policy holds some moments after it was made.
    refused = lambda: not cluster.kubectl(*probe, check=False)  # noqa: E731
    wait_for(refused, "the policy holds")
    with contextlib.ExitStack() as stack:
        for name, status in REFUSED.items():
            image = cluster.image(deaths.sruid(name))
            stack.enter_context(cluster.registry.refusing(image, status))
        with network.daemon():
            yield network
    for made in everywhere:
        cluster.kubectl("delete", made["kind"], made["metadata"]["name"], "--wait=false", check=False)


def surroundings(namespace):
    """What stands in the way: of the whole cluster, but for this namespace; and in this one."""
    image = "object.spec.containers[0].image"
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    only_here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy, webhook = f"policy-{namespace}", f"webhook-{namespace}"
    admission = "admissionregistration.k8s.io/v1"
    everywhere = [
        {
            "apiVersion": admission,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": policy},
            "spec": {
                "matchConstraints": {"resourceRules": [pods], "namespaceSelector": only_here},
                "validations": [
                    {"expression": f"!{image}.contains('breaks-a-policy')", "message": "nobody wants it"}
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

    def of(kind, name, version="v1", **fields):
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}

    in_class = {"operator": "In", "scopeName": "PriorityClass", "values": ["quota"]}
    full = {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [in_class]}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "nobody-made-it",
    }
    here = [
        of("Secret", "empty"),
        of("LimitRange", "limits", spec={"limits": [{"type": "Container", "max": {"cpu": "64"}}]}),
        of("ResourceQuota", "full", spec=full),
        of("PersistentVolumeClaim", "unbound", spec=claim),
    ]
    return everywhere, here


@pytest.fixture(scope="module")
def asked(network, request):
    """Those who asked, as far as it is tested now; and what else is to happen to their pods."""
    wanted = {
        item.callspec.params["way"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path
    }
    parents = deaths.ask(network, {name: way for name, way in WAYS.items() if name in wanted})
    for name, act in {
        "gets-no-node": lambda pod: say(
            network, pod, "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 node(s) didn't match Pod's node affinity/selector",
        ),
        "has-no-network": lambda pod: say(
            network, pod, "FailedCreatePodSandBox",
            "Failed to create pod sandbox: plugin type=\"bridge\" failed (add): no IP addresses available",
        ),
        "has-a-silent-node": lambda pod: lose(network, pod),
        "has-a-proxy": lambda pod: outlive(network, pod),
    }.items():
        if name in parents:
            far = {"gets-no-node": lambda pod: True, "has-a-proxy": runs}
            far_enough = far.get(name, deaths.has_node)
            act(network.wait_for_pod(parents[name].question_uuid, far_enough, within=120))
    yield parents
    for parent in parents.values():
        parent.close()


def say(network, pod, reason, message):
    """Says something of a pod, as a part of the cluster does that is not here."""
    name = pod["metadata"]["name"]
    network.cluster.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.said", "namespace": network.namespace},
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
    """Its node is silent: nobody knows whether the pod runs."""
    patch(network, pod, {"phase": "Unknown", "reason": "NodeLost"})


def outlive(network, pod):
    """The service has ended, and a container that a mesh put beside it runs on."""
    [question] = pod["status"]["containerStatuses"]
    since = question["state"]["running"]["startedAt"]
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since}
    proxy = {**question, "name": "istio-proxy"}
    patch(network, pod, {"containerStatuses": [{**question, "state": {"terminated": ended}}, proxy]})


def patch(network, pod, status):
    change = json.dumps({"status": status})
    at = ["-n", network.namespace, pod["metadata"]["name"]]
    network.cluster.kubectl("patch", "pod", *at, "--subresource=status", "--type=merge", "-p", change)


@pytest.mark.parametrize("way", ENDING)
def test_what_does_not_go_on_is_told_in_time(network, asked, way):
    deaths.told(network, asked[way], WAYS[way])


@pytest.mark.parametrize("way", WAITING)
def test_what_has_no_room_waits_and_says_for_what(network, asked, way):
    parent = asked[way]
    wait_for(lambda: any(WHYS[way] in said for said in parent.logs()), f"{way} is told why it waits")
    assert not parent.received("result", "exception")

    parent.cancel()
    assert parent.exception()["exception_type"] == "InterruptedError"
    pods = lambda: network.pods(parent.question_uuid)  # noqa: E731
    wait_for(lambda: not [pod for pod in pods() if deaths.alive(pod)], "nothing of it is left")
    beats = [at for event, _, at in parent.events if event["kind"] in ("heartbeat", "exception")]
    gaps = [after - before for before, after in zip([parent.asked, *beats], beats)]
    assert max(gaps) < 130, gaps
