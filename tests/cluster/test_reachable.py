"""The servers of a network are reachable for the clients of a cluster.

Kubelets and scrapers use the daemon's IP address, pods the name of a Service, which the daemon
does not know. Requests that only a web page sends are refused (`src/request_guard.rs`). This
cluster has no DNS and no kube-proxy, so pods have the name of the Service in their `hostAliases`.
"""

import re
import urllib.error
import urllib.request

import pytest

import images
import jobs
from node import NAME as NODE
from test_cluster import ECHO, assert_answered

PAGES = ("/live", "/ready", "/metrics")
EVIL = {"Origin": "https://evil.example"}


@pytest.fixture
def daemon(network):
    """A daemon that listens on the address where pods and kubelets reach this machine."""
    network.http = f"{network.cluster.host}:0"
    with network.daemon() as daemon:
        yield daemon


def service_names(namespace):
    """The names of the Service `twined` in cluster DNS, the longest first."""
    return [f"twined.{namespace}.svc.cluster.local", f"twined.{namespace}.svc", "twined"]


def host_aliases(namespace, address):
    """The `hostAliases` by which a pod finds the Service `twined` at `address` without DNS."""
    return [{"ip": address, "hostnames": service_names(namespace)}]


def status(url, **headers):
    """The status and the body of a GET."""
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.read().decode()


def port_of(daemon):
    return int(daemon.url().rpartition(":")[2])


# === By address ===


def test_a_kubelet_finds_the_daemon_live_and_ready(network, daemon):
    probe = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5}
    pod = pod_with_probes(
        network.namespace,
        "probed",
        livenessProbe=probe | {"httpGet": http_get(daemon, "/live")},
        readinessProbe=probe | {"httpGet": http_get(daemon, "/ready")},
    )
    # This probe sends the headers of a web page, and shows that the kubelet notices a refusal.
    headers = [{"name": name, "value": value} for name, value in EVIL.items()]
    refused = pod_with_probes(
        network.namespace,
        "refused",
        readinessProbe=probe | {"httpGet": http_get(daemon, "/ready", httpHeaders=headers)},
    )
    network.cluster.kubectl.create(pod, refused)

    network.cluster.wait_for(lambda: is_ready(network, "probed"), "the pod is ready")
    wait_for_probe(network, "probed", "Liveness", "successful")
    wait_for_probe(network, "refused", "Readiness", "failed")

    assert set(probes(network, "probed")) == {
        ("Liveness", "successful"),
        ("Readiness", "successful"),
    }
    assert not is_ready(network, "refused")


def http_get(daemon, path, **more):
    """A request of a probe. It names the host, because the daemon does not run in the pod."""
    return {"host": daemon.network.cluster.host, "port": port_of(daemon), "path": path, **more}


def pod_with_probes(namespace, name, **probes):
    container = {
        "name": "sleeps",
        "image": images.BUSYBOX,
        "command": ["sleep", "86400"],
        **probes,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def is_ready(network, name):
    pod = network.cluster.kubectl.get("pod", name, "-n", network.namespace)
    conditions = pod["status"].get("conditions", [])
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def probes(network, name):
    """The number of results of a pod's probes that its kubelet counted, by (type, result)."""
    metrics = network.cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/metrics/probes")
    counted = {}
    for labels, count in re.findall(r"^prober_probe_total\{(.*)\} (\S+)$", metrics, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if (labels["namespace"], labels["pod"]) == (network.namespace, name):
            counted[labels["probe_type"], labels["result"]] = float(count)
    return counted


def wait_for_probe(network, name, kind, result):
    what = f"a {kind} probe of {name} is {result}"
    network.cluster.wait_for(lambda: probes(network, name).get((kind, result)), what)


def test_a_scraper_reads_the_metrics_by_address_and_a_web_page_does_not(daemon):
    for path in PAGES:
        assert status(daemon.url() + path)[0] == 200, path
        code, text = status(daemon.url() + path, **EVIL)
        assert (code, text.split(":")[0]) == (403, "request refused"), path

    assert "\n# TYPE " in status(daemon.url() + "/metrics")[1]


# === By name ===


def test_a_pod_reaches_the_daemon_by_the_name_of_a_service(network, daemon):
    urls = [
        f"http://{name}:{port_of(daemon)}{path}"
        for name in service_names(network.namespace)
        for path in PAGES
    ]
    # With Python, because a static busybox cannot resolve names.
    script = "import sys, urllib.request as u\n"
    script += "for url in sys.argv[1:]: print(u.urlopen(url, timeout=10).status, url)"
    image = network.cluster.image(ECHO)
    job = jobs.job(network.namespace, "by-name", image, "python", "-c", script, *urls)
    aliases = host_aliases(network.namespace, network.cluster.host)
    job["spec"]["template"]["spec"]["hostAliases"] = aliases
    network.cluster.kubectl.create(job)

    jobs.wait_for_end(network.cluster, network.namespace, "by-name")
    logs = network.cluster.kubectl("logs", "-n", network.namespace, "job/by-name")
    assert logs.splitlines() == [f"200 {url}" for url in urls]


def test_a_daemon_on_loopback_accepts_the_names_of_allow_host(network):
    """For a proxy on its host, or a port that `kubectl` forwards."""
    name = service_names(network.namespace)[0]

    with network.daemon() as daemon:
        port = port_of(daemon)
        for path in PAGES:
            assert status(f"http://localhost:{port}{path}")[0] == 200, path
            code, text = status(daemon.url() + path, Host=f"{name}:{port}")
            assert code == 403, path
            assert "--allow-host" in text
    with network.daemon("--allow-host", name) as daemon:
        for path in PAGES:
            assert status(daemon.url() + path, Host=f"{name}:{port_of(daemon)}")[0] == 200, path


def test_the_sdk_in_a_pod_reaches_the_emulator_by_the_name_of_a_service(
    own_cluster, namespace, emulator, offline_google
):
    """The emulator does not know the name of the Service. It accepts every name for gRPC."""
    google = offline_google(namespace, emulator)
    address, _, port = google["env"]["PUBSUB_EMULATOR_HOST"].rpartition(":")
    google["env"]["PUBSUB_EMULATOR_HOST"] = f"{service_names(namespace)[0]}:{port}"

    aliases = host_aliases(namespace, address)
    assert_answered(own_cluster, namespace, emulator, google, hostAliases=aliases)
