"""The real node of a cluster: a bridge, containerd and a kubelet.

Names of images begin with `images.REGISTRY`, a name that containerd resolves to the host. So an
image has the same name whether it was loaded into the node before or is pulled.
"""

import json
import os
import subprocess

import images
import parts
import cleanup

NAME = "real"
# The port of the registry, on the host's address for pods.
REGISTRY_PORT = 5000
# The network has 254 addresses; pods that have just ended still hold some.
PODS = 200


class Node:
    def __init__(self, cluster):
        self.cluster = cluster
        self.folder = cluster.folder / "node"
        self.socket = self.folder / "containerd.sock"

    # === Network ===

    def start_network(self):
        bridge, host, api = self.cluster.bridge, self.cluster.host, self.cluster.api
        self.folder.mkdir()
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{host}/24", "dev", bridge)
        # The API server's address as a Service: pods reach it through the host, without kube-proxy.
        ip("address", "add", f"{api}/32", "dev", bridge)
        ip("link", "set", bridge, "up")

        network = {
            "cniVersion": "1.0.0",
            "name": "twined",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": bridge,
                    "isGateway": True,
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "addresses"),
                        "ranges": [[{"subnet": self.cluster.pods, "gateway": host}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        networks = self.folder / "networks"
        networks.mkdir()
        (networks / "10-twined.conflist").write_text(json.dumps(network))

    # === containerd ===

    def start_containerd(self):
        hosts = self.folder / "registries" / images.REGISTRY
        hosts.mkdir(parents=True)
        registry = f"http://{self.cluster.host}:{REGISTRY_PORT}"
        (hosts / "hosts.toml").write_text(
            f'server = "{registry}"\n[host."{registry}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        config = self.folder / "containerd.toml"
        config.write_text(f"""
            version = 3
            root = "{self.folder}/root"
            state = "{self.folder}/state"

            [grpc]
            address = "{self.socket}"

            [plugins.'io.containerd.cri.v1.images']
            pinned_images.sandbox = "{images.PAUSE}"
            registry.config_path = "{self.folder}/registries"

            [plugins.'io.containerd.cri.v1.runtime']
            # runc fails on machines that do not permit lowering it.
            restrict_oom_score_adj = true
            netns_mounts_under_state_dir = true
            cni.bin_dirs = ["/usr/lib/cni"]
            cni.conf_dir = "{self.folder}/networks"
            containerd.runtimes.runc.runtime_type = "io.containerd.runc.v2"
            containerd.runtimes.runc.options.Root = "{self.folder}/runc"
            """)
        self.cluster.run("containerd", "--config", config)

    def ctr(self, *arguments, **options):
        """Runs `ctr` in the containerd namespace of Kubernetes."""
        return subprocess.run(
            [self.cluster.programs / "ctr", "-a", self.socket, "-n", "k8s.io", *arguments],
            check=True,
            capture_output=True,
            **options,
        ).stdout

    def load(self, store, names=None):
        """Loads images of an `images.Store` into the node, so that they need not be pulled."""
        reading, writing = os.pipe()
        importing = subprocess.Popen(
            [self.cluster.programs / "ctr", "-a", self.socket, "-n", "k8s.io"]
            + ["images", "import", "--local", "-"],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(reading)

        try:
            with open(writing, "wb") as archive:
                store.write_archive(archive, names)
        except BrokenPipeError:
            pass  # `ctr` has ended, and its output has the reason.

        output, _ = importing.communicate()

        if importing.returncode != 0:
            raise RuntimeError(f"failed to load images: {output.strip()}")

    def images(self):
        """The names of the images on the node."""
        return self.ctr("images", "list", "-q", text=True).split()

    # === kubelet ===

    def start_kubelet(self):
        self.cluster.wait_for(self.socket.exists, "containerd is ready")
        pause = images.Store()
        images.add_pause(pause)
        self.load(pause)

        root = cleanup.cgroup(self.cluster.slot)

        for hierarchy in hierarchies():
            (hierarchy / root).mkdir(exist_ok=True)

        resolver = self.folder / "resolv.conf"
        resolver.write_text("")
        config = self.folder / "kubelet.json"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "address": self.cluster.host,
                    "healthzBindAddress": self.cluster.loopback,
                    "readOnlyPort": 0,
                    "authentication": {
                        "anonymous": {"enabled": True},
                        "webhook": {"enabled": False},
                    },
                    "authorization": {"mode": "AlwaysAllow"},
                    "containerRuntimeEndpoint": f"unix://{self.socket}",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{root}",
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "enforceNodeAllocatable": [],
                    "makeIPTablesUtilChains": False,
                    "oomScoreAdj": 0,
                    "maxPods": PODS,
                    # There is no DNS: a lookup is refused at once.
                    "clusterDNS": [self.cluster.host],
                    "clusterDomain": "cluster.local",
                    "resolvConf": str(resolver),
                    "podLogsDir": str(self.folder / "pod-logs"),
                    "volumePluginDir": str(self.folder / "volume-plugins"),
                    # So that tests run on a machine whose disk is nearly full.
                    "evictionHard": {
                        "memory.available": "50Mi",
                        "nodefs.available": "1%",
                        "nodefs.inodesFree": "1%",
                        "imagefs.available": "1%",
                        "imagefs.inodesFree": "1%",
                    },
                    "imageGCHighThresholdPercent": 100,
                    "imageGCLowThresholdPercent": 99,
                    "serializeImagePulls": False,
                    "registryPullQPS": 0,
                    "eventRecordQPS": 0,
                    "kubeAPIQPS": 500,
                    "kubeAPIBurst": 500,
                }
            )
        )
        self.cluster.run(
            "kubelet",
            f"--config={config}",
            f"--kubeconfig={self.cluster.kubeconfig}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-certificates'}",
            f"--hostname-override={NAME}",
            f"--node-ip={self.cluster.host}",
        )

    def wait_until_ready(self):
        def ready():
            node = self.cluster.kubectl.get("node", NAME)
            return node and is_ready(node) and not node["spec"].get("taints")

        self.cluster.wait_for(ready, "the node is ready")


def is_ready(node):
    conditions = node["status"].get("conditions", [])
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def hierarchies():
    """The roots of the cgroup hierarchies: one (v2), or one for each controller (v1)."""
    root = cleanup.CGROUPS

    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if (path / "cgroup.procs").exists()]


def ip(*arguments):
    subprocess.run(
        ["ip", *arguments], env={"PATH": parts.PATH}, check=True, capture_output=True, text=True
    )
