"""Real servers for tests: one for the whole session, and one of its own for a test that kills it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis

from lora_registry.connection import connect
from lora_registry.errors import Configuration
from lora_workers.embedded import EmbeddedValkey

GIVEN_URL = os.environ.get("LORA_TEST_REDIS_URL", "")
"""A server to use for everything that kills none; empty: start one."""


def start_server(directory: Path) -> EmbeddedValkey:
    """Start a Valkey server; where there is none, that is a skip on a laptop and an error in CI."""
    server = EmbeddedValkey(directory)
    try:
        server.start()
    except Configuration as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    return server


def remove_keys(client: redis.Redis, prefix: str) -> None:
    """Remove every key of one test."""
    keys = list(client.scan_iter(f"{prefix}*", count=1000))
    for start in range(0, len(keys), 1000):
        client.unlink(*keys[start : start + 1000])


def client_of(url: str) -> redis.Redis:
    """A client for tests' own questions."""
    return connect(url, name="tests")
