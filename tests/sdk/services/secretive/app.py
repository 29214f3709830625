"""Never runs: it requires a secret that is missing."""


def run(analysis):
    analysis.output_values = "It ran."
