"""The daemon's Role: each right of it is used, and `twined doctor` asks for the same ones.

A daemon that works loses one right. What wants that right is then tried, is seen to be forbidden,
and does not come about; `twined doctor` says what is missing, and after what it says is done, it
does.
"""

import contextlib
import json
from pathlib import Path

import pytest

from cluster import wait_for
from conftest import role

HERE = Path(__file__).parent
SERVICE = "tests/echo:local"


def granted():
    """Every (resource, verb) of role.yaml."""
    resources = []
    for line in (HERE / "role.yaml").read_text().splitlines():
        name, _, value = line.strip().removeprefix("- ").partition(": ")
        words = value.strip("[]").split(", ")
        if name == "resources":
            resources = words
        elif name == "verbs":
            yield from ((resource, verb) for resource in resources for verb in words)


RIGHTS = list(granted())


@pytest.fixture
def fake(fake_network):
    """A network of fake pods that run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


def may(network, resource, verb):
    account = f"system:serviceaccount:{network.namespace}:twined"
    asked = ["auth", "can-i", verb, resource, "-n", network.namespace, "--as", account]
    return network.cluster.kubectl(*asked, check=False).startswith("yes")


def take(network, resource, verb):
    """Takes one right away from the daemon's account, and waits until that holds."""
    rights = role(network.cluster, network.namespace, "twined", (resource, verb))
    network.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(rights))
    wait_for(lambda: not may(network, resource, verb), f"it may not {verb} {resource}")


def test_doctor_asks_for_what_the_role_grants_and_for_nothing_else(fake):
    found = fake.doctor()

    of_pubsub = found.pop("rights on Pub/Sub")
    assert of_pubsub["verdict"] == "ok"
    rights = {name: check for name, check in found.items() if name.startswith("rights on ")}
    asked = {
        (name.removeprefix("rights on "), verb)
        for name, check in rights.items()
        for verb in check["found"].split(", ")
    }
    assert asked == set(RIGHTS)
    assert {check["verdict"] for check in rights.values()} == {"ok"}


# === What wants a right ===


class Try:
    """Something that wants a right: tried when this is made."""

    def __init__(self, network, daemon):
        self.network, self.daemon = network, daemon
        self.parent = self.asked = None

    def ask(self, **question):
        self.parent = self.network.parent(SERVICE, **question)
        return self.parent

    def ask_and_run(self, **question):
        self.ask(**question)
        return self.network.wait_for_run(self.parent.question_uuid)["metadata"]["name"]

    def before(self):
        """What is to be there before the right is taken away."""

    def act(self):
        """What wants the right."""

    def done(self):
        """Whether it came about."""
        raise NotImplementedError

    def is_forbidden(self, verb):
        """Whether it was tried in vain."""
        forbidden = f'twined_runner_requests_total{{verb="{verb}",code="403"}}'
        return self.daemon.metrics().get(forbidden, 0) > 0


class Launch(Try):
    def act(self):
        self.ask()

    def done(self):
        return self.network.job(self.parent.question_uuid)


class ComesAgain(Try):
    """What was launched is dealt with when it comes again."""

    def before(self):
        self.ask_and_run()

    def act(self):
        self.parent.publish()

    def done(self):
        metrics = self.daemon.metrics()
        again = metrics['twined_events_received_total{kind="question"}'] == 2
        return again and metrics["twined_deliveries_in_flight"] == 0


class Death(Try):
    """A silent death is told."""

    def before(self):
        self.pod = self.ask_and_run()

    def act(self):
        self.network.cluster.kubectl("delete", "pod", self.pod, "-n", self.network.namespace)

    def done(self):
        return self.parent.received("exception")


class WatchedDeath(Death):
    """The same, with a watch that cannot be opened again."""

    def act(self):
        restarts = lambda: sum(self.restarts())  # noqa: E731
        before = restarts()
        wait_for(lambda: restarts() > before, "a watch is lost")
        super().act()

    def restarts(self):
        name = "twined_watch_restarts_total"
        return (value for key, value in self.daemon.metrics().items() if key.startswith(name))

    def is_forbidden(self, verb):
        return "is forbidden" in self.daemon.log.read_text()


class Cancellation(Try):
    """What runs is ended when it is cancelled."""

    def before(self):
        self.ask_and_run()

    def act(self):
        self.parent.cancel()

    def done(self):
        return self.parent.received("exception")


class Deletion(Cancellation):
    """Nothing is left of what was cancelled."""

    def done(self):
        return super().done() and not self.network.job(self.parent.question_uuid)


class Large(Try):
    """A question that no argument holds runs."""

    def act(self):
        self.ask(input_values="x" * 200_000)

    def done(self):
        return self.daemon.metrics()['twined_questions{state="running"}'] == 1


class NoPod(Try):
    """Why there is no pod is told."""

    def before(self):
        limits = {"type": "Container", "min": {"cpu": "1"}}
        self.network.cluster.kubectl.create(
            {
                "apiVersion": "v1",
                "kind": "LimitRange",
                "metadata": {"name": "small", "namespace": self.network.namespace},
                "spec": {"limits": [limits]},
            }
        )

    def act(self):
        self.ask()

    def done(self):
        return any("LimitRange" in words for words in self.parent.logs())


class Leads(Try):
    """It leads, and goes on to."""

    def act(self):
        wait_for(lambda: self.said("false") > 0, "it leads no more")
        self.before_it_leads = self.said("true")

    def said(self, leads):
        return self.daemon.log.read_text().count(f'"leads":{leads}')

    def done(self):
        return self.said("true") > self.before_it_leads


class LeadsAnew(Leads):
    """The same, where somebody has deleted the Lease."""

    def act(self):
        self.network.cluster.kubectl("delete", "leases", "--all", "-n", self.network.namespace)
        super().act()


USES = {
    ("jobs", "create"): Launch,
    ("jobs", "get"): ComesAgain,
    ("jobs", "list"): Cancellation,
    ("jobs", "watch"): WatchedDeath,
    ("jobs", "patch"): Death,
    ("jobs", "delete"): Deletion,
    ("pods", "list"): NoPod,
    ("pods", "watch"): WatchedDeath,
    ("events", "list"): NoPod,
    ("secrets", "create"): Large,
    ("leases", "get"): Leads,
    ("leases", "create"): LeadsAnew,
    ("leases", "patch"): Leads,
}


@pytest.mark.long
@pytest.mark.parametrize(("resource", "verb"), USES)
def test_without_a_right_something_does_not_happen_and_with_it_it_does(fake, resource, verb):
    with fake.daemon() as daemon:
        use = USES[resource, verb](fake, daemon)
        use.before()
        take(fake, resource, verb)
        use.act()
        wait_for(lambda: use.is_forbidden(verb), f"it was forbidden to {verb} {resource}", 120)
        assert not use.done()

        check = fake.doctor()[f"rights on {resource}"]
        assert check["verdict"] in ("fail", "warn"), check
        assert f"missing: {verb}" in check["found"], check
        for line in check["remedy"].splitlines():
            fake.cluster.kubectl.shell(line)

        wait_for(use.done, f"with it, {verb} {resource} is done", 120)
        if use.parent:
            use.parent.close()


# === Rights on what Kueue has ===


@pytest.mark.long
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_without_rights_on_workloads_askers_are_not_told_what_they_wait_for(fake, queue, verb):
    fake.settings["defaults"]["queue"] = queue(fake.namespace, on_fake_nodes=True, cpu="1")
    fake.settings["defaults"]["cpus"] = {"default": "1"}
    take(fake, "workloads", verb)
    with contextlib.ExitStack() as parents:
        with fake.daemon() as daemon:
            both = [parents.enter_context(fake.parent(SERVICE)) for _ in range(2)]
            told = lambda: [words for parent in both for words in parent.logs()]  # noqa: E731
            pods = lambda: any(fake.pods(parent.question_uuid) for parent in both)  # noqa: E731
            wait_for(pods, "one of them runs")
            hidden = "parents are not notified why their questions wait"
            wait_for(lambda: hidden in daemon.log.read_text(), "it says so")
            assert not any("queue" in words for words in told())
            check = fake.doctor()["rights on workloads"]
            assert f"missing: {verb}" in check["found"] and check["verdict"] == "warn"
            for line in check["remedy"].splitlines():
                fake.cluster.kubectl.shell(line)
        with fake.daemon():
            wait_for(lambda: any("queue" in words for words in told()), "the second is told")


def test_without_the_right_on_local_queues_nobody_can_tell_that_one_is_there(fake, queue):
    name = queue(fake.namespace, on_fake_nodes=True)
    flags = ("--queue", name)
    assert fake.doctor(*flags)[f"queue {name}"]["verdict"] == "ok"
    assert fake.doctor("--queue", "other")["queue other"]["verdict"] == "fail"

    take(fake, "localqueues", "get")

    assert fake.doctor("--queue", "other")["queue other"]["verdict"] not in ("ok", "fail")


def test_every_right_of_the_role_has_a_test():
    of_kueue = {("workloads", "list"), ("workloads", "watch"), ("localqueues", "get")}
    assert set(RIGHTS) == set(USES) | of_kueue


def test_a_daemon_does_not_start_without_what_it_cannot_do_without(fake):
    take(fake, "jobs", "patch")
    daemon = fake.begin()
    assert daemon.process.wait(60) != 0
    assert "rights on jobs" in daemon.log.read_text()
    assert "patch" in daemon.log.read_text()
