"""Adds its name to the file `runs`, and answers once the file `may-end` exists."""

import pathlib
import time


def run(analysis):
    name = analysis.input_values["name"]
    folder = pathlib.Path(analysis.input_values["folder"])

    with open(folder / "runs", "a") as runs:
        runs.write(f"{name}\n")

    deadline = time.monotonic() + 120
    while not (folder / "may-end").exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    analysis.output_values = name
