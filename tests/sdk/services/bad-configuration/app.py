"""Never runs: its octue.yaml gives a text where its twine wants a number."""


def run(analysis):
    analysis.output_values = "It ran."
