"""Raises an exception of Python, of the SDK, or of its own, as its input values select."""

from octue.exceptions import InvalidInputException


class TooWindyError(Exception):
    """Only this service defines this type."""


TYPES = {
    "python": ValueError,
    "sdk": InvalidInputException,
    "own": TooWindyError,
}


def run(analysis):
    raise TYPES[analysis.input_values["type"]]("The wind was asked for, and it was too much.")
