"""The Kubernetes runner fulfils the contract of runners (`tests/it/runner_contract.rs`)."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_jobs_fulfil_the_contract_of_runners(own_cluster, namespace, account):
    helper = ["cargo", "run", "--locked", "--quiet", "--example", "test-helper", "--"]
    suite = [*helper, "kubernetes-contract", namespace, own_cluster.repository]
    environment = {**os.environ, "KUBECONFIG": str(account(namespace))}
    ended = subprocess.run(suite, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every promise kept" in ended.stdout
