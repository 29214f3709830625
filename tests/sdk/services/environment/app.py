"""Answers with where it runs."""

import os


def run(analysis):
    analysis.output_values = {"variables": dict(os.environ), "folder": os.getcwd()}
