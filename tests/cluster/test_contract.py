"""What every runner promises, kept by Jobs: the suite is Rust's."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_jobs_keep_every_promise_of_a_runner(own_cluster, namespace, account):
    suite = ["cargo", "test", "--locked", "--test", "it", "runner_kubernetes", "--", "--ignored"]
    environment = {
        "KUBECONFIG": str(account(namespace)),
        "TWINED_TEST_NAMESPACE": namespace,
        "TWINED_TEST_IMAGES": own_cluster.repository,
    }
    ended = subprocess.run(
        suite, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
