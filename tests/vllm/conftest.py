"""One registry, two vLLM servers and their nodes for all tests here: a server takes a minute to start.

`bare` is a vLLM as it comes, with an agent beside it. `resolving` has the plug-in and the middleware inside, no agent,
and as few places for adapters as can be (`--max-loras 2`), so that it evicts and reads files again all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_workers import installation
from lora_workers.base_models import read_base_profile
from lora_workers.embedded import EmbeddedValkey
from tests.helpers.servers import start_server
from tests.helpers.stack import Stack, make_settings
from tests.vllm.models import BASE_NAME, make_base
from tests.vllm.node import Node
from tests.vllm.server import VLLM, VllmServer, environment_of_a_node


@dataclass
class Stand:
    """What the tests share.

    Attributes:
        stack: the registry's processes.
        valkey: its server.
        base: directory of the base model.
        bare: a vLLM with nothing in it.
        agent: the agent beside it.
        resolving: a vLLM with the plug-in and the middleware in it.
        resolving_cache: their cache.
    """

    stack: Stack
    valkey: EmbeddedValkey
    base: Path
    bare: VllmServer
    agent: Node
    resolving: VllmServer
    resolving_cache: Path


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Everything, started side by side."""
    if not VLLM.exists():
        pytest.fail("there is no vLLM: run `make test-vllm`, which installs it")
    directory = tmp_path_factory.mktemp("stand")
    base = make_base(directory / "base")
    valkey = start_server(directory / "valkey")
    settings = make_settings(valkey.url, directory, numeric="on", lease_s=10.0, stall_timeout_s=60.0, max_lora_rank=64)
    resolving_cache = directory / "cache of resolving"
    inside = environment_of_a_node(
        installation.environment_of(settings),
        base=BASE_NAME,
        cache=str(resolving_cache),
        drain_s="2",
        max_lora_rank="16",
    )
    bare = VllmServer(base, directory / "bare", "--max-loras", "64", "--max-cpu-loras", "64")
    resolving = VllmServer(
        base,
        directory / "resolving",
        *("--max-loras", "2", "--max-cpu-loras", "2"),
        *("--middleware", "lora_workers.node.middleware.AliasMiddleware"),
        environment=inside,
    )
    stack = Stack(settings, directory)
    agent = Node(bare.url, settings, directory / "agent", node_id="bare")
    try:
        bare.start()
        resolving.start()
        stack.dispatchers()
        stack.worker()
        stack.registry.catalog.bases.add(read_base_profile(BASE_NAME, base, with_model=False))
        stack.wait_for_slots()
        agent.start()
        bare.wait()
        resolving.wait()
        yield Stand(stack, valkey, base, bare, agent, resolving, resolving_cache)
    finally:
        agent.stop()
        for server in (bare, resolving):
            server.stop()
        stack.close()
        valkey.stop()
        for log in (bare.log, resolving.log, agent.log):
            print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" if log.exists() else "")
