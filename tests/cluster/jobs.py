"""Creates and reads Jobs and pods."""

import fake

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def job(namespace, name, image, *command, queue=None, env=(), annotations=(), **container):
    """A Job of one pod like the daemon's, with the command of services by default.

    `container` adds fields to its container, for example `resources`.
    """
    metadata = {"name": name, "namespace": namespace}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 3,
        "containers": [
            {
                "name": "question",
                "image": image,
                "command": list(command) or ["octue", "twined", "question", "ask-local"],
                "env": [{"name": name, "value": value} for name, value in dict(env).items()],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                **container,
            }
        ],
    }

    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}

    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "suspend": bool(queue),
            "template": {"metadata": {"annotations": dict(annotations)}, "spec": pod},
        },
    }


def on_fake_nodes(job):
    """Sends the pods of a Job to the fake nodes. Returns the Job."""
    pod = job["spec"]["template"]["spec"]
    pod["nodeSelector"], pod["tolerations"] = fake.SELECTOR, [fake.TOLERATION]
    return job


def pods(cluster, namespace, name):
    """The pods of a Job."""
    selector = f"{JOB_NAME_LABEL}={name}"
    return cluster.kubectl.list("pods", "--namespace", namespace, "-l", selector)


def only_pod(cluster, namespace, name):
    found = pods(cluster, namespace, name)
    return found[0] if found else None


def state(pod):
    """The state of the pod's first container (`waiting`, `running`, `terminated`) with its fields.

    The state of a pod without container statuses is None.
    """
    statuses = pod and pod["status"].get("containerStatuses")
    return next(iter(statuses[0]["state"].items())) if statuses else (None, {})


def condition(job):
    """How a Job ended: `Complete` or `Failed`; None if it is unfinished."""
    conditions = job["status"].get("conditions", [])
    ended = [found["type"] for found in conditions if found["status"] == "True"]
    return next((kind for kind in ended if kind in ("Complete", "Failed")), None)


def wait_for_end(cluster, namespace, name, within=120):
    """Waits for a Job to end, and returns how: `Complete` or `Failed`."""
    return cluster.wait_for(
        lambda: condition(cluster.kubectl.get("job", name, "--namespace", namespace)),
        f"the Job {name} has ended",
        within,
    )


def wait_for_state(cluster, namespace, name, kind, reason=None, within=60):
    """Waits until the container of a Job's pod is `kind`, and returns the fields of that state."""

    def found():
        now, fields = state(only_pod(cluster, namespace, name))
        return now == kind and (reason is None or fields.get("reason") == reason) and fields

    return cluster.wait_for(found, f"the pod of {name} is {kind} {reason or ''}", within)
