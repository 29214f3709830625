"""Fails as it is asked to: with a type of Python's, of the SDK's, or of its own."""

from octue.exceptions import InvalidInputException


class TooWindyError(Exception):
    """Nobody but this service knows this type."""


TYPES = {
    "python": ValueError,
    "sdk": InvalidInputException,
    "own": TooWindyError,
}


def run(analysis):
    raise TYPES[analysis.input_values["type"]]("The wind was asked for, and it was too much.")
