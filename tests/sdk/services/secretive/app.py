"""Never runs: it wants a secret that is not there."""


def run(analysis):
    analysis.output_values = "It ran."
