"""Two replicas that are killed and paused while questions are asked."""

import os
import random
import threading
import time

import pytest

import evidence as evidences
from cluster import wait_for
from standin import StandIn

RUN = 6
SERVICES = [f"fakes/service-{number}:local" for number in range(5)]
# Between two faults, in seconds, and for how long a replica is paused.
BETWEEN = (1, 5)


class Chaos:
    """Kills replicas, and has them begin again at once, and pauses them, until it is stopped."""

    def __init__(self, network, seed, longest_pause, replicas=2):
        self.network = network
        self.random = random.Random(seed)
        self.longest_pause = longest_pause
        self.kills = 0
        self.pauses = []
        self.stopped = threading.Event()
        self.daemons = [network.begin(name=f"replica-{number}") for number in range(replicas)]
        for daemon in self.daemons:
            daemon.wait_until_ready()
        self.wake_at = [0.0] * replicas
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped.wait(self.random.uniform(*BETWEEN)):
            which = self.random.randrange(len(self.daemons))
            now = time.monotonic()
            for index, daemon in enumerate(self.daemons):
                if self.wake_at[index] and self.wake_at[index] <= now:
                    self.wake_at[index] = 0.0
                    daemon.resume()
            if self.random.random() < 0.6:
                self.kill(which)
            elif not self.wake_at[which] and self.is_ready(which):
                seconds = self.random.uniform(1, self.longest_pause)
                self.daemons[which].pause()
                self.pauses.append(round(seconds, 1))
                self.wake_at[which] = now + seconds

    def is_ready(self, which):
        return self.daemons[which].get("/ready") == 200

    def kill(self, which):
        daemon = self.daemons[which]
        assert daemon.process.poll() is None, f"{daemon.name} ended: {daemon.end_of_log()}"
        daemon.kill()
        self.kills += 1
        self.wake_at[which] = 0.0
        self.daemons[which] = self.network.begin(name=daemon.name)

    def stop(self):
        """Leaves all as they should be: alive, and awake."""
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
    """Asks `count` questions in `seconds` while replicas are killed and paused, and judges."""
    seed = int(os.environ.get("TWINED_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    network.settings["defaults"]["environment"]["FAKE_RUN"] = f"{RUN}s"
    evidence = evidences.Evidence(network)
    recipients = {}
    stand_in = StandIn(evidence, recipients, RUN, seed=seed)
    chaos = Chaos(network, seed, longest_pause)
    asking = random.Random(seed)

    try:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0, start + seconds * number / count - time.monotonic()))
            recipient = asking.choice(SERVICES)
            recipients[evidence.ask(recipient, input_values={"n": number})] = recipient
        # They go on while what was asked runs to its end.
        time.sleep(RUN + 5)
        chaos.stop()
        asked = set(recipients)
        wait_for(lambda: asked <= evidence.made(), "all have a Job", 120, 0.5)
        wait_for(lambda: asked <= evidence.ended(), "all have an end", 240, 0.5)
        wait_for(lambda: evidence.is_quiet(), "all is quiet", 120, 0.5)
        found = evidences.check(evidence, asked)
        print(
            f"\nseed {seed}: {count} questions, {chaos.kills} kills, "
            f"{len(chaos.pauses)} pauses {chaos.pauses}, {len(stand_in.never)} never answered, "
            f"{stand_in.late()} after the end, "
            f"{dict(found.counts)}, {time.monotonic() - start:.0f} s"
        )
        assert chaos.kills and chaos.pauses, f"no fault fired: seed {seed}"
        assert not found.wrong, f"seed {seed}: {found.wrong}"
        assert found.counts["exceptions"] >= len(stand_in.never)
    finally:
        chaos.close()
        stand_in.close()
        evidence.close()


def test_two_replicas_that_die_and_sleep_lose_nothing_and_double_nothing(fake_network):
    under_chaos(fake_network, 100, seconds=30, longest_pause=15)


@pytest.mark.long
def test_the_same_with_2000_questions(fake_network):
    under_chaos(fake_network, 2000, seconds=300, longest_pause=60)
