"""Failures of runs: how to cause each, and the exception that the parent must receive.

FAILURES = {"exits": Failure("RuntimeError", "exit code 3", "last lines", tail="too much.\\n")}
failures.prepare(network, FAILURES)
with network.daemon():
    parents = failures.ask_all(network, FAILURES)
    failures.expect_exception(network, parents["exits"], FAILURES["exits"])
"""

import datetime

import fake
import jobs

SETTLED = "twined.octue.com/settled"


class Failure:
    """A service whose runs fail, and the exception that its parent must receive.

    `texts` must be in the message, and `tail` in the traceback. `image_of` is the service whose
    image it has under its own name; None if the image is one of `images.FAILING`, or must not
    exist. `grace` is how long the stall must last before the run is ended, in seconds. The other
    arguments are settings of the service.
    """

    def __init__(
        self,
        exception,
        *texts,
        image_of=None,
        tail=(),
        within=60,
        attributes=None,
        grace=0,
        **settings,
    ):
        self.exception = exception
        self.texts = texts
        self.image_of = image_of
        self.tail = tail
        self.within = within + grace
        self.grace = grace
        self.attributes = attributes or {}
        self.settings = settings


def on_fake_nodes(**behaviour):
    """Settings that send a service's pods to fake nodes, with this behaviour (see README.md)."""
    return {
        "node_selector": fake.SELECTOR,
        "tolerations": [{"key": fake.LABEL, "effect": "NoSchedule"}],
        "environment": {f"FAKE_{name.upper()}": value for name, value in behaviour.items()},
    }


def selected(failures, request):
    """The failures whose names are parameters of tests of this module in this session."""
    names = {
        item.callspec.params.get("name")
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path
    }
    return {name: failure for name, failure in failures.items() if name in names}


def sruid(name):
    return f"failing/{name}:local"


def prepare(network, failures):
    """Adds the image and the settings of each. Must precede the start of the daemon."""
    for name, failure in failures.items():
        if failure.image_of:
            network.cluster.store.add_unpulled(sruid(name), like=failure.image_of)
        if failure.settings:
            network.settings["rules"].append({"services": [sruid(name)], **failure.settings})


def ask_all(network, failures):
    """Asks each service one question, all at once. Returns the parents by name."""
    return {
        name: network.parent(sruid(name), input_values={}, attributes=failure.attributes)
        for name, failure in failures.items()
    }


def expect_exception(network, parent, failure):
    """Waits for the one expected exception and for the end of the run. Returns the exception."""
    event = wait_for_exception(network, parent, failure.within)
    message = event["exception_message"]
    print(f"{event['exception_type']}: {message}\n{event['exception_traceback'][-3:]}")
    assert event["exception_type"] == failure.exception, message
    for text in failure.texts:
        assert text in message
    for line in [failure.tail] if isinstance(failure.tail, str) else failure.tail:
        assert line in event["exception_traceback"]
    assert parent.when("exception") - parent.asked >= failure.grace
    wait_until_settled(network, parent)
    return event


def wait_for_exception(network, parent, within):
    """Waits for the exception that ends a question. On a timeout, reports the cluster's events."""
    try:
        return parent.exception(within)
    except TimeoutError as error:
        events = network.cluster.kubectl.list("events", "-n", network.namespace)
        about = [
            f"{event['reason']}: {event.get('message')}"
            for event in events
            if parent.question_uuid in event["involvedObject"].get("name", "")
        ]
        raise TimeoutError(f"{error}; events of the cluster: {about}") from None


def wait_until_settled(network, parent, max_jobs=1, kind="exception"):
    """Waits until the runs of a question are settled: nothing runs, with one terminal event."""

    def is_settled():
        found = network.jobs(parent.question_uuid)
        return all(SETTLED in job["metadata"]["labels"] for job in found)

    network.cluster.wait_for(is_settled, f"{parent.question_uuid} is settled")
    found = network.jobs(parent.question_uuid)
    assert len(found) <= max_jobs
    assert all(jobs.condition(job) and not job["status"].get("active") for job in found), found
    assert not [pod for pod in network.pods(parent.question_uuid) if is_alive(pod)]
    ends = [event["kind"] for event in parent.received("result", "exception")]
    assert ends == [kind]
    assert len(network.rows(parent.question_uuid, "result", "exception")) == 1


def is_alive(pod):
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def ended_at(pod):
    """When a pod ended, in whole seconds; None if it reports no time."""
    status = pod["status"]
    ends = [
        state["state"]["terminated"]["finishedAt"]
        for state in status.get("containerStatuses", [])
        if "terminated" in state["state"] and state["state"]["terminated"].get("finishedAt")
    ]
    moments = [datetime.datetime.fromisoformat(end).timestamp() for end in ends]
    return max((moment for moment in moments if moment > 0), default=None)


def has_node(pod):
    """Whether a pod is scheduled."""
    return bool(pod["spec"].get("nodeName"))


def created_at(found):
    """When an object was created, in whole seconds."""
    return datetime.datetime.fromisoformat(found["metadata"]["creationTimestamp"]).timestamp()
