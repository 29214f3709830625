"""Never runs: its twine.json is truncated."""


def run(analysis):
    analysis.output_values = "It ran."
