"""Never runs: its octue.yaml has a string where its twine requires a number."""


def run(analysis):
    analysis.output_values = "It ran."
