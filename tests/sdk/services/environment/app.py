"""Answers with its environment variables and its working directory."""

import os


def run(analysis):
    analysis.output_values = {"variables": dict(os.environ), "folder": os.getcwd()}
