"""Two replicas are killed and paused while questions are asked."""

import os
import random
import threading
import time

import pytest

import evidence as evidences
from cluster import wait_for
from fake_children import FakeChildren

RUN = 6
SERVICES = [f"fakes/service-{number}:local" for number in range(5)]
# The shortest and the longest time between two faults, in seconds.
BETWEEN = (1, 5)


class Chaos:
    """Kills and restarts replicas, and pauses and resumes them, until stopped."""

    def __init__(self, network, seed, longest_pause, replicas=2):
        self.network = network
        self.random = random.Random(seed)
        self.longest_pause = longest_pause
        self.kills = 0
        self.pauses = []
        self.stopped = threading.Event()
        names = [f"replica-{number}" for number in range(replicas)]
        self.daemons = [network.start_daemon(name=name) for name in names]
        for daemon in self.daemons:
            daemon.wait_until_ready()
        self.resume_at = [0.0] * replicas
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped.wait(self.random.uniform(*BETWEEN)):
            which = self.random.randrange(len(self.daemons))
            now = time.monotonic()
            for index, daemon in enumerate(self.daemons):
                if self.resume_at[index] and self.resume_at[index] <= now:
                    self.resume_at[index] = 0.0
                    daemon.resume()
            if self.random.random() < 0.6:
                self.kill(which)
            elif not self.resume_at[which] and self.is_ready(which):
                seconds = self.random.uniform(1, self.longest_pause)
                self.daemons[which].pause()
                self.pauses.append(round(seconds, 1))
                self.resume_at[which] = now + seconds

    def is_ready(self, which):
        return self.daemons[which].get("/ready") == 200

    def kill(self, which):
        daemon = self.daemons[which]
        assert daemon.process.poll() is None, f"{daemon.name} ended: {daemon.end_of_log()}"
        daemon.kill()
        self.kills += 1
        self.resume_at[which] = 0.0
        self.daemons[which] = self.network.start_daemon(name=daemon.name)

    def stop(self):
        """Resumes all replicas, and waits until they are ready."""
        self.stopped.set()
        self.thread.join(10)
        for daemon in self.daemons:
            daemon.resume()
            daemon.wait_until_ready()

    def close(self):
        self.stopped.set()
        for daemon in self.daemons:
            daemon.resume()
            daemon.kill()


def under_chaos(network, count, seconds, longest_pause):
    """Asks `count` questions in `seconds` while replicas are killed and paused, and checks."""
    seed = int(os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    network.settings["defaults"]["environment"]["FAKE_RUN"] = f"{RUN}s"
    evidence = evidences.Evidence(network)
    recipients = {}
    children = FakeChildren(evidence, recipients, RUN, seed=seed)
    chaos = Chaos(network, seed, longest_pause)
    asking = random.Random(seed)

    try:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0, start + seconds * number / count - time.monotonic()))
            recipient = asking.choice(SERVICES)
            recipients[evidence.ask(recipient, input_values={"n": number})] = recipient
        # The faults continue until all runs have ended.
        time.sleep(RUN + 5)
        chaos.stop()
        asked = set(recipients)
        created = lambda: asked <= evidence.questions_with_job()  # noqa: E731
        wait_for(created, "all questions have a Job", 120, 0.5)
        ended = lambda: asked <= evidence.ended_questions()  # noqa: E731
        wait_for(ended, "all questions have ended", 240, 0.5)
        wait_for(evidence.is_quiet, "all events are on record", 120, 0.5)
        found = evidences.check(evidence, asked)
        print(
            f"\nseed {seed}: {count} questions, {chaos.kills} kills, "
            f"{len(chaos.pauses)} pauses {chaos.pauses}, {len(children.never)} without a result, "
            f"{children.count_late()} results after the end, "
            f"{dict(found.counts)}, {time.monotonic() - start:.0f} s"
        )
        assert chaos.kills and chaos.pauses, f"no fault fired: seed {seed}"
        assert not found.violations, f"seed {seed}: {found.violations}"
        assert found.counts["exceptions"] >= len(children.never)
    finally:
        chaos.close()
        children.close()
        evidence.close()


def test_replicas_that_are_killed_and_paused_lose_and_duplicate_nothing(fake_network):
    under_chaos(fake_network, 100, seconds=30, longest_pause=15)


@pytest.mark.long
def test_replicas_lose_and_duplicate_none_of_2000_questions(fake_network):
    under_chaos(fake_network, 2000, seconds=300, longest_pause=60)
