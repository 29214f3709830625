"""The daemon needs each right of its Role, and `twined doctor` checks exactly these.

A running daemon loses one right. A use of the right is then forbidden and has no effect.
`twined doctor` reports the missing right, and after its remedy the use takes effect.
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
        listed = value.strip("[]").split(", ")
        if name == "resources":
            resources = listed
        elif name == "verbs":
            yield from ((resource, verb) for resource in resources for verb in listed)


RIGHTS = list(granted())


@pytest.fixture
def endless_network(fake_network):
    """A network whose fake pods run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


def has_right(network, resource, verb):
    account = f"system:serviceaccount:{network.namespace}:twined"
    asked = ["auth", "can-i", verb, resource, "-n", network.namespace, "--as", account]
    return network.cluster.kubectl(*asked, check=False).startswith("yes")


def revoke(network, resource, verb):
    """Revokes one right of the daemon's account, and waits until that is in force."""
    rights = role(network.cluster, network.namespace, "twined", (resource, verb))
    network.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(rights))
    revoked = lambda: not has_right(network, resource, verb)  # noqa: E731
    wait_for(revoked, f"the right to {verb} {resource} is revoked")


def test_doctor_checks_exactly_the_rights_of_the_role(endless_network):
    found = endless_network.doctor()

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


# === Uses of a right ===


class RightUse:
    """Something that needs a right."""

    def __init__(self, network, daemon):
        self.network, self.daemon = network, daemon
        self.parent = self.asked = None

    def ask(self, **question):
        self.parent = self.network.parent(SERVICE, **question)
        return self.parent

    def ask_and_run(self, **question):
        self.ask(**question)
        return self.network.wait_for_run(self.parent.question_uuid)["metadata"]["name"]

    def prepare(self):
        """Runs before the right is revoked."""

    def act(self):
        """Uses the right."""

    def done(self):
        """Whether the use took effect."""
        raise NotImplementedError

    def is_forbidden(self, verb):
        """Whether the use was tried and forbidden."""
        forbidden = f'twined_runner_requests_total{{verb="{verb}",code="403"}}'
        return self.daemon.metrics().get(forbidden, 0) > 0


class Launch(RightUse):
    def act(self):
        self.ask()

    def done(self):
        return self.network.job(self.parent.question_uuid)


class Redelivery(RightUse):
    """A redelivered question is acknowledged."""

    def prepare(self):
        self.ask_and_run()

    def act(self):
        self.parent.publish()

    def done(self):
        metrics = self.daemon.metrics()
        redelivered = metrics['twined_events_received_total{kind="question"}'] == 2
        return redelivered and metrics["twined_deliveries_in_flight"] == 0


class SilentFailure(RightUse):
    """A silent failure is reported."""

    def prepare(self):
        self.pod = self.ask_and_run()

    def act(self):
        self.network.cluster.kubectl("delete", "pod", self.pod, "-n", self.network.namespace)

    def done(self):
        return self.parent.received("exception")


class FailureAfterWatchRestart(SilentFailure):
    """The same, after a watch broke that cannot be reopened."""

    def act(self):
        restarts = lambda: sum(self.restarts())  # noqa: E731
        before = restarts()
        wait_for(lambda: restarts() > before, "a watch has broken")
        super().act()

    def restarts(self):
        name = "twined_watch_restarts_total"
        return (value for key, value in self.daemon.metrics().items() if key.startswith(name))

    def is_forbidden(self, verb):
        return "is forbidden" in self.daemon.log.read_text()


class Cancellation(RightUse):
    """A cancelled run is ended."""

    def prepare(self):
        self.ask_and_run()

    def act(self):
        self.parent.cancel()

    def done(self):
        return self.parent.received("exception")


class Deletion(Cancellation):
    """The Job of a cancelled run is deleted."""

    def done(self):
        return super().done() and not self.network.job(self.parent.question_uuid)


class LargeQuestion(RightUse):
    """A question that does not fit into an argument runs."""

    def act(self):
        self.ask(input_values="x" * 200_000)

    def done(self):
        return self.daemon.metrics()['twined_questions{state="running"}'] == 1


class MissingPod(RightUse):
    """The parent is notified why a question has no pod."""

    def prepare(self):
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
        return any("LimitRange" in text for text in self.parent.logs())


class LeaseRenewal(RightUse):
    """The daemon leads again after its Lease expired."""

    def act(self):
        wait_for(lambda: self.count_changes("false") > 0, "the daemon no longer leads")
        self.before = self.count_changes("true")

    def count_changes(self, leads):
        """How often the log reports that the daemon began (`true`) or ceased (`false`) to lead."""
        return self.daemon.log.read_text().count(f'"leads":{leads}')

    def done(self):
        return self.count_changes("true") > self.before


class LeaseCreation(LeaseRenewal):
    """The same, after the Lease was deleted."""

    def act(self):
        self.network.cluster.kubectl("delete", "leases", "--all", "-n", self.network.namespace)
        super().act()


USES = {
    ("jobs", "create"): Launch,
    ("jobs", "get"): Redelivery,
    ("jobs", "list"): Cancellation,
    ("jobs", "watch"): FailureAfterWatchRestart,
    ("jobs", "patch"): SilentFailure,
    ("jobs", "delete"): Deletion,
    ("pods", "list"): MissingPod,
    ("pods", "watch"): FailureAfterWatchRestart,
    ("events", "list"): MissingPod,
    ("secrets", "create"): LargeQuestion,
    ("leases", "get"): LeaseRenewal,
    ("leases", "create"): LeaseCreation,
    ("leases", "patch"): LeaseRenewal,
}


@pytest.mark.long
@pytest.mark.parametrize(("resource", "verb"), USES)
def test_the_use_of_a_right_takes_effect_only_with_the_right(endless_network, resource, verb):
    with endless_network.daemon() as daemon:
        use = USES[resource, verb](endless_network, daemon)
        use.prepare()
        revoke(endless_network, resource, verb)
        use.act()
        forbidden = lambda: use.is_forbidden(verb)  # noqa: E731
        wait_for(forbidden, f"the daemon is forbidden to {verb} {resource}", 120)
        assert not use.done()

        check = endless_network.doctor()[f"rights on {resource}"]
        assert check["verdict"] in ("fail", "warn"), check
        assert f"missing: {verb}" in check["found"], check
        for line in check["remedy"].splitlines():
            endless_network.cluster.kubectl.shell(line)

        wait_for(use.done, f"{verb} {resource} takes effect", 120)
        if use.parent:
            use.parent.close()


# === Rights on objects of Kueue ===


@pytest.mark.long
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_without_rights_on_workloads_parents_are_not_notified_of_their_position(
    endless_network, queue, verb
):
    endless_network.settings["defaults"]["queue"] = queue(
        endless_network.namespace, on_fake_nodes=True, cpu="1"
    )
    endless_network.settings["defaults"]["cpus"] = {"default": "1"}
    revoke(endless_network, "workloads", verb)
    with contextlib.ExitStack() as parents:
        with endless_network.daemon() as daemon:
            both = [parents.enter_context(endless_network.parent(SERVICE)) for _ in range(2)]
            logs = lambda: [text for parent in both for text in parent.logs()]  # noqa: E731
            pods = lambda: any(endless_network.pods(parent.question_uuid) for parent in both)  # noqa: E731
            wait_for(pods, "one of them runs")
            hidden = "parents are not notified why their questions wait"
            wait_for(lambda: hidden in daemon.log.read_text(), "the daemon warns of that")
            position = "It is the first in queue"
            assert not any(position in text for text in logs())
            check = endless_network.doctor()["rights on workloads"]
            assert f"missing: {verb}" in check["found"] and check["verdict"] == "warn"
            for line in check["remedy"].splitlines():
                endless_network.cluster.kubectl.shell(line)
        with endless_network.daemon():
            notified = lambda: any(position in text for text in logs())  # noqa: E731
            wait_for(notified, "the parent of the second question is notified")


def test_without_the_right_on_local_queues_doctor_cannot_check_one(endless_network, queue):
    name = queue(endless_network.namespace, on_fake_nodes=True)
    flags = ("--queue", name)
    assert endless_network.doctor(*flags)[f"queue {name}"]["verdict"] == "ok"
    assert endless_network.doctor("--queue", "other")["queue other"]["verdict"] == "fail"

    revoke(endless_network, "localqueues", "get")

    assert endless_network.doctor("--queue", "other")["queue other"]["verdict"] not in (
        "ok",
        "fail",
    )


def test_every_right_of_the_role_has_a_test():
    of_kueue = {("workloads", "list"), ("workloads", "watch"), ("localqueues", "get")}
    assert set(RIGHTS) == set(USES) | of_kueue


def test_a_daemon_does_not_start_without_an_essential_right(endless_network):
    revoke(endless_network, "jobs", "patch")
    daemon = endless_network.start_daemon()
    assert daemon.process.wait(60) != 0
    assert "rights on jobs" in daemon.log.read_text()
    assert "patch" in daemon.log.read_text()
