"""Answers with what it was asked, in an object, so that nothing of it is taken for no answer."""

import logging

logger = logging.getLogger(__name__)


def run(analysis):
    values = analysis.input_values
    logger.info("Asked with a value of type %s.", type(values).__name__)
    analysis.output_values = {"received": values, "type": type(values).__name__}
