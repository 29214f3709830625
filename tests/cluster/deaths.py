"""Ways to die, or never to live: what is asked, and what the asker is to be told.

    WAYS = {"exits": Way("RuntimeError", "exit code 3", "last lines", tail="too much.\\n")}
    deaths.prepare(network, WAYS)
    with network.daemon():
        asked = deaths.ask(network, WAYS)
        deaths.told(network, asked["exits"], WAYS["exits"])
"""

import datetime
import json

import fake
import jobs

SETTLED = "twined.octue.com/settled"


class Way:
    """A service that dies: with these settings of its own, so that its asker is told this.

    `of` is the service whose image it has under its own name; none where the image is one of
    `images.DEATHS`, or where there is to be none. `patience` is how long it is given, in seconds.
    """

    def __init__(
        self, exception, *says, of=None, tail=(), within=60, asks=None, patience=0, **settings
    ):
        self.exception = exception
        self.says = says
        self.of = of
        self.tail = tail
        self.within = within + patience
        self.patience = patience
        self.asks = asks or {}
        self.settings = settings


def on_fake_nodes(**what):
    """Settings by which a service's pods go to fake nodes, and do as is said."""
    return {
        "node_selector": fake.SELECTOR,
        "tolerations": [{"key": fake.LABEL, "effect": "NoSchedule"}],
        "environment": {f"FAKE_{name.upper()}": value for name, value in what.items()},
    }


def sruid(name):
    return f"deaths/{name}:local"


def prepare(network, ways):
    """Gives each way its image and its settings. Comes before the daemon."""
    for name, way in ways.items():
        if way.of:
            network.cluster.store.add_unpulled(sruid(name), of=way.of)
        if way.settings:
            network.settings["rules"].append({"services": [sruid(name)], **way.settings})


def ask(network, ways):
    """Asks each, all at once."""
    return {
        name: network.parent(sruid(name), input_values={}, attributes=way.asks)
        for name, way in ways.items()
    }


def told(network, parent, way):
    """Waits for the one exception that is to come, and for nothing to be left. Gives it."""
    event = heard(network, parent, way.within)
    message = event["exception_message"]
    print(f"{event['exception_type']}: {message}\n{event['exception_traceback'][-3:]}")
    assert event["exception_type"] == way.exception, message
    for words in way.says:
        assert words in message
    for line in [way.tail] if isinstance(way.tail, str) else way.tail:
        assert line in event["exception_traceback"]
    assert parent.when("exception") - parent.asked >= way.patience
    settled(network, parent)
    return event


def heard(network, parent, within):
    """The exception that ends a question; where none comes, with what the cluster says."""
    try:
        return parent.exception(within)
    except TimeoutError as error:
        said = network.cluster.kubectl("get", "events", "-n", network.namespace, "-o", "json")
        about = [
            f"{event['reason']}: {event.get('message')}"
            for event in json.loads(said)["items"]
            if parent.question_uuid in event["involvedObject"].get("name", "")
        ]
        raise TimeoutError(f"{error}; the cluster says: {about}") from None


def settled(network, parent, jobs_of_it=1, kind="exception"):
    """Waits until a question is done with: nothing of it runs, and it has one end."""

    def done():
        found = network.jobs(parent.question_uuid)
        return all(SETTLED in job["metadata"]["labels"] for job in found)

    network.cluster.wait_for(done, f"{parent.question_uuid} is settled")
    found = network.jobs(parent.question_uuid)
    assert len(found) <= jobs_of_it
    assert all(jobs.condition(job) and not job["status"].get("active") for job in found), found
    assert not [pod for pod in network.pods(parent.question_uuid) if alive(pod)]
    ends = [event["kind"] for event in parent.received("result", "exception")]
    assert ends == [kind]
    assert len(network.rows(parent.question_uuid, "result", "exception")) == 1


def alive(pod):
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def ended_at(pod):
    """When a pod ended, as far as it says: to the second."""
    status = pod["status"]
    ends = [
        state["state"]["terminated"]["finishedAt"]
        for state in status.get("containerStatuses", [])
        if "terminated" in state["state"] and state["state"]["terminated"].get("finishedAt")
    ]
    moments = [datetime.datetime.fromisoformat(end).timestamp() for end in ends]
    return max((moment for moment in moments if moment > 0), default=None)


def has_node(pod):
    """Whether a node has taken a pod."""
    return bool(pod["spec"].get("nodeName"))


def made_at(made):
    """When something was made: to the second."""
    return datetime.datetime.fromisoformat(made["metadata"]["creationTimestamp"]).timestamp()
