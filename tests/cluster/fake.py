"""Fake nodes, whose pods run nothing: for thousands of pods, and for deaths that are hard to have.

Only pods that ask for them go there, by node selector and toleration. A namespace with the
annotations of `NAMESPACE` asks for all of its pods. What a pod does is in its annotations, or in
the environment of its first container, for those who can only set that. README.md tells of it.
"""

import string
from pathlib import Path

LABEL = "twined.test/fake"
SELECTOR = {LABEL: "true"}
TOLERATION = {"key": LABEL, "operator": "Exists", "effect": "NoSchedule"}

# A namespace whose pods all go to the fake nodes, whoever makes them.
NAMESPACE = {
    "scheduler.alpha.kubernetes.io/node-selector": f"{LABEL}=true",
    "scheduler.alpha.kubernetes.io/defaultTolerations": (
        f'[{{"key": "{LABEL}", "operator": "Exists", "effect": "NoSchedule"}}]'
    ),
}

STAGES = Path(__file__).parent / "stages.yaml"


# What a pod can say of itself, and what holds where it says nothing.
SAYINGS = {
    "start": "0s",
    "waiting": "",
    "run": "0s",
    "exit": "0",
    "reason": "",
    "message": "",
    "stop": "0s",
}


class Template(string.Template):
    # The stages are templates of Go's, which has the dollar for its own.
    delimiter = "%"


def as_jq(what, otherwise):
    """An expression of jq: what a pod says of itself."""
    variable = f'.spec.containers[0].env[]? | select(.name == "FAKE_{what.upper()}") | .value'
    return (
        f'(.metadata.annotations["fake.twined.test/{what}"] // first({variable}) // "{otherwise}")'
    )


def as_go(what, otherwise):
    """A piece of a Go template that sets a variable of this name to the same."""
    return (
        f'{{{{ ${what} := "{otherwise}" }}}}'
        "{{ range (index .spec.containers 0).env }}"
        f'{{{{ if eq .name "FAKE_{what.upper()}" }}}}{{{{ ${what} = .value }}}}{{{{ end }}}}'
        "{{ end }}"
        "{{ range $key, $value := .metadata.annotations }}"
        f'{{{{ if eq $key "fake.twined.test/{what}" }}}}{{{{ ${what} = $value }}}}{{{{ end }}}}'
        "{{ end }}"
    )


def stages():
    words = {f"jq_{what}": as_jq(what, otherwise) for what, otherwise in SAYINGS.items()}
    words |= {f"go_{what}": as_go(what, otherwise) for what, otherwise in SAYINGS.items()}
    return Template(STAGES.read_text()).substitute(words)


def start(cluster):
    config = cluster.folder / "stages.yaml"
    config.write_text(stages())
    cluster.run(
        "kwok",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--config={config}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-label-selector={LABEL}=true",
        f"--cidr=10.233.{cluster.slot}.0/24",
        f"--node-ip={cluster.loopback}",
        "--node-lease-duration-seconds=40",
    )
    cluster.kubectl.create(*(node(number) for number in range(cluster.fake_nodes)))


def node(number):
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"fake-{number}", "labels": SELECTOR},
        "spec": {"taints": [{"key": LABEL, "value": "true", "effect": "NoSchedule"}]},
        "status": {
            "allocatable": {"cpu": "1k", "memory": "4Ti", "ephemeral-storage": "4Ti", "pods": "5k"},
            "capacity": {"cpu": "1k", "memory": "4Ti", "ephemeral-storage": "4Ti", "pods": "5k"},
        },
    }
