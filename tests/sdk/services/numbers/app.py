"""Answers with as many numbers as its input value, and logs before and after."""

import logging

logger = logging.getLogger(__name__)


def run(analysis):
    for i in range(20):
        logger.info("Working: %d of 20.", i + 1)

    analysis.output_values = [i % 10 for i in range(analysis.input_values)]
    logger.info("Done.")
