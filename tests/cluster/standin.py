"""Answers for the children of fake nodes, which run none.

It watches pods and publishes each result from 5 s before to 5 s after its pod's end; for some
questions never, as a child does that dies in silence.
"""

import heapq
import random
import threading
import time

import jobs
import watching

EARLY, LATE = -5.0, 5.0


class StandIn:
    """`recipients` says of a question whom it was asked; `run` is how long a pod runs, in seconds."""

    def __init__(self, evidence, recipients, run, silent=0.1, seed=0):
        self.evidence = evidence
        self.recipients = recipients
        self.run_time = run
        self.silent = silent
        self.seed = seed
        self.lock = threading.Condition()
        self.due = []
        self.known = {}
        self.stopped = False
        # Questions that get no answer; and (question, offset) of those that got one.
        self.never = set()
        self.answered = {}
        network = evidence.network
        path = watching.PODS.format(network.namespace)
        self.watch = watching.Watch(network.cluster, path, self.saw, jobs.IN_PODS_OF)
        threading.Thread(target=self.speak, daemon=True).start()

    def plan(self, question):
        """When it answers: the same for every pod of the question, and for every run of a seed."""
        # Questions have other uuids in every run: of one seed the share is the same.
        if question not in self.known:
            chance = random.Random(f"{self.seed} {len(self.known)}")
            never = chance.random() < self.silent
            self.known[question] = None if never else chance.uniform(EARLY, LATE)
            if never:
                self.never.add(question)
        return self.known[question]

    def saw(self, what, pod, at):
        name = pod["metadata"]["labels"][jobs.IN_PODS_OF]
        question, phase = name.removeprefix("question-"), pod["status"].get("phase")
        with self.lock:
            if question in self.answered:
                return
            offset = self.plan(question)
            if offset is None:
                return
            if phase == "Running" and offset < 0:
                self.say(question, at + max(0, self.run_time + offset))
            elif phase in ("Succeeded", "Failed"):
                self.say(question, at + max(0, offset))

    def say(self, question, at):
        self.answered[question] = at
        heapq.heappush(self.due, (at, question))
        self.lock.notify()

    def speak(self):
        while not self.stopped:
            with self.lock:
                wait = self.due[0][0] - time.time() if self.due else 1
                if wait > 0:
                    self.lock.wait(min(wait, 1))
                    continue
                _, question = heapq.heappop(self.due)
            self.evidence.answer(question, self.recipients[question], output_values={"ok": 1})

    def late(self):
        """How many answers are of those that come after the end of their pod."""
        return sum(1 for offset in self.known.values() if offset is not None and offset > 0)

    def close(self):
        self.stopped = True
        self.watch.stop()
