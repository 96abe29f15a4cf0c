"""Stacks of processes for tests that kill them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_registry.stages import ALWAYS
from lora_workers.embedded import EmbeddedValkey
from tests.helpers.keys import leaked_keys
from tests.helpers.servers import remove_keys, start_server
from tests.helpers.stack import Stack, check_same_catalog, make_settings


@pytest.fixture
def stack(server_url: str, tmp_path: Path) -> Iterator[Stack]:
    """An empty stack on the session's server; the test starts its processes."""
    prefix = f"{{test-{secrets.token_hex(6)}}}"
    stack = Stack(make_settings(server_url, tmp_path, key_prefix=prefix), tmp_path)
    yield stack
    stack.close()
    leaked = leaked_keys(stack.registry.client, prefix)
    remove_keys(stack.registry.client, prefix)
    assert not leaked, f"keys without an end: {leaked}"


@pytest.fixture(scope="module")
def running_stack(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One dispatcher and one worker for each stage, shared by the tests of a module; a follower lives through all."""
    prefix, directory = f"{{test-{secrets.token_hex(6)}}}", tmp_path_factory.mktemp("stack")
    stack = Stack(make_settings(server_url, directory, key_prefix=prefix), directory)
    stack.dispatchers()
    for stage in ALWAYS:
        stack.worker(stage)
    follower = stack.follower()
    yield stack
    try:
        check_same_catalog(stack, follower)
    finally:
        stack.close()
    remove_keys(stack.registry.client, prefix)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server that the test may kill."""
    server = start_server(tmp_path / "valkey")
    yield server
    server.kill()


@pytest.fixture
def own_stack(own_server: EmbeddedValkey, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks on the test's own server."""
    made: list[Stack] = []

    def make(**changes: object) -> Stack:
        made.append(Stack(make_settings(own_server.url, tmp_path / "stack", **changes), tmp_path / "stack"))
        return made[-1]

    yield make
    for stack in made:
        stack.close()
