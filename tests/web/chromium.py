"""Headless Chromium: finds it, or installs it on Debian, and shows pages."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

FLAGS = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Pages open windows without a click.
    "--disable-popup-blocking",
    # Chromium asks the user before a page of the internet reaches a local address, except in a
    # window of its own. Other browsers do not ask, and users may agree, so the tests disable that.
    "--disable-features=LocalNetworkAccessChecks",
]


class Unavailable(Exception):
    """Chromium is missing, and cannot be installed."""


def find_or_install():
    """The program `chromium`. Root on Debian installs it if missing."""
    if program := shutil.which("chromium"):
        return program
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("no `chromium` on this machine: install the Debian package `chromium`")

    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    update = ["apt-get", "update", "-qq"]
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", "chromium"]

    # The package lists may be missing.
    for command in (install, update, install):
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if program := shutil.which("chromium"):
            return program

    raise Unavailable(f"failed to install `chromium`: {done.stderr[-500:]}")


class Chromium:
    """Starts a browser with a new profile for each page."""

    def __init__(self, program):
        self.program = program

    @contextlib.contextmanager
    def showing(self, url, resolve=()):
        """Shows the page at `url` meanwhile; yields the file of the browser's output.

        Each of `resolve` is a rule `PATTERN ADDRESS`: where names, addresses and ports resolve to.
        """
        with self.arguments(resolve) as (command, environment):
            output = Path(environment["HOME"], "output")
            process = subprocess.Popen(
                [*command, url],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output.open("w"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield output
            finally:
                # The browser and its child processes.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def document(self, url, resolve=()):
        """The HTML of the document at `url`."""
        with self.arguments(resolve) as (command, environment):
            return subprocess.run(
                [*command, "--dump-dom", url],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                text=True,
                timeout=30,
            ).stdout

    @contextlib.contextmanager
    def arguments(self, resolve):
        """The command without the URL, and its environment."""
        # Processes that were killed a moment ago may still write to the folder.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            rules = ", ".join(f"MAP {rule}" for rule in resolve)
            command = [
                self.program,
                *FLAGS,
                # Chromium's sandbox refuses root.
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                f"--user-data-dir={Path(home, 'profile')}",
                *([f"--host-resolver-rules={rules}"] if rules else []),
            ]
            yield command, {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8"}
