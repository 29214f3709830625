"""Refusals: questions that the network's settings or the cluster do not permit."""

import uuid

import pytest

from cluster import wait_for

DEEP = "tests/deep:local"


@pytest.fixture
def endless_network(fake_network):
    """A network whose fake pods run until they are ended."""
    fake_network.settings["defaults"]["environment"] |= {"FAKE_RUN": "forever"}
    return fake_network


def expect_refusal(network, parent, exception_type, *texts):
    """Waits until the parent has one exception, on the wire and on record, and there is no Job."""
    exception = parent.exception()
    assert exception["exception_type"] == exception_type, exception
    for text in texts:
        assert text in exception["exception_message"], exception
    assert [event["kind"] for event in parent.ends()] == ["exception"]
    rows = network.rows(parent.question_uuid, "question", "exception", "result")
    assert sorted(row["kind"] for row in rows) == ["exception", "question"]
    # A redelivery is refused too, without a second exception.
    parent.publish()
    assert len(parent.ends()) == 1
    assert network.job(parent.question_uuid) is None
    return exception


# === Requests of a question ===


def test_a_request_over_a_cap_is_refused_with_the_name_of_the_cap(endless_network):
    for resource, cap in (("cpus", "2"), ("memory", "1Gi"), ("ephemeral_storage", "2Gi")):
        endless_network.settings["defaults"][resource]["cap"] = cap
    with endless_network.daemon():
        for resource, asked in (("cpus", "3"), ("memory", "1025Mi"), ("ephemeral_storage", "3G")):
            with endless_network.parent("tests/echo:local", attributes={resource: asked}) as parent:
                cap = f"`{resource}.cap`"
                expect_refusal(endless_network, parent, "PermissionError", cap, "tests/echo:local")
        at_most = {"cpus": "2", "memory": "1Gi", "ephemeral_storage": "2Gi"}
        with endless_network.parent("tests/echo:local", attributes=at_most) as parent:
            pod = endless_network.wait_for_run(parent.question_uuid)
            requests = pod["spec"]["containers"][0]["resources"]["requests"]
            assert requests == {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "2Gi"}


INVALID = [
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


def test_an_invalid_request_is_refused(endless_network):
    with endless_network.daemon():
        for resource, asked in INVALID:
            with endless_network.parent("tests/echo:local", attributes={resource: asked}) as parent:
                expect_refusal(endless_network, parent, "ValueError", f"`{resource}`")


# === Services that may run ===


def test_services_that_are_denied_or_not_allowed_do_not_run(endless_network):
    endless_network.settings |= {"allow": ["tests/*"], "deny": ["tests/old-*"]}
    with endless_network.daemon():
        with endless_network.parent("other/echo:local") as parent:
            expect_refusal(
                endless_network, parent, "PermissionError", "`allow`", "other/echo:local"
            )
        with endless_network.parent("tests/old-echo:local") as parent:
            expect_refusal(endless_network, parent, "PermissionError", "`deny`", "`tests/old-*`")
        with endless_network.parent("tests/echo:local") as parent:
            endless_network.wait_for_run(parent.question_uuid)


@pytest.mark.parametrize("retry_count", [0, 1])
def test_a_service_that_asks_itself_is_stopped_by_the_depth_limit(endless_network, retry_count):
    """Each question is the parent of the next. Its Job records its depth."""
    endless_network.settings["depth"] = 2
    root = str(uuid.uuid4())
    with endless_network.daemon(), endless_network.daemon():
        last, parents = None, []
        for depth in range(4):
            question = str(uuid.uuid4()) if depth else root
            of_a_tree = {"originator_question_uuid": root, "retry_count": retry_count}
            if last:
                of_a_tree |= {"parent_question_uuid": last, "sender": "tests/echo:local"}
            parent = endless_network.parent("tests/echo:local", question, **of_a_tree)
            parents.append(parent)
            if depth < 3:
                suffix = f"-r{retry_count}" if retry_count else ""
                endless_network.wait_for_pod(question, lambda pod: True, suffix=suffix)
            last = question
        expect_refusal(endless_network, parent, "PermissionError", "`depth`", "allows 2")
        for parent in parents:
            parent.close()


# === Jobs that the cluster refuses ===


def policy(namespace, name, message, reason):
    """A policy that denies the creation of Jobs in a namespace."""
    group = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["batch"],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["jobs"],
    }
    # The preflight check of the daemon, which is a dry run, must pass.
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
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
                },
            },
        },
    ]


@pytest.fixture
def no_jobs(endless_network):
    """Creates a policy that denies Jobs. It is in force when the call returns."""
    kubectl, name = endless_network.cluster.kubectl, endless_network.namespace
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

    def is_in_force():
        try:
            kubectl.create(probe)
        except RuntimeError:
            return True
        return False

    def create(message, reason):
        kubectl.create(*policy(name, name, message, reason))
        wait_for(is_in_force, "the policy is in force")

    yield create
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        kubectl("delete", kind, name, "--ignore-not-found")


def test_a_job_that_the_api_server_finds_invalid_is_refused(endless_network, no_jobs):
    with endless_network.daemon():
        no_jobs("There are no Jobs on Sundays.", "Invalid")
        with endless_network.parent("tests/echo:local") as parent:
            expect_refusal(endless_network, parent, "RuntimeError", "There are no Jobs on Sundays.")


def test_a_question_whose_job_is_forbidden_is_held_and_retried(endless_network, no_jobs):
    with endless_network.daemon() as daemon:
        no_jobs("Not now.", "Forbidden")
        with endless_network.parent("tests/echo:local") as parent:
            wait_for(lambda: "Not now." in daemon.log.read_text(), "the launch has failed")
            assert parent.ends() == []

            endless_network.cluster.kubectl(
                "delete", "validatingadmissionpolicybinding", endless_network.namespace
            )

            endless_network.wait_for_run(parent.question_uuid)


@pytest.fixture
def quota(endless_network):
    """Sets the quota of Jobs. It is in force when the call returns."""
    kubectl = endless_network.cluster.kubectl

    def is_counted(number):
        status = kubectl.get("resourcequota", "few", "-n", endless_network.namespace)["status"]
        return status.get("used") and status["hard"]["count/jobs.batch"] == number

    def new_quota(number):
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "few", "namespace": endless_network.namespace},
                "spec": {"hard": {"count/jobs.batch": number}},
            }
        )
        wait_for(lambda: is_counted(number), "the quota is in force")

    return new_quota


def test_a_quota_of_jobs_holds_questions_until_it_is_raised(endless_network, quota):
    quota("1")
    with endless_network.daemon() as daemon, endless_network.parent("tests/echo:local") as first:
        endless_network.wait_for_run(first.question_uuid)
        with endless_network.parent("tests/echo:local") as second:
            exceeded = lambda: "exceeded quota" in daemon.log.read_text()  # noqa: E731
            wait_for(exceeded, "the quota is exceeded")
            assert second.ends() == []
            assert endless_network.job(second.question_uuid) is None

            quota("2")

            endless_network.wait_for_run(second.question_uuid)


def test_a_daemon_starts_under_an_exhausted_quota_and_holds_questions(endless_network, quota):
    quota("0")
    with endless_network.daemon() as daemon:
        assert '"check":"namespace' in daemon.log.read_text()
        with endless_network.parent("tests/echo:local") as parent:
            held = lambda: "failed to act on event" in daemon.log.read_text()  # noqa: E731
            wait_for(held, "the launch has failed")
            assert parent.ends() == []

            quota("1")

            endless_network.wait_for_run(parent.question_uuid)


@pytest.mark.long
def test_a_pod_that_a_limit_range_forbids_is_reported(endless_network):
    limit = {"type": "Container", "min": {"cpu": "1"}}
    endless_network.cluster.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "large", "namespace": endless_network.namespace},
            "spec": {"limits": [limit]},
        }
    )
    with endless_network.daemon(), endless_network.parent("tests/echo:local") as parent:
        exception = parent.exception(within=120)

        assert exception["exception_type"] == "PermissionError", exception
        assert "LimitRange" in exception["exception_message"], exception
        assert len(parent.ends()) == 1
        assert not endless_network.pods(parent.question_uuid)


@pytest.mark.long
def test_a_pod_that_pod_security_forbids_is_reported(endless_network):
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    endless_network.cluster.kubectl("label", "namespace", endless_network.namespace, enforce)
    with endless_network.daemon(), endless_network.parent("tests/echo:local") as parent:
        exception = parent.exception(within=120)

        assert exception["exception_type"] == "PermissionError", exception
        assert "rules of pod security" in exception["exception_message"], exception
        assert "`pod-security` labels" in exception["exception_message"], exception
        assert len(parent.ends()) == 1
        assert not endless_network.pods(parent.question_uuid)
