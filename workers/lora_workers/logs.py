"""Logging of every process: to standard error, one line each."""

from __future__ import annotations

import logging
import os


def log_to_stderr(level: int) -> None:
    """Log from `level` on, unless logging was set up already."""
    logging.captureWarnings(True)
    if level > logging.DEBUG:  # Celery warns at length of what this registry chose on purpose
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {os.getpid()} %(name)s: %(message)s")
