"""Servers and registries for all tests. Each test has a key prefix of its own, so tests share a server in peace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.settings import Settings
from tests.helpers.hub_server import HubServer
from tests.helpers.keys import leaked_keys
from tests.helpers.registry import Registry
from tests.helpers.s3_server import S3Server
from tests.helpers.servers import GIVEN_URL, client_of, remove_keys, start_server

VLLM_TESTS = Path(__file__).parent / "vllm"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests on real vLLM servers run when they are named: they take an environment of their own (`make test-vllm`)."""
    if collection_path == VLLM_TESTS and not any("vllm" in argument for argument in config.args):
        return True
    return None


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for the session: Valkey, or the one that LORA_TEST_REDIS_URL names."""
    if GIVEN_URL:
        yield GIVEN_URL
        return
    server = start_server(tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3-compatible server for the session; each test keeps to a prefix of its own."""
    server = S3Server(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    """One loopback Hub for the session; each test keeps to repositories of its own."""
    server = HubServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(server_url: str, tmp_path: Path) -> Settings:
    """Settings of a registry that nobody else uses."""
    return Settings(
        redis_url=server_url,
        key_prefix=f"{{test-{secrets.token_hex(6)}}}",
        source_roots=(tmp_path,),
        artifact_store=tmp_path / "artifacts",
        numeric="off",  # tests that look at numbers switch it on; the others start faster without torch
    )


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    """An admitted, empty registry; a key that it leaves for ever and that is not declared fails the test."""
    client = client_of(settings.redis_url)
    registry = Registry(client, settings)
    registry.admit()
    yield registry
    leaked = leaked_keys(client, settings.key_prefix)
    remove_keys(client, settings.key_prefix)
    client.close()
    assert not leaked, f"keys without an end: {leaked}"
