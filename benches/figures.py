#!/usr/bin/env python3
"""The figures of the program in docs/figures.md: medians of several starts.

    cargo build --release && benches/figures.py target/release/twined
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

STARTS = 9


def demo(binary):
    """The duration of `twined demo`, from its start to its exit, in seconds."""
    start = time.monotonic()
    done = subprocess.run([binary, "demo"], capture_output=True, check=True, text=True)
    assert done.stdout == '{"output_values":{"primes":1229}}\n', done.stdout
    return time.monotonic() - start


def network(binary):
    """The time until a network is ready, in seconds, and its resident memory when idle, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [binary, "local", "--http-port", "0", "--pubsub-port", "0", "--data", "data"]
        start = time.monotonic()
        process = subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr:
                address = re.match(r"\s*http\s+(\S+)", line)
                if address:
                    break
            while not is_ready(address.group(1)):
                time.sleep(0.001)
            ready = time.monotonic() - start
            # By then, the memory that only the start needs is released.
            time.sleep(1)
            status = open(f"/proc/{process.pid}/status").read()
            resident = int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
        return ready, resident


def is_ready(url):
    try:
        return urllib.request.urlopen(url + "/ready", timeout=1).status == 200
    except (urllib.error.URLError, OSError):
        return False


def main():
    binary = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "target/release/twined")
    demos = [demo(binary) for _ in range(STARTS)]
    ready, resident = zip(*(network(binary) for _ in range(STARTS)))
    for name, figures, unit in [
        ("demo, start to exit", [1000 * seconds for seconds in demos], "ms"),
        ("ready", [1000 * seconds for seconds in ready], "ms"),
        ("resident, idle", resident, "MiB"),
    ]:
        median = statistics.median(figures)
        print(f"{name:20} median {median:6.1f} {unit}, worst {max(figures):6.1f} of {STARTS}")


main()
