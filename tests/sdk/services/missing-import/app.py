"""Never runs: it imports a library that does not exist."""

import a_library_that_nobody_has


def run(analysis):
    analysis.output_values = a_library_that_nobody_has.answer
