"""A test changes this file between two questions."""


def run(analysis):
    analysis.output_values = "before"
