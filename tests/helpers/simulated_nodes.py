"""Serving nodes without an engine, as threads: they follow the catalog and acknowledge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_registry.nodes import NodeState
from lora_registry.selection import parse_selector, wanted_by
from lora_registry.subscriber import Subscriber
from tests.helpers.nodes import EAGER, LAZY, make_info
from tests.helpers.registry import BASE, Registry

Fault = Callable[[str, str], tuple[NodeState, str] | None]
"""What a node says instead of serving a version: by node id and served name."""


class SimulatedNode(threading.Thread):
    """A node without an engine: it follows the catalog, and acknowledges what it holds and what it gives up."""

    def __init__(self, registry: Registry, node_id: str, fault: Fault, **fields: object) -> None:
        super().__init__(daemon=True)
        self.info = make_info(node_id, **fields)
        self._registry, self._fault = registry, fault
        self._subscriber = Subscriber(BASE, url=registry.settings.redis_url, key_prefix=registry.settings.key_prefix)
        self._stopping = threading.Event()
        self.held: dict[str, str] = {}
        self.error: BaseException | None = None
        registry.nodes.heartbeat(self.info, digests=[], fresh=True)

    def run(self) -> None:
        """Follow until stopped."""
        try:
            while not self._stopping.is_set():
                self._subscriber.poll()
                self._reconcile()
                self._stopping.wait(0.01)
        except BaseException as error:  # noqa: BLE001 - shown by the test that started it
            self.error = error

    def stop(self) -> None:
        """End it, and fail the test if it failed."""
        self._stopping.set()
        self.join()
        if self.error:
            raise self.error

    def _reconcile(self) -> None:
        selector, node_id = parse_selector(self.info.select), self.info.node_id
        wanted = {
            each.record.served_name for each in wanted_by(selector, node_id, self._subscriber.view, now_s=time.time())
        }
        for served_name in wanted - self.held.keys():
            self.held[served_name] = self._begin(served_name)
        for served_name in self.held.keys() - wanted:
            del self.held[served_name]
            self._registry.nodes.ack(node_id, served_name, NodeState.RETIRED)

    def _begin(self, served_name: str) -> str:
        nodes, node_id = self._registry.nodes, self.info.node_id
        nodes.ack(node_id, served_name, NodeState.SEEN)
        fault = self._fault(node_id, served_name)
        if fault is not None:
            nodes.ack(node_id, served_name, fault[0], code="TEST_FAULT", reason=fault[1])
            return fault[0]
        for state in (EAGER if self.info.eager else LAZY)[1:]:
            nodes.ack(node_id, served_name, state)
        return NodeState.ROUTABLE


@contextmanager
def fleet(
    registry: Registry, *node_ids: str, fault: Fault = lambda *_: None, **fields: object
) -> Iterator[dict[str, SimulatedNode]]:
    """Nodes that run meanwhile, by id."""
    nodes = {node_id: SimulatedNode(registry, node_id, fault, **fields) for node_id in node_ids}
    for node in nodes.values():
        node.start()
    yield nodes
    for node in nodes.values():
        node.stop()
