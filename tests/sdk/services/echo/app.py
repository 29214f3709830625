"""Answers with its input values, in an object, so that no value is mistaken for a missing one."""

import logging

logger = logging.getLogger(__name__)


def run(analysis):
    values = analysis.input_values
    logger.info("Asked with a value of type %s.", type(values).__name__)
    analysis.output_values = {"received": values, "type": type(values).__name__}
