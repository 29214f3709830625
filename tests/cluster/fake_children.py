"""Publishes results in the name of the children of fake nodes, which run none.

It watches pods, and publishes each result between 5 s before and 5 s after the end of its pod. A
share of the questions gets no result, like those of children that are killed.
"""

import heapq
import random
import threading
import time

import jobs
import api_watch

EARLY, LATE = -5.0, 5.0


class FakeChildren:
    """`recipients` has the recipient of each question; `run` is the duration of a pod in seconds.

    `silent` is the share of questions without a result.
    """

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
        # The questions without a result, and the times of the results of the others.
        self.never = set()
        self.answered = {}
        network = evidence.network
        path = api_watch.PODS.format(network.namespace)
        self.watch = api_watch.Watch(network.cluster, path, self.pod_changed, jobs.JOB_NAME_LABEL)
        threading.Thread(target=self.publish, daemon=True).start()

    def plan(self, question):
        """When the result comes, in seconds from the pod's end; None for never.

        The same for every pod of a question, and for every test run with this seed.
        """
        # The uuids differ between test runs, so the seed is combined with a number.
        if question not in self.known:
            chance = random.Random(f"{self.seed} {len(self.known)}")
            never = chance.random() < self.silent
            self.known[question] = None if never else chance.uniform(EARLY, LATE)
            if never:
                self.never.add(question)
        return self.known[question]

    def pod_changed(self, what, pod, at):
        name = pod["metadata"]["labels"][jobs.JOB_NAME_LABEL]
        question, phase = name.removeprefix("question-"), pod["status"].get("phase")
        with self.lock:
            if question in self.answered:
                return
            offset = self.plan(question)
            if offset is None:
                return
            if phase == "Running" and offset < 0:
                self.schedule(question, at + max(0, self.run_time + offset))
            elif phase in ("Succeeded", "Failed"):
                self.schedule(question, at + max(0, offset))

    def schedule(self, question, at):
        self.answered[question] = at
        heapq.heappush(self.due, (at, question))
        self.lock.notify()

    def publish(self):
        while not self.stopped:
            with self.lock:
                wait = self.due[0][0] - time.time() if self.due else 1
                if wait > 0:
                    self.lock.wait(min(wait, 1))
                    continue
                _, question = heapq.heappop(self.due)
            self.evidence.answer(question, self.recipients[question], output_values={"ok": 1})

    def count_late(self):
        """The number of results that come after the end of their pod."""
        return sum(1 for offset in self.known.values() if offset is not None and offset > 0)

    def close(self):
        self.stopped = True
        self.watch.stop()
