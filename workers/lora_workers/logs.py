"""Logging of every process: to standard error, one line each."""

from __future__ import annotations

import logging
import os

_TALKATIVE = ("botocore", "aiobotocore", "s3fs", "fsspec", "httpcore2", "asyncio")
"""Libraries whose debug messages have requests in them, signatures included."""


def log_to_stderr(level: int) -> None:
    """Log from `level` on, unless logging was set up already."""
    logging.captureWarnings(True)
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(max(level, logging.INFO))
    if level > logging.DEBUG:  # Celery warns at length of what this registry chose on purpose
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {os.getpid()} %(name)s: %(message)s")
