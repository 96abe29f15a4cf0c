"""A registry whose versions have real artifacts, and node agents on it, in threads of the test's own process."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis

from lora_registry.artifacts import WEIGHTS_FILE, FileDigest
from lora_registry.catalog_records import VersionRecord
from lora_registry.ledger import Lease
from lora_registry.nodes import Ack, NodeRegistry, NodeState, Said
from lora_registry.registrations import Registration
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.node.agent import Agent
from lora_workers.node.cache import Origin
from lora_workers.node.drivers import Driver, open_driver
from lora_workers.node.lookup import LazyOrigin
from lora_workers.node.options import NodeOptions
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until


def keep_artifact(store: LocalArtifactStore, content: str, *, padding_bytes: int = 0) -> str:
    """Keep an artifact with these weights; returns its digest."""
    weights = content.encode() + bytes(padding_bytes)
    with store.stage() as staged:
        Path(staged.weights_path).write_bytes(weights)
        return staged.keep(b'{"r":8}', FileDigest(hashlib.sha256(weights).hexdigest(), len(weights)))


class StoringRegistry(Registry):
    """A registry whose validate stage keeps an artifact: the weights are what the source is called.

    Attributes:
        padding_bytes: what follows it.
        rank: what the next versions have.
        announced_at: when the last version began to be published, in seconds since 1970-01-01.
    """

    padding_bytes = 0
    rank = 8
    announced_at = 0.0

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        super().__init__(client, settings)
        self.store = LocalArtifactStore(settings.artifact_directory or Path())
        self.nodes = NodeRegistry(client, settings)

    def complete(self, lease: Lease) -> None:
        """What a stage before publish does with a good adapter."""
        if lease.stage is not Stage.VALIDATE:
            super().complete(lease)
            return
        digest = keep_artifact(self.store, lease.registration.source, padding_bytes=self.padding_bytes)
        fields = {"digest": digest, "rank": self.rank, "size_bytes": 4096, "base_revision": "main", "findings": "[]"}
        self.ledger.complete(lease, fields)

    def publish(self, lease: Lease) -> Registration:
        """Run the publish stage on one lease."""
        self.announced_at = time.time()
        return super().publish(lease)

    def publish_version(self, name: str = "support-bot", *, content: str = "one", **fields: Any) -> VersionRecord:
        """Publish a version; returns its record."""
        registration = self.register(name, content=content, **fields)
        served_name = registration.served_name
        return next(each for each in self.catalog.select(base_model=BASE) if each.served_name == served_name)

    def states(self, served_name: str) -> dict[str, NodeState]:
        """How far the nodes are with a version."""
        return {ack.node_id: ack.state for ack in self.nodes.acks(served_name)}

    def wait_for(self, served_name: str, state: NodeState, *, node: str = "node-1", timeout_s: float = 15) -> Ack:
        """Wait until a node says so of a version."""

        def said() -> Ack | None:
            acks = [ack for ack in self.nodes.acks(served_name) if ack.node_id == node]
            return acks[0] if acks and acks[0].state is state else None

        try:
            found = wait_until(said, what=f"{served_name} {state} on {node}", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said {self.nodes.acks(served_name)}") from None
        assert found
        return found


def make_options(directory: Path, **fields: Any) -> NodeOptions:
    """Options under which what takes seconds in production takes tenths of them; a directory stands for the engine."""
    usual = {
        "base": BASE,
        "engine": "directory",
        "engine_url": str(directory / "engine"),
        "cache": directory / "cache",
        "node_id": "node-1",
        "drain_s": 0.05,
        "reconcile_s": 0.2,
        "retry_first_s": 0.1,
        "retry_max_s": 0.4,
    }
    return NodeOptions(**(usual | fields))


@contextmanager
def running_agent(
    options: NodeOptions, settings: Settings, *, driver: Driver | None = None, origin: Origin | None = None
) -> Iterator[Agent]:
    """An agent at work in a thread."""
    agent = Agent(
        options,
        settings,
        driver=driver or open_driver(options.engine, options.engine_url),
        origin=origin or LazyOrigin(settings),
    )
    thread = threading.Thread(target=agent.run, name=f"agent {options.node_id}")
    thread.start()
    try:
        yield agent
    finally:
        agent.stop()
        thread.join(20)
    assert not thread.is_alive(), "the agent does not end"


@contextmanager
def said_of(served_name: str) -> Iterator[list[NodeState]]:
    """What nodes say of a version meanwhile, in order: the list grows as they say it."""
    said: list[NodeState] = []
    usual = NodeRegistry.ack_all

    def ack_all(self: NodeRegistry, node_id: str, told: Sequence[Said]) -> list[tuple[Said, str]]:
        refused = usual(self, node_id, told)
        taken = [each for each in told if each not in dict(refused)]
        said.extend(each.state for each in taken if each.served_name == served_name)
        return refused

    with patch.object(NodeRegistry, "ack_all", ack_all):
        yield said


def links(options: NodeOptions) -> dict[str, Path]:
    """What the directory that stands for the engine holds."""
    directory = Path(options.engine_url)
    return {path.name: path.readlink() for path in directory.iterdir()} if directory.is_dir() else {}


def weights_of(options: NodeOptions, served_name: str) -> str:
    """The weights that the engine reads for a served name."""
    return (Path(options.engine_url) / served_name / WEIGHTS_FILE).read_text()


def damage(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write other bytes into files that are read-only."""
    directory.chmod(0o755)
    for name, content in files.items():
        path = directory / name
        path.chmod(0o644)
        path.write_bytes(content)
