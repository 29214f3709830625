"""Logs, and is killed by SIGKILL right after its last log record."""

import logging
import os
import pathlib
import signal
import time

logger = logging.getLogger(__name__)


def run(analysis):
    for i in range(30):
        logger.info("Step %d.", i)

    pathlib.Path(analysis.input_values["file"]).write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)
