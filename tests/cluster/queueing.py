"""Which Jobs run and which wait, as the API server reports it."""

import contextlib
import json
import threading
import time

import jobs


def add_rule(network, services, **fields):
    """Adds a rule to the settings of the network's next daemon."""
    network.settings["rules"].append({"services": [services], **fields})


def wait_for_log(parent, text, within=60):
    """Waits until a parent has received a log record with this text, and returns the record's."""

    def found():
        return next((message for message in parent.logs() if text in message), None)

    try:
        return parent.network.cluster.wait_for(found, f"a log record with {text!r}", within)
    except TimeoutError as error:
        raise AssertionError(f"{error}; the log is {parent.logs()}") from None


def wait_for_job(network, question, matches=lambda job: True, within=60):
    """Waits until the Job of a question (its uuid, or its parent) exists and matches."""
    question = getattr(question, "question_uuid", question)

    def found():
        job = network.job(question)
        return job and matches(job) and job

    return network.cluster.wait_for(found, f"the Job of {question} matches", within)


def is_suspended(job):
    return job["spec"]["suspend"]


def is_active(job):
    """Whether a Job is admitted and unfinished."""
    return not is_suspended(job) and not jobs.condition(job)


def is_released(job):
    return not is_suspended(job)


def pods_of_jobs(network):
    return network.cluster.kubectl.list("pods", "-n", network.namespace, "-l", jobs.JOB_NAME_LABEL)


def live_pods(network):
    live = ("Pending", "Running")
    return [pod for pod in pods_of_jobs(network) if pod["status"]["phase"] in live]


def complete_pod(network, question):
    """Makes the fake pod of a question succeed."""
    question = getattr(question, "question_uuid", question)
    pod = network.wait_for_run(question)
    status = {**pod["status"], "phase": "Succeeded"}
    for container in status["containerStatuses"]:
        since = container["state"]["running"]["startedAt"]
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since}
        container.update(ready=False, started=False, state={"terminated": ended})
    name, patch = pod["metadata"]["name"], json.dumps({"status": status})
    target = ["pod", name, "-n", network.namespace, "--subresource=status", "--type=merge"]
    network.cluster.kubectl("patch", *target, "-p", patch)


@contextlib.contextmanager
def limit_holds(network, limit, counts=lambda job: True):
    """Counts the active Jobs repeatedly, and fails if there are ever more than the limit.

    `counts` selects the Jobs that count. Yields the list of (count, time).
    """
    seen, stop, failed = [], threading.Event(), []

    def count_repeatedly():
        try:
            while not stop.wait(0.05):
                count = sum(1 for job in network.jobs() if counts(job) and is_active(job))
                seen.append((count, time.time()))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=count_repeatedly)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert not failed, failed
    assert seen, "the Jobs were never counted"
    assert max(count for count, _ in seen) <= limit, seen


def cpu_seconds(pid):
    """The CPU time that a process has used."""
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
