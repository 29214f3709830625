"""Waiting for a condition."""

import time


def wait_for(condition, what, within=30):
    """Waits until `condition()` is true, and returns its value."""
    deadline = time.monotonic() + within

    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within} s")
        time.sleep(0.02)
    return value
