"""The rate of launches in a burst of questions, and the cost of ten thousand live questions.

Figures need a release build, on a machine that does nothing else:

    TWINED_BIN=target/release/twined TWINED_CREATES=target/release/examples/creates \\
        python -m pytest -s tests/cluster/test_burst.py
"""

import collections
import contextlib
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import google.pubsub_v1
import pytest

import evidence as evidences
import api_watch
from cluster import wait_for

pytestmark = pytest.mark.long

SERVICE = "fakes/service:local"
# `creates` replaces this by a new uuid.
UUID_PLACEHOLDER = "00000000-0000-4000-8000-000000000000"
BURST = 2000
ROUNDS = 3
LIVE = 10_000
# The metadata that the API server sets.
SERVER_SET = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


@pytest.fixture(scope="session")
def creates(binary):
    path = Path(os.environ.get("TWINED_CREATES", binary.parent / "examples" / "creates"))
    if not path.is_file():
        pytest.skip(f"no program at {path}: `cargo build --release --example creates`")
    return path


def publish_at_once(network, count):
    """Publishes questions with as few calls as possible. Returns the times, by question uuid."""
    # Without ordering keys, because the messages of a call must have the same one.
    messages, questions, sent = [], [], {}
    for number in range(count):
        question = str(evidences.uuid.uuid4())
        own = evidences.attributes(question, SERVICE, "PARENT") | {"forward_logs": "1"}
        data = json.dumps({"kind": "question", "input_values": {"n": number}}).encode()
        messages.append({"data": data, "attributes": own})
        questions.append(question)
    for first in range(0, count, 1000):
        part = messages[first : first + 1000]
        request = {"topic": network.topic, "messages": part}
        google.pubsub_v1.PublisherClient.publish(network.publisher, request=request)
        sent |= {question: time.time() for question in questions[first : first + 1000]}
    return sent


class JobTimes:
    """When each Job was first seen, by question."""

    def __init__(self, network):
        self.at = {}
        path = api_watch.JOBS.format(network.namespace)
        self.watch = api_watch.Watch(network.cluster, path, self.record, brief=True)

    def record(self, what, job, at):
        self.at.setdefault(job["metadata"]["name"].removeprefix("question-"), at)

    def count(self):
        return len(self.at)


def rate(times):
    """Events per second, in the middle nine tenths: without the start and the end of a burst."""
    times = sorted(times)
    cut = len(times) // 20
    return (len(times) - 2 * cut) / (times[-1 - cut] - times[cut])


def quantile(values, q):
    values = sorted(values)
    return values[int((len(values) - 1) * q)]


def clear(network):
    """Deletes all Jobs and pods, and waits until they are gone, so that each run starts equal."""
    network.cluster.kubectl(
        "delete", "jobs", "--all", "-n", network.namespace, "--cascade=background", "--wait=false"
    )
    link = api_watch.connection(network.cluster)

    def gone():
        left = 0
        for path in (api_watch.JOBS, api_watch.PODS):
            _, found = api_watch.call(link, "GET", path.format(network.namespace) + "?limit=1")
            left += len(found["items"])
        return not left

    wait_for(gone, "all Jobs and pods are gone", 300, 0.5)


def template(network):
    """Writes the Job of a question, as the daemon creates it, to a file for `creates`."""
    [question] = publish_at_once(network, 1)
    job = wait_for(lambda: network.job(question), "the question has a Job", 30)
    text = json.dumps(job).replace(question, UUID_PLACEHOLDER)
    job = json.loads(text)
    for name in SERVER_SET:
        job["metadata"].pop(name, None)
    job.pop("status", None)
    job["spec"].pop("selector", None)
    job["spec"]["template"]["metadata"].pop("creationTimestamp", None)
    labels = job["spec"]["template"]["metadata"].get("labels", {})
    job["spec"]["template"]["metadata"]["labels"] = {
        name: value
        for name, value in labels.items()
        if "controller-uid" not in name and "job-name" not in name
    }
    path = network.folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def test_a_burst_is_launched_nearly_as_fast_as_the_api_server_creates_jobs(fake_network, creates):
    network = fake_network
    network.settings["defaults"]["environment"]["FAKE_RUN"] = "forever"
    with network.daemon():
        job = template(network)
    clear(network)

    # Alternating, because the speed of the machine changes from minute to minute.
    ratios = []
    for _ in range(ROUNDS):
        best = max(bare_loop(network, creates, job, at_once) for at_once in (32, 64))
        ratios.append(burst(network) / best)
        print(f"ratio {ratios[-1]:.2f}")
    assert statistics.median(ratios) >= 0.9, ratios


def bare_loop(network, creates, job, at_once):
    """Jobs per second of a program that only creates Jobs."""
    created, usage = JobTimes(network), CpuUsage()
    run = subprocess.run(
        [creates, job, str(BURST), str(at_once)],
        env={**os.environ, "KUBECONFIG": str(network.kubeconfig)},
        capture_output=True,
        text=True,
        check=True,
    )
    wait_for(lambda: created.count() >= BURST, "all Jobs are seen", 60)
    created.watch.stop()
    found = json.loads(run.stdout)
    jobs = rate(created.at.values())
    print(
        f"\nbare, {at_once} at once: {jobs:.0f} Jobs/s; create p50 {found['p50_ms']:.0f} ms, "
        f"p99 {found['p99_ms']:.0f} ms\nCPU: {usage}"
    )
    clear(network)
    return jobs


def burst(network):
    """Jobs per second of the daemon, for questions that are published all at once."""
    with network.daemon() as daemon:
        used = cpu(daemon)
        created, usage = JobTimes(network), CpuUsage()
        sent = publish_at_once(network, BURST)
        wait_for(lambda: created.count() >= BURST, "all questions have a Job", 120)
        used, usage = cpu(daemon) - used, str(usage)
        delays = [at - sent[question] for question, at in created.at.items()]
        created.watch.stop()
        jobs = rate(created.at.values())
        print(
            f"\nthe daemon: {jobs:.0f} Jobs/s (all {BURST} in {max(delays):.2f} s); question to "
            f"Job p50 {quantile(delays, 0.5):.3f} s, p99 {quantile(delays, 0.99):.3f} s; "
            f"{used:.2f} s of CPU\ncreate {create_calls(daemon)}\nCPU: {usage}"
        )
        # Questions at a steady rate wait only for the API server.
        steady = JobTimes(network)
        sent = {}
        for _ in range(100):
            sent |= publish_at_once(network, 2)
            time.sleep(0.1)
        wait_for(lambda: set(sent) <= set(steady.at), "all questions have a Job", 60)
        delays = [steady.at[question] - at for question, at in sent.items()]
        p50, p99 = quantile(delays, 0.5), quantile(delays, 0.99)
        print(f"20 per second: p50 {p50:.3f} s, p99 {p99:.3f} s")
        steady.watch.stop()
    clear(network)
    return jobs


def create_calls(daemon):
    """The mean duration and the number of the daemon's create calls."""
    total = collections.Counter()
    for name, value in daemon.metrics().items():
        metric, _, labels = name.partition("{")
        if metric.startswith("twined_runner_request_seconds_") and 'verb="create"' in labels:
            total[metric.removeprefix("twined_runner_request_seconds_")] += value
    mean = total["sum"] / max(1, total["count"])
    return f"{mean * 1e3:.0f} ms on average of {total['count']:.0f}"


# === Many live questions ===


def test_ten_thousand_running_questions_use_little_memory_and_cpu(fake_network):
    check_usage(fake_network, LIVE, stage="running")


def test_ten_thousand_queued_questions_use_little_memory_and_cpu(fake_network):
    fake_network.settings["running"] = {"network": 1}
    check_usage(fake_network, LIVE, stage="queued")


def check_usage(network, count, stage):
    network.settings["defaults"]["environment"]["FAKE_RUN"] = "forever"
    with network.daemon() as daemon:
        empty = resident(daemon)
        for _ in range(0, count, 1000):
            publish_at_once(network, 1000)
        link = api_watch.connection(network.cluster, timeout=120)

        def all_created():
            path = api_watch.JOBS.format(network.namespace) + "?limit=1"
            _, found = api_watch.call(link, "GET", path)
            return 1 + found["metadata"].get("remainingItemCount", 0) >= count

        wait_for(all_created, f"{count} Jobs exist", 400, 1)
        all_in = lambda: in_stage(daemon, stage) >= count - 1  # noqa: E731
        wait_for(all_in, f"all questions are {stage}", 400, 1)
        # Until the work of the burst itself is over.
        time.sleep(20)
        used, start = cpu(daemon), time.monotonic()
        time.sleep(60)
        at_rest = (cpu(daemon) - used) / (time.monotonic() - start)
        full = resident(daemon)
        print(
            f"\n{count} questions {stage}: {full >> 20} MiB resident ({empty >> 20} MiB with none, "
            f"peak {peak(daemon) >> 20} MiB), {at_rest:.1%} of a CPU at rest"
        )
        assert full < 512 << 20
        assert at_rest < 0.2
    clear(network)


def in_stage(daemon, stage):
    """The number of questions in a stage, by the daemon's metrics."""
    samples = daemon.metrics()
    return sum(
        value
        for name, value in samples.items()
        if name.startswith("twined_questions{") and f'"{stage}"' in name
    )


def status(daemon, name):
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(name))


def resident(daemon):
    return status(daemon, "VmRSS:")


def peak(daemon):
    return status(daemon, "VmHWM:")


def cpu(daemon):
    """The CPU time that the daemon has used, in seconds."""
    return seconds(Path(f"/proc/{daemon.pid}/stat").read_text())


def seconds(stat):
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CpuUsage:
    """The CPU time of all processes since its creation: seconds, by the names of programs."""

    def __init__(self):
        self.before = self.now()

    def now(self):
        usage = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                stat = path.read_text()
                usage[path.parent.name] = (stat.split("(")[1].rpartition(")")[0], seconds(stat))
        return usage

    def __str__(self):
        by_name = collections.Counter()
        for pid, (name, used) in self.now().items():
            by_name[name] += used - self.before.get(pid, (name, 0))[1]
        most = [(name, used) for name, used in by_name.most_common(9) if used >= 0.1]
        return ", ".join(f"{name} {used:.1f} s" for name, used in most)
