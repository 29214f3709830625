"""Answers with who started it."""

import os


def run(analysis):
    analysis.output_values = os.environ.get("STARTED_BY", "the network")
