"""Never runs: it imports what nobody has."""

import a_library_that_nobody_has


def run(analysis):
    analysis.output_values = a_library_that_nobody_has.answer
