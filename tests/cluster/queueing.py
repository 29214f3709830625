"""Who runs and who waits, by the word of the API server, and how time passes with it."""

import contextlib
import json
import threading
import time

import jobs


def rule(network, services, **fields):
    """Adds a rule to the settings that the network's next daemon has."""
    network.settings["rules"].append({"services": [services], **fields})


def wait_for_note(parent, words, within=60):
    """Waits until an asker's log has a line with these words, and returns it."""

    def found():
        return next((text for text in parent.logs() if words in text), None)

    try:
        return parent.network.cluster.wait_for(found, f"it is told {words!r}", within)
    except TimeoutError as error:
        raise AssertionError(f"{error}; it was told {parent.logs()}") from None


def wait_for_job(network, question, is_so=lambda job: True, within=60):
    """Waits until the Job of a question (its uuid, or its parent) is as it should be."""
    question = getattr(question, "question_uuid", question)

    def found():
        job = network.job(question)
        return job and is_so(job) and job

    return network.cluster.wait_for(found, f"the Job of {question} is so", within)


def waits(job):
    return job["spec"]["suspend"]


def lives(job):
    """It has its turn, and is not finished."""
    return not waits(job) and not jobs.condition(job)


def was_released(job):
    return not waits(job)


def pods_of_jobs(network):
    return network.cluster.kubectl.list("pods", "-n", network.namespace, "-l", jobs.IN_PODS_OF)


def live_pods(network):
    live = ("Pending", "Running")
    return [pod for pod in pods_of_jobs(network) if pod["status"]["phase"] in live]


def finish(network, question):
    """Lets the fake pod of a question end well."""
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
def never_more(network, limit, of=lambda job: True):
    """Looks all the time how many Jobs have their turn, and fails where it was over the limit.

    Gives the list of what was seen, with when.
    """
    seen, stop, failed = [], threading.Event(), []

    def look():
        try:
            while not stop.wait(0.05):
                count = sum(1 for job in network.jobs() if of(job) and lives(job))
                seen.append((count, time.time()))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert not failed, failed
    assert seen, "nothing was looked at"
    assert max(count for count, _ in seen) <= limit, seen


def processor_seconds(pid):
    """How long a process has been on a processor."""
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
