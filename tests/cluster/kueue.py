"""Kueue in a cluster of the tests, running as a process of this machine and not in a pod.

A Service that names an address of this machine leads to its webhooks. The certificates that it
creates for them are written to the folder where a pod would have them mounted.
"""

import base64
import json
import os

import fake
import parts

NAMESPACE = "kueue-system"
SERVICE = "kueue-webhook-service"
SECRET = "kueue-webhook-server-cert"
WEBHOOKS = ("kueue-mutating-webhook-configuration", "kueue-validating-webhook-configuration")
PORT = 9443
# Where 0.10 reads its certificates, whatever its configuration.
OLD_CERTIFICATES = "/tmp/k8s-webhook-server"

# The kinds that 0.16 stores in a newer version than the oldest that it serves.
CONVERTED = ("localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters")


def start(cluster):
    certificates = cluster.folder / "kueue" / "serving-certs"
    certificates.mkdir(parents=True)
    run(cluster, certificates)
    written = lambda: write_certificates(cluster, certificates)  # noqa: E731
    cluster.wait_for(written, "Kueue has created its certificates")
    cluster.wait_for(lambda: admits(cluster), "Kueue's webhooks answer")


def restart(cluster):
    """Starts it again after its program was killed, and restores the kinds that were removed."""
    definitions, hooks = wanted(cluster)
    cluster.kubectl.apply(*definitions, *hooks)
    cluster.wait_for(lambda: serves(cluster), "Workloads are served")
    run(cluster, cluster.folder / "kueue" / "serving-certs")
    cluster.wait_for(lambda: admits(cluster), "Kueue's webhooks answer")


def serves(cluster):
    try:
        cluster.kubectl.list("workloads.kueue.x-k8s.io", "-A")
    except RuntimeError:
        return False
    return True


def remove_kind(cluster, kind):
    """Removes one of its kinds and its webhooks from the API server, after Kueue was killed."""
    cluster.kubectl("delete", "mutatingwebhookconfiguration", WEBHOOKS[0])
    cluster.kubectl("delete", "validatingwebhookconfiguration", WEBHOOKS[1])
    definition = f"{kind}.kueue.x-k8s.io"
    cluster.kubectl("delete", "crd", definition, "--wait=false")
    # The objects have finalizers that only Kueue removes.
    for found in cluster.kubectl.list(definition, "-A"):
        metadata, patch = found["metadata"], '{"metadata":{"finalizers":null}}'
        target = [definition, metadata["name"], "-n", metadata["namespace"], "--type=merge"]
        cluster.kubectl("patch", *target, "-p", patch, check=False)
    gone = lambda: not cluster.kubectl.get("crd", definition)  # noqa: E731
    cluster.wait_for(gone, f"{kind} are not served", within=30)


def run(cluster, certificates):
    config = cluster.folder / "kueue.json"
    config.write_text(json.dumps(configuration(cluster, certificates)))
    arguments = [f"--config={config}", "--feature-gates=VisibilityOnDemand=false"]
    program = cluster.programs / parts.KUEUE[cluster.kueue]

    if is_old(cluster):
        # Two of these may run on one machine, so each gets a private folder at that path.
        private = 'mkdir -p "$0" && mount --bind "$1" "$0" && shift && exec "$@"'
        mounted = ["sh", "-c", private, OLD_CERTIFICATES, certificates.parent, program]
        arguments = ["/usr/bin/unshare", "--mount", *mounted, *arguments]
    else:
        arguments = [program, *arguments]

    cluster.run("kueue", *arguments, KUBECONFIG=str(cluster.kubeconfig))


def is_old(cluster):
    return cluster.kueue == "0.10"


# === Installing ===


def wanted(cluster):
    """The manifests of its kinds and of its webhooks."""
    manifests = cluster.programs / f"{parts.KUEUE[cluster.kueue]}-manifests"
    definitions, hooks = [], []

    for manifest in read(cluster, manifests):
        if manifest["kind"] == "CustomResourceDefinition":
            definitions.append(with_conversion(cluster, manifest))
        else:
            hooks.append(with_service(manifest))

    return definitions, hooks


def install(cluster):
    """Creates its kinds and webhooks. Until `start`, the webhooks do not answer."""
    definitions, hooks = wanted(cluster)
    metadata = {"namespace": NAMESPACE}
    cluster.kubectl.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": SERVICE},
            "spec": {"type": "ExternalName", "externalName": cluster.loopback},
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": {**metadata, "name": SECRET}},
        *definitions,
        *hooks,
    )
    cluster.wait_for(lambda: are_established(cluster), "Kueue's kinds are established")


def are_established(cluster):
    # (`kubectl wait` fails for a definition without conditions.)
    for definition in cluster.kubectl.list("crd"):
        conditions = definition.get("status", {}).get("conditions") or []
        if not any(
            condition["type"] == "Established" and condition["status"] == "True"
            for condition in conditions
        ):
            return False
    return True


def read(cluster, folder):
    """The manifests of a folder. `kubectl` converts them to JSON once: Python cannot read YAML."""
    converted = folder / "manifests.json"

    if not converted.exists():
        unfinished = folder / f"unfinished-{cluster.slot}"
        unfinished.write_text(json.dumps(to_json(cluster, folder)))
        os.replace(unfinished, converted)

    return json.loads(converted.read_text())


def to_json(cluster, folder):
    yaml = [f"--filename={file}" for file in sorted(folder.glob("*.yaml"))]
    printed = cluster.kubectl("create", "--dry-run=client", "-o", "json", *yaml)
    decoder = json.JSONDecoder()
    found = []

    # Documents one after the other, some of which are lists.
    while printed := printed.lstrip():
        manifest, end = decoder.raw_decode(printed)
        found += manifest["items"] if manifest["kind"] == "List" else [manifest]
        printed = printed[end:]

    return found


def with_conversion(cluster, definition):
    if not is_old(cluster) and definition["spec"]["names"]["plural"] in CONVERTED:
        webhook = {
            "clientConfig": {"service": service("/convert")},
            "conversionReviewVersions": ["v1"],
        }
        definition["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    return definition


def with_service(configuration):
    """Keeps the webhooks for Kueue's own kinds and for Jobs: the tests queue nothing else."""
    configuration["metadata"] = {"name": f"kueue-{configuration['metadata']['name']}"}
    configuration["webhooks"] = [
        webhook
        for webhook in configuration["webhooks"]
        if webhook["rules"][0]["apiGroups"][0] in ("kueue.x-k8s.io", "batch")
    ]

    for webhook in configuration["webhooks"]:
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {"service": service(path)}
    return configuration


def service(path):
    return {"namespace": NAMESPACE, "name": SERVICE, "port": PORT, "path": path}


def configuration(cluster, certificates):
    webhook = {"host": cluster.loopback, "port": PORT}
    return {
        "apiVersion": f"config.kueue.x-k8s.io/{'v1beta1' if is_old(cluster) else 'v1beta2'}",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{cluster.loopback}:8081"},
        "metrics": {"bindAddress": f"{cluster.loopback}:8080"},
        "webhook": webhook if is_old(cluster) else {**webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": SERVICE,
            "webhookSecretName": SECRET,
        },
        "integrations": {"frameworks": ["batch/job"]},
        "clientConnection": {"qps": 500, "burst": 1000},
    }


def write_certificates(cluster, folder):
    secret = cluster.kubectl.get("secret", SECRET, "--namespace", NAMESPACE)

    if not secret.get("data"):
        return False
    for name, content in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    return True


def admits(cluster):
    """Whether its webhooks answer: those for its own kinds (a flavor), and that for Jobs."""
    try:
        cluster.kubectl.apply(flavor("probe"))
        cluster.kubectl("delete", "resourceflavor", "probe", "--wait=false")
        job = {"template": {"spec": {"restartPolicy": "Never", "containers": [PROBE]}}}
        metadata = {"name": "probe", "namespace": "default"}
        probe = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job}
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(probe))
    except RuntimeError:
        return False
    return True


PROBE = {"name": "probe", "image": "probe"}


# === Queues ===


def flavor(name, on_fake_nodes=False):
    spec = {"nodeLabels": fake.SELECTOR, "tolerations": [fake.TOLERATION]} if on_fake_nodes else {}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "ResourceFlavor",
        "metadata": {"name": name},
        "spec": spec,
    }


def queue(namespace, name, on_fake_nodes=False, **quota):
    """The objects of a local queue with its own quota: `cpu="2", memory="4Gi"`."""
    cluster_queue = f"{namespace}-{name}"
    covered = {"cpu": "1k", "memory": "1Ti", "ephemeral-storage": "1Ti", **quota}
    resources = [{"name": name, "nominalQuota": amount} for name, amount in covered.items()]
    flavors = [{"name": cluster_queue, "resources": resources}]
    group = {"coveredResources": list(covered), "flavors": flavors}
    return [
        flavor(cluster_queue, on_fake_nodes),
        {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "ClusterQueue",
            "metadata": {"name": cluster_queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": cluster_queue},
        },
    ]
