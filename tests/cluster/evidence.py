"""What is seen from outside of a network, and whether it kept its promises.

The checker reads outside evidence only: what was published and accepted, what the store holds,
which Jobs the API server saw, and what came on the wire. It asks no daemon, and imports nothing of
what it checks.
"""

import collections
import contextlib
import datetime
import json
import threading
import time
import uuid

from google.api_core.exceptions import AlreadyExists, GoogleAPICallError

import offline
import watching

LAST = ("result", "exception")
OURS = "app.kubernetes.io/managed-by=twined"
QUESTION = "twined.octue.com/question"
SENDER = "local/local:local"

Heard = collections.namedtuple("Heard", "kind question uuid attributes event id at")


class Evidence:
    """Gathers all of it, from its making on: before the first question."""

    def __init__(self, network):
        self.network = network
        self.lock = threading.Lock()
        self.sent = []
        # By uid: (name, question, when it was first seen, whether it is gone)
        self.jobs = {}
        self.heard = []
        self.stopped = threading.Event()
        # From the first daemon's first moment on.
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
        path = watching.JOBS.format(network.namespace)
        self.watch = watching.Watch(network.cluster, path, self.saw_job, OURS)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    # === Publishing ===

    def publish(self, data, attributes):
        """Publishes without waiting; `accepted` waits for all of it."""
        body = json.dumps(data).encode()
        publisher, key = self.network.publisher, attributes["question_uuid"]
        future = publisher.publish(self.network.topic, body, ordering_key=key, **attributes)
        with self.lock:
            self.sent.append((data["kind"], attributes, future, time.time()))

    def ask(self, recipient, **fields):
        """Asks a question, and gives its uuid."""
        question = str(uuid.uuid4())
        asked = attributes(question, recipient, "PARENT")
        asked |= {"forward_logs": "1", "save_diagnostics": "SAVE_DIAGNOSTICS_OFF"}
        self.publish({"kind": "question", **fields}, asked)
        return question

    def answer(self, question, recipient, kind="result", **fields):
        """Answers in the child's name."""
        self.publish({"kind": kind, **fields}, attributes(question, recipient, "CHILD"))

    def accepted(self):
        """All that Pub/Sub has: (kind, attributes, message id, when it was sent)."""
        with self.lock:
            sent = list(self.sent)
        return [(kind, said, future.result(timeout=60), at) for kind, said, future, at in sent]

    # === Looking on ===

    def saw_job(self, what, job, at):
        meta = job["metadata"]
        labels = meta.get("labels", {})
        with self.lock:
            known = self.jobs.setdefault(
                meta["uid"], {"name": meta["name"], "question": labels.get(QUESTION), "at": at}
            )
            known["gone"] = what == "DELETED"
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
                    said, event = dict(message.attributes), json.loads(message.data)
                    of, kind = said["question_uuid"], event["kind"]
                    at = message.publish_time.timestamp()
                    heard = Heard(kind, of, said["uuid"], said, event, message.message_id, at)
                    self.heard.append(heard)
            ids = [found.ack_id for found in pulled]
            if ids:
                client.acknowledge(request={"subscription": self.subscription, "ack_ids": ids})

    def made(self):
        """The questions of which a Job was seen."""
        with self.lock:
            return {job["question"] for job in self.jobs.values()}

    def ended(self):
        """The questions of which a terminal event came on the wire."""
        with self.lock:
            return {heard.question for heard in self.heard if heard.kind in LAST}

    def on_wire(self):
        """All that came, each message once, in the order in which Pub/Sub gave it."""
        with self.lock:
            return list({heard.id: heard for heard in self.heard}.values())

    def is_quiet(self):
        """All Jobs have ended, and what came on the wire is on record."""
        with self.lock:
            if not all(job["ended"] or job["gone"] for job in self.jobs.values()):
                return False
        wire = {(heard.uuid, heard.kind) for heard in self.on_wire()}
        return wire <= {(row["uuid"], row["kind"]) for row in self.network.rows()}

    def close(self):
        self.stopped.set()
        self.watch.stop()
        self.thread.join(10)


def attributes(question, recipient, sender_type):
    """Those that the SDK gives an event of somebody's question, or of the child's answer."""
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
    """What was found: `wrong` in words, and `counts` for the report."""

    def __init__(self):
        self.wrong = []
        self.counts = collections.Counter()

    def say(self, what, which):
        which = list(which)
        if which:
            self.wrong.append(f"{len(which)} × {what}, such as {which[:3]}")


def check(evidence, questions):
    """Whether each question has one Job and one terminal event, nothing is lost, nothing is twice."""
    found = Findings()
    wire = evidence.on_wire()
    accepted = evidence.accepted()
    rows = evidence.network.rows()
    check_jobs(evidence, questions, found)
    check_store(accepted, wire, rows, found)
    check_ends(questions, accepted, wire, rows, found)
    found.say("rejected message", [row["reason"] for row in evidence.network.rejected()])
    return found


def check_jobs(evidence, questions, found):
    jobs = collections.Counter(job["question"] for job in evidence.jobs.values())
    found.counts["Jobs"] = sum(jobs.values())
    found.say("question without a Job", (each for each in questions if not jobs[each]))
    found.say("question with several Jobs", (each for each in questions if jobs[each] > 1))
    found.say("Job of no question", set(jobs) - set(questions))


def check_store(accepted, wire, rows, found):
    """Published and accepted is on record, by message id where it came once."""
    stored = collections.Counter((row["uuid"], row["kind"]) for row in rows)
    ids = collections.Counter(json.loads(row["backend_metadata"])["message_id"] for row in rows)
    found.counts |= {"published": len(accepted), "on the wire": len(wire), "on record": len(rows)}
    sent = ((said["uuid"], kind) for kind, said, _, _ in accepted)
    found.say("event that was accepted and is not on record", (it for it in sent if not stored[it]))
    spoken = ((heard.uuid, heard.kind) for heard in wire)
    found.say("event of the wire that is not on record", (it for it in spoken if not stored[it]))
    found.say("event that is on record twice", (it for it, times in stored.items() if times > 1))
    found.say("message that is on record twice", (it for it, times in ids.items() if times > 1))
    came = {heard.id for heard in wire}
    found.say("message accepted that never came", (it for _, _, it, _ in accepted if it not in came))


def check_ends(questions, accepted, wire, rows, found):
    answered = {said["question_uuid"] for kind, said, _, _ in accepted if kind in LAST}
    by_question = collections.defaultdict(list)
    for heard in wire:
        by_question[heard.question].append(heard)
    recorded = collections.Counter(row["question_uuid"] for row in rows if row["kind"] in LAST)
    found.say("question without a terminal event", (it for it in questions if not recorded[it]))
    found.say("question with several terminal events", (it for it in questions if recorded[it] > 1))
    several, silent = [], []
    for question in questions:
        kinds = [heard.kind for heard in by_question[question]]
        exceptions = kinds.count("exception")
        found.counts["exceptions"] += exceptions
        found.counts["answers"] += kinds.count("result")
        if exceptions > 1:
            several.append(question)
        if question not in answered and exceptions == 0:
            silent.append(question)
    found.say("question with several exceptions on the wire", several)
    found.say("question that nobody answered and nobody gave up", silent)
