"""From a submitted adapter to a node that holds it: real processes, real adapters, a directory for an engine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from lora_registry.nodes import NodeRegistry, NodeState
from lora_workers import processes
from lora_workers.embedded import EmbeddedValkey
from tests.helpers.registry import BASE
from tests.helpers.servers import start_server
from tests.helpers.stack import Stack, environment_of, make_settings


class NodeProcess:
    """`lora-registry node` beside a directory."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.engine, self.cache = directory / "engine", directory / "cache"
        self._stack = stack
        self._log = directory / "node.log"
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        options = [
            *("--base", BASE),
            *("--engine", "directory"),
            *("--engine-url", str(self.engine)),
            *("--cache", str(self.cache)),
            *("--node-id", "node-1"),
            *("--drain-s", "0.2"),
        ]
        environment = environment_of(self._stack.settings) | {"LORA_REGISTRY_NODE_RECONCILE_S": "0.5"}
        command = [sys.executable, "-m", "lora_workers", "node", *options]
        with self._log.open("ab") as log:
            self.process = processes.start(command, environment=environment, log=log)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process:
            processes.kill_group(self.process)
            self.process.wait()

    def holds(self) -> dict[str, Path]:
        """What the engine's directory holds."""
        return {path.name: path.readlink() for path in self.engine.iterdir()} if self.engine.is_dir() else {}

    def wait_for(self, served_name: str, state: NodeState = NodeState.ROUTABLE) -> None:
        """Wait until it says so of a version."""
        nodes = NodeRegistry(self._stack.registry.client, self._stack.settings)
        self._stack.wait_until(
            lambda: [ack for ack in nodes.acks(served_name) if ack.state is state], what=f"{served_name} {state}"
        )


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server of the test's own."""
    server = start_server(tmp_path / "valkey")
    yield server
    server.kill()


@pytest.fixture
def stack(valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Stack]:
    """A dispatcher and a worker."""
    stack = Stack(make_settings(valkey.url, tmp_path), tmp_path)
    stack.dispatchers()
    stack.worker()
    stack.wait_for_slots()
    yield stack
    stack.close()


@pytest.fixture
def node(stack: Stack, tmp_path: Path) -> Iterator[NodeProcess]:
    """A node at work."""
    node = NodeProcess(stack, tmp_path)
    node.start()
    yield node
    node.kill()


def publish(stack: Stack, name: str = "support-bot") -> str:
    """Send an adapter through the pipeline; returns the served name."""
    registration_id = stack.submit(name)
    return stack.wait_for([registration_id])[registration_id].served_name


@pytest.mark.timeout(180)
def test_a_node_through_crashes_of_everything(stack: Stack, valkey: EmbeddedValkey, node: NodeProcess) -> None:
    """Announced, held, acknowledged; then the node is killed, then the server: both times it catches up."""
    first = publish(stack)
    node.wait_for(first)
    assert node.holds().keys() == {first}
    assert (node.holds()[first] / "adapter_model.safetensors").is_file()

    node.kill()
    second = publish(stack)
    assert node.holds().keys() == {first}
    node.start()
    node.wait_for(second)
    stack.wait_until(lambda: node.holds().keys() == {second}, what="the old version unloaded")

    valkey.kill()
    assert node.holds().keys() == {second}
    valkey.start()
    third = publish(stack, "other-bot")
    node.wait_for(third)
    node.wait_for(second)
    assert node.holds().keys() == {second, third}

    assert node.process
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(15) == 0
    assert node.holds().keys() == {second, third}  # the engine goes on with what it has
    nodes = NodeRegistry(stack.registry.client, stack.settings)
    assert nodes.nodes() == []
