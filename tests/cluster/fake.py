"""Fake nodes, whose pods run nothing: for thousands of pods, and for rare failures.

Only pods with their node selector and toleration go there. A namespace with the annotations of
`NAMESPACE` gives both to all of its pods. A pod's annotations define its behaviour, or the
environment of its first container, for clients that can set only that. README.md lists them.
"""

import string
from pathlib import Path

LABEL = "twined.test/fake"
SELECTOR = {LABEL: "true"}
TOLERATION = {"key": LABEL, "operator": "Exists", "effect": "NoSchedule"}

# Annotations of a namespace whose pods all go to the fake nodes, whoever creates them.
NAMESPACE = {
    "scheduler.alpha.kubernetes.io/node-selector": f"{LABEL}=true",
    "scheduler.alpha.kubernetes.io/defaultTolerations": (
        f'[{{"key": "{LABEL}", "operator": "Exists", "effect": "NoSchedule"}}]'
    ),
}

STAGES = Path(__file__).parent / "stages.yaml"


# What a pod can define of its behaviour, with the defaults.
BEHAVIOUR = {
    "start": "0s",
    "waiting": "",
    "run": "0s",
    "exit": "0",
    "reason": "",
    "message": "",
    "stop": "0s",
}


class Template(string.Template):
    # The stages are Go templates, which use the dollar themselves.
    delimiter = "%"


def as_jq(name, default):
    """A jq expression that reads one field of a pod's behaviour."""
    variable = f'.spec.containers[0].env[]? | select(.name == "FAKE_{name.upper()}") | .value'
    return f'(.metadata.annotations["fake.twined.test/{name}"] // first({variable}) // "{default}")'


def as_go(name, default):
    """A piece of a Go template that reads the same field into a variable of its name."""
    return (
        f'{{{{ ${name} := "{default}" }}}}'
        "{{ range (index .spec.containers 0).env }}"
        f'{{{{ if eq .name "FAKE_{name.upper()}" }}}}{{{{ ${name} = .value }}}}{{{{ end }}}}'
        "{{ end }}"
        "{{ range $key, $value := .metadata.annotations }}"
        f'{{{{ if eq $key "fake.twined.test/{name}" }}}}{{{{ ${name} = $value }}}}{{{{ end }}}}'
        "{{ end }}"
    )


def stages():
    fields = {f"jq_{name}": as_jq(name, default) for name, default in BEHAVIOUR.items()}
    fields |= {f"go_{name}": as_go(name, default) for name, default in BEHAVIOUR.items()}
    return Template(STAGES.read_text()).substitute(fields)


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
