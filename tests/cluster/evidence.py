"""What can be observed of a network, and whether that is correct.

The checker uses only what was published and accepted, the rows of the store, the Jobs of the API
server, and the events on the wire. It asks no daemon, and imports nothing of what it checks.
"""

import collections
import contextlib
import datetime
import json
import threading
import time
import typing
import uuid

from google.api_core.exceptions import AlreadyExists, GoogleAPICallError

import offline
import api_watch

TERMINAL = ("result", "exception")
OURS = "app.kubernetes.io/managed-by=twined"
QUESTION = "twined.octue.com/question"
SENDER = "local/local:local"


class ReceivedEvent(typing.NamedTuple):
    """An event on the wire."""

    kind: str
    question: str
    uuid: str
    message_id: str

    @classmethod
    def from_message(cls, message):
        attributes, kind = message.attributes, json.loads(message.data)["kind"]
        return cls(kind, attributes["question_uuid"], attributes["uuid"], message.message_id)


class Evidence:
    """Collects evidence from its creation on, which must precede the first question."""

    def __init__(self, network):
        self.network = network
        self.lock = threading.Lock()
        self.sent = []
        # By uid: name, question, the time when it was first seen, whether it ended or was deleted.
        self.jobs = {}
        self.received = []
        self.stopped = threading.Event()
        # Before the first daemon starts.
        with contextlib.suppress(AlreadyExists):
            network.publisher.create_topic(name=network.topic)
        name = f"evidence-{uuid.uuid4().hex[:8]}"
        self.subscription = network.subscriber.subscription_path(offline.PROJECT, name)
        network.subscriber.create_subscription(
            request={
                "name": self.subscription,
                "topic": network.topic,
                "enable_message_ordering": True,
                "ack_deadline_seconds": 60,
            }
        )
        path = api_watch.JOBS.format(network.namespace)
        self.watch = api_watch.Watch(network.cluster, path, self.record_job, OURS)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    # === Publishing ===

    def publish(self, data, attributes):
        """Publishes without waiting; `accepted` waits for all messages."""
        body = json.dumps(data).encode()
        publisher, key = self.network.publisher, attributes["question_uuid"]
        future = publisher.publish(self.network.topic, body, ordering_key=key, **attributes)
        with self.lock:
            self.sent.append((data["kind"], attributes, future, time.time()))

    def ask(self, recipient, **fields):
        """Asks a question, and returns its uuid."""
        question = str(uuid.uuid4())
        own = attributes(question, recipient, "PARENT")
        own |= {"forward_logs": "1", "save_diagnostics": "SAVE_DIAGNOSTICS_OFF"}
        self.publish({"kind": "question", **fields}, own)
        return question

    def answer(self, question, recipient, kind="result", **fields):
        """Publishes an event in the name of the child."""
        self.publish({"kind": kind, **fields}, attributes(question, recipient, "CHILD"))

    def accepted(self):
        """All messages that Pub/Sub accepted: (kind, attributes, message id, time of sending)."""
        with self.lock:
            sent = list(self.sent)
        return [(kind, own, future.result(timeout=60), at) for kind, own, future, at in sent]

    # === Observing ===

    def record_job(self, what, job, at):
        meta = job["metadata"]
        labels = meta.get("labels", {})
        with self.lock:
            known = self.jobs.setdefault(
                meta["uid"], {"name": meta["name"], "question": labels.get(QUESTION), "at": at}
            )
            known["deleted"] = what == "DELETED"
            known["ended"] = any(
                found["type"] in ("Complete", "Failed") and found["status"] == "True"
                for found in job.get("status", {}).get("conditions", [])
            )

    def listen(self):
        client = self.network.subscriber
        request = {"subscription": self.subscription, "max_messages": 1000}
        while not self.stopped.is_set():
            try:
                pulled = client.pull(request=request, timeout=5, retry=None).received_messages
            except GoogleAPICallError:
                self.stopped.wait(0.05)
                continue
            with self.lock:
                for message in (found.message for found in pulled):
                    self.received.append(ReceivedEvent.from_message(message))
            ids = [found.ack_id for found in pulled]
            if ids:
                client.acknowledge(request={"subscription": self.subscription, "ack_ids": ids})

    def questions_with_job(self):
        """The questions of which a Job was seen."""
        with self.lock:
            return {job["question"] for job in self.jobs.values()}

    def ended_questions(self):
        """The questions of which a terminal event was received."""
        with self.lock:
            return {event.question for event in self.received if event.kind in TERMINAL}

    def on_wire(self):
        """All events received, each message once, in the order of their delivery."""
        with self.lock:
            return list({event.message_id: event for event in self.received}.values())

    def is_quiet(self):
        """Whether all Jobs have ended, and all events received are on record."""
        with self.lock:
            if not all(job["ended"] or job["deleted"] for job in self.jobs.values()):
                return False
        wire = {(event.uuid, event.kind) for event in self.on_wire()}
        return wire <= {(row["uuid"], row["kind"]) for row in self.network.rows()}

    def close(self):
        self.stopped.set()
        self.watch.stop()
        self.thread.join(10)


def attributes(question, recipient, sender_type):
    """The attributes that the SDK sets for a question (`PARENT`) or for an answer (`CHILD`)."""
    child = sender_type == "CHILD"
    return {
        "uuid": str(uuid.uuid4()),
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "question_uuid": question,
        "originator_question_uuid": question,
        "parent": SENDER,
        "originator": SENDER,
        "sender": recipient if child else SENDER,
        "recipient": SENDER if child else recipient,
        "sender_type": sender_type,
        "sender_sdk_version": "0.69.1",
        "retry_count": "0",
    }


# === The checker ===


class Findings:
    """The result of a check: `violations` for a person, and `counts` for the report."""

    def __init__(self):
        self.violations = []
        self.counts = collections.Counter()

    def add(self, what, which):
        """Adds a violation, unless `which` is empty."""
        which = list(which)
        if which:
            self.violations.append(f"{len(which)} × {what}, for example {which[:3]}")


def check(evidence, questions):
    """Checks that each question has one Job and one terminal event, and each event one row."""
    found = Findings()
    wire = evidence.on_wire()
    accepted = evidence.accepted()
    rows = evidence.network.rows()
    check_jobs(evidence, questions, found)
    check_store(accepted, wire, rows, found)
    check_ends(questions, accepted, wire, rows, found)
    found.add("rejected message", [row["reason"] for row in evidence.network.rejected_messages()])
    return found


def check_jobs(evidence, questions, found):
    jobs = collections.Counter(job["question"] for job in evidence.jobs.values())
    found.counts["Jobs"] = sum(jobs.values())
    found.add("question without a Job", (each for each in questions if not jobs[each]))
    found.add("question with several Jobs", (each for each in questions if jobs[each] > 1))
    found.add("Job without a question", set(jobs) - set(questions))


def check_store(accepted, wire, rows, found):
    """Checks that each accepted event was received and is on record once."""
    stored = collections.Counter((row["uuid"], row["kind"]) for row in rows)
    ids = collections.Counter(json.loads(row["backend_metadata"])["message_id"] for row in rows)
    found.counts |= {"published": len(accepted), "on the wire": len(wire), "on record": len(rows)}
    sent = ((own["uuid"], kind) for kind, own, _, _ in accepted)
    found.add("accepted event that is not on record", (it for it in sent if not stored[it]))
    received = ((event.uuid, event.kind) for event in wire)
    found.add("received event that is not on record", (it for it in received if not stored[it]))
    found.add("event that is on record twice", (it for it, times in stored.items() if times > 1))
    found.add("message that is on record twice", (it for it, times in ids.items() if times > 1))
    delivered = {event.message_id for event in wire}
    missing = (it for _, _, it, _ in accepted if it not in delivered)
    found.add("accepted message that was not received", missing)


def check_ends(questions, accepted, wire, rows, found):
    answered = {own["question_uuid"] for kind, own, _, _ in accepted if kind in TERMINAL}
    by_question = collections.defaultdict(list)
    for event in wire:
        by_question[event.question].append(event)
    recorded = collections.Counter(row["question_uuid"] for row in rows if row["kind"] in TERMINAL)
    found.add("question without a terminal event", (it for it in questions if not recorded[it]))
    found.add("question with several terminal events", (it for it in questions if recorded[it] > 1))
    several, silent = [], []
    for question in questions:
        kinds = [event.kind for event in by_question[question]]
        exceptions = kinds.count("exception")
        found.counts["exceptions"] += exceptions
        found.counts["answers"] += kinds.count("result")
        if exceptions > 1:
            several.append(question)
        if question not in answered and exceptions == 0:
            silent.append(question)
    found.add("question with several exceptions on the wire", several)
    found.add("question without an answer and without an exception", silent)
