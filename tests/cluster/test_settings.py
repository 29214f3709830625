"""The settings of a service, as its pod has them, and the limits that questions cannot exceed."""

import base64
import json

import fake
import offline
import pytest
from cluster import wait_for
from node import NAME
from test_sdk import wait_for_settled

WITNESS = "tests/witness:local"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_a_pod_has_the_settings_of_its_service(network):
    kubectl, namespace = network.cluster.kubectl, network.namespace

    def manifest(kind, name, **fields):
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}

    pull_secret = {"type": "kubernetes.io/dockerconfigjson", "data": docker_config()}
    kubectl.create(
        manifest("Secret", "turbine", stringData={"key": "of $(HOME) the wind"}),
        manifest("ConfigMap", "site", data={"where": "offshore"}),
        manifest("ServiceAccount", "services"),
        manifest("Secret", "pull", **pull_secret),
    )
    google = {"path": offline.FOLDER, "secret": offline.SECRET}
    network.settings["rules"] = [
        {
            "services": ["tests/*"],
            "environment": {"PLAIN": "$(HOME) $$ as it is", "TURBINE_KEY": "of the rule before"},
            "volumes": [google],
        },
        {
            "services": ["tests/witness:*"],
            "secrets": {"FROM_SECRET": {"secret": "turbine", "key": "key"}},
            "environment": {"TURBINE_KEY": "of the later rule"},
            "volumes": [
                google,
                {"path": "/turbine", "secret": "turbine"},
                {"path": "/site", "config_map": "site"},
                {"path": "/scratch", "empty_dir": "16Mi"},
            ],
            "node_selector": {"kubernetes.io/hostname": NAME},
            "tolerations": [{"key": "wind", "value": "strong", "effect": "NoSchedule"}],
            "service_account": "services",
            "priority": "system-cluster-critical",
            "image_pull_secrets": ["pull"],
            "deadline": "1h30m",
            "cpus": {"default": "50m", "limit": "request"},
            "memory": {"limit": "1Gi"},
            # Another command, as images from before 2025 need.
            "command": ["/bin/sh", "-c", 'exec octue twined question ask-local "$@"', "$0"],
        },
    ]
    read = ["/turbine/key", "/site/where", "/scratch/written!", "/site/written!", TOKEN]

    with network.daemon(), network.parent(WITNESS, input_values={"read": read}) as parent:
        output = parent.result()["output_values"]
        pod = network.wait_for_pod(parent.question_uuid)

    variables = output["variables"]
    assert variables["PLAIN"] == "$(HOME) $$ as it is"
    assert variables["FROM_SECRET"] == "of $(HOME) the wind"
    assert variables["TURBINE_KEY"] == "of the later rule"
    assert variables["OCTUE_SERVICE_REVISION_TAG"] == "local"
    assert variables["COMPUTE_PROVIDER"] == "GOOGLE_KUEUE"
    # Services of the namespace add no variables.
    assert not [name for name in variables if name.startswith("KUBERNETES_SERVICE_HOST_")]
    assert output["read"] == {
        "/turbine/key": "of $(HOME) the wind",
        "/site/where": "offshore",
        "/scratch/written!": "created",
        "/site/written!": "OSError",
        TOKEN: "FileNotFoundError",
    }

    spec = pod["spec"]
    (container,) = spec["containers"]
    assert spec["nodeName"] == NAME
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": NAME}
    taint = {"key": "wind", "operator": "Equal", "value": "strong", "effect": "NoSchedule"}
    assert taint in spec["tolerations"]
    assert spec["serviceAccountName"] == "services"
    assert spec["automountServiceAccountToken"] is False
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["activeDeadlineSeconds"] == 5400
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 3
    assert container["resources"]["limits"] == {"cpu": "50m", "memory": "1Gi"}
    assert container["resources"]["requests"]["memory"] == "128Mi"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_volume_claim_outlives_the_question_that_writes_to_it(network):
    """A claim in the namespace, on a volume of the node."""
    name = f"shared-{network.namespace}"
    host = network.folder / "shared"
    host.mkdir()
    common = {"storageClassName": name, "accessModes": ["ReadWriteMany"]}
    network.cluster.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(host)}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "shared", "namespace": network.namespace},
            "spec": {**common, "resources": {"requests": {"storage": "1Gi"}}},
        },
    )
    google = {"path": offline.FOLDER, "secret": offline.SECRET}
    volumes = [google, {"path": "/shared", "claim": "shared"}]
    network.settings["rules"] = [{"services": ["tests/witness"], "volumes": volumes}]
    reads = [["/shared/one!"], ["/shared", "/shared/one!"]]

    with network.daemon():
        seen = []
        for read in reads:
            with network.parent(WITNESS, input_values={"read": read}) as parent:
                seen.append(parent.result(within=120)["output_values"]["read"])

    network.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")
    assert seen == [{"/shared/one!": "created"}, {"/shared": ["one!"], "/shared/one!": "created"}]


def test_a_question_with_a_gpu_waits_for_a_node_that_has_one(fake_network):
    kubectl, resource = fake_network.cluster.kubectl, "twined.test/gpu"
    fake_network.settings["rules"] = [
        {"services": ["tests/echo"], "gpus": {"number": 1, "resource": resource}}
    ]
    node = kubectl.list("nodes", "-l", f"{fake.LABEL}=true")[0]["metadata"]["name"]

    def gpus(number):
        amounts = {resource: number}
        status = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
        kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", status)

    with fake_network.daemon(), fake_network.parent("tests/echo:local") as parent:
        pod = fake_network.wait_for_pod(parent.question_uuid)
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"] == {resource: "1"}
        assert container["resources"]["requests"][resource] == "1"
        notified = lambda: any(resource in text for text in parent.logs())  # noqa: E731
        wait_for(notified, "the parent is notified what the question waits for")
        assert not parent.ends()

        gpus("1")

        is_scheduled = lambda pod: pod["spec"].get("nodeName")  # noqa: E731
        pod = fake_network.wait_for_pod(parent.question_uuid, is_scheduled)
        assert pod["spec"]["nodeName"] == node
        parent.cancel()
        parent.exception()
    gpus(None)


def test_a_request_of_a_question_overrides_the_default_up_to_the_cap(network):
    network.settings["rules"] = [
        {"services": ["failing/*"], "memory": {"cap": "256Mi"}, "cpus": {"cap": 2}}
    ]
    requests = {"cpus": "1", "memory": "200Mi", "ephemeral_storage": "80Mi"}

    with network.daemon():
        with network.parent("failing/exits:local", attributes=requests) as parent:
            parent.exception()
            (container,) = network.wait_for_pod(parent.question_uuid)["spec"]["containers"]
            assert container["resources"]["requests"] == {
                "cpu": "1",
                "memory": "200Mi",
                "ephemeral-storage": "80Mi",
            }
        with network.parent("failing/exits:local", attributes={"memory": "257Mi"}) as parent:
            refused = parent.exception()
            assert network.job(parent.question_uuid) is None

    assert refused["exception_type"] == "PermissionError"
    assert "256Mi" in refused["exception_message"]
    assert "cap" in refused["exception_message"]


def test_a_run_over_its_deadline_ends_with_a_timeout_error(network):
    network.settings["rules"] = [{"services": ["failing/sleeps"], "deadline": "3s"}]

    with network.daemon(), network.parent("failing/sleeps:local") as parent:
        exception = parent.exception()
        wait_for_settled(network, parent.question_uuid)

    assert exception["exception_type"] == "TimeoutError"
    assert "deadline" in exception["exception_message"]


def test_denied_services_and_deep_questions_are_refused_with_the_setting(network):
    network.settings |= {"allow": ["tests/*", "failing/*"], "deny": ["failing/is-*"], "depth": 0}
    backend = {"name": "GCPPubSubBackend", "project_id": "tests"}
    echo = {"key": "child", "id": "tests/echo:local", "backend": backend}

    with network.daemon():
        for denied, word in (("failing/is-loud:local", "deny"), ("shapes/shell:local", "allow")):
            with network.parent(denied) as parent:
                exception = parent.exception()
                assert exception["exception_type"] == "PermissionError"
                assert word in exception["exception_message"]
                assert network.job(parent.question_uuid) is None
        with network.parent("tests/parent:local", input_values=1, children=[echo]) as parent:
            exception = parent.exception()

    # The child was refused, and its parent raised that exception.
    assert exception["exception_type"] == "PermissionError"
    assert "depth" in exception["exception_message"]


@pytest.mark.long
def test_pod_security_is_baseline_by_default_and_restricted_by_a_setting(network):
    network.settings["rules"] = [
        {
            "services": ["tests/witness"],
            "security": "restricted",
            "environment": {"HOME": "/tmp"},
        }
    ]

    with network.daemon():
        # The images run as root, so the kubelet starts none with `runAsNonRoot`.
        with network.parent(WITNESS, input_values=1) as restricted:
            pod = network.wait_for_pod(restricted.question_uuid)
            strict = pod["spec"]["containers"][0]["securityContext"]
            exception = restricted.exception()
        with network.parent("tests/environment:local") as baseline:
            baseline.result()
            pod = network.wait_for_pod(baseline.question_uuid)
            loose = pod["spec"]["containers"][0]["securityContext"]

    assert strict["runAsNonRoot"] is True
    assert strict["capabilities"] == {"drop": ["ALL"]}
    assert "root" in exception["exception_message"]
    for context in (strict, loose):
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        assert not pod["spec"].get(name)


@pytest.mark.long
def test_pods_are_admitted_if_the_namespace_enforces_the_same_standard(network):
    """Kubernetes' own admission checks `baseline` and `restricted`."""
    label = "pod-security.kubernetes.io/enforce"
    network.settings["rules"] = [{"services": ["failing/exits"], "security": "restricted"}]

    with network.daemon():
        for standard, sruid in (
            ("baseline", "tests/echo:local"),
            ("restricted", "failing/exits:local"),
        ):
            network.cluster.kubectl(
                "label", "namespace", network.namespace, f"{label}={standard}", "--overwrite"
            )
            with network.parent(sruid, input_values=1) as parent:
                # The pod was admitted. Whether its image can start does not matter here.
                assert network.wait_for_pod(parent.question_uuid)
                parent.end()


def docker_config():
    config = json.dumps({"auths": {"registry.test": {"auth": "dGVzdDp0ZXN0"}}})
    return {".dockerconfigjson": base64.b64encode(config.encode()).decode()}
