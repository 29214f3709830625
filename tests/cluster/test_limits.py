"""Limits by choice: what a question may not have or be, each told by a name that can be looked up."""

import uuid

import pytest

from cluster import wait_for

DEEP = "tests/deep:local"


@pytest.fixture
def fake(fake_network):
    """A network of fake pods that run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


def is_refused(network, parent, exception_type, *words):
    """Told once why, on the wire and on record, and there is no Job."""
    exception = parent.exception()
    assert exception["exception_type"] == exception_type, exception
    for word in words:
        assert word in exception["exception_message"], exception
    assert [event["kind"] for event in parent.ends()] == ["exception"]
    rows = network.rows(parent.question_uuid, "question", "exception", "result")
    assert sorted(row["kind"] for row in rows) == ["exception", "question"]
    # It is refused each time that it comes, and told once.
    parent.publish()
    assert len(parent.ends()) == 1
    assert network.job(parent.question_uuid) is None
    return exception


# === What a question asks for ===


def test_a_question_that_asks_for_more_than_a_cap_is_told_which(fake):
    for resource, cap in (("cpus", "2"), ("memory", "1Gi"), ("ephemeral_storage", "2Gi")):
        fake.settings["defaults"][resource]["cap"] = cap
    with fake.daemon():
        for resource, asked in (("cpus", "3"), ("memory", "1025Mi"), ("ephemeral_storage", "3G")):
            with fake.parent("tests/echo:local", attributes={resource: asked}) as parent:
                is_refused(fake, parent, "PermissionError", f"`{resource}.cap`", "tests/echo:local")
        at_most = {"cpus": "2", "memory": "1Gi", "ephemeral_storage": "2Gi"}
        with fake.parent("tests/echo:local", attributes=at_most) as parent:
            pod = fake.wait_for_run(parent.question_uuid)
            requests = pod["spec"]["containers"][0]["resources"]["requests"]
            assert requests == {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "2Gi"}


NONSENSE = [
    ("memory", "-1"),
    ("memory", "1e99Ki"),
    ("memory", "9Ei"),
    ("memory", "lots"),
    ("memory", "0"),
    ("ephemeral_storage", "1e30"),
    ("ephemeral_storage", ""),
    ("cpus", "-1"),
    ("cpus", "0.5"),
    ("cpus", "0"),
    ("cpus", "99999999999"),
]


def test_a_question_that_asks_for_nonsense_is_told(fake):
    with fake.daemon():
        for resource, asked in NONSENSE:
            with fake.parent("tests/echo:local", attributes={resource: asked}) as parent:
                is_refused(fake, parent, "ValueError", f"`{resource}`")


# === Who may run ===


def test_what_is_denied_and_what_is_not_allowed_does_not_run(fake):
    fake.settings |= {"allow": ["tests/*"], "deny": ["tests/old-*"]}
    with fake.daemon():
        with fake.parent("other/echo:local") as parent:
            is_refused(fake, parent, "PermissionError", "`allow`", "other/echo:local")
        with fake.parent("tests/old-echo:local") as parent:
            is_refused(fake, parent, "PermissionError", "`deny`", "`tests/old-*`")
        with fake.parent("tests/echo:local") as parent:
            fake.wait_for_run(parent.question_uuid)


@pytest.mark.parametrize("retry_count", [0, 1])
def test_a_service_that_asks_itself_comes_to_an_end(fake, retry_count):
    """As its asker, each question has the one before, whose Job knows how deep it is."""
    fake.settings["depth"] = 2
    root = str(uuid.uuid4())
    with fake.daemon(), fake.daemon():
        asker, parents = None, []
        for depth in range(4):
            question = str(uuid.uuid4()) if depth else root
            of_a_tree = {"originator_question_uuid": root, "retry_count": retry_count}
            if asker:
                of_a_tree |= {"parent_question_uuid": asker, "sender": "tests/echo:local"}
            parent = fake.parent("tests/echo:local", question, **of_a_tree)
            parents.append(parent)
            if depth < 3:
                suffix = f"-r{retry_count}" if retry_count else ""
                fake.wait_for_pod(question, lambda pod: True, suffix=suffix)
            asker = question
        is_refused(fake, parent, "PermissionError", "`depth`", "allows 2")
        for parent in parents:
            parent.close()


# === What the cluster does not take ===


def policy(namespace, name, message, reason):
    """A policy that takes no Jobs in a namespace."""
    group = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["batch"],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["jobs"],
    }
    # A dry run is how the daemon looks before it starts.
    condition = {"name": "real", "expression": "!(has(request.dryRun) && request.dryRun)"}
    return [
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [condition],
                "validations": [{"expression": "false", "message": message, "reason": reason}],
            },
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "matchResources": {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": namespace}
                    }
                },
            },
        },
    ]


@pytest.fixture
def no_jobs(fake):
    """Makes a policy that takes no Jobs, which holds when this returns."""
    kubectl, name = fake.cluster.kubectl, fake.namespace
    probe = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "probe-", "namespace": name},
        "spec": {
            "suspend": True,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "probe", "image": "probe"}],
                }
            },
        },
    }

    def holds():
        try:
            kubectl.create(probe)
        except RuntimeError:
            return True
        return False

    def made(message, reason):
        kubectl.create(*policy(name, name, message, reason))
        wait_for(holds, "the policy holds")

    yield made
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        kubectl("delete", kind, name, "--ignore-not-found")


def test_a_job_that_the_api_server_refuses_is_told(fake, no_jobs):
    with fake.daemon():
        no_jobs("There are no Jobs on Sundays.", "Invalid")
        with fake.parent("tests/echo:local") as parent:
            is_refused(fake, parent, "RuntimeError", "There are no Jobs on Sundays.")


def test_a_job_that_is_forbidden_now_is_held_until_it_is_not(fake, no_jobs):
    with fake.daemon() as daemon:
        no_jobs("Not now.", "Forbidden")
        with fake.parent("tests/echo:local") as parent:
            wait_for(lambda: "Not now." in daemon.log.read_text(), "it was tried")
            assert parent.ends() == []

            fake.cluster.kubectl("delete", "validatingadmissionpolicybinding", fake.namespace)

            fake.wait_for_run(parent.question_uuid)


@pytest.fixture
def quota(fake):
    """Sets how many Jobs there may be, which holds when this returns."""
    kubectl = fake.cluster.kubectl

    def is_counted(number):
        status = kubectl.get("resourcequota", "few", "-n", fake.namespace)["status"]
        return status.get("used") and status["hard"]["count/jobs.batch"] == number

    def new_quota(number):
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "few", "namespace": fake.namespace},
                "spec": {"hard": {"count/jobs.batch": number}},
            }
        )
        wait_for(lambda: is_counted(number), "the quota counts")

    return new_quota


def test_a_quota_of_jobs_holds_questions_until_it_is_raised(fake, quota):
    quota("1")
    with fake.daemon() as daemon, fake.parent("tests/echo:local") as first:
        fake.wait_for_run(first.question_uuid)
        with fake.parent("tests/echo:local") as second:
            wait_for(lambda: "exceeded quota" in daemon.log.read_text(), "it is over the quota")
            assert second.ends() == []
            assert fake.job(second.question_uuid) is None

            quota("2")

            fake.wait_for_run(second.question_uuid)


def test_a_daemon_starts_under_a_full_quota_and_holds_what_comes(fake, quota):
    quota("0")
    with fake.daemon() as daemon:
        assert '"check":"namespace' in daemon.log.read_text()
        with fake.parent("tests/echo:local") as parent:
            held = lambda: "failed to act on event" in daemon.log.read_text()  # noqa: E731
            wait_for(held, "it was tried")
            assert parent.ends() == []

            quota("1")

            fake.wait_for_run(parent.question_uuid)


@pytest.mark.long
def test_a_pod_that_a_limit_range_forbids_is_told(fake):
    limit = {"type": "Container", "min": {"cpu": "1"}}
    fake.cluster.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "large", "namespace": fake.namespace},
            "spec": {"limits": [limit]},
        }
    )
    with fake.daemon(), fake.parent("tests/echo:local") as parent:
        exception = parent.exception(within=120)

        assert exception["exception_type"] == "PermissionError", exception
        assert "LimitRange" in exception["exception_message"], exception
        assert len(parent.ends()) == 1
        assert not fake.pods(parent.question_uuid)


@pytest.mark.long
def test_a_pod_that_pod_security_forbids_is_told(fake):
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    fake.cluster.kubectl("label", "namespace", fake.namespace, enforce)
    with fake.daemon(), fake.parent("tests/echo:local") as parent:
        exception = parent.exception(within=120)

        assert exception["exception_type"] == "PermissionError", exception
        assert "rules of pod security" in exception["exception_message"], exception
        assert "`pod-security` labels" in exception["exception_message"], exception
        assert len(parent.ends()) == 1
        assert not fake.pods(parent.question_uuid)
