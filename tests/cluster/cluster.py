"""A Kubernetes cluster on this machine, for tests: a control plane and a real node.

    with Cluster(fake_nodes=10, kueue="0.16") as cluster:
        cluster.kubectl("get", "nodes")

It runs as processes of this machine and needs root, because its node runs real containers. Each
cluster has its own folder, bridge, subnets and cgroup, so several can run at once:

    10.231.<slot>.0/24   pods; the host is .1: servers that pods use listen there
    10.232.<slot>.1      the API server, at port 443 as in-cluster clients expect
    127.231.<slot>.1     all other components, at their usual ports

A slot belongs to the process that holds the lock on its file. The kernel releases the lock of a
process that was killed, and the next cluster that starts removes what that one left behind.
"""

import atexit
import base64
import contextlib
import fcntl
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import fake
import images
import kueue as kueues
import node
import offline
import parts
import registry
import cleanup

SLOTS = Path("/tmp/twined-clusters")
ADMIN_TOKEN = "test-admin"


class ClusterError(RuntimeError):
    """The cluster does not work. The message is for a person."""


def wait_for(condition, what, within=60, pause=0.05):
    """Waits until `condition()` is true, and returns its value."""
    deadline = time.monotonic() + within

    while True:
        found = condition()

        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within} s")
        time.sleep(pause)


class Kubectl:
    """Runs `kubectl` as the user of a kubeconfig."""

    def __init__(self, kubeconfig, folder):
        self.kubeconfig = kubeconfig
        # Clusters reuse addresses, so a shared cache would describe an earlier cluster.
        self.cache = folder / "kubectl-cache"

    def __call__(self, *arguments, stdin=None, check=True):
        """Runs `kubectl`, and returns what it printed."""
        done = subprocess.run(
            ["kubectl", *(str(argument) for argument in arguments)],
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "KUBECACHEDIR": str(self.cache),
            },
            input=stdin,
            capture_output=True,
            text=True,
        )

        if check and done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def shell(self, line):
        """Runs a line of a remedy, as a person does who copies it into a shell."""
        variables = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        subprocess.run(["sh", "-c", line], env=variables, check=True, capture_output=True)

    def get(self, *arguments):
        """The object that `kubectl get … -o json` prints, or None if it does not exist."""
        printed = self("get", *arguments, "-o", "json", "--ignore-not-found")
        return json.loads(printed) if printed.strip() else None

    def list(self, *arguments):
        """The objects that `kubectl get … -o json` lists."""
        return json.loads(self("get", *arguments, "-o", "json"))["items"]

    def create(self, *objects):
        """Creates objects, given as dicts."""
        everything = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("create", "-f", "-", stdin=json.dumps(everything))

    def apply(self, *objects):
        """Creates objects, or updates them if they exist."""
        everything = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(everything))


class AnyCluster:
    """What every cluster offers, whether the tests started it or a person did."""

    repository = images.REPOSITORY

    def image(self, sruid):
        """The name of a service's image."""
        return f"{self.repository}/{sruid}"

    def wait_for(self, condition, what, within=60):
        """Waits until `condition()` is true, and returns its value."""
        return wait_for(condition, what, within)

    def kubeconfig_of(self, namespace, account, path, duration="24h"):
        """Writes a kubeconfig with a token of a service account, and returns its path."""
        token = self.kubectl(
            "create", "token", account, "--namespace", namespace, f"--duration={duration}"
        )
        view = ["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]
        config = json.loads(self.kubectl(*view))
        cluster = config["clusters"][0]["cluster"]
        write_kubeconfig(path, cluster, token.strip(), namespace)
        return path


def write_kubeconfig(path, cluster, token, namespace="default"):
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config, indent=1))
    path.chmod(0o600)


class ExistingCluster(AnyCluster):
    """A cluster of a person: the current context of their KUBECONFIG."""

    own = False
    node = registry = offline = kueue = None
    fake_nodes = 0

    def __init__(self, folder):
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        # Only the owner knows the address of this machine for its pods, and its repository.
        self.host = os.environ.get("TWINED_TEST_CLUSTER_HOST")
        self.repository = os.environ.get("TWINED_TEST_REPOSITORY", images.REPOSITORY)
        view = ["kubectl", "config", "view", "--raw", "--minify", "--flatten"]
        self.kubeconfig.write_bytes(subprocess.run(view, capture_output=True, check=True).stdout)
        self.kubeconfig.chmod(0o600)
        self.kubectl = Kubectl(self.kubeconfig, folder)


class Part:
    """A running program of the cluster, whose log is in a file."""

    def __init__(self, name, arguments, folder, log, **environment):
        self.name = name
        self.log = log
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            # Ctrl-C must reach only the program that runs the cluster, which then stops its parts.
            start_new_session=True,
        )

    def end_of_log(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self):
        self.process.kill()
        self.process.wait()


class Cluster(AnyCluster):
    """A cluster that the tests start. A start takes about 10 s, and twice that with Kueue."""

    own = True

    def __init__(self, kueue=None, fake_nodes=0, with_images=True):
        if os.geteuid() != 0:
            raise parts.Unavailable("a cluster needs root, because it runs containers")

        self.programs = parts.ensure(kueue)
        self.kueue = kueue
        self.fake_nodes = fake_nodes
        self.store = images.everything() if with_images else images.Store()
        self.slot, self.lock = take_slot()
        self.folder = SLOTS / str(self.slot)
        self.logs = self.folder / "logs"
        self.kubeconfig = self.folder / "admin.kubeconfig"
        self.kubectl = Kubectl(self.kubeconfig, self.folder)

        self.host = f"10.231.{self.slot}.1"
        self.pods = f"10.231.{self.slot}.0/24"
        self.api = f"10.232.{self.slot}.1"
        self.services = f"10.232.{self.slot}.0/24"
        self.loopback = f"127.231.{self.slot}.1"
        self.bridge = cleanup.bridge(self.slot)
        self.url = f"https://{self.api}"

        self.parts = {}
        self.node = node.Node(self)
        self.registry = self.offline = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # === Starting ===

    def start(self):
        atexit.register(self.stop)

        try:
            self.make_folder()
            self.node.start_network()
            self.registry = registry.Registry(self.store, self.host, node.REGISTRY_PORT)
            self.offline = offline.Google(self.folder, self.host)
            self.node.start_containerd()
            self.start_api_server()

            # Before the controllers: the garbage collector discovers new kinds only every 30 s.
            if self.kueue:
                kueues.install(self)

            self.start_controllers()
            self.node.start_kubelet()

            if self.fake_nodes:
                fake.start(self)
            if self.kueue:
                kueues.start(self)

            if self.store.names:
                self.node.load(self.store)
            self.node.wait_until_ready()
            self.wait_for(self.has_default_account, "the default service account exists")
        except BaseException as reason:
            # Ctrl-C is not a failure.
            if isinstance(reason, Exception):
                self.save_logs()
            self.stop()
            raise

        return self

    def save_logs(self):
        """Copies the logs of a failed start, because its folder is removed."""
        if self.logs.is_dir():
            copy = SLOTS / f"{self.slot}-failed-logs"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.logs, copy)
            parts.log(f"the cluster did not start; its logs are in {copy}")

    def make_folder(self):
        self.folder.mkdir()
        # In memory, because removing the 6,000 files of an image from a disk is slow.
        memory = ["mount", "-t", "tmpfs", "-o", "mode=755", cleanup.bridge(self.slot), self.folder]
        subprocess.run(memory, check=True)
        self.logs.mkdir()

    def run(self, name, *arguments, **environment):
        """Starts a part. Its program is called `name`, unless the first argument is a path."""
        if not (arguments and str(arguments[0]).startswith("/")):
            arguments = (self.programs / name, *arguments)

        self.parts[name] = Part(
            name,
            arguments,
            self.folder,
            self.logs / f"{name}.log",
            HOME=str(self.folder),
            PATH=os.pathsep.join([str(self.programs), parts.PATH]),
            # Identifies all processes of this cluster (`cleanup`).
            **{cleanup.MARK: str(self.folder)},
            **environment,
        )
        return self.parts[name]

    def wait_for(self, condition, what, within=60):
        """Waits, and fails at once if a part has ended."""

        def holds():
            for part in self.parts.values():
                if part.process.poll() is not None:
                    raise ClusterError(f"{part.name} has ended:\n{part.end_of_log()}")
            return condition()

        return wait_for(holds, what, within)

    def start_api_server(self):
        data = self.folder / "etcd"
        client, peer = f"http://{self.loopback}:2379", f"http://{self.loopback}:2380"
        self.run(
            "etcd",
            f"--data-dir={data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # A test cluster need not survive a power failure.
            "--unsafe-no-fsync",
            "--quota-backend-bytes=8589934592",
        )

        certificates = self.folder / "certificates"
        certificates.mkdir()
        key = certificates / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = certificates / "tokens.csv"
        tokens.write_text(f"{ADMIN_TOKEN},admin,admin,system:masters\n")
        self.run(
            "kube-apiserver",
            f"--etcd-servers={client}",
            f"--cert-dir={certificates}",
            f"--bind-address={self.api}",
            f"--advertise-address={self.api}",
            "--secure-port=443",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={self.url}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--service-cluster-ip-range={self.services}",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
            # Annotations of a namespace can send its pods to the fake nodes (`fake.NAMESPACE`).
            "--enable-admission-plugins=PodNodeSelector,PodTolerationRestriction",
            # Seconds until a pod of a vanished node is evicted, instead of five minutes.
            "--default-not-ready-toleration-seconds=5",
            "--default-unreachable-toleration-seconds=5",
        )
        self.wait_for(self.is_ready, "the API server is ready")
        # The server's certificate, followed by that of its authority.
        chain = (certificates / "apiserver.crt").read_text()
        self.authority = "-----BEGIN CERTIFICATE" + chain.split("-----BEGIN CERTIFICATE")[-1]
        (certificates / "authority.crt").write_text(self.authority)
        authority = base64.b64encode(self.authority.encode()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        write_kubeconfig(self.kubeconfig, cluster, ADMIN_TOKEN)

    def is_ready(self):
        request = urllib.request.Request(
            f"{self.url}/readyz", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
        )

        try:
            unchecked = ssl._create_unverified_context()
            return urllib.request.urlopen(request, timeout=2, context=unchecked).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def start_controllers(self):
        certificates = self.folder / "certificates"
        self.run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--bind-address={self.loopback}",
            f"--cert-dir={certificates}",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={certificates / 'accounts.key'}",
            f"--root-ca-file={certificates / 'authority.crt'}",
            "--controllers=*,-node-ipam-controller",
            # As fast as this machine allows, for bursts of thousands of Jobs.
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
            "--concurrent-job-syncs=20",
        )
        config = self.folder / "scheduler.json"
        client = {"kubeconfig": str(self.kubeconfig), "qps": 1000, "burst": 1000}
        scheduler = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": client,
        }
        config.write_text(json.dumps(scheduler))
        self.run(
            "kube-scheduler",
            f"--config={config}",
            f"--bind-address={self.loopback}",
            f"--cert-dir={certificates}",
        )

    def has_default_account(self):
        return self.kubectl.get("serviceaccount", "default", "--namespace", "default")

    # === Stopping ===

    def stop(self):
        """Ends the cluster and removes everything of it. May be called twice."""
        atexit.unregister(self.stop)

        if self.lock is None:
            return

        for server in (self.registry, self.offline):
            if server:
                server.close()

        # The node's programs first, because they restart containers. All are killed: nothing of
        # the cluster is needed again, and a graceful stop of the API server takes a minute.
        for name in ("kubelet", "containerd", *reversed(list(self.parts))):
            if name in self.parts:
                self.parts.pop(name).kill()

        cleanup.clean_up(self.slot, self.folder)
        self.lock.close()
        self.lock = None


def take_slot():
    """Locks a free slot, and returns it with its lock. Cleans up all free slots."""
    SLOTS.mkdir(mode=0o755, exist_ok=True)
    taken = None

    for slot in range(16):
        path = SLOTS / f"{slot}.lock"

        if taken and not path.exists():
            break

        lock = path.open("w")

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue

        cleanup.clean_up(slot, SLOTS / str(slot))

        if taken:
            lock.close()
        else:
            taken = (slot, lock)

    if taken is None:
        raise ClusterError(f"all slots below {SLOTS} are in use")
    return taken


@contextlib.contextmanager
def existing_or_new(folder, **options):
    """The cluster that the environment selects: a person's, or a new one for the tests."""
    if os.environ.get("TWINED_TEST_CLUSTER") == "current-context":
        yield ExistingCluster(folder)
    else:
        with Cluster(**options) as cluster:
            yield cluster
